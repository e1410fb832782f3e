"""`lightning serve`: answers photos by HTTP with both twins, and shows a page."""

import importlib.util
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from lightning_module.commands.cli import EXIT_BAD_INPUT, EXIT_KERAS_FAILED, EXIT_UNEXPECTED, parse_for, underscored
from lightning_module.commands.options import read_labels
from lightning_module.evaluation.labellers import Device
from lightning_module.evaluation.labelling import Temperature, check_min_probability, choose_labelling
from lightning_module.serving.served_files import TwinChoice, find_files, make_labellers
from models.bad_input import BadInput
from models.choices import MOST_PIXELS

EXTRA = {
    "fastapi": "fastapi",
    "uvicorn": "uvicorn",
    "python_multipart": "python-multipart",
    "prometheus_client": "prometheus-client",
}
"""Modules that the extra `serve` provides -> names of the packages to install."""
FILES_HELP = "a run's folder, RUN; or a checkpoint, a Keras .h5, or both, that belong together"


def run(argv: list[str]) -> None:
    """Parse `serve RUN_OR_FILES... [--host HOST] [--port PORT] [...]` and run it.

    Raises:
        BadInput: some input cannot be used.
        KerasFailed: the Keras process crashed or ran out of time.
        SystemExit: 143 at SIGTERM, when all that had come is answered.
    """
    codes = f"Exit codes: {EXIT_BAD_INPUT} bad input; {EXIT_KERAS_FAILED} Keras itself crashed at the start; "
    codes += f"{EXIT_UNEXPECTED} an error in the program; 130 ended by Ctrl-C; 143 ended by SIGTERM."
    given = [underscored(each) for each in argv[1:]]
    serve(**parse_for(serve, "serve", given, codes, several=("files", FILES_HELP)))


def serve(
    files: Sequence[str],
    host: str = "127.0.0.1",
    port: int = 8000,
    twin: TwinChoice | None = None,
    top: int | None = None,
    min_probability: float | None = None,
    temperature: Temperature = "auto",
    batch_size: int = 16,
    max_upload: int = 64,
    max_megapixels: float = MOST_PIXELS / 10**6,
    max_waiting: int = 256,
    receive_seconds: float = 60.0,
    device: Device = "auto",
    keras_python: Path | None = None,
    labels: Path | None = None,
) -> None:
    """Answer photos by HTTP, and show a page, until told to stop by Ctrl-C or SIGTERM.

    There is no password: whoever reaches the address may send photos. Photos are in memory only, and not kept.

    Args:
        files: a run's folder, a checkpoint, a .h5, or both.
        host: address to listen at; 0.0.0.0 for all of this machine's.
        port: to listen at; 0 for any that is free, which is printed.
        twin: which one answers, or both; by default what is there.
        top: number of labels per photo, 3 if left out; a request may ask for another.
        min_probability: as for `lightning predict`: photos whose likeliest class has less are labelled "unsure".
        temperature: as for `lightning predict`.
        batch_size: most photos that are computed at once.
        max_upload: MiB of a request.
        max_megapixels: of a photo.
        max_waiting: photos that may wait for their answers; more are told to come again.
        receive_seconds: until a request must have arrived.
        device: where a checkpoint is computed: `auto` is a GPU if there is one.
        keras_python: Python interpreter whose Keras computes a .h5; by default this environment's.
        labels: labels.json for a .h5 that does not itself state its classes and input range.
    """
    _require_extra()
    from lightning_module.serving.answers import Answers
    from lightning_module.serving.app import make_app
    from lightning_module.serving.counters import Counters
    from lightning_module.serving.limits import MIB, Limits
    from lightning_module.serving.model_facts import model_facts
    from lightning_module.serving.server import Server, address_of, listen

    for option, value in (
        ("--batch_size", batch_size), ("--max_upload", max_upload), ("--max_megapixels", max_megapixels),
        ("--max_waiting", max_waiting), ("--receive_seconds", receive_seconds),
    ):  # fmt: skip
        if not value > 0:
            raise BadInput(f"{option}: expected more than 0, received {value}. Leave it out for the default.")
    if max_megapixels > MOST_PIXELS / 10**6:
        raise BadInput(
            f"--max_megapixels: expected at most {MOST_PIXELS // 10**6}, which is the most that is read anywhere here, "
            f"received {max_megapixels:g}. Leave it out."
        )
    check_min_probability(min_probability)
    found = find_files([Path(each) for each in files], twin)
    if found.h5 is None and (keras_python or labels):
        option = "--keras_python" if keras_python else "--labels"
        raise BadInput(f"{option}: expected where a .h5 is served, received without one. Leave it out.")
    labellers = make_labellers(found, device, keras_python, read_labels(labels) if labels else None)
    labelling = choose_labelling(next(iter(labellers.values())), found.first, top, min_probability, temperature)
    limits = Limits(max_upload * MIB, int(max_megapixels * 10**6), waiting=max_waiting, receive_seconds=receive_seconds)
    with listen(host, port) as taken:
        print(f"starting {' and '.join(labellers)} ...", flush=True)
        facts = model_facts(found, labellers, labelling)
        with Answers(labellers, labelling, facts, limits, batch_size, Counters()) as answers:
            facts.content["image_size"] = list(answers.first.labeller.image_size)  # a .h5 may say it only now
            server = Server(make_app(answers, facts.content["name"]), limits)
            server.on_ready = lambda: _say_ready(address_of(taken), host)
            server.run([taken])


def _say_ready(address: str, host: str) -> None:
    print(f"{address} has the page, {address}/docs the interface; Ctrl-C ends it", flush=True)
    if host not in ("127.0.0.1", "localhost", "::1"):
        print("whoever reaches this address may send photos: there is no password", flush=True)


def _require_extra() -> None:
    missing = [name for module, name in EXTRA.items() if importlib.util.find_spec(module) is None]
    if missing:
        command = shlex.join([sys.executable, "-m", "pip", "install", *missing])
        raise BadInput(
            f"expected the packages of the extra shelftwin[serve], received an installation without "
            f"{', '.join(missing)}. Install them: {command}"
        )

"""`lightning parity`: proves that a `.h5` computes the same as its checkpoint."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from export.worker.keras_process import KerasFailed
from lightning_module.commands.cli import EXIT_MISMATCH
from lightning_module.commands.options import (
    ForeignOptions,
    check_report_place,
    chosen,
    list_photo_files,
    parse_options,
    pixels_of,
)
from models.bad_input import BadInput

if TYPE_CHECKING:
    from export.proof.report import Report


def run_parity(argv: list[str]) -> None:
    """Parse `parity FILE MODEL.h5 [--model NAME ...] [--photos DIR] [--keras_python PY ...]` and run it.

    Raises:
        BadInput: some input cannot be used.
        KerasFailed: a Keras process crashed or ran out of time.
        SystemExit: 1 if the twins differ.
    """
    if not parity(**parse_options("parity", parity, argv, ["--keras_python"], ForeignOptions)):
        raise SystemExit(EXIT_MISMATCH)


def parity(
    file: Path,
    h5: Path,
    photos: Path | None = None,
    json: Path | None = None,
    html: Path | None = None,
    keras_python: list[Path] | None = None,
    second_opinions: str = "",
    foreign: ForeignOptions | None = None,
) -> bool:
    """Prove that a .h5 computes the same as its checkpoint. The last line is the verdict.

    Args:
        file: RUN/best.ckpt of `lightning fit`; or weights from elsewhere, with the options that it was exported with.
        h5: the .h5 that should be its twin.
        photos: folder with photos, at any depth, that go through both; without it only synthetic images do.
        json: file for the whole report.
        html: file for the report as one page.
        keras_python: Python interpreter whose Keras is used; by default this environment's. May be given several times;
            then all must pass. The exit code is 1 if the twins differ under any of them, else 3 if any crashed, else 2
            if any could not be used. Reports of the others are written all the same.
        second_opinions: compare the probabilities of other converters, too: one or more of tf2onnx, onnx2tf, separated
            by commas; or all.
        foreign: what is stated of weights from elsewhere.

    Returns:
        Whether all checks passed, under every Keras.

    Raises:
        BadInput: some input cannot be used. With several interpreters: only if none crashed and no twins differ.
        KerasFailed: a Keras process crashed or ran out of time. With several: only if no twins differ.
    """
    from datamodule.photo_store import load_photo
    from export.foreign_checkpoint import read_any_checkpoint
    from export.proof.page import write_page
    from export.proof.parity import Pair, check_parity
    from export.proof.report import PASS, print_report, verdict_of, write_json
    from export.proof.second_opinions import OPINIONS

    if json is not None and json == html:
        raise BadInput(f"--json and --html: expected two files, received {json} twice. Name another.")
    for option, place in (("--json", json), ("--html", html)):
        if place:
            check_report_place(option, place, file, h5)
    opinions = chosen("--second_opinions", second_opinions, OPINIONS)
    files = list_photo_files(photos) if photos else []
    source = read_any_checkpoint(file, (foreign or ForeignOptions()).settings())
    print(*source.notes, sep="\n", end="\n" * bool(source.notes))
    if files and source.network.channels != 3:
        raise BadInput(
            f"--photos: expected a network that takes photos, of three channels, received one of "
            f"{source.network.channels}. Leave it out."
        )
    pixels = pixels_of(files, source.image_size, source.interpolation, source.loading) if files else None
    pair = Pair(source, h5, pixels, [str(each) for each in files], files, load_photo)
    reports: list[Report] = []
    failures: list[tuple[str, BadInput | KerasFailed]] = []
    interpreters: list[Path | None] = [*keras_python] if keras_python else [None]
    try:
        for python in interpreters:
            try:
                # Second opinions do not depend on which Keras is used, so they are computed once.
                asked = [] if reports else opinions
                reports.append(check_parity(pair, python, progress=_say, opinions=asked))
            except (BadInput, KerasFailed) as error:
                if len(interpreters) == 1:
                    raise
                failures.append((str(python), error))
                print(f"lightning: {python}: not checked: {error}", file=sys.stderr)
            else:
                print_report(reports[-1])
    finally:  # also after an error or an interruption
        not_checked = {name: str(error) for name, error in failures}
        not_checked |= {
            str(each): "broken off before it had judged" for each in interpreters[len(reports) + len(failures) :]
        }
        if json and reports:
            write_json(reports, json, not_checked)
        if html and reports:
            write_page(reports, html, not_checked)
    if len(interpreters) > 1:
        passed = sum(report.verdict == PASS for report in reports)
        others = f", {len(failures)} could not check it" if failures else ""
        verdict = verdict_of(reports, not_checked)
        print(f"parity {verdict}: under {passed} of {len(interpreters)} interpreters{others}")
    if failures and all(report.verdict == PASS for report in reports):
        _raise_worst(failures)
    return verdict_of(reports, not_checked) == PASS


def _say(text: str) -> None:
    """Print progress on stderr, because the report is on stdout."""
    print(f"{text} ...", file=sys.stderr, flush=True)


def _raise_worst(failures: list[tuple[str, BadInput | KerasFailed]]) -> NoReturn:
    """Raise an error that names the interpreters without a result: a crash if there was one, or else bad input."""
    names = ", ".join(dict.fromkeys(name for name, _ in failures))
    kind = KerasFailed if any(isinstance(error, KerasFailed) for _, error in failures) else BadInput
    raise kind(
        f"--keras_python: expected interpreters whose Keras checks the file, received {names}, which did not: see "
        "above. Mend those or leave them out."
    )

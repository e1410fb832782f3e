"""Try one exported `.h5` in every Keras generation: load, compare, train further, save again.

    python benchmarks/compat.py                  # all of them, one after another; writes docs/compat.md
    python benchmarks/compat.py --only keras-3.6 # one of them, with the file that the last run exported
    python benchmarks/compat.py --ci             # oldest and newest of both generations, a small network, no page
    python benchmarks/compat.py --ci --install   # only make the environments for that
    python benchmarks/compat.py --python NAME    # print the path of one interpreter; make its environment if missing
    python benchmarks/compat.py --clean          # remove the environments

Each Keras gets its own environment in the cache folder (about 1 to 2 GB each), made with uv, or with venv and pip if
there is no uv. In each, the same file goes through the whole ladder of `lightning parity`, through the checks of
`keras_worker.py verify`, and through what a team does with a file that it is given: summary, one more training step,
saving, loading again. Exit code 0 if everything that ran passed; 1 if something failed; 2 if packages are unavailable.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from export.proof.report import Report

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "compat.md"
SHARED = ROOT.parent / "shared"
WEIGHTS = SHARED / "weights" / "mobilenetv2_100.in1k_tf_same.safetensors"
PHOTOS = SHARED / "data" / "clothing" / "validation"
# A model that is saved and loaded again has the same weights in the same Keras, so it may differ by no more than this.
SAVED_THRESHOLD = 1e-6


@dataclasses.dataclass(frozen=True)
class Environment:
    """A Keras and what it runs on.

    Attributes:
        name: for the command line and the table.
        python: version of the interpreter.
        packages: requirements; those without a version mean the newest.
        variables: environment variables that choose this Keras or its backend.
        known: problems of this Keras that are not failures of the file, as regular expressions for all of the text.
        because: the reason for them, for the page.
    """

    name: str
    python: str
    packages: tuple[str, ...]
    variables: dict[str, str] = dataclasses.field(default_factory=dict)
    known: tuple[str, ...] = ()
    because: str = ""


LEGACY = {"TF_USE_LEGACY_KERAS": "1"}
ENVIRONMENTS = (
    Environment("tf.keras-2.10", "3.10", ("tensorflow==2.10.1", "numpy<2")),
    # docs/service/deploy.md loads a photo in it, docs/from_keras.md trains for 8 bits
    Environment("tf.keras-2.12", "3.11", ("tensorflow==2.12.1", "pillow", "tensorflow-model-optimization==0.8.1")),
    Environment(
        "tf.keras-2.13",
        "3.11",
        ("tensorflow==2.13.1",),
        known=(r"saved as \.keras, cannot be loaded again: 'Adam' object has no attribute 'build'.*",),
        because="Keras 2.13 makes its older Adam of an .h5's training configuration, and cannot load a .keras of its "
        "own that has one. Its .h5 it can.",
    ),
    Environment("tf.keras-2.15", "3.11", ("tensorflow==2.15.1",)),
    Environment("tf_keras-2.16", "3.11", ("tensorflow==2.16.2", "tf_keras==2.16.0"), LEGACY),
    Environment("tf_keras-newest", "3.11", ("tensorflow", "tf_keras"), LEGACY),
    Environment(
        "keras-3.0",
        "3.11",
        ("tensorflow==2.16.2", "keras==3.0.5"),
        known=(
            # Adam moves a weight by about 1e-3 per step, its learning rate: three steps differ by less than 6e-3.
            r"training_steps: 0\.00[1-5]\d* at (\S+)/\S+\. \1 is frozen in the checkpoint, and this Keras trains it\.",
            r"fit moved frozen layers: .+",
        ),
        because="Keras 3.0 takes no notice of `trainable: false` in a file when it trains: weights made by a layer "
        "that begins frozen are trainable all the same. Predictions are not touched.",
    ),
    Environment("keras-3.6", "3.11", ("tensorflow==2.18.1", "keras==3.6.0")),
    Environment("keras-3.12", "3.11", ("tensorflow==2.20.0", "keras==3.12.0")),
    Environment("keras-newest", "3.11", ("tensorflow", "keras")),
    Environment("keras-newest-jax", "3.11", ("jax", "keras"), {"KERAS_BACKEND": "jax"}),
    Environment("keras-newest-torch", "3.11", ("torch", "keras"), {"KERAS_BACKEND": "torch"}),
)
# Oldest and newest Keras of both generations that run on this project's Python.
IN_CI = ("tf.keras-2.12", "tf_keras-newest", "keras-3.0", "keras-newest")


class CannotInstall(Exception):
    """The environment cannot be made; the message says why."""


# Environments ---------------------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Return the folder for environments and results."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shelftwin" / "compat"


def find_interpreter(version: str) -> Path | None:
    """Find a Python of a version such as "3.10": our own, on the path, or from uv or pyenv; None if there is none."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    candidates = [sys.executable, shutil.which(f"python{version}"), *sorted(pyenv.glob(f"{version}.*/bin/python"))]
    uv = find_uv()
    if uv:
        managed = subprocess.run([uv, "python", "find", version], capture_output=True, text=True, check=False)
        candidates.append(managed.stdout.strip())
    for candidate in candidates:
        if candidate and _version_of(str(candidate)) == version:
            return Path(candidate)
    return None


def _version_of(python: str) -> str:
    # pyenv has shims even for versions that are not selected; those fail when they are run
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=False).stdout.strip()


def find_uv() -> str | None:
    """Find uv, beside our interpreter or on the path."""
    beside = Path(sys.executable).with_name("uv")
    return str(beside) if beside.is_file() else shutil.which("uv")


def make_environment(environment: Environment, interpreter: Path) -> Path:
    """Make the environment if it does not exist, and return its Python.

    Raises:
        CannotInstall: the installer failed; the message has its last lines.
    """
    folder = cache_folder() / environment.name
    python, stamp = folder / "bin" / "python", folder / "packages.json"
    wanted = json.dumps([environment.python, environment.packages])
    if stamp.is_file() and stamp.read_text() == wanted:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    uv = find_uv()
    if uv:
        make = [uv, "venv", "--quiet", "--python", str(interpreter), str(folder)]
        install = [uv, "pip", "install", "--quiet", "--python", str(python)]
    else:
        make = [str(interpreter), "-m", "venv", str(folder)]
        install = [str(python), "-m", "pip", "install", "--quiet"]
    # uv's name for the pip setting that gives a folder with further wheels
    variables = {"UV_FIND_LINKS": os.environ.get("PIP_FIND_LINKS", ""), **os.environ}
    for command in (make, [*install, "h5py", *environment.packages]):
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=variables)
        if done.returncode:
            shutil.rmtree(folder, ignore_errors=True)
            reason = "\n".join(done.stderr.strip().splitlines()[-8:])
            raise CannotInstall(
                f"{environment.name}: expected to install {', '.join(environment.packages)}; {Path(command[0]).name} "
                f"said:\n{reason}\nIs a package registry within reach?"
            )
    stamp.write_text(wanted)
    return python


@contextmanager
def variables_set(variables: dict[str, str]) -> Iterator[None]:
    """Let child processes inherit these variables, but no others that choose a Keras."""
    names = {"TF_USE_LEGACY_KERAS", "KERAS_BACKEND"}
    before = {name: os.environ.pop(name, None) for name in names}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in names:
            os.environ.pop(name, None)
        os.environ.update({name: value for name, value in before.items() if value is not None})


# The file -------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Exported:
    """The files that every Keras is given.

    Attributes:
        checkpoint: the torch side.
        h5: its twin.
        photos: uint8, NHWC, (N, H, W, 3).
        described: a description for the page.
    """

    checkpoint: Path
    h5: Path
    photos: np.ndarray
    described: str


def export_model(folder: Path, small: bool) -> Exported:
    """Make a checkpoint, its twin and photos: as realistic as possible on this machine, or small and quick.

    Args:
        folder: where to write them.
        small: use a narrow network with random weights for small images.
    """
    import torch

    from datamodule.demo_photos import DEMO_CLASSES, draw_photo
    from datamodule.photo_store import load_photo
    from export.torch_to_keras import write_twin
    from models.pretrained import load_pretrained
    from models.timm_mobilenetv2 import TimmClassifier

    torch.manual_seed(0)
    real = PHOTOS.is_dir() and not small
    classes = sorted(each.name for each in PHOTOS.iterdir() if each.is_dir()) if real else list(DEMO_CLASSES)
    backbone, size = ("mobilenetv2_035", 64) if small else ("mobilenetv2_100", 244)
    pretrained = WEIGHTS.is_file() and not small
    # what weights that were trained with TensorFlow expect; without them timm's defaults
    expected: dict[str, Any] = {"pad_type": "same", "bn_eps": 1e-3, "mean": 0.5, "std": 0.5} if pretrained else {}
    network = TimmClassifier(len(classes), backbone=backbone, dropout=0.2, **expected).eval()
    if pretrained:
        load_pretrained(network, WEIGHTS)
    if real:
        files = [sorted((PHOTOS / name).iterdir())[0] for name in classes]
        photos = np.stack([load_photo(file, (size, size)) for file in files])
    else:
        chance = np.random.default_rng(0)
        photos = np.stack([np.asarray(draw_photo(name, chance, size)) for name in classes])
    facts = {"class_names": classes, "image_size": [size, size], "interpolation": "nearest", "trainable": "head"}
    hyper_parameters = {**network.architecture, **facts, "learning_rate": 1e-3}
    state = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": state, "hyper_parameters": hyper_parameters}, folder / "model.ckpt")
    write_twin(folder / "model.ckpt", folder / "model.h5")
    described = (
        f"{backbone} at {size} pixels, {'pretrained' if pretrained else 'random'} weights, {len(classes)} classes, "
        f"{len(photos)} {'photos' if real else 'drawn photos'}"
    )
    np.save(folder / "photos.npy", photos)
    (folder / "described.txt").write_text(described)
    return read_exported(folder)


def read_exported(folder: Path) -> Exported:
    """Read the files that `export_model` made."""
    photos = np.load(folder / "photos.npy", allow_pickle=False)
    return Exported(folder / "model.ckpt", folder / "model.h5", photos, (folder / "described.txt").read_text())


# What is asked of each Keras ------------------------------------------------------------------------------------------


def judge(exported: Exported, python: Path) -> dict[str, Any]:
    """Run all checks on the file under one interpreter.

    Returns:
        Plain JSON types: ``versions``; ``checks``: name -> (figure, passed); ``verify`` and ``use``: see
        `keras_worker`; ``problems``: sentences, none if everything passed.
    """
    from export.proof.image_sets import ImageSet
    from export.proof.parity import Pair, check_parity
    from export.worker.keras_process import KerasFailed, run_keras
    from models.bad_input import BadInput

    try:
        report = check_parity(Pair(exported.checkpoint, exported.h5, exported.photos), python)
        images = ImageSet("photos", exported.photos, ())
        with tempfile.TemporaryDirectory(prefix="shelftwin-") as name:
            labels = [index % len(exported.photos) for index in range(len(exported.photos))]
            task = {"task": "use", **images.save(Path(name), "unit"), "labels": labels, "folder": name}
            ((verified, use),) = run_keras([(exported.h5, [{"task": "verify"}, task])], python=python)["results"]
    except (BadInput, KerasFailed) as error:
        return {"versions": {}, "checks": {}, "verify": {}, "use": {}, "problems": [str(error)]}
    result = {
        "versions": report.versions["keras"],
        "checks": {check.name: [check.figure, check.passed] for check in report.checks},
        "verify": verified,
        "use": use,
    }
    return {**result, "problems": check_problems(report) + problems_of(result)}


def check_problems(report: Report) -> list[str]:
    """The failed checks as sentences; the first includes its likely cause, which identifies known problems."""
    problems = [f"{check.name}: {check.figure:.3g} at {check.first_divergence}" for check in report.failed]
    return [f"{problems[0]}. {report.likely_cause}", *problems[1:]] if report.likely_cause else problems


def failures_of(environment: Environment, result: dict[str, Any]) -> list[str]:
    """Problems that are not known problems of this Keras itself."""
    return [
        problem
        for problem in result.get("problems", ())
        if not any(re.fullmatch(known, problem, re.DOTALL) for known in environment.known)
    ]


def problems_of(result: dict[str, Any]) -> list[str]:
    """What is wrong in the results of `verify` and `use`, as sentences."""
    use, problems = result["use"], []
    if not result["verify"]["passed"]:
        problems += [f"verify: {line}" for line in result["verify"]["lines"]]
    if not use["summary"]:
        problems.append("summary() printed nothing")
    if not math.isfinite(use["loss"]) or not use["moved"]:
        problems.append(f"fit: loss {use['loss']}, {len(use['moved'])} layers moved")
    if use["moved_though_frozen"]:
        problems.append(f"fit moved frozen layers: {', '.join(use['moved_though_frozen'][:3])}")
    problems += [f"saved as {suffix}, cannot be loaded again: {why}" for suffix, why in use["not_loaded"].items()]
    problems += [
        f"saved as {suffix} and loaded again, probabilities differ by {difference:.3g}"
        for suffix, difference in use["saved"].items()
        if not difference <= SAVED_THRESHOLD
    ]
    return problems


# The page -------------------------------------------------------------------------------------------------------------

HEADER = """# Which Keras loads the file

Written by `make compat` (`benchmarks/compat.py`); not edited by hand.

{described}, exported once; every Keras below loads the same file with `load_model(path)`, no custom objects, in an
environment of its own. {date}, torch {torch}.

| | Python | Keras | backend | numpy | layers, float64 | probabilities | verify | fit | save, load | |
|---|---|---|---|---|---|---|---|---|---|---|
"""
PILLOW_START, PILLOW_END = "<!-- pillow: begin -->", "<!-- pillow: end -->"
"""Around the table of `pillow_versions.py`, which stays when the rest of the page is written anew."""
FOOTER = """
- **layers, float64**: largest error of any layer's output relative to its largest value, both sides in float64; at most
  1e-10.
- **probabilities**: largest difference from torch, float32, on the photos and on synthetic images; at most 1e-5.
- **verify**: what `keras_worker.py verify` says of the file there.
- **fit**: loss of one more step with the stored training configuration; the head moved, the frozen layers did not.
- **save, load**: saved as `.keras` (before 2.12 as a SavedModel) and as `.h5`, loaded again: largest difference of a
  probability; at most 1e-6.
- The last column says PASS only if all of that and every other check of `lightning parity` passed.
"""


def page(results: dict[str, dict[str, Any]], described: str, torch: str, date: str) -> str:
    """Write the table, with one row for each environment, even if it was not run."""
    rows = [row(environment, results.get(environment.name)) for environment in ENVIRONMENTS]
    text = HEADER.format(described=described, date=date, torch=torch) + "\n".join(rows) + "\n" + FOOTER
    for environment in ENVIRONMENTS:
        problems = results.get(environment.name, {}).get("problems")
        if problems:
            because = f" {environment.because}" if environment.because else ""
            text += f"\n{environment.name}:{because}\n" + "".join(f"- {problem}\n" for problem in problems)
    return text


def pillow_table(text: str) -> str:
    """What `pillow_versions.py` has written into a page, markers included; empty if there is nothing."""
    _, start, rest = text.partition(PILLOW_START)
    table, end, _ = rest.partition(PILLOW_END)
    return f"{start}{table}{end}\n" if end else ""


def with_pillow_table(text: str, table: str) -> str:
    """The page with another table of Pillows, or with one at its end.

    Args:
        text: the page.
        table: with its markers.
    """
    return f"{text.replace(pillow_table(text), '').rstrip()}\n\n{table}" if table else text


def row(environment: Environment, result: dict[str, Any] | None) -> str:
    """One line of the table."""
    if result is None or "skipped" in result:
        why = result["skipped"] if result else "not run"
        return f"| {environment.name} | {environment.python} |" + " - |" * 8 + f" {why} |"
    if not result["checks"]:
        return f"| {environment.name} | {environment.python} |" + " - |" * 8 + " FAIL |"
    versions, checks, use = result["versions"], result["checks"], result["use"]
    verdict = "FAIL" if failures_of(environment, result) else "PASS, but see below" if result["problems"] else "PASS"
    verified = "PASS" if result["verify"]["passed"] else "FAIL"
    backend = " ".join([versions["backend"], versions.get(versions["backend"], "")]).strip()
    probabilities = max(figure for name, (figure, _) in checks.items() if name.startswith("probabilities"))
    cells = [
        environment.name, versions["python"], versions["keras"], backend, versions["numpy"],
        f"{checks['layers_float64'][0]:.1e}", f"{probabilities:.1e}", verified, f"{use['loss']:.4f}",
        f"{max(use['saved'].values(), default=math.inf):.1e}", verdict,
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


# The command ----------------------------------------------------------------------------------------------------------


def run(environment: Environment, exported: Exported) -> dict[str, Any]:
    """Make the environment and judge the file in it.

    Raises:
        CannotInstall: packages are unavailable.
    """
    interpreter = find_interpreter(environment.python)
    if interpreter is None:
        return {"skipped": f"no interpreter: Python {environment.python} is not installed"}
    python = make_environment(environment, interpreter)
    with variables_set(environment.variables):
        return judge(exported, python)


def install(environments: list[Environment]) -> int:
    """Make environments; this waits for the network more than for the processor."""
    for environment in environments:
        interpreter = find_interpreter(environment.python)
        try:
            print(environment.name, make_environment(environment, interpreter) if interpreter else "no interpreter")
        except CannotInstall as error:
            print(error, file=sys.stderr)
            return 2
    return 0


def say_python(name: str) -> int:
    """Print the path of an environment's interpreter; print nothing if its Python is not installed."""
    environment = next(each for each in ENVIRONMENTS if each.name == name)
    interpreter = find_interpreter(environment.python)
    if interpreter is None:
        print(f"{name}: no interpreter: Python {environment.python} is not installed", file=sys.stderr)
        return 0
    try:
        print(make_environment(environment, interpreter))
    except CannotInstall as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def read_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    names = [environment.name for environment in ENVIRONMENTS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=f"of {', '.join(names)}")
    parser.add_argument("--ci", action="store_true", help="oldest and newest of both generations, a small network")
    parser.add_argument("--install", action="store_true", help="make the environments, do nothing else")
    parser.add_argument("--python", choices=names, metavar="NAME", help="print its interpreter, do nothing else")
    parser.add_argument("--clean", action="store_true", help="remove the environments and results, do nothing else")
    return parser.parse_args(argv)


def main() -> int:
    """Run what the command line asks for."""
    arguments = read_arguments()
    cache = cache_folder()
    if arguments.clean:
        shutil.rmtree(cache, ignore_errors=True)
        return 0
    if arguments.python:
        return say_python(arguments.python)
    chosen = arguments.only or (IN_CI if arguments.ci else [environment.name for environment in ENVIRONMENTS])
    if arguments.install:
        return install([environment for environment in ENVIRONMENTS if environment.name in chosen])
    import torch

    folder, store = cache / ("model-ci" if arguments.ci else "model"), cache / "checks.json"
    again = bool(arguments.only) and not arguments.ci and store.is_file()
    exported = read_exported(folder) if again else export_model(folder, small=arguments.ci)
    results: dict[str, dict[str, Any]] = json.loads(store.read_text()) if again else {}
    print(exported.described)
    for environment in ENVIRONMENTS:
        if environment.name not in chosen:
            continue
        try:
            result = run(environment, exported)
        except CannotInstall as error:
            print(error, file=sys.stderr)
            return 2
        results[environment.name] = result
        print(row(environment, result), *result.get("problems", ()), sep="\n", flush=True)
        if not arguments.ci:
            store.write_text(json.dumps(results, indent=1))
            date = datetime.date.today().isoformat()
            text = page(results, exported.described, torch.__version__.split("+")[0], date)
            PAGE.write_text(with_pillow_table(text, pillow_table(PAGE.read_text())))
    ran = [environment for environment in ENVIRONMENTS if environment.name in chosen]
    return 1 if any(failures_of(environment, results[environment.name]) for environment in ran) else 0


if __name__ == "__main__":
    sys.exit(main())

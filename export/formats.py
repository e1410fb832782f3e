"""A checkpoint in formats other than `.h5`: converted from that same `.h5`, proved, and only then put in place."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from export.checkpoint import Checkpoint, as_checkpoint
from export.proof.checks import PROBABILITY_THRESHOLD, check_labels, check_probabilities, check_top1
from export.proof.comparison import image_sets
from export.proof.image_sets import ImageSet
from export.proof.report import Check, wide_console
from export.torch_answers import torch_probabilities
from export.torch_to_keras import write_twin
from export.worker.format_process import prediction_tasks, read_outputs, run_formats
from models.atomic_write import replacing, replacing_folder, working_folder
from models.bad_input import BadInput


@dataclass(frozen=True)
class Format:
    """A format, and how closely it must agree with the network.

    Attributes:
        ending: what is appended to OUT, without OUT's ``.h5``; an ending without a dot means a folder.
        quantised: whether it computes with integers; then labels are compared, not probabilities.
        difference: the largest difference of a probability that passes.
        agreement: the smallest share of photos with torch's label that passes.
        accuracy_drop: how far its accuracy on labelled photos may be below torch's.
    """

    ending: str
    quantised: bool = False
    difference: float = PROBABILITY_THRESHOLD
    agreement: float = 1.0
    accuracy_drop: float = 0.0


FORMATS = {
    "keras": Format(".h5"),
    "saved_model": Format("_saved_model"),
    "onnx": Format(".onnx"),
    "tflite": Format(".tflite"),
    # Weights of 11 bits: of the demo's 800 photos a probability moved by up to 0.007, so photos that hardly lean to a
    # class may change it.
    "tflite_float16": Format("_float16.tflite", difference=0.02, agreement=0.98),
    # Eight bits change the label of photos near the border between two classes: of 5% of the clothing photos, with a
    # head that was right for 80%. The accuracy check measures what that costs.
    "tflite_int8": Format("_int8.tflite", quantised=True, agreement=0.9, accuracy_drop=0.02),
}
# A folder with this file in it is a SavedModel; any other folder is never replaced.
_SAVED_MODEL = "saved_model.pb"
# A quantised format takes its value ranges from some of the photos and is judged by the others.
LEAST_PHOTOS = 20
MOST_REPRESENTATIVE = 100


@dataclass(frozen=True)
class Photos:
    """The photos that the formats are judged by.

    Attributes:
        pixels: uint8, NHWC, RGB, (N, H, W, 3) at the checkpoint's size.
        names: N names.
        labels: N class indices; -1 if the class is not known.
    """

    pixels: np.ndarray
    names: Sequence[str]
    labels: Sequence[int]


@dataclass(frozen=True)
class WrittenFormat:
    """The result for one format.

    Attributes:
        name: the format's.
        path: where it belongs; the new file or folder is there only if all checks passed.
        checks: the checks that were made.
        size: in bytes.
        seconds: how long it took to make.
    """

    name: str
    path: Path
    checks: list[Check]
    size: int
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether there were checks and all of them passed."""
        return bool(self.checks) and all(check.passed for check in self.checks)


def write_formats(
    checkpoint: Path | Checkpoint,
    out: Path,
    formats: Sequence[str],
    input_range: str = "unit",
    photos: Photos | None = None,
    fuse_batchnorm: bool = False,
) -> tuple[list[WrittenFormat], dict[str, str]]:
    """Convert a checkpoint to other formats and prove each one; those that pass are put in place in one step each.

    Args:
        checkpoint: written by ``lightning fit``; or one that has been read, from wherever it came.
        out: where the formats go, see `places_of`.
        formats: keys of `FORMATS`.
        input_range: ``unit``: the models take RGB in [0, 1], NHWC; ``raw``: they take 0..255.
        photos: the photos to judge by; a quantised format needs some, and takes its ranges from up to half of them.
        fuse_batchnorm: fold every BatchNorm into the convolution before it.

    Returns:
        The result for each format, and the versions of all packages that made and ran them.

    Raises:
        BadInput: an argument cannot be used, or a file cannot be written.
        KerasFailed: the process that makes them crashed or ran out of time.
    """
    places = places_of(out, formats)
    source = as_checkpoint(checkpoint)
    _check_places(places, source.path)
    quantised = [name for name in formats if FORMATS[name].quantised]
    if quantised and (photos is None or len(photos.names) < LEAST_PHOTOS):
        raise BadInput(
            f"--format {quantised[0]}: expected at least {LEAST_PHOTOS} photos, which say what range each layer's "
            f"numbers take, received {0 if photos is None else len(photos.names)}. Give --photos DIR."
        )
    with working_folder(out) as temporary:
        folder = temporary.resolve()
        h5 = folder / "model.h5"
        twin = write_twin(source, h5, input_range, fuse_batchnorm)
        judges = _judges(source, photos)
        benches = {}
        if len(quantised) < len(formats):
            benches = dict.fromkeys(formats, _Bench(folder / "all", judges, input_range))
        common: dict[str, Any] = {"h5": str(h5), "details": twin.details}
        if quantised and photos:
            chosen, others = _share_out(len(photos.names))
            benches |= dict.fromkeys(quantised, _Bench(folder / "others", judges[1:], input_range, others))
            ranges = ImageSet("representative", photos.pixels[chosen], [photos.names[index] for index in chosen])
            common["photos"] = ranges.save(folder, input_range)

        files = {name: folder / f"model{FORMATS[name].ending}" for name in formats}
        tasks = {name: _tasks(name, path, common, benches[name]) for name, path in files.items()}
        images = sum(len(each.images.images) for bench in benches.values() for each in bench.judges)
        reply = run_formats([task for each in tasks.values() for task in each], images)
        results = iter(reply["results"])
        made = []
        for name, path in files.items():
            outcomes = [(task, next(results)) for task in tasks[name]]
            checks = _run_checks(FORMATS[name], source, benches[name], outcomes)
            seconds = sum(result["seconds"] for task, result in outcomes if task["task"] == "make")
            made.append(WrittenFormat(name, places[name], checks, _size(path), seconds))
        for each in made:
            if each.passed:
                _put_in_place(files[each.name], each.path)
    return made, reply["versions"]


def places_of(out: Path, formats: Sequence[str]) -> dict[str, Path]:
    """Where each format goes.

    ``OUT.h5`` gives each format its own name: OUT.h5, OUT_saved_model/, OUT.onnx, OUT.tflite,
    OUT_float16.tflite, OUT_int8.tflite. With any other name there may be only one format, and it goes exactly there.

    Raises:
        BadInput: there are several formats, and the name does not end in ``.h5``.
    """
    if out.suffix == ".h5":
        return {name: out.with_name(out.stem + FORMATS[name].ending) for name in formats}
    if len(formats) > 1:
        raise BadInput(
            f"expected a name that ends in .h5, after which the files of {', '.join(formats)} are named, received "
            f"{out}. Name {out.with_suffix('.h5')}, or one format."
        )
    return {formats[0]: out}


def _check_places(places: dict[str, Path], checkpoint: Path) -> None:
    """Check, before anything costly, that every place can be written and that nothing else would be replaced.

    Raises:
        BadInput: one of them cannot be used.
    """
    for name, path in places.items():
        if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
            raise BadInput(f"expected a folder that can be written for {path.name}, received {path.parent}. Make it.")
        if path.exists() and checkpoint.exists() and path.samefile(checkpoint):
            raise BadInput(f"expected a place for {name}, received {path}, the checkpoint itself. Name another.")
        if name == "saved_model" and path.exists() and not (path / _SAVED_MODEL).is_file():
            raise BadInput(
                f"expected a place for a SavedModel, received {path}, which exists and is none, so it is not replaced. "
                "Remove it or name another."
            )
        if name != "saved_model" and path.is_dir():
            raise BadInput(f"expected a place for a file, received {path}, which is a folder. Name another.")


# What a format is judged by -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Judge:
    """Images, torch's probabilities for them, and their class indices, -1 where the class is not known."""

    images: ImageSet
    expected: np.ndarray
    labels: np.ndarray

    def part(self, chosen: np.ndarray) -> _Judge:
        images = replace(
            self.images, images=self.images.images[chosen], names=[self.images.names[index] for index in chosen]
        )
        return _Judge(images, self.expected[chosen], self.labels[chosen])


def _judges(source: Checkpoint, photos: Photos | None) -> list[_Judge]:
    """The synthetic images, and the photos if there are any."""
    given = (photos.pixels, photos.names, photos.labels) if photos else (None, (), ())
    judges = []
    for images in image_sets(source.image_size, given[0], given[1], source.network.channels):
        labels = np.asarray(given[2] if images.name == "photos" else [-1] * len(images.names))
        judges.append(_Judge(images, torch_probabilities(source.network, images.batches()), labels))
    return judges


class _Bench:
    """Judges whose images are saved in a folder, for the process that runs the formats.

    Args:
        folder: where to save them; it is created.
        judges: all of them.
        input_range: of the formats.
        chosen: indices of the images to judge by; None: all of them.
    """

    def __init__(
        self, folder: Path, judges: Sequence[_Judge], input_range: str, chosen: np.ndarray | None = None
    ) -> None:
        folder.mkdir()
        self.folder = folder
        self.judges = [each if chosen is None else each.part(chosen) for each in judges]
        self.saved = [each.images.save(folder, input_range) for each in self.judges]


def _share_out(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the photos that set the ranges, evenly spread, and of those that judge; no photo does both."""
    chosen = np.linspace(0, count - 1, min(MOST_REPRESENTATIVE, count // 2)).round().astype(int)
    return chosen, np.setdiff1d(np.arange(count), chosen)


def _tasks(name: str, path: Path, common: dict[str, Any], bench: _Bench) -> list[dict[str, Any]]:
    """The tasks to make a format, read its facts back, and run it."""
    made = [{"task": "make", "format": name, "path": str(path), **common}] if name != "keras" else []
    facts = {"task": "facts", "format": name, "path": str(path)}
    return [*made, facts, *prediction_tasks(name, path, bench.saved, bench.folder)]


# The ladder of a format -----------------------------------------------------------------------------------------------


def _run_checks(
    of: Format, source: Checkpoint, bench: _Bench, outcomes: list[tuple[dict[str, Any], dict[str, Any]]]
) -> list[Check]:
    """All checks of one format, from its tasks and their results."""
    failed = [f"{task['task']}: {result['failed']}" for task, result in outcomes if "failed" in result]
    if failed:
        return [Check("made", False, len(failed), 0, "steps failed", failed[0], failed[0])]
    checks = []
    asked = [task for task, _ in outcomes if task["task"] == "predict"]
    checks += [check_labels(source, result["facts"]) for _, result in outcomes if "facts" in result]
    for judge, task in zip(bench.judges, asked, strict=True):
        given, photos = read_outputs(task), judge.images.name == "photos"
        if not of.quantised:
            checks.append(check_probabilities(judge.images, judge.expected, given, threshold=of.difference))
        if photos:
            checks.append(check_top1(judge.images, judge.expected, given, threshold=of.agreement))
        if of.quantised and (judge.labels >= 0).any():
            checks.append(check_accuracy(judge.labels, judge.expected, given, of.accuracy_drop))
    return checks


def check_accuracy(labels: np.ndarray, torch_gave: np.ndarray, given: np.ndarray, threshold: float) -> Check:
    """How far the other side's accuracy is below torch's.

    Args:
        labels: class indices, (N,); photos with a negative one do not count.
        torch_gave: probabilities, (N, C).
        given: the same from the other side.
        threshold: the largest drop that passes, as a share of the photos.
    """
    known = labels >= 0
    count = int(known.sum())
    before, after = (int(np.sum(gave.argmax(axis=1)[known] == labels[known])) for gave in (torch_gave, given))
    drop = (before - after) / count  # count photos first: a difference of two shares would be rounded
    detail = f"accuracy {after / count:.4f}, torch {before / count:.4f}, on {count} labelled photos that set no range"
    return Check("accuracy_drop_photos", drop <= threshold, drop, threshold, "less than torch's accuracy", detail)


# Files ----------------------------------------------------------------------------------------------------------------


def _put_in_place(made: Path, place: Path) -> None:
    """Move a file or folder to its place in one step; an old one stays complete until then."""
    with (replacing_folder if made.is_dir() else replacing)(place) as temporary:
        made.rename(temporary)


def _size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; 0 if there is nothing."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


# For a person ---------------------------------------------------------------------------------------------------------


def print_formats(made: Sequence[WrittenFormat], versions: dict[str, str]) -> None:
    """Print the checks of all formats as one table, what was written, the versions, and the verdict as last line."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="Are the other formats the network that was trained?", title_justify="left")
    for heading in ("format", "check", "figure", "threshold", "", "what was compared"):
        table.add_column(heading, overflow="fold")
    for each in made:
        for check in each.checks:
            sign = ">=" if check.larger_is_better else "<="
            verdict = "[green]pass[/]" if check.passed else "[red]FAIL[/]"
            figure, threshold = f"{check.figure:.3g} {check.unit}", f"{sign} {check.threshold:g}"
            # the text may contain file names and a converter's messages, which must not be read as markup
            table.add_row(each.name, check.name, figure, threshold, verdict, escape(check.detail))
        table.add_section()
    console = wide_console()
    console.print(table)
    for each in made:
        what = f"{each.size / 1e6:.1f} MB, made in {each.seconds:.1f} s" if each.passed else "not written"
        console.print(f"{each.name}: {each.path}: {what}", highlight=False, soft_wrap=True, markup=False)
    console.print(", ".join(f"{name} {number}" for name, number in versions.items()), highlight=False, soft_wrap=True)
    console.print(last_line(made), highlight=False, soft_wrap=True, markup=False)


def last_line(made: Sequence[WrittenFormat]) -> str:
    """The verdict, with the first figure that is beyond its threshold."""
    for each in made:
        for check in each.checks:
            if not check.passed:
                sign = ">=" if check.larger_is_better else "<="
                measured = f"{check.figure:.3g} {check.unit}, expected {sign} {check.threshold:g}"
                where = f" at {check.first_divergence}" if check.first_divergence else ""
                return f"export FAIL: {each.name}: {check.name}{where}: {measured}; {each.path} was not written"
    return f"export PASS: {len(made)} of {len(made)} formats"

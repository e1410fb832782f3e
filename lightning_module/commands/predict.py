"""`lightning predict`: labels any number of photos with a checkpoint or its twin."""

import csv
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from datamodule.layout import describe_junk, kind_of_junk, what_else
from datamodule.photo_store import BadPhoto, load_photo
from datamodule.split import each_photo, unlisted
from lightning_module.commands.cli import EXIT_BAD_INPUT, EXIT_KERAS_FAILED, EXIT_UNEXPECTED, parse_for, underscored
from lightning_module.commands.options import H5_ENDINGS, check_report_place, read_labels
from lightning_module.evaluation.labellers import Device, KerasFileLabeller, Labeller, is_hdf5
from lightning_module.evaluation.top_labels import DECIMALS, SHOWN, top_labels
from models.atomic_write import replacing
from models.bad_input import BadInput
from models.choices import FORMAT_ENDINGS, Formats
from models.cores import usable_cores
from models.spreadsheet_text import as_text

NAMED = 20
"""How many photos that cannot be read are named on the terminal; the file lists all of them."""
BAD_COLUMNS = ["file", "reason"]
COLUMNS = [
    "file",
    "label",
    "probability",
    *(f"{column}_{place}" for place in range(2, SHOWN + 1) for column in ("label", "probability")),
]


def run(argv: list[str]) -> None:
    """Parse `predict CKPT_OR_H5 PHOTOS [--out FILE] [...]` and run it.

    Raises:
        BadInput: some input cannot be used.
        KerasFailed: the Keras process crashed or ran out of time.
    """
    codes = f"Exit codes: 0 done, photos that cannot be read being left out; {EXIT_BAD_INPUT} bad input; "
    codes += f"{EXIT_KERAS_FAILED} Keras itself crashed; {EXIT_UNEXPECTED} an error in the program."
    predict(**parse_for(predict, "predict", [underscored(each) for each in argv[1:]], codes))


def predict(
    model: Path,
    photos: Path,
    out: Path = Path("predictions.csv"),
    batch_size: int = 32,
    device: Device = "auto",
    keras_python: Path | None = None,
    labels: Path | None = None,
    formats: Formats = "web",
) -> None:
    """Write the likeliest labels of photos, with their probabilities, into a CSV file.

    Photos that cannot be read are left out and listed, with the reason, in OUT_bad.csv. If none can be read, the exit
    code is 2.

    Args:
        model: checkpoint of `lightning fit`, such as RUN/best.ckpt, or a Keras .h5, such as RUN/model.h5.
        photos: folder with photos, at any depth, or a single photo.
        out: the CSV file to write; an existing one is replaced when the new one is complete.
        batch_size: number of photos that are computed at once; the result does not depend on it.
        device: where a checkpoint is computed: `auto` is a GPU if there is one.
        keras_python: Python interpreter whose Keras computes a .h5; by default this environment's.
        labels: labels.json for a .h5 that does not itself state its classes and input range.
        formats: which files are photos: `keras`: what Keras lists; `web`: WebP, AVIF, GIF and JFIF as well; `all`: all
            formats that are read. But for `keras`, files without an ending are looked at.
    """
    if out.name.lower().endswith(FORMAT_ENDINGS["all"]):
        raise BadInput(f"--out: expected the name of a CSV file, received {out}: photos are named so. Name another.")
    bad_out = out.with_name(f"{out.stem}_bad.csv")
    inputs = [model, photos, *([labels] if labels else [])]
    for place in (out, bad_out):
        check_report_place("--out", place, *inputs)
    if batch_size < 1:
        raise BadInput(f"--batch_size: expected 1 or more, received {batch_size}.")
    labeller = _labeller(model, device, keras_python, labels)
    total, junk = _count(photos, formats)
    warnings.filterwarnings("ignore", module="PIL")  # about odd files, which are either read or reported
    with ExitStack() as stack:
        stack.enter_context(labeller)
        progress = stack.enter_context(_progress())
        task = progress.add_task("labelling photos", total=total)
        rows, bad_rows = _Rows(stack, out, COLUMNS), _Rows(stack, bad_out, BAD_COLUMNS)
        rows.begin()
        named: list[BadPhoto] = []
        listed = each_photo(photos, formats) if photos.is_dir() else iter([photos])
        files = (each for each in listed if not kind_of_junk(each, photos)) if photos.is_dir() else listed
        for batch, bad in decoded(files, batch_size, labeller):
            if batch:
                rows.write(label(labeller, [file for file, _ in batch], np.stack([pixels for _, pixels in batch])))
            bad_rows.write([as_text(str(each.path)), as_text(each.reason)] for each in bad)
            named.extend(bad[: NAMED - len(named)])
            progress.advance(task, len(batch) + len(bad))
    if not bad_rows.count and _is_ours(bad_out):
        bad_out.unlink()  # an earlier run's file, which would be mistaken for this one's
    print(f"{rows.count} {'photo' if rows.count == 1 else 'photos'} labelled: {out}")
    if bad_rows.count:
        print(f"{bad_rows.count} that cannot be read: {bad_out}")
        for each in named:
            print(f"  {each}")
        if bad_rows.count > len(named):
            print(f"  and {bad_rows.count - len(named)} more")
    if junk:
        print(f"left out, as they are no photos: {describe_junk(junk)}")
    if photos.is_dir() and (others := unlisted(photos, {out.resolve(), bad_out.resolve()}, formats)):
        print(f"left out, as their names are no photos': {others}")
    if not rows.count:
        raise BadInput(f"expected photos that can be read, received none: {out} has no rows, and {bad_out} says why.")


def label(labeller: Labeller, files: Sequence[Path], photos: np.ndarray) -> Iterator[list[Any]]:
    """Yield the rows of the CSV file.

    Args:
        labeller: computes the probabilities.
        files: N paths.
        photos: their pixels, uint8, shape (N, H, W, 3).

    Raises:
        BadInput: the labeller's outputs are not probabilities.
    """
    probabilities = labeller.probabilities(photos)
    if not (np.abs(probabilities.sum(axis=1) - 1) < 1e-3).all() or (probabilities < 0).any():  # NaN is not near 1
        raise BadInput(
            f"expected probabilities of {len(labeller.class_names)} classes that add up to 1, received "
            f"{probabilities[0].tolist()[:4]} ... for {files[0]}. The model gives something else, or its weights are "
            "no numbers."
        )
    top = top_labels(probabilities, lambda rows: labeller.exact(photos[rows]))
    for file, classes, values in zip(files, top.classes, top.probabilities, strict=True):
        row: list[Any] = [as_text(str(file))]
        for index, value in zip(classes, values, strict=True):
            row += [as_text(labeller.class_names[index]), f"{value:.{DECIMALS}f}"]
        yield row + [""] * (len(COLUMNS) - len(row))


def decoded(
    files: Iterator[Path], batch_size: int, labeller: Labeller
) -> Iterator[tuple[list[tuple[Path, np.ndarray]], list[BadPhoto]]]:
    """Decode photos batch by batch, only one batch ahead.

    Yields:
        Files with their pixels, uint8 (H, W, 3), and the files that cannot be read; together `batch_size`.
    """
    with ThreadPoolExecutor(usable_cores()) as pool:

        def begin() -> list[tuple[Path, Future[np.ndarray]]]:
            return [
                (each, pool.submit(load_photo, each, labeller.image_size, labeller.interpolation, labeller.loading))
                for each in islice(files, batch_size)
            ]

        ahead = begin()
        while ahead:
            here, ahead = ahead, begin()
            batch, bad = [], []
            for file, coming in here:
                try:
                    batch.append((file, coming.result()))
                except BadPhoto as error:
                    bad.append(error)
            yield batch, bad


class _Rows:
    """A CSV file that is written row by row under a temporary name, and renamed when complete.

    Without rows and without a call of `begin`, no file is written.

    Args:
        stack: renames the file if it exits without an error.
        path: final path of the file.
        columns: the first line.

    Attributes:
        count: number of rows so far.
    """

    def __init__(self, stack: ExitStack, path: Path, columns: list[str]) -> None:
        self.stack, self.path, self.columns = stack, path, columns
        self.count = 0
        self._file: IO[str] | None = None

    def begin(self) -> None:
        if self._file is None:
            temporary = self.stack.enter_context(replacing(self.path))
            # a file name that is not UTF-8 keeps its bytes
            file = temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="")
            self._file = self.stack.enter_context(file)
            self._write(self.columns)

    def write(self, rows: Iterator[list[Any]]) -> None:
        for row in rows:
            self.begin()
            self._write(row)
            self.count += 1

    def _write(self, row: list[Any]) -> None:
        assert self._file is not None
        # csv quotes only its own line ending, but for readers of the file a carriage return also ends a line
        ends_lines = any("\r" in str(value) for value in row)
        writer = csv.writer(self._file, lineterminator="\n", quoting=csv.QUOTE_ALL if ends_lines else csv.QUOTE_MINIMAL)
        writer.writerow(row)


def _is_ours(bad_out: Path) -> bool:
    """Return whether a file is one of our lists of bad photos, judged by its first line."""
    try:
        with bad_out.open("rb") as file:
            return file.readline().strip() == ",".join(BAD_COLUMNS).encode()
    except OSError:
        return False


def _labeller(model: Path, device: Device, keras_python: Path | None, labels: Path | None) -> Labeller:
    if is_hdf5(model):
        if device == "cuda":
            raise BadInput(
                "--device: expected auto or cpu for a .h5, received cuda. Set SHELFTWIN_KERAS_GPU=0 for Keras's "
                "process, or give the checkpoint."
            )
        return KerasFileLabeller(model, read_labels(labels) if labels else None, keras_python)
    for option, given in (("--keras_python", keras_python), ("--labels", labels)):
        if given:
            raise BadInput(f"{option}: expected with a .h5 only, received with {model}, which is none. Leave it out.")
    from lightning_module.evaluation.torch_labeller import CheckpointLabeller  # a .h5 needs no torch

    try:
        return CheckpointLabeller(model, device)
    except BadInput as error:
        if model.suffix.lower() not in H5_ENDINGS:
            raise
        raise BadInput(
            f"expected a Keras .h5, as its name says, received {model}, which begins as none. Is it damaged, or a "
            ".keras? `lightning fit` writes RUN/model.h5."
        ) from error


def _count(photos: Path, formats: Formats) -> tuple[int, Counter[str]]:
    """Count the photos, and what is listed as one but is none, by its kind.

    Raises:
        BadInput: there are no photos.
    """
    if photos.is_dir():
        kinds = Counter(kind_of_junk(each, photos) for each in each_photo(photos, formats))
        count = kinds.pop("", 0)
        if not count:
            raise BadInput(
                f"expected photos (.{', .'.join(FORMAT_ENDINGS[formats])}) in {photos}, received none"
                f"{what_else(photos, formats)}. Name the folder that has them, or convert photos with other endings."
            )
        return count, kinds
    if not photos.is_file():
        raise BadInput(
            f"expected a folder with photos or a photo, received {photos}, which is neither. Check the path."
        )
    return 1, Counter()


def _progress() -> Progress:
    """Return a progress bar, which is shown only in a terminal."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    return Progress(*columns, disable=not sys.stdout.isatty(), transient=True)

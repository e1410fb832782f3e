"""`lightning predict`: labels any number of photos with a checkpoint or its twin."""

import shlex
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from datamodule.layout import describe_junk
from datamodule.photo_store import BadPhoto, load_photo
from datamodule.sources.photo_arguments import PhotoArguments
from datamodule.split import count_unlisted, described_counts
from lightning_module.commands.cli import EXIT_BAD_INPUT, EXIT_KERAS_FAILED, EXIT_UNEXPECTED, parse_for, underscored
from lightning_module.commands.options import H5_ENDINGS, check_report_place, read_labels
from lightning_module.evaluation.exported_labeller import labeller_of_file
from lightning_module.evaluation.labellers import Device, Labeller
from lightning_module.evaluation.labelling import Temperature, choose_labelling, label
from lightning_module.evaluation.prediction_files import (
    FILES,
    PREDICTION_FORMATS,
    CsvFile,
    PredictionFormat,
)
from models.bad_input import BadInput
from models.choices import FORMAT_ENDINGS, Formats, widest
from models.cores import usable_cores

NAMED = 20
"""How many photos that cannot be read are named on the terminal; the file lists all of them."""
BAD_COLUMNS = ["file", "reason"]
PHOTOS_HELP = (
    "each a photo; a folder, searched at any depth; a pattern in quotation marks, such as 'SHOP/**/*.jpg'; a table "
    "(.csv, .tsv, .parquet, .jsonl) that names photos; a .txt with a path in each line; or - for paths from standard "
    "input"
)


def run(argv: list[str]) -> None:
    """Parse `predict CKPT_OR_H5 PHOTOS... [--out FILE] [...]` and run it.

    Raises:
        BadInput: some input cannot be used.
        KerasFailed: the Keras process crashed or ran out of time.
    """
    codes = f"Exit codes: 0 done, photos that cannot be read being left out; {EXIT_BAD_INPUT} bad input; "
    codes += f"{EXIT_KERAS_FAILED} Keras itself crashed; {EXIT_UNEXPECTED} an error in the program."
    given = [underscored(each) for each in argv[1:]]
    predict(**parse_for(predict, "predict", given, codes, several=("photos", PHOTOS_HELP)))


def predict(
    model: Path,
    photos: Sequence[str],
    out: Path | None = None,
    format: PredictionFormat | None = None,
    top: int | None = None,
    min_probability: float | None = None,
    temperature: Temperature = "auto",
    file_column: str | None = None,
    base: Path | None = None,
    batch_size: int = 32,
    device: Device = "auto",
    keras_python: Path | None = None,
    labels: Path | None = None,
    formats: Formats | None = None,
) -> None:
    """Write the likeliest labels of photos, with their probabilities, into a table.

    Photos that cannot be read are left out and listed, with the reason, in OUT_bad.csv. If none can be read, the exit
    code is 2.

    Args:
        model: checkpoint of `lightning fit`, such as RUN/best.ckpt; a Keras .h5, such as RUN/model.h5; or an .onnx, a
            .tflite or a SavedModel of `lightning export`.
        photos: as `PhotoArguments` takes them.
        out: the file to write, predictions.csv if left out; an existing one is replaced when the new one is complete.
        format: csv, parquet or jsonl; by default as OUT's name says, else csv.
        top: number of labels per photo, 3 if left out.
        min_probability: 0 to 1: photos whose likeliest class has less are labelled "unsure"; that class is in the
            column `likeliest`.
        temperature: the logits are divided by it: a number, or the one that `lightning fit` fitted, which is in the
            metrics.json beside the model: `fitted`. `auto`: that one with --min_probability, if there is one. The
            order of the labels stays.
        file_column: column of tables that names the photos; it is looked for if left out.
        base: folder that names in tables and lists are relative to; by default a table's own or one in it, and for
            lists the working folder, or else the list's.
        batch_size: number of photos that are computed at once; the result does not depend on it.
        device: where a checkpoint is computed: `auto` is a GPU if there is one.
        keras_python: Python interpreter whose Keras computes a .h5, or whose runtime another format; by default this
            environment's.
        labels: labels.json for a file that does not itself state its classes and input range.
        formats: which files are photos: `keras`: what Keras lists; `web`: WebP, AVIF, GIF and JFIF as well; `all`: all
            formats that are read. But for `keras`, files without an ending are looked at. By default `web`, or `all`
            where the model was trained so.
    """
    out, format = _place(out, format)
    bad_out = out.with_name(f"{out.stem}_bad.csv")
    inputs = [model, *(Path(each) for each in photos if "\0" not in each), *([labels] if labels else [])]
    for place in (out, bad_out):
        check_report_place("--out", place, *inputs)
    if batch_size < 1:
        raise BadInput(f"--batch_size: expected 1 or more, received {batch_size}.")
    if min_probability is not None and not 0 <= min_probability <= 1:
        raise BadInput(
            f"--min_probability: expected a number from 0 to 1, received {min_probability}. Give 0.8 for eighty "
            "percent."
        )
    labeller = _labeller(model, device, keras_python, labels)
    labelling = choose_labelling(labeller, model, top, min_probability, temperature)
    formats = formats or widest("web", labeller.formats)
    listed = PhotoArguments(photos, formats, file_column, base, getattr(sys.stdin, "buffer", None))
    warnings.filterwarnings("ignore", module="PIL")  # about odd files, which are either read or reported
    with ExitStack() as stack:
        stack.enter_context(labeller)
        progress = stack.enter_context(_progress())
        task = progress.add_task("labelling photos", total=None if progress.disable else listed.count())
        rows, bad_rows = FILES[format](stack, out, labelling.columns), CsvFile(stack, bad_out, BAD_COLUMNS)
        rows.begin()
        named: list[BadPhoto] = []
        for batch, bad in decoded(iter(listed), batch_size, labeller):
            if batch:
                pixels = np.stack([each for _, each in batch])
                rows.write(label(labeller, [file for file, _ in batch], pixels, labelling))
            bad_rows.write([str(each.path), each.reason] for each in bad)
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
    if listed.junk:
        print(f"left out, as they are no photos: {describe_junk(listed.junk)}")
    others: Counter[str] = Counter()
    for folder in dict.fromkeys(listed.folders):
        others += count_unlisted(folder, {out.resolve(), bad_out.resolve()}, formats)
    if others:
        print(f"left out, as their names are no photos': {described_counts(others)}")
    if not rows.count:
        raise BadInput(f"expected photos that can be read, received none: {out} has no rows, and {bad_out} says why.")


def decoded(
    files: Iterator[Path | BadPhoto], batch_size: int, labeller: Labeller
) -> Iterator[tuple[list[tuple[Path, np.ndarray]], list[BadPhoto]]]:
    """Decode photos batch by batch, only one batch ahead.

    Args:
        files: paths, and what was named but cannot be one, which counts as a file that cannot be read.
        batch_size: how many are taken at once.
        labeller: says how photos are loaded.

    Yields:
        Files with their pixels, uint8 (H, W, 3), and the files that cannot be read; together `batch_size`.
    """
    with ThreadPoolExecutor(usable_cores()) as pool:

        def load(file: Path | BadPhoto) -> np.ndarray:
            if isinstance(file, BadPhoto):
                raise file
            return load_photo(file, labeller.image_size, labeller.interpolation, labeller.loading)

        def begin() -> list[tuple[Path, Future[np.ndarray]]]:
            return [
                (each.path if isinstance(each, BadPhoto) else each, pool.submit(load, each))
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


def _place(out: Path | None, format: PredictionFormat | None) -> tuple[Path, PredictionFormat]:
    """Return the file to write and its format.

    Raises:
        BadInput: its name says another one.
    """
    if out is None:
        return Path(f"predictions.{format or 'csv'}"), format or "csv"
    if out.name.lower().endswith(FORMAT_ENDINGS["all"]):
        raise BadInput(f"--out: expected the name of a table, received {out}: photos are named so. Name another.")
    ending = out.suffix.lower().removeprefix(".")
    by_name = next((each for each in PREDICTION_FORMATS if each == ending), None)
    if format and by_name and format != by_name:
        raise BadInput(
            f"--out: expected a name as of --format {format}, received {out}. Name it "
            f"{shlex.quote(str(out.with_suffix(f'.{format}')))}, or leave --format out."
        )
    return out, format or by_name or "csv"


def _is_ours(bad_out: Path) -> bool:
    """Return whether a file is one of our lists of bad photos, judged by its first line."""
    try:
        with bad_out.open("rb") as file:
            return file.readline().strip() == ",".join(BAD_COLUMNS).encode()
    except OSError:
        return False


def _labeller(model: Path, device: Device, keras_python: Path | None, labels: Path | None) -> Labeller:
    if file_labeller := labeller_of_file(model):
        if device == "cuda":
            raise BadInput(
                f"--device: expected auto or cpu for {model.name}, received cuda. Set SHELFTWIN_KERAS_GPU=0 for "
                "Keras's process, or give the checkpoint."
            )
        return file_labeller(model, read_labels(labels) if labels else None, keras_python)
    for option, given in (("--keras_python", keras_python), ("--labels", labels)):
        if given:
            raise BadInput(
                f"{option}: expected with a .h5 only, or another exported format, received with {model}, which is "
                "none. Leave it out."
            )
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


def _progress() -> Progress:
    """Return a progress bar, which is shown only in a terminal."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    return Progress(*columns, disable=not sys.stdout.isatty(), transient=True)

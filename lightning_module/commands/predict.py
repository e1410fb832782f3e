"""`lightning predict`: labels any number of photos with a checkpoint or its twin."""

import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn, track

from datamodule.layout import describe_junk
from datamodule.photo_store import BadPhoto, default_store_dir
from datamodule.sources.photo_arguments import PhotoArguments
from datamodule.split import count_unlisted, described_counts
from lightning_module.commands.cli import EXIT_BAD_INPUT, EXIT_KERAS_FAILED, EXIT_UNEXPECTED, parse_for, underscored
from lightning_module.commands.options import check_report_place, read_labels, with_flags
from lightning_module.evaluation.decoding import in_batches
from lightning_module.evaluation.exported_labeller import labeller_of_file
from lightning_module.evaluation.labellers import Device, Labeller
from lightning_module.evaluation.labelling import Temperature, check_min_probability, choose_labelling, labelled
from lightning_module.evaluation.prediction_files import (
    FILES,
    PREDICTION_FORMATS,
    CsvFile,
    PredictionFormat,
)
from lightning_module.fleet.data_set import DataSet
from lightning_module.fleet.labelling_run import PHOTOS_PER_PART, Engine, Engines, label_into
from lightning_module.fleet.sources import Sources
from models.bad_input import BadInput
from models.choices import FORMAT_ENDINGS, Formats, widest

NAMED = 20
"""How many photos that cannot be read are named on the terminal; the file lists all of them."""
BAD_COLUMNS = ["file", "reason"]
PHOTOS_HELP = (
    "each a photo; a folder, searched at any depth; a pattern in quotation marks, such as 'SHOP/**/*.jpg'; a table "
    "(.csv, .tsv, .parquet, .jsonl) that names photos; a .txt with a path in each line; the address (s3://, zip://) of "
    "a photo, a folder or a table; or - for paths from standard input"
)


def run(argv: list[str]) -> None:
    """Parse `predict CKPT_OR_H5 PHOTOS... [--out FILE] [...]` and run it.

    Raises:
        BadInput: some input cannot be used.
        KerasFailed: the Keras process crashed or ran out of time.
    """
    codes = f"Exit codes: 0 done, photos that cannot be read being left out; {EXIT_BAD_INPUT} bad input; "
    codes += f"{EXIT_KERAS_FAILED} Keras itself crashed; {EXIT_UNEXPECTED} an error in the program."
    given = with_flags([underscored(each) for each in argv[1:]], ("--resume",))
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
    base: str | None = None,
    batch_size: int = 32,
    device: Device = "auto",
    keras_python: Path | None = None,
    labels: Path | None = None,
    formats: Formats | None = None,
    engine: Engine | None = None,
    num_workers: int | None = None,
    ray_address: str | None = None,
    photos_per_part: int | None = None,
    resume: bool = False,
) -> None:
    """Write the likeliest labels of photos, with their probabilities, into a table.

    Photos that cannot be read are left out and listed, with the reason, in OUT_bad.csv. If none can be read, the exit
    code is 2. With one of the last five options, or a folder as OUT, the table is a Parquet data set of many files.

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
        base: folder that names in tables and lists are relative to, or its address; by default a table's own or one in
            it, and for lists the working folder, or else the list's.
        batch_size: number of photos that are computed at once; the result does not depend on it.
        device: where a checkpoint is computed: `auto` is a GPU if there is one.
        keras_python: Python interpreter whose Keras computes a .h5, or whose runtime another format; by default this
            environment's.
        labels: labels.json for a file that does not itself state its classes and input range.
        formats: which files are photos: `keras`: what Keras lists; `web`: WebP, AVIF, GIF and JFIF as well; `all`: all
            formats that are read. But for `keras`, files without an ending are looked at. By default `web`, or `all`
            where the model was trained so.
        engine: a data set: OUT is a folder, which may be gone on with. `local`: this process; `ray`: a Ray cluster, on
            this machine unless --ray_address is given. The rows are the same.
        num_workers: workers of `ray`; by default one for each GPU, or else for every 8 CPUs of a machine.
        ray_address: of a Ray cluster that is running, `auto` for this machine's.
        photos_per_part: rows of a data set's file, 1000 if left out.
        resume: go on with the data set in OUT, where there is one, from the files that it has.
    """
    data_set_options = (engine, num_workers, ray_address, photos_per_part)
    is_data_set = resume or any(each is not None for each in data_set_options) or (out is not None and out.is_dir())
    data_set = None
    if is_data_set:
        per_part = PHOTOS_PER_PART if photos_per_part is None else photos_per_part
        engines = Engines(engine or "local", num_workers, ray_address, per_part)
        data_set = DataSet(_folder(out, format), resume)
    else:
        out, format = _place(out, format)
        bad_out = out.with_name(f"{out.stem}_bad.csv")
        inputs = [model, *(Path(each) for each in photos if "\0" not in each), *([labels] if labels else [])]
        for place in (out, bad_out):
            check_report_place("--out", place, *inputs)
    if batch_size < 1:
        raise BadInput(f"--batch_size: expected 1 or more, received {batch_size}.")
    check_min_probability(min_probability)
    labeller = _labeller(model, "cpu" if engine == "ray" else device, keras_python, labels)
    labelling = choose_labelling(labeller, model, top, min_probability, temperature)
    formats = formats or widest("web", labeller.formats)
    stdin = getattr(sys.stdin, "buffer", None)
    if data_set is not None:
        sources = Sources(photos, formats, file_column, base, stdin)
        make = partial(_labeller, keras_python=keras_python, labels=labels)
        with _progress() as progress:
            task = progress.add_task("labelling photos", total=None)
            summary = label_into(
                data_set, sources, model, labels, labeller, labelling, engines, make, device, batch_size,
                lambda done, of: progress.update(task, completed=done, total=of),
            )  # fmt: skip
        print("\n".join(summary.lines(data_set.folder)))
        _say_left_out(sources, formats, {each.resolve() for each in data_set.folder.iterdir()})
        if not summary.labelled:
            raise BadInput(f"expected photos that can be read, received none: {data_set.folder} says why.")
        return
    assert out is not None
    assert format is not None
    cache = default_store_dir() / "addresses"
    listed = PhotoArguments(photos, formats, file_column, base, stdin, cache, _fetching)
    with ExitStack() as stack:
        stack.enter_context(labeller)
        progress = stack.enter_context(_progress())
        task = progress.add_task("labelling photos", total=None if progress.disable else listed.count())
        rows, bad_rows = FILES[format](stack, out, labelling.columns), CsvFile(stack, bad_out, BAD_COLUMNS)
        rows.begin()
        named: list[BadPhoto] = []
        for results in labelled(in_batches(iter(listed), batch_size), labeller, labelling, name_of=listed.name_of):
            bad = [each for each in results if isinstance(each, BadPhoto)]
            rows.write(each for each in results if not isinstance(each, BadPhoto))
            bad_rows.write([listed.name_of(each.path), each.reason] for each in bad)
            named.extend(bad[: NAMED - len(named)])
            progress.advance(task, len(results))
    if not bad_rows.count and _is_ours(bad_out):
        bad_out.unlink()  # an earlier run's file, which would be mistaken for this one's
    print(f"{rows.count} {'photo' if rows.count == 1 else 'photos'} labelled: {out}")
    if bad_rows.count:
        print(f"{bad_rows.count} that cannot be read: {bad_out}")
        for each in named:
            print(f"  {each}")
        if bad_rows.count > len(named):
            print(f"  and {bad_rows.count - len(named)} more")
    _say_left_out(listed, formats, {out.resolve(), bad_out.resolve()})
    if not rows.count:
        raise BadInput(f"expected photos that can be read, received none: {out} has no rows, and {bad_out} says why.")


def _say_left_out(listed: PhotoArguments | Sources, formats: Formats, own: set[Path]) -> None:
    """Print what folders have besides photos, but for our own files."""
    if listed.junk:
        print(f"left out, as they are no photos: {describe_junk(listed.junk)}")
    others: Counter[str] = Counter()
    for folder in dict.fromkeys(listed.folders):
        others += count_unlisted(folder, own, formats)
    if others:
        print(f"left out, as their names are no photos': {described_counts(others)}")


def _folder(out: Path | None, format: PredictionFormat | None) -> Path:
    """Return the folder of a data set.

    Raises:
        BadInput: another format was asked for, or the name is a table's.
    """
    if format not in (None, "parquet"):
        raise BadInput(f"--format: expected parquet for a data set, received {format}. Leave --format out.")
    if out is not None and out.suffix.lower().removeprefix(".") in PREDICTION_FORMATS and not out.is_dir():
        raise BadInput(
            f"--out: expected a folder for a data set, which --engine, --resume and the like ask for; received {out}, "
            f"which is named as a file. Give {shlex.quote(str(out.with_suffix('')))}."
        )
    return Path("predictions") if out is None else out


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
    if ending in ("xlsx", "xls", "ods", "json"):
        raise BadInput(
            f"--out: expected a name that ends in .{', .'.join(PREDICTION_FORMATS)}, received {out}. Spreadsheets open "
            ".csv."
        )
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

    return CheckpointLabeller(model, device)


def _fetching(items: Iterable, total: int) -> Iterable:
    return track(items, "fetching photos", total, transient=True, disable=not sys.stdout.isatty())


def _progress() -> Progress:
    """Return a progress bar, which is shown only in a terminal."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    return Progress(*columns, disable=not sys.stdout.isatty(), transient=True)

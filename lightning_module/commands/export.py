"""`lightning export`: writes a checkpoint as a Keras `.h5`, or in other formats made from that."""

import shlex
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lightning_module.commands.cli import EXIT_MISMATCH
from lightning_module.commands.options import (
    ForeignOptions,
    chosen,
    given_options,
    list_photo_files,
    parse_options,
    pixels_of,
)
from models.bad_input import BadInput, some_of
from models.choices import H5_ENDINGS

if TYPE_CHECKING:
    from export.checkpoint import Checkpoint
    from export.torch_to_keras import Twin


def run_export(argv: list[str]) -> None:
    """Parse `export FILE OUT.h5 [--model NAME ...] [--format NAMES] [...]` and run it.

    Raises:
        BadInput: some input cannot be used.
        SystemExit: 1 if a format is not the network that was trained.
    """
    if not export(**parse_options("export", export, argv, group=ForeignOptions)):
        raise SystemExit(EXIT_MISMATCH)


def export(
    file: Path,
    out: Path,
    input_range: Literal["unit", "raw"] = "unit",
    fuse_batchnorm: bool = False,
    format: str = "keras",
    photos: Path | None = None,
    temperature: float | Literal["none", "fitted"] = "none",
    foreign: ForeignOptions | None = None,
) -> bool:
    """Write a checkpoint as one Keras .h5 that loads with a plain load_model(path), or in other formats made from it.

    Args:
        file: RUN/best.ckpt of `lightning fit`; or weights from elsewhere (.pth, .pt, .ckpt, .safetensors), with --model
            and what belongs to it; or a Keras file, for other formats.
        out: the .h5 to write; an existing one is replaced when the new one is complete. Other formats are written
            beside it, as OUT_saved_model, OUT.onnx, OUT.tflite, OUT_float16.tflite and OUT_int8.tflite; a single other
            format may have any name.
        input_range: values that the twin takes: `unit`, 0 to 1, or `raw`, 0 to 255.
        fuse_batchnorm: fold every BatchNorm into the convolution before it: fewer layers, for predicting only.
        format: one or more of keras, saved_model, onnx, tflite, tflite_float16, tflite_int8, separated by commas;
            or all. They are compared with torch before they are put in place, except for keras alone.
        photos: folder with photos, at any depth, on which formats are compared (for keras alone use `lightning
            parity`); tflite_int8 needs it. If its folders are the classes, accuracy is compared too.
        temperature: divide the logits by a number, or by the one that `lightning fit` fitted: `fitted`. Then
            OUT_calibrated.ckpt is written, with the temperature in its last layer, and that is exported. Labels stay.
        foreign: what is stated of weights from elsewhere.

    Returns:
        Whether all formats are the network that was trained.
    """
    from export.formats import FORMATS, Photos, print_formats, write_formats

    formats = chosen("--format", format, FORMATS)
    if not formats:
        raise BadInput(f"--format: expected some of {', '.join(FORMATS)}, or all, received none. Name one.")
    foreign = foreign or ForeignOptions()
    if temperature != "none":
        if given_options(foreign):
            raise BadInput(
                "--temperature: expected with a checkpoint of `lightning fit`, received --model. Leave it out."
            )
        file = _calibrated(file, out, temperature)
    if formats == ["keras"]:
        if out.suffix.lower() not in H5_ENDINGS:
            raise BadInput(
                f"expected the name of a .h5, received {out}: Keras and others go by the name. Name a .h5, or say what "
                f"else it is to be: --format {', '.join(name for name in FORMATS if name != 'keras')}."
            )
        if photos:
            raise BadInput(
                f"--photos: expected formats besides keras to compare on them, received {photos} with keras alone. "
                "Leave it out; `lightning parity FILE OUT.h5 --photos DIR` proves the .h5 on photos."
            )
    with _source(file, foreign, formats) as source:
        if formats == ["keras"]:
            from export.torch_to_keras import write_twin

            twin = write_twin(source, out, input_range, fuse_batchnorm)
            size = f"{twin.layers} Keras layers, {twin.parameters:,} numbers (weights and BatchNorm statistics)"
            print(*source.notes, *_left_out(twin), f"{twin.path}: {size}", sep="\n")
            if source.foreign:
                again = ["lightning", "parity", str(file), str(out), *given_options(foreign)]
                print(f"Now prove it: {shlex.join(again)}")
            return True
        judges = None
        if photos:
            files = list_photo_files(photos)
            numbers = {name: number for number, name in enumerate(source.class_names)}
            folders = [each.relative_to(photos).parts[0] if photos.is_dir() else "" for each in files]
            labels = [numbers.get(name, -1) for name in folders]
            pixels = pixels_of(files, source.image_size, source.interpolation, source.loading)
            judges = Photos(pixels, [str(each) for each in files], labels)
        made, versions = write_formats(source, out, formats, input_range, judges, fuse_batchnorm)
        print(*source.notes, sep="\n", end="\n" * bool(source.notes))
    print_formats(made, versions)
    return all(each.passed for each in made)


@contextmanager
def _source(file: Path, foreign: ForeignOptions, formats: list[str]) -> "Iterator[Checkpoint]":
    """The checkpoint in a file, or that of a Keras file, which is imported and proved first; what was found is said."""
    from export.foreign_checkpoint import read_any_checkpoint
    from export.keras_file.read import is_keras_file

    if not is_keras_file(file):
        yield read_any_checkpoint(file, foreign.settings())  # its notes are said once there is a file
        return
    if "keras" in formats:
        raise BadInput(
            f"expected a checkpoint or weights to make a .h5 of, received {file}, a Keras file. Give other formats: "
            "--format onnx; `lightning upgrade OLD NEW.h5` writes one that every Keras loads."
        )
    with tempfile.TemporaryDirectory(prefix="shelftwin-") as folder:
        yield _imported(file, foreign, Path(folder) / "imported.ckpt")


def _left_out(twin: "Twin") -> list[str]:
    """What of the network's weights is not in the file, for people."""
    unused = twin.details.get("unused_weights", [])
    return [f"Not in the file, as they have no part in what the network gives: {some_of(unused, 5)}"] if unused else []


def _imported(file: Path, foreign: ForeignOptions, place: Path) -> "Checkpoint":
    """Import a Keras file as `lightning import` does, with its proof; the other formats are made of that checkpoint."""
    from export.checkpoint import read_checkpoint
    from export.import_keras import ImportDiffers, write_import
    from export.keras_to_torch import OUTPUTS, ImportSettings, read_keras_classifier

    unfit = [name for name in ("model", "num_classes", "mean", "std", "prefix", "model_args") if getattr(foreign, name)]
    if unfit:
        raise BadInput(
            f"--{unfit[0]}: expected with weights from elsewhere, received it with {file}, a Keras file, which says it "
            "itself. Leave it out."
        )
    if foreign.output not in (None, *OUTPUTS):
        raise BadInput(f"--output: expected one of {', '.join(OUTPUTS)} of a Keras file, received {foreign.output}.")
    settings = foreign.settings()
    given = ImportSettings(settings.class_names, settings.image_size, settings.interpolation, None, foreign.output)
    classifier = read_keras_classifier(file, given)
    print(*classifier.notes, sep="\n", end="\n" * bool(classifier.notes))
    try:
        report = write_import(classifier, place)
    except ImportDiffers as differs:
        raise BadInput(
            f"expected a Keras file that can be imported, received {file}: {differs}. Give the checkpoint "
            "that it was made of."
        ) from differs
    print(f"{file} was read into torch, and computes the same there ({report.last_line() if report else ''}).")
    return read_checkpoint(place)


def _calibrated(ckpt: Path, out: Path, temperature: float | str) -> Path:
    """Write a checkpoint that contains the temperature beside the file to export; return its path."""
    from export.calibrated import write_calibrated
    from export.fitted_temperature import Fitted, fitted_temperature

    fitted = fitted_temperature(ckpt) if isinstance(temperature, str) else Fitted(float(temperature), None)
    if fitted.doubt:
        print(fitted.doubt)
    place = out.with_name(f"{out.stem}_calibrated.ckpt")
    write_calibrated(ckpt, place, fitted.temperature)
    print(f"{place}: logits divided by {fitted.temperature:.4f}; what follows is its twin")
    return place

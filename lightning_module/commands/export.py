"""`lightning export`: writes a checkpoint as a Keras `.h5`, or in other formats made from that."""

from pathlib import Path
from typing import Literal

from lightning_module.commands.cli import EXIT_MISMATCH
from lightning_module.commands.options import H5_ENDINGS, chosen, list_photo_files, parse_options, pixels_of
from models.bad_input import BadInput


def run_export(argv: list[str]) -> None:
    """Parse `export CKPT OUT.h5 [--input_range unit|raw] [--temperature fitted|NUMBER] [...]` and run it.

    Raises:
        BadInput: some input cannot be used.
        SystemExit: 1 if a format is not the network that was trained.
    """
    if not export(**parse_options("export", export, argv)):
        raise SystemExit(EXIT_MISMATCH)


def export(
    ckpt: Path,
    out: Path,
    input_range: Literal["unit", "raw"] = "unit",
    fuse_batchnorm: bool = False,
    format: str = "keras",
    photos: Path | None = None,
    temperature: float | Literal["none", "fitted"] = "none",
) -> bool:
    """Write a checkpoint as one Keras .h5 that loads with a plain load_model(path), or in other formats made from it.

    Args:
        ckpt: checkpoint of `lightning fit`, such as RUN/best.ckpt.
        out: the .h5 to write; an existing one is replaced when the new one is complete. Other formats are written
            beside it, as OUT_saved_model, OUT.onnx, OUT.tflite and OUT_int8.tflite; a single other format may have any
            name.
        input_range: values that the twin takes: `unit`, 0 to 1, or `raw`, 0 to 255.
        fuse_batchnorm: fold every BatchNorm into the convolution before it: fewer layers, for predicting only.
        format: one or more of keras, saved_model, onnx, tflite, tflite_int8, separated by commas; or all. They are
            compared with torch before they are put in place, except for keras alone.
        photos: folder with photos, at any depth, on which formats are compared (for keras alone use `lightning
            parity`); tflite_int8 needs it. If its folders are the classes, accuracy is compared too.
        temperature: divide the logits by a number, or by the one that `lightning fit` fitted: `fitted`. Then
            OUT_calibrated.ckpt is written, with the temperature in its last layer, and that is exported. Labels stay.

    Returns:
        Whether all formats are the network that was trained.
    """
    from export.formats import FORMATS, Photos, print_formats, write_formats

    formats = chosen("--format", format, FORMATS)
    if not formats:
        raise BadInput(f"--format: expected some of {', '.join(FORMATS)}, or all, received none. Name one.")
    if temperature != "none":
        ckpt = _calibrated(ckpt, out, temperature)
    if formats == ["keras"]:
        if out.suffix.lower() not in H5_ENDINGS:
            raise BadInput(
                f"expected the name of a .h5, received {out}: Keras and others go by the name. Name a .h5, or say what "
                f"else it is to be: --format {', '.join(name for name in FORMATS if name != 'keras')}."
            )
        if photos:
            raise BadInput(
                f"--photos: expected formats besides keras to compare on them, received {photos} with keras alone. "
                "Leave it out; `lightning parity CKPT OUT.h5 --photos DIR` proves the .h5 on photos."
            )
        from export.torch_to_keras import write_twin

        twin = write_twin(ckpt, out, input_range, fuse_batchnorm)
        size = f"{twin.layers} Keras layers, {twin.parameters:,} numbers (weights and BatchNorm statistics)"
        print(f"{twin.path}: {size}")
        return True
    judges = None
    if photos:
        from export.checkpoint import read_checkpoint

        files, source = list_photo_files(photos), read_checkpoint(ckpt)
        numbers = {name: number for number, name in enumerate(source.class_names)}
        labels = [numbers.get(file.relative_to(photos).parts[0], -1) for file in files]
        pixels = pixels_of(files, source.image_size, source.interpolation, source.loading)
        judges = Photos(pixels, [str(file) for file in files], labels)
    made, versions = write_formats(ckpt, out, formats, input_range, judges, fuse_batchnorm)
    print_formats(made, versions)
    return all(each.passed for each in made)


def _calibrated(ckpt: Path, out: Path, temperature: float | str) -> Path:
    """Write a checkpoint that contains the temperature beside the file to export; return its path."""
    from export.calibrated import Fitted, fitted_temperature, write_calibrated

    fitted = fitted_temperature(ckpt) if isinstance(temperature, str) else Fitted(float(temperature), None)
    if fitted.doubt:
        print(fitted.doubt)
    place = out.with_name(f"{out.stem}_calibrated.ckpt")
    write_calibrated(ckpt, place, fitted.temperature)
    print(f"{place}: logits divided by {fitted.temperature:.4f}; what follows is its twin")
    return place

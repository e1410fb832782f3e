"""`lightning import`: converts a Keras `.h5` to a checkpoint, and proves that both compute the same."""

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from lightning_module.commands.cli import EXIT_MISMATCH
from lightning_module.commands.options import (
    check_report_place,
    height_and_width,
    list_photo_files,
    names_in_lines,
    parse_options,
    pixels_of,
    read_labels,
)
from models.bad_input import BadInput


def run_import(argv: list[str]) -> None:
    """Parse `import MODEL.h5 OUT.ckpt [--class_names A,B] [...]` and run it.

    Raises:
        BadInput: some input cannot be used.
        SystemExit: 1 if the two differ.
    """
    if not import_(**parse_options("import", import_, argv)):
        raise SystemExit(EXIT_MISMATCH)


def import_(
    model: Path,
    out: Path,
    class_names: str | None = None,
    labels: Path | None = None,
    photos_root: Path | None = None,
    image_size: str | None = None,
    interpolation: str | None = None,
    input_range: Literal["unit", "raw", "tf"] | None = None,
    output: Literal["softmax", "sigmoid", "logits"] | None = None,
    architecture: str | None = None,
    check: bool = True,
    json: Path | None = None,
    keras_python: Path | None = None,
) -> bool:
    """Read a Keras classifier into a checkpoint, and prove that both compute the same.

    Any classifier of photos that is made of Keras's own layers, saved by Keras 2 or 3, or by `lightning export`. A
    MobileNetV2 becomes timm's, every other network one that is built from the file. The last line is the verdict;
    nothing is written unless it is PASS.

    Args:
        model: the Keras file: .h5, .keras, or a zip with one of them, such as Teachable Machine's.
        out: the checkpoint to write; an existing one is replaced when the new one is complete and proved.
        class_names: names of the classes in the order of the outputs, separated by commas.
        labels: labels.json that names the classes (and may give interpolation), as `lightning fit` writes it, or
            labels.txt with one class in each line. A labels.txt inside a zip is found.
        photos_root: folder with one folder of photos per class: their sorted names are the classes, and the photos go
            through both sides.
        image_size: one number, or `h,w`, if the model takes any size.
        interpolation: how photos are resized; `nearest`, Keras's default, unless the file says otherwise.
        input_range: values that the model takes, if its layers do not show it: `unit`, 0 to 1, `raw`, 0 to 255, or
            `tf`, -1 to 1.
        output: what the model gives, if its last layer does not show it: `logits`, if it was trained with
            from_logits=True. A single output becomes two classes, of which it is the second.
        architecture: for a file of weights alone: a file with what model.to_json() says, or a network of
            keras.applications, such as MobileNetV2,alpha=0.35,size=96,classes=4.
        check: compare both in a real Keras; false writes the checkpoint unproved.
        json: file for the whole report.
        keras_python: Python interpreter whose Keras is used for the proof; by default this environment's, or where that
            does not load the file, tf_keras's in an environment of its own.

    Returns:
        Whether all checks passed.
    """
    from export.import_keras import ImportDiffers, write_import
    from export.keras_to_torch import ImportSettings, read_keras_classifier
    from export.proof.report import PASS, print_report, write_json

    if json:
        check_report_place("--json", json, model, out)
    stated = read_labels(labels) if labels else {}
    names = [name.strip() for name in class_names.split(",")] if class_names else stated.get("class_names")
    names = names or _names_in_zip(model)
    if photos_root and not names:
        names = _folder_names(photos_root)
    interpolation = stated.get("interpolation") if interpolation is None else interpolation
    size = height_and_width(image_size)
    with _whole(model, architecture, keras_python) as whole:
        classifier = read_keras_classifier(whole, ImportSettings(names, size, interpolation, input_range, output))
        files = list_photo_files(photos_root) if photos_root and check else []
        pixels = pixels_of(files, classifier.image_size, classifier.interpolation) if files else None
        photo_names = [str(file) for file in files]
        try:
            report = write_import(
                classifier, out, pixels, photo_names, check=check, keras_python=keras_python, given=model
            )
        except ImportDiffers as differs:
            report = differs.report
    for note in classifier.notes:
        print(note)
    if report is None or report.verdict == PASS:
        network = classifier.network
        height, width = classifier.image_size
        print(
            f"{out}: {network.backbone_name}, {len(classifier.class_names)} classes, {height} x {width} pixels, "
            f"{_described(network)}; the Keras model takes {classifier.input_range}, gives {classifier.output}"
        )
        print(
            f"To go on: lightning fit --config configs/finetune.yaml --ckpt_path {out} --data.root PHOTOS "
            "--model.train_size null"
        )
    if report is None:
        print("not proved: --check false")
        return True
    print_report(report)
    if json:
        write_json([report], json)
    return report.verdict == PASS


@contextmanager
def _whole(model: Path, architecture: str | None, keras_python: Path | None) -> Iterator[Path]:
    """The file that Keras loads: what is in a zip; of weights alone, both put together."""
    from export.keras_file.read import loadable
    from export.keras_file.weights_alone import given_architecture, whole_file

    config = given_architecture(architecture, keras_python) if architecture else None
    with tempfile.TemporaryDirectory(prefix="shelftwin-") as folder:
        yield loadable(model, Path(folder)) if config is None else whole_file(model, config, Path(folder))


def _names_in_zip(model: Path) -> list[str] | None:
    from export.keras_file.read import packed_labels

    text = packed_labels(model)
    return None if text is None else names_in_lines(text)


def _described(network: Any) -> str:
    if "graph" in network.architecture:
        return f"{len(network.backbone.nodes) + len(network.head.nodes)} operations as the file has them"
    return f"padding {network.pad_type or 'symmetric'}, epsilon {network.bn_eps:g}"


def _folder_names(root: Path) -> list[str]:
    """Return the names of the folders in a folder, sorted as in flow_from_directory."""
    if not root.is_dir():
        raise BadInput(f"--photos_root: expected a folder with one folder per class, received {root}. Check the path.")
    return sorted(each.name for each in root.iterdir() if each.is_dir() and not each.name.startswith("."))


def run_upgrade(argv: list[str]) -> None:
    """Parse `upgrade OLD NEW.h5 [--labels FILE] [--architecture NAME] [...]` and run it.

    Raises:
        BadInput: some input cannot be used.
        KerasFailed: a Keras process crashed or ran out of time.
        SystemExit: 1 if the two differ.
    """
    if not upgrade(**parse_options("upgrade", upgrade, argv)):
        raise SystemExit(EXIT_MISMATCH)


def upgrade(
    old: Path,
    new: Path,
    labels: Path | None = None,
    architecture: str | None = None,
    json: Path | None = None,
    keras_python: Path | None = None,
) -> bool:
    """Write an old Keras file as a .h5 that every Keras loads, and prove that both compute the same.

    The new file takes the old one's place: it takes the same images, gives the same answers, and its layers have the
    same names. The old file is only read. The last line is the verdict; nothing is written unless it is PASS.

    Args:
        old: the Keras file: .h5, .hdf5, .keras, or a zip with one .h5 in it, such as Teachable Machine's.
        new: the .h5 to write; an existing one is replaced when the new one is complete and proved.
        labels: labels.txt with one class in each line, as Teachable Machine writes it, or labels.json: the names are
            kept in the new file. A labels.txt inside a zip is found.
        architecture: for a file of weights alone: a file with what model.to_json() says, or a network of
            keras.applications, such as MobileNetV2,alpha=0.35,size=96,classes=4.
        json: file for the whole report.
        keras_python: Python interpreter whose Keras loads the old file; by default this environment's, or where that
            cannot, tf_keras in an environment that is made once.

    Returns:
        Whether all checks passed.
    """
    from export.keras_file.weights_alone import given_architecture
    from export.proof.report import PASS, print_report, print_verdict, write_json
    from export.upgrade_keras import UpgradeDiffers, write_upgrade

    if json:
        check_report_place("--json", json, old, new)
    names = read_labels(labels)["class_names"] if labels else _names_in_zip(old)
    config = given_architecture(architecture, keras_python) if architecture else None
    try:
        upgraded = write_upgrade(old, new, names, keras_python, config, _say)
    except UpgradeDiffers as differs:
        upgraded = differs.upgraded
    report, refusal = upgraded.proof.report, upgraded.proof.refusal
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(upgraded.kinds.items(), key=lambda each: -each[1]))
    print(f"Translated: {kinds}")
    shape = " x ".join("any" if side is None else str(side) for side in upgraded.input_shape[1:])
    plural = "s" * (upgraded.outputs != 1)
    print(f"As before it takes {shape} and gives {upgraded.outputs} number{plural} ({upgraded.ends_in}).")
    for note in upgraded.notes:
        print(note)
    keras = f"Keras {report.versions['new file']['keras']}"
    print(f"{keras} loads the old file, too." if refusal is None else f"{keras} says of the old file: {refusal[:400]}")
    print_report(report, "Does the new file compute what the old one does?", ending=False)
    if json:
        write_json([report], json)
    if report.verdict == PASS:
        print(f"Put {new} where your program loads {old}: keras.models.load_model({str(new)!r}) in any Keras.")
        print(f"To train it further here: lightning import {new} OUT.ckpt")
    print_verdict(report, "upgrade")
    return report.verdict == PASS


def _say(text: str) -> None:
    """Print progress on stderr, because the report is on stdout."""
    print(f"{text} ...", file=sys.stderr, flush=True)

"""`lightning export`, `import` and `parity`: the hand-over, the way back and the proof, on their own."""

import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from export.worker.keras_process import KerasFailed
from lightning_module.commands.cli import EXIT_MISMATCH, parse_for, underscored
from models.bad_input import BadInput

if TYPE_CHECKING:
    import numpy as np

    from export.proof.report import Report


H5_ENDINGS = (".h5", ".hdf5")
_FLAGS = ("--fuse_batchnorm",)
"""Options that need no value."""


def run_export(argv: list[str]) -> None:
    """Parse `export CKPT OUT.h5 [--input_range unit|raw] [--temperature fitted|NUMBER] [...]` and do it.

    Raises:
        BadInput: something given cannot be used.
        SystemExit: 1 where a format is not the network that was trained.
    """
    if not export(**_parse("export", export, argv)):
        raise SystemExit(EXIT_MISMATCH)


def run_parity(argv: list[str]) -> None:
    """Parse `parity CKPT MODEL.h5 [--photos DIR] [--json FILE] [--html FILE] [--keras_python PY ...]` and do it.

    Raises:
        BadInput: something given cannot be used.
        KerasFailed: a Keras crashed or ran out of time.
        SystemExit: 1 where the twins do not agree.
    """
    if not parity(**_parse("parity", parity, argv, repeatable=["--keras_python"])):
        raise SystemExit(EXIT_MISMATCH)


def run_import(argv: list[str]) -> None:
    """Parse `import MODEL.h5 OUT.ckpt [--class_names A,B] [...]` and do it.

    Raises:
        BadInput: something given cannot be used.
        SystemExit: 1 where the two do not agree.
    """
    if not import_(**_parse("import", import_, argv)):
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
    """Write a checkpoint as one Keras .h5 that loads with a plain load_model(path), or in other formats made of it.

    Args:
        ckpt: checkpoint of `lightning fit`, such as RUN/best.ckpt.
        out: the .h5 to write; an existing one is replaced once the new one is whole. Other formats go beside it, as
            OUT_saved_model, OUT.onnx, OUT.tflite and OUT_int8.tflite; for a single one any other name is its place.
        input_range: what the twin takes: `unit`, values 0 to 1, or `raw`, values 0 to 255.
        fuse_batchnorm: fold every BatchNorm into the convolution before it: fewer layers, for predicting only.
        format: some of keras, saved_model, onnx, tflite, tflite_int8, with commas between; or all. All but a single
            keras are compared with torch before they are put in place.
        photos: folder with photos, at any depth, to compare formats other than a single keras on (for that one there
            is `lightning parity`); tflite_int8 needs it. Where its folders are the classes, accuracy is compared too.
        temperature: divide the logits by a number, or by the one that `lightning fit` fitted: `fitted`. What is
            exported is then OUT_calibrated.ckpt, written beside: its last layer has the temperature in it. Labels stay.

    Returns:
        Whether all formats are the network that was trained.
    """
    from export.formats import FORMATS, Photos, print_formats, write_formats

    formats = _chosen("--format", format, FORMATS)
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
        pixels = _pixels_of(files, source.image_size, source.interpolation)
        judges = Photos(pixels, [str(file) for file in files], labels)
    made, versions = write_formats(ckpt, out, formats, input_range, judges, fuse_batchnorm)
    print_formats(made, versions)
    return all(each.passed for each in made)


def _calibrated(ckpt: Path, out: Path, temperature: float | str) -> Path:
    """Write the checkpoint with the temperature in it beside what is to be exported; return its place."""
    from export.calibrated import Fitted, fitted_temperature, write_calibrated

    fitted = fitted_temperature(ckpt) if isinstance(temperature, str) else Fitted(float(temperature), None)
    if fitted.doubt:
        print(fitted.doubt)
    place = out.with_name(f"{out.stem}_calibrated.ckpt")
    write_calibrated(ckpt, place, fitted.temperature)
    print(f"{place}: logits divided by {fitted.temperature:.4f}; what follows is its twin")
    return place


def parity(
    ckpt: Path,
    model: Path,
    photos: Path | None = None,
    json: Path | None = None,
    html: Path | None = None,
    keras_python: list[Path] | None = None,
    second_opinions: str = "",
) -> bool:
    """Prove that a .h5 computes what its checkpoint computes. The last line is the verdict.

    Args:
        ckpt: checkpoint of `lightning fit`, such as RUN/best.ckpt.
        model: the .h5 that is claimed to be its twin.
        photos: folder with photos, at any depth, that go through both; without it only synthetic images do.
        json: file for the whole report.
        html: file for the report as one page.
        keras_python: interpreter whose Keras judges; may be given several times, and then all must pass: the exit code
            is 1 if the twins differ under any of them, else 3 if any crashed, else 2 if any could not be asked. The
            others' reports are written all the same. Without it this environment's.
        second_opinions: further roads to the same probabilities: some of tf2onnx, onnx2tf, with commas between; or all.

    Returns:
        Whether all checks passed, under every Keras.

    Raises:
        BadInput: something given cannot be used; of several interpreters, if none crashed and the twins differ nowhere.
        KerasFailed: a Keras crashed or ran out of time; of several, if the twins differ nowhere.
    """
    from datamodule.photo_store import load_photo
    from export.proof.page import write_page
    from export.proof.parity import Pair, check_parity
    from export.proof.report import PASS, print_report, verdict_of, write_json
    from export.proof.second_opinions import OPINIONS

    if json is not None and json == html:
        raise BadInput(f"--json and --html: expected two files, received {json} twice. Name another.")
    for option, place in (("--json", json), ("--html", html)):
        if place:
            check_report_place(option, place, ckpt, model)
    opinions = _chosen("--second_opinions", second_opinions, OPINIONS)
    files = list_photo_files(photos) if photos else []
    pixels = None
    if files:
        from export.checkpoint import read_checkpoint

        source = read_checkpoint(ckpt)
        pixels = _pixels_of(files, source.image_size, source.interpolation)
    pair = Pair(ckpt, model, pixels, [str(file) for file in files], files, load_photo)
    reports: list[Report] = []
    failures: list[tuple[str, BadInput | KerasFailed]] = []
    interpreters: list[Path | None] = [*keras_python] if keras_python else [None]
    try:
        for python in interpreters:
            try:
                # Other roads do not hang on which Keras judges: they are asked once.
                asked = [] if reports else opinions
                reports.append(check_parity(pair, python, progress=_say, opinions=asked))
            except (BadInput, KerasFailed) as error:
                if len(interpreters) == 1:
                    raise
                failures.append((str(python), error))
                print(f"lightning: {python}: not checked: {error}", file=sys.stderr)
            else:
                print_report(reports[-1])
    finally:  # whatever came after them
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
    """What goes on, for whoever waits: beside the report, which is on stdout."""
    print(f"{text} ...", file=sys.stderr, flush=True)


def _raise_worst(failures: list[tuple[str, BadInput | KerasFailed]]) -> NoReturn:
    """Say of which interpreters nothing is known: as a crash, if there was one, else as bad input."""
    names = ", ".join(dict.fromkeys(name for name, _ in failures))
    kind = KerasFailed if any(isinstance(error, KerasFailed) for _, error in failures) else BadInput
    raise kind(
        f"--keras_python: expected interpreters whose Keras checks the file, received {names}, which did not: see "
        "above. Mend those or leave them out."
    )


def _pixels_of(files: list[Path], image_size: tuple[int, int], interpolation: str) -> "np.ndarray":
    """Pixels of all photos, uint8 (N, H, W, 3).

    Raises:
        BadInput: some cannot be read.
    """
    from datamodule.photo_store import PhotoStore

    store = PhotoStore(image_size, interpolation)
    bad = store.add(files)
    if bad:
        names = "\n".join(map(str, bad))
        raise BadInput(
            f"--photos: expected readable photos, received {len(bad)} of {len(files)} that are not:\n{names}\n"
            "Mend or remove them."
        )
    return store.photos_of(files)


def import_(
    model: Path,
    out: Path,
    class_names: str | None = None,
    labels: Path | None = None,
    photos_root: Path | None = None,
    image_size: str | None = None,
    interpolation: str | None = None,
    input_range: Literal["unit", "raw", "tf"] | None = None,
    check: bool = True,
    json: Path | None = None,
    keras_python: Path | None = None,
) -> bool:
    """Read a Keras MobileNetV2 classifier into a checkpoint, and prove that both compute the same.

    The base may be nested as one layer or flat, saved by Keras 2 or 3, or by `lightning export`. The last line is the
    verdict; nothing is written unless it is PASS.

    Args:
        model: the Keras .h5.
        out: the checkpoint to write; an existing one is replaced once the new one is whole and proved.
        class_names: names of the classes in the order of the outputs, separated by commas.
        labels: labels.json that names the classes (and may give interpolation), as `lightning fit` writes it.
        photos_root: folder with one folder of photos per class: their sorted names are the classes, and the photos go
            through both sides.
        image_size: one number, or `h,w`, where the model takes any size.
        interpolation: how photos are resized; `nearest`, Keras's own, unless the file says otherwise.
        input_range: what the model takes where its layers do not show it: `unit`, values 0 to 1, `raw`, values 0 to
            255, or `tf`, values -1 to 1.
        check: whether a real Keras judges; false writes the checkpoint unproved.
        json: file for the whole report.
        keras_python: interpreter whose Keras judges; without it this environment's.

    Returns:
        Whether all checks passed.
    """
    from export.import_keras import ImportDiffers, write_import
    from export.keras_to_torch import Wishes, read_keras_classifier
    from export.proof.report import PASS, print_report, write_json

    if json:
        check_report_place("--json", json, model, out)
    stated = read_labels(labels) if labels else {}
    names = [name.strip() for name in class_names.split(",")] if class_names else stated.get("class_names")
    if photos_root and not names:
        names = _folder_names(photos_root)
    interpolation = stated.get("interpolation") if interpolation is None else interpolation
    classifier = read_keras_classifier(model, Wishes(names, _height_and_width(image_size), interpolation, input_range))
    files = list_photo_files(photos_root) if photos_root and check else []
    pixels = _pixels_of(files, classifier.image_size, classifier.interpolation) if files else None
    photo_names = [str(file) for file in files]
    try:
        report = write_import(classifier, out, pixels, photo_names, check=check, keras_python=keras_python)
    except ImportDiffers as differs:
        report = differs.report
    for note in classifier.notes:
        print(note)
    if report is None or report.verdict == PASS:
        network = classifier.network
        height, width = classifier.image_size
        print(
            f"{out}: {network.backbone_name}, {len(classifier.class_names)} classes, {height} x {width} pixels, "
            f"padding {network.pad_type or 'symmetric'}, epsilon {network.bn_eps:g}; the Keras model takes "
            f"{classifier.input_range}"
        )
    if report is None:
        print("not proved: --check false")
        return True
    print_report(report)
    if json:
        write_json([report], json)
    return report.verdict == PASS


def read_labels(path: Path) -> dict[str, Any]:
    """What a labels.json says, `class_names` at least; a plain list of names will do.

    Raises:
        BadInput: it cannot be read, or has no names.
    """
    from json import loads

    try:
        content = loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(
            f"--labels: expected a labels.json, received {path}, which cannot be read: {error}. Check the file."
        ) from error
    names = content.get("class_names") if isinstance(content, dict) else content
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise BadInput(
            f"--labels: expected class_names in {path}, a list of names, received {str(names)[:80]}. Give the "
            "labels.json of a run, or --class_names."
        )
    return {**content, "class_names": names} if isinstance(content, dict) else {"class_names": names}


def _folder_names(root: Path) -> list[str]:
    """Names of the folders in a folder, sorted as flow_from_directory sorts them."""
    if not root.is_dir():
        raise BadInput(f"--photos_root: expected a folder with one folder per class, received {root}. Check the path.")
    return sorted(each.name for each in root.iterdir() if each.is_dir() and not each.name.startswith("."))


def _height_and_width(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    parts = text.strip("[]() ").split(",")
    if len(parts) not in (1, 2) or not all(part.strip().isdigit() and int(part) for part in parts):
        raise BadInput(f"--image_size: expected one number of pixels or h,w, received {text!r}. Give --image_size 224.")
    sides = [int(part) for part in parts]
    return sides[0], sides[-1]


def list_photo_files(folder: Path) -> list[Path]:
    """Return the photos in a folder, at any depth, sorted.

    Raises:
        BadInput: there is no such folder, or it has no photos.
    """
    from datamodule.split import list_photos

    if not folder.is_dir():
        raise BadInput(f"--photos: expected a folder, received {folder}, which is not one. Check the path.")
    files = list_photos(folder)
    if not files:
        raise BadInput(
            f"--photos: expected photos (.jpg, .png, .bmp, .ppm, .tif) in {folder}, received none. "
            "Name the folder that has them."
        )
    return files


def _chosen(option: str, text: str, known: Iterable[str]) -> list[str]:
    """Names from a list with commas, each once; `all` stands for all of them, and nothing for none.

    Raises:
        BadInput: a name that is not known.
    """
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    known = list(known)
    if names == ["all"]:
        return known
    unknown = [name for name in names if name not in known]
    if unknown:
        raise BadInput(f"{option}: expected some of {', '.join(known)}, or all, received {unknown[0]!r}. Name those.")
    return names


def _parse(name: str, function: Callable, argv: list[str], repeatable: Iterable[str] = ()) -> dict[str, Any]:
    """Parse a function's arguments; options in `repeatable` may be given several times."""
    spelled = [underscored(each) for each in argv[1:]]  # --keras-python is --keras_python: both are in use
    given: list[str] = []
    for each in spelled:
        if given and given[-1] in _FLAGS:  # a flag may have a value, and needs none
            given[-1] += f"={each}" if each in ("true", "false") else "=true"
            if each in ("true", "false"):
                continue
        option, equals, value = each.partition("=")
        given.append(f"{option}+{equals}{value}" if option in repeatable else each)
    if given and given[-1] in _FLAGS:
        given[-1] += "=true"
    return parse_for(function, name, given)


def check_report_place(option: str, place: Path, *inputs: Path) -> None:
    """Refuse, before anything costly, a report that could not be written or would replace what it reports on.

    Raises:
        BadInput: the folder is missing or cannot be written, or the file is one of the inputs.
    """
    if place.exists() and any(given.exists() and place.samefile(given) for given in inputs):
        raise BadInput(f"{option}: expected a place for the report, received {place}, which is an input. Name another.")
    if not place.parent.is_dir() or not os.access(place.parent, os.W_OK) or place.is_dir():
        raise BadInput(f"{option}: expected a file in a folder that can be written, received {place}. Name another.")

"""`lightning export` and `lightning parity`: the hand-over and its proof, on their own."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse import ArgumentParser

from lightning_module.cli import COMMANDS, EXIT_MISMATCH, underscored
from models.bad_input import BadInput

if TYPE_CHECKING:
    import numpy as np


_FLAGS = ("--fuse_batchnorm",)
"""Options that need no value."""


def run_export(argv: list[str]) -> None:
    """Parse `export CKPT OUT.h5 [--input_range unit|raw] [--fuse_batchnorm]` and do it.

    Raises:
        BadInput: something given cannot be used.
    """
    export(**_parse("export", export, argv))


def run_parity(argv: list[str]) -> None:
    """Parse `parity CKPT MODEL.h5 [--photos DIR] [--json FILE] [--html FILE] [--keras_python PY ...]` and do it.

    Raises:
        BadInput: something given cannot be used.
        SystemExit: 1 where the twins do not agree.
    """
    if not parity(**_parse("parity", parity, argv)):
        raise SystemExit(EXIT_MISMATCH)


def export(ckpt: Path, out: Path, input_range: Literal["unit", "raw"] = "unit", fuse_batchnorm: bool = False) -> None:
    """Write a checkpoint as one Keras .h5 that loads with a plain load_model(path).

    Args:
        ckpt: checkpoint of `lightning fit`, such as RUN/best.ckpt.
        out: the .h5 to write; an existing one is replaced once the new one is whole.
        input_range: what the twin takes: `unit`, values 0 to 1, or `raw`, values 0 to 255.
        fuse_batchnorm: fold every BatchNorm into the convolution before it: fewer layers, for predicting only.
    """
    from export.hand_over import write_twin

    twin = write_twin(ckpt, out, input_range, fuse_batchnorm)
    print(f"{twin.path}: {twin.layers} Keras layers, {twin.parameters:,} numbers (weights and BatchNorm statistics)")


def parity(
    ckpt: Path,
    model: Path,
    photos: Path | None = None,
    json: Path | None = None,
    html: Path | None = None,
    keras_python: list[Path] | None = None,
) -> bool:
    """Prove that a .h5 computes what its checkpoint computes. The last line is the verdict.

    Args:
        ckpt: checkpoint of `lightning fit`, such as RUN/best.ckpt.
        model: the .h5 that is claimed to be its twin.
        photos: folder with photos, at any depth, that go through both; without it only synthetic images do.
        json: file for the whole report.
        html: file for the report as one page.
        keras_python: interpreter whose Keras judges; may be given several times; without it this environment's.

    Returns:
        Whether all checks passed, under every Keras.
    """
    from datamodule.photo_store import load_photo
    from export.page import write_page
    from export.parity import Pair, check_parity
    from export.report import PASS, print_report, verdict_of, write_json

    for option, place in (("--json", json), ("--html", html)):
        if place:
            _check_report_place(option, place, ckpt, model)
    files = list_photo_files(photos) if photos else []
    pixels = _pixels_of(files, ckpt) if files else None
    pair = Pair(ckpt, model, pixels, [str(file) for file in files], files, load_photo)
    reports = []
    interpreters: list[Path | None] = [*keras_python] if keras_python else [None]
    for python in interpreters:
        reports.append(check_parity(pair, python))
        print_report(reports[-1])
    if json:
        write_json(reports, json)
    if html:
        write_page(reports, html)
    if len(reports) > 1:
        passed = sum(report.verdict == PASS for report in reports)
        print(f"parity {verdict_of(reports)}: under {passed} of {len(reports)} interpreters")
    return verdict_of(reports) == PASS


def _pixels_of(files: list[Path], checkpoint: Path) -> "np.ndarray":
    """Pixels of all photos at the checkpoint's size.

    Raises:
        BadInput: some cannot be read, or the checkpoint cannot.
    """
    from datamodule.photo_store import PhotoStore
    from export.checkpoint import read_checkpoint

    source = read_checkpoint(checkpoint)
    store = PhotoStore(source.image_size, source.interpolation)
    bad = store.add(files)
    if bad:
        names = "\n".join(map(str, bad))
        raise BadInput(
            f"--photos: expected readable photos, received {len(bad)} of {len(files)} that are not:\n{names}\n"
            "Mend or remove them."
        )
    return store.photos_of(files)


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


def _parse(name: str, function: Callable, argv: list[str]) -> dict[str, Any]:
    parser = ArgumentParser(prog=f"lightning {name}", description=COMMANDS[name].summary)
    parser.add_function_arguments(function, as_positional=True)
    # --keras-python is --keras_python: both spellings are in use; and once more means one more
    spelled = [underscored(each) for each in argv[1:]]
    spelled = [f"{each}=true" if each in _FLAGS else each for each in spelled]
    repeated = [re.sub(r"^--keras_python(?=$|=)", "--keras_python+", each) for each in spelled]
    settings: dict[str, Any] = parser.parse_args(repeated).as_dict()
    return settings


def _check_report_place(option: str, place: Path, *inputs: Path) -> None:
    """Refuse, before anything costly, a report that could not be written or would replace what it reports on.

    Raises:
        BadInput: the folder is missing or cannot be written, or the file is one of the inputs.
    """
    if place.exists() and any(given.exists() and place.samefile(given) for given in inputs):
        raise BadInput(f"{option}: expected a place for the report, received {place}, which is an input. Name another.")
    if not place.parent.is_dir() or not os.access(place.parent, os.W_OK) or place.is_dir():
        raise BadInput(f"{option}: expected a file in a folder that can be written, received {place}. Name another.")

"""`lightning export` and `lightning parity`: the hand-over and its proof, on their own."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser

from lightning_module.cli import COMMANDS, EXIT_MISMATCH, underscored
from models.bad_input import BadInput


def run_export(argv: list[str]) -> None:
    """Parse `export CKPT OUT.h5 [--input_range unit|raw]` and do it.

    Raises:
        BadInput: something given cannot be used.
    """
    export(**_parse("export", export, argv))


def run_parity(argv: list[str]) -> None:
    """Parse `parity CKPT MODEL.h5 [--photos DIR] [--json FILE] [--keras_python PY]` and do it.

    Raises:
        BadInput: something given cannot be used.
        SystemExit: 1 where the twins do not agree.
    """
    if not parity(**_parse("parity", parity, argv)):
        raise SystemExit(EXIT_MISMATCH)


def export(ckpt: Path, out: Path, input_range: Literal["unit", "raw"] = "unit") -> None:
    """Write a checkpoint as one Keras .h5 that loads with a plain load_model(path).

    Args:
        ckpt: checkpoint of `lightning fit`, such as RUN/best.ckpt.
        out: the .h5 to write; an existing one is replaced once the new one is whole.
        input_range: what the twin takes: `unit`, values 0 to 1, or `raw`, values 0 to 255.
    """
    from export.hand_over import write_twin

    twin = write_twin(ckpt, out, input_range)
    print(f"{twin.path}: {twin.layers} Keras layers, {twin.parameters:,} numbers (weights and BatchNorm statistics)")


def parity(
    ckpt: Path,
    model: Path,
    photos: Path | None = None,
    json: Path | None = None,
    keras_python: Path | None = None,
) -> bool:
    """Prove that a .h5 computes what its checkpoint computes. The last line is the verdict.

    Args:
        ckpt: checkpoint of `lightning fit`, such as RUN/best.ckpt.
        model: the .h5 that is claimed to be its twin.
        photos: folder with photos, at any depth, that go through both; without it only synthetic images do.
        json: file for the whole report.
        keras_python: interpreter whose Keras judges; without it this environment's.

    Returns:
        Whether all checks passed.
    """
    from export.parity import Pair, check_parity
    from export.report import print_report

    if json:
        _check_report_place(json, ckpt, model)
    files = list_photo_files(photos) if photos else []
    pixels = None
    if files:
        from datamodule.photo_store import PhotoStore
        from export.checkpoint import read_checkpoint

        source = read_checkpoint(ckpt)
        store = PhotoStore(source.image_size, source.interpolation)
        bad = store.add(files)
        if bad:
            names = "\n".join(map(str, bad))
            raise BadInput(
                f"--photos: expected readable photos, received {len(bad)} of {len(files)} that are not:\n{names}\n"
                "Mend or remove them."
            )
        pixels = store.photos_of(files)
    report = check_parity(Pair(ckpt, model, pixels, [str(file) for file in files]), keras_python)
    print_report(report)
    if json:
        report.write_json(json)
    return report.verdict == "PASS"


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
    # --keras-python is --keras_python: both spellings are in use
    settings: dict[str, Any] = parser.parse_args([underscored(each) for each in argv[1:]]).as_dict()
    return settings


def _check_report_place(json: Path, *inputs: Path) -> None:
    """Refuse, before anything costly, a report that could not be written or would replace what it reports on.

    Raises:
        BadInput: the folder is missing or cannot be written, or the file is one of the inputs.
    """
    if json.exists() and any(given.exists() and json.samefile(given) for given in inputs):
        raise BadInput(f"--json: expected a place for the report, received {json}, which is an input. Name another.")
    if not json.parent.is_dir() or not os.access(json.parent, os.W_OK) or json.is_dir():
        raise BadInput(f"--json: expected a file in a folder that can be written, received {json}. Name another.")

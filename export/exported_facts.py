"""What a file of another format says of itself: classes, size, interpolation, range; read without its runtime."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

from models.bad_input import BadInput

FACTS_FILE = "labels.json"
"""As `format_worker.py` names it, in a SavedModel's `assets.extra` and in the archive behind a TFLite model."""
_SAVED_MODEL = "saved_model.pb"
_TFLITE_SIGNATURE = b"TFL3"
"""From the fifth byte on: the identifier of TFLite's flatbuffers."""


def format_of(path: Path) -> str | None:
    """Return which format a file or folder has: `onnx`, `tflite` or `saved_model`; None for anything else.

    A TFLite model is known by its content. ONNX has no signature, so there the name decides.

    Raises:
        BadInput: there is no such file, or it cannot be read.
    """
    if (path / _SAVED_MODEL).is_file():
        return "saved_model"
    if path.suffix.lower() == ".onnx" and path.is_file():
        return "onnx"
    try:
        with path.open("rb") as file:
            return "tflite" if file.read(8)[4:] == _TFLITE_SIGNATURE else None
    except OSError as error:
        raise BadInput(
            f"expected a checkpoint or a Keras .h5, or another file of `lightning export`, received {path}: "
            f"{error.strerror}. `lightning fit` writes RUN/best.ckpt and RUN/model.h5."
        ) from error


def facts_of(path: Path, kind: str) -> dict[str, Any]:
    """Return what a file says of itself, as `export.torch_to_keras.twin_details` names it; empty if it says nothing.

    Args:
        path: the file or folder.
        kind: its format, as `format_of` returns it.

    Raises:
        BadInput: it cannot be read.
    """
    try:
        return _READERS[kind](path)
    except Exception as error:  # protobuf, zipfile and json have each their own, and all mean the same
        raise BadInput(
            f"expected a file of `lightning export --format {kind}`, received {path}, whose facts cannot be read "
            f"({error}). Make it again."
        ) from error


def _of_saved_model(path: Path) -> dict[str, Any]:
    file = path / "assets.extra" / FACTS_FILE
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}


def _of_onnx(path: Path) -> dict[str, Any]:
    import onnx

    texts = {each.key: each.value for each in onnx.load(path, load_external_data=False).metadata_props}
    return {name: json.loads(text) if text.startswith("[") else text for name, text in texts.items()}


def _of_tflite(path: Path) -> dict[str, Any]:
    if not zipfile.is_zipfile(path):
        return {}
    with zipfile.ZipFile(path) as archive:
        return dict(json.loads(archive.read(FACTS_FILE))) if FACTS_FILE in archive.namelist() else {}


_READERS = {"saved_model": _of_saved_model, "onnx": _of_onnx, "tflite": _of_tflite}

"""Weights alone, as ``save_weights`` writes them, and an architecture -> the file that ``model.save`` would write.

So a network whose code is still known comes over like any other, and Keras itself loads what is compared.
"""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import Any

import h5py

from export.keras_file.read import KERAS_ARCHIVE, KERAS_VERSION
from export.worker.keras_process import KERAS_WORKER, run_worker
from export.worker.keras_worker import UNREADABLE, Refused, check_storage
from models.bad_input import BadInput

# No classifier's architecture is as long.
_MOST_JSON = 64 << 20
# Settings of the networks in keras.applications -> how they are read from text.
_SETTINGS: dict[str, Any] = {
    "alpha": float,
    "depth_multiplier": int,
    "minimalistic": lambda text: {"true": True, "false": False}[text.lower()],
    "include_preprocessing": lambda text: {"true": True, "false": False}[text.lower()],
    "size": lambda text: [int(side) for side in text.lower().split("x")],
    "classes": int,
    "classifier_activation": lambda text: None if text.lower() == "none" else text,
}


def given_architecture(text: str, keras_python: Path | None = None) -> dict[str, Any]:
    """The architecture that ``--architecture`` names.

    Args:
        text: a file with what ``model.to_json()`` says, or a network of keras.applications with its settings:
            ``MobileNetV2,alpha=0.35,size=96,classes=4``; what is left out is Keras's default.
        keras_python: interpreter whose Keras is asked for such a network; None: our own.

    Raises:
        BadInput: there is no such file or network.
        KerasFailed: the Keras process crashed or ran out of time.
    """
    name, *settings = (part.strip() for part in text.split(","))
    if not re.fullmatch(r"[A-Z][A-Za-z0-9]*", name) or Path(text).is_file():
        return _read_json(Path(text))
    wanted: dict[str, Any] = {}
    for setting in settings:
        key, _, value = setting.partition("=")
        try:
            wanted[key] = _SETTINGS[key](value)
        except (KeyError, ValueError) as error:
            raise BadInput(
                f"--architecture: expected settings of {', '.join(_SETTINGS)}, each as NAME=VALUE, received "
                f"{setting!r}. Give for example {name},size=224,classes=4"
            ) from error
    request = {"application": {"name": name, "settings": wanted}}
    reply = run_worker(KERAS_WORKER, request, python=keras_python)
    architecture: dict[str, Any] = json.loads(reply["architecture"])
    return architecture


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MOST_JSON:
            raise ValueError(f"more than {_MOST_JSON >> 20} MiB")
        content = json.loads(path.read_text())
        if not isinstance(content, dict) or "config" not in content:
            raise ValueError("no architecture")
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(
            f"--architecture: expected a file with what model.to_json() says, or a network of keras.applications, "
            f"received {path}: {error}. Write the file with open(PATH, 'w').write(model.to_json()), or give for "
            "example MobileNetV2,alpha=0.35,size=96,classes=4"
        ) from error
    return content


def whole_file(weights: Path, architecture: dict[str, Any], folder: Path) -> Path:
    """Put both together, in the form that the weights have: a `.h5`, or a `.keras` archive.

    Args:
        weights: an `.h5` from ``save_weights``; it is only read.
        architecture: from `given_architecture`.
        folder: where the new file is written.

    Raises:
        BadInput: the weights are damaged, or the file holds its own architecture.
    """
    try:
        if zipfile.is_zipfile(weights):
            raise ValueError("it is an archive, which holds its own architecture")
        check_storage(str(weights))
        with h5py.File(weights, "r") as file:
            if "model_config" in file.attrs:
                raise ValueError("it holds its own architecture")
            if any(name.startswith("layer_names") for name in file.attrs):  # Keras splits a long list
                return _as_h5(file, architecture, folder / "whole.h5")
            if "layers" not in file:
                raise BadInput(
                    f"--architecture: expected weights as Keras 3 writes them, or Keras 2 into a name without "
                    f".weights, received {weights} with Keras 2's later form. In the Keras that wrote it: build the "
                    "model, model.load_weights(...), model.save('WHOLE.h5'), and give that file."
                )
    except (Refused, *UNREADABLE) as error:
        raise BadInput(
            f"--architecture: expected weights alone, as save_weights writes them, received {weights}: {error}. Leave "
            "--architecture out for a whole file."
        ) from error
    return _as_archive(weights, architecture, folder / "whole.keras")


def _as_h5(weights: h5py.File, architecture: dict[str, Any], path: Path) -> Path:
    """Mirrors ``save_model_to_hdf5`` in ``keras/src/legacy/saving/legacy_h5_format.py``."""
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps(architecture).encode()
        group = file.create_group("model_weights")
        for name, value in weights.attrs.items():
            group.attrs[name] = value
        for name in weights:
            weights.copy(weights[name], group, name)
        for name, default in (("keras_version", KERAS_VERSION), ("backend", b"tensorflow")):
            file.attrs[name] = architecture.get(name) or weights.attrs.get(name, default)
    return path


def _as_archive(weights: Path, architecture: dict[str, Any], path: Path) -> Path:
    """Mirrors ``_save_model_to_fileobj`` in ``keras/src/saving/saving_lib.py``."""
    metadata = {"keras_version": str(architecture.get("keras_version", "3.0.0")), "date_saved": ""}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", json.dumps(metadata))
        archive.writestr(KERAS_ARCHIVE[0], json.dumps(architecture))
        archive.write(weights, KERAS_ARCHIVE[1])
    return path

"""Keras HDF5 (`.h5`) -> architecture, weights and facts, without Keras. Damaged or hostile files are refused."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from export.worker.keras_worker import GOLDEN_GROUP, UNREADABLE, Refused, check_storage
from models.bad_input import BadInput

# Tells Keras which generation's weight layout the file has; 2.x is the one that every Keras accepts.
KERAS_VERSION = b"2.10.0"
# The attribute with the facts about the network that Keras has no place for, as JSON.
DETAILS_ATTRIBUTE = "shelftwin"


@dataclass(frozen=True)
class KerasFile:
    """The contents of a Keras `.h5`.

    Attributes:
        config: the model's architecture, Keras's ``model_config``.
        training_config: loss, metrics and optimiser; None if the file has none.
        details: ShelfTwin's own facts (class names, input range, ...); empty for files by others.
        weights: layer name -> its arrays in Keras's order and layout.
        weight_names: layer name -> the arrays' names in the file, in the same order.
        marks: everything else in the file: version and backend of the Keras that saved it, and further groups.
    """

    config: dict[str, Any]
    training_config: dict[str, Any] | None
    details: dict[str, Any]
    weights: dict[str, list[np.ndarray]]
    weight_names: dict[str, list[str]]
    marks: dict[str, str]

    @property
    def generation(self) -> int:
        """2 or 3: which Keras saved it, or rather whose form it has, as our own files have Keras 2's."""
        return 3 if self.marks.get("keras_version", "2").startswith("3") else 2


def read_keras_file(path: Path) -> KerasFile:
    """Stub."""
    return read_keras_h5(path)


def read_keras_h5(path: Path) -> KerasFile:
    """Read a Keras `.h5` without Keras.

    Raises:
        BadInput: the file is missing, is not HDF5, or holds no Keras model.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise BadInput(f"expected a Keras .h5 file, got {path}, which {what}. Check the path.")
    try:
        check_storage(str(path))
        with h5py.File(path, "r") as file:
            if "layer_names" in file.attrs and "model_weights" not in file:
                raise BadInput(
                    f"expected a Keras .h5 with architecture and weights, got {path}, which has weights alone, as "
                    "save_weights writes them. Save the whole model: model.save(PATH)."
                )
            return file_contents(file)
    except Refused as refused:
        raise BadInput(
            f"expected a Keras .h5 as Keras or this project saves it, got one that is refused: {refused}. Save it "
            "again in the Keras that it comes from, or export it again with: lightning export CKPT OUT.h5"
        ) from refused
    except UNREADABLE as error:
        raise BadInput(
            f"expected a Keras .h5 file with architecture and weights, got {path}, which cannot be read as one "
            f"({type(error).__name__}: {error}). Name another, or export it again with: lightning export CKPT OUT.h5"
        ) from error


def file_contents(file: h5py.File) -> KerasFile:
    """Read an open file without any checks; if something cannot be read, h5py's or json's exception is raised."""
    weights, names = _read_weights(file["model_weights"])
    return KerasFile(
        config=_json_attribute(file, "model_config"),
        training_config=_json_attribute(file, "training_config") if "training_config" in file.attrs else None,
        details=_json_attribute(file, DETAILS_ATTRIBUTE) if DETAILS_ATTRIBUTE in file.attrs else {},
        weights=weights,
        weight_names=names,
        marks=_marks(file),
    )


def _json_attribute(file: h5py.File, name: str) -> dict[str, Any]:
    value = file.attrs[name]
    content = json.loads(value.decode() if isinstance(value, bytes) else value)
    if not isinstance(content, dict):
        raise ValueError(f"{name} is no JSON object")
    return content


# What our own files contain besides architecture, training configuration, details and weights.
OWN_MARKS = {
    "backend": "tensorflow",
    "keras_version": KERAS_VERSION.decode(),
    "model_weights/backend": "tensorflow",
    "model_weights/keras_version": KERAS_VERSION.decode(),
    "groups": f"model_weights {GOLDEN_GROUP}",
}


def _marks(file: h5py.File) -> dict[str, str]:
    elsewhere = ("model_config", "training_config", DETAILS_ATTRIBUTE, "layer_names")
    places = {"": file, "model_weights/": file["model_weights"]}
    marks = {
        place + name: value.decode(errors="replace") if isinstance(value, bytes) else str(value)
        for place, group in places.items()
        for name, value in group.attrs.items()
        if name not in elsewhere
    }
    return {**marks, "groups": " ".join(sorted(file))}


def _read_weights(group: h5py.Group) -> tuple[dict[str, list[np.ndarray]], dict[str, list[str]]]:
    """Arrays and their names by layer. Each dataset of the group must be listed exactly once."""
    weights, names = {}, {}
    for layer_name in _names(group, "layer_names"):
        layer_group = group[layer_name]
        names[layer_name] = _names(layer_group, "weight_names")
        weights[layer_name] = [layer_group[name][()] for name in names[layer_name]]
    listed = sorted(f"{layer}/{name}" for layer, each in names.items() for name in each)
    stored: list[str] = []
    group.visititems(lambda name, item: stored.append(name) if isinstance(item, h5py.Dataset) else None)
    if listed != sorted(stored):
        different = sorted(set(listed) ^ set(stored)) or listed
        raise ValueError(f"{different[0]} is not both stored and listed, once")
    return weights, names


def _names(group: h5py.Group, attribute: str) -> list[str]:
    return [name.decode() if isinstance(name, bytes) else str(name) for name in group.attrs[attribute]]

"""Keras layers -> Keras HDF5 (`.h5`), with h5py alone, without TensorFlow.

The file keeps to the common subset of tf.keras 2.4 to 2.15, tf_keras and Keras 3, found by experiment: built-in layers
only, ``batch_input_shape``, nested ``inbound_nodes`` lists, and no key that one of them refuses. Keras's own save is
never used, because its files load only in the generation of Keras that wrote them.
"""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from export.keras_file.golden import Golden, write_golden
from export.keras_file.keras_layer import KerasLayer
from export.keras_file.read import DETAILS_ATTRIBUTE, KERAS_VERSION, file_contents, names_attributes
from export.worker.keras_worker import read_golden
from models.atomic_write import replacing


def training_config(learning_rate: float) -> dict[str, Any]:
    """Keras's ``training_config``: in both generations the model loads compiled and can be trained further.

    Args:
        learning_rate: Adam's.
    """
    adam = {"name": "Adam", "learning_rate": learning_rate, "beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-7}
    return {
        "loss": "categorical_crossentropy",
        "metrics": ["accuracy"],
        "weighted_metrics": None,
        "loss_weights": None,
        "optimizer_config": {"class_name": "Adam", "config": {**adam, "amsgrad": False}},
    }


def write_keras_h5(
    path: Path,
    layers: list[KerasLayer],
    *,
    model_name: str,
    details: dict[str, Any],
    training: dict[str, Any] | None,
    frozen: frozenset[str] = frozenset(),
    golden: Golden | None = None,
) -> None:
    """Write the layers as one Keras `.h5`, atomically: temporary file, fsync, reload, compare, rename.

    Args:
        path: where to write it; its folder must exist. An existing file is replaced only by a complete, verified one.
        layers: from `keras_layers`, in order.
        model_name: the Keras model's name.
        details: facts as plain JSON types, for the file's attribute ``shelftwin``.
        training: from `training_config`; None: the model loads without being compiled.
        frozen: names of the layers that Keras must not train; if BatchNorm, it also runs in inference mode.
        golden: images and torch's answers, with which ``keras_worker.py verify`` checks the file.

    Raises:
        BadInput: the file cannot be written there (folder, permissions, full disk).
        RuntimeError: the file does not read back as it was written.
    """
    config = model_config(layers, model_name, frozen)
    with replacing(path) as temporary:
        with h5py.File(temporary, "w") as file:
            file.attrs["keras_version"] = KERAS_VERSION
            file.attrs["backend"] = b"tensorflow"
            # h5py stores bytes as a variable-length string, which has no 64 KiB limit
            file.attrs["model_config"] = json.dumps(config).encode()
            if training is not None:
                file.attrs["training_config"] = json.dumps(training).encode()
            file.attrs[DETAILS_ATTRIBUTE] = json.dumps(details).encode()
            _write_weights(file.create_group("model_weights"), layers)
            if golden is not None:
                write_golden(file, golden, {layer.name: [array for *_, array in layer.weights] for layer in layers})
        _verify(temporary, config, layers)
        if golden is not None:
            _verify_golden(temporary)


def model_config(layers: list[KerasLayer], model_name: str, frozen: frozenset[str]) -> dict[str, Any]:
    """Keras's ``model_config``: the architecture, in a form that every Keras reads."""
    return {
        "class_name": "Functional",
        "config": {
            "name": model_name,
            "layers": [_layer_config(layer, layer.name not in frozen) for layer in layers],
            # the nested form: the flat one fails in Keras 3.0 to 3.3
            "input_layers": [[layers[0].name, 0, 0]],
            "output_layers": [[layers[-1].name, 0, 0]],
        },
    }


def _layer_config(layer: KerasLayer, trainable: bool) -> dict[str, Any]:
    config = {"name": layer.name, "dtype": "float32", **layer.config}
    if layer.class_name != "InputLayer":
        config["trainable"] = trainable
    # the nested list of Keras 2: it does not read Keras 3's dict form
    inbound = [[[name, 0, 0, {}] for name in layer.inputs]] if layer.inputs else []
    return {"class_name": layer.class_name, "name": layer.name, "config": config, "inbound_nodes": inbound}


def _write_weights(group: h5py.Group, layers: list[KerasLayer]) -> None:
    group.attrs.update(names_attributes("layer_names", [layer.name for layer in layers]))
    group.attrs["backend"] = b"tensorflow"
    group.attrs["keras_version"] = KERAS_VERSION
    for layer in layers:
        layer_group = group.create_group(layer.name)
        names = [f"{layer.name}/{name}:0" for name, _, _ in layer.weights]
        layer_group.attrs.update(names_attributes("weight_names", names))
        for name, _, array in layer.weights:
            layer_group.create_dataset(f"{layer.name}/{name}:0", data=np.ascontiguousarray(array))


def _verify(path: Path, config: dict[str, Any], layers: list[KerasLayer]) -> None:
    with h5py.File(path, "r") as file:  # no `check_storage`: we wrote the file ourselves a moment ago
        written = file_contents(file)
    if written.config != config:
        raise RuntimeError(f"{path}: the architecture does not read back as it was written; the disk may be failing.")
    for layer in layers:
        arrays = written.weights[layer.name]
        for (name, _, array), back in zip(layer.weights, arrays, strict=True):
            if array.dtype != back.dtype or array.tobytes() != back.tobytes():
                raise RuntimeError(f"{path}: {layer.name}/{name} does not read back as it was written.")


def _verify_golden(path: Path) -> None:
    back = read_golden(str(path))
    if any(back.stored[part] != digest for part, digest in back.actual.items()):
        raise RuntimeError(f"{path}: the golden images do not read back as they were written; the disk may be failing.")


def own_version() -> str:
    """The version of this project, as files state it."""
    try:
        return version("shelftwin")
    except PackageNotFoundError:  # run from a checkout that was never installed
        return "unknown"

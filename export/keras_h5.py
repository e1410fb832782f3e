"""Neutral graph <-> Keras HDF5 (`.h5`), with h5py alone: no TensorFlow is needed to write or to read it.

The file keeps to the common subset of tf.keras 2.4 to 2.15, tf_keras and Keras 3, found by experiment: built-in layers
only, ``batch_input_shape``, nested ``inbound_nodes`` lists, no key that one of them refuses. It is never written
through Keras's own save, whose files load only in the generation that wrote them.

Layout in the file is Keras's: activations NHWC, convolution kernels (kh, kw, in, out), depthwise kernels
(kh, kw, C, 1), dense kernels (in, out).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from export.graph import Graph, Node
from models.bad_input import BadInput

# Read by every Keras as "weights are in this generation's layout"; 2.x is the one that all of them accept.
_KERAS_VERSION = b"2.10.0"
# Where the facts about the network that Keras has no place for travel, as JSON.
DETAILS_ATTRIBUTE = "shelftwin"

# Keras order of a layer's weights; they are loaded by order.
_WEIGHT_ORDER = {
    "Conv2D": ("kernel", "bias"),
    "DepthwiseConv2D": ("depthwise_kernel", "bias"),
    "BatchNormalization": ("gamma", "beta", "moving_mean", "moving_variance"),
    "Dense": ("kernel", "bias"),
}


@dataclass(frozen=True)
class KerasLayer:
    """One Keras layer, ready to be written.

    Attributes:
        class_name: of a built-in Keras layer.
        name: of the layer.
        config: its constructor's arguments, without ``name``, ``trainable`` and ``dtype``.
        inputs: names of the layers it reads.
        weights: (Keras weight name, tensor name in the torch state dict, array in Keras layout), in Keras's order.
    """

    class_name: str
    name: str
    config: dict[str, Any]
    inputs: tuple[str, ...]
    weights: tuple[tuple[str, str, np.ndarray], ...] = ()


@dataclass(frozen=True)
class KerasFile:
    """What is in a Keras `.h5`.

    Attributes:
        config: the model's architecture, Keras's ``model_config``.
        training_config: loss, metrics and optimiser; None if the file has none.
        details: ShelfTwin's own facts (class names, input range, ...); empty for other files.
        weights: layer name -> its arrays in Keras's order and layout.
    """

    config: dict[str, Any]
    training_config: dict[str, Any] | None
    details: dict[str, Any]
    weights: dict[str, list[np.ndarray]]


# Graph node -> Keras layers ------------------------------------------------------------------------------------------


def keras_layers(graph: Graph, input_range: str = "unit") -> list[KerasLayer]:
    """Translate the graph into Keras layers; one per node, and a ZeroPadding2D where SAME pads differently.

    Args:
        graph: the neutral graph.
        input_range: ``unit`` (the model takes [0, 1]) or ``raw`` (it takes 0..255 and divides first).
    """
    image = graph.nodes[0]
    channels, height, width = image.shape
    layers = [KerasLayer("InputLayer", image.name, {"batch_input_shape": [None, height, width, channels]}, ())]
    renamed = {image.name: image.name}
    if input_range == "raw":
        rescale = {"scale": [1 / 255] * channels, "offset": [0.0] * channels}
        layers.append(KerasLayer("Rescaling", "rescale_raw", rescale, (image.name,)))
        renamed[image.name] = "rescale_raw"
    elif input_range != "unit":
        raise BadInput(f"input_range must be 'unit' ([0, 1]) or 'raw' (0..255), got {input_range!r}.")
    for node in graph.nodes[1:]:
        inputs = tuple(renamed[name] for name in node.inputs)
        layers.extend(_LAYERS[node.op](graph, node, inputs))
        renamed[node.name] = node.name
    return layers


def _same_padding(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """(before, after) that TensorFlow's SAME adds along one axis of `size` pixels: the odd pixel comes after."""
    total = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return total // 2, total - total // 2


def _conv2d(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    kernel = graph.tensors[node.weights["kernel"]]
    out_channels, in_per_group, rows, columns = kernel.shape
    in_channels, height, width = graph.node(node.inputs[0]).shape
    strides, dilation, groups = node.attributes["strides"], node.attributes["dilation"], node.attributes["groups"]
    top, bottom, left, right = node.attributes["padding"]
    same = (
        *_same_padding(height, rows, strides[0], dilation[0]),
        *_same_padding(width, columns, strides[1], dilation[1]),
    )
    config: dict[str, Any] = {
        "kernel_size": [rows, columns],
        "strides": list(strides),
        "padding": "valid",
        "dilation_rate": list(dilation),
        "use_bias": "bias" in node.weights,
        "data_format": "channels_last",
    }
    if (top, bottom, left, right) == same and any(same):
        config["padding"] = "same"
    elif any((top, bottom, left, right)):
        pad_name = _pad_name(node.name)
        pad_config = {"padding": [[top, bottom], [left, right]], "data_format": "channels_last"}
        yield KerasLayer("ZeroPadding2D", pad_name, pad_config, inputs)
        inputs = (pad_name,)
    bias = [("bias", node.weights["bias"], graph.tensors[node.weights["bias"]])] if "bias" in node.weights else []
    if groups == in_channels == out_channels and in_per_group == 1 and groups > 1:
        # torch (C, 1, kh, kw) -> Keras (kh, kw, C, 1)
        weight = ("depthwise_kernel", node.weights["kernel"], kernel.transpose(2, 3, 0, 1))
        yield KerasLayer("DepthwiseConv2D", node.name, config, inputs, (weight, *bias))
        return
    config["filters"] = out_channels
    if groups != 1:
        config["groups"] = groups
    # torch (out, in, kh, kw) -> Keras (kh, kw, in, out)
    weight = ("kernel", node.weights["kernel"], kernel.transpose(2, 3, 1, 0))
    yield KerasLayer("Conv2D", node.name, config, inputs, (weight, *bias))


def _pad_name(conv_name: str) -> str:
    """keras.applications calls the padding of block_1_depthwise block_1_pad."""
    return conv_name.removesuffix("_depthwise") + "_pad"


def _batch_norm(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    config = {"epsilon": node.attributes["epsilon"], "momentum": node.attributes["momentum"]}
    config |= {"center": "beta" in node.weights, "scale": "gamma" in node.weights}
    weights = tuple(
        (role, node.weights[role], graph.tensors[node.weights[role]])
        for role in _WEIGHT_ORDER["BatchNormalization"]
        if role in node.weights
    )
    yield KerasLayer("BatchNormalization", node.name, config, inputs, weights)


def _dense(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    kernel = graph.tensors[node.weights["kernel"]]
    weights = [("kernel", node.weights["kernel"], kernel.T)]  # torch (out, in) -> Keras (in, out)
    if "bias" in node.weights:
        weights.append(("bias", node.weights["bias"], graph.tensors[node.weights["bias"]]))
    config = {"units": kernel.shape[0], "activation": "linear", "use_bias": "bias" in node.weights}
    yield KerasLayer("Dense", node.name, config, inputs, tuple(weights))


def _simple(class_name: str, config_of: Callable[[Node], dict[str, Any]]) -> _Emit:
    """A layer without weights, its configuration from the node's attributes."""

    def emit(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
        yield KerasLayer(class_name, node.name, config_of(node), inputs)

    return emit


_Emit = Callable[[Graph, Node, tuple[str, ...]], Iterator[KerasLayer]]
_LAYERS: dict[str, _Emit] = {
    "affine": _simple(
        "Rescaling", lambda node: {"scale": list(node.attributes["scale"]), "offset": list(node.attributes["offset"])}
    ),
    "conv2d": _conv2d,
    "batch_norm": _batch_norm,
    "relu": _simple("ReLU", lambda node: {"max_value": node.attributes["max_value"]}),
    "add": _simple("Add", lambda node: {}),
    "global_average_pool": _simple("GlobalAveragePooling2D", lambda node: {"data_format": "channels_last"}),
    "dropout": _simple("Dropout", lambda node: {"rate": node.attributes["rate"]}),
    "dense": _dense,
    "softmax": _simple("Activation", lambda node: {"activation": "softmax"}),
}


# Writing --------------------------------------------------------------------------------------------------------------


def training_config(learning_rate: float) -> dict[str, Any]:
    """Keras's ``training_config``: loads compiled and trains on in both generations.

    Args:
        learning_rate: of Adam.
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
    training: dict[str, Any],
    frozen: frozenset[str] = frozenset(),
) -> None:
    """Write the layers as one Keras `.h5`, atomically: temporary file, fsync, reload, compare, rename.

    Args:
        path: where to; its folder must exist. An older file there is replaced only by a whole, verified one.
        layers: from `keras_layers`, in order.
        model_name: the Keras model's name.
        details: plain JSON facts kept in the file's attribute ``shelftwin``.
        training: from `training_config`.
        frozen: names of the layers that Keras must not train (and whose BatchNorm it must run in inference mode).

    Raises:
        BadInput: when it cannot be written there (folder, permissions, full disk).
        RuntimeError: when what was written does not read back the same.
    """
    config = _model_config(layers, model_name, frozen)
    with _replacing(path) as temporary:
        with h5py.File(temporary, "w") as file:
            file.attrs["keras_version"] = _KERAS_VERSION
            file.attrs["backend"] = b"tensorflow"
            # bytes become a variable-length string, which has no 64 KiB limit
            file.attrs["model_config"] = json.dumps(config).encode()
            file.attrs["training_config"] = json.dumps(training).encode()
            file.attrs[DETAILS_ATTRIBUTE] = json.dumps(details).encode()
            _write_weights(file.create_group("model_weights"), layers)
        _verify(temporary, config, layers)


def _model_config(layers: list[KerasLayer], model_name: str, frozen: frozenset[str]) -> dict[str, Any]:
    return {
        "class_name": "Functional",
        "config": {
            "name": model_name,
            "layers": [_layer_config(layer, layer.name not in frozen) for layer in layers],
            # nested form: the flat one fails in Keras 3.0 to 3.3
            "input_layers": [[layers[0].name, 0, 0]],
            "output_layers": [[layers[-1].name, 0, 0]],
        },
    }


def _layer_config(layer: KerasLayer, trainable: bool) -> dict[str, Any]:
    config = {"name": layer.name, "dtype": "float32", **layer.config}
    if layer.class_name != "InputLayer":
        config["trainable"] = trainable
    # old-style inbound nodes: a Keras 3 dict form is refused by Keras 2
    inbound = [[[name, 0, 0, {}] for name in layer.inputs]] if layer.inputs else []
    return {"class_name": layer.class_name, "name": layer.name, "config": config, "inbound_nodes": inbound}


def _write_weights(group: h5py.Group, layers: list[KerasLayer]) -> None:
    group.attrs["layer_names"] = _fixed_bytes([layer.name for layer in layers])
    group.attrs["backend"] = b"tensorflow"
    group.attrs["keras_version"] = _KERAS_VERSION
    for layer in layers:
        layer_group = group.create_group(layer.name)
        layer_group.attrs["weight_names"] = _fixed_bytes([f"{layer.name}/{name}:0" for name, _, _ in layer.weights])
        for name, _, array in layer.weights:
            layer_group.create_dataset(f"{layer.name}/{name}:0", data=np.ascontiguousarray(array))


def _fixed_bytes(names: list[str]) -> np.ndarray:
    return np.array([name.encode() for name in names], dtype=None if names else "S1")


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Give a temporary file beside `path`; on success flush it to disk and rename it to `path`, else remove it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the rename itself
        finally:
            os.close(folder)
    except OSError as error:
        raise BadInput(
            f"expected a place where {path} can be written, got: {error.strerror or error}. An older file there is "
            "untouched. Free the disk or name another place."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _verify(path: Path, config: dict[str, Any], layers: list[KerasLayer]) -> None:
    written = read_keras_h5(path)
    if written.config != config:
        raise RuntimeError(f"{path}: the architecture does not read back as it was written; the disk may be failing.")
    for layer in layers:
        arrays = written.weights[layer.name]
        for (name, _, array), back in zip(layer.weights, arrays, strict=True):
            if array.dtype != back.dtype or array.tobytes() != back.tobytes():
                raise RuntimeError(f"{path}: {layer.name}/{name} does not read back as it was written.")


# Reading --------------------------------------------------------------------------------------------------------------


def read_keras_h5(path: Path) -> KerasFile:
    """Read a Keras `.h5` without Keras.

    Raises:
        BadInput: if the file is missing, is no HDF5 file, or holds no Keras model.
    """
    if not path.is_file():
        raise BadInput(f"expected a Keras .h5 file, got {path}, which does not exist. Check the path.")
    try:
        with h5py.File(path, "r") as file:
            return KerasFile(
                config=_json_attribute(file, "model_config"),
                training_config=_json_attribute(file, "training_config") if "training_config" in file.attrs else None,
                details=_json_attribute(file, DETAILS_ATTRIBUTE) if DETAILS_ATTRIBUTE in file.attrs else {},
                weights=_read_weights(file["model_weights"]),
            )
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        # h5py raises all of these for damaged or foreign files
        raise BadInput(
            f"expected a Keras .h5 file with architecture and weights, got {path}, which cannot be read as one "
            f"({type(error).__name__}: {error}). Export it again with: lightning export CKPT {path.name}"
        ) from error


def _json_attribute(file: h5py.File, name: str) -> dict[str, Any]:
    value = file.attrs[name]
    return json.loads(value.decode() if isinstance(value, bytes) else value)


def _read_weights(group: h5py.Group) -> dict[str, list[np.ndarray]]:
    weights = {}
    for layer_name in _names(group, "layer_names"):
        layer_group = group[layer_name]
        weights[layer_name] = [layer_group[name][()] for name in _names(layer_group, "weight_names")]
    return weights


def _names(group: h5py.Group, attribute: str) -> list[str]:
    return [name.decode() if isinstance(name, bytes) else str(name) for name in group.attrs[attribute]]

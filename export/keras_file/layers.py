"""Neutral graph -> Keras layers: built-in ones only, and only configuration keys that every Keras accepts.

Layout is Keras's: activations NHWC, convolution kernels (kh, kw, in, out), depthwise kernels (kh, kw, C, 1), dense
kernels (in, out).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from export.graph.nodes import Graph, Node
from models.bad_input import BadInput

# Keras's order of each layer's weights; Keras loads them by order.
_WEIGHT_ORDER = {
    "Conv2D": ("kernel", "bias"),
    "DepthwiseConv2D": ("depthwise_kernel", "bias"),
    "BatchNormalization": ("gamma", "beta", "moving_mean", "moving_variance"),
    "LayerNormalization": ("gamma", "beta"),
    "Dense": ("kernel", "bias"),
}


@dataclass(frozen=True)
class KerasLayer:
    """One Keras layer, ready to be written.

    Attributes:
        class_name: of a built-in Keras layer.
        name: the layer's.
        config: its constructor's arguments, without ``name``, ``trainable`` and ``dtype``.
        inputs: names of the layers that it reads.
        weights: (Keras weight name, tensor name in the torch state dict, array in Keras layout), in Keras's order.
    """

    class_name: str
    name: str
    config: dict[str, Any]
    inputs: tuple[str, ...]
    weights: tuple[tuple[str, str, np.ndarray], ...] = ()


class NoKerasLayer(BadInput):
    """A node that the built-in Keras layers cannot compute exactly."""

    def __init__(self, node: Node, why: str) -> None:
        self.reason = f"{node.op}: {why}"
        super().__init__(
            f"{node.op} in module {node.source!r} has no exact counterpart among Keras's built-in layers: {why}. "
            "torch.onnx.export followed by onnx2tf gives a SavedModel or TFLite file, without the proof."
        )


def keras_layers(graph: Graph, input_range: str = "unit") -> list[KerasLayer]:
    """Translate the graph into Keras layers: one per node, plus a ZeroPadding2D where SAME would pad differently.

    Args:
        graph: the neutral graph.
        input_range: ``unit`` (the model takes [0, 1]) or ``raw`` (it takes 0..255 and divides first).

    Returns:
        The layers in the order in which Keras loads their weights; the first is the input, the last the output.
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
        raise BadInput(f"expected input_range 'unit' ([0, 1]) or 'raw' (0..255), got {input_range!r}. Name one.")
    for node in graph.nodes[1:]:
        inputs = tuple(renamed[name] for name in node.inputs)
        layers.extend(_LAYERS[node.op](graph, node, inputs))
        renamed[node.name] = node.name
    return in_keras_order(layers)


def in_keras_order(layers: list[KerasLayer]) -> list[KerasLayer]:
    """Sort as Keras sorts `model.layers` when it rebuilds a model, because it loads weights in that order.

    Mirrors `map_graph` in `keras/src/ops/function.py` (in Keras 2 `_map_graph_network`): by decreasing distance to the
    output, then by the order in which a depth-first walk from the output reaches the layers.
    """
    by_name = {layer.name: layer for layer in layers}
    distance = {layers[-1].name: 0}
    for layer in reversed(layers):
        for name in layer.inputs:
            distance[name] = max(distance.get(name, 0), distance[layer.name] + 1)
    met: dict[str, int] = {}
    stack = [layers[-1].name]
    while stack:
        name = stack.pop()
        if name not in met:
            met[name] = len(met)
            stack.extend(reversed(by_name[name].inputs))
    return sorted(layers, key=lambda layer: (-distance[layer.name], met[layer.name]))


def same_padding(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """(before, after) that TensorFlow's SAME adds along one axis of `size` pixels; an odd pixel is added after."""
    total = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return total // 2, total - total // 2


def _conv2d(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    kernel = graph.tensors[node.weights["kernel"]]
    out_channels, in_per_group, rows, columns = kernel.shape
    in_channels, height, width = graph.node(node.inputs[0]).shape
    strides, dilation, groups = node.attributes["strides"], node.attributes["dilation"], node.attributes["groups"]
    top, bottom, left, right = node.attributes["padding"]
    same = (
        *same_padding(height, rows, strides[0], dilation[0]),
        *same_padding(width, columns, strides[1], dilation[1]),
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
        yield _zero_padding(pad_name, (top, bottom, left, right), inputs)
        inputs = (pad_name,)
    bias = [("bias", node.weights["bias"], graph.tensors[node.weights["bias"]])] if "bias" in node.weights else []
    if groups == in_channels and in_per_group == 1 and groups > 1:
        # torch (C * multiplier, 1, kh, kw) -> Keras (kh, kw, C, multiplier)
        multiplier = out_channels // in_channels
        if multiplier > 1:
            config["depth_multiplier"] = multiplier
        array = kernel.reshape(in_channels, multiplier, rows, columns).transpose(2, 3, 0, 1)
        weight = ("depthwise_kernel", node.weights["kernel"], array)
        yield KerasLayer("DepthwiseConv2D", node.name, config, inputs, (weight, *bias))
        return
    config["filters"] = out_channels
    if groups != 1:
        config["groups"] = groups
    # torch (out, in, kh, kw) -> Keras (kh, kw, in, out)
    weight = ("kernel", node.weights["kernel"], kernel.transpose(2, 3, 1, 0))
    yield KerasLayer("Conv2D", node.name, config, inputs, (weight, *bias))


def _conv2d_transpose(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    kernel = graph.tensors[node.weights["kernel"]]
    config = {
        "filters": kernel.shape[1],
        "kernel_size": list(kernel.shape[2:]),
        "strides": list(node.attributes["strides"]),
        "padding": "same" if node.attributes["same"] else "valid",
        "use_bias": "bias" in node.weights,
        "data_format": "channels_last",
    }
    # torch (in, out, kh, kw) -> Keras (kh, kw, out, in)
    weights = [("kernel", node.weights["kernel"], kernel.transpose(2, 3, 1, 0))]
    if "bias" in node.weights:
        weights.append(("bias", node.weights["bias"], graph.tensors[node.weights["bias"]]))
    yield KerasLayer("Conv2DTranspose", node.name, config, inputs, tuple(weights))


def _prelu(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    alpha = graph.tensors[node.weights["alpha"]]
    shared = [axis for axis, side in enumerate(alpha.shape[1:], 1) if side == 1 and node.shape[axis] != 1]
    # torch (C, H, W) -> Keras (H, W, C)
    weight = ("alpha", node.weights["alpha"], np.moveaxis(alpha, 0, -1))
    yield KerasLayer("PReLU", node.name, {"shared_axes": shared or None}, inputs, (weight,))


def _pad_name(conv_name: str) -> str:
    """Name a padding as keras.applications does: that of block_1_depthwise is block_1_pad."""
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


def _layer_norm(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    config = {"epsilon": node.attributes["epsilon"], "center": "beta" in node.weights, "scale": "gamma" in node.weights}
    roles = [role for role in _WEIGHT_ORDER["LayerNormalization"] if role in node.weights]
    weights = tuple((role, node.weights[role], graph.tensors[node.weights[role]]) for role in roles)
    yield KerasLayer("LayerNormalization", node.name, config, inputs, weights)


def _channel_scale(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    """A trained factor for each channel: the only built-in layer that can apply one is a 1x1 depthwise convolution."""
    scale = graph.tensors[node.weights["scale"]].reshape(1, 1, -1, 1)
    config = {"kernel_size": [1, 1], "padding": "valid", "use_bias": False, "data_format": "channels_last"}
    yield KerasLayer(
        "DepthwiseConv2D", node.name, config, inputs, (("depthwise_kernel", node.weights["scale"], scale),)
    )


def _hard_sigmoid(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    # Keras 2's own hard_sigmoid is clip(0.2 x + 0.5), not torch's relu6(x + 3) / 6
    shift, ceiling = f"{node.name}_plus_3", f"{node.name}_relu6"
    yield KerasLayer("Rescaling", shift, {"scale": 1.0, "offset": 3.0}, inputs)
    yield KerasLayer("ReLU", ceiling, {"max_value": 6.0}, (shift,))
    yield KerasLayer("Rescaling", node.name, {"scale": 1 / 6, "offset": 0.0}, (ceiling,))


def _hard_swish(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    gate = replace(node, name=f"{node.name}_gate", op="hard_sigmoid")
    yield from _hard_sigmoid(graph, gate, inputs)
    yield KerasLayer("Multiply", node.name, {}, (*inputs, gate.name))


def _leaky_relu(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    # The larger of x and slope * x. LeakyReLU itself would not do: its argument has another name in Keras 3, and
    # TensorFlow rounds the slope to float32 even when computing in float64.
    scaled = f"{node.name}_slope"
    yield KerasLayer("Rescaling", scaled, {"scale": node.attributes["negative_slope"], "offset": 0.0}, inputs)
    yield KerasLayer("Maximum", node.name, {}, (*inputs, scaled))


def _mish(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    # Keras 2 has no mish
    softplus, tanh = f"{node.name}_softplus", f"{node.name}_tanh"
    yield KerasLayer("Activation", softplus, {"activation": "softplus"}, inputs)
    yield KerasLayer("Activation", tanh, {"activation": "tanh"}, (softplus,))
    yield KerasLayer("Multiply", node.name, {}, (*inputs, tanh))


def _upsample(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    how = "bilinear" if node.op == "upsample_bilinear" else "nearest"
    config = {"size": list(node.attributes["factors"]), "interpolation": how, "data_format": "channels_last"}
    yield KerasLayer("UpSampling2D", node.name, config, inputs)


def _slice_channels(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    """No built-in layer slices channels, but one crops columns: swap channels and columns, crop, and swap back."""
    start, stop = node.attributes["start"], node.attributes["stop"]
    channels = graph.node(node.inputs[0]).shape[0]
    turned, cropped = f"{node.name}_turned", f"{node.name}_cropped"
    crop = {"cropping": [[0, 0], [start, channels - stop]], "data_format": "channels_last"}
    yield KerasLayer("Permute", turned, {"dims": [1, 3, 2]}, inputs)
    yield KerasLayer("Cropping2D", cropped, crop, (turned,))
    yield KerasLayer("Permute", node.name, {"dims": [1, 3, 2]}, (cropped,))


def _pooling(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    """Max or average pooling: with `valid` or `same` where that is the stated padding, else after a ZeroPadding2D."""
    before = graph.node(node.inputs[0])
    kernel, strides, padding = (node.attributes[name] for name in ("kernel", "strides", "padding"))
    same = tuple(
        side
        for size, window, stride in zip(before.shape[1:], kernel, strides, strict=True)
        for side in same_padding(size, window, stride, 1)
    )
    config = {"pool_size": list(kernel), "strides": list(strides), "padding": "valid", "data_format": "channels_last"}
    is_max = node.op == "max_pool"
    # with SAME, padding never wins a maximum and is not counted in an average
    if padding == same and any(same) and (is_max or not node.attributes["count_padding"]):
        config["padding"] = "same"
    elif any(padding):
        if (is_max and before.op not in ("relu", "max_pool")) or (not is_max and not node.attributes["count_padding"]):
            raise NoKerasLayer(node, f"padding {padding} with zeros would change the result")
        yield _zero_padding(f"{node.name}_pad", padding, inputs)
        inputs = (f"{node.name}_pad",)
    yield KerasLayer("MaxPooling2D" if is_max else "AveragePooling2D", node.name, config, inputs)


def _global_pool(class_name: str) -> _Emit:
    """Old versions of Keras do not accept `keepdims`, so a Reshape restores the two dimensions."""

    def emit(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
        keep = node.attributes["keep_dimensions"]
        name = f"{node.name}_pool" if keep else node.name
        yield KerasLayer(class_name, name, {"data_format": "channels_last"}, inputs)
        if keep:
            yield KerasLayer("Reshape", node.name, {"target_shape": [1, 1, node.shape[0]]}, (name,))

    return emit


def _pad(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    yield _zero_padding(node.name, node.attributes["padding"], inputs)


def _zero_padding(name: str, padding: tuple[int, int, int, int], inputs: tuple[str, ...]) -> KerasLayer:
    top, bottom, left, right = padding
    config = {"padding": [[top, bottom], [left, right]], "data_format": "channels_last"}
    return KerasLayer("ZeroPadding2D", name, config, inputs)


def _crop(node: Node) -> dict[str, Any]:
    top, bottom, left, right = node.attributes["cropping"]
    return {"cropping": [[top, bottom], [left, right]], "data_format": "channels_last"}


def _resize(node: Node) -> dict[str, Any]:
    return {"height": node.shape[1], "width": node.shape[2], "interpolation": node.attributes["interpolation"]}


def _plain(class_name: str, config_of: Callable[[Node], dict[str, Any]] = lambda node: {}) -> _Emit:
    """A layer without weights, configured from the node's attributes."""

    def emit(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
        yield KerasLayer(class_name, node.name, config_of(node), inputs)

    return emit


# torch's name of an activation -> the name that every Keras knows
_ACTIVATIONS = {
    "silu": "swish",
    **{name: name for name in ("sigmoid", "tanh", "gelu", "elu", "selu", "softplus", "softsign", "exponential")},
}

_Emit = Callable[[Graph, Node, tuple[str, ...]], Iterator[KerasLayer]]
_LAYERS: dict[str, _Emit] = {
    "affine": _plain(
        "Rescaling", lambda node: {"scale": list(node.attributes["scale"]), "offset": list(node.attributes["offset"])}
    ),
    "channel_scale": _channel_scale,
    "conv2d": _conv2d,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "relu": _plain("ReLU", lambda node: {"max_value": node.attributes["max_value"]}),
    "activation": _plain("Activation", lambda node: {"activation": _ACTIVATIONS[node.attributes["function"]]}),
    "hard_sigmoid": _hard_sigmoid,
    "hard_swish": _hard_swish,
    "leaky_relu": _leaky_relu,
    "mish": _mish,
    "prelu": _prelu,
    "elu": _plain("ELU", lambda node: {"alpha": node.attributes["alpha"]}),
    "threshold": _plain("ReLU", lambda node: {"threshold": node.attributes["threshold"]}),
    "conv2d_transpose": _conv2d_transpose,
    "upsample": _upsample,
    "upsample_bilinear": _upsample,
    "resize": _plain("Resizing", _resize),
    "crop": _plain("Cropping2D", _crop),
    "slice_channels": _slice_channels,
    "pad": _pad,
    "max_pool": _pooling,
    "average_pool": _pooling,
    "global_average_pool": _global_pool("GlobalAveragePooling2D"),
    "global_max_pool": _global_pool("GlobalMaxPooling2D"),
    "add": _plain("Add"),
    "subtract": _plain("Subtract"),
    "multiply": _plain("Multiply"),
    "average": _plain("Average"),
    "maximum": _plain("Maximum"),
    "minimum": _plain("Minimum"),
    "reshape": _plain("Reshape", lambda node: {"target_shape": [*node.shape[1:], node.shape[0]]}),
    "concatenate": _plain("Concatenate", lambda node: {"axis": -1}),
    "flatten": _plain("Reshape", lambda node: {"target_shape": [node.shape[0]]}),
    "dropout": _plain("Dropout", lambda node: {"rate": node.attributes["rate"]}),
    "dense": _dense,
    "softmax": _plain("Activation", lambda node: {"activation": "softmax"}),
}

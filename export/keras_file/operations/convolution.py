"""Convolutions and dense layers, with the padding that belongs to them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from export.graph.nodes import Graph, Node
from export.keras_file.keras_layer import (
    Emit,
    KerasLayer,
    same_padding,
    zero_padding,
)


def conv2d(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    """A convolution, after a ZeroPadding2D where its padding is neither none nor SAME; or a depthwise one.

    Keras has no strides together with dilation, and TensorFlow none that differ for a depthwise one. Then every place
    is computed, and a pooling of single places takes those that are wanted.
    """
    kernel = graph.tensors[node.weights["kernel"]]
    out_channels, in_per_group, rows, columns = kernel.shape
    in_channels, height, width = graph.node(node.inputs[0]).shape
    strides, dilation, groups = node.attributes["strides"], node.attributes["dilation"], node.attributes["groups"]
    top, bottom, left, right = node.attributes["padding"]
    depthwise = groups == in_channels and in_per_group == 1 and groups > 1
    picked = strides if max(strides) > 1 and (max(dilation) > 1 or (depthwise and strides[0] != strides[1])) else None
    name = f"{node.name}_whole" if picked else node.name
    strides = (1, 1) if picked else strides
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
        yield zero_padding(pad_name, (top, bottom, left, right), inputs)
        inputs = (pad_name,)
    bias = [("bias", node.weights["bias"], graph.tensors[node.weights["bias"]])] if "bias" in node.weights else []
    if depthwise:
        # torch (C * multiplier, 1, kh, kw) -> Keras (kh, kw, C, multiplier)
        multiplier = out_channels // in_channels
        if multiplier > 1:
            config["depth_multiplier"] = multiplier
        array = kernel.reshape(in_channels, multiplier, rows, columns).transpose(2, 3, 0, 1)
        weight = ("depthwise_kernel", node.weights["kernel"], array)
        yield KerasLayer("DepthwiseConv2D", name, config, inputs, (weight, *bias))
    else:
        config["filters"] = out_channels
        if groups != 1:
            config["groups"] = groups
        # torch (out, in, kh, kw) -> Keras (kh, kw, in, out)
        weight = ("kernel", node.weights["kernel"], kernel.transpose(2, 3, 1, 0))
        yield KerasLayer("Conv2D", name, config, inputs, (weight, *bias))
    if picked:
        pool = {"pool_size": [1, 1], "strides": list(picked), "padding": "valid", "data_format": "channels_last"}
        yield KerasLayer("MaxPooling2D", node.name, pool, (name,))


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
    top, bottom, left, right = node.attributes["crop"]
    # where the kernel is smaller than the stride, Keras adds zeros at the end
    rows, columns = (
        max(stride - size, 0) for stride, size in zip(node.attributes["strides"], kernel.shape[2:], strict=True)
    )
    cropping = [[top, bottom + rows], [left, right + columns]]
    cropped = not node.attributes["same"] and cropping != [[0, 0], [0, 0]]
    name = f"{node.name}_whole" if cropped else node.name
    yield KerasLayer("Conv2DTranspose", name, config, inputs, tuple(weights))
    if cropped:
        config = {"cropping": cropping, "data_format": "channels_last"}
        yield KerasLayer("Cropping2D", node.name, config, (name,))


def _pad_name(conv_name: str) -> str:
    """Name a padding as keras.applications does: that of block_1_depthwise is block_1_pad."""
    return conv_name.removesuffix("_depthwise") + "_pad"


def _dense(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    kernel = graph.tensors[node.weights["kernel"]]
    weights = [("kernel", node.weights["kernel"], kernel.T)]  # torch (out, in) -> Keras (in, out)
    if "bias" in node.weights:
        weights.append(("bias", node.weights["bias"], graph.tensors[node.weights["bias"]]))
    config = {"units": kernel.shape[0], "activation": "linear", "use_bias": "bias" in node.weights}
    yield KerasLayer("Dense", node.name, config, inputs, tuple(weights))


def _pad(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    yield zero_padding(node.name, node.attributes["padding"], inputs)


LAYERS: dict[str, Emit] = {
    "conv2d": conv2d,
    "conv2d_transpose": _conv2d_transpose,
    "pad": _pad,
    "dense": _dense,
}

"""Sums, differences, products and other layers of several values, and of values with weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from export.graph.nodes import Graph, Node
from export.keras_file.keras_layer import Emit, KerasLayer, plain, reshape


def _per_place(graph: Graph, node: Node, role: str) -> tuple[np.ndarray, tuple[int, int, int] | None]:
    """A weight as Keras's layers of channels have it, and the shape in which the value must be: None for its own.

    Args:
        graph: with the weight.
        node: its inputs have the shape (C, H, W) or (C,).
        role: of a weight of one number, of C numbers, or of one for each place and channel.
    """
    array = graph.tensors[node.weights[role]]
    shape = graph.node(node.inputs[0]).shape
    channels, places = shape[0], int(np.prod(shape[1:], dtype=int))
    if array.size == channels and (len(shape) == 3 or array.size != 1):
        return array.reshape(-1), None if len(shape) == 3 else (1, places, channels)
    if array.size == 1:
        return array.reshape(1), (places, channels, 1)
    # torch (C, H, W) -> Keras (H, W, C)
    return np.moveaxis(array.reshape(shape), 0, -1).reshape(-1), (1, 1, array.size)


def _channel_affine(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    """A trained factor for each channel: the only built-in layer that can apply one is a 1x1 depthwise convolution."""
    scale, seen_as = _per_place(graph, node, "scale")
    if seen_as is not None:
        yield reshape(f"{node.name}_seen", seen_as, inputs)
        inputs = (f"{node.name}_seen",)
    config = {"kernel_size": [1, 1], "padding": "valid", "use_bias": False, "data_format": "channels_last"}
    weights = [("depthwise_kernel", node.weights["scale"], scale.reshape(1, 1, -1, 1))]
    if "offset" in node.weights:
        offset, of_offset = _per_place(graph, node, "offset")
        if of_offset != seen_as:  # one of them is a single number
            scaled = replace(node, name=f"{node.name}_scaled", weights={"scale": node.weights["scale"]})
            yield from _channel_affine(graph, scaled, inputs)
            yield from _channel_shift(graph, node, (scaled.name,))
            return
        config["use_bias"] = True
        weights.append(("bias", node.weights["offset"], offset))
    name = node.name if seen_as is None else f"{node.name}_scaled"
    yield KerasLayer("DepthwiseConv2D", name, config, inputs, tuple(weights))
    if seen_as is not None:
        yield reshape(node.name, _own_shape(node), (name,))


def _channel_shift(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    """A trained sum: what a LayerNormalization of nothing but zeros gives is its beta. All of it can be trained."""
    offset, seen_as = _per_place(graph, node, "offset")
    zeros, shift = f"{node.name}_zeros", f"{node.name}_offset"
    yield KerasLayer("Rescaling", zeros, {"scale": 0.0, "offset": 0.0}, inputs)
    before = zeros
    if seen_as is not None:
        before = f"{node.name}_seen"
        yield reshape(before, seen_as, (zeros,))
    config = {"epsilon": 1e-3, "center": True, "scale": False}
    name = shift if seen_as is None else f"{node.name}_beta"
    yield KerasLayer("LayerNormalization", name, config, (before,), (("beta", node.weights["offset"], offset),))
    if seen_as is not None:
        yield reshape(shift, _own_shape(graph.node(node.inputs[0])), (name,))
    yield KerasLayer("Add", node.name, {}, (*inputs, shift))


def _own_shape(node: Node) -> tuple[int, ...]:
    return (*node.shape[1:], node.shape[0])


def _cube(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    yield KerasLayer("Multiply", f"{node.name}_square", {}, inputs * 2)
    yield KerasLayer("Multiply", node.name, {}, (*inputs, f"{node.name}_square"))


LAYERS: dict[str, Emit] = {
    "affine": plain(
        "Rescaling", lambda node: {"scale": list(node.attributes["scale"]), "offset": list(node.attributes["offset"])}
    ),
    "channel_scale": _channel_affine,
    "channel_affine": _channel_affine,
    "channel_shift": _channel_shift,
    "cube": _cube,
    "add": plain("Add"),
    "subtract": plain("Subtract"),
    "multiply": plain("Multiply"),
    "average": plain("Average"),
    "maximum": plain("Maximum"),
    "minimum": plain("Minimum"),
}

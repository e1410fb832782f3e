"""One Keras layer of the file, and what the operations share that make it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from export.graph.nodes import Graph, Node
from models.bad_input import BadInput

# Keras's order of each layer's weights; Keras loads them by order.
WEIGHT_ORDER = {
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
        weights: (Keras weight name, tensor name in the torch state dict, array in Keras layout), in Keras's order; the
            tensor's name is empty for a constant.
        fixed: its weights are constants, so Keras must not train them.
        node: name of the graph's node that it is a part of.
    """

    class_name: str
    name: str
    config: dict[str, Any]
    inputs: tuple[str, ...]
    weights: tuple[tuple[str, str, np.ndarray], ...] = ()
    fixed: bool = False
    node: str = ""


class NoKerasLayer(BadInput):
    """A node that the built-in Keras layers cannot compute exactly."""

    def __init__(self, node: Node, why: str) -> None:
        self.reason = f"{node.op}: {why}"
        super().__init__(
            f"{node.op} in module {node.source!r} has no exact counterpart among Keras's built-in layers: {why}. "
            "torch.onnx.export followed by onnx2tf gives a SavedModel or TFLite file, without the proof."
        )


# The layers of one node, given the graph and the names of the layers that it reads; the last has the node's name.
Emit = Callable[[Graph, Node, tuple[str, ...]], Iterator[KerasLayer]]


def plain(class_name: str, config_of: Callable[[Node], dict[str, Any]] = lambda node: {}) -> Emit:
    """A layer without weights, configured from the node's attributes."""

    def emit(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
        yield KerasLayer(class_name, node.name, config_of(node), inputs)

    return emit


def permute(name: str, dims: tuple[int, ...], inputs: tuple[str, ...]) -> KerasLayer:
    """The axes without the batch, counted from 1, in another order."""
    return KerasLayer("Permute", name, {"dims": list(dims)}, inputs)


def reshape(name: str, shape: tuple[int, ...], inputs: tuple[str, ...]) -> KerasLayer:
    """The same numbers in another shape, which is given without the batch."""
    return KerasLayer("Reshape", name, {"target_shape": list(shape)}, inputs)


def same_padding(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """(before, after) that TensorFlow's SAME adds along one axis of `size` pixels; an odd pixel is added after."""
    total = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return total // 2, total - total // 2


def zero_padding(name: str, padding: tuple[int, int, int, int], inputs: tuple[str, ...]) -> KerasLayer:
    """Zeros around a map; `padding` is top, bottom, left, right."""
    top, bottom, left, right = padding
    config = {"padding": [[top, bottom], [left, right]], "data_format": "channels_last"}
    return KerasLayer("ZeroPadding2D", name, config, inputs)


def keras_shape(node: Node) -> tuple[int, ...]:
    """Keras's shape, without the batch."""
    return (*node.shape[1:], node.shape[0])


def crop_columns(name: str, inputs: tuple[str, ...], start: int, left: int) -> KerasLayer:
    """Of (before, along, after) cut off `start` at the beginning of the second axis and `left` at its end."""
    config = {"cropping": [[0, 0], [start, left]], "data_format": "channels_last"}
    return KerasLayer("Cropping2D", name, config, inputs)

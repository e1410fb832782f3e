"""Layers that act along another axis than the last, which is the only one that the graph's operations act along."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

from export.graph.nodes import Node
from export.keras_file.flat_layers import AS_IT_IS, DAMAGED, FlatLayer
from export.keras_file.readers.layer_reader import LayerReader
from models.bad_input import BadInput

# Emits what a layer does along the last axis of a node, under the name of a part; "" is the layer's own.
OfLastAxis = Callable[[Node, str], Node]


def keras_shape(node: Node) -> tuple[int, ...]:
    """Without the batch, channels last."""
    return (*node.shape[1:], node.shape[0])


def from_keras(shape: tuple[int, ...] | list[int]) -> tuple[int, ...]:
    """The graph's form of a shape that Keras has without the batch."""
    return (shape[-1], *shape[:-1])


def axis_of(layer: FlatLayer, value: Any, rank: int) -> int:
    """An axis as Keras's layers have it, 1 to `rank` or -1 to -`rank` -> the same without the batch, from 0."""
    if not isinstance(value, int) or isinstance(value, bool) or not (1 <= value <= rank or -rank <= value <= -1):
        raise BadInput(f"{layer.key}: expected an axis from 1 to {rank}, got {str(value)[:40]}. {DAMAGED}")
    return value - 1 if value > 0 else rank + value


def axes_of(layer: FlatLayer, node: Node, default: Any = -1) -> list[int]:
    """The layer's ``axis``, one or several, from 0 without the batch, in order."""
    value, rank = layer.config.get("axis", default), len(node.shape)
    given = value if isinstance(value, list | tuple) else [value]
    axes = sorted({axis_of(layer, each, rank) for each in given})
    if len(axes) != len(given) or not axes:
        raise BadInput(f"{layer.key}: expected each axis once, got {str(value)[:40]}. {AS_IT_IS}")
    return axes


def along(
    reader: LayerReader, layer: FlatLayer, before: Node, axes: list[int], apply: OfLastAxis, part: str = ""
) -> Node:
    """Bring the axes to the end, as one, apply what the layer does there, and bring them back.

    Args:
        reader: emits the nodes.
        layer: whose they are.
        before: what they read.
        axes: from 0 without the batch, in order.
        apply: what is done along the last axis; the shape stays.
        part: name of the result; "" if it is the layer's.
    """
    own = keras_shape(before)
    order = [axis for axis in range(len(own)) if axis not in axes] + axes
    turned, several = order != list(range(len(own))), len(axes) > 1
    if not turned and not several:
        return apply(before, part)
    node = before
    moved = tuple(own[axis] for axis in order)
    if turned:
        node = reader.emit(
            layer, "transpose", from_keras(moved), {"axes": tuple(order)}, inputs=[node], part="axis_last"
        )
    if several:
        rest = moved[: len(own) - len(axes)]
        together = from_keras((*rest, prod(moved[len(rest) :])))
        node = reader.emit(layer, "regroup", together, inputs=[node], part="axes_together")
    node = apply(node, "along_axis")
    if several:
        node = reader.emit(layer, "regroup", from_keras(moved), inputs=[node], part="axes_apart" if turned else part)
    if turned:
        back = tuple(order.index(axis) for axis in range(len(own)))
        node = reader.emit(layer, "transpose", before.shape, {"axes": back}, inputs=[node], part=part)
    return node

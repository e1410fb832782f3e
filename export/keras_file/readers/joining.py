"""Layers of several inputs."""

from __future__ import annotations

from math import prod

import numpy as np

from export.graph.nodes import Node
from export.keras_file.flat_layers import AS_IT_IS, DAMAGED, FlatLayer
from export.keras_file.readers.axes import axis_of, from_keras, keras_shape
from export.keras_file.readers.layer_reader import LayerReader, Reader
from export.keras_file.readers.normalisation import unit_norm
from models.bad_input import BadInput


def emit_merged(reader: LayerReader, layer: FlatLayer, op: str, nodes: list[Node]) -> None:
    """Join nodes number by number, in shapes that Keras takes for equal."""
    try:
        # as Keras: (C,) is (1, 1, C) beside (H, W, C)
        shapes = [(*each.shape[1:], each.shape[0]) for each in nodes]
        *size, channels = np.broadcast_shapes(*shapes)
    except ValueError:
        shapes = []
    if not shapes:
        raise BadInput(f"{layer.key}: expected to {op} equal shapes, got {[each.shape for each in nodes]}. {AS_IT_IS}")
    if size:
        nodes = [
            reader.emit(layer, "reshape", (each.shape[0], 1, 1), inputs=[each]) if len(each.shape) == 1 else each
            for each in nodes
        ]
    reader.emit(layer, op, (channels, *size), inputs=nodes)


def merge(op: str) -> Reader:
    """Reader of a layer that joins its inputs number by number."""

    def read(reader: LayerReader, layer: FlatLayer) -> None:
        nodes = reader.all_before(layer)
        if len(nodes) < 2 or (op == "subtract" and len(nodes) != 2):
            raise BadInput(f"{layer.key}: expected a {layer.class_name} of two inputs, got {len(nodes)}. {AS_IT_IS}")
        emit_merged(reader, layer, op, nodes)

    return read


def concatenate(reader: LayerReader, layer: FlatLayer) -> None:
    """Join along an axis, mostly that of the channels."""
    nodes = reader.all_before(layer)
    shapes = [keras_shape(each) for each in nodes]
    rank = len(shapes[0])
    axis = axis_of(layer, layer.config.get("axis", -1), rank)
    if len({(*shape[:axis], *shape[axis + 1 :]) for shape in shapes}) != 1 or {len(each) for each in shapes} != {rank}:
        raise BadInput(f"{layer.key}: expected to join equal sizes, got {[each.shape for each in nodes]}. {AS_IT_IS}")
    if len(nodes) == 1:
        reader.same_as(layer, nodes[0])
    elif axis == rank - 1:
        emit_joined(reader, layer, nodes)
    else:
        joined = list(shapes[0])
        joined[axis] = sum(shape[axis] for shape in shapes)
        reader.emit(layer, "join", from_keras(joined), {"axis": axis}, inputs=nodes)


def emit_joined(reader: LayerReader, layer: FlatLayer, nodes: list[Node]) -> None:
    """Join the channels of nodes of one height and width."""
    reader.emit(layer, "concatenate", (sum(each.shape[0] for each in nodes), *nodes[0].shape[1:]), inputs=nodes)


def _dot(reader: LayerReader, layer: FlatLayer) -> None:
    """Products of vectors: of each along an axis of the one with each along an axis of the other."""
    nodes = reader.before(layer, 2)
    axes = layer.config["axes"]
    given = axes if isinstance(axes, list | tuple) else (axes, axes)
    if len(given) != 2 or any(len(each.shape) > 2 for each in nodes):
        raise BadInput(
            f"{layer.key}: expected a Dot of vectors or matrices, got one of {[each.shape for each in nodes]} along "
            f"{str(axes)[:40]}. {AS_IT_IS}"
        )
    rows = []  # of each input, the vectors that are multiplied
    for number, (node, axis) in enumerate(zip(nodes, given, strict=True)):
        own = keras_shape(node)
        place = axis_of(layer, axis, len(own))
        if layer.config.get("normalize"):
            node = unit_norm(reader, layer, node, [place], f"unit{number}")
        if place != len(own) - 1:
            node = reader.emit(layer, "transpose", own, {"axes": (1, 0)}, inputs=[node], part=f"turned{number}")
            own = keras_shape(node)
        shape = from_keras((prod(own[:-1]), 1, own[-1]))
        rows.append(reader.emit(layer, "regroup", shape, inputs=[node], part=f"vectors{number}"))
    if rows[0].shape[0] != rows[1].shape[0]:
        raise BadInput(
            f"{layer.key}: expected vectors of one length, got {[each.shape for each in nodes]} along "
            f"{str(axes)[:40]}. {DAMAGED}"
        )
    (count, _, _), (others, _, _) = (keras_shape(each) for each in rows)
    products = reader.emit(
        layer, "matmul", from_keras((count, 1, others)), {"last": True}, inputs=rows, part="products"
    )
    left = [keras_shape(node)[:-1] for node in nodes]
    result = (*([count] if left[0] else []), *([others] if left[1] else [])) or (1,)
    reader.emit(layer, "regroup", from_keras(result), inputs=[products])


READERS: dict[str, Reader] = {
    "Dot": _dot,
}

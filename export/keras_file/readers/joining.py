"""Layers of several inputs."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np

from export.graph.nodes import Node
from export.keras_file.flat_layers import AS_IT_IS, FlatLayer
from export.keras_file.readers.layer_reader import LayerReader, Reader, refused
from export.keras_file.readers.preprocessing import affine
from export.keras_file.readers.settings import expect, finite_number
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
    """Join channels."""
    nodes = reader.all_before(layer)
    if len({each.shape[1:] for each in nodes}) != 1:
        raise BadInput(f"{layer.key}: expected to join equal sizes, got {[each.shape for each in nodes]}. {AS_IT_IS}")
    expect(layer, axis=(-1, len(nodes[0].shape), (-1,)))
    if len(nodes) == 1:
        reader.same_as(layer, nodes[0])
        return
    emit_joined(reader, layer, nodes)


def emit_joined(reader: LayerReader, layer: FlatLayer, nodes: list[Node]) -> None:
    """Join the channels of nodes of one height and width."""
    reader.emit(layer, "concatenate", (sum(each.shape[0] for each in nodes), *nodes[0].shape[1:]), inputs=nodes)


def _custom_scale(reader: LayerReader, layer: FlatLayer) -> None:
    """InceptionResNetV2's own layer in Keras 3: x + y * scale."""
    first, second = reader.before(layer, 2)
    scaled = affine(reader, layer, second, finite_number(layer.config["scale"], layer, "scale"))
    reader.emit(layer, "add", first.shape, inputs=[first, scaled])


def _lambda(reader: LayerReader, layer: FlatLayer) -> None:
    """InceptionResNetV2 has, in Keras 2, the Lambda that `_custom_scale` is in Keras 3; every other one is refused.

    The code is not looked at. If it were another one under the same name and with the same argument, the proof would
    fail.
    """
    arguments = layer.config.get("arguments")
    known = re.fullmatch(r"block(35|17|8)_\d+", layer.path[-1]) and len(layer.inputs) == 2
    if not known or not isinstance(arguments, dict) or set(arguments) != {"scale"}:
        raise refused(layer)
    _custom_scale(reader, replace(layer, config=arguments))


READERS: dict[str, Reader] = {
    "Concatenate": concatenate,
    **dict.fromkeys(("CustomScaleLayer", "Custom>CustomScaleLayer"), _custom_scale),
    "Lambda": _lambda,
}

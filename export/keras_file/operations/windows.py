"""Layers of maps of which an image has several: they stand one below the other in one map, as many as there are.

Keras's layers of maps take no more axes. What is between the maps is padding of each, so no window covers two of them
and is kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from export.graph.nodes import Graph, Node
from export.keras_file.keras_layer import Emit, KerasLayer, crop_columns, keras_shape, reshape
from export.keras_file.operations.convolution import conv2d
from export.keras_file.operations.pooling import pooling
from export.keras_file.operations.tokens import pad_axis

# What a maximum is padded with: less than any number that float32 computes with, and not infinite.
_LEAST = -3e38


def _one_below_the_other(emit: Emit, op: str, padded_with: float = 0.0) -> Emit:
    def layers(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
        name, before, after = node.name, keras_shape(graph.node(node.inputs[0])), keras_shape(node)
        count, (rows, columns, channels) = math.prod(before[:-3]), before[-3:]
        top, bottom, left, right = node.attributes["padding"]
        stride = node.attributes["strides"][0]
        tensors = {tensor: graph.tensors[tensor] for tensor in node.weights.values()}
        if "kernel" in node.weights:
            window = (graph.tensors[node.weights["kernel"]].shape[2] - 1) * node.attributes["dilation"][0] + 1
        else:
            window = node.attributes["kernel"][0]
        bottom += -(top + rows + bottom) % stride
        height = top + rows + bottom
        yield reshape(f"{name}_apart", (count, rows, columns * channels), inputs)
        apart = f"{name}_apart"
        if top or bottom:
            source = Node("source", "input", (), (columns * channels, count, rows))
            attributes = {"axis": 1, "before": top, "after": bottom, "value": padded_with}
            padded = Node(f"{name}_padded", "pad_axis", ("source",), (columns * channels, count, height), attributes)
            yield from pad_axis(Graph((source, padded), {}), padded, (apart,))
            apart = padded.name
        yield reshape(f"{name}_below", (count * height, columns, channels), (apart,))
        source = Node("source", "input", (), (channels, count * height, columns))
        # so that there are as many windows for the last map
        attributes = {**node.attributes, "padding": (0, max(window - stride, 0), left, right)}
        shape = (after[-1], count * height // stride, after[-2])
        whole = replace(node, name=f"{name}_whole", op=op, inputs=("source",), shape=shape, attributes=attributes)
        yield from emit(Graph((source, whole), tensors), whole, (f"{name}_below",))
        yield reshape(f"{name}_rows", (count, height // stride, after[-2] * after[-1]), (whole.name,))
        yield crop_columns(f"{name}_own", (f"{name}_rows",), 0, height // stride - after[-3])
        yield reshape(name, after, (f"{name}_own",))

    return layers


LAYERS: dict[str, Emit] = {
    "conv2d_of_windows": _one_below_the_other(conv2d, "conv2d"),
    "max_pool_of_windows": _one_below_the_other(pooling, "max_pool", _LEAST),
    "average_pool_of_windows": _one_below_the_other(pooling, "average_pool"),
}

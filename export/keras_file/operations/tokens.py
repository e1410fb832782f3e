"""Values with any number of axes: tokens, heads and windows.

No built-in layer of all Kerases slices, joins or multiplies along any axis. Reshapes make of the axes those that one
does know; the numbers are the same (`Reshape`, `Permute` and the cropping layers only copy).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from export.graph.nodes import Graph, Node
from export.keras_file.keras_layer import Emit, KerasLayer, crop_columns, keras_shape, permute, reshape, zero_padding
from export.keras_file.operations.convolution import conv2d
from export.keras_file.operations.normalisation import rms_norm


def _regroup(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    yield reshape(node.name, keras_shape(node), inputs)


def _transpose(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    yield permute(node.name, tuple(axis + 1 for axis in node.attributes["axes"]), inputs)


def _around(shape: tuple[int, ...], axis: int) -> tuple[int, int, int]:
    """The numbers before, along and after an axis."""
    return math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])


def _cut(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    before, along, after = _around(keras_shape(graph.node(node.inputs[0])), node.attributes["axis"])
    yield reshape(f"{node.name}_rows", (before, along, after), inputs)
    start, left = node.attributes["start"], along - node.attributes["stop"]
    name, step = f"{node.name}_cropped", node.attributes["step"]
    yield crop_columns(name, (f"{node.name}_rows",), start, left)
    if step > 1:  # the largest of one number is that number
        config = {"pool_size": [1, 1], "strides": [1, step], "padding": "valid", "data_format": "channels_last"}
        yield KerasLayer("MaxPooling2D", f"{node.name}_taken", config, (name,))
        name = f"{node.name}_taken"
    yield reshape(node.name, keras_shape(node), (name,))


def pad_axis(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    """One number at the ends of an axis: zeros, to which the number is added in their places alone."""
    before, along, after = _around(keras_shape(graph.node(node.inputs[0])), node.attributes["axis"])
    first, last, number = (node.attributes[name] for name in ("before", "after", "value"))
    yield reshape(f"{node.name}_rows", (before, along, after), inputs)
    yield zero_padding(f"{node.name}_padded", (0, 0, first, last), (f"{node.name}_rows",))
    name = f"{node.name}_padded"
    if number:
        offset = np.full((1, along + first + last, 1), number)
        offset[:, first : first + along] = 0.0
        yield KerasLayer("Rescaling", f"{node.name}_filled", {"scale": 1.0, "offset": offset.tolist()}, (name,))
        name = f"{node.name}_filled"
    yield reshape(node.name, keras_shape(node), (name,))


def _stack(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    before, _, after = _around(keras_shape(node), node.attributes["axis"])
    rows = tuple(f"{node.name}_rows{number}" for number in range(len(inputs)))
    for row, name in zip(rows, inputs, strict=True):
        yield reshape(row, (before, after), (name,))
    yield KerasLayer("Concatenate", f"{node.name}_joined", {"axis": -1}, rows)
    yield reshape(node.name, keras_shape(node), (f"{node.name}_joined",))


def _conv1d(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    """A convolution of columns of width 1."""
    length, channels = keras_shape(graph.node(node.inputs[0]))
    padding, tensors = node.attributes["padding"], {name: graph.tensors[name] for name in node.weights.values()}
    tensors[node.weights["kernel"]] = tensors[node.weights["kernel"]][..., None]
    attributes = {
        "strides": (node.attributes["strides"], 1),
        "padding": (padding, padding, 0, 0),
        "dilation": (node.attributes["dilation"], 1),
        "groups": node.attributes["groups"],
    }
    column = Node("column", "input", (), (channels, length, 1))
    convolution = Node(f"{node.name}_column", "conv2d", ("column",), (*node.shape, 1), attributes, node.weights)
    yield reshape(f"{node.name}_seen", (length, 1, channels), inputs)
    yield from conv2d(Graph((column, convolution), tensors), convolution, (f"{node.name}_seen",))
    yield reshape(node.name, keras_shape(node), (convolution.name,))


def _join(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    """Concatenate along the last axis alone: along others Keras 3.3 refuses a length of 1."""
    rows = []
    for number, (name, value) in enumerate(zip(inputs, node.inputs, strict=True)):
        before, along, after = _around(keras_shape(graph.node(value)), node.attributes["axis"])
        rows.append(f"{node.name}_rows{number}")
        yield reshape(rows[-1], (before, along * after), (name,))
    yield KerasLayer("Concatenate", f"{node.name}_joined", {"axis": -1}, tuple(rows))
    yield reshape(node.name, keras_shape(node), (f"{node.name}_joined",))


def _roll(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    """Two parts of an axis change places; one axis after the other."""
    shape, names = keras_shape(node), inputs
    for number, (axis, shift) in enumerate(zip(node.attributes["axes"], node.attributes["shifts"], strict=True)):
        before, along, after = _around(shape, axis)
        front = -shift % along  # so many go from the beginning to the end
        if not front:
            continue
        start = f"{node.name}_{number}"
        yield reshape(f"{start}_rows", (before, along, after), names)
        yield crop_columns(f"{start}_last", (f"{start}_rows",), front, 0)
        yield crop_columns(f"{start}_first", (f"{start}_rows",), 0, along - front)
        yield reshape(f"{start}_last_rows", (before, (along - front) * after), (f"{start}_last",))
        yield reshape(f"{start}_first_rows", (before, front * after), (f"{start}_first",))
        both = (f"{start}_last_rows", f"{start}_first_rows")
        yield KerasLayer("Concatenate", f"{start}_joined", {"axis": -1}, both)
        names = (f"{start}_joined",)
    yield reshape(node.name, shape, names)


def _sum(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    shape = keras_shape(graph.node(node.inputs[0]))
    count = math.prod(shape[axis] for axis in node.attributes["axes"])
    yield from _mean(graph, replace(node, name=f"{node.name}_mean"), inputs)
    yield KerasLayer("Rescaling", node.name, {"scale": float(count), "offset": 0.0}, (f"{node.name}_mean",))


def _mean(graph: Graph, node: Node, inputs: tuple[str, ...], pooling: str = "AveragePooling2D") -> Iterator[KerasLayer]:
    shape, axes = keras_shape(graph.node(node.inputs[0])), node.attributes["axes"]
    before, after = math.prod(shape[: axes[0]]), math.prod(shape[axes[-1] + 1 :])
    along = math.prod(shape[axis] for axis in axes)
    yield reshape(f"{node.name}_rows", (before, along, after), inputs)
    config = {"pool_size": [1, along], "strides": [1, along], "padding": "valid", "data_format": "channels_last"}
    yield KerasLayer(pooling, f"{node.name}_pool", config, (f"{node.name}_rows",))
    yield reshape(node.name, keras_shape(node), (f"{node.name}_pool",))


def _largest(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    yield from _mean(graph, node, inputs, "MaxPooling2D")


def _repeat(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    shape, names = list(keras_shape(graph.node(node.inputs[0]))), inputs
    for number, (axis, count) in enumerate(zip(node.attributes["axes"], node.attributes["counts"], strict=True)):
        before, _, after = _around(tuple(shape), axis)
        start, repeat = f"{node.name}_{number}", {"size": [1, count], "interpolation": "nearest"}
        yield reshape(f"{start}_rows", (before, 1, after), names)
        yield KerasLayer("UpSampling2D", start, {**repeat, "data_format": "channels_last"}, (f"{start}_rows",))
        names, shape[axis] = (start,), count
    yield reshape(node.name, keras_shape(node), names)


# torch's least length; for Keras's, which is larger, the vectors below it are told apart.
_SMALLEST_LENGTH = 1e-12


def _unit_norm(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    """A vector divided by its root mean square is longer by the root of its numbers' count.

    Of one that is shorter than `least`, the result is shorter than 1 by as much: by its length / `least`.
    """
    count, least, name = node.shape[0], node.attributes["least"], node.name
    attributes = {"epsilon": _SMALLEST_LENGTH**2 / count}
    inner = Node(f"{name}_rms", "rms_norm", node.inputs, node.shape, attributes)
    yield from rms_norm(graph, inner, inputs)
    unit = name if least <= _SMALLEST_LENGTH else f"{name}_unit"
    yield KerasLayer("Rescaling", unit, {"scale": count**-0.5, "offset": 0.0}, (inner.name,))
    if unit == name:
        return
    rows = math.prod(node.shape[1:])
    yield KerasLayer("Multiply", f"{name}_products", {}, (*inputs, unit))
    yield reshape(f"{name}_rows", (rows, count, 1), (f"{name}_products",))
    pool = {"pool_size": [1, count], "strides": [1, count], "padding": "valid", "data_format": "channels_last"}
    yield KerasLayer("AveragePooling2D", f"{name}_mean", pool, (f"{name}_rows",))
    share = {"scale": count / least, "offset": 0.0}
    yield KerasLayer("Rescaling", f"{name}_share", share, (f"{name}_mean",))
    yield KerasLayer("ReLU", f"{name}_at_most_1", {"max_value": 1.0}, (f"{name}_share",))
    yield reshape(f"{name}_factor", (*node.shape[1:], 1), (f"{name}_at_most_1",))
    yield KerasLayer("Multiply", name, {}, (unit, f"{name}_factor"))


# Arrays that are the same for all images ------------------------------------------------------------------------------


def _negative_array(graph: Graph, node: Node, shape: tuple[int, ...], name: str) -> Iterator[KerasLayer]:
    """An array with its sign changed, of Keras's `shape`, from the layer `NAME_rows` of that shape.

    A PReLU has a weight of any shape, and makes of -1 that weight with its sign changed. So Keras holds the array as
    torch does, and trains it as torch does.
    """
    yield KerasLayer("Rescaling", f"{name}_ones", {"scale": 0.0, "offset": -1.0}, (f"{name}_rows",))
    own, order = node.attributes["shape"], node.attributes["order"]
    tensor = node.weights.get("array", "")
    array = graph.tensors[tensor] if tensor else np.array(node.attributes["constant"], np.float32)
    held = array.reshape(own).transpose([order.index(place) for place in range(len(order))])
    shared = [axis + 1 for axis, size in enumerate(held.shape) if size == 1 and shape[axis] != 1]
    config = {"shared_axes": shared or None}
    weight = ("alpha", tensor, held)
    yield KerasLayer("PReLU", f"{name}_array", config, (f"{name}_ones",), (weight,), fixed=not tensor)


def _add_array(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    yield reshape(f"{node.name}_rows", keras_shape(node), inputs)
    yield from _negative_array(graph, node, keras_shape(node), node.name)
    yield KerasLayer("Subtract", node.name, {}, (*inputs, f"{node.name}_array"))


def _multiply_array(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    yield reshape(f"{node.name}_rows", keras_shape(node), inputs)
    yield from _negative_array(graph, node, keras_shape(node), node.name)
    yield KerasLayer("Multiply", f"{node.name}_product", {}, (*inputs, f"{node.name}_array"))
    yield KerasLayer("Rescaling", node.name, {"scale": -1.0, "offset": 0.0}, (f"{node.name}_product",))


def _array(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    """It is made from as many numbers of some value, whatever they are: only so it has the number of images."""
    numbers, needed = math.prod(graph.node(node.inputs[0]).shape), math.prod(node.shape)
    yield reshape(f"{node.name}_numbers", (1, numbers, 1), inputs)
    if numbers < needed:
        times = -(-needed // numbers)
        repeat = {"size": [1, times], "interpolation": "nearest", "data_format": "channels_last"}
        yield KerasLayer("UpSampling2D", f"{node.name}_enough", repeat, (f"{node.name}_numbers",))
        inputs, numbers = (f"{node.name}_enough",), numbers * times
    else:
        inputs = (f"{node.name}_numbers",)
    yield crop_columns(f"{node.name}_cropped", inputs, 0, numbers - needed)
    yield reshape(f"{node.name}_rows", keras_shape(node), (f"{node.name}_cropped",))
    yield from _negative_array(graph, node, keras_shape(node), node.name)
    yield KerasLayer("Rescaling", node.name, {"scale": -1.0, "offset": 0.0}, (f"{node.name}_array",))


# Products of two values -----------------------------------------------------------------------------------------------


def _matmul(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    """For each head a matrix product, all of them in one: `Dot` multiplies matrices only.

    The second matrix becomes (heads * M, heads * K), with the numbers of each head in its own rows and columns and
    zeros elsewhere. What is added for the other heads is zero, so the result is the same.
    """
    left, right = (keras_shape(graph.node(name)) for name in node.inputs)
    last = node.attributes["last"]
    heads = math.prod(right[1:-1])
    rows, columns = right[0], right[-1]
    names = [f"{node.name}_{part}" for part in ("left", "right", "heads", "apart", "blocks", "right_blocks", "dot")]
    # keys that all heads share are one matrix, and so are all queries
    yield reshape(names[0], (math.prod(left) // (heads * left[-1]), heads * left[-1]), inputs[:1])
    if heads == 1:
        yield reshape(names[5], (rows, columns), inputs[1:])
    else:
        yield reshape(names[1], (1, rows, heads * columns), inputs[1:])
        repeat = {"size": [heads, 1], "interpolation": "nearest", "data_format": "channels_last"}
        yield KerasLayer("UpSampling2D", names[2], repeat, (names[1],))
        yield reshape(names[3], (heads, rows, heads, columns), (names[2],))
        own = np.eye(heads).reshape(heads, 1, heads, 1).tolist()
        yield KerasLayer("Rescaling", names[4], {"scale": own, "offset": 0.0}, (names[3],))
        yield reshape(names[5], (heads * rows, heads * columns), (names[4],))
    axes = {"axes": [2, 2 if last else 1], "normalize": False}
    yield KerasLayer("Dot", names[6], axes, (names[0], names[5]))
    yield reshape(node.name, keras_shape(node), (names[6],))


def _matmul_windows(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    """Each query's numbers with each key's, all of them multiplied, and added up by a dense layer of ones."""
    left, right = (keras_shape(graph.node(name)) for name in node.inputs)
    windows, queries, keys, numbers = math.prod(left[:-2]), left[-2], right[-2], left[-1]
    names = [f"{node.name}_{part}" for part in ("left", "right", "products", "sums")]
    yield reshape(names[0], (windows, queries, 1, numbers), inputs[:1])
    yield reshape(names[1], (windows, 1, keys, numbers), inputs[1:])
    yield KerasLayer("Multiply", names[2], {}, (names[0], names[1]))
    config = {"units": 1, "activation": "linear", "use_bias": False}
    weight = ("kernel", "", np.ones((numbers, 1), np.float32))
    yield KerasLayer("Dense", names[3], config, (names[2],), (weight,), fixed=True)
    yield reshape(node.name, keras_shape(node), (names[3],))


LAYERS: dict[str, Emit] = {
    "regroup": _regroup,
    "transpose": _transpose,
    "cut": _cut,
    "pad_axis": pad_axis,
    "unit_norm": _unit_norm,
    "join": _join,
    "roll": _roll,
    "mean": _mean,
    "sum": _sum,
    "largest": _largest,
    "repeat": _repeat,
    "stack": _stack,
    "conv1d": _conv1d,
    "add_array": _add_array,
    "multiply_array": _multiply_array,
    "array": _array,
    "matmul": _matmul,
    "matmul_windows": _matmul_windows,
}

"""What Keras 2 has no layer for: quotients, roots, powers, logarithms and comparisons, made of other layers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from math import sqrt

import numpy as np

from export.graph.nodes import Graph, Node
from export.keras_file.keras_layer import Emit, KerasLayer, crop_columns, keras_shape, permute, reshape
from export.keras_file.operations.normalisation import NO_EPSILON


def _root_of_squares(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    """The root of a mean of squares is the mean of x times (x divided by that root).

    What is added under the root is the square of a number that is beside the others. That number, divided by the root,
    gives the inverse.
    """
    shape, axes, name = keras_shape(graph.node(node.inputs[0])), node.attributes["axes"], node.name
    before, after = math.prod(shape[: axes[0]]), math.prod(shape[axes[-1] + 1 :])
    count = math.prod(shape[axis] for axis in axes)
    factor, number = node.attributes["factor"], sqrt(node.attributes["epsilon"] / node.attributes["factor"])
    yield reshape(f"{name}_rows", (before, count, after), inputs)
    rows = f"{name}_rows"
    if after > 1:
        yield permute(f"{name}_turned", (1, 3, 2), (rows,))
        rows = f"{name}_turned"
    yield reshape(f"{name}_columns", (before * after, count, 1), (rows,))
    rows = f"{name}_columns"
    if number:
        yield crop_columns(f"{name}_first", (rows,), 0, count - 1)
        yield KerasLayer("Rescaling", f"{name}_number", {"scale": 0.0, "offset": number}, (f"{name}_first",))
        both = []
        for part, source, size in (("numbers", rows, count), ("number", f"{name}_number", 1)):
            yield reshape(f"{name}_{part}_row", (before * after, size), (source,))
            both.append(f"{name}_{part}_row")
        yield KerasLayer("Concatenate", f"{name}_more", {"axis": -1}, tuple(both))
        rows, count = f"{name}_more", count + 1
    else:
        yield reshape(f"{name}_row", (before * after, count), (rows,))
        rows = f"{name}_row"
    yield KerasLayer("Rescaling", f"{name}_negative", {"scale": -1.0, "offset": 0.0}, (rows,))
    yield KerasLayer("Concatenate", f"{name}_both", {"axis": -1}, (rows, f"{name}_negative"))
    alone = {"epsilon": NO_EPSILON, "center": False, "scale": False}
    yield KerasLayer("LayerNormalization", f"{name}_divided", alone, (f"{name}_both",))
    if node.attributes["inverse"]:
        yield reshape(f"{name}_seen", (before * after, 2 * count, 1), (f"{name}_divided",))
        yield crop_columns(f"{name}_last", (f"{name}_seen",), count - 1, count)
        scale, source = 1 / (number * sqrt(count * factor)), f"{name}_last"
    else:
        yield KerasLayer("Multiply", f"{name}_products", {}, (f"{name}_divided", f"{name}_both"))
        yield reshape(f"{name}_seen", (before * after, 2 * count, 1), (f"{name}_products",))
        pool = {"pool_size": [1, 2 * count], "strides": [1, 2 * count], "padding": "valid"}
        pool["data_format"] = "channels_last"
        yield KerasLayer("AveragePooling2D", f"{name}_root", pool, (f"{name}_seen",))
        scale, source = sqrt(count * factor), f"{name}_root"
    yield KerasLayer("Rescaling", f"{name}_scaled", {"scale": scale, "offset": 0.0}, (source,))
    yield reshape(name, keras_shape(node), (f"{name}_scaled",))


# So small that its square is nothing beside that of what is divided by, and not so small that float32 has no square.
_LITTLE = 2.0**-60


def _divide(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    """The quotient is the product of a, b and the square of 1 / |b|: no built-in layer of Keras 2 divides.

    A LayerNormalization of [b, -b, c, -c] divides c by the root of (b ** 2 + c ** 2) / 2.
    """
    name, shape = node.name, keras_shape(graph.node(node.inputs[1]))
    yield reshape(f"{name}_numbers", (math.prod(shape), 1), inputs[1:])
    kernel, bias = np.zeros((1, 4), np.float32), np.zeros(4, np.float32)
    kernel[0, :2], bias[2:] = (1.0, -1.0), (_LITTLE, -_LITTLE)
    config = {"units": 4, "activation": "linear", "use_bias": True}
    weights = (("kernel", "", kernel), ("bias", "", bias))
    yield KerasLayer("Dense", f"{name}_both", config, (f"{name}_numbers",), weights, fixed=True)
    alone = {"axis": [-1], "epsilon": 0.0, "center": False, "scale": False}
    yield KerasLayer("LayerNormalization", f"{name}_divided", alone, (f"{name}_both",))
    yield reshape(f"{name}_columns", (math.prod(shape), 4, 1), (f"{name}_divided",))
    yield crop_columns(f"{name}_third", (f"{name}_columns",), 2, 1)
    yield reshape(f"{name}_seen", shape, (f"{name}_third",))
    config = {"scale": 1 / (_LITTLE * 2**0.5), "offset": 0.0}
    yield KerasLayer("Rescaling", f"{name}_inverse", config, (f"{name}_seen",))
    yield KerasLayer("Multiply", f"{name}_sign", {}, (inputs[1], f"{name}_inverse"))
    yield KerasLayer("Multiply", f"{name}_reciprocal", {}, (f"{name}_sign", f"{name}_inverse"))
    # Beside b, c is too small to have a gradient. A step of Newton's method, r * (2 - b * r), changes no value of the
    # reciprocal r; its gradient is the right one whatever that of r is.
    yield KerasLayer("Multiply", f"{name}_one", {}, (inputs[1], f"{name}_reciprocal"))
    yield KerasLayer("Rescaling", f"{name}_rest", {"scale": -1.0, "offset": 2.0}, (f"{name}_one",))
    yield KerasLayer("Multiply", f"{name}_refined", {}, (f"{name}_reciprocal", f"{name}_rest"))
    yield KerasLayer("Multiply", name, {}, (inputs[0], f"{name}_refined"))


def _zero_or_one(name: str, shape: tuple[int, ...], inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    """What is above 0, divided by its own length; three times, so that this is 1 of the smallest numbers as well."""
    yield KerasLayer("ReLU", f"{name}_above", {"max_value": None}, inputs)
    yield reshape(f"{name}_numbers", (math.prod(shape), 1), (f"{name}_above",))
    yield KerasLayer("Rescaling", f"{name}_negative", {"scale": -1.0, "offset": 0.0}, (f"{name}_numbers",))
    yield KerasLayer("Concatenate", f"{name}_both", {"axis": -1}, (f"{name}_numbers", f"{name}_negative"))
    alone = {"epsilon": NO_EPSILON, "center": False, "scale": False}
    yield KerasLayer("LayerNormalization", f"{name}_larger", alone, (f"{name}_both",))
    yield KerasLayer("LayerNormalization", f"{name}_nearly", alone, (f"{name}_larger",))
    yield KerasLayer("LayerNormalization", f"{name}_ones", alone, (f"{name}_nearly",))
    yield reshape(f"{name}_columns", (math.prod(shape), 2, 1), (f"{name}_ones",))
    yield crop_columns(f"{name}_own", (f"{name}_columns",), 0, 1)
    yield reshape(name, shape, (f"{name}_own",))


def _positive(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    yield from _zero_or_one(node.name, keras_shape(node), inputs)


# How far a step of `_natural_logarithm` goes at most. From 0, with these eight, it comes to every logarithm from -80 to
# 80 as near as float64 can say. All but the last come to 86, whose exponential float32 still holds: of 0, too.
_STEPS = (43.0, 21.0, 10.5, 5.0, 2.5, 2.0, 2.0, 2.0)


def _natural_logarithm(name: str, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    """Halley's method for exp(y) = x: y becomes y + 2 * (r - 1) / (r + 1) with r = x * exp(-y).

    Softsign is r / (r + 1), and (r - 1) / (r + 1) twice that minus 1. The first steps are longer, to come near.
    """
    last = ""
    for number, step in enumerate(_STEPS):
        start, ratio = f"{name}_{number}", inputs[0]
        if last:
            yield KerasLayer("Rescaling", f"{start}_negative", {"scale": -1.0, "offset": 0.0}, (last,))
            yield KerasLayer("Activation", f"{start}_inverse", {"activation": "exponential"}, (f"{start}_negative",))
            ratio = f"{start}_ratio"
            yield KerasLayer("Multiply", ratio, {}, (*inputs, f"{start}_inverse"))
        yield KerasLayer("Activation", f"{start}_share", {"activation": "softsign"}, (ratio,))
        change = f"{start}_step" if last else start
        yield KerasLayer("Rescaling", change, {"scale": 2 * step, "offset": -step}, (f"{start}_share",))
        if last:
            own = name if number == len(_STEPS) - 1 else start
            yield KerasLayer("Add", own, {}, (last, change))
            last = own
        else:
            last = change


def _logarithm(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    yield from _natural_logarithm(node.name, inputs)


def _log_softmax(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    yield KerasLayer("Softmax", f"{node.name}_softmax", {"axis": -1}, inputs)
    yield from _natural_logarithm(node.name, (f"{node.name}_softmax",))


def _power(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    """`exp(exponent * log(x))`, which is not 0 where x is; so that is seen to."""
    exponent, name = node.attributes["exponent"], node.name
    yield from _natural_logarithm(f"{name}_log", inputs)
    yield KerasLayer("Rescaling", f"{name}_scaled", {"scale": exponent, "offset": 0.0}, (f"{name}_log",))
    above = f"{name}_exponential" if exponent > 0 else name
    yield KerasLayer("Activation", above, {"activation": "exponential"}, (f"{name}_scaled",))
    if exponent > 0:
        yield from _zero_or_one(f"{name}_positive", keras_shape(node), inputs)
        yield KerasLayer("Multiply", name, {}, (above, f"{name}_positive"))


LAYERS: dict[str, Emit] = {
    "root_of_squares": _root_of_squares,
    "divide": _divide,
    "positive": _positive,
    "power": _power,
    "logarithm": _logarithm,
    "log_softmax": _log_softmax,
}

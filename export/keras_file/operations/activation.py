"""Activations: a function of each value alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import pi, sqrt

import numpy as np

from export.graph.nodes import Graph, Node
from export.keras_file.keras_layer import (
    Emit,
    KerasLayer,
    plain,
)
from export.keras_file.operations.shape import cut_channels


def _prelu(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    alpha = graph.tensors[node.weights["alpha"]]
    if alpha.ndim == 1 and len(node.shape) == 3:  # torch has one for each channel, or one for all
        alpha = alpha.reshape(-1, 1, 1)
    # torch (C, H, W) -> Keras (H, W, C)
    alpha = np.moveaxis(alpha, 0, -1)
    own = (*node.shape[1:], node.shape[0])
    shared = [axis for axis, side in enumerate(alpha.shape, 1) if side == 1 and own[axis - 1] != 1]
    weight = ("alpha", node.weights["alpha"], alpha)
    yield KerasLayer("PReLU", node.name, {"shared_axes": shared or None}, inputs, (weight,))


def _rescaled(name: str, scale: float, offset: float, before: str) -> KerasLayer:
    return KerasLayer("Rescaling", name, {"scale": scale, "offset": offset}, (before,))


def _softplus(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    beta, name = node.attributes["beta"], node.name
    if beta == 1:
        yield KerasLayer("Activation", name, {"activation": "softplus"}, inputs)
        return
    yield _rescaled(f"{name}_times_beta", beta, 0.0, inputs[0])
    yield KerasLayer("Activation", f"{name}_softplus", {"activation": "softplus"}, (f"{name}_times_beta",))
    yield _rescaled(name, 1 / beta, 0.0, f"{name}_softplus")


def _log_sigmoid(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    """-softplus(-x)."""
    name = node.name
    yield _rescaled(f"{name}_negative", -1.0, 0.0, inputs[0])
    yield KerasLayer("Activation", f"{name}_softplus", {"activation": "softplus"}, (f"{name}_negative",))
    yield _rescaled(name, -1.0, 0.0, f"{name}_softplus")


def _absolute(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    yield _rescaled(f"{node.name}_negative", -1.0, 0.0, inputs[0])
    yield KerasLayer("Maximum", node.name, {}, (*inputs, f"{node.name}_negative"))


def _clip(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    """A ReLU clips at 0 and at a ceiling: the value is moved there and back, or turned round where it has no floor."""
    low, high, name = node.attributes["low"], node.attributes["high"], node.name
    turn, start = (1.0, low) if low is not None else (-1.0, high)
    yield _rescaled(f"{name}_moved", turn, -start * turn, inputs[0])
    ceiling = None if low is None or high is None else high - low
    yield KerasLayer("ReLU", f"{name}_clipped", {"max_value": ceiling}, (f"{name}_moved",))
    yield _rescaled(name, turn, start, f"{name}_clipped")


def _gelu_tanh(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    """X * sigmoid(2 * sqrt(2 / pi) * (x + 0.044715 * x ** 3)): (1 + tanh(z)) / 2 is the sigmoid of 2 * z."""
    name, factor = node.name, 2 * sqrt(2 / pi)
    yield KerasLayer("Multiply", f"{name}_square", {}, inputs * 2)
    yield _rescaled(f"{name}_factor", 0.044715 * factor, factor, f"{name}_square")
    yield KerasLayer("Multiply", f"{name}_inner", {}, (*inputs, f"{name}_factor"))
    yield KerasLayer("Activation", f"{name}_gate", {"activation": "sigmoid"}, (f"{name}_inner",))
    yield KerasLayer("Multiply", name, {}, (*inputs, f"{name}_gate"))


def _shrink(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    """What is above the threshold, less the same of the negative value."""
    threshold, name = node.attributes["threshold"], node.name
    yield _rescaled(f"{name}_negative", -1.0, 0.0, inputs[0])
    for part, source in (("above", inputs[0]), ("below", f"{name}_negative")):
        if node.op == "hard_shrink":
            yield KerasLayer("ReLU", f"{name}_{part}", {"threshold": threshold}, (source,))
        else:
            yield _rescaled(f"{name}_{part}_moved", 1.0, -threshold, source)
            yield KerasLayer("ReLU", f"{name}_{part}", {"max_value": None}, (f"{name}_{part}_moved",))
    yield KerasLayer("Subtract", name, {}, (f"{name}_above", f"{name}_below"))


def _glu(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    half, channels = node.shape[0], graph.node(node.inputs[0]).shape[0]
    yield from cut_channels(f"{node.name}_value", node.shape, (0, half, channels), inputs)
    yield from cut_channels(f"{node.name}_half", node.shape, (half, channels, channels), inputs)
    yield KerasLayer("Activation", f"{node.name}_gate", {"activation": "sigmoid"}, (f"{node.name}_half",))
    yield KerasLayer("Multiply", node.name, {}, (f"{node.name}_value", f"{node.name}_gate"))


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


# torch's name of an activation -> the name that every Keras knows
_ACTIVATIONS = {
    "silu": "swish",
    **{name: name for name in ("sigmoid", "tanh", "gelu", "elu", "selu", "softplus", "softsign", "exponential")},
}


LAYERS: dict[str, Emit] = {
    "relu": plain("ReLU", lambda node: {"max_value": node.attributes["max_value"]}),
    "activation": plain("Activation", lambda node: {"activation": _ACTIVATIONS[node.attributes["function"]]}),
    "hard_sigmoid": _hard_sigmoid,
    "hard_swish": _hard_swish,
    "leaky_relu": _leaky_relu,
    "mish": _mish,
    "gelu_tanh": _gelu_tanh,
    "softplus": _softplus,
    "log_sigmoid": _log_sigmoid,
    "absolute": _absolute,
    "clip": _clip,
    "hard_shrink": _shrink,
    "soft_shrink": _shrink,
    "glu": _glu,
    "prelu": _prelu,
    "elu": plain("ELU", lambda node: {"alpha": node.attributes["alpha"]}),
    "threshold": plain("ReLU", lambda node: {"threshold": node.attributes["threshold"]}),
    "dropout": plain("Dropout", lambda node: {"rate": node.attributes["rate"]}),
    "softmax": plain("Activation", lambda node: {"activation": "softmax"}),
}

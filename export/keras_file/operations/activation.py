"""Activations: a function of each value alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from export.graph.nodes import Graph, Node
from export.keras_file.keras_layer import (
    Emit,
    KerasLayer,
    plain,
)


def _prelu(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    alpha = graph.tensors[node.weights["alpha"]]
    shared = [axis for axis, side in enumerate(alpha.shape[1:], 1) if side == 1 and node.shape[axis] != 1]
    # torch (C, H, W) -> Keras (H, W, C)
    weight = ("alpha", node.weights["alpha"], np.moveaxis(alpha, 0, -1))
    yield KerasLayer("PReLU", node.name, {"shared_axes": shared or None}, inputs, (weight,))


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
    "prelu": _prelu,
    "elu": plain("ELU", lambda node: {"alpha": node.attributes["alpha"]}),
    "threshold": plain("ReLU", lambda node: {"threshold": node.attributes["threshold"]}),
    "dropout": plain("Dropout", lambda node: {"rate": node.attributes["rate"]}),
    "softmax": plain("Activation", lambda node: {"activation": "softmax"}),
}

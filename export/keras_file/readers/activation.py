"""Activations: layers of their own, or inside a Dense or a convolution."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from export.graph.nodes import Node
from export.keras_file.flat_layers import AS_IT_IS, DAMAGED, FlatLayer
from export.keras_file.readers.axes import along, axes_of, keras_shape
from export.keras_file.readers.layer_reader import WRITE_IT, LayerReader, Reader
from export.keras_file.readers.preprocessing import affine
from export.keras_file.readers.settings import finite_number
from models.bad_input import BadInput

# One step: an operation with its attributes, on the value before it.
_Step = tuple[str, dict[str, Any]]


def _clipped(scale: float, offset: float, ceiling: float, back: tuple[float, float] | None = None) -> tuple[_Step, ...]:
    """min(max(x * scale + offset, 0), ceiling), and affine again."""
    steps: list[_Step] = [("affine", {"scale": scale, "offset": offset}), ("relu", {"max_value": ceiling})]
    return (*steps, ("affine", {"scale": back[0], "offset": back[1]})) if back else tuple(steps)


def _named(function: str) -> tuple[_Step, ...]:
    return (("activation", {"function": function}),)


# Keras's name of an activation -> what it is made of. Those that differ between Keras 2 and 3 are in `emit_activation`.
_FUNCTIONS: dict[str, tuple[_Step, ...]] = {
    "linear": (),
    "relu": (("relu", {"max_value": None}),),
    "relu6": (("relu", {"max_value": 6.0}),),
    "leaky_relu": (("leaky_relu", {"negative_slope": float(np.float32(0.2))}),),  # as in `_leaky`
    "softmax": (("softmax", {}),),
    "softmax_v2": (("softmax", {}),),  # tf.nn.softmax
    "swish": _named("silu"),
    **{name: _named(name) for name in ("silu", "sigmoid", "tanh", "gelu", "elu", "selu", "softplus", "softsign")},
    "celu": _named("elu"),
    "exponential": _named("exponential"),
    "mish": (("mish", {}),),
    "hard_silu": (("hard_swish", {}),),
    "hard_swish": (("hard_swish", {}),),
    "hard_shrink": (("hard_shrink", {"threshold": 0.5}),),
    "soft_shrink": (("soft_shrink", {"threshold": 0.5}),),
    "sparse_sigmoid": _clipped(0.5, 0.5, 1.0),
    "hard_tanh": _clipped(1.0, 1.0, 2.0, (1.0, -1.0)),
    "log_sigmoid": (
        ("affine", {"scale": -1.0, "offset": 0.0}),
        *_named("softplus"),
        ("affine", {"scale": -1.0, "offset": 0.0}),
    ),
}


def _glu(reader: LayerReader, layer: FlatLayer, node: Node) -> Node:
    return reader.emit(layer, "glu", (node.shape[0] // 2, *node.shape[1:]), inputs=[node])


def _tanh_shrink(reader: LayerReader, layer: FlatLayer, node: Node) -> Node:
    tanh = reader.emit(layer, "activation", node.shape, {"function": "tanh"}, inputs=[node])
    return reader.emit(layer, "subtract", node.shape, inputs=[node, tanh])


def _sparse_plus(reader: LayerReader, layer: FlatLayer, node: Node) -> Node:
    """((x + 1) / 2) ** 2 between -1 and 1, 0 below and x above."""
    half = affine(reader, layer, node, 0.5, 0.5)
    half = reader.emit(layer, "relu", node.shape, {"max_value": 1.0}, inputs=[half])
    square = reader.emit(layer, "multiply", node.shape, inputs=[half, half])
    above = reader.emit(layer, "relu", node.shape, {"max_value": None}, inputs=[affine(reader, layer, node, 1.0, -1.0)])
    return reader.emit(layer, "add", node.shape, inputs=[square, above])


def _squareplus(reader: LayerReader, layer: FlatLayer, node: Node) -> Node:
    """(x + sqrt(x ** 2 + 4)) / 2."""
    square = reader.emit(layer, "multiply", node.shape, inputs=[node, node])
    root = square_root(reader, layer, affine(reader, layer, square, 1.0, 4.0), node, 4.0)
    return affine(reader, layer, reader.emit(layer, "add", node.shape, inputs=[node, root]), 0.5)


def square_root(reader: LayerReader, layer: FlatLayer, sum_: Node, node: Node, epsilon: float) -> Node:
    """The root of a sum, x ** 2 + epsilon: the sum times its inverse root, which a LayerNormalization gives of x."""
    single = (1, *keras_shape(node)) if len(node.shape) < 3 else (1, keras_shape(node)[0], prod(keras_shape(node)[1:]))
    apart = reader.emit(layer, "regroup", single, inputs=[node])
    attributes = {"centred": False, "factor": 1.0, "epsilon": epsilon}
    inverse = reader.emit(layer, "inverse_rms", single, attributes, inputs=[apart])
    inverse = reader.emit(layer, "regroup", node.shape, inputs=[inverse])
    return reader.emit(layer, "multiply", node.shape, inputs=[sum_, inverse])


def _log_softmax(reader: LayerReader, layer: FlatLayer, node: Node) -> Node:
    """Minus the logarithm of the sum of powers, which is added up in pairs: log(e^a + e^b) = a + softplus(b - a)."""
    axis, size = len(node.shape) - 1, node.shape[1:]

    def part_of(whole: Node, start: int, stop: int) -> Node:
        attributes = {"axis": axis, "start": start, "stop": stop, "step": 1}
        return reader.emit(layer, "cut", (stop - start, *size), attributes, inputs=[whole])

    left = node
    while left.shape[0] > 1:
        half = left.shape[0] // 2
        first, second = part_of(left, 0, half), part_of(left, half, 2 * half)
        between = reader.emit(layer, "subtract", first.shape, inputs=[second, first])
        between = reader.emit(layer, "activation", first.shape, {"function": "softplus"}, inputs=[between])
        pairs = reader.emit(layer, "add", first.shape, inputs=[first, between])
        if left.shape[0] % 2:
            rest = part_of(left, 2 * half, 2 * half + 1)
            pairs = reader.emit(layer, "concatenate", (half + 1, *size), inputs=[pairs, rest])
        left = pairs
    return reader.emit(layer, "subtract", node.shape, inputs=[node, left])


# Those that are made of several values.
_COMPOSED: dict[str, Callable[[LayerReader, FlatLayer, Node], Node]] = {
    "glu": _glu,
    "tanh_shrink": _tanh_shrink,
    "sparse_plus": _sparse_plus,
    "squareplus": _squareplus,
    "log_softmax": _log_softmax,
    "log_softmax_v2": _log_softmax,  # tf.nn.log_softmax
}
# Keras 2's hard_sigmoid is max(0, min(1, x / 5 + 0.5)), Keras 3's max(0, min(1, x / 6 + 0.5)).
_HARD_SIGMOID = {2: _clipped(0.2, 0.5, 1.0), 3: (("hard_sigmoid", {}),)}


def emit_activation(reader: LayerReader, layer: FlatLayer, name: str, node: Node) -> None:
    """Emit an activation by Keras's name, after a node."""
    if name in _COMPOSED:
        reader.same_as(layer, _COMPOSED[name](reader, layer, node))
        return
    steps = _HARD_SIGMOID[reader.generation] if name == "hard_sigmoid" else _FUNCTIONS.get(name)
    if steps is None:
        known = ", ".join(sorted((*_FUNCTIONS, *_COMPOSED, "hard_sigmoid")))
        raise BadInput(
            f"{layer.key}: expected an activation that every Keras has ({known}), got {name[:80]}. {AS_IT_IS}"
        )
    for op, attributes in steps:
        if op == "affine":
            node = affine(reader, layer, node, attributes["scale"], attributes["offset"])
        else:
            node = reader.emit(layer, op, node.shape, attributes, inputs=[node])
    reader.same_as(layer, node)


def activation_of(reader: LayerReader, layer: FlatLayer, node: Node) -> None:
    """Emit the activation that a layer has built in, as a node after the layer's own."""
    name = layer.config.get("activation") or "linear"
    if isinstance(name, dict):
        config = name.get("config")
        if isinstance(config, str):  # a function of Keras's, described as an object
            own = str(name.get("module") or "builtins").partition(".")[0] in ("builtins", "keras", "tf_keras")
            name = config if own and not name.get("registered_name", "").startswith("Custom>") else str(name)
        elif name.get("class_name") in _ACTIVATION_LAYERS:
            inner = replace(layer, class_name=name["class_name"], config=config or {})
            _ACTIVATION_LAYERS[name["class_name"]](reader, inner, node)
            return
    if not isinstance(name, str) or name.startswith("Custom>"):
        raise BadInput(
            f"{layer.key}: expected an activation of Keras's own, got {str(name)[:80]}: what it computes is in its "
            f"author's code, not in the file. {WRITE_IT.format(example='Activation(NAME)')}"
        )
    emit_activation(reader, layer, name, node)


def _relu(reader: LayerReader, layer: FlatLayer, node: Node) -> None:
    slope = finite_number(layer.config.get("negative_slope") or 0.0, layer, "negative_slope")
    threshold = finite_number(layer.config.get("threshold") or 0.0, layer, "threshold")
    ceiling = layer.config.get("max_value")
    ceiling = None if ceiling is None else finite_number(ceiling, layer, "max_value")
    if threshold < 0 or slope < 0:
        raise BadInput(
            f"{layer.key}: expected a ReLU with threshold and slope from 0, got {threshold}, {slope}. {DAMAGED}"
        )
    if slope and not threshold:
        node = leaky(reader, layer, node, slope, exact=ceiling is not None)
        if ceiling is not None:  # min(x, c) = c - relu(c - x)
            turned = affine(reader, layer, node, -1.0, ceiling)
            kept = reader.emit(layer, "relu", node.shape, {"max_value": None}, inputs=[turned])
            node = affine(reader, layer, kept, -1.0, ceiling)
        reader.same_as(layer, node)
        return
    given = node
    if threshold:
        node = reader.emit(layer, "threshold", node.shape, {"threshold": threshold}, inputs=[node])
    if ceiling is not None or not threshold:
        node = reader.emit(layer, "relu", node.shape, {"max_value": ceiling}, inputs=[node])
    if slope:
        below = _below(reader, layer, given, slope, threshold)
        node = reader.emit(layer, "add", node.shape, inputs=[node, below])
    reader.same_as(layer, node)


def _below(reader: LayerReader, layer: FlatLayer, node: Node, slope: float, threshold: float) -> Node:
    """Slope * (x - threshold) where x is below the threshold, else 0."""
    turned = affine(reader, layer, node, -1.0, threshold)
    kept = reader.emit(layer, "relu", node.shape, {"max_value": None}, inputs=[turned])
    return affine(reader, layer, kept, -slope)


def leaky(reader: LayerReader, layer: FlatLayer, node: Node, slope: float, exact: bool = False) -> Node:
    """``x`` where it is positive, else ``x * slope``; `exact` where TensorFlow does not round the slope."""
    if not exact:  # TensorFlow's leaky_relu takes the slope in float32, whatever the layer computes in
        slope = float(np.float32(slope))
    if 0 <= slope <= 1:
        return reader.emit(layer, "leaky_relu", node.shape, {"negative_slope": slope}, inputs=[node])
    above = reader.emit(layer, "relu", node.shape, {"max_value": None}, inputs=[node])
    return reader.emit(layer, "add", node.shape, inputs=[above, _below(reader, layer, node, slope, 0.0)])


def _leaky_relu(reader: LayerReader, layer: FlatLayer, node: Node) -> None:
    slope = layer.config.get("negative_slope", layer.config.get("alpha", 0.3))  # Keras 3's name, and Keras 2's
    leaky(reader, layer, node, finite_number(slope, layer, "negative_slope"))


def _elu(reader: LayerReader, layer: FlatLayer, node: Node) -> None:
    if finite_number(layer.config.get("alpha", 1.0), layer, "alpha") == 1:
        emit_activation(reader, layer, "elu", node)
        return
    reader.emit(
        layer, "elu", node.shape, {"alpha": finite_number(layer.config["alpha"], layer, "alpha")}, inputs=[node]
    )


def _thresholded_relu(reader: LayerReader, layer: FlatLayer, node: Node) -> None:
    _relu(reader, replace(layer, config={"threshold": layer.config.get("theta", 1.0)}), node)


def _prelu(reader: LayerReader, layer: FlatLayer, node: Node) -> None:
    shared = layer.config.get("shared_axes") or []
    shape = [1 if axis + 1 in shared else side for axis, side in enumerate((*node.shape[1:], node.shape[0]))]
    alpha = reader.take(layer, "alpha", tuple(shape), 0)
    # Keras (H, W, C) -> torch (C, H, W)
    weights = {"alpha": np.moveaxis(alpha, -1, 0)}
    reader.emit(layer, "prelu", node.shape, {}, weights, inputs=[node])


def _softmax(reader: LayerReader, layer: FlatLayer, node: Node) -> None:
    softmax(reader, layer, node, axes_of(layer, node))


def softmax(reader: LayerReader, layer: FlatLayer, node: Node, axes: list[int]) -> None:
    """Softmax along any axes."""
    along(
        reader, layer, node, axes, lambda each, part: reader.emit(layer, "softmax", each.shape, {}, None, [each], part)
    )


_Activation = Callable[[LayerReader, FlatLayer, Node], None]
_ACTIVATION_LAYERS: dict[str, _Activation] = {
    "Activation": activation_of,
    "ReLU": _relu,
    "LeakyReLU": _leaky_relu,
    "ELU": _elu,
    "PReLU": _prelu,
    "ThresholdedReLU": _thresholded_relu,
    "Softmax": _softmax,
}


def _of_one(activation: _Activation) -> Reader:
    def read(reader: LayerReader, layer: FlatLayer) -> None:
        (before,) = reader.before(layer)
        activation(reader, layer, before)

    return read


READERS: dict[str, Reader] = {name: _of_one(activation) for name, activation in _ACTIVATION_LAYERS.items()}

"""Activations: a function of each value alone."""

from __future__ import annotations

from typing import Any

from torch import fx

from export.graph.record import module_path
from export.graph.tracer import (
    Converter,
    NoKerasCounterpart,
    Tracer,
    name_of,
    shape_of,
)


def _simple(op: str, **attributes: Any) -> Converter:
    """Converter of an operation with one input and fixed attributes."""

    def convert(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
        tracer.emit(operation, op, [operation.args[0]], attributes)  # type: ignore[list-item]

    return convert


def _hardtanh(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    low, high = float(given["min_val"]), float(given["max_val"])
    if low == 0:
        tracer.emit(operation, "relu", [given["self"]], {"max_value": high})
    else:
        tracer.emit(operation, "clip", [given["self"]], {"low": low, "high": high})


def _leaky_relu(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    slope = float(given["negative_slope"])
    if not 0 <= slope <= 1:
        raise NoKerasCounterpart("aten.leaky_relu", module_path(operation), f"negative slope {slope}")
    tracer.emit(operation, "leaky_relu", [given["self"]], {"negative_slope": slope})


def _gelu(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    function = {"none": "gelu", "tanh": "gelu_tanh"}[given["approximate"]]
    if function == "gelu":
        tracer.emit(operation, "activation", [given["self"]], {"function": function})
    else:
        tracer.emit(operation, function, [given["self"]])


def _prelu(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    tracer.emit(operation, "prelu", [given["self"]], {}, {"alpha": given["weight"]})


def _elu(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    factors = float(given.get("scale", 1.0)), float(given.get("input_scale", 1.0))
    alpha = float(given["alpha"])
    if name_of(operation).startswith("aten.celu") and alpha != 1:
        raise NoKerasCounterpart("aten.celu", module_path(operation), f"with alpha {alpha}")
    if factors == (1.0, 1.0):
        tracer.emit(operation, "elu", [given["self"]], {"alpha": alpha})
    elif factors[1] == 1 and (alpha, factors[0]) == (_SELU_ALPHA, _SELU_SCALE):
        tracer.emit(operation, "activation", [given["self"]], {"function": "selu"})
    else:
        raise NoKerasCounterpart("aten.elu", module_path(operation), f"with factors {factors}")


_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946


def _softplus(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    beta = float(given["beta"])
    if beta * 0 != 0 or beta <= 0 or float(given["threshold"]) < 20:
        why = f"with beta {beta} and threshold {given['threshold']}"
        raise NoKerasCounterpart("aten.softplus", module_path(operation), why)
    tracer.emit(operation, "softplus", [given["self"]], {"beta": beta})


def _shrink(op: str) -> Converter:
    def convert(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
        tracer.emit(operation, op, [given["self"]], {"threshold": float(given["lambd"])})

    return convert


def _threshold(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    threshold, value = float(given["threshold"]), float(given["value"])
    if value or threshold < 0:
        raise NoKerasCounterpart("aten.threshold", module_path(operation), f"of {threshold} with value {value}")
    tracer.emit(operation, "threshold", [given["self"]], {"threshold": threshold})


def _glu(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    if given["self"].name in tracer.layout_of:
        tracer.as_map(given["self"])
    source, rank = given["self"], len(shape_of(given["self"]))
    channels = rank if tracer.is_channels_last(source) else 1
    if given["dim"] % (rank + 1) != channels:
        raise NoKerasCounterpart("aten.glu", module_path(operation), f"along dimension {given['dim']}, not channels")
    tracer.emit(operation, "glu", [source])


def _softmax(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    source, rank = given["self"], len(shape_of(given["self"]))
    channels = rank if tracer.is_channels_last(source) else 1
    if given["dim"] % (rank + 1) != channels:
        why = f"along dimension {given['dim']}, not channels"
        raise NoKerasCounterpart(name_of(operation), module_path(operation), why)
    tracer.emit(operation, "softmax", [source])


CONVERTERS: dict[str, Converter] = {
    "aten.hardtanh": _hardtanh,
    "aten.relu": _simple("relu", max_value=None),
    "aten.relu6": _simple("relu", max_value=6.0),
    "aten.silu": _simple("activation", function="silu"),
    "aten.sigmoid": _simple("activation", function="sigmoid"),
    "aten.tanh": _simple("activation", function="tanh"),
    "aten.exp": _simple("activation", function="exponential"),
    "aten.selu": _simple("activation", function="selu"),
    "aten.softsign": _simple("activation", function="softsign"),
    "aten.gelu": _gelu,
    "aten.elu": _elu,
    "aten.celu": _elu,
    "aten.prelu": _prelu,
    "aten.leaky_relu": _leaky_relu,
    "aten.softplus": _softplus,
    "aten.log_sigmoid": _simple("log_sigmoid"),
    "aten.abs": _simple("absolute"),
    "aten.hardshrink": _shrink("hard_shrink"),
    "aten.softshrink": _shrink("soft_shrink"),
    "aten.threshold": _threshold,
    "aten.glu": _glu,
    "aten.softmax": _softmax,
    "aten._softmax": _softmax,
    "aten.mish": _simple("mish"),
    "aten.hardswish": _simple("hard_swish"),
    "aten.hardsigmoid": _simple("hard_sigmoid"),
}

"""Activations: a function of each value alone."""

from __future__ import annotations

from typing import Any

from torch import fx

from export.graph.record import module_path
from export.graph.tracer import (
    Converter,
    NoKerasCounterpart,
    Tracer,
)


def _simple(op: str, **attributes: Any) -> Converter:
    """Converter of an operation with one input and fixed attributes."""

    def convert(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
        tracer.emit(operation, op, [operation.args[0]], attributes)  # type: ignore[list-item]

    return convert


def _hardtanh(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    if float(given["min_val"]) != 0.0:
        raise NoKerasCounterpart("aten.hardtanh", module_path(operation), f"lower bound {given['min_val']}, not 0")
    tracer.emit(operation, "relu", [given["self"]], {"max_value": float(given["max_val"])})


def _leaky_relu(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    slope = float(given["negative_slope"])
    if not 0 <= slope <= 1:
        raise NoKerasCounterpart("aten.leaky_relu", module_path(operation), f"negative slope {slope}")
    tracer.emit(operation, "leaky_relu", [given["self"]], {"negative_slope": slope})


def _gelu(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    if given["approximate"] != "none":
        raise NoKerasCounterpart("aten.gelu", module_path(operation), f"approximated by {given['approximate']}")
    tracer.emit(operation, "activation", [given["self"]], {"function": "gelu"})


CONVERTERS: dict[str, Converter] = {
    "aten.hardtanh": _hardtanh,
    "aten.relu": _simple("relu", max_value=None),
    "aten.relu6": _simple("relu", max_value=6.0),
    "aten.silu": _simple("activation", function="silu"),
    "aten.sigmoid": _simple("activation", function="sigmoid"),
    "aten.tanh": _simple("activation", function="tanh"),
    "aten.gelu": _gelu,
    "aten.leaky_relu": _leaky_relu,
    "aten.mish": _simple("mish"),
    "aten.hardswish": _simple("hard_swish"),
    "aten.hardsigmoid": _simple("hard_sigmoid"),
}

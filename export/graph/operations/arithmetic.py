"""Sums, differences, products, quotients and powers of values, weights and constants."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from torch import fx

from export.graph.record import module_path
from export.graph.tracer import (
    Converter,
    NoKerasCounterpart,
    Tracer,
    channels_first,
    name_of,
    shape_of,
)


def _of_two(op: str) -> Converter:
    """Converter of an operation on two computed values."""

    def convert(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
        tracer.emit(operation, op, [given["self"], given["other"]])

    return convert


def _subtract(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    value, other, turned = given["self"], given["other"], name_of(operation) == "aten.rsub"
    constant = tracer.constant(other)
    if constant is not None:
        _affine(tracer, operation, value, *((-1.0, constant) if turned else (1.0, -constant)))
    elif tracer.constant(value) is not None:
        first = np.asarray(tracer.constant(value))
        _affine(tracer, operation, other, *((1.0, -first) if turned else (-1.0, first)))
    else:
        tracer.emit(operation, "subtract", [other, value] if turned else [value, other])


def _add(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    value, other = given["self"], given["other"]
    if tracer.is_weight(value) or tracer.constant(value) is not None:
        value, other = other, value
    if tracer.is_weight(other):
        tracer.emit(operation, "channel_shift", [value], {}, {"offset": _weight(tracer, operation, value, other)})
        return
    constant = tracer.constant(other)
    if constant is None:
        tracer.emit(operation, "add", [value, other])
        return
    if value.name in tracer.mean_squares and constant.size == 1:
        tracer.add_epsilon(operation, value, float(constant.reshape(-1)[0]))
    if value.name not in tracer.node_of:
        if value.name in tracer.mean_squares:
            return
        tracer.emit(operation, "add", [value, other])  # says what is wrong with it
    offset = _per_channel(tracer, operation, value, constant)
    before = tracer.nodes[tracer.input_name(value)]
    # x * scale followed by + offset in the same module becomes one affine node, as a Keras Rescaling computes it.
    if (
        before.op == "affine"
        and before.source == module_path(operation)
        and not any(before.attributes["offset"])
        and len(value.users) == 1
    ):
        attributes = {"scale": before.attributes["scale"], "offset": offset}
        tracer.replace_last(operation, replace(before, attributes=attributes, trace_name=operation.name), value)
        return
    tracer.emit(operation, "affine", [value], {"scale": (1.0,) * len(offset), "offset": offset})


def _affine(tracer: Tracer, operation: fx.Node, value: fx.Node, scale: Any, offset: Any = 0.0) -> None:
    scale, offset = (np.asarray(each, np.float64) for each in (scale, offset))
    if isinstance(value, fx.Node) and value.name in tracer.layout_of and scale.size == offset.size == 1:
        numbers = {"scale": (float(scale.reshape(())),), "offset": (float(offset.reshape(())),)}
        tracer.add(operation, "affine", [tracer.input_name(value)], tracer.layout(value), numbers)
        return
    scale, offset = (_per_channel(tracer, operation, value, each) for each in (scale, offset))
    tracer.emit(operation, "affine", [value], {"scale": scale, "offset": offset})


def _multiply(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    value, other = given["self"], given["other"]
    if tracer.is_weight(value) or tracer.constant(value) is not None:
        value, other = other, value
    constant = tracer.constant(other)
    if tracer.is_weight(other):
        tracer.emit(operation, "channel_scale", [value], {}, {"scale": _weight(tracer, operation, value, other)})
    elif constant is not None:
        _affine(tracer, operation, value, constant)
    else:
        tracer.emit(operation, "multiply", [value, other])


def _divide(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    value, other = given["self"], given["other"]
    constant = tracer.constant(other)
    if given.get("rounding_mode") is not None or (constant is not None and not constant.all()):
        raise NoKerasCounterpart("aten.div", module_path(operation), "by zero, or rounded")
    if constant is not None:
        _affine(tracer, operation, value, 1.0 / constant.astype(np.float64))
    elif isinstance(other, fx.Node) and other.name in tracer.roots:
        of, attributes = tracer.roots[other.name]
        tracer.emit(operation, "divide_by_rms", [value, of], attributes)
    elif (epsilon := _mean_and_epsilon(tracer, other, value)) is not None:
        tracer.emit(operation, "divide_by_mean", [value], {"epsilon": epsilon})
    elif _is_one_and_absolute(tracer, other, value):
        tracer.emit(operation, "activation", [value], {"function": "softsign"})
    else:
        tracer.emit(operation, "divide", [value, other])


def _mean_and_epsilon(tracer: Tracer, value: Any, of: Any) -> float | None:
    """The number that a value has more than the mean of the channels of a `places_norm`; None if it is something else.

    A global response norm divides by it.
    """
    if not all(isinstance(each, fx.Node) and each.name in tracer.node_of for each in (value, of)):
        return None
    node, norm = tracer.nodes[tracer.input_name(value)], tracer.nodes[tracer.input_name(of)]
    if node.op != "affine" or norm.op != "places_norm" or set(node.attributes["scale"]) != {1.0}:
        return None
    mean, channels = tracer.nodes[node.inputs[0]], norm.shape[0]
    uniform = mean.op == "map_channels" and mean.attributes["matrix"] == ((1.0 / channels,) * channels,)
    epsilon: float = node.attributes["offset"][0]
    return epsilon if uniform and mean.inputs == (norm.name,) and epsilon > 0 else None


def _is_one_and_absolute(tracer: Tracer, value: Any, of: Any) -> bool:
    """Whether a value is 1 + |of|, by which torch's softsign divides."""
    if not all(isinstance(each, fx.Node) and each.name in tracer.node_of for each in (value, of)):
        return False
    node = tracer.nodes[tracer.input_name(value)]
    if node.op != "affine" or {*node.attributes["scale"], *node.attributes["offset"]} != {1.0}:
        return False
    before = tracer.nodes[node.inputs[0]]
    return before.op == "absolute" and before.inputs[0] == tracer.input_name(of)


def _addcmul(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    """The sum of a value or weight and a product of two others; one layer where both are weights."""
    offset, value, scale = given["self"], given["tensor1"], given["tensor2"]
    if tracer.is_weight(value):
        value, scale = scale, value
    if given["value"] != 1 or not (tracer.is_weight(offset) and tracer.is_weight(scale)):
        raise NoKerasCounterpart("aten.addcmul", module_path(operation), "of other than a value and two weights")
    weights: dict[str, fx.Node | None] = {}
    weights |= {"scale": _weight(tracer, operation, value, scale), "offset": _weight(tracer, operation, value, offset)}
    tracer.emit(operation, "channel_affine", [value], {}, weights)


def _clamp(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    low, high = (None if given.get(name) is None else float(given[name]) for name in ("min", "max"))
    if low == 0:
        tracer.emit(operation, "relu", [given["self"]], {"max_value": high})
    else:
        tracer.emit(operation, "clip", [given["self"]], {"low": low, "high": high})


def _weight(tracer: Tracer, operation: fx.Node, value: fx.Node, weight: fx.Node) -> fx.Node:
    """A weight that a value is joined with: one number, one for each channel, or one for each place and channel."""
    if value.name in tracer.layout_of:
        tracer.as_map(value)
    name = tracer.weight_name(weight)
    shape = tracer.tensor(name).shape if name else ()
    # torch aligns shapes at their ends; a view of the weight is known by its own shape
    shape = tuple(weight.meta["shape"]) or shape
    full = (1,) * (len(shape_of(operation)) + 1 - len(shape)) + shape
    own = channels_first(full[1:], tracer.is_channels_last(value) and len(full) == 4)
    wanted = channels_first(shape_of(operation), tracer.is_channels_last(value) and len(full) == 4)
    one, channels = (1,) * len(wanted), (wanted[0], *(1,) * (len(wanted) - 1))
    every_place = wanted if not tracer.is_channels_last(value) else channels
    if full[0] != 1 or own not in (one, channels, every_place):
        raise NoKerasCounterpart(name_of(operation), module_path(operation), f"with a weight of shape {shape}")
    return weight


def _per_channel(tracer: Tracer, operation: fx.Node, value: fx.Node, constant: np.ndarray) -> tuple[float, ...]:
    """A constant of shape (1, C, 1, 1), (C, 1, 1) or () as C floats, without rounding."""
    if value.name in tracer.layout_of:
        tracer.as_map(value)
    shape = shape_of(operation)
    full = (1,) * (len(shape) + 1 - constant.ndim) + constant.shape
    last = tracer.is_channels_last(value) and len(full) == 4
    channels, *places = channels_first(full[1:], last)
    count = channels_first(shape, last)[0]
    if full[0] != 1 or channels not in (1, count) or set(places) - {1}:
        raise NoKerasCounterpart(name_of(operation), module_path(operation), f"constant of shape {constant.shape}")
    return tuple(float(each) for each in np.broadcast_to(constant.reshape(-1), (count,)))


def _negative(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    _affine(tracer, operation, given["self"], -1.0)


def _expand(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    """Whatever multiplies or adds such a value repeats it anyway; for others it is repeated."""
    source = given["self"]
    if all(_repeats_anyway(user, operation) for user in operation.users) or shape_of(source) == shape_of(operation):
        tracer.alias(operation, source)
        tracer.repeated[operation.name] = tracer.repeated.get(source.name, source)
        return
    before, after = shape_of(source), shape_of(operation)
    if (
        source.name in tracer.layout_of
        or len(before) != 3
        or len(after) != 3
        or before[0] != after[0]
        or tracer.is_channels_last(source)
    ):
        raise NoKerasCounterpart(name_of(operation), module_path(operation), f"from {before} to {after}")
    factors = (after[1] // before[1], after[2] // before[2])
    tracer.emit(operation, "upsample", [source], {"factors": factors})


def _repeats_anyway(user: fx.Node, operation: fx.Node) -> bool:
    """Whether what reads a repeated value joins it with another of the whole size."""
    others = [value for value in user.all_input_nodes if value is not operation]
    return name_of(user) in _BROADCASTS and any(
        value.meta["computed"] and value.meta["shape"] == user.meta["shape"] and name_of(value) != "aten.expand"
        for value in others
        if value.op == "call_function"
    )


_BROADCASTS = {f"aten.{name}" for name in ("mul", "add", "sub", "div", "mul_", "add_", "sub_", "maximum", "minimum")}


def _positive(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    """All comparisons are recorded as this one."""
    tracer.emit(operation, "positive", [given["self"]])


def _not(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    _affine(tracer, operation, given["self"], -1.0, 1.0)


CONVERTERS: dict[str, Converter] = {
    "aten.gt": _positive,
    "aten.logical_not": _not,
    "aten.sub": _subtract,
    "aten.rsub": _subtract,
    "aten.add": _add,
    "aten.mul": _multiply,
    "aten.div": _divide,
    "aten.addcmul": _addcmul,
    "aten.neg": _negative,
    "aten.clamp": _clamp,
    "aten.clamp_min": _clamp,
    "aten.clamp_max": _clamp,
    "aten.maximum": _of_two("maximum"),
    "aten.minimum": _of_two("minimum"),
    "aten.expand": _expand,
}

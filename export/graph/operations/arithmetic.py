"""Sums, differences and products of values, weights and constants."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import fx

from export.graph.nodes import Node
from export.graph.record import module_path
from export.graph.tracer import (
    Converter,
    NoKerasCounterpart,
    Tracer,
    channels_first,
    shape_of,
)


def _subtract(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    if given["alpha"] != 1 or tracer.constant(given["other"]) is not None or tracer.constant(given["self"]) is not None:
        raise NoKerasCounterpart("aten.sub", module_path(operation), "of constants")
    tracer.emit(operation, "subtract", [given["self"], given["other"]])


def _add(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    if given["alpha"] != 1:
        raise NoKerasCounterpart("aten.add", module_path(operation), f"alpha {given['alpha']}")
    value, other = given["self"], given["other"]
    if tracer.constant(value) is not None:
        value, other = other, value
    constant = tracer.constant(other)
    if constant is None:
        tracer.emit(operation, "add", [value, other])
        return
    offset = _per_channel(operation, constant)
    before = tracer.nodes[tracer.input_name(value)]
    # x * scale followed by + offset in the same module becomes one affine node, as a Keras Rescaling computes it.
    if (
        before.op == "affine"
        and before.source == module_path(operation)
        and not any(before.attributes["offset"])
        and len(value.users) == 1
    ):
        attributes = {"scale": before.attributes["scale"], "offset": offset}
        fused = Node(before.name, "affine", before.inputs, before.shape, attributes, {}, before.source, operation.name)
        tracer.replace_last(operation, fused)
        return
    tracer.emit(operation, "affine", [value], {"scale": (1.0,) * len(offset), "offset": offset})


def _multiply(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    value, other = given["self"], given["other"]
    if tracer.weight_name(value) is not None or tracer.constant(value) is not None:
        value, other = other, value
    weight = tracer.weight_name(other)
    constant = tracer.constant(other)
    if weight is not None:
        channels = channels_first(shape_of(operation), tracer.is_channels_last(value))[0]
        size = tracer.recording.state[weight].numel()
        if size != channels:
            raise NoKerasCounterpart(
                "aten.mul", module_path(operation), f"by a weight of {size} for {channels} channels"
            )
        tracer.emit(operation, "channel_scale", [value], {}, {"scale": other})
    elif constant is not None:
        scale = _per_channel(operation, constant)
        tracer.emit(operation, "affine", [value], {"scale": scale, "offset": (0.0,) * len(scale)})
    else:
        tracer.emit(operation, "multiply", [value, other])


def _per_channel(operation: fx.Node, constant: np.ndarray) -> tuple[float, ...]:
    """A constant of shape (1, C, 1, 1), (C, 1, 1) or () as C floats, without rounding."""
    channels = shape_of(operation)[0]
    shape = (1,) * (4 - constant.ndim) + constant.shape
    if shape not in ((1, channels, 1, 1), (1, 1, 1, 1)):
        raise NoKerasCounterpart(str(operation.target), module_path(operation), f"constant of shape {constant.shape}")
    return tuple(float(value) for value in np.broadcast_to(constant.reshape(-1), (channels,)))


CONVERTERS: dict[str, Converter] = {
    "aten.sub": _subtract,
    "aten.add": _add,
    "aten.mul": _multiply,
}

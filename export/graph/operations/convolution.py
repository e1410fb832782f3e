"""Convolutions and dense layers, with the padding that belongs to them."""

from __future__ import annotations

from typing import Any

from torch import fx

from export.graph.record import module_path
from export.graph.tracer import (
    Converter,
    NoKerasCounterpart,
    Tracer,
    arguments,
    name_of,
    pair,
    shape_of,
)


def _conv2d(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    padding = _conv_padding(given)
    source = given["input"]
    # timm's pad_type="same" and any other explicit zero padding become part of the convolution, like TensorFlow's SAME
    if source.op == "call_function" and name_of(source) == "aten.pad" and len(source.users) == 1:
        before = _zero_padding(source)
        padding = [own + extra for own, extra in zip(padding, before, strict=True)]
        source = source.args[0]
    tracer.emit(
        operation,
        "conv2d",
        [source],
        {
            "strides": pair(given["stride"]),
            "padding": tuple(padding),
            "dilation": pair(given["dilation"]),
            "groups": int(given["groups"]),
        },
        {"kernel": given["weight"], "bias": given["bias"]},
    )


def _conv_padding(given: dict[str, Any]) -> list[int]:
    """Top, bottom, left, right of a convolution; ``same`` and ``valid`` as numbers (torch's same allows no stride)."""
    if given["padding"] == "valid":
        return [0, 0, 0, 0]
    if given["padding"] == "same":
        kernel, dilation = shape_of(given["weight"])[-2:], pair(given["dilation"])
        totals = [dilation[axis] * (kernel[axis] - 1) for axis in (0, 1)]
        return [part for total in totals for part in (total // 2, total - total // 2)]
    rows, columns = pair(given["padding"])
    return [rows, rows, columns, columns]


def _zero_padding(operation: fx.Node) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) of an `aten.pad`, whose own order is left, right, top, bottom."""
    given = arguments(operation)
    left, right, top, bottom = (*given["pad"], 0, 0, 0, 0)[:4]
    if given["mode"] != "constant" or given["value"] not in (None, 0, 0.0) or min(given["pad"]) < 0:
        raise NoKerasCounterpart("aten.pad", module_path(operation), "only padding with zeros")
    return top, bottom, left, right


def _pad(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    readers = [name_of(user) for user in operation.users]
    if readers != ["aten.conv2d"]:  # a convolution that is its only reader includes it, see `_conv2d`
        tracer.emit(operation, "pad", [given["self"]], {"padding": _zero_padding(operation)})


def _linear(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    source = given["input"]
    if len(shape_of(source)) != 1 and not tracer.is_channels_last(source):
        raise NoKerasCounterpart("aten.linear", module_path(operation), f"on shape {shape_of(source)}, not on channels")
    tracer.emit(operation, "dense", [source], {}, {"kernel": given["weight"], "bias": given["bias"]})


CONVERTERS: dict[str, Converter] = {
    "aten.conv2d": _conv2d,
    "aten.pad": _pad,
    "aten.linear": _linear,
}

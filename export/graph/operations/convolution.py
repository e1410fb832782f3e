"""Convolutions and dense layers, with the padding that belongs to them."""

from __future__ import annotations

from typing import Any

from torch import fx

from export.graph.operations.places import padding_before
from export.graph.record import module_path
from export.graph.simpler.windows import pair
from export.graph.tracer import (
    Converter,
    NoKerasCounterpart,
    Tracer,
    shape_of,
)


def attributes_of(given: dict[str, Any]) -> dict[str, Any]:
    """What a node of an `aten.conv2d` states."""
    return {
        "strides": pair(given["stride"]),
        "padding": tuple(_conv_padding(given)),
        "dilation": pair(given["dilation"]),
        "groups": int(given["groups"]),
    }


def _conv2d(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    attributes, source = attributes_of(given), given["input"]
    # timm's pad_type="same" and any other explicit zero padding become part of the convolution, like TensorFlow's SAME
    before = padding_before(source, 0.0)
    if before is not None:
        attributes["padding"] = tuple(own + extra for own, extra in zip(attributes["padding"], before, strict=True))
        source = source.args[0]
    tracer.emit(operation, "conv2d", [source], attributes, {"kernel": given["weight"], "bias": given["bias"]})


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


def _conv_transpose2d(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    if int(given["groups"]) != 1 or pair(given["dilation"]) != (1, 1):
        why = f"of {given['groups']} groups, with dilation {given['dilation']}"
        raise NoKerasCounterpart("aten.conv_transpose2d", module_path(operation), why)
    source, padding, strides = given["input"], pair(given["padding"]), pair(given["stride"])
    before, after, kernel = shape_of(source)[1:], shape_of(operation)[1:], shape_of(given["weight"])[-2:]
    crop: list[int] = []
    for axis in (0, 1):
        whole = (before[axis] - 1) * strides[axis] + kernel[axis]
        crop += [padding[axis], whole - padding[axis] - after[axis]]
    if min(crop) < 0:
        raise NoKerasCounterpart("aten.conv_transpose2d", module_path(operation), "padded by more than it crops")
    attributes = {"strides": strides, "crop": tuple(crop), "same": False}
    weights = {"kernel": given["weight"], "bias": given["bias"]}
    tracer.emit(operation, "conv2d_transpose", [source], attributes, weights)


def _linear(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    source = given["input"]
    if len(shape_of(source)) != 1 and not tracer.is_channels_last(source):
        raise NoKerasCounterpart("aten.linear", module_path(operation), f"on shape {shape_of(source)}, not on channels")
    tracer.emit(operation, "dense", [source], {}, {"kernel": given["weight"], "bias": given["bias"]})


CONVERTERS: dict[str, Converter] = {
    "aten.conv2d": _conv2d,
    "aten.conv_transpose2d": _conv_transpose2d,
    "aten.linear": _linear,
}

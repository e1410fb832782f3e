"""Pooling and upsampling."""

from __future__ import annotations

from typing import Any

from torch import fx

from export.graph.record import module_path
from export.graph.tracer import (
    Converter,
    NoKerasCounterpart,
    Tracer,
    channels_first,
    is_part,
    name_of,
    pair,
    shape_of,
)


def _adaptive_pool(op: str) -> Converter:
    def convert(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
        size, places = tuple(given["output_size"]), shape_of(given["self"])[-2:]
        if size == (1, 1):
            _global_pool(tracer, operation, op)
        elif size == places:  # each place is pooled alone, as in a VGG at its own size
            tracer.alias(operation, given["self"])
        else:
            why = f"from {list(places)} to {list(size)}"
            raise NoKerasCounterpart(name_of(operation), module_path(operation), why)

    return convert


def _mean(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    source = given["self"]
    places = (1, 2) if tracer.is_channels_last(source) else (2, 3)
    if sorted(axis % 4 for axis in given["dim"] or ()) != list(places) or len(shape_of(source)) != 3:
        raise NoKerasCounterpart("aten.mean", module_path(operation), f"over dimensions {given['dim']}")
    _global_pool(tracer, operation, "global_average_pool")


def _global_pool(tracer: Tracer, operation: fx.Node, op: str) -> None:
    """Keep the two dimensions of size 1 only where something other than a flatten reads them."""
    readers = [reader for user in operation.users for reader in (user.users if is_part(user) else (user,))]
    keep = len(shape_of(operation)) == 3 and any(name_of(reader) != "aten.flatten" for reader in readers)
    source = operation.args[0]
    shape = channels_first(shape_of(operation), tracer.is_channels_last(source))  # type: ignore[arg-type]
    tracer.emit(operation, op, [source], {"keep_dimensions": keep}, shape=shape if keep else shape[:1])  # type: ignore[list-item]


def _max_pool(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    if pair(given["dilation"]) != (1, 1):
        raise NoKerasCounterpart("aten.max_pool2d", module_path(operation), f"with dilation {given['dilation']}")
    tracer.emit(operation, "max_pool", [given["self"]], _window(operation, given))


def _average_pool(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    if given["divisor_override"] is not None:
        raise NoKerasCounterpart("aten.avg_pool2d", module_path(operation), "with a divisor of its own")
    window = _window(operation, given)
    tracer.emit(
        operation, "average_pool", [given["self"]], {**window, "count_padding": bool(given["count_include_pad"])}
    )


def _window(operation: fx.Node, given: dict[str, Any]) -> dict[str, Any]:
    """Kernel, strides and padding of a pooling; with `ceil_mode`, the end is padded for the window that sticks out."""
    kernel, strides = pair(given["kernel_size"]), pair(given["stride"] or given["kernel_size"])
    rows, columns = pair(given["padding"])
    padding = [rows, rows, columns, columns]
    if given["ceil_mode"]:
        size, result = shape_of(given["self"])[-2:], shape_of(operation)[-2:]
        for axis in (0, 1):
            covered = (result[axis] - 1) * strides[axis] + kernel[axis]
            padding[2 * axis + 1] = max(covered - size[axis] - padding[2 * axis], 0)
    return {"kernel": kernel, "strides": strides, "padding": tuple(padding)}


def _upsample(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    before, after = shape_of(given["input"])[-2:], shape_of(operation)[-2:]
    if any(large % small for small, large in zip(before, after, strict=True)):
        raise NoKerasCounterpart(name_of(operation), module_path(operation), f"from {before} to {after}")
    factors = (after[0] // before[0], after[1] // before[1])
    tracer.emit(operation, "upsample", [given["input"]], {"factors": factors})


CONVERTERS: dict[str, Converter] = {
    "aten.upsample_nearest2d": _upsample,
    "aten.mean": _mean,
    "aten.max_pool2d": _max_pool,
    "aten.avg_pool2d": _average_pool,
    "aten.adaptive_avg_pool2d": _adaptive_pool("global_average_pool"),
    "aten.adaptive_max_pool2d": _adaptive_pool("global_max_pool"),
}

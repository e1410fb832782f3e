"""Pooling, means and maxima."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional

from export.graph.operations.places import Along, average_along, emit_map, padding_before
from export.graph.record import module_path
from export.graph.simpler.windows import pair
from export.graph.tracer import (
    Converter,
    NoKerasCounterpart,
    Tracer,
    channels_first,
    is_part,
    name_of,
    shape_of,
)


def _adaptive_pool(op: str) -> Converter:
    def convert(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
        source, size = given["self"], shape_of(operation)[-2:]
        places = shape_of(source)[-2:]
        if size == (1, 1):
            _global_pool(tracer, operation, op)
        elif size == places:  # each place is pooled alone, as in a VGG at its own size
            tracer.alias(operation, source)
        elif op == "global_average_pool":

            def along(result: int) -> Along:
                return lambda value: functional.adaptive_avg_pool2d(value, (result, 1))

            emit_map(tracer, operation, source, along(size[0]), along(size[1]))
        elif any(large % small for small, large in zip(size, places, strict=True)):
            why = f"from {list(places)} to {list(size)}"
            raise NoKerasCounterpart(name_of(operation), module_path(operation), why)
        else:
            kernel = (places[0] // size[0], places[1] // size[1])
            tracer.emit(operation, "max_pool", [source], {"kernel": kernel, "strides": kernel, "padding": (0, 0, 0, 0)})

    return convert


def _reduced(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> tuple[int, ...]:
    """Which axes of (C, H, W) an operation reduces: 0, 1, 2; as torch may hold them in another order."""
    source = given["self"]
    if given.get("dim") in (None, []):
        raise NoKerasCounterpart(name_of(operation), module_path(operation), "over everything, all images included")
    if source.name in tracer.layout_of:
        tracer.as_map(source)
    rank = len(shape_of(source))
    dims = given["dim"] if isinstance(given["dim"], list | tuple) else [given["dim"]]
    axes = sorted(axis % (rank + 1) - 1 for axis in dims if axis is not None)
    if rank != 3 or not axes or -1 in axes:
        raise NoKerasCounterpart(name_of(operation), module_path(operation), f"over dimensions {given['dim']}")
    if tracer.is_channels_last(source):
        in_keras = tuple(sorted((axis + 1) % 3 for axis in axes))
        if in_keras in ((0,), (1,), (2,), (1, 2)):
            return in_keras
        tracer.as_map(source)
    return tuple(axes)


def _mean(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    axes, source = _reduced(tracer, operation, given), given["self"]
    if axes == (1, 2):
        _global_pool(tracer, operation, "global_average_pool")
    elif axes == (0,) and given["keepdim"]:
        squared = source.args[0] if source.op == "call_function" else None
        node = tracer.nodes[tracer.input_name(source)]
        if isinstance(squared, fx.Node) and (node.op, set(node.inputs)) == (
            "multiply",
            {tracer.node_of.get(squared.name)},
        ):
            attributes = {"centred": False, "factor": 1.0, "epsilon": 0.0}
            tracer.mean_squares[operation.name] = (squared, attributes)
        channels = tracer.nodes[tracer.input_name(source)].shape[0]
        tracer.emit(operation, "map_channels", [source], {"matrix": ((1.0 / channels,) * channels,)})
    elif given["keepdim"] and len(axes) == 1:
        _along_one(tracer, operation, source, axes[0], lambda value: value.mean(2, keepdim=True))
    else:
        raise NoKerasCounterpart(name_of(operation), module_path(operation), f"over dimensions {given['dim']}")


def _sum(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    axes, source = _reduced(tracer, operation, given), given["self"]
    if axes == (0,) and given["keepdim"]:
        channels = tracer.nodes[tracer.input_name(source)].shape[0]
        tracer.emit(operation, "map_channels", [source], {"matrix": ((1.0,) * channels,)})
    elif given["keepdim"] and 0 not in axes:

        def added(value: Tensor) -> Tensor:
            return value.sum(2, keepdim=True)

        emit_map(tracer, operation, source, added if 1 in axes else None, added if 2 in axes else None)
    else:
        raise NoKerasCounterpart(name_of(operation), module_path(operation), f"over dimensions {given['dim']}")


def _along_one(tracer: Tracer, operation: fx.Node, source: fx.Node, axis: int, along: Along) -> None:
    emit_map(tracer, operation, source, along if axis == 1 else None, along if axis == 2 else None)


def _largest(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    """`amax`, or `max` with a dimension."""
    axes, source = _reduced(tracer, operation, given), given["self"]
    node = tracer.nodes[tracer.input_name(source)]
    if axes == (1, 2):
        _global_pool(tracer, operation, "global_max_pool")
    elif axes == (0,) and given["keepdim"]:
        tracer.emit(operation, "channel_max", [source])
    elif len(axes) == 1 and given["keepdim"]:
        kernel = (node.shape[1] if axes == (1,) else 1, node.shape[2] if axes == (2,) else 1)
        tracer.emit(operation, "max_pool", [source], {"kernel": kernel, "strides": kernel, "padding": (0, 0, 0, 0)})
    else:
        raise NoKerasCounterpart(name_of(operation), module_path(operation), f"over dimensions {given['dim']}")


def _global_pool(tracer: Tracer, operation: fx.Node, op: str) -> None:
    """Keep the two dimensions of size 1 only where something other than a flatten reads them."""
    readers = [reader for user in operation.users for reader in (user.users if is_part(user) else (user,))]
    keep = len(shape_of(operation)) == 3 and any(name_of(reader) != "aten.flatten" for reader in readers)
    source = operation.args[0]
    shape = channels_first(shape_of(operation), tracer.is_channels_last(source))  # type: ignore[arg-type]
    tracer.emit(operation, op, [source], {"keep_dimensions": keep}, shape=shape if keep else shape[:1])  # type: ignore[list-item]


def _max_pool(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    source, window = given["self"], window_of(operation, given)
    before = padding_before(source, -torch.inf)  # TensorFlow's SAME, as NASNet has it
    if before is not None:
        source = source.args[0]
        window["padding"] = tuple(own + extra for own, extra in zip(window["padding"], before, strict=True))
    tracer.emit(operation, "max_pool", [source], window)


def _average_pool(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    source, window = given["self"], window_of(operation, given)
    count = bool(given["count_include_pad"])
    rows, columns = pair(given["padding"])
    if count and window["padding"] != (rows, rows, columns, columns):
        # with `ceil_mode`, of what a window covers beyond the map only the padding is counted
        emit_map(tracer, operation, source, average_along(given, 0), average_along(given, 1))
        return
    tracer.emit(operation, "average_pool", [source], {**window, "count_padding": count})


def window_of(operation: fx.Node, given: dict[str, Any]) -> dict[str, Any]:
    """Kernel, strides and padding of a pooling; with `ceil_mode`, the end is padded for the window that sticks out."""
    if pair(given.get("dilation", 1)) != (1, 1):
        raise NoKerasCounterpart(name_of(operation), module_path(operation), f"with dilation {given['dilation']}")
    if given.get("divisor_override") is not None:
        raise NoKerasCounterpart(name_of(operation), module_path(operation), "with a divisor of its own")
    kernel, strides = pair(given["kernel_size"]), pair(given["stride"] or given["kernel_size"])
    rows, columns = pair(given["padding"])
    padding = [rows, rows, columns, columns]
    if given["ceil_mode"]:
        size, result = shape_of(given["self"])[-2:], shape_of(operation)[-2:]
        for axis in (0, 1):
            covered = (result[axis] - 1) * strides[axis] + kernel[axis]
            padding[2 * axis + 1] = max(covered - size[axis] - padding[2 * axis], 0)
    return {"kernel": kernel, "strides": strides, "padding": tuple(padding)}


CONVERTERS: dict[str, Converter] = {
    "aten.mean": _mean,
    "aten.sum": _sum,
    "aten.amax": _largest,
    "aten.max": _largest,
    "aten.max_pool2d": _max_pool,
    "aten.max_pool2d_with_indices": _max_pool,
    "aten.avg_pool2d": _average_pool,
    "aten.adaptive_avg_pool2d": _adaptive_pool("global_average_pool"),
    "aten.adaptive_max_pool2d": _adaptive_pool("global_max_pool"),
}

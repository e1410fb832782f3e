"""Operations that move values and compute nothing; dropout, which does nothing in inference."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from export.graph.record import module_path
from export.graph.tracer import (
    Converter,
    NoKerasCounterpart,
    Tracer,
    arguments,
    name_of,
    shape_of,
)


def _several(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    """Split the channels. Each part that is used becomes a node where it is taken, see `_part`."""
    source = given["self"]
    channels = 3 if tracer.is_channels_last(source) else 1
    if len(shape_of(source)) != 3 or given["dim"] % 4 != channels:
        raise NoKerasCounterpart(
            name_of(operation), module_path(operation), f"along dimension {given['dim']}, not channels"
        )


def _part(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    several, index = given["several"], given["index"]
    if several.name in tracer.node_of:  # a node has one output: the first, as in a pooling with its places
        if index:
            raise NoKerasCounterpart(name_of(several), module_path(several), "more than its first result")
        tracer.alias(operation, several)
        return
    source, sizes = several.args[0], several.meta["results"]
    channels = 3 if tracer.is_channels_last(source) else 1
    if name_of(several) == "aten.unbind":
        raise NoKerasCounterpart(name_of(several), module_path(several), "not of channels")
    _several(tracer, several, arguments(several))  # says what is wrong with another dimension
    start = sum(size[channels] for size in sizes[:index])
    _take_channels(tracer, operation, source, start, start + sizes[index][channels])


def _slice(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    source, dim = given["self"], given["dim"] % (len(shape_of(given["self"])) + 1)
    if shape_of(operation) == shape_of(source):
        tracer.alias(operation, source)
        return
    if len(shape_of(source)) != 3 or dim != (3 if tracer.is_channels_last(source) else 1) or given["step"] != 1:
        raise NoKerasCounterpart("aten.slice", module_path(operation), f"along dimension {given['dim']}, not channels")
    channels = shape_of(source)[dim - 1]
    start, stop, _ = slice(given["start"], given["end"]).indices(channels)
    _take_channels(tracer, operation, source, start, stop)


def _take_channels(tracer: Tracer, operation: fx.Node, source: fx.Node, start: int, stop: int) -> None:
    tracer.emit(operation, "slice_channels", [source], {"start": start, "stop": stop})


def _concatenate(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    values = list(given["tensors"])
    if len(values) == 1:  # as in the first layer of a DenseNet's block; Keras's Concatenate needs two or more
        tracer.alias(operation, values[0])
        return
    channels = len(shape_of(operation)) if tracer.is_channels_last(values[0]) else 1
    if given["dim"] % (len(shape_of(operation)) + 1) != channels:
        raise NoKerasCounterpart("aten.cat", module_path(operation), f"along dimension {given['dim']}, not channels")
    tracer.emit(operation, "concatenate", values)


def _permute(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    source, dims = given["self"], [axis % 4 for axis in given["dims"]]
    was_last = tracer.is_channels_last(source)
    if (dims, was_last) == ([0, 2, 3, 1], False):
        tracer.alias(operation, source, channels_last=True)
    elif (dims, was_last) == ([0, 3, 1, 2], True):
        tracer.alias(operation, source, channels_last=False)
    else:
        raise NoKerasCounterpart("aten.permute", module_path(operation), f"to {given['dims']}")


def same_value(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    """The operation's result is its input."""
    tracer.alias(operation, operation.args[0])  # type: ignore[arg-type]


def _of_other_type(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    """Numbers of another type are the same numbers, but for whole ones; what is true counts as 1."""
    source = operation.args[0]
    assert isinstance(source, fx.Node)
    before, after = source.meta["dtype"], operation.meta["dtype"]
    if before != torch.bool and not after.is_floating_point:
        raise NoKerasCounterpart(name_of(operation), module_path(operation), f"from {before} to {after}")
    tracer.alias(operation, source)


def _copied(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    source = given["src"]
    if source.meta["shape"] != operation.meta["shape"]:
        raise NoKerasCounterpart(name_of(operation), module_path(operation), "of another shape")
    tracer.alias(operation, source)


def _flatten(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    before = tracer.nodes[tracer.input_name(given["self"])]
    source = given["self"]
    count = math.prod(before.shape)
    if shape_of(operation) == (before.shape[0], 1, 1) and len(before.shape) == 1:
        tracer.emit(operation, "reshape", [source])
    elif shape_of(operation) == shape_of(source):
        tracer.alias(operation, source)
    elif shape_of(operation) != (count,) or len(before.shape) not in (1, 3):
        why = f"from {list(shape_of(source))} to {list(shape_of(operation))}"
        raise NoKerasCounterpart(name_of(operation), module_path(operation), why)
    elif len(before.shape) == 1:
        tracer.alias(operation, source, channels_last=False)
    elif count > before.shape[0] and not tracer.is_channels_last(source):
        tracer.emit(operation, "flatten_channels", [source])
    else:
        tracer.emit(operation, "flatten", [given["self"]])
        tracer.channels_last.discard(operation.name)


def _dropout(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    source = operation.args[0]  # `input`, or `self` of the one in place
    if given["train"]:
        raise NoKerasCounterpart(name_of(operation), module_path(operation), "that is on in inference, too")
    if given["p"]:
        tracer.emit(operation, "dropout", [source], {"rate": float(given["p"])})  # type: ignore[list-item]
    else:
        tracer.alias(operation, source)  # type: ignore[arg-type]


CONVERTERS: dict[str, Converter] = {
    "aten.split": _several,
    "aten.split_with_sizes": _several,
    "aten.chunk": _several,
    "getitem": _part,
    "aten.slice": _slice,
    "aten.cat": _concatenate,
    "aten.permute": _permute,
    "aten.flatten": _flatten,
    "aten.view": _flatten,
    "aten.reshape": _flatten,
    "aten.alias": same_value,
    "aten.detach": same_value,
    "aten.contiguous": same_value,
    "aten.clone": same_value,
    "aten.dropout": _dropout,
    **dict.fromkeys(("aten.to", "aten._to_copy"), _of_other_type),
    "aten.copy": _copied,
}

# Their result has the numbers of their input in the same order.
SAME_NUMBERS = frozenset(
    f"aten.{name}"
    for name in [
        "alias",
        "clone",
        "contiguous",
        "detach",
        "flatten",
        "reshape",
        "reshape_as",
        "squeeze",
        "unflatten",
        "unsqueeze",
        "view",
        "view_as",
        "_unsafe_view",
    ]
)

"""Convolutions and pools of maps of which an image has several: windows, patches, heads, flipped copies."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import fx

from export.graph.operations import convolution, pooling
from export.graph.operations.any_layout import refused
from export.graph.operations.attention import over_axes, weights_of
from export.graph.tracer import Converter, Tracer


def _or_of_windows(known: Converter, convert: Converter) -> Converter:
    """The known converter where an image has one map, the other where it has several."""

    def either(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
        value = operation.args[0]
        several = isinstance(value, fx.Node) and value.name in tracer.layout_of and tracer.layout(value).own
        (convert if several else known)(tracer, operation, given)

    return either


def _add(tracer: Tracer, operation: fx.Node, op: str, attributes: dict[str, Any], weights: dict[str, str]) -> None:
    """All windows' places and then the channels, as Keras's layers of maps have them."""
    value = operation.args[0]
    assert isinstance(value, fx.Node)
    layout = tracer.layout(value)
    own = len(layout.own)
    if layout.batch_axis != 0 or len(layout.order) != own + 3:
        raise refused(operation, "of what is no map")
    order = (*range(own), own + 2, own, own + 1)
    layout, node = replace(layout, order=order), tracer.in_order(value, order)
    tracer.add(operation, f"{op}_of_windows", [node], layout, attributes, weights)


def _conv2d(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    weights = weights_of(tracer, operation, given, kernel="weight", bias="bias")
    _add(tracer, operation, "conv2d", convolution.attributes_of(given), weights)


def _max_pool(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    _add(tracer, operation, "max_pool", pooling.window_of(operation, given), {})


def _average_pool(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    window, count = pooling.window_of(operation, given), bool(given["count_include_pad"])
    if any(window["padding"]) and (not count or given["ceil_mode"]):
        raise refused(operation, "of several maps of an image, with padding that is not counted")
    _add(tracer, operation, "average_pool", {**window, "count_padding": True}, {})


def _global_pool(op: str) -> Converter:
    def convert(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
        if operation.meta["shape"][-2:] != (1, 1):
            raise refused(operation, "of several maps of an image, to more than one place")
        over_axes(tracer, operation, given["self"], (2, 3), True, op)

    return convert


CONVERTERS: dict[str, Converter] = {
    name: _or_of_windows(known[name], convert)
    for known, name, convert in (
        (convolution.CONVERTERS, "aten.conv2d", _conv2d),
        (pooling.CONVERTERS, "aten.max_pool2d", _max_pool),
        (pooling.CONVERTERS, "aten.max_pool2d_with_indices", _max_pool),
        (pooling.CONVERTERS, "aten.avg_pool2d", _average_pool),
        (pooling.CONVERTERS, "aten.adaptive_avg_pool2d", _global_pool("mean")),
        (pooling.CONVERTERS, "aten.adaptive_max_pool2d", _global_pool("largest")),
    )
}

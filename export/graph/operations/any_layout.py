"""What the converters share that know values of any layout, see `export.graph.layouts`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import fx

from export.graph.layouts import Layout
from export.graph.record import module_path
from export.graph.tracer import Converter, NoKerasCounterpart, Tracer, name_of


def after(first: Converter | None, convert: Converter) -> Converter:
    """A converter for maps and vectors, and one for what it does not take; None: there is none for them alone."""

    def either(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
        usual = operation.meta["shape"][:1] == (tracer.batch,) and not any(
            value.name in tracer.layout_of for value in operation.all_input_nodes
        )
        if first is not None and usual:
            try:
                first(tracer, operation, given)
                return
            except Exception as error:  # a shape that it does not expect
                why = error
            try:
                convert(tracer, operation, given)
            except NoKerasCounterpart as error:
                raise (why if isinstance(why, NoKerasCounterpart) else error) from why
        else:
            convert(tracer, operation, given)

    return either


def refused(operation: fx.Node, why: str) -> NoKerasCounterpart:
    """What is raised for an operation in a form that Keras does not have."""
    return NoKerasCounterpart(name_of(operation), module_path(operation), why)


def image_axis_of(tracer: Tracer, operation: fx.Node, value: fx.Node, dim: int) -> int:
    """The axis of one image's value that a dimension of torch's tensor is."""
    axis = tracer.layout(value).image_axis(dim % len(value.meta["shape"]))
    if axis is None or (dim % len(value.meta["shape"]) == tracer.layout(value).batch_axis):
        raise refused(operation, "along the images")
    return axis


def without(layout: Layout, dims: list[int], rank: int) -> Layout:
    """The layout without some dimensions of torch's tensor, none of which is the batch."""
    gone = {layout.image_axis(dim % rank) for dim in dims}
    kept = [place for axis, place in enumerate(layout.order) if axis not in gone]
    before = sum(dim % rank < layout.batch_axis for dim in dims)
    order = tuple(sorted(kept).index(place) for place in kept)
    return replace(layout, order=order, batch_axis=layout.batch_axis - before)


def with_last(tracer: Tracer, value: fx.Node, axis: int) -> tuple[str, Layout]:
    """A node that has one axis of a value last, and its layout; the others stay as they follow each other."""
    layout = tracer.layout(value)
    places = [place for place in range(len(layout.order)) if place != layout.order[axis]] + [layout.order[axis]]
    order = tuple(places.index(place) for place in layout.order)
    return tracer.in_order(value, order), replace(layout, order=order)


def several_of(value: Any) -> list[int]:
    """One number, or several, as a list."""
    return list(value) if isinstance(value, list | tuple) else [value]


def same_for_all(value: fx.Node) -> fx.Node:
    """A weight that is repeated for every image, before it is repeated."""
    while value.op == "call_function" and name_of(value) in ("aten.expand", "aten.expand_as", "aten.repeat"):
        before = value.args[0]
        assert isinstance(before, fx.Node)
        value = before
    return value

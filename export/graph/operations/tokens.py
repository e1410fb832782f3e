"""What moves values of any layout, such as tokens, heads and windows: reshapes, permutations, parts and joins.

What torch moves stays where it is in Keras as long as possible, see `export.graph.layouts`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from torch import fx

from export.graph.layouts import MAP, Layout, moved_batch, reshaped
from export.graph.operations import attention, powers, windows
from export.graph.operations.any_layout import after, image_axis_of, refused, several_of, without
from export.graph.tracer import Converter, Tracer, arguments, name_of, of_weights


def converters(known: dict[str, Converter]) -> dict[str, Converter]:
    """Converters for values of any layout, which leave maps and vectors to those that are known for them."""
    both = {name: after(known.get(name), convert) for name, convert in _ANY_LAYOUT.items()}
    noted = {name: powers.noting_squares(both[name]) for name in _MAY_BE_SQUARES}
    return {**both, **noted, **windows.CONVERTERS, "getitem": _part_by(known["getitem"])}


def _regroup(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    """Reshape, view, flatten, squeeze, unsqueeze: the same numbers in torch's order, in the recorded shape."""
    value = operation.args[0]
    assert isinstance(value, fx.Node)
    before, after = value.meta["shape"], operation.meta["shape"]
    layout = tracer.layout(value)
    if math.prod(before) != math.prod(after):
        raise refused(operation, f"from {list(before)} to {list(after)}")
    batch = moved_batch(layout, before, after, tracer.batch)
    if batch is None:
        raise refused(operation, f"from {list(before)} to {list(after)}, which mixes images")
    new = Layout((), *batch)
    source, target = layout.of_image(before), new.of_image(after)
    order = reshaped(layout.order, source, target)
    if order is None:
        node = tracer.in_order(value, tuple(range(len(source))))
        order = tuple(range(len(target)))
    else:
        node = tracer.input_name(value)
    new = replace(new, order=order)
    held = tracer.nodes[node]
    # a single number is an axis of one in Keras
    if (*held.shape[1:], held.shape[0]) == (new.in_keras(target) or (1,)):
        tracer.place(operation, node, new)
    else:
        source_node = held.inputs[0] if held.op == "regroup" else node  # two reshapes are one
        tracer.add(operation, "regroup", [source_node], new)


def _transpose(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    value = operation.args[0]
    assert isinstance(value, fx.Node)
    rank = len(value.meta["shape"])
    if "dims" in given:
        dims = [dim % rank for dim in given["dims"]]
    elif "source" in given:  # movedim
        moved, places = ([each % rank for each in several_of(given[name])] for name in ("source", "destination"))
        dims = [dim for dim in range(rank) if dim not in moved]
        for place, dim in sorted(zip(places, moved, strict=True)):
            dims.insert(place, dim)
    else:
        one, other = (given.get(name, default) % rank for name, default in (("dim0", -2), ("dim1", -1)))
        dims = [{one: other, other: one}.get(dim, dim) for dim in range(rank)]
    layout = tracer.layout(value)
    order: list[int] = []
    for dim in dims:
        axis = layout.image_axis(dim)
        own = range(layout.batch_axis, layout.batch_axis + len(layout.own)) if axis is None else [axis]
        order.extend(layout.order[each] for each in own)
    place = dims.index(layout.batch_axis)
    tracer.place(operation, tracer.input_name(value), replace(layout, order=tuple(order), batch_axis=place))


def _parts(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    """Nothing: each part that is used becomes a node where it is taken, see `_part`."""


def _part_by(of_channels: Converter) -> Converter:
    """Parts of a map's channels, and the results of other operations, are taken as ever."""

    def convert(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
        several = given["several"]
        source, dim = several.args[0], arguments(several).get("dim", 0)
        in_parts = name_of(several) in _SEVERAL and several.name not in tracer.node_of
        is_map = in_parts and name_of(several) != "aten.unbind" and tracer.layout(source) in (MAP, Layout((0, 1, 2)))
        if not in_parts or (is_map and dim % 4 == (3 if tracer.is_channels_last(source) else 1)):
            of_channels(tracer, operation, given)
        else:
            _part(tracer, operation, given)

    return convert


def _part(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    several, index = given["several"], given["index"]
    source, dim = several.args[0], arguments(several).get("dim", 0)
    if name_of(several) == "aten.unbind":
        _cut(tracer, operation, source, dim, index, index + 1)
        return
    sizes = [size[dim] for size in several.meta["results"]]
    _cut(tracer, operation, source, dim, sum(sizes[:index]), sum(sizes[: index + 1]))


def _slice(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    source, dim = given["self"], given["dim"]
    if operation.meta["shape"] == source.meta["shape"]:
        tracer.alias(operation, source)
        return
    start, stop, step = slice(given["start"], given["end"], given["step"]).indices(source.meta["shape"][dim])
    _cut(tracer, operation, source, dim, start, stop, step)


def _select(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    source, dim = given["self"], given["dim"]
    index = given["index"] % source.meta["shape"][dim]
    _cut(tracer, operation, source, dim, index, index + 1)


def _cut(tracer: Tracer, operation: fx.Node, source: fx.Node, dim: int, start: int, stop: int, step: int = 1) -> None:
    """Take a part of one axis; `operation` says by its shape whether an axis of one is left out."""
    layout, rank = tracer.layout(source), len(source.meta["shape"])
    if dim % rank == layout.batch_axis and layout.outer > 1:
        _cut_images(tracer, operation, source, start, stop, step)
        return
    axis = image_axis_of(tracer, operation, source, dim)
    attributes = {"axis": layout.order[axis], "start": start, "stop": stop, "step": step}
    node = tracer.input_name(source)
    if len(operation.meta["shape"]) < rank:
        layout = without(layout, [dim], rank)
    tracer.add(operation, "cut", [node], layout, attributes)


def _cut_images(tracer: Tracer, operation: fx.Node, source: fx.Node, start: int, stop: int, step: int) -> None:
    """Of all images several times, one after the other, as `_join_images` has them: some of the times."""
    layout = tracer.layout(source)
    each, axis = tracer.batch * layout.merged, layout.batch_axis
    if start % each or stop % each or step != 1 or len(operation.meta["shape"]) < len(source.meta["shape"]):
        raise refused(operation, "along the images")
    count, place, order = (stop - start) // each, layout.order[axis], list(layout.order)
    if count == 1:
        del order[axis]
        order = [other - (other > place) for other in order]
    attributes = {"axis": place, "start": start // each, "stop": stop // each, "step": 1}
    new = replace(layout, order=tuple(order), outer=count)
    tracer.add(operation, "cut", [tracer.input_name(source)], new, attributes)


def _join_images(tracer: Tracer, operation: fx.Node, values: list[fx.Node]) -> None:
    """Maps and their mirror images, one batch after the other: so many values of each image."""
    first = tracer.layout(values[0])
    several, axis = first.outer > 1, first.batch_axis
    for value in values:
        layout = tracer.layout(value)
        if not value.meta["computed"] or (layout.outer > 1) != several:
            raise refused(operation, "along the images")
        if replace(layout, order=first.order, outer=first.outer) != first:
            raise refused(operation, "of values that have the images elsewhere")
    if several:  # the times are in front
        inner = [place - (place > first.order[axis]) for place in first.order[:axis] + first.order[axis + 1 :]]
    else:
        inner = list(first.order)
    order = (*(place + 1 for place in inner[:axis]), 0, *(place + 1 for place in inner[axis:]))
    nodes = [tracer.in_order(value, order if several else first.order) for value in values]
    times = sum(tracer.layout(value).outer for value in values)
    joined = replace(first, order=order, outer=times)
    tracer.add(operation, "join" if several else "stack", nodes, joined, {"axis": 0})


def _join(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    values = list(given["tensors"])
    if len(values) == 1:
        tracer.alias(operation, values[0])
        return
    first = next(value for value in values if value.meta["computed"])
    if given["dim"] % len(operation.meta["shape"]) == tracer.layout(first).batch_axis:
        _join_images(tracer, operation, values)
        return
    axis, layout = image_axis_of(tracer, operation, first, given["dim"]), tracer.layout(first)
    nodes = []
    for value in values:
        if not value.meta["computed"]:
            nodes.append(_array(tracer, operation, value, first))
        elif replace(tracer.layout(value), order=layout.order) == layout:
            nodes.append(tracer.in_order(value, layout.order))
        else:
            raise refused(operation, "of values that have the images elsewhere")
    place = layout.order[axis]
    if place == len(layout.order) - 1:
        tracer.add(operation, "concatenate", nodes, layout)
    else:
        tracer.add(operation, "join", nodes, layout, {"axis": place})


def _array(tracer: Tracer, operation: fx.Node, value: fx.Node, beside: fx.Node) -> str:
    """A node that has the same array for every image, a class token or coordinates, in the layout of `beside`."""
    layout, constant = tracer.layout(beside), tracer.constant(value)
    of_image = layout.of_image(value.meta["shape"])
    attributes: dict[str, Any] = {"shape": of_image, "order": layout.order, "constant": None}
    if constant is not None:
        one = attention.of_one_image(operation, constant, layout.batch_axis, layout)
        attributes["constant"] = tuple(float(each) for each in one.reshape(-1))
        return tracer.add(operation, "array", [tracer.input_name(beside)], layout, attributes, value=value)
    name = attention.weight_of_one_image(tracer, operation, value, of_image, layout)
    if value.op != "call_function":
        raise of_weights(operation)
    return tracer.add(operation, "array", [tracer.input_name(beside)], layout, attributes, {"array": name}, value=value)


def _roll(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    value, layout = given["self"], tracer.layout(given["self"])
    axes = [layout.order[image_axis_of(tracer, operation, value, dim)] for dim in several_of(given["dims"])]
    shifts = several_of(given["shifts"])
    tracer.add(operation, "roll", [tracer.input_name(value)], layout, {"axes": tuple(axes), "shifts": tuple(shifts)})


def _pad(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    """Zeros around (B, H, W, C); Swin pads by nothing where the windows fit."""
    value = given["self"]
    amounts = tuple(given["pad"])
    if not any(amounts):
        tracer.alias(operation, value)
        return
    layout, node = tracer.layout(value), tracer.input_name(value)
    sides = {
        -1 - dim: amounts[2 * dim : 2 * dim + 2] for dim in range(len(amounts) // 2) if any(amounts[2 * dim :][:2])
    }
    if given["mode"] != "constant" or min(amounts) < 0:
        raise refused(operation, f"of mode {given['mode']}, or with negative numbers")
    number = float(given["value"] or 0.0)
    if math.isinf(number):
        raise refused(operation, f"with {number}, and no maximum follows")
    if len(sides) == 1:
        ((dim, (before, after)),) = sides.items()
        axis = layout.order[image_axis_of(tracer, operation, value, dim)]
        attributes = {"axis": axis, "before": before, "after": after, "value": number}
        tracer.add(operation, "pad_axis", [node], layout, attributes)
    elif layout == Layout((0, 1, 2)) and sides.keys() <= {-2, -3} and number == 0:
        (left, right), (top, bottom) = sides.get(-2, (0, 0)), sides.get(-3, (0, 0))
        tracer.add(operation, "pad", [node], layout, {"padding": (top, bottom, left, right)})
    else:
        raise refused(operation, f"of several axes, {list(amounts)}")


def _stack(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    """The new axis is beside the one that torch puts it in front of, so that a reshape may merge them."""
    values, rank = list(given["tensors"]), len(operation.meta["shape"])
    layout, dim = tracer.layout(values[0]), given["dim"] % rank
    if any(replace(tracer.layout(value), order=layout.order) != layout for value in values):
        raise refused(operation, "of values that have the images elsewhere")
    nodes = [tracer.in_order(value, layout.order) for value in values]
    in_front = dim <= layout.batch_axis
    axis = dim if in_front else dim - 1 + len(layout.own)
    place = layout.order[axis] if axis < len(layout.order) else len(layout.order)
    order = [each + (each >= place) for each in layout.order]
    stacked = replace(layout, order=(*order[:axis], place, *order[axis:]), batch_axis=layout.batch_axis + in_front)
    tracer.add(operation, "stack", nodes, stacked, {"axis": place})


_MAY_BE_SQUARES = ("aten.mean", "aten.sum", "aten.add", "aten.mul", "aten.div")
_SEVERAL = ("aten.split", "aten.split_with_sizes", "aten.chunk", "aten.unbind", "aten.tensor_split")

_ANY_LAYOUT: dict[str, Converter] = {
    **dict.fromkeys(
        (
            "aten.view", "aten.reshape", "aten._unsafe_view", "aten.flatten", "aten.unflatten", "aten.squeeze",
            "aten.unsqueeze",
        ),
        _regroup,
    ),
    **dict.fromkeys(
        (
            "aten.permute", "aten.transpose", "aten.swapaxes", "aten.swapdims", "aten.movedim", "aten.moveaxis",
            "aten.t", "aten.mT", "aten.numpy_T",
        ),
        _transpose,
    ),
    **dict.fromkeys(_SEVERAL, _parts),
    "aten.slice": _slice,
    "aten.select": _select,
    "aten.cat": _join,
    "aten.stack": _stack,
    "aten.roll": _roll,
    "aten.pad": _pad,
    **attention.CONVERTERS,
    **powers.ANY_LAYOUT,
}  # fmt: skip
# Names of the operations that may move the batch, and look after it.
ANY_LAYOUT = frozenset({*_ANY_LAYOUT, *windows.CONVERTERS, "getitem"})

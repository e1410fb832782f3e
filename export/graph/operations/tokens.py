"""Values of any layout, such as tokens, heads and windows: what moves them, and what works along one of their axes.

What torch moves stays where it is in Keras as long as possible, see `export.graph.layouts`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from torch import fx

from export.graph.layouts import MAP, Layout, moved_batch, reshaped
from export.graph.record import module_path
from export.graph.tracer import Converter, NoKerasCounterpart, Tracer, arguments, name_of, of_weights


def converters(known: dict[str, Converter]) -> dict[str, Converter]:
    """Converters for values of any layout, which leave maps and vectors to those that are known for them."""
    return {
        **{name: _after(known.get(name), convert) for name, convert in _ANY_LAYOUT.items()},
        "getitem": _part_by(known["getitem"]),
    }


def _after(first: Converter | None, convert: Converter) -> Converter:
    def either(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
        usual = operation.meta["shape"][:1] == (tracer.batch,) and not any(
            value.name in tracer.layout_of for value in operation.all_input_nodes
        )
        if first is not None and usual:
            try:
                first(tracer, operation, given)
                return
            except Exception as error:  # a shape that it does not expect
                refused = error
            try:
                convert(tracer, operation, given)
            except NoKerasCounterpart:
                raise (refused if isinstance(refused, NoKerasCounterpart) else _refused(operation, "")) from refused
        else:
            convert(tracer, operation, given)

    return either


def _refused(operation: fx.Node, why: str) -> NoKerasCounterpart:
    return NoKerasCounterpart(name_of(operation), module_path(operation), why)


def _axis(tracer: Tracer, operation: fx.Node, value: fx.Node, dim: int) -> int:
    """The axis of one image's value that a dimension of torch's tensor is."""
    axis = tracer.layout(value).image_axis(dim % len(value.meta["shape"]))
    if axis is None or (dim % len(value.meta["shape"]) == tracer.layout(value).batch_axis):
        raise _refused(operation, "along the images")
    return axis


def _without(layout: Layout, dims: list[int], rank: int) -> Layout:
    """The layout without some dimensions of torch's tensor, none of which is the batch."""
    gone = {layout.image_axis(dim % rank) for dim in dims}
    kept = [place for axis, place in enumerate(layout.order) if axis not in gone]
    before = sum(dim % rank < layout.batch_axis for dim in dims)
    return Layout(tuple(sorted(kept).index(place) for place in kept), layout.batch_axis - before, layout.merged)


def _with_last(tracer: Tracer, value: fx.Node, axis: int) -> tuple[str, Layout]:
    """A node that has one axis of a value last, and its layout; the others stay as they follow each other."""
    layout = tracer.layout(value)
    places = [place for place in range(len(layout.order)) if place != layout.order[axis]] + [layout.order[axis]]
    order = tuple(places.index(place) for place in layout.order)
    return tracer.in_order(value, order), replace(layout, order=order)


# What moves values ----------------------------------------------------------------------------------------------------


def _regroup(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    """Reshape, view, flatten, squeeze, unsqueeze: the same numbers in torch's order, in the recorded shape."""
    value = operation.args[0]
    assert isinstance(value, fx.Node)
    before, after = value.meta["shape"], operation.meta["shape"]
    layout = tracer.layout(value)
    if math.prod(before) != math.prod(after):
        raise _refused(operation, f"from {list(before)} to {list(after)}")
    batch = moved_batch(layout, before, after, tracer.batch)
    if batch is None:
        raise _refused(operation, f"from {list(before)} to {list(after)}, which mixes images")
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
    if (*held.shape[1:], held.shape[0]) == new.in_keras(target):
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
        moved, places = ([each % rank for each in _several_of(given[name])] for name in ("source", "destination"))
        dims = [dim for dim in range(rank) if dim not in moved]
        for place, dim in sorted(zip(places, moved, strict=True)):
            dims.insert(place, dim)
    else:
        pair = [given.get(name, default) for name, default in (("dim0", -2), ("dim1", -1))]
        one, other = (dim % rank for dim in pair)
        dims = [{one: other, other: one}.get(dim, dim) for dim in range(rank)]
    layout = tracer.layout(value)
    axes = [layout.image_axis(dim) if dim != layout.batch_axis else _own_axis(layout) for dim in dims]
    order = tuple(layout.order[axis] for axis in axes if axis is not None)
    tracer.place(operation, tracer.input_name(value), Layout(order, dims.index(layout.batch_axis), layout.merged))


def _own_axis(layout: Layout) -> int | None:
    """The axis of one image's value that torch has merged with the batch; None without one."""
    return layout.batch_axis if layout.merged > 1 else None


def _several_of(value: Any) -> list[int]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _parts(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    """Nothing: each part that is used becomes a node where it is taken, see `_part`."""


def _part_by(of_channels: Converter) -> Converter:
    """Parts of a map's channels, and the results of other operations, are taken as ever."""

    def convert(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
        several = given["several"]
        source, dim = several.args[0], arguments(several).get("dim")
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
    axis, layout, rank = _axis(tracer, operation, source, dim), tracer.layout(source), len(source.meta["shape"])
    attributes = {"axis": layout.order[axis], "start": start, "stop": stop, "step": step}
    node = tracer.input_name(source)
    if len(operation.meta["shape"]) < rank:
        layout = _without(layout, [dim], rank)
    tracer.add(operation, "cut", [node], layout, attributes)


def _join(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    values = list(given["tensors"])
    if len(values) == 1:
        tracer.alias(operation, values[0])
        return
    first = next(value for value in values if value.meta["computed"])
    axis, layout = _axis(tracer, operation, first, given["dim"]), tracer.layout(first)
    nodes = []
    for value in values:
        if not value.meta["computed"]:
            nodes.append(_array(tracer, operation, value, first))
        elif replace(tracer.layout(value), order=layout.order) == layout:
            nodes.append(tracer.in_order(value, layout.order))
        else:
            raise _refused(operation, "of values that have the images elsewhere")
    place = layout.order[axis]
    if place == len(layout.order) - 1:
        tracer.add(operation, "concatenate", nodes, layout)
    else:
        tracer.add(operation, "join", nodes, layout, {"axis": place})


def _array(tracer: Tracer, operation: fx.Node, value: fx.Node, beside: fx.Node) -> str:
    """A node that has the same trained array for every image, such as a class token, in the layout of `beside`."""
    layout = tracer.layout(beside)
    weight = _same_for_all(value)
    name, of_image = tracer.weight_name(weight), layout.of_image(value.meta["shape"])
    if name is None or math.prod(weight.meta["shape"]) != math.prod(of_image) or value.op != "call_function":
        raise of_weights(operation)
    attributes = {"shape": of_image, "order": layout.order, "constant": None}
    return tracer.add(operation, "array", [tracer.input_name(beside)], layout, attributes, {"array": name}, value=value)


def _same_for_all(value: fx.Node) -> fx.Node:
    """A weight that is repeated for every image, before it is repeated."""
    while value.op == "call_function" and name_of(value) in ("aten.expand", "aten.expand_as", "aten.repeat"):
        before = value.args[0]
        assert isinstance(before, fx.Node)
        value = before
    return value


def _roll(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    value, layout = given["self"], tracer.layout(given["self"])
    axes = [layout.order[_axis(tracer, operation, value, dim)] for dim in _several_of(given["dims"])]
    shifts = _several_of(given["shifts"])
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
        raise _refused(operation, f"of mode {given['mode']}, or with negative numbers")
    number = float(given["value"] or 0.0)
    if math.isinf(number):
        raise _refused(operation, f"with {number}, and no maximum follows")
    if len(sides) == 1:
        ((dim, (before, after)),) = sides.items()
        axis = layout.order[_axis(tracer, operation, value, dim)]
        attributes = {"axis": axis, "before": before, "after": after, "value": number}
        tracer.add(operation, "pad_axis", [node], layout, attributes)
    elif layout == Layout((0, 1, 2)) and sides.keys() <= {-2, -3} and number == 0:
        (left, right), (top, bottom) = sides.get(-2, (0, 0)), sides.get(-3, (0, 0))
        tracer.add(operation, "pad", [node], layout, {"padding": (top, bottom, left, right)})
    else:
        raise _refused(operation, f"of several axes, {list(amounts)}")


# What works along an axis ---------------------------------------------------------------------------------------------


def _norm(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    """The length of vectors: nothing but a division of these very vectors may read it, see `_divide_by_norm`."""
    dims = _several_of(given["dim"])
    if float(given["ord"]) != 2 or len(dims) != 1 or not given["keepdim"]:
        raise _refused(operation, f"of order {given['ord']} over {given['dim']}")
    tracer.norms[operation.name] = (given["self"], _axis(tracer, operation, given["self"], dims[0]), 0.0)


def _of_norm(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    """A norm that is not let become 0, or that is repeated for each number."""
    source = operation.args[0]
    if not isinstance(source, fx.Node) or source.name not in tracer.norms:
        raise _refused(operation, "")
    vectors, axis, least = tracer.norms[source.name]
    tracer.norms[operation.name] = (vectors, axis, max(least, float(given.get("min") or 0.0)))


def _divide_by_norm(tracer: Tracer, operation: fx.Node, value: fx.Node, norm: fx.Node) -> None:
    vectors, axis, least = tracer.norms[norm.name]
    if tracer.input_name(vectors) != tracer.input_name(value) or tracer.layout(vectors) != tracer.layout(value):
        raise _refused(operation, "of a value by another's norm")
    node, layout = _with_last(tracer, value, axis)
    tracer.add(operation, "unit_norm", [node], layout, {"least": least})


def _linear(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    value = given["input"]
    node, layout = _with_last(tracer, value, _axis(tracer, operation, value, -1))
    tracer.add(operation, "dense", [node], layout, {}, _weights(tracer, operation, given, kernel="weight", bias="bias"))


def _layer_norm(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    value = given["input"]
    if len(given["normalized_shape"]) != 1:
        raise _refused(operation, "over several axes")
    node, layout = _with_last(tracer, value, _axis(tracer, operation, value, -1))
    weights = _weights(tracer, operation, given, gamma="weight", beta="bias")
    tracer.add(operation, "layer_norm", [node], layout, {"epsilon": float(given["eps"])}, weights)


def _rms_norm(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    value = given["input"]
    if len(given["normalized_shape"]) != 1 or given["eps"] is None:  # without one it is the type's own
        raise _refused(operation, "over several axes, or without an epsilon")
    node, layout = _with_last(tracer, value, _axis(tracer, operation, value, -1))
    weights = _weights(tracer, operation, given, gamma="weight")
    tracer.add(operation, "rms_norm", [node], layout, {"epsilon": float(given["eps"])}, weights)


def _batch_norm(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    value = given["input"]
    if given["training"]:
        raise _refused(operation, "by the statistics of the batch")
    node, layout = _with_last(tracer, value, _axis(tracer, operation, value, 1))
    weights = _weights(
        tracer, operation, given, gamma="weight", beta="bias", moving_mean="running_mean", moving_variance="running_var"
    )
    attributes = {"epsilon": float(given["eps"]), "momentum": 1.0 - float(given["momentum"])}
    tracer.add(operation, "batch_norm", [node], layout, attributes, weights)


def _weights(tracer: Tracer, operation: fx.Node, given: dict[str, Any], **arguments_of: str) -> dict[str, str]:
    names = {
        role: tracer.weight_name(given[name], role == "kernel")
        for role, name in arguments_of.items()
        if given[name] is not None
    }
    for role, name in names.items():
        if name is None:
            raise _refused(operation, f"its {role} is not a weight")
    return {role: name for role, name in names.items() if name}


def _softmax(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    value = given["self"]
    node, layout = _with_last(tracer, value, _axis(tracer, operation, value, given["dim"]))
    tracer.add(operation, "softmax", [node], layout)


def _conv1d(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    value = given["input"]
    node, layout = _with_last(tracer, value, _axis(tracer, operation, value, 1))
    if len(layout.order) != 2 or isinstance(given["padding"], str):
        raise _refused(operation, f"of shape {list(value.meta['shape'])}, with padding {given['padding']}")
    (strides,), (padding,), (dilation,) = (_several_of(given[name]) for name in ("stride", "padding", "dilation"))
    attributes = {"strides": strides, "padding": padding, "dilation": dilation, "groups": int(given["groups"])}
    weights = _weights(tracer, operation, given, kernel="weight", bias="bias")
    tracer.add(operation, "conv1d", [node], layout, attributes, weights)


def _stack(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    """The new axis is beside the one that torch puts it in front of, so that a reshape may merge them."""
    values, rank = list(given["tensors"]), len(operation.meta["shape"])
    layout, dim = tracer.layout(values[0]), given["dim"] % rank
    if layout.batch_axis or layout.merged > 1 or dim == 0:
        raise _refused(operation, "along the images, or of values that have them elsewhere")
    nodes = [tracer.in_order(value, layout.order) for value in values]
    axis = dim - 1
    place = layout.order[axis] if axis < len(layout.order) else len(layout.order)
    order = [each + (each >= place) for each in layout.order]
    tracer.add(operation, "stack", nodes, Layout((*order[:axis], place, *order[axis:])), {"axis": place})


def _reduced(op: str) -> Converter:
    return lambda tracer, operation, given: _mean(tracer, operation, given, op)


def _mean(tracer: Tracer, operation: fx.Node, given: dict[str, Any], op: str) -> None:
    value, rank = given["self"], len(given["self"].meta["shape"])
    if given.get("dim") in (None, []):
        raise _refused(operation, "over everything, all images included")
    dims = [dim % rank for dim in _several_of(given["dim"])]
    axes = [_axis(tracer, operation, value, dim) for dim in dims]
    layout = tracer.layout(value)
    places = sorted(layout.order[axis] for axis in axes)
    if places != list(range(places[0], places[0] + len(places))):
        kept = [place for place in range(len(layout.order)) if place not in places]
        layout = replace(layout, order=tuple([*places, *kept].index(place) for place in layout.order))
        places = list(range(len(places)))
    node = tracer.in_order(value, layout.order)
    if not given["keepdim"]:
        layout = _without(layout, dims, rank)
    tracer.add(operation, op, [node], layout, {"axes": tuple(places)})


# Products of two values -----------------------------------------------------------------------------------------------

# Small matrices for many windows are multiplied number by number: (N, K) by (K, M) takes N * K * M numbers for each.
# Large ones for few heads are multiplied in one matrix product for all heads, which takes as many multiplications more
# as there are heads. A matrix is small if it has fewer than so many rows or columns for each window.
_SMALL = 2


def _matmul(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    left, right = given["self"], given.get("other", given.get("mat2"))
    layout, other = tracer.layout(left), tracer.layout(right)
    one, two = tracer.image_shape(left), tracer.image_shape(right)
    if not (left.meta["computed"] and right.meta["computed"]):
        raise of_weights(operation)
    rank = len(one)
    in_front = layout.batch_axis < len(left.meta["shape"]) - 2
    if (
        not in_front
        or rank != len(two)
        or two[:-2] not in (one[:-2], (1,) * (rank - 2))  # all heads may share their keys
        or (layout.batch_axis, layout.merged) != (other.batch_axis, other.merged)
    ):
        raise _refused(operation, f"of shapes {list(left.meta['shape'])} and {list(right.meta['shape'])}")
    windows = math.prod(two[:-2])
    front = tuple(range(rank - 2))
    if windows > 1 and max(two[-2:]) < _SMALL * windows:
        order = (*front, rank - 2, rank - 1)
        nodes = [tracer.in_order(left, order), tracer.in_order(right, (*front, rank - 1, rank - 2))]
        tracer.add(operation, "matmul_windows", nodes, replace(layout, order=order))
        return
    middle = tuple(place + 1 for place in front)
    order = (*middle, 0, rank - 1)
    last = other.order != order  # as (K, heads, M) if it is held so
    nodes = [
        tracer.in_order(left, order),
        tracer.in_order(right, (*middle, rank - 1, 0) if last else order),
    ]
    tracer.add(operation, "matmul", nodes, replace(layout, order=order), {"last": last})


def _addcmul(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    """One factor and one number to add for each number of the last axis, as ResMLP has them in place of a norm."""
    offset, scale, value = given["self"], given["tensor1"], given["tensor2"]
    if scale.meta["computed"]:
        scale, value = value, scale
    node, layout = _with_last(tracer, value, _axis(tracer, operation, value, -1))
    count = value.meta["shape"][-1]
    sizes = {(*each.meta["shape"][-1:], math.prod(each.meta["shape"])) for each in (offset, scale)}
    if given["value"] != 1 or sizes != {(count, count)}:
        raise _refused(operation, "of other than a value and two weights of its last axis")
    weights = _weights(tracer, operation, {"scale": scale, "offset": offset}, scale="scale", offset="offset")
    tracer.add(operation, "channel_affine", [node], layout, {}, weights)


# With numbers, weights and constants ----------------------------------------------------------------------------------


def _arithmetic(op: str) -> Converter:
    def convert(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
        value, other = given["self"], given["other"]
        sign = -1.0 if op == "subtract" else 1.0
        if given.get("alpha", 1) != 1 or given.get("rounding_mode") is not None:
            raise _refused(operation, "with an alpha, or rounded")
        if op in ("add", "multiply") and not (isinstance(value, fx.Node) and value.meta["computed"]):
            value, other = other, value
        if not (isinstance(value, fx.Node) and value.meta["computed"]):
            raise _refused(operation, "of a number or weight by a value")
        if isinstance(other, fx.Node) and other.meta["computed"]:
            if op == "divide" and other.name in tracer.norms:
                _divide_by_norm(tracer, operation, value, other)
                return
            tracer.emit(operation, op, [value, other])
            return
        constant = tracer.constant(other)
        if constant is not None and constant.size == 1:
            number = float(constant.reshape(())) * sign
            number = 1.0 / number if op == "divide" else number
            scale, offset = (1.0, number) if op in ("add", "subtract") else (number, 0.0)
            layout = tracer.layout(value)
            attributes = {"scale": (scale,), "offset": (offset,)}
            tracer.add(operation, "affine", [tracer.input_name(value)], layout, attributes)
            return
        if op not in ("add", "multiply"):
            raise _refused(operation, "by a weight or constant")
        _with_array(tracer, operation, op, value, other)

    return convert


def _with_array(tracer: Tracer, operation: fx.Node, op: str, value: fx.Node, other: fx.Node) -> None:
    """Add an array that is the same for all images, or multiply by one."""
    layout, shape = tracer.layout(value), value.meta["shape"]
    other = _same_for_all(other)
    own = (*(1,) * (len(shape) - len(other.meta["shape"])), *other.meta["shape"])
    constant, name = tracer.constant(other), tracer.weight_name(other)
    if name is None and constant is None:
        raise of_weights(operation)
    if own[layout.batch_axis] not in (1, tracer.batch * layout.merged) or operation.meta["shape"] != shape:
        raise _refused(operation, f"of an array of shape {list(own)}")
    if own[layout.batch_axis] != 1:
        if layout.batch_axis:
            raise _refused(operation, f"of an array of shape {list(own)}")
        if constant is not None:
            constant = _of_one_image(operation, constant, layout.merged)
        elif name in tracer.computed_tensors:
            array = tracer.computed_tensors[name]
            tracer.computed_tensors[name] = _of_one_image(operation, array, layout.merged)
        else:
            raise _refused(operation, f"of a weight of shape {list(own)}")
        of_image = layout.of_image(own)
    else:
        of_image = (*own[: layout.batch_axis], *(1,) * (layout.merged > 1), *own[layout.batch_axis + 1 :])
    attributes = {
        "shape": of_image,
        "order": layout.order,
        "constant": None if constant is None else tuple(float(each) for each in constant.reshape(-1)),
    }
    weights = {"array": name} if constant is None and name else {}
    tracer.add(operation, f"{op}_array", [tracer.input_name(value)], layout, attributes, weights)


def _of_one_image(operation: fx.Node, array: np.ndarray, merged: int) -> np.ndarray:
    """The first image's part of an array that has one for each."""
    first = array[:merged]
    if not np.array_equal(array, np.concatenate([first] * (len(array) // merged))):
        raise _refused(operation, "of an array that is another for each image")
    return first


_SEVERAL = ("aten.split", "aten.split_with_sizes", "aten.chunk", "aten.unbind", "aten.tensor_split")

_ANY_LAYOUT: dict[str, Converter] = {
    **dict.fromkeys(
        (
            "aten.view", "aten.reshape", "aten._unsafe_view", "aten.flatten", "aten.unflatten", "aten.squeeze",
            "aten.unsqueeze", "aten.view_as", "aten.reshape_as",
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
    "aten.roll": _roll,
    "aten.pad": _pad,
    "aten.linear": _linear,
    "aten.layer_norm": _layer_norm,
    "aten.rms_norm": _rms_norm,
    "aten.batch_norm": _batch_norm,
    "aten.linalg_vector_norm": _norm,
    **dict.fromkeys(("aten.clamp_min", "aten.expand", "aten.expand_as"), _of_norm),
    "aten.softmax": _softmax,
    "aten._softmax": _softmax,
    "aten.mean": _reduced("mean"),
    "aten.sum": _reduced("sum"),
    "aten.stack": _stack,
    "aten.conv1d": _conv1d,
    "aten.addcmul": _addcmul,
    "aten.matmul": _matmul,
    "aten.bmm": _matmul,
    "aten.add": _arithmetic("add"),
    "aten.sub": _arithmetic("subtract"),
    "aten.mul": _arithmetic("multiply"),
    "aten.div": _arithmetic("divide"),
}  # fmt: skip
# Names of the operations that may move the batch, and look after it.
ANY_LAYOUT = frozenset({*_ANY_LAYOUT, "getitem"})

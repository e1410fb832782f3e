"""What works along an axis of values of any layout, and attention's products of two of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import fx

from export.graph.layouts import Layout
from export.graph.operations.any_layout import image_axis_of, refused, same_for_all, several_of, with_last, without
from export.graph.tracer import Converter, Tracer, name_of, of_weights

# What works along an axis ---------------------------------------------------------------------------------------------


def _norm(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    """The length of vectors; what only these very vectors are divided by is part of that, see `_divide_by_norm`."""
    if float(given["ord"]) != 2 or given["dim"] is None:
        raise refused(operation, f"of order {given['ord']} over {given['dim']}")
    dims = several_of(given["dim"])
    if len(dims) != 1 or not given["keepdim"] or not _divides_alone(operation, given["self"]):
        attributes = {"factor": 1.0, "epsilon": 0.0, "inverse": False}
        over_axes(tracer, operation, given["self"], dims, bool(given["keepdim"]), "root_of_squares", **attributes)
        return
    tracer.norms[operation.name] = (given["self"], image_axis_of(tracer, operation, given["self"], dims[0]), 0.0)


def _divides_alone(norm: fx.Node, vectors: fx.Node) -> bool:
    """Whether nothing reads a norm but a division of its vectors, perhaps after it was held above 0 and repeated."""
    for user in norm.users:
        if name_of(user) in ("aten.clamp_min", "aten.clamp_min_", "aten.expand"):
            if user.args[0] is not norm or not _divides_alone(user, vectors):
                return False
        elif name_of(user) not in ("aten.div", "aten.div_") or user.args != (vectors, norm):
            return False
    return True


def _of_norm(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    """A norm that is not let become 0, or that is repeated for each number."""
    source = operation.args[0]
    if not isinstance(source, fx.Node) or source.name not in tracer.norms:
        if "min" in given:
            raise refused(operation, "")
        _repeat(tracer, operation, given)
        return
    vectors, axis, least = tracer.norms[source.name]
    tracer.norms[operation.name] = (vectors, axis, max(least, float(given.get("min") or 0.0)))


def _divide_by_norm(tracer: Tracer, operation: fx.Node, value: fx.Node, norm: fx.Node) -> None:
    vectors, axis, least = tracer.norms[norm.name]
    if tracer.input_name(vectors) != tracer.input_name(value) or tracer.layout(vectors) != tracer.layout(value):
        raise refused(operation, "of a value by another's norm")
    node, layout = with_last(tracer, value, axis)
    tracer.add(operation, "unit_norm", [node], layout, {"least": least})


def _repeat(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    """Axes of one, so often; to a value of more axes torch has a view before."""
    value = given["self"]
    before, after = value.meta["shape"], operation.meta["shape"]
    if before == after:
        tracer.alias(operation, value)
        return
    dims = [dim for dim in range(len(after)) if len(before) == len(after) and before[dim] != after[dim]]
    if not dims:
        raise refused(operation, f"from {list(before)} to {list(after)}")
    layout = tracer.layout(value)
    axes = tuple(layout.order[image_axis_of(tracer, operation, value, dim)] for dim in dims)
    counts = tuple(after[dim] for dim in dims)
    tracer.add(operation, "repeat", [tracer.input_name(value)], layout, {"axes": axes, "counts": counts})


def _linear(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    value = given["input"]
    node, layout = with_last(tracer, value, image_axis_of(tracer, operation, value, -1))
    tracer.add(
        operation, "dense", [node], layout, {}, weights_of(tracer, operation, given, kernel="weight", bias="bias")
    )


def _layer_norm(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    value = given["input"]
    if len(given["normalized_shape"]) != 1:
        raise refused(operation, "over several axes")
    node, layout = with_last(tracer, value, image_axis_of(tracer, operation, value, -1))
    weights = weights_of(tracer, operation, given, gamma="weight", beta="bias")
    tracer.add(operation, "layer_norm", [node], layout, {"epsilon": float(given["eps"])}, weights)


def _rms_norm(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    value = given["input"]
    if len(given["normalized_shape"]) != 1 or given["eps"] is None:  # without one it is the type's own
        raise refused(operation, "over several axes, or without an epsilon")
    node, layout = with_last(tracer, value, image_axis_of(tracer, operation, value, -1))
    weights = weights_of(tracer, operation, given, gamma="weight")
    tracer.add(operation, "rms_norm", [node], layout, {"epsilon": float(given["eps"])}, weights)


def _batch_norm(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    value = given["input"]
    if given["training"]:
        raise refused(operation, "by the statistics of the batch")
    node, layout = with_last(tracer, value, image_axis_of(tracer, operation, value, 1))
    weights = weights_of(
        tracer, operation, given, gamma="weight", beta="bias", moving_mean="running_mean", moving_variance="running_var"
    )
    attributes = {"epsilon": float(given["eps"]), "momentum": 1.0 - float(given["momentum"])}
    tracer.add(operation, "batch_norm", [node], layout, attributes, weights)


def weights_of(tracer: Tracer, operation: fx.Node, given: dict[str, Any], **arguments_of: str) -> dict[str, str]:
    """Role -> tensor, from role -> argument of the operation."""
    names = {
        role: tracer.weight_name(given[name], role == "kernel")
        for role, name in arguments_of.items()
        if given[name] is not None
    }
    for role, name in names.items():
        if name is None:
            raise refused(operation, f"its {role} is not a weight")
    return {role: name for role, name in names.items() if name}


def _softmax(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    value = given["self"]
    node, layout = with_last(tracer, value, image_axis_of(tracer, operation, value, given["dim"]))
    tracer.add(operation, "softmax", [node], layout)


def _conv1d(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    value = given["input"]
    node, layout = with_last(tracer, value, image_axis_of(tracer, operation, value, 1))
    if len(layout.order) != 2 or isinstance(given["padding"], str):
        raise refused(operation, f"of shape {list(value.meta['shape'])}, with padding {given['padding']}")
    (strides,), (padding,), (dilation,) = (several_of(given[name]) for name in ("stride", "padding", "dilation"))
    attributes = {"strides": strides, "padding": padding, "dilation": dilation, "groups": int(given["groups"])}
    weights = weights_of(tracer, operation, given, kernel="weight", bias="bias")
    tracer.add(operation, "conv1d", [node], layout, attributes, weights)


def _reduced(op: str) -> Converter:
    return lambda tracer, operation, given: _mean(tracer, operation, given, op)


def _mean(tracer: Tracer, operation: fx.Node, given: dict[str, Any], op: str) -> None:
    if given.get("dim") in (None, []):
        raise refused(operation, "over everything, all images included")
    over_axes(tracer, operation, given["self"], several_of(given["dim"]), bool(given["keepdim"]), op)


def over_axes(
    tracer: Tracer, operation: fx.Node, value: fx.Node, dims: Sequence[int], keepdim: bool, op: str, **attributes: Any
) -> None:
    """Add what works over some axes at once, which are neighbours in Keras."""
    rank = len(value.meta["shape"])
    dims = [dim % rank for dim in dims]
    axes = [image_axis_of(tracer, operation, value, dim) for dim in dims]
    layout = tracer.layout(value)
    places = sorted(layout.order[axis] for axis in axes)
    if places != list(range(places[0], places[0] + len(places))):
        kept = [place for place in range(len(layout.order)) if place not in places]
        layout = replace(layout, order=tuple([*places, *kept].index(place) for place in layout.order))
        places = list(range(len(places)))
    node = tracer.in_order(value, layout.order)
    if not keepdim:
        layout = without(layout, dims, rank)
    tracer.add(operation, op, [node], layout, {"axes": tuple(places), **attributes})


# Products of two values -----------------------------------------------------------------------------------------------

# Small matrices for many windows are multiplied number by number: (N, K) by (K, M) takes N * K * M numbers for each.
# Large ones for few heads are multiplied in one matrix product for all heads, which takes as many multiplications more
# as there are heads. A matrix is small if it has fewer than so many rows or columns for each window.
_SMALL = 2


def _matmul(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    left, right = given["self"], given["other" if "other" in given else "mat2"]
    layout, other = (tracer.layout(value) if value.meta["computed"] else None for value in (left, right))
    rank = len(left.meta["shape"])
    # images are in front, or among the rows of the first or the columns of the second, with a weight for each head
    among = layout is not None and layout.batch_axis == rank - 2, other is not None and other.batch_axis == rank - 1
    for weight, beside, of_one in ((left, right, among[1]), (right, left, among[0])):
        if not weight.meta["computed"]:
            weight_of_each_image(tracer, operation, weight, beside, of_one)
    layout, other = layout or other or tracer.layout(left), other or layout or tracer.layout(right)
    one, two = tracer.image_shape(left), tracer.image_shape(right)
    rank = len(one)
    in_front = layout.batch_axis < len(left.meta["shape"]) - 2
    if (
        (not in_front and not (any(among) and layout.own))
        or rank != len(two)
        or two[:-2] not in (one[:-2], (1,) * (rank - 2))  # all heads may share their keys
        or replace(other, order=layout.order) != layout
    ):
        raise refused(operation, f"of shapes {list(left.meta['shape'])} and {list(right.meta['shape'])}")
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


def weight_of_each_image(
    tracer: Tracer, operation: fx.Node, value: fx.Node, beside: fx.Node, of_one: bool = False
) -> str:
    """Make a weight that has one of itself for each image, such as a learned query, a value like others.

    Args:
        tracer: gets a node that has the weight for every image.
        operation: what reads it.
        value: the weight, (B, ...); without the batch if `of_one`.
        beside: a computed value, of which the node has the number of images.
        of_one: whether torch has but one of it.

    Returns:
        The node's name.
    """
    shape, held = value.meta["shape"], tracer.layout(beside)
    # heads of a learned query are in the batch's axis where torch has those of the keys there
    inside = (held.merged, held.outer) if held.batch_axis == 0 and shape[0] != tracer.batch else (1, 1)
    if not of_one and shape[0] != tracer.batch * math.prod(inside):
        raise of_weights(operation)
    layout = Layout((), -of_one, *inside)
    of_image = layout.of_image(shape)
    name = weight_of_one_image(tracer, operation, value, of_image, layout)
    layout = replace(layout, order=tuple(range(len(of_image))))
    attributes = {"shape": of_image, "order": layout.order, "constant": None}
    node = tracer.add(operation, "array", [tracer.input_name(beside)], layout, attributes, {"array": name}, value=value)
    tracer.place(value, node, layout)
    return node


def weight_of_one_image(
    tracer: Tracer, operation: fx.Node, value: fx.Node, of_image: Sequence[int], layout: Layout
) -> str:
    """Name of the tensor that is one image's part of a weight, which torch may have repeated for all."""
    weight = same_for_all(value)
    if math.prod(weight.meta["shape"]) == math.prod(of_image):
        name = tracer.weight_name(weight, layout.batch_axis < 0)
    else:
        name = tracer.weight_name(value, in_its_shape=True)
        if name in tracer.computed_tensors:
            array = tracer.computed_tensors[name]
            tracer.computed_tensors[name] = of_one_image(operation, array, layout.batch_axis, layout)
        else:
            name = None
    if name is None:
        raise of_weights(operation)
    return name


def _addcmul(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    """One factor and one number to add for each number of the last axis, as ResMLP has them in place of a norm."""
    offset, scale, value = given["self"], given["tensor1"], given["tensor2"]
    if scale.meta["computed"]:
        scale, value = value, scale
    node, layout = with_last(tracer, value, image_axis_of(tracer, operation, value, -1))
    count = value.meta["shape"][-1]
    sizes = {(*tuple(each.meta["shape"][-1:]), math.prod(each.meta["shape"])) for each in (offset, scale)}
    if given["value"] != 1 or sizes != {(count, count)}:
        raise refused(operation, "of other than a value and two weights of its last axis")
    weights = weights_of(tracer, operation, {"scale": scale, "offset": offset}, scale="scale", offset="offset")
    tracer.add(operation, "channel_affine", [node], layout, {}, weights)


# With numbers, weights and constants ----------------------------------------------------------------------------------


def _arithmetic(op: str) -> Converter:
    def convert(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
        value, other = given["self"], given["other"]
        sign = -1.0 if op == "subtract" else 1.0
        if given.get("rounding_mode") is not None:
            raise refused(operation, "rounded")
        if op in ("add", "multiply") and not (isinstance(value, fx.Node) and value.meta["computed"]):
            value, other = other, value
        if not (isinstance(value, fx.Node) and value.meta["computed"]):
            raise refused(operation, "of a number or weight by a value")
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
            raise refused(operation, "by a weight or constant")
        _with_array(tracer, operation, op, value, other)

    return convert


def _with_array(tracer: Tracer, operation: fx.Node, op: str, value: fx.Node, other: fx.Node) -> None:
    """Add an array that is the same for all images, or multiply by one."""
    layout, shape = tracer.layout(value), value.meta["shape"]
    other = same_for_all(other)
    own = (*(1,) * (len(shape) - len(other.meta["shape"])), *other.meta["shape"])
    constant, name = tracer.constant(other), tracer.weight_name(other)
    if name is None and constant is None:
        raise of_weights(operation)
    axis = layout.batch_axis
    everywhere = tracer.batch * layout.merged * layout.outer
    if own[axis] not in (1, everywhere) or operation.meta["shape"] != shape:
        raise refused(operation, f"of an array of shape {list(own)}")
    if own[axis] != 1:
        held = other.meta["shape"]
        if constant is not None:
            constant = of_one_image(operation, constant.reshape(own), axis, layout)
        elif name in tracer.computed_tensors and layout.outer == 1:
            one = of_one_image(operation, tracer.computed_tensors[name].reshape(own), axis, layout)
            tracer.computed_tensors[name] = one.reshape(one.shape[len(own) - len(held) :])
        else:
            raise refused(operation, f"of a weight of shape {list(own)}")
        of_image = layout.of_image(own)
    else:
        of_image = (*own[:axis], *(1,) * len(layout.own), *own[axis + 1 :])
    attributes = {
        "shape": of_image,
        "order": layout.order,
        "constant": None if constant is None else tuple(float(each) for each in constant.reshape(-1)),
    }
    weights = {"array": name} if constant is None and name else {}
    tracer.add(operation, f"{op}_array", [tracer.input_name(value)], layout, attributes, weights)


def of_one_image(operation: fx.Node, array: np.ndarray, axis: int, layout: Layout) -> np.ndarray:
    """The first image's part of an array that has one for each in that axis."""
    images = array.shape[axis] // (layout.merged * layout.outer)
    apart = array.reshape(*array.shape[:axis], layout.outer, images, layout.merged, *array.shape[axis + 1 :])
    first = np.take(apart, [0], axis + 1)
    if not np.array_equal(apart, np.broadcast_to(first, apart.shape)):
        raise refused(operation, "of an array that is another for each image")
    return first.reshape(*array.shape[:axis], layout.merged * layout.outer, *array.shape[axis + 1 :])


CONVERTERS: dict[str, Converter] = {
    "aten.linear": _linear,
    "aten.conv1d": _conv1d,
    "aten.layer_norm": _layer_norm,
    "aten.rms_norm": _rms_norm,
    "aten.batch_norm": _batch_norm,
    "aten.linalg_vector_norm": _norm,
    "aten.amax": _reduced("largest"),
    "aten.max": _reduced("largest"),
    **dict.fromkeys(("aten.clamp_min", "aten.expand"), _of_norm),
    "aten.softmax": _softmax,
    "aten._softmax": _softmax,
    "aten.mean": _reduced("mean"),
    "aten.sum": _reduced("sum"),
    "aten.matmul": _matmul,
    "aten.bmm": _matmul,
    "aten.add": _arithmetic("add"),
    "aten.sub": _arithmetic("subtract"),
    "aten.mul": _arithmetic("multiply"),
    "aten.div": _arithmetic("divide"),
    "aten.addcmul": _addcmul,
}

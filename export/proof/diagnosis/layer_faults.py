"""Faults that a layer may have, by its operation: what is wrong, and what the layer would give then.

A row of `_FAULTS` for each operation. Values are as Keras has them, channels last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import permutations, product
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from export.graph.nodes import Graph, Node

Hypothesis = tuple[str, Callable[[], np.ndarray]]
"""The possible cause, and a function that computes the output (N, H, W, C) or (N, C) that it would lead to."""

_EPSILONS = (1e-3, 1e-5, 1e-2, 1e-4, 1e-6, 1e-7, 1e-8)


def hypotheses(graph: Graph, node: Node, values: dict[str, np.ndarray]) -> Iterator[Hypothesis]:
    """What may be wrong with a layer.

    Args:
        graph: of the twins.
        node: what the layer should compute.
        values: node name -> what it gives in torch, float64, as Keras has it.
    """
    if node.op in _FAULTS:
        yield from _FAULTS[node.op](graph, node, values)


def _convolutions(graph: Graph, node: Node, values: dict[str, np.ndarray]) -> Iterator[Hypothesis]:
    kernel = torch.from_numpy(graph.tensors[node.weights["kernel"]]).double()
    bias = torch.from_numpy(graph.tensors[node.weights["bias"]]).double() if "bias" in node.weights else None
    image = torch.from_numpy(values[node.inputs[0]]).double().permute(0, 3, 1, 2)
    stated = tuple(node.attributes["padding"])
    result = node.shape[1:]

    def computed(padding: tuple[int, int, int, int], weight: torch.Tensor = kernel) -> np.ndarray:
        top, bottom, left, right = padding
        padded = functional.pad(image, (left, right, top, bottom))
        strides, dilation = node.attributes["strides"], node.attributes["dilation"]
        value = functional.conv2d(padded, weight, bias, strides, 0, dilation, node.attributes["groups"])
        return value[:, :, : result[0], : result[1]].permute(0, 2, 3, 1).numpy()

    def of(padding: tuple[int, int, int, int], weight: torch.Tensor = kernel) -> Callable[[], np.ndarray]:
        return lambda: computed(padding, weight)

    rows, columns = kernel.shape[2:]
    for top, left in product(range(rows), range(columns)):
        # pad more than enough at the end; what is too much is cut off
        if (top, left) != (stated[0], stated[2]):
            padding = (top, rows, left, columns)
            yield (
                (
                    f"it is padded by {top} above and {left} at the left, not by {stated[0]} and {stated[2]} "
                    "(padding: TensorFlow's SAME puts the odd pixel at the end, torch pads both sides alike)"
                ),
                of(padding),
            )
    yield "its kernel has rows and columns exchanged (layout)", of(stated, kernel.transpose(2, 3))
    yield "its kernel is turned by 180 degrees (layout)", of(stated, kernel.flip(2, 3))
    yield "its input channels are in reverse order (BGR for RGB)", of(stated, kernel.flip(1))


def _batch_norms(graph: Graph, node: Node, values: dict[str, np.ndarray]) -> Iterator[Hypothesis]:
    image, stated = values[node.inputs[0]], node.attributes["epsilon"]
    weights = {role: graph.tensors[name].astype(np.float64) for role, name in node.weights.items()}
    gamma, beta = weights.get("gamma", np.float64(1)), weights.get("beta", np.float64(0))

    def of(epsilon: float) -> Callable[[], np.ndarray]:
        scale = gamma / np.sqrt(weights["moving_variance"] + epsilon)
        return lambda: (image - weights["moving_mean"]) * scale + beta

    for epsilon in _EPSILONS:
        if epsilon != stated:
            yield f"its epsilon is {epsilon:g}, not {stated:g}", of(epsilon)


def _ceilings(graph: Graph, node: Node, values: dict[str, np.ndarray]) -> Iterator[Hypothesis]:
    image, stated = values[node.inputs[0]], node.attributes["max_value"]
    for ceiling in (None, 6.0, 1.0):
        if ceiling != stated:
            text = f"its ceiling is {ceiling}, not {stated} (ReLU6 is max_value 6, ReLU has none)"
            yield text, partial(np.clip, image, 0, ceiling)


def _normalisations(graph: Graph, node: Node, values: dict[str, np.ndarray]) -> Iterator[Hypothesis]:
    image = values[node.inputs[0]]
    scale, offset = (np.array(node.attributes[name], np.float64) for name in ("scale", "offset"))
    if node.inputs[0] != graph.nodes[0].name:
        yield "it does nothing (its factor or offset is missing, such as attention's 1 / sqrt(d))", lambda: image
        return
    yield "its channels are in reverse order (preprocessing: BGR for RGB)", lambda: image * scale[::-1] + offset[::-1]
    yield "it does nothing (preprocessing is missing)", lambda: image
    yield "it takes 0 to 255, not 0 to 1 (preprocessing)", lambda: image / 255 * scale + offset
    yield "it takes 0 to 1 where the file says 0 to 255 (preprocessing)", lambda: image * 255 * scale + offset
    yield "it gives -1 to 1 (preprocessing of keras.applications.mobilenet_v2)", lambda: image * 2 - 1
    yield "it adds no offset (preprocessing)", lambda: image * scale


def _softmaxes(graph: Graph, node: Node, values: dict[str, np.ndarray]) -> Iterator[Hypothesis]:
    value = torch.from_numpy(values[node.inputs[0]])
    for axis in range(1, value.ndim - 1):
        yield f"its softmax is over axis {axis}, not over the last, {value.ndim - 1}", value.softmax(axis).numpy
    yield "it is a sigmoid, not a softmax", value.sigmoid().numpy
    yield "it gives logits: its softmax is missing", value.numpy


def _scaled(graph: Graph, node: Node, value: torch.Tensor) -> np.ndarray:
    """A norm's result with its weights, which are one for each channel, the last axis."""
    for role, join in (("gamma", torch.mul), ("beta", torch.add)):
        if role in node.weights:
            value = join(value, torch.from_numpy(graph.tensors[node.weights[role]]).double().reshape(-1))
    return value.numpy()


def _group_norms(graph: Graph, node: Node, values: dict[str, np.ndarray]) -> Iterator[Hypothesis]:
    value = torch.from_numpy(values[node.inputs[0]]).movedim(-1, 1)
    groups, epsilon, channels = node.attributes["groups"], node.attributes["epsilon"], value.shape[1]

    def of(groups: int, epsilon: float) -> Callable[[], np.ndarray]:
        return lambda: _scaled(graph, node, functional.group_norm(value, groups, eps=epsilon).movedim(1, -1))

    for other in range(1, channels + 1):
        if channels % other == 0 and other != groups:
            yield f"it has {other} groups of channels, not {groups}", of(other, epsilon)
    for number in _EPSILONS:
        if number != epsilon:
            yield f"its epsilon is {number:g}, not {epsilon:g}", of(groups, number)


def _norms(graph: Graph, node: Node, values: dict[str, np.ndarray]) -> Iterator[Hypothesis]:
    value, stated = torch.from_numpy(values[node.inputs[0]]), node.attributes["epsilon"]

    def of(axis: int, epsilon: float, centred: bool) -> Callable[[], np.ndarray]:
        from_mean = value - value.mean(axis, keepdim=True) if centred else value
        squares = from_mean.square().mean(axis, keepdim=True)
        return lambda: _scaled(graph, node, from_mean / (squares + epsilon).sqrt())

    centred, last = node.op == "layer_norm", value.ndim - 1
    for epsilon in _EPSILONS:
        if epsilon != stated:
            yield f"its epsilon is {epsilon:g}, not {stated:g}", of(last, epsilon, centred)
    for axis in range(1, last):
        yield f"it is over axis {axis}, not over the last, {last}", of(axis, stated, centred)
    other = "it subtracts the mean, as a RMS norm does not" if not centred else "it does not subtract the mean"
    yield other, of(last, stated, not centred)


def _resizings(graph: Graph, node: Node, values: dict[str, np.ndarray]) -> Iterator[Hypothesis]:
    value, size = torch.from_numpy(values[node.inputs[0]]).movedim(-1, 1), node.shape[1:]
    ways: dict[str, dict[str, Any]] = {
        "with the nearest pixel": {"mode": "nearest"},
        "bilinearly with half-pixel centres": {"mode": "bilinear", "align_corners": False},
        "bilinearly with the corners aligned (align_corners)": {"mode": "bilinear", "align_corners": True},
        "bicubically": {"mode": "bicubic", "align_corners": False},
        "bilinearly with antialiasing": {"mode": "bilinear", "align_corners": False, "antialias": True},
    }
    for way, arguments in ways.items():
        resized = partial(functional.interpolate, value, size=size, **arguments)
        yield f"it interpolates {way}", partial(_channels_last, resized)


def _channels_last(compute: Callable[[], torch.Tensor]) -> np.ndarray:
    return compute().movedim(1, -1).numpy()


_FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu by tanh": partial(functional.gelu, approximate="tanh"),
    "the exact gelu": functional.gelu,
    "silu": functional.silu,
    "sigmoid": torch.sigmoid,
    "Keras 2's hard_sigmoid, 0.2 * x + 0.5": lambda value: (0.2 * value + 0.5).clamp(0, 1),
    "torch's hard_sigmoid, x / 6 + 0.5": functional.hardsigmoid,
    "hard_swish": functional.hardswish,
    "tanh": torch.tanh,
    "relu": functional.relu,
    "elu": functional.elu,
    "mish": functional.mish,
    "softplus": functional.softplus,
    "nothing": lambda value: value,
}


def _activations(graph: Graph, node: Node, values: dict[str, np.ndarray]) -> Iterator[Hypothesis]:
    value, stated = torch.from_numpy(values[node.inputs[0]]), node.attributes.get("function", node.op)
    for name, function in _FUNCTIONS.items():
        yield f"it computes {name}, not {stated}", function(value).numpy


def _slopes(graph: Graph, node: Node, values: dict[str, np.ndarray]) -> Iterator[Hypothesis]:
    value, stated = torch.from_numpy(values[node.inputs[0]]), node.attributes["negative_slope"]
    for slope in (0.3, 0.2, 0.1, 0.01, 0.0):
        if slope != stated:
            text = f"its negative slope is {slope:g}, not {stated:g} (Keras's default is 0.3, torch's 0.01)"
            yield text, functional.leaky_relu(value, slope).numpy


def _orders(graph: Graph, node: Node, values: dict[str, np.ndarray]) -> Iterator[Hypothesis]:
    given = [values[name] for name in node.inputs]
    axis = node.attributes.get("axis", given[0].ndim - 2) + 1
    for order in permutations(range(len(given))) if len(given) < 5 else ():
        if list(order) != sorted(order):
            text = f"its inputs are in another order: {', '.join(node.inputs[place] for place in order)}"
            yield text, partial(np.concatenate, [given[place] for place in order], axis)


def _exchanged(graph: Graph, node: Node, values: dict[str, np.ndarray]) -> Iterator[Hypothesis]:
    first, second = (values[name] for name in node.inputs)
    yield "its two inputs are exchanged", lambda: second - first if node.op == "subtract" else second / first


def _rolls(graph: Graph, node: Node, values: dict[str, np.ndarray]) -> Iterator[Hypothesis]:
    axes, shifts = [axis + 1 for axis in node.attributes["axes"]], np.array(node.attributes["shifts"])
    yield "it shifts the other way", lambda: np.roll(values[node.inputs[0]], -shifts, axes)
    yield "it does not shift", lambda: values[node.inputs[0]]


def _pools(graph: Graph, node: Node, values: dict[str, np.ndarray]) -> Iterator[Hypothesis]:
    value = torch.from_numpy(values[node.inputs[0]]).movedim(-1, 1)
    (top, bottom, left, right), kernel = node.attributes["padding"], node.attributes["kernel"]
    strides, counted = node.attributes["strides"], node.attributes.get("count_padding")
    padded = functional.pad(value, (left, right, top, bottom))
    if node.op == "max_pool":
        pooled = partial(functional.max_pool2d, padded, kernel, strides)
        yield (
            "it is padded with zeros, which count as the largest among negative numbers",
            partial(_channels_last, pooled),
        )
        return
    mean = functional.avg_pool2d(padded, kernel, strides)
    inside = functional.pad(torch.ones_like(value), (left, right, top, bottom))
    other = mean / functional.avg_pool2d(inside, kernel, strides) if counted else mean
    text = "it does not count its padding" if counted else "it counts its padding (torch's count_include_pad)"
    yield text, partial(_channels_last, lambda: other)


def _factors(graph: Graph, node: Node, values: dict[str, np.ndarray]) -> Iterator[Hypothesis]:
    """Of what multiplies and adds numbers: the preprocessing, or a factor such as attention's 1 / sqrt(d)."""
    yield from _normalisations(graph, node, values)
    scale, offset = (np.array(node.attributes[name], np.float64) for name in ("scale", "offset"))
    if node.inputs[0] == graph.nodes[0].name or not scale.all():
        return
    value = values[node.inputs[0]]
    yield "its factor is squared (in attention 1 / d for 1 / sqrt(d))", lambda: value * scale**2 + offset
    yield "it divides where it should multiply (in attention sqrt(d) for 1 / sqrt(d))", lambda: value / scale + offset
    for heads in (2, 3, 4, 6, 8, 12, 16):
        text = (
            f"its factor is divided by the root of {heads} (in attention the numbers of {heads} heads count as one's)"
        )
        yield text, partial(np.add, value * scale * heads**-0.5, offset)


def _products(graph: Graph, node: Node, values: dict[str, np.ndarray]) -> Iterator[Hypothesis]:
    """Of queries and keys, or of attention's weights and values."""
    first, second = (torch.from_numpy(values[name]) for name in node.inputs)
    of_windows = node.op == "matmul_windows"
    if not of_windows:  # Keras has the heads behind the tokens
        first, second = first.movedim(1, -2), second.movedim(1, -2)
    if of_windows or node.attributes["last"]:
        second = second.mT

    def of(left: torch.Tensor, right: torch.Tensor) -> Callable[[], np.ndarray]:
        def compute() -> np.ndarray:
            product = left @ right
            return (product if of_windows else product.movedim(-2, 1)).numpy()

        return compute

    yield "its two inputs are exchanged", of(second.mT, first.mT)
    yield "the last two axes of its first input are exchanged", of(first.mT, second)
    yield "the last two axes of its second input are exchanged", of(first, second.mT)
    heads = second.shape[1] if second.ndim > 3 else 1
    if heads > 2:  # of two it is what comes next
        yield "the heads of its second input are in reverse order", of(first, second.flip(1))
    for shift in range(1, heads):
        text = f"each head of its first input meets the head {shift} after it, of {heads}, in the second"
        yield text, of(first, second.roll(-shift, 1))
    numbers = first.shape[-1]
    yield f"it is divided by the root of {numbers} as well", of(first * numbers**-0.5, second)


def _orders_of_axes(graph: Graph, node: Node, values: dict[str, np.ndarray]) -> Iterator[Hypothesis]:
    """Of a reshape: the same numbers, of which some axes were exchanged before, such as heads and their numbers."""
    value, shape = values[node.inputs[0]], (*node.shape[1:], node.shape[0])
    for given in (value.shape[1:], shape):  # what is joined, or what is taken apart
        for order in permutations(range(len(given))) if len(given) < 6 else ():
            if list(order) != sorted(order):
                axes = [0, *(axis + 1 for axis in order)]
                back = [axes.index(axis) for axis in range(len(axes))]
                text = f"its numbers are in another order: axes {order} of {given} (such as heads and their numbers)"
                if given == shape:
                    filled = (len(value), *(shape[axis] for axis in order))
                    yield text, partial(lambda filled, back: value.reshape(filled).transpose(back), filled, back)
                else:
                    yield text, partial(lambda axes: value.transpose(axes).reshape(len(value), *shape), axes)


def _transpositions(graph: Graph, node: Node, values: dict[str, np.ndarray]) -> Iterator[Hypothesis]:
    value, stated = values[node.inputs[0]], tuple(node.attributes["axes"])
    for order in permutations(range(len(stated))) if len(stated) < 6 else ():
        if order != stated:
            text = f"its axes are in the order {order}, not {stated}"
            yield text, partial(value.transpose, (0, *(axis + 1 for axis in order)))


def _parts(graph: Graph, node: Node, values: dict[str, np.ndarray]) -> Iterator[Hypothesis]:
    value, (start, stop, step) = values[node.inputs[0]], (node.attributes[name] for name in ("start", "stop", "step"))
    axis = node.attributes["axis"] + 1
    shape = (len(value), *node.shape[1:], node.shape[0])
    for other in range(value.shape[axis] - (stop - start) + 1):
        if other != start:
            places = range(other, other + stop - start, step)
            text = f"it takes places {other} to {other + stop - start} of axis {axis}, not {start} to {stop}"
            yield text, partial(lambda places: value.take(places, axis).reshape(shape), places)


_FAULTS: dict[str, Callable[[Graph, Node, dict[str, np.ndarray]], Iterator[Hypothesis]]] = {
    "conv2d": _convolutions,
    "batch_norm": _batch_norms,
    "group_norm": _group_norms,
    **dict.fromkeys(("layer_norm", "rms_norm"), _norms),
    "relu": _ceilings,
    "leaky_relu": _slopes,
    **dict.fromkeys(("activation", "gelu_tanh", "hard_sigmoid", "hard_swish", "mish"), _activations),
    "affine": _factors,
    **dict.fromkeys(("matmul", "matmul_windows"), _products),
    "regroup": _orders_of_axes,
    "transpose": _transpositions,
    "cut": _parts,
    "softmax": _softmaxes,
    **dict.fromkeys(("resize", "upsample", "upsample_bilinear", "map_places"), _resizings),
    **dict.fromkeys(("max_pool", "average_pool"), _pools),
    **dict.fromkeys(("concatenate", "join"), _orders),
    **dict.fromkeys(("subtract", "divide"), _exchanged),
    "roll": _rolls,
}

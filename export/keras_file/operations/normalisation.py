"""Batch and layer normalisation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from math import sqrt

import numpy as np

from export.graph.nodes import Graph, Node
from export.keras_file.keras_layer import (
    WEIGHT_ORDER,
    Emit,
    KerasLayer,
    permute,
    reshape,
)
from export.keras_file.operations.places import fixed_dense


def _batch_norm(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    config = {"epsilon": node.attributes["epsilon"], "momentum": node.attributes["momentum"]}
    config |= {"center": "beta" in node.weights, "scale": "gamma" in node.weights}
    weights = tuple(
        (role, node.weights[role], graph.tensors[node.weights[role]])
        for role in WEIGHT_ORDER["BatchNormalization"]
        if role in node.weights
    )
    yield KerasLayer("BatchNormalization", node.name, config, inputs, weights)


def _layer_norm(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    config = {"epsilon": node.attributes["epsilon"], "center": "beta" in node.weights, "scale": "gamma" in node.weights}
    roles = [role for role in WEIGHT_ORDER["LayerNormalization"] if role in node.weights]
    # of several axes that are seen as one, torch's weight has several
    weights = tuple((role, node.weights[role], graph.tensors[node.weights[role]].reshape(-1)) for role in roles)
    yield KerasLayer("LayerNormalization", node.name, config, inputs, weights)


def _alone(name: str, epsilon: float, inputs: tuple[str, ...]) -> KerasLayer:
    """A LayerNormalization over the last axis, that only divides by the deviation."""
    return KerasLayer("LayerNormalization", name, {"epsilon": epsilon, "center": False, "scale": False}, inputs)


def _group_norm(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    """All numbers of a group are brought to the last axis, divided by their deviation there, and brought back."""
    channels, *size = node.shape
    groups, places = node.attributes["groups"], int(np.prod(size, dtype=int))
    each, name = channels // groups, node.name
    turned = groups > 1 and places > 1
    if turned:
        yield reshape(f"{name}_groups", (places, groups, each), inputs)
        yield permute(f"{name}_turned", (2, 1, 3), (f"{name}_groups",))
        inputs = (f"{name}_turned",)
    yield reshape(f"{name}_flat", (1, groups, places * each), inputs)
    yield _alone(f"{name}_divided", node.attributes["epsilon"], (f"{name}_flat",))
    before = f"{name}_divided"
    if turned:
        yield reshape(f"{name}_apart", (groups, places, each), (before,))
        yield permute(f"{name}_back", (2, 1, 3), (f"{name}_apart",))
        before = f"{name}_back"
    if "gamma" not in node.weights and "beta" not in node.weights:
        yield reshape(name, (*size, channels), (before,))
        return
    yield reshape(f"{name}_whole", (*(size or (1, 1)), channels), (before,))
    weights = [("depthwise_kernel", node.weights["gamma"], graph.tensors[node.weights["gamma"]].reshape(1, 1, -1, 1))]
    if "beta" in node.weights:
        weights.append(("bias", node.weights["beta"], graph.tensors[node.weights["beta"]]))
    config = {"kernel_size": [1, 1], "padding": "valid", "use_bias": len(weights) == 2, "data_format": "channels_last"}
    last = name if size else f"{name}_scaled"
    yield KerasLayer("DepthwiseConv2D", last, config, (f"{name}_whole",), tuple(weights))
    if not size:
        yield reshape(name, (channels,), (last,))


def _map_norm(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    """The whole map in one axis. LayerNormalization over several axes is another function in Keras 3."""
    config = {"epsilon": node.attributes["epsilon"], "center": "beta" in node.weights, "scale": "gamma" in node.weights}
    weights = tuple(  # torch (C, H, W) -> Keras (H, W, C)
        (role, node.weights[role], np.moveaxis(graph.tensors[node.weights[role]], 0, -1).reshape(-1))
        for role in WEIGHT_ORDER["LayerNormalization"]
        if role in node.weights
    )
    yield reshape(f"{node.name}_flat", (int(np.prod(node.shape)),), inputs)
    yield KerasLayer("LayerNormalization", f"{node.name}_norm", config, (f"{node.name}_flat",), weights)
    yield reshape(node.name, (*node.shape[1:], node.shape[0]), (f"{node.name}_norm",))


def rms_norm(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    """The mean of [x, -x] is 0, and its variance the mean of squares; the first half is kept."""
    name, channels = node.name, node.shape[0]
    places = (math.prod(node.shape[1:]), 1)  # whatever they are: each is by itself
    yield reshape(f"{name}_map", (*places, channels), inputs)
    yield KerasLayer("Rescaling", f"{name}_negative", {"scale": -1.0, "offset": 0.0}, (f"{name}_map",))
    yield KerasLayer("Concatenate", f"{name}_both", {"axis": -1}, (f"{name}_map", f"{name}_negative"))
    yield _alone(f"{name}_divided", node.attributes["epsilon"], (f"{name}_both",))
    last = f"{name}_kept"
    yield permute(f"{name}_turned", (1, 3, 2), (f"{name}_divided",))
    crop = {"cropping": [[0, 0], [0, channels]], "data_format": "channels_last"}
    yield KerasLayer("Cropping2D", f"{name}_half", crop, (f"{name}_turned",))
    yield permute(last, (1, 3, 2), (f"{name}_half",))
    if "gamma" in node.weights:
        gamma = graph.tensors[node.weights["gamma"]].reshape(1, 1, -1, 1)
        config = {"kernel_size": [1, 1], "padding": "valid", "use_bias": False, "data_format": "channels_last"}
        scaled = f"{name}_scaled"
        weights = (("depthwise_kernel", node.weights["gamma"], gamma),)
        yield KerasLayer("DepthwiseConv2D", scaled, config, (last,), weights)
        last = scaled
    yield reshape(name, (*node.shape[1:], channels), (last,))


def _inverse_rms(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    """What a constant is divided by, in a LayerNormalization of [x, -x, constant, -constant].

    With n channels its variance is (n * mean(x ** 2) + constant ** 2) / (n + 1). So a part of epsilon can be in the
    constant and the rest in the layer's own epsilon, and nothing is approximated.
    """
    channels, name = graph.node(node.inputs[0]).shape[0], node.name
    factor, epsilon = node.attributes["factor"], node.attributes["epsilon"] / node.attributes["factor"]
    if node.attributes["centred"]:  # n * x - sum(x): whole numbers, and n is taken out again below
        unit = channels
        own = channels * np.eye(channels) - 1.0
    else:
        unit, own = 1, np.eye(channels)
    constant = float(np.float32(sqrt(channels * epsilon / 2) * unit))
    rest = (channels * epsilon * unit**2 - constant**2) / (channels + 1)
    kernel = np.concatenate([own, -own, np.zeros((2, channels))])
    bias = np.zeros(2 * channels + 2, np.float32)
    bias[-2:] = constant, -constant
    config = {"units": len(kernel), "activation": "linear", "use_bias": True}
    weights = (("kernel", "", kernel.T.astype(np.float32)), ("bias", "", bias))
    yield KerasLayer("Dense", f"{name}_both", config, inputs, weights, fixed=True)
    yield _alone(f"{name}_divided", rest, (f"{name}_both",))
    wanted = np.zeros((1, len(kernel)))
    wanted[0, -2] = 1.0
    yield from fixed_dense(f"{name}_constant", wanted.tolist(), (f"{name}_divided",))
    scale = unit / constant * sqrt(channels / (channels + 1)) / sqrt(factor)
    yield KerasLayer("Rescaling", name, {"scale": scale, "offset": 0.0}, (f"{name}_constant",))


# So small that it changes nothing, and not so small that its root could not be divided by in float32.
NO_EPSILON = 1e-30


def _places_norm(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    """The root of a mean of squares is the mean of x times (x divided by that root)."""
    channels, *size = graph.node(node.inputs[0]).shape
    name, places = node.name, int(np.prod(size))
    yield reshape(f"{name}_places", (1, places, channels), inputs)
    yield permute(f"{name}_turned", (1, 3, 2), (f"{name}_places",))
    yield KerasLayer("Rescaling", f"{name}_negative", {"scale": -1.0, "offset": 0.0}, (f"{name}_turned",))
    both = f"{name}_turned", f"{name}_negative"
    yield KerasLayer("Concatenate", f"{name}_both", {"axis": -1}, both)
    yield _alone(f"{name}_divided", NO_EPSILON, (f"{name}_both",))
    # of both halves the product with x or -x is the same
    yield KerasLayer("Multiply", f"{name}_products", {}, (f"{name}_divided", f"{name}_both"))
    pool = {
        "pool_size": [1, 2 * places],
        "strides": [1, 2 * places],
        "padding": "valid",
        "data_format": "channels_last",
    }
    yield reshape(f"{name}_rows", (channels, 2 * places, 1), (f"{name}_products",))
    yield KerasLayer("AveragePooling2D", f"{name}_root", pool, (f"{name}_rows",))  # (C, 1, 1)
    yield KerasLayer("Rescaling", f"{name}_length", {"scale": sqrt(places), "offset": 0.0}, (f"{name}_root",))
    yield reshape(name, (1, 1, channels), (f"{name}_length",))


def _divide_by_mean(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    """C * x / (sum(x) + C * epsilon), of numbers that are not negative.

    Divided by their root of the mean of squares, they and C * epsilon add up to `root(n)` to `n`, n being C + 1. So of
    their sum as a share of `root(n)`, which is 1 or more, 1 - softsign(share - 1) is the inverse; one step of Newton's
    makes up for what that loses in float32.
    """
    channels, name = node.shape[0], node.name
    count = channels + 1
    yield reshape(f"{name}_row", (1, channels, 1), inputs)
    crop = {"cropping": [[0, 0], [0, channels - 1]], "data_format": "channels_last"}
    yield KerasLayer("Cropping2D", f"{name}_first", crop, (f"{name}_row",))
    epsilon = {"scale": 0.0, "offset": channels * node.attributes["epsilon"]}
    yield KerasLayer("Rescaling", f"{name}_epsilon", epsilon, (f"{name}_first",))
    yield reshape(f"{name}_place", (1, 1, channels), inputs)
    yield KerasLayer("Concatenate", f"{name}_all", {"axis": -1}, (f"{name}_place", f"{name}_epsilon"))
    yield KerasLayer("Rescaling", f"{name}_negative", {"scale": -1.0, "offset": 0.0}, (f"{name}_all",))
    yield KerasLayer("Concatenate", f"{name}_both", {"axis": -1}, (f"{name}_all", f"{name}_negative"))
    yield _alone(f"{name}_divided", NO_EPSILON, (f"{name}_both",))
    yield reshape(f"{name}_divided_row", (1, 2 * count, 1), (f"{name}_divided",))
    crop = {"cropping": [[0, 0], [0, count]], "data_format": "channels_last"}
    yield KerasLayer("Cropping2D", f"{name}_unit", crop, (f"{name}_divided_row",))
    pool = {"pool_size": [1, count], "strides": [1, count], "padding": "valid", "data_format": "channels_last"}
    yield KerasLayer("AveragePooling2D", f"{name}_mean", pool, (f"{name}_unit",))
    root = sqrt(count)
    yield KerasLayer("Rescaling", f"{name}_more", {"scale": root, "offset": -1.0}, (f"{name}_mean",))
    yield KerasLayer("Activation", f"{name}_softsign", {"activation": "softsign"}, (f"{name}_more",))
    yield KerasLayer("Rescaling", f"{name}_inverse", {"scale": -1.0, "offset": 1.0}, (f"{name}_softsign",))
    # the inverse r of t, better: r * (2 - t * r)
    yield KerasLayer("Multiply", f"{name}_near_one", {}, (f"{name}_mean", f"{name}_inverse"))
    yield KerasLayer("Rescaling", f"{name}_step", {"scale": -root, "offset": 2.0}, (f"{name}_near_one",))
    yield KerasLayer("Multiply", f"{name}_better", {}, (f"{name}_inverse", f"{name}_step"))
    crop = {"cropping": [[0, 0], [0, 1]], "data_format": "channels_last"}
    yield KerasLayer("Cropping2D", f"{name}_own", crop, (f"{name}_unit",))
    yield KerasLayer("Multiply", f"{name}_share", {}, (f"{name}_own", f"{name}_better"))
    yield KerasLayer("Rescaling", f"{name}_shares", {"scale": channels / root, "offset": 0.0}, (f"{name}_share",))
    yield reshape(name, (1, 1, channels), (f"{name}_shares",))


def _divide_by_rms(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    inverse = replace(node, name=f"{node.name}_inverse", op="inverse_rms", inputs=node.inputs[1:])
    yield from _inverse_rms(graph, inverse, inputs[1:])
    yield KerasLayer("Multiply", node.name, {}, (inputs[0], inverse.name))


LAYERS: dict[str, Emit] = {
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "map_norm": _map_norm,
    "group_norm": _group_norm,
    "rms_norm": rms_norm,
    "inverse_rms": _inverse_rms,
    "divide_by_rms": _divide_by_rms,
    "places_norm": _places_norm,
    "divide_by_mean": _divide_by_mean,
}

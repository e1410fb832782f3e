"""Normalisation: of a batch, of channels, of groups of them, of vectors to the length 1."""

from __future__ import annotations

import numpy as np

from export.graph.nodes import Node
from export.keras_file.flat_layers import AS_IT_IS, FlatLayer
from export.keras_file.readers.axes import along, axes_of, keras_shape
from export.keras_file.readers.layer_reader import LayerReader, Reader
from export.keras_file.readers.settings import finite_number, whole_number
from models.bad_input import BadInput


def _roles(layer: FlatLayer) -> list[str]:
    return ["gamma"] * bool(layer.config.get("scale", True)) + ["beta"] * bool(layer.config.get("center", True))


def _batch_norm(reader: LayerReader, layer: FlatLayer) -> None:
    (before,) = reader.before(layer)
    axes = axes_of(layer, before)
    if len(axes) != 1:
        raise BadInput(
            f"{layer.key}: expected a BatchNormalization of one axis, got {layer.config['axis']}. {AS_IT_IS}"
        )
    roles = [*_roles(layer), "moving_mean", "moving_variance"]
    size = keras_shape(before)[axes[0]]
    weights = {role: reader.take(layer, role, (size,), place) for place, role in enumerate(roles)}
    if layer.config.get("renorm"):  # what it knows of batches in training; it predicts as every other one
        for place, role in enumerate(("moving_stddev", "renorm_mean", "renorm_stddev"), len(roles)):
            for each in (role, str(place)):
                reader.weights[layer.key].pop(each, None)
        reader.renormed.append(layer.key)
    epsilon = finite_number(layer.config.get("epsilon", 1e-3), layer, "epsilon")
    momentum = finite_number(layer.config.get("momentum", 0.99), layer, "momentum")
    attributes = {"epsilon": epsilon, "momentum": momentum}
    along(
        reader, layer, before, axes,
        lambda node, part: reader.emit(layer, "batch_norm", node.shape, attributes, weights, [node], part),
    )  # fmt: skip


def _layer_norm(reader: LayerReader, layer: FlatLayer) -> None:
    (before,) = reader.before(layer)
    axes = axes_of(layer, before)
    of_axes = tuple(keras_shape(before)[axis] for axis in axes)
    epsilon = finite_number(layer.config.get("epsilon", 1e-3), layer, "epsilon")
    if layer.config.get("rms_scaling"):  # x / sqrt(variance + epsilon) * gamma: the mean stays in x
        gamma = {"scale": reader.take(layer, "gamma", of_axes).reshape(-1)}
        attributes = {"centred": True, "factor": 1.0, "epsilon": epsilon}

        def scaled(node: Node, part: str) -> Node:
            divided = reader.emit(layer, "divide_by_rms", node.shape, attributes, None, [node, node], "divided")
            return reader.emit(layer, "channel_scale", node.shape, {}, gamma, [divided], part)

        along(reader, layer, before, axes, scaled)
        return
    weights = {role: reader.take(layer, role, of_axes, place).reshape(-1) for place, role in enumerate(_roles(layer))}
    along(
        reader, layer, before, axes,
        lambda node, part: reader.emit(layer, "layer_norm", node.shape, {"epsilon": epsilon}, weights, [node], part),
    )  # fmt: skip


def _group_norm(reader: LayerReader, layer: FlatLayer) -> None:
    (before,) = reader.before(layer)
    axes = axes_of(layer, before)
    size = keras_shape(before)[axes[0]]
    groups = whole_number(layer.config.get("groups", 32), layer, "groups", -1)
    groups = size if groups == -1 else groups
    if len(axes) != 1 or groups < 1 or size % groups:
        raise BadInput(f"{layer.key}: expected groups that divide one axis of {size}, got {groups}. {AS_IT_IS}")
    weights = {role: reader.take(layer, role, (size,), place) for place, role in enumerate(_roles(layer))}
    attributes = {
        "groups": groups,
        "epsilon": finite_number(layer.config.get("epsilon", 1e-3), layer, "epsilon"),
    }

    def normalised(node: Node, part: str) -> Node:
        if set(weights) != {"beta"}:
            return reader.emit(layer, "group_norm", node.shape, attributes, weights, [node], part)
        divided = reader.emit(layer, "group_norm", node.shape, attributes, None, [node], "divided")
        return reader.emit(layer, "channel_shift", node.shape, {}, {"offset": weights["beta"]}, [divided], part)

    along(reader, layer, before, axes, normalised)


def _rms_norm(reader: LayerReader, layer: FlatLayer) -> None:
    """Keras 3's RMSNormalization: x / sqrt(mean(x ** 2) + epsilon) * scale."""
    (before,) = reader.before(layer)
    axes = axes_of(layer, before)
    of_axes = tuple(keras_shape(before)[axis] for axis in axes)
    weights = {"gamma": reader.take(layer, "scale", of_axes).reshape(-1)}
    epsilon = finite_number(layer.config.get("epsilon", 1e-6), layer, "epsilon")
    along(
        reader, layer, before, axes,
        lambda node, part: reader.emit(layer, "rms_norm", node.shape, {"epsilon": epsilon}, weights, [node], part),
    )  # fmt: skip


# Of a vector's length, below which Keras divides by this: the root of the 1e-12 in its `l2_normalize`.
LEAST_LENGTH = float(np.sqrt(1e-12))


def unit_norm(reader: LayerReader, layer: FlatLayer, before: Node, axes: list[int], part: str = "") -> Node:
    """Divide by the length of the vectors along the axes, as Keras's `l2_normalize`."""
    return along(
        reader, layer, before, axes,
        lambda node, inner: reader.emit(
            layer, "unit_norm", node.shape, {"least": LEAST_LENGTH}, None, [node], inner
        ),
        part,
    )  # fmt: skip


def _unit_norm(reader: LayerReader, layer: FlatLayer) -> None:
    (before,) = reader.before(layer)
    unit_norm(reader, layer, before, axes_of(layer, before))


READERS: dict[str, Reader] = {
    **dict.fromkeys(("BatchNormalization", "SyncBatchNormalization"), _batch_norm),
    "LayerNormalization": _layer_norm,
    "GroupNormalization": _group_norm,
    "RMSNormalization": _rms_norm,
    "UnitNormalization": _unit_norm,
}

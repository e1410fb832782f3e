"""Batch and layer normalisation."""

from __future__ import annotations

from export.keras_file.flat_layers import FlatLayer
from export.keras_file.readers.layer_reader import LayerReader, Reader
from export.keras_file.readers.settings import expect, finite_number


def _batch_norm(reader: LayerReader, layer: FlatLayer) -> None:
    (before,) = reader.before(layer)
    channels, last = before.shape[0], len(before.shape)
    expect(layer, axis=(-1, last, (last,), (-1,)), renorm=(False,))
    roles = ["gamma"] * bool(layer.config.get("scale", True)) + ["beta"] * bool(layer.config.get("center", True))
    roles += ["moving_mean", "moving_variance"]
    weights = {role: reader.take(layer, role, (channels,), place) for place, role in enumerate(roles)}
    epsilon = finite_number(layer.config.get("epsilon", 1e-3), layer, "epsilon")
    momentum = finite_number(layer.config.get("momentum", 0.99), layer, "momentum")
    reader.emit(layer, "batch_norm", before.shape, {"epsilon": epsilon, "momentum": momentum}, weights)


def _layer_norm(reader: LayerReader, layer: FlatLayer) -> None:
    (before,) = reader.before(layer)
    channels, last = before.shape[0], len(before.shape)
    expect(layer, axis=(-1, last, (last,), (-1,)), rms_scaling=(False,))
    roles = ["gamma"] * bool(layer.config.get("scale", True)) + ["beta"] * bool(layer.config.get("center", True))
    weights = {role: reader.take(layer, role, (channels,), place) for place, role in enumerate(roles)}
    epsilon = finite_number(layer.config.get("epsilon", 1e-3), layer, "epsilon")
    reader.emit(layer, "layer_norm", before.shape, {"epsilon": epsilon}, weights)


READERS: dict[str, Reader] = {
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm,
}

"""Layers that networks of `keras.applications` have of their own, in no other place of Keras.

An `.h5` says their class's name alone, and somebody else's class may have that name. So the layer's name and settings
must be those that `keras.applications` gives it.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from export.keras_file.flat_layers import FlatLayer
from export.keras_file.readers.layer_reader import LayerReader, Reader, refused
from export.keras_file.readers.preprocessing import affine
from export.keras_file.readers.settings import finite_number


def _expect(layer: FlatLayer, name: str, settings: Any, own: set[str]) -> None:
    """Refuse a layer of another name, or with other settings."""
    others = {"name", "trainable", "dtype"}
    if set(settings or {}) - others != own or not re.fullmatch(name, layer.path[-1]):
        raise refused(layer)


def _layer_scale(reader: LayerReader, layer: FlatLayer) -> None:
    """ConvNeXt's: x * gamma. The weight has no name: Keras 2 says Variable, Keras 3 counts."""
    _expect(layer, r".*_layer_scale", layer.config, {"init_values", "projection_dim"})
    (before,) = reader.before(layer)
    role = next(iter(reader.weights[layer.key]), "gamma")
    weights = {"scale": reader.take(layer, role, (before.shape[0],))}
    reader.emit(layer, "channel_scale", before.shape, {}, weights)


def _stochastic_depth(reader: LayerReader, layer: FlatLayer) -> None:
    """ConvNeXt's: leaves out what it is given, for some photos, in training alone."""
    _expect(layer, r".*_stochastic_depth", layer.config, {"drop_path_rate"})
    (before,) = reader.before(layer)
    reader.without_effect.append(layer.key)
    reader.same_as(layer, before)


def _custom_scale(reader: LayerReader, layer: FlatLayer) -> None:
    """InceptionResNetV2's own layer in Keras 3: x + y * scale."""
    first, second = reader.before(layer, 2)
    scaled = affine(reader, layer, second, finite_number(layer.config["scale"], layer, "scale"))
    reader.emit(layer, "add", first.shape, inputs=[first, scaled])


def _lambda(reader: LayerReader, layer: FlatLayer) -> None:
    """InceptionResNetV2 has, in Keras 2, the Lambda that `_custom_scale` is in Keras 3; every other one is refused.

    The code is not looked at. If it were another one under the same name and with the same argument, the proof would
    fail.
    """
    arguments = layer.config.get("arguments")
    _expect(layer, r"block(35|17|8)_\d+", arguments, {"scale"})
    if not isinstance(arguments, dict) or len(layer.inputs) != 2:
        raise refused(layer)
    _custom_scale(reader, replace(layer, config=arguments))


READERS: dict[str, Reader] = {
    "LayerScale": _layer_scale,
    "StochasticDepth": _stochastic_depth,
    **dict.fromkeys(("CustomScaleLayer", "Custom>CustomScaleLayer"), _custom_scale),
    "Lambda": _lambda,
}

"""The input, and what a model does to the pixels before its first convolution."""

from __future__ import annotations

from typing import Any

import numpy as np

from export.graph.nodes import Node
from export.keras_file.flat_layers import AS_IT_IS, FlatLayer
from export.keras_file.readers.axes import from_keras
from export.keras_file.readers.layer_reader import LayerReader, Reader
from export.keras_file.readers.settings import channels_first, expect, per_channel, whole_number
from models.bad_input import BadInput


def _input(reader: LayerReader, layer: FlatLayer) -> None:
    if reader.nodes:
        raise BadInput(f"{layer.key}: expected a model with one input, got another. {AS_IT_IS}")
    shape = layer.config.get("batch_input_shape") or layer.config.get("batch_shape")
    if isinstance(shape, list) and len(shape) == 4 and shape[1] in (1, 3) and shape[3] not in (1, 3, None):
        raise channels_first(layer)
    if not (isinstance(shape, list) and 2 <= len(shape) <= 4):
        raise BadInput(f"{layer.key}: expected an input of shape [None, height, width, 3], got {shape}. {AS_IT_IS}")
    if len(shape) < 4:  # rows of numbers, or a vector
        reader.emit(
            layer, "input", from_keras([whole_number(side, layer, "its shape") for side in shape[1:]]), inputs=[]
        )
        return
    given = reader.image_size or (None, None)
    sides = [own if own is not None else size for own, size in zip(shape[1:3], given, strict=True)]
    if None in sides:
        raise BadInput(f"{layer.key}: expected a size, got an input of shape {shape}. Give it with --image_size H,W.")
    if reader.image_size and tuple(sides) != tuple(reader.image_size):
        raise BadInput(f"--image_size {reader.image_size}: expected the file's own {tuple(sides)}. Leave it out.")
    height, width = (whole_number(side, layer, "the image's size") for side in sides)
    channels = 3 if shape[3] is None else whole_number(shape[3], layer, "its channels")
    reader.emit(layer, "input", (channels, height, width), inputs=[])


def affine(
    reader: LayerReader, layer: FlatLayer, before: Node, scale: Any = 1.0, offset: Any = 0.0, what: str = "numbers"
) -> Node:
    """Add x * scale + offset, each one number or one for each channel."""
    channels = before.shape[0]
    scale, offset = (per_channel(each, layer, what, channels) for each in (scale, offset))
    return reader.emit(layer, "affine", before.shape, {"scale": scale, "offset": offset}, inputs=[before])


def _rescaling(reader: LayerReader, layer: FlatLayer) -> None:
    (before,) = reader.before(layer)
    affine(reader, layer, before, layer.config["scale"], layer.config.get("offset", 0.0), "scale and offset")


def _normalization(reader: LayerReader, layer: FlatLayer) -> None:
    """Keras's Normalization: (x - mean) / max(sqrt(variance), 1e-7)."""
    (before,) = reader.before(layer)
    expect(layer, axis=(-1, len(before.shape), (-1,), (len(before.shape),), None, ()))
    channels = before.shape[0]
    if reader.weights[layer.key]:
        shape = () if layer.config.get("axis", -1) in (None, []) else (channels,)
        mean, variance = reader.take(layer, "mean", shape, 0), reader.take(layer, "variance", shape, 1)
        for left in ("count", "2"):  # how many photos the layer was adapted to; the result does not depend on it
            reader.weights[layer.key].pop(left, None)
    else:
        mean, variance = layer.config["mean"], layer.config["variance"]
    means = per_channel(mean, layer, "mean", channels)
    variances = per_channel(variance, layer, "variance", channels)
    deviations = [max(float(np.sqrt(max(each, 0.0))), 1e-7) for each in variances]
    if layer.config.get("invert"):  # the opposite: x * deviation + mean
        affine(reader, layer, before, deviations, means)
        return
    scale = [1.0 / each for each in deviations]
    affine(reader, layer, before, scale, [-each * factor for each, factor in zip(means, scale, strict=True)])


READERS: dict[str, Reader] = {
    "InputLayer": _input,
    "Rescaling": _rescaling,
    "Normalization": _normalization,
}

"""A layer's settings: numbers as numbers, and what else they may be."""

from __future__ import annotations

from typing import Any

import numpy as np

from export.graph.nodes import Node
from export.keras_file.flat_layers import AS_IT_IS, DAMAGED, FlatLayer
from export.keras_file.readers.layer_reader import LayerReader
from models.bad_input import BadInput


def expect(layer: FlatLayer, **allowed: tuple[Any, ...]) -> None:
    """Refuse a setting with a value that is not allowed. The first allowed value is Keras's default."""
    for name, values in allowed.items():
        value = layer.config.get(name, values[0])
        value = tuple(value) if isinstance(value, list) else value
        if value not in values:
            shown = " or ".join(map(str, values))
            raise BadInput(f"{layer.key}: expected a {layer.class_name} with {name} {shown}, got {value}. {AS_IT_IS}")


def whole_number(value: Any, layer: FlatLayer, what: str, lowest: int = 1) -> int:
    """A whole number from `lowest`."""
    if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= 1 << 20:
        raise BadInput(
            f"{layer.key}: expected {what} as a whole number from {lowest}, got {str(value)[:40]}. {DAMAGED}"
        )
    return value


def two_numbers(value: Any, layer: FlatLayer, what: str) -> tuple[int, int]:
    """Whole numbers from 1 for height and width, of one or two."""
    values = list(value) if isinstance(value, list | tuple) else [value, value]
    if len(values) != 2:
        raise BadInput(f"{layer.key}: expected {what} for height and width, got {str(value)[:40]}. {DAMAGED}")
    return whole_number(values[0], layer, what), whole_number(values[1], layer, what)


def four_numbers(value: Any, layer: FlatLayer, what: str) -> tuple[int, int, int, int]:
    """Whole numbers from 0 for top, bottom, left and right, of one, two or twice two."""
    given = value if isinstance(value, list | tuple) else [value, value]
    sides = [each if isinstance(each, list | tuple) else [each, each] for each in given]
    if len(sides) != 2 or any(len(side) != 2 for side in sides):
        raise BadInput(
            f"{layer.key}: expected {what} for both ends of height and width, got {str(value)[:60]}. {AS_IT_IS}"
        )
    top, bottom, left, right = (whole_number(each, layer, what, 0) for side in sides for each in side)
    return top, bottom, left, right


def finite_number(value: Any, layer: FlatLayer, what: str) -> float:
    """A finite number."""
    if isinstance(value, dict) and value.get("class_name") == "__numpy__":  # Keras 2.11 and later, of numpy scalars
        value = value["config"]["value"]
    if not isinstance(value, int | float) or isinstance(value, bool) or not np.isfinite(value):
        raise BadInput(f"{layer.key}: expected {what} as a finite number, got {str(value)[:40]}. {DAMAGED}")
    return float(value)


def per_channel(value: Any, layer: FlatLayer, what: str, channels: int) -> list[float]:
    """One finite number for each channel, of one or as many."""
    if isinstance(value, dict):
        value = value.get("config", {}).get("value", value)
    try:
        values = np.asarray(value, np.float64).reshape(-1)
    except (TypeError, ValueError):
        values = np.zeros(0)
    shape = np.shape(value)
    along_channels = not shape or shape[-1] == values.size  # not one for each row
    if values.size not in (1, channels) or not along_channels or not np.isfinite(values).all():
        raise BadInput(
            f"{layer.key}: expected {what} as one finite number or {channels}, one for each channel, got "
            f"{str(value)[:80]}. {AS_IT_IS}"
        )
    return [float(each) for each in np.broadcast_to(values, channels)]


def channels_first(layer: FlatLayer) -> BadInput:
    """What is raised for a layer whose images are (channels, height, width)."""
    return BadInput(
        f"{layer.key}: expected photos as (height, width, channels), got a model that takes the channels "
        "first, which is not read here. In the code that builds the model, say "
        "keras.backend.set_image_data_format('channels_last') first, and axis=-1 where it says axis=1; then "
        "model.load_weights(OLD) and model.save(NEW): it gives the same answers for photos whose channels come last."
    )


def expect_channels_last(layer: FlatLayer) -> None:
    """Refuse a layer with data_format channels_first."""
    if layer.config.get("data_format") == "channels_first":
        raise channels_first(layer)


def image_shape(node: Node, layer: FlatLayer) -> tuple[int, int, int]:
    """(C, H, W) of a node that has images."""
    if len(node.shape) != 3:
        raise BadInput(
            f"{layer.key}: expected a {layer.class_name} on images, got it on shape {node.shape}. {AS_IT_IS}"
        )
    return node.shape[0], node.shape[1], node.shape[2]


def only_map(reader: LayerReader, layer: FlatLayer) -> tuple[Node, int, tuple[int, int]]:
    """The one node that a layer of images reads, its channels, and its height and width."""
    (before,) = reader.before(layer)
    channels, height, width = image_shape(before, layer)
    expect_channels_last(layer)
    return before, channels, (height, width)

"""Layers that move values and compute nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from export.graph.nodes import Graph, Node
from export.keras_file.keras_layer import (
    Emit,
    KerasLayer,
    plain,
)


def _slice_channels(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    """No built-in layer slices channels, but one crops columns: swap channels and columns, crop, and swap back."""
    start, stop = node.attributes["start"], node.attributes["stop"]
    channels = graph.node(node.inputs[0]).shape[0]
    turned, cropped = f"{node.name}_turned", f"{node.name}_cropped"
    crop = {"cropping": [[0, 0], [start, channels - stop]], "data_format": "channels_last"}
    yield KerasLayer("Permute", turned, {"dims": [1, 3, 2]}, inputs)
    yield KerasLayer("Cropping2D", cropped, crop, (turned,))
    yield KerasLayer("Permute", node.name, {"dims": [1, 3, 2]}, (cropped,))


def _crop(node: Node) -> dict[str, Any]:
    top, bottom, left, right = node.attributes["cropping"]
    return {"cropping": [[top, bottom], [left, right]], "data_format": "channels_last"}


LAYERS: dict[str, Emit] = {
    "crop": plain("Cropping2D", _crop),
    "slice_channels": _slice_channels,
    "reshape": plain("Reshape", lambda node: {"target_shape": [*node.shape[1:], node.shape[0]]}),
    "concatenate": plain("Concatenate", lambda node: {"axis": -1}),
    "flatten": plain("Reshape", lambda node: {"target_shape": [node.shape[0]]}),
}

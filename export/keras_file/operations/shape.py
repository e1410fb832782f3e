"""Layers that move values and compute nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from export.graph.nodes import Graph, Node
from export.keras_file.keras_layer import (
    Emit,
    KerasLayer,
    permute,
    plain,
    reshape,
)


def cut_channels(
    name: str, shape: tuple[int, ...], cut: tuple[int, int, int], inputs: tuple[str, ...]
) -> Iterator[KerasLayer]:
    """No built-in layer slices channels, but one crops columns: swap channels and columns, crop, and swap back.

    Args:
        name: of the last layer.
        shape: of the result, (C, H, W) or (C,).
        cut: first channel, the one after the last, number of channels.
        inputs: what is cut.
    """
    start, stop, channels = cut
    turned, cropped = f"{name}_turned", f"{name}_cropped"
    crop = {"cropping": [[0, 0], [start, channels - stop]], "data_format": "channels_last"}
    if len(shape) == 1:  # a single place, with its channels as columns already
        yield reshape(turned, (1, channels, 1), inputs)
        yield KerasLayer("Cropping2D", cropped, crop, (turned,))
        yield reshape(name, (stop - start,), (cropped,))
        return
    yield permute(turned, (1, 3, 2), inputs)
    yield KerasLayer("Cropping2D", cropped, crop, (turned,))
    yield permute(name, (1, 3, 2), (cropped,))


def _slice_channels(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    cut = node.attributes["start"], node.attributes["stop"], graph.node(node.inputs[0]).shape[0]
    yield from cut_channels(node.name, node.shape, cut, inputs)


def _flatten_channels(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    """Keras has a map as (H, W, C)."""
    yield permute(f"{node.name}_turned", (3, 1, 2), inputs)
    yield reshape(node.name, node.shape, (f"{node.name}_turned",))


def _crop(node: Node) -> dict[str, Any]:
    top, bottom, left, right = node.attributes["cropping"]
    return {"cropping": [[top, bottom], [left, right]], "data_format": "channels_last"}


LAYERS: dict[str, Emit] = {
    "crop": plain("Cropping2D", _crop),
    "slice_channels": _slice_channels,
    "reshape": plain("Reshape", lambda node: {"target_shape": [*node.shape[1:], node.shape[0]]}),
    "concatenate": plain("Concatenate", lambda node: {"axis": -1}),
    "flatten_channels": _flatten_channels,
    "flatten": plain("Reshape", lambda node: {"target_shape": [node.shape[0]]}),
}

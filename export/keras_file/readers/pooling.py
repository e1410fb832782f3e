"""Pooling, of windows and of whole maps."""

from __future__ import annotations

from typing import Any

from export.keras_file.flat_layers import FlatLayer
from export.keras_file.readers.convolution import same_or_valid
from export.keras_file.readers.layer_reader import LayerReader, Reader
from export.keras_file.readers.settings import only_map, two_numbers


def _pooling(op: str) -> Reader:
    def read(reader: LayerReader, layer: FlatLayer) -> None:
        _, channels, size = only_map(reader, layer)
        kernel = two_numbers(layer.config.get("pool_size", 2), layer, "pool_size")
        strides = two_numbers(layer.config.get("strides") or kernel, layer, "strides")
        padding, result = same_or_valid(layer, size, kernel, strides, (1, 1))
        attributes: dict[str, Any] = {"kernel": kernel, "strides": strides, "padding": padding}
        if op == "average_pool":
            attributes["count_padding"] = False
        reader.emit(layer, op, (channels, *result), attributes)

    return read


def _global_pooling(op: str) -> Reader:
    def read(reader: LayerReader, layer: FlatLayer) -> None:
        _, channels, _ = only_map(reader, layer)
        keep = bool(layer.config.get("keepdims", False))
        reader.emit(layer, op, (channels, 1, 1) if keep else (channels,), {"keep_dimensions": keep})

    return read


READERS: dict[str, Reader] = {
    "MaxPooling2D": _pooling("max_pool"),
    "AveragePooling2D": _pooling("average_pool"),
    "GlobalAveragePooling2D": _global_pooling("global_average_pool"),
    "GlobalMaxPooling2D": _global_pooling("global_max_pool"),
}

"""Layers that change a map's height and width, pooling among them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from export.graph.nodes import Node
from export.keras_file.flat_layers import AS_IT_IS, FlatLayer
from export.keras_file.readers.convolution import same_or_valid
from export.keras_file.readers.layer_reader import LayerReader, Reader, refused
from export.keras_file.readers.settings import expect, four_numbers, only_map, two_numbers, whole_number
from export.worker.keras_worker import bicubic_matrix
from models.bad_input import BadInput


def zero_padding(reader: LayerReader, layer: FlatLayer) -> None:
    """Zeros around a map."""
    _, channels, (height, width) = only_map(reader, layer)
    top, bottom, left, right = four_numbers(layer.config["padding"], layer, "padding")
    shape = (channels, height + top + bottom, width + left + right)
    reader.emit(layer, "pad", shape, {"padding": (top, bottom, left, right)})


def _cropping(reader: LayerReader, layer: FlatLayer) -> None:
    _, channels, (height, width) = only_map(reader, layer)
    top, bottom, left, right = four_numbers(layer.config["cropping"], layer, "cropping")
    _crop(reader, layer, channels, (height, width), (top, bottom, left, right))


def _center_crop(reader: LayerReader, layer: FlatLayer) -> None:
    before, channels, size = only_map(reader, layer)
    target = [whole_number(layer.config[side], layer, side) for side in ("height", "width")]
    if target[0] > size[0] or target[1] > size[1]:  # too small to cut: it is resized
        resizing(reader, replace(layer, config={**layer.config, "crop_to_aspect_ratio": True}))
        return
    if tuple(target) == size:
        reader.same_as(layer, before)
        return
    ends = [
        end for own, wanted in zip(size, target, strict=True) for end in ((own - wanted) // 2, -(-(own - wanted) // 2))
    ]
    _crop(reader, layer, channels, size, (ends[0], ends[1], ends[2], ends[3]))


def _crop(
    reader: LayerReader,
    layer: FlatLayer,
    channels: int,
    size: tuple[int, int],
    ends: tuple[int, int, int, int],
    before: Node | None = None,
    part: str = "",
) -> Node:
    result = (size[0] - ends[0] - ends[1], size[1] - ends[2] - ends[3])
    if min(result) < 1:
        raise BadInput(f"{layer.key}: expected images larger than what is cut off {ends}, got {size}. {AS_IT_IS}")
    inputs = None if before is None else [before]
    return reader.emit(layer, "crop", (channels, *result), {"cropping": ends}, inputs=inputs, part=part)


def _upsampling(reader: LayerReader, layer: FlatLayer) -> None:
    before, channels, (height, width) = only_map(reader, layer)
    expect(layer, interpolation=("nearest", "bilinear", "bicubic"))
    rows, columns = two_numbers(layer.config.get("size", 2), layer, "size")
    if layer.config.get("interpolation") == "bicubic":
        _bicubic(reader, layer, before, (height * rows, width * columns))
        return
    op = "upsample" if layer.config.get("interpolation", "nearest") == "nearest" else "upsample_bilinear"
    reader.emit(layer, op, (channels, height * rows, width * columns), {"factors": (rows, columns)})


def resizing(reader: LayerReader, layer: FlatLayer) -> None:
    """Any size; where it is the size already, nothing."""
    before, channels, size = only_map(reader, layer)
    expect(layer, antialias=(False,), interpolation=("bilinear", "nearest", "bicubic"))
    height, width = (whole_number(layer.config[side], layer, side) for side in ("height", "width"))
    if (height, width) == size:
        reader.same_as(layer, before)
        return
    if layer.config.get("crop_to_aspect_ratio"):
        ends = _to_aspect_ratio(size, (height, width))
        if any(ends):
            before = _crop(reader, layer, channels, size, ends, before, "cropped")
    elif layer.config.get("pad_to_aspect_ratio"):
        expect(layer, fill_mode=("constant",), fill_value=(0.0,))
        ends = _to_aspect_ratio(size, (height, width), padded=True)
        if any(ends):
            shape = (channels, size[0] + ends[0] + ends[1], size[1] + ends[2] + ends[3])
            before = reader.emit(layer, "pad", shape, {"padding": ends}, inputs=[before], part="padded")
    interpolation = layer.config.get("interpolation", "bilinear")
    if interpolation == "bicubic":
        _bicubic(reader, layer, before, (height, width))
        return
    reader.emit(layer, "resize", (channels, height, width), {"interpolation": interpolation}, inputs=[before])


def _bicubic(reader: LayerReader, layer: FlatLayer, before: Node, target: tuple[int, int]) -> None:
    """Rows and columns by fixed matrices: no Keras 2 of old age and Keras 3 share another way."""
    channels, *size = before.shape
    rows, columns = (
        None if own == wanted else tuple(map(tuple, bicubic_matrix(own, wanted).tolist()))
        for own, wanted in zip(size, target, strict=True)
    )
    reader.emit(layer, "map_places", (channels, *target), {"rows": rows, "columns": columns}, inputs=[before])


def _to_aspect_ratio(size: tuple[int, int], target: tuple[int, int], padded: bool = False) -> tuple[int, int, int, int]:
    """What is cut off, or added, at top, bottom, left and right before an image is resized.

    Mirrors `resize` in `keras/src/backend/tensorflow/image.py`, and `smart_resize` in Keras 2.
    """
    better = max if padded else min
    wanted = (
        better(size[0], int(size[1] * target[0] / target[1])),
        better(size[1], int(size[0] * target[1] / target[0])),
    )
    ends: list[int] = []
    for own, new in zip(size, wanted, strict=True):
        first = abs(own - max(new, 1)) // 2
        ends += [first, abs(own - max(new, 1)) - first]
    return ends[0], ends[1], ends[2], ends[3]


def _random_crop(reader: LayerReader, layer: FlatLayer) -> None:
    """Does nothing to an image of its size; to others every Keras does something else when it predicts."""
    before, _, size = only_map(reader, layer)
    if size != tuple(layer.config.get(side) for side in ("height", "width")):
        raise refused(layer)
    reader.augmentation.append(layer.key)
    reader.same_as(layer, before)


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
    "ZeroPadding2D": zero_padding,
    "Cropping2D": _cropping,
    "CenterCrop": _center_crop,
    "UpSampling2D": _upsampling,
    "Resizing": resizing,
    "RandomCrop": _random_crop,
    "MaxPooling2D": _pooling("max_pool"),
    "AveragePooling2D": _pooling("average_pool"),
    "GlobalAveragePooling2D": _global_pooling("global_average_pool"),
    "GlobalMaxPooling2D": _global_pooling("global_max_pool"),
}

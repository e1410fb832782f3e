"""Layers that change a map's height and width."""

from __future__ import annotations

from export.keras_file.flat_layers import AS_IT_IS, FlatLayer
from export.keras_file.readers.layer_reader import LayerReader, Reader
from export.keras_file.readers.settings import expect, four_numbers, only_map, two_numbers, whole_number
from models.bad_input import BadInput


def _zero_padding(reader: LayerReader, layer: FlatLayer) -> None:
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
    if target[0] > size[0] or target[1] > size[1]:
        raise BadInput(
            f"{layer.key}: expected images of at least {target}, got {size}: Keras would resize them. {AS_IT_IS}"
        )
    if tuple(target) == size:
        reader.same_as(layer, before)
        return
    ends = [
        end for own, wanted in zip(size, target, strict=True) for end in ((own - wanted) // 2, -(-(own - wanted) // 2))
    ]
    _crop(reader, layer, channels, size, (ends[0], ends[1], ends[2], ends[3]))


def _crop(
    reader: LayerReader, layer: FlatLayer, channels: int, size: tuple[int, int], ends: tuple[int, int, int, int]
) -> None:
    result = (size[0] - ends[0] - ends[1], size[1] - ends[2] - ends[3])
    if min(result) < 1:
        raise BadInput(f"{layer.key}: expected images larger than what is cut off {ends}, got {size}. {AS_IT_IS}")
    reader.emit(layer, "crop", (channels, *result), {"cropping": ends})


def _upsampling(reader: LayerReader, layer: FlatLayer) -> None:
    _, channels, (height, width) = only_map(reader, layer)
    expect(layer, interpolation=("nearest", "bilinear"))
    rows, columns = two_numbers(layer.config.get("size", 2), layer, "size")
    op = "upsample" if layer.config.get("interpolation", "nearest") == "nearest" else "upsample_bilinear"
    reader.emit(layer, op, (channels, height * rows, width * columns), {"factors": (rows, columns)})


def resizing(reader: LayerReader, layer: FlatLayer) -> None:
    """Any size; where it is the size already, nothing."""
    before, channels, size = only_map(reader, layer)
    expect(layer, crop_to_aspect_ratio=(False,), pad_to_aspect_ratio=(False,), antialias=(False,))
    expect(layer, interpolation=("bilinear", "nearest"))
    target = tuple(whole_number(layer.config[side], layer, side) for side in ("height", "width"))
    if target == size:
        reader.same_as(layer, before)
        return
    interpolation = layer.config.get("interpolation", "bilinear")
    reader.emit(layer, "resize", (channels, *target), {"interpolation": interpolation})


READERS: dict[str, Reader] = {
    "ZeroPadding2D": _zero_padding,
    "Cropping2D": _cropping,
    "CenterCrop": _center_crop,
    "UpSampling2D": _upsampling,
    "Resizing": resizing,
}

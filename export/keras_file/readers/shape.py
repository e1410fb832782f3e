"""Layers that hold the same numbers in another shape."""

from __future__ import annotations

import numpy as np

from export.keras_file.flat_layers import AS_IT_IS, DAMAGED, FlatLayer
from export.keras_file.readers.layer_reader import LayerReader, Reader
from export.keras_file.readers.settings import expect_channels_last, whole_number
from models.bad_input import BadInput


def _flatten(reader: LayerReader, layer: FlatLayer) -> None:
    (before,) = reader.before(layer)
    expect_channels_last(layer)
    if len(before.shape) == 1:
        reader.same_as(layer, before)
    else:
        reader.emit(layer, "flatten", (int(np.prod(before.shape)),))


def reshape(reader: LayerReader, layer: FlatLayer) -> None:
    """The same numbers in another shape; -1 is what is left."""
    (before,) = reader.before(layer)
    count = int(np.prod(before.shape))
    target = [whole_number(each, layer, "target_shape", -1) for each in layer.config["target_shape"]]
    known = int(np.prod([each for each in target if each != -1]))
    target = [count // known if each == -1 else each for each in target]
    if int(np.prod(target)) != count:
        raise BadInput(f"{layer.key}: expected a Reshape of {count} numbers, got {target}. {AS_IT_IS}")
    shape = (target[-1], *target[:-1])
    if shape == before.shape:
        reader.same_as(layer, before)
    elif len(shape) == 1:
        reader.emit(layer, "flatten", shape)
    else:
        reader.emit(layer, "reshape" if len(shape) == 3 else "regroup", shape)


def permute(reader: LayerReader, layer: FlatLayer) -> None:
    """The axes, counted from 1, in another order."""
    (before,) = reader.before(layer)
    own, dims = (*before.shape[1:], before.shape[0]), list(layer.config["dims"])
    if sorted(dims) != list(range(1, len(own) + 1)):
        raise BadInput(f"{layer.key}: expected dims 1 to {len(own)} in some order, got {dims}. {DAMAGED}")
    moved = [own[dim - 1] for dim in dims]
    reader.emit(layer, "transpose", (moved[-1], *moved[:-1]), {"axes": tuple(dim - 1 for dim in dims)})


READERS: dict[str, Reader] = {
    "Flatten": _flatten,
    "Reshape": reshape,
    "Permute": permute,
}

"""Pooling, upsampling and resizing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from export.graph.nodes import Graph, Node
from export.keras_file.keras_layer import (
    Emit,
    KerasLayer,
    plain,
    same_padding,
    zero_padding,
)
from export.keras_file.operations.places import map_places


def _upsample(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    how = "bilinear" if node.op == "upsample_bilinear" else "nearest"
    config = {"size": list(node.attributes["factors"]), "interpolation": how, "data_format": "channels_last"}
    yield KerasLayer("UpSampling2D", node.name, config, inputs)


def pooling(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    """Max or average pooling with the stated padding, which never wins a maximum and may not be counted.

    Keras has that for SAME alone. Where the stated padding is another, every window with stride 1 is pooled under
    SAME, and those that are wanted are taken out of them.
    """
    before = graph.node(node.inputs[0])
    kernel, strides, padding = (node.attributes[name] for name in ("kernel", "strides", "padding"))
    sizes = before.shape[1:]
    same = tuple(
        side
        for size, window, stride in zip(sizes, kernel, strides, strict=True)
        for side in same_padding(size, window, stride, 1)
    )
    is_max = node.op == "max_pool"
    class_name = "MaxPooling2D" if is_max else "AveragePooling2D"
    config = {"pool_size": list(kernel), "strides": list(strides), "padding": "valid", "data_format": "channels_last"}
    with_zeros = before.op == "relu" if is_max else node.attributes["count_padding"]
    if not any(padding):
        yield KerasLayer(class_name, node.name, config, inputs)
    elif padding == same and (is_max or not with_zeros):
        yield KerasLayer(class_name, node.name, {**config, "padding": "same"}, inputs)
    elif with_zeros:
        yield zero_padding(f"{node.name}_pad", padding, inputs)
        yield KerasLayer(class_name, node.name, config, (f"{node.name}_pad",))
    else:
        yield from _windows_of_same(node, class_name, sizes, inputs)


def _windows_of_same(
    node: Node, class_name: str, sizes: tuple[int, ...], inputs: tuple[str, ...]
) -> Iterator[KerasLayer]:
    kernel, strides, padding = (node.attributes[name] for name in ("kernel", "strides", "padding"))
    every, name = f"{node.name}_every", node.name
    crop: list[list[int]] = []
    for axis in (0, 1):
        # SAME puts (kernel - 1) // 2 in front; the window that begins at -padding is its number `first`
        first = (kernel[axis] - 1) // 2 - padding[2 * axis]
        last = first + (node.shape[1 + axis] - 1) * strides[axis]
        if first < 0 or last >= sizes[axis]:
            yield from _windows_beyond_same(node, class_name, sizes, inputs)
            return
        crop.append([first, sizes[axis] - 1 - last])
    config = {"pool_size": list(kernel), "strides": [1, 1], "padding": "same", "data_format": "channels_last"}
    strided = tuple(strides) != (1, 1)
    cropped = crop != [[0, 0], [0, 0]]
    yield KerasLayer(class_name, every if strided or cropped else name, config, inputs)
    inputs = (every,)
    if cropped:
        each = f"{name}_inside" if strided else name
        yield KerasLayer("Cropping2D", each, {"cropping": crop, "data_format": "channels_last"}, inputs)
        inputs = (each,)
    if strided:
        config = {"pool_size": [1, 1], "strides": list(strides), "padding": "valid", "data_format": "channels_last"}
        yield KerasLayer("MaxPooling2D", name, config, inputs)


def _windows_beyond_same(
    node: Node, class_name: str, sizes: tuple[int, ...], inputs: tuple[str, ...]
) -> Iterator[KerasLayer]:
    """For a maximum the edge is repeated, which a window over it has in any case; an average is two matrices."""
    kernel, strides, padding = (node.attributes[name] for name in ("kernel", "strides", "padding"))
    matrices = []
    for axis in (0, 1):
        places = np.arange(-padding[2 * axis], sizes[axis] + padding[2 * axis + 1])
        if class_name == "MaxPooling2D":
            matrix = np.eye(sizes[axis])[places.clip(0, sizes[axis] - 1)]
        else:
            starts = np.arange(node.shape[1 + axis]) * strides[axis] - padding[2 * axis]
            covered = np.arange(sizes[axis]) - starts[:, None]
            matrix = ((covered >= 0) & (covered < kernel[axis])).astype(np.float64)
            matrix /= matrix.sum(axis=1, keepdims=True)
        matrices.append(matrix.tolist())
    joined = replace(
        node,
        name=f"{node.name}_edges" if class_name == "MaxPooling2D" else node.name,
        op="map_places",
        attributes={"rows": matrices[0], "columns": matrices[1]},
    )
    yield from map_places(joined, inputs)
    if class_name == "MaxPooling2D":
        config = {"pool_size": list(kernel), "strides": list(strides), "padding": "valid"}
        yield KerasLayer(class_name, node.name, {**config, "data_format": "channels_last"}, (joined.name,))


def _global_pool(class_name: str) -> Emit:
    """Old versions of Keras do not accept `keepdims`, so a Reshape restores the two dimensions."""

    def emit(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
        keep = node.attributes["keep_dimensions"]
        name = f"{node.name}_pool" if keep else node.name
        yield KerasLayer(class_name, name, {"data_format": "channels_last"}, inputs)
        if keep:
            yield KerasLayer("Reshape", node.name, {"target_shape": [1, 1, node.shape[0]]}, (name,))

    return emit


def _resize(node: Node) -> dict[str, Any]:
    return {"height": node.shape[1], "width": node.shape[2], "interpolation": node.attributes["interpolation"]}


LAYERS: dict[str, Emit] = {
    "upsample": _upsample,
    "upsample_bilinear": _upsample,
    "resize": plain("Resizing", _resize),
    "max_pool": pooling,
    "average_pool": pooling,
    "global_average_pool": _global_pool("GlobalAveragePooling2D"),
    "global_max_pool": _global_pool("GlobalMaxPooling2D"),
}

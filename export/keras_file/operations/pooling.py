"""Pooling, upsampling and resizing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from export.graph.nodes import Graph, Node
from export.keras_file.keras_layer import (
    Emit,
    KerasLayer,
    NoKerasLayer,
    plain,
    same_padding,
    zero_padding,
)


def _upsample(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    how = "bilinear" if node.op == "upsample_bilinear" else "nearest"
    config = {"size": list(node.attributes["factors"]), "interpolation": how, "data_format": "channels_last"}
    yield KerasLayer("UpSampling2D", node.name, config, inputs)


def _pooling(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    """Max or average pooling: with `valid` or `same` where that is the stated padding, else after a ZeroPadding2D."""
    before = graph.node(node.inputs[0])
    kernel, strides, padding = (node.attributes[name] for name in ("kernel", "strides", "padding"))
    same = tuple(
        side
        for size, window, stride in zip(before.shape[1:], kernel, strides, strict=True)
        for side in same_padding(size, window, stride, 1)
    )
    config = {"pool_size": list(kernel), "strides": list(strides), "padding": "valid", "data_format": "channels_last"}
    is_max = node.op == "max_pool"
    # with SAME, padding never wins a maximum and is not counted in an average
    if padding == same and any(same) and (is_max or not node.attributes["count_padding"]):
        config["padding"] = "same"
    elif any(padding):
        if (is_max and before.op not in ("relu", "max_pool")) or (not is_max and not node.attributes["count_padding"]):
            raise NoKerasLayer(node, f"padding {padding} with zeros would change the result")
        yield zero_padding(f"{node.name}_pad", padding, inputs)
        inputs = (f"{node.name}_pad",)
    yield KerasLayer("MaxPooling2D" if is_max else "AveragePooling2D", node.name, config, inputs)


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
    "max_pool": _pooling,
    "average_pool": _pooling,
    "global_average_pool": _global_pool("GlobalAveragePooling2D"),
    "global_max_pool": _global_pool("GlobalMaxPooling2D"),
}

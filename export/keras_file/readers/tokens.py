"""Layers of rows of numbers, (N, C): what the layer of images does with a map of N rows and one column."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from export.keras_file.flat_layers import AS_IT_IS, FlatLayer
from export.keras_file.readers.activation import READERS as ACTIVATIONS
from export.keras_file.readers.convolution import READERS as CONVOLUTIONS
from export.keras_file.readers.layer_reader import LayerReader, Reader
from export.keras_file.readers.places import READERS as PLACES
from export.keras_file.readers.settings import expect_channels_last, two_numbers, whole_number
from export.keras_file.readers.training import READERS as TRAINING
from models.bad_input import BadInput

# The settings of a layer of images, from those of the layer of rows.
_Settings = Callable[[FlatLayer], dict[str, Any]]


def _one(value: Any) -> Any:
    return value[0] if isinstance(value, list | tuple) and len(value) == 1 else value


def _window(*names: str) -> _Settings:
    """The settings with these names get a 1 for the columns."""

    def settings(layer: FlatLayer) -> dict[str, Any]:
        own = layer.config
        return {name: [_one(own[name]), 1] for name in names if own.get(name) is not None}

    return settings


def _ends(name: str) -> _Settings:
    """Both ends of the rows; nothing at those of the columns."""

    def settings(layer: FlatLayer) -> dict[str, Any]:
        return {name: [list(_both(layer, name)), [0, 0]]}

    return settings


def _both(layer: FlatLayer, name: str) -> tuple[int, int]:
    value = layer.config[name]
    first, last = value if isinstance(value, list | tuple) else (value, value)
    return whole_number(first, layer, name, 0), whole_number(last, layer, name, 0)


def _as_column(reader: LayerReader, layer: FlatLayer) -> FlatLayer:
    """A layer that reads the rows as a map of one column."""
    (before,) = reader.before(layer)
    if len(before.shape) != 2:
        raise BadInput(
            f"{layer.key}: expected a {layer.class_name} on rows of numbers, got it on shape {before.shape}. {AS_IT_IS}"
        )
    expect_channels_last(layer)
    column = reader.emit(layer, "reshape", (*before.shape, 1), part="column")
    key = f"{layer.key}/column"
    reader.node_of[key] = column.name
    return replace(layer, inputs=(key,))


def _of_rows(of_images: Reader, settings: _Settings, biased: bool = False, rows: bool = True) -> Reader:
    """Reader of a layer of rows.

    Args:
        of_images: reader of the layer of images.
        settings: its settings, beside the same ones.
        biased: whether it has kernels, which get an axis for the columns.
        rows: whether rows come out; otherwise one vector does.
    """

    def read(reader: LayerReader, layer: FlatLayer) -> None:
        inner = _as_column(reader, layer)
        inner = replace(inner, class_name=_OF_IMAGES[layer.class_name], config={**layer.config, **settings(layer)})
        if layer.config.get("padding") == "causal":
            kernel, dilation = inner.config["kernel_size"][0], inner.config.get("dilation_rate", [1])[0]
            before = reader.nodes[reader.node_of[inner.inputs[0]]]
            channels, count, _ = before.shape
            first = dilation * (kernel - 1)
            attributes = {"padding": (first, 0, 0, 0)}
            shape = (channels, count + first, 1)
            reader.node_of[inner.inputs[0]] = reader.emit(
                layer, "pad", shape, attributes, inputs=[before], part="padded"
            ).name
            inner = replace(inner, config={**inner.config, "padding": "valid"})
        if biased:
            own = reader.weights[layer.key]
            reader.weights[layer.key] = {role: each[:, None] if each.ndim == 3 else each for role, each in own.items()}
        of_images(reader, inner)
        del reader.node_of[inner.inputs[0]]
        if rows:
            node = reader.nodes[reader.node_of[layer.key]]
            reader.emit(layer, "regroup", node.shape[:2], inputs=[node])

    return read


def _repeated(reader: LayerReader, layer: FlatLayer) -> None:
    """RepeatVector: (C,) to (N, C)."""
    (before,) = reader.before(layer)
    if len(before.shape) != 1:
        raise BadInput(f"{layer.key}: expected to repeat a vector, got shape {before.shape}. {AS_IT_IS}")
    count = whole_number(layer.config["n"], layer, "n")
    channels = before.shape[0]
    row = reader.emit(layer, "reshape", (channels, 1, 1), part="row")
    attributes = {"factors": (count, 1)}
    rows = reader.emit(layer, "upsample", (channels, count, 1), attributes, inputs=[row], part="rows")
    reader.emit(layer, "regroup", (channels, count), inputs=[rows])


def _upsampled(layer: FlatLayer) -> dict[str, Any]:
    return {"size": [two_numbers(_one(layer.config.get("size", 2)), layer, "size")[0], 1]}


_CONVOLVED = _window("kernel_size", "strides", "dilation_rate")
_OF_IMAGES = {
    name.replace("2D", "1D"): name
    for name in (
        *("Conv2D", "DepthwiseConv2D", "SeparableConv2D", "MaxPooling2D", "AveragePooling2D", "ZeroPadding2D"),
        *("GlobalAveragePooling2D", "GlobalMaxPooling2D", "Cropping2D", "UpSampling2D"),
    )
}
_POOLED = _window("pool_size", "strides")
# A layer inside a TimeDistributed that does the same with each row as with all of them.
_EACH_ROW: dict[str, Reader] = {
    "Dense": CONVOLUTIONS["Dense"],
    **{name: read for name, read in ACTIVATIONS.items() if name not in ("Softmax", "PReLU")},
    **{name: TRAINING[name] for name in ("Dropout", "GaussianNoise")},
}


def _time_distributed(reader: LayerReader, layer: FlatLayer) -> None:
    """A layer for each row by itself, where that is what it does with all of them at once."""
    inner = layer.config.get("layer")
    kind = inner.get("class_name") if isinstance(inner, dict) else None
    if kind not in _EACH_ROW or not isinstance(inner, dict):
        raise BadInput(
            f"{layer.key}: expected a TimeDistributed of {', '.join(_EACH_ROW)}, got one of {kind}. {AS_IT_IS}"
        )
    _EACH_ROW[kind](reader, replace(layer, class_name=kind, config=inner["config"]))


READERS: dict[str, Reader] = {
    "Conv1D": _of_rows(CONVOLUTIONS["Conv2D"], _CONVOLVED, biased=True),
    "DepthwiseConv1D": _of_rows(CONVOLUTIONS["DepthwiseConv2D"], _CONVOLVED, biased=True),
    "SeparableConv1D": _of_rows(CONVOLUTIONS["SeparableConv2D"], _CONVOLVED, biased=True),
    "MaxPooling1D": _of_rows(PLACES["MaxPooling2D"], _POOLED),
    "AveragePooling1D": _of_rows(PLACES["AveragePooling2D"], _POOLED),
    "GlobalAveragePooling1D": _of_rows(PLACES["GlobalAveragePooling2D"], lambda layer: {}, rows=False),
    "GlobalMaxPooling1D": _of_rows(PLACES["GlobalMaxPooling2D"], lambda layer: {}, rows=False),
    "ZeroPadding1D": _of_rows(PLACES["ZeroPadding2D"], _ends("padding")),
    "Cropping1D": _of_rows(PLACES["Cropping2D"], _ends("cropping")),
    "UpSampling1D": _of_rows(PLACES["UpSampling2D"], _upsampled),
    "RepeatVector": _repeated,
    "TimeDistributed": _time_distributed,
}

"""Convolutions and Dense."""

from __future__ import annotations

from dataclasses import replace

from export.keras_file.flat_layers import AS_IT_IS, FlatLayer
from export.keras_file.keras_layer import same_padding
from export.keras_file.readers.activation import activation_of
from export.keras_file.readers.layer_reader import LayerReader, Reader
from export.keras_file.readers.settings import expect, only_map, two_numbers, whole_number
from models.bad_input import BadInput


def same_or_valid(
    layer: FlatLayer,
    size: tuple[int, int],
    kernel: tuple[int, int],
    strides: tuple[int, int],
    dilation: tuple[int, int],
) -> tuple[tuple[int, int, int, int], tuple[int, int]]:
    """Padding (top, bottom, left, right) in pixels, and the result's height and width."""
    expect(layer, padding=("valid", "same"))
    sides = ((0, 0), (0, 0))
    if layer.config.get("padding") == "same":
        rows, columns = (same_padding(size[axis], kernel[axis], strides[axis], dilation[axis]) for axis in (0, 1))
        sides = (rows, columns)
    result = [
        (size[axis] + sum(sides[axis]) - dilation[axis] * (kernel[axis] - 1) - 1) // strides[axis] + 1
        for axis in (0, 1)
    ]
    if min(result) < 1:
        raise BadInput(
            f"{layer.key}: expected images of at least the size of its window {kernel}, got {size}. {AS_IT_IS}"
        )
    return (*sides[0], *sides[1]), (result[0], result[1])


def _convolution(reader: LayerReader, layer: FlatLayer) -> None:
    before, channels, size = only_map(reader, layer)
    kernel = two_numbers(layer.config["kernel_size"], layer, "kernel_size")
    strides = two_numbers(layer.config.get("strides", 1), layer, "strides")
    dilation = two_numbers(layer.config.get("dilation_rate", 1), layer, "dilation_rate")
    padding, result = same_or_valid(layer, size, kernel, strides, dilation)
    attributes = {"strides": strides, "padding": padding, "dilation": dilation}
    biased = layer.config.get("use_bias", True)
    if layer.class_name in ("DepthwiseConv2D", "SeparableConv2D"):
        multiplier = whole_number(layer.config.get("depth_multiplier", 1), layer, "depth_multiplier")
        role = "kernel" if layer.class_name == "DepthwiseConv2D" else "depthwise_kernel"
        array = reader.take(layer, role, (*kernel, channels, multiplier), 0)
        # Keras (kh, kw, C, multiplier) -> torch (C * multiplier, 1, kh, kw)
        weights = {"kernel": array.transpose(2, 3, 0, 1).reshape(channels * multiplier, 1, *kernel)}
        filters, groups = channels * multiplier, channels
        if layer.class_name == "SeparableConv2D":
            depthwise = reader.emit(
                layer, "conv2d", (filters, *result), {**attributes, "groups": groups}, weights, inputs=[before]
            )
            inner, filters = filters, whole_number(layer.config["filters"], layer, "filters")
            array = reader.take(layer, "pointwise_kernel", (1, 1, inner, filters), 1)
            weights, before, groups = {"kernel": array.transpose(3, 2, 0, 1)}, depthwise, 1
            attributes = {"strides": (1, 1), "padding": (0, 0, 0, 0), "dilation": (1, 1)}
        if biased:
            weights["bias"] = reader.take(layer, "bias", (filters,), 1 if role == "kernel" else 2)
    else:
        filters = whole_number(layer.config["filters"], layer, "filters")
        groups = whole_number(layer.config.get("groups", 1), layer, "groups")
        # Keras (kh, kw, in, out) -> torch (out, in, kh, kw)
        array = reader.take(layer, "kernel", (*kernel, channels // groups, filters), 0)
        weights = {"kernel": array.transpose(3, 2, 0, 1)}
        if biased:
            weights["bias"] = reader.take(layer, "bias", (filters,), 1)
    node = reader.emit(layer, "conv2d", (filters, *result), {**attributes, "groups": groups}, weights, inputs=[before])
    activation_of(reader, layer, node)


def _transposed_convolution(reader: LayerReader, layer: FlatLayer) -> None:
    before, channels, size = only_map(reader, layer)
    kernel = two_numbers(layer.config["kernel_size"], layer, "kernel_size")
    strides = two_numbers(layer.config.get("strides", 1), layer, "strides")
    expect(layer, padding=("valid", "same"), dilation_rate=(1, (1, 1)), groups=(1,))
    filters = whole_number(layer.config["filters"], layer, "filters")
    same = layer.config.get("padding") == "same"
    added = layer.config.get("output_padding")
    crop, result = [], []
    for axis in (0, 1):
        whole = (size[axis] - 1) * strides[axis] + kernel[axis]
        wanted = size[axis] * strides[axis] + (0 if same else max(kernel[axis] - strides[axis], 0))
        if added is not None:  # mirrors `deconv_output_length` in `keras/src/utils/conv_utils.py` of Keras 2
            odd = added if isinstance(added, int) else added[axis]
            wanted = whole - (2 * (kernel[axis] // 2) if same else 0) + whole_number(odd, layer, "output_padding", 0)
        first = max(whole - wanted, 0) // 2
        crop += [first, whole - wanted - first]
        result.append(wanted)
    # Keras (kh, kw, out, in) -> torch (in, out, kh, kw)
    weights = {"kernel": reader.take(layer, "kernel", (*kernel, filters, channels), 0).transpose(3, 2, 0, 1)}
    if layer.config.get("use_bias", True):
        weights["bias"] = reader.take(layer, "bias", (filters,), 1)
    if added is None:
        attributes = {"strides": strides, "crop": tuple(crop), "same": same}
        node = reader.emit(layer, "conv2d_transpose", (filters, *result), attributes, weights)
    else:  # the whole of it, of which a part is kept; what is beyond it comes from zeros behind the image
        more = [max(-(crop[2 * axis + 1] // strides[axis]), 0) for axis in (0, 1)]
        if any(more):
            shape = (channels, size[0] + more[0], size[1] + more[1])
            before = reader.emit(layer, "pad", shape, {"padding": (0, more[0], 0, more[1])}, part="padded")
            crop[1], crop[3] = (crop[2 * axis + 1] + more[axis] * strides[axis] for axis in (0, 1))
        sides = [result[axis] + crop[2 * axis] + crop[2 * axis + 1] for axis in (0, 1)]
        attributes = {"strides": strides, "crop": (0, 0, 0, 0), "same": False}
        node = reader.emit(layer, "conv2d_transpose", (filters, *sides), attributes, weights, [before])
        node = reader.emit(layer, "crop", (filters, *result), {"cropping": tuple(crop)}, inputs=[node])
    activation_of(reader, layer, node)


def _dense(reader: LayerReader, layer: FlatLayer) -> None:
    (before,) = reader.before(layer)
    units = whole_number(layer.config["units"], layer, "units")
    # Keras (in, out) -> torch (out, in)
    weights = {"kernel": reader.take(layer, "kernel", (before.shape[0], units), 0).T}
    if layer.config.get("use_bias", True):
        weights["bias"] = reader.take(layer, "bias", (units,), 1)
    activation_of(reader, layer, reader.emit(layer, "dense", (units, *before.shape[1:]), {}, weights))


def _spectral_normalization(reader: LayerReader, layer: FlatLayer) -> None:
    """The layer inside: its kernel is divided by its norm in training alone, and kept so."""
    inner = layer.config.get("layer")
    kind = inner.get("class_name") if isinstance(inner, dict) else None
    if kind not in ("Conv2D", "DepthwiseConv2D", "Conv2DTranspose", "Dense") or not isinstance(inner, dict):
        raise BadInput(f"{layer.key}: expected a SpectralNormalization of a convolution, got one of {kind}. {AS_IT_IS}")
    for role in ("vector_u", "sn_u"):  # Keras 3's name, and Keras 2's
        reader.weights[layer.key].pop(role, None)
    reader.without_effect.append(layer.key)
    READERS[kind](reader, replace(layer, class_name=kind, config=inner["config"]))


READERS: dict[str, Reader] = {
    "SpectralNormalization": _spectral_normalization,
    "Conv2D": _convolution,
    "DepthwiseConv2D": _convolution,
    "SeparableConv2D": _convolution,
    "Conv2DTranspose": _transposed_convolution,
    "Dense": _dense,
}

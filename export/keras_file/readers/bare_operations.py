"""Operations that are no layers, such as `x / 127.5` leaves behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from export.graph.nodes import Node
from export.keras_file.flat_layers import AS_IT_IS, FlatLayer, Tensor
from export.keras_file.readers.activation import emit_activation
from export.keras_file.readers.joining import concatenate, emit_joined, emit_merged, merge
from export.keras_file.readers.layer_reader import LayerReader, Reader
from export.keras_file.readers.places import resizing
from export.keras_file.readers.preprocessing import affine
from export.keras_file.readers.settings import expect, image_shape, per_channel, two_numbers
from export.keras_file.readers.shape import reshape
from models.bad_input import BadInput

# Keras 2's name of a function, or Keras 3's of an operation -> what it does with two numbers.
_ARITHMETIC = {
    "math.truediv": "/",
    "math.divide": "/",
    "TrueDivide": "/",
    "Divide": "/",
    "math.subtract": "-",
    "Subtract": "-",
    "math.multiply": "*",
    "Multiply": "*",
    "math.add": "+",
    "__operators__.add": "+",
    "nn.bias_add": "+",
    "Add": "+",
    "math.negative": "neg",
    "Negative": "neg",
    "cast": "same",
    "Cast": "same",
    "identity": "same",
}
_OF_TENSORS = {"+": "add", "-": "subtract", "*": "multiply"}


# Options of such calls that change nothing.
_NO_OPERAND = ("name", "dtype", "data_format", "training", "mask")
# A bare operation -> the activation that it is.
_ELEMENTWISE = {
    **{f"nn.{name}": name for name in ("relu", "relu6", "sigmoid", "softmax", "tanh", "elu", "selu", "gelu", "silu")},
    **{"math.sigmoid": "sigmoid", "math.tanh": "tanh", "nn.swish": "swish", "nn.softplus": "softplus"},
    **{"Relu": "relu", "Relu6": "relu6", "Sigmoid": "sigmoid", "Tanh": "tanh", "Silu": "silu", "Elu": "elu"},
}
_SLICES = ("__operators__.getitem", "GetItem")


def _operation(reader: LayerReader, layer: FlatLayer) -> None:
    """A bare operation: arithmetic with numbers becomes an affine node, with another layer's output that operation."""
    name = str(layer.config.get("function") or layer.class_name)
    options = {key: value for key, value in (layer.options or {}).items() if key not in _NO_OPERAND}
    operands = [*layer.arguments, *options.values()]
    if name == "concat":
        _bare_concatenation(reader, layer)
        return
    if name in _SLICES:
        _slice(reader, layer, operands)
        return
    if name in _OPERATIONS and len(layer.inputs) == 1:
        # Keras 3 has the settings of an operation in its configuration, Keras 2 in the call
        _OPERATIONS[name](reader, replace(layer, config={**layer.config, **(layer.options or {})}), operands[1:])
        return
    kind = _ARITHMETIC.get(name)
    if kind is None or not layer.inputs or len(operands) != (1 if kind in ("neg", "same") else 2):
        if name in _ELEMENTWISE and len(operands) == 1:
            emit_activation(reader, layer, _ELEMENTWISE[name], reader.before(layer)[0])
            return
        if kind != "same" or len(layer.inputs) != 1:
            raise BadInput(
                f"{layer.key}: expected arithmetic with numbers or with another layer's output, got the operation "
                f"{name[:80]}, which is not read here. Use one of Keras's layers for it."
            )
    nodes = reader.all_before(layer)
    if len(nodes) == 2:
        if kind not in _OF_TENSORS:
            raise BadInput(
                f"{layer.key}: expected to divide by a number, got a division by another layer's output. {AS_IT_IS}"
            )
        emit_merged(reader, layer, _OF_TENSORS[kind], nodes)
        return
    (before,) = nodes
    if kind == "same":
        reader.same_as(layer, before)
        return
    if kind == "neg":
        affine(reader, layer, before, -1.0)
        return
    constant_first = not isinstance(operands[0], Tensor)
    constant = np.asarray(
        per_channel(operands[0] if constant_first else operands[1], layer, "a constant", before.shape[0])
    )
    if kind == "/" and (constant_first or not constant.all()):
        raise BadInput(
            f"{layer.key}: expected a division by a number other than 0, got {str(operands)[:80]}. {AS_IT_IS}"
        )
    if kind == "+":
        affine(reader, layer, before, 1.0, constant)
    elif kind == "-":
        affine(reader, layer, before, *((-1.0, constant) if constant_first else (1.0, -constant)))
    else:
        affine(reader, layer, before, constant if kind == "*" else 1.0 / constant)


def _bare_concatenation(reader: LayerReader, layer: FlatLayer) -> None:
    """``tf.concat``: its axis is in the call, and Keras 2 notes it beside each of the tensors."""
    axis = next((each for each in (*layer.arguments, *(layer.options or {}).values()) if isinstance(each, int)), None)
    concatenate(reader, replace(layer, config={"axis": axis}))


def _reduced(op: str) -> Callable[[LayerReader, FlatLayer, list[Any]], None]:
    """``reduce_mean(x, [1, 2])``, or the largest: over height and width."""

    def read(reader: LayerReader, layer: FlatLayer, operands: list[Any]) -> None:
        (before,) = reader.before(layer)
        axes = operands[0] if operands and isinstance(operands[0], list) else layer.config.get("axis")
        if not isinstance(axes, list) or sorted(axes) not in ([1, 2], [-3, -2]) or len(before.shape) != 3:
            raise BadInput(
                f"{layer.key}: expected a {op} over height and width, axes [1, 2], got axes {axes}. {AS_IT_IS}"
            )
        keep = bool(layer.config.get("keepdims", False))
        shape = (before.shape[0], 1, 1) if keep else (before.shape[0],)
        reader.emit(layer, op, shape, {"keep_dimensions": keep})

    return read


def _reshaped(reader: LayerReader, layer: FlatLayer, operands: list[Any]) -> None:
    """``reshape(x, [-1, H, W, C])``: the first side is the batch's."""
    target = next((each for each in (*operands, *map(layer.config.get, ("shape", "newshape"))) if each), None)
    if not isinstance(target, list) or target[0] not in (-1, None) or -1 in target[1:]:
        raise BadInput(
            f"{layer.key}: expected to reshape to [-1, ...], with each side but the batch's, got {target}. {AS_IT_IS}"
        )
    reshape(reader, replace(layer, config={"target_shape": target[1:]}))


def _tf_resized(reader: LayerReader, layer: FlatLayer, operands: list[Any]) -> None:
    """``tf.image.resize(x, [H, W])``, which has half-pixel centres as the layer has."""
    height, width = two_numbers(operands[0] if operands else layer.config.get("size"), layer, "size")
    for option in ("preserve_aspect_ratio", "antialias"):
        expect(layer, **{option: (False,)})
    config = {"height": height, "width": width, "interpolation": layer.config.get("method", "bilinear")}
    resizing(reader, replace(layer, config=config))


def _flipped(reader: LayerReader, layer: FlatLayer, operands: list[Any]) -> None:
    """``reverse(x, [-1])``, ``flip(x, -1)``: the channels in the opposite order."""
    (before,) = reader.before(layer)
    axis = operands[0] if operands else layer.config.get("axis")
    if axis not in (-1, 3, [-1], [3]) or len(before.shape) != 3:
        raise BadInput(
            f"{layer.key}: expected a flip of the channels, axis -1, got axis {axis}. Flip photos before they are "
            "given to the model."
        )
    _take_channels(reader, layer, before, range(before.shape[0])[::-1])


# Operations with settings -> their reader, given what the call has after the tensor.
_OPERATIONS: dict[str, Callable[[LayerReader, FlatLayer, list[Any]], None]] = {
    **dict.fromkeys(("math.reduce_mean", "Mean"), _reduced("global_average_pool")),
    **dict.fromkeys(("math.reduce_max", "Max"), _reduced("global_max_pool")),
    "reshape": _reshaped,
    "image.resize": _tf_resized,
    **dict.fromkeys(("reverse", "Flip"), _flipped),
}


def _slice(reader: LayerReader, layer: FlatLayer, operands: list[Any]) -> None:
    """``x[..., ::-1]``: red, green and blue in the order that caffe's networks take, see `imagenet_utils`.

    Keras 3 has ``stack([x[..., 2], x[..., 1], x[..., 0]], axis=-1)`` for it.
    """
    (before,) = reader.before(layer)
    channels, *size = image_shape(before, layer)
    given = operands[1] if len(operands) == 2 else None
    picked = picked_channels(given if isinstance(given, list) else [given], channels)
    if picked is None:
        raise BadInput(
            f"{layer.key}: expected x[..., i], x[..., i:j] or x[..., ::-1], which choose channels, got another piece "
            f"of x: {str(given)[:120]}. What else is cut out of a photo, cut it before it is given to the model."
        )
    if isinstance(picked, int):
        node = reader.emit(layer, "slice_channels", (1, *size), {"start": picked, "stop": picked + 1})
        reader.without_channel.add(node.name)
        return
    _take_channels(reader, layer, before, picked)


def _take_channels(reader: LayerReader, layer: FlatLayer, before: Node, picked: range) -> None:
    size = before.shape[1:]
    if list(picked) == list(range(picked[0], picked[-1] + 1)):
        reader.emit(layer, "slice_channels", (len(picked), *size), {"start": picked[0], "stop": picked[-1] + 1})
        return
    parts = [
        reader.emit(layer, "slice_channels", (1, *size), {"start": index, "stop": index + 1}, inputs=[before])
        for index in picked
    ]
    reader.emit(layer, "concatenate", (len(picked), *size), inputs=parts)


def picked_channels(items: list[Any], channels: int) -> int | range | None:
    """The channel or channels that ``x[items]`` takes of (N, H, W, C); None if it is anything else of x."""
    slices = [_slice_of(each) for each in items]
    if slices.count(...) == 1:
        place = slices.index(...)
        slices[place : place + 1] = [slice(None)] * (5 - len(slices))
    if len(slices) != 4 or any(each != slice(None) for each in slices[:3]):
        return None
    last = slices[3]
    if isinstance(last, int):
        return range(channels)[last] if -channels <= last < channels else None
    return (range(channels)[last] or None) if isinstance(last, slice) else None


def _slice_of(item: Any) -> Any:
    """An item of ``x[...]`` as Python has it; Keras 2 and Keras 3 describe it differently. None if it is none."""
    if item in ("...", "Ellipsis") or (isinstance(item, dict) and item.get("class_name") == "__ellipsis__"):
        return ...
    if isinstance(item, int) and not isinstance(item, bool):
        return item
    described = item.get("config", item) if isinstance(item, dict) else {}
    parts = [described.get(part) for part in ("start", "stop", "step")]
    if "step" not in described or any(part is not None and type(part) is not int for part in parts):
        return None
    return slice(parts[0], parts[1], None if parts[2] == 1 else parts[2])


def _stack(reader: LayerReader, layer: FlatLayer) -> None:
    """Single channels, put together again."""
    nodes = reader.all_before(layer)
    if layer.config.get("axis") != -1 or any(each.name not in reader.without_channel for each in nodes):
        raise BadInput(
            f"{layer.key}: expected to stack channels, x[..., i], on the last axis, got something else. {AS_IT_IS}"
        )
    emit_joined(reader, layer, nodes)


def _layer_or_operation(op: str) -> Reader:
    """In Keras 3 `x + 3` is an Add as well, though not the layer."""
    of_layers = merge(op)

    def read(reader: LayerReader, layer: FlatLayer) -> None:
        whole = all(isinstance(each, Tensor) for each in layer.arguments)
        (of_layers if whole else _operation)(reader, layer)

    return read


READERS: dict[str, Reader] = {
    **dict.fromkeys(("TFOpLambda", "SlicingOpLambda", "Mean", "Max", "Flip"), _operation),
    **dict.fromkeys((*_SLICES, *_ARITHMETIC, *_ELEMENTWISE), _operation),
    "Stack": _stack,
    "Add": _layer_or_operation("add"),
    "Subtract": _layer_or_operation("subtract"),
    "Multiply": _layer_or_operation("multiply"),
    "Average": _layer_or_operation("average"),
    "Maximum": _layer_or_operation("maximum"),
    "Minimum": _layer_or_operation("minimum"),
}

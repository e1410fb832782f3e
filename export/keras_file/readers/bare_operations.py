"""Operations that are no layers, such as `x / 127.5` leaves behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from export.graph.nodes import Node
from export.keras_file.flat_layers import AS_IT_IS, DAMAGED, FlatLayer, Tensor
from export.keras_file.readers.activation import READERS as ACTIVATIONS
from export.keras_file.readers.activation import emit_activation, leaky, softmax
from export.keras_file.readers.axes import axes_of, axis_of, from_keras, keras_shape
from export.keras_file.readers.computed_axes import MATRIX_PRODUCTS, OPERATIONS, matrix_product
from export.keras_file.readers.joining import concatenate, emit_joined, emit_merged, merge
from export.keras_file.readers.layer_reader import LayerReader, Reader
from export.keras_file.readers.normalisation import unit_norm
from export.keras_file.readers.places import resizing, zero_padding
from export.keras_file.readers.preprocessing import affine
from export.keras_file.readers.settings import expect, finite_number, image_shape, per_channel, two_numbers
from export.keras_file.readers.shape import permute, reshape
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
    **dict.fromkeys(("math.maximum", "Maximum"), "max"),
    **dict.fromkeys(("math.minimum", "Minimum"), "min"),
    "cast": "same",
    "Cast": "same",
    "identity": "same",
}
_OF_TENSORS = {"+": "add", "-": "subtract", "*": "multiply", "max": "maximum", "min": "minimum"}


# Options of such calls that change nothing.
_NO_OPERAND = ("name", "dtype", "data_format", "training", "mask")
# A bare operation -> the activation that it is.
_ELEMENTWISE = {
    **{f"nn.{name}": name for name in ("relu", "relu6", "sigmoid", "tanh", "elu", "selu", "gelu", "silu")},
    **{"math.sigmoid": "sigmoid", "math.tanh": "tanh", "nn.swish": "swish", "nn.softplus": "softplus"},
    **{"math.softplus": "softplus", "math.exp": "exponential", "math.log_sigmoid": "log_sigmoid"},
    **{"Relu": "relu", "Relu6": "relu6", "Sigmoid": "sigmoid", "Tanh": "tanh", "Silu": "silu", "Elu": "elu"},
    **{"Exp": "exponential", "Softplus": "softplus", "Softsign": "softsign", "Selu": "selu", "HardSilu": "hard_silu"},
    **{"HardSigmoid": "hard_sigmoid", "LogSigmoid": "log_sigmoid"},
}
_SLICES = ("__operators__.getitem", "GetItem")


def _operation(reader: LayerReader, layer: FlatLayer) -> None:
    """A bare operation: arithmetic with numbers becomes an affine node, with another layer's output that operation."""
    name = str(layer.config.get("function") or layer.class_name)
    options = {key: value for key, value in (layer.options or {}).items() if key not in _NO_OPERAND}
    operands = [*layer.arguments, *options.values()]
    if name in ("concat", "Concatenate"):
        _bare_concatenation(reader, layer)
        return
    if name in MATRIX_PRODUCTS:
        matrix_product(reader, layer)
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
    if len(nodes) == 2 and kind == "/":
        _quotient(reader, layer, nodes)
        return
    if len(nodes) == 2:
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
    given = operands[0] if constant_first else operands[1]
    places = _of_places(given, keras_shape(before))
    if places is not None and kind in ("+", "-", "*") and not (constant_first and kind == "-"):
        _with_array(reader, layer, before, places, kind)
        return
    constant = np.asarray(per_channel(given, layer, "a constant", before.shape[0]))
    if kind in ("max", "min"):
        _limited(reader, layer, before, constant, kind)
        return
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


def _of_places(value: Any, shape: tuple[int, ...]) -> np.ndarray | None:
    """A constant with a number for each place, or each row, (1, ...) or without that 1; None if it is none."""
    if isinstance(value, dict):
        value = value.get("config", {}).get("value", value)
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        return None
    if array.ndim == len(shape) + 1 and array.shape[0] == 1:
        array = array[0]
    array = array.reshape((1,) * (len(shape) - array.ndim) + array.shape)
    fits = array.ndim == len(shape) and all(own in (1, side) for own, side in zip(array.shape, shape, strict=True))
    return array if fits and array.shape[:-1] != (1,) * (len(shape) - 1) and np.isfinite(array).all() else None


def _with_array(reader: LayerReader, layer: FlatLayer, before: Node, array: np.ndarray, kind: str) -> None:
    numbers = tuple((-array if kind == "-" else array).reshape(-1).tolist())
    attributes = {"shape": array.shape, "order": tuple(range(array.ndim)), "constant": numbers}
    op = "multiply_array" if kind == "*" else "add_array"
    reader.emit(layer, op, before.shape, attributes, inputs=[before])


def _quotient(reader: LayerReader, layer: FlatLayer, nodes: list[Node]) -> None:
    """By another layer's output; if that is 0 for an image, Keras's answer is no number and ours is another."""
    if nodes[0].shape != nodes[1].shape:
        raise BadInput(
            f"{layer.key}: expected to divide equal shapes, got {[each.shape for each in nodes]}. {AS_IT_IS}"
        )
    reader.emit(layer, "divide", nodes[0].shape, inputs=nodes)


def _limited(reader: LayerReader, layer: FlatLayer, before: Node, constant: np.ndarray, kind: str) -> None:
    """The larger, or the smaller, of x and a number."""
    limits = sorted(set(constant.tolist()))
    if len(limits) != 1:
        raise BadInput(f"{layer.key}: expected one number beside x, got one for each channel. {AS_IT_IS}")
    clip(reader, layer, before, *((limits[0], None) if kind == "max" else (None, limits[0])))


def clip(reader: LayerReader, layer: FlatLayer, before: Node, low: float | None, high: float | None) -> Node:
    """Not below `low` and not above `high`."""
    if low == 0:
        return reader.emit(layer, "relu", before.shape, {"max_value": high}, inputs=[before])
    return reader.emit(layer, "clip", before.shape, {"low": low, "high": high}, inputs=[before])


def _bare_concatenation(reader: LayerReader, layer: FlatLayer) -> None:
    """``tf.concat``: its axis is in the call, and Keras 2 notes it beside each of the tensors."""
    given = (*layer.arguments, *(layer.options or {}).values())
    axis = next((each for each in given if isinstance(each, int)), layer.config.get("axis"))
    concatenate(reader, replace(layer, config={"axis": axis}))


def _reduced(op: str) -> Callable[[LayerReader, FlatLayer, list[Any]], None]:
    """``reduce_mean(x, [1, 2])``, the sum or the largest: over neighbouring axes."""

    def read(reader: LayerReader, layer: FlatLayer, operands: list[Any]) -> None:
        (before,) = reader.before(layer)
        own = keras_shape(before)
        given = layer.config.get("axis", operands[0] if operands else None)
        if given is None or given == []:
            raise BadInput(
                f"{layer.key}: expected a {op} over height, width or channels, got one over all images. {AS_IT_IS}"
            )
        axes = axes_of(replace(layer, config={"axis": given}), before)
        if axes != list(range(axes[0], axes[-1] + 1)):
            raise BadInput(f"{layer.key}: expected a {op} over neighbouring axes, got {given}. {AS_IT_IS}")
        keep = bool(layer.config.get("keepdims", False))
        left = [1 if axis in axes else side for axis, side in enumerate(own) if keep or axis not in axes]
        result = from_keras(left or [1])
        if axes == [0, 1] and len(own) == 3 and op != "sum":
            pooling = "global_average_pool" if op == "mean" else "global_max_pool"
            reader.emit(layer, pooling, result, {"keep_dimensions": keep})
        elif op == "max":
            _largest(reader, layer, before, axes, result)
        else:
            reader.emit(layer, op, result, {"axes": tuple(axes)})

    return read


def _largest(reader: LayerReader, layer: FlatLayer, before: Node, axes: list[int], result: tuple[int, ...]) -> None:
    """What is before, along and after the axes, as a map; its largest columns."""
    own = keras_shape(before)
    rows, columns = prod(own[: axes[0]]), prod(own[axis] for axis in axes)
    after = prod(own[axes[-1] + 1 :])
    seen = reader.emit(layer, "regroup", from_keras((rows, columns, after)), inputs=[before], part="seen")
    attributes = {"kernel": (1, columns), "strides": (1, columns), "padding": (0, 0, 0, 0)}
    pooled = reader.emit(layer, "max_pool", from_keras((rows, 1, after)), attributes, inputs=[seen], part="largest")
    reader.emit(layer, "regroup", result, inputs=[pooled])


def _reshaped(reader: LayerReader, layer: FlatLayer, operands: list[Any]) -> None:
    """``reshape(x, [-1, H, W, C])``: the first side is the batch's."""
    target = next((each for each in (*operands, *map(layer.config.get, ("shape", "newshape"))) if each), None)
    if not isinstance(target, list) or target[0] not in (-1, None) or -1 in target[1:]:
        raise BadInput(
            f"{layer.key}: expected to reshape to [-1, ...], with each side but the batch's, got {target}. {AS_IT_IS}"
        )
    reshape(reader, replace(layer, config={"target_shape": target[1:]}))


def _square(reader: LayerReader, layer: FlatLayer, operands: list[Any]) -> None:
    """``x ** 2``."""
    (before,) = reader.before(layer)
    if operands and operands[0] not in (2, 2.0):
        raise BadInput(f"{layer.key}: expected x ** 2, got the power {str(operands[0])[:40]}. {AS_IT_IS}")
    reader.emit(layer, "multiply", before.shape, inputs=[before, before])


def _absolute(reader: LayerReader, layer: FlatLayer, operands: list[Any]) -> None:
    (before,) = reader.before(layer)
    reader.emit(layer, "absolute", before.shape)


def _clipped(reader: LayerReader, layer: FlatLayer, operands: list[Any]) -> None:
    """``clip_by_value(x, low, high)``; Keras 3 calls them x_min and x_max."""
    (before,) = reader.before(layer)
    names = (("x_min", "clip_value_min"), ("x_max", "clip_value_max"))
    limits = [
        next((layer.config[each] for each in either if each in layer.config), operands[place] if operands else None)
        for place, either in enumerate(names)
    ]
    low, high = (finite_number(each, layer, "a limit") for each in limits)
    clip(reader, layer, before, low, high)


def _transposed(reader: LayerReader, layer: FlatLayer, operands: list[Any]) -> None:
    """``transpose(x, [0, 2, 1, 3])``: the batch stays."""
    order = layer.config.get("axes") or layer.config.get("perm") or (operands[0] if operands else None)
    if not isinstance(order, list) or order[:1] != [0]:
        raise BadInput(f"{layer.key}: expected a transpose that leaves the batch first, got {order}. {AS_IT_IS}")
    permute(reader, replace(layer, config={"dims": order[1:]}))


def _with_another_axis(reader: LayerReader, layer: FlatLayer, operands: list[Any]) -> None:
    """``expand_dims(x, 1)``, ``squeeze(x, 1)``: axes of 1."""
    (before,) = reader.before(layer)
    own = list(keras_shape(before))
    axis = layer.config.get("axis", operands[0] if operands else None)
    name = str(layer.config.get("function") or layer.class_name).lower()
    if name.startswith("expand"):
        own.insert(axis_of(layer, axis, len(own) + 1), 1)
    else:
        given = axis if isinstance(axis, list) else [axis]
        gone = {axis_of(layer, each, len(own)) for each in given}
        if any(own[each] != 1 for each in gone) or len(gone) == len(own):
            raise BadInput(f"{layer.key}: expected to squeeze axes of 1, got {axis} of {own}. {DAMAGED}")
        own = [side for place, side in enumerate(own) if place not in gone]
    reader.emit(layer, "regroup", from_keras(own))


def _softmax(reader: LayerReader, layer: FlatLayer, operands: list[Any]) -> None:
    (before,) = reader.before(layer)
    softmax(reader, layer, before, axes_of(layer, before, operands[0] if operands else -1))


def _l2_normalised(reader: LayerReader, layer: FlatLayer, operands: list[Any]) -> None:
    """``l2_normalize(x, axis)``; Keras 3's ``normalize`` has an ``order`` as well."""
    (before,) = reader.before(layer)
    expect(layer, order=(2, 2.0), epsilon=(1e-12, None))
    unit_norm(reader, layer, before, axes_of(layer, before, operands[0] if operands else -1))


def _leaky(reader: LayerReader, layer: FlatLayer, operands: list[Any]) -> None:
    (before,) = reader.before(layer)
    slope = layer.config.get("negative_slope", layer.config.get("alpha", operands[0] if operands else 0.2))
    leaky(reader, layer, before, finite_number(slope, layer, "negative_slope"))


def _padded(reader: LayerReader, layer: FlatLayer, operands: list[Any]) -> None:
    """``pad(x, [[0, 0], [1, 1], [2, 0], [0, 0]])``, with zeros."""
    ends = layer.config.get("pad_width") or layer.config.get("paddings") or (operands[0] if operands else None)
    expect(layer, mode=("constant", "CONSTANT"), constant_values=(None, 0, 0.0))
    if not isinstance(ends, list) or len(ends) != 4 or [list(ends[0]), list(ends[3])] != [[0, 0]] * 2:
        raise BadInput(f"{layer.key}: expected to pad height and width, got {str(ends)[:80]}. {AS_IT_IS}")
    zero_padding(reader, replace(layer, config={"padding": [list(each) for each in ends[1:3]]}))


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
    **dict.fromkeys(("math.reduce_mean", "Mean"), _reduced("mean")),
    **dict.fromkeys(("math.reduce_max", "Max"), _reduced("max")),
    **dict.fromkeys(("math.reduce_sum", "Sum"), _reduced("sum")),
    **dict.fromkeys(("reshape", "Reshape"), _reshaped),
    **dict.fromkeys(("image.resize", "Resize"), _tf_resized),
    **dict.fromkeys(("math.square", "Square", "math.pow", "Power"), _square),
    **dict.fromkeys(("math.abs", "abs", "Absolute"), _absolute),
    **dict.fromkeys(("clip_by_value", "Clip"), _clipped),
    **dict.fromkeys(("transpose", "compat.v1.transpose", "Transpose"), _transposed),
    **dict.fromkeys(("expand_dims", "compat.v1.squeeze", "squeeze", "ExpandDims", "Squeeze"), _with_another_axis),
    **dict.fromkeys(("nn.softmax", "Softmax"), _softmax),
    **dict.fromkeys(("math.l2_normalize", "Normalize"), _l2_normalised),
    **dict.fromkeys(("nn.leaky_relu", "LeakyRelu"), _leaky),
    **dict.fromkeys(("pad", "compat.v1.pad", "Pad"), _padded),
    **dict.fromkeys(("reverse", "Flip"), _flipped),
    **OPERATIONS,
}


def _slice(reader: LayerReader, layer: FlatLayer, operands: list[Any]) -> None:
    """``x[..., ::-1]``: red, green and blue in the order that caffe's networks take, see `imagenet_utils`.

    ``x[:, 1:-1, ::2]`` cuts rows and columns. Keras 3 has ``stack([x[..., 2], x[..., 1], x[..., 0]], axis=-1)`` for it.
    """
    (before,) = reader.before(layer)
    channels, *size = image_shape(before, layer)
    given = operands[1] if len(operands) == 2 else None
    items = given if isinstance(given, list) else [given]
    picked = picked_channels(items, channels)
    if picked is None and _cut_places(reader, layer, before, items):
        return
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


def _cut_places(reader: LayerReader, layer: FlatLayer, before: Node, items: list[Any]) -> bool:
    """Emit ``x[:, i:j, k:l]``, forwards; False if it is anything else."""
    pieces = [_slice_of(each) for each in items]
    if pieces.count(...) == 1:
        place = pieces.index(...)
        pieces[place : place + 1] = [slice(None)] * (5 - len(pieces))
    pieces += [slice(None)] * (4 - len(pieces))
    own = keras_shape(before)
    if any(not isinstance(each, slice) for each in pieces) or pieces[0] != slice(None) or len(pieces) != 4:
        return False
    kept = [range(side)[each] for side, each in zip(own, pieces[1:], strict=True)]
    if any(not each or each.step < 1 for each in kept):
        return False
    node, shape = before, list(own)
    cut = [axis for axis, each in enumerate(kept) if each != range(own[axis])]
    for axis in cut:
        each, shape[axis] = kept[axis], len(kept[axis])
        attributes = {"axis": axis, "start": each.start, "stop": each[-1] + 1, "step": each.step}
        part = "" if axis == cut[-1] else "cut"
        node = reader.emit(layer, "cut", from_keras(shape), attributes, inputs=[node], part=part)
    reader.same_as(layer, node)
    return True


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


def _unless_layer(of_layer: Reader) -> Reader:
    """In Keras 3 `ops.reshape` is a Reshape as well, though not the layer."""

    def read(reader: LayerReader, layer: FlatLayer) -> None:
        (_operation if layer.is_bare(reader.generation) else of_layer)(reader, layer)

    return read


READERS: dict[str, Reader] = {
    **dict.fromkeys(("TFOpLambda", "SlicingOpLambda"), _operation),
    **dict.fromkeys((*_SLICES, *MATRIX_PRODUCTS, *_ARITHMETIC, *_ELEMENTWISE, *_OPERATIONS), _operation),
    "Concatenate": _unless_layer(concatenate),
    "Reshape": _unless_layer(reshape),
    "Softmax": _unless_layer(ACTIVATIONS["Softmax"]),
    "Stack": _stack,
    "Add": _layer_or_operation("add"),
    "Subtract": _layer_or_operation("subtract"),
    "Multiply": _layer_or_operation("multiply"),
    "Average": _layer_or_operation("average"),
    "Maximum": _layer_or_operation("maximum"),
    "Minimum": _layer_or_operation("minimum"),
}

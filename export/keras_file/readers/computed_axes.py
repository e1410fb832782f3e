"""Operations of Keras 3 and TensorFlow on whole axes, or on two computed values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod
from typing import Any

from export.graph.nodes import Node
from export.keras_file.flat_layers import AS_IT_IS, FlatLayer, output_key
from export.keras_file.readers.axes import axes_of, axis_of, from_keras, keras_shape
from export.keras_file.readers.layer_reader import LayerReader
from export.keras_file.readers.settings import whole_number
from export.keras_file.readers.shape import permute
from models.bad_input import BadInput

# Given what the call has after the tensor.
Operation = Callable[[LayerReader, FlatLayer, list[Any]], None]


def _setting(layer: FlatLayer, operands: list[Any], place: int, *names: str) -> Any:
    """A setting by one of its names, or by its place after the tensor; None if it is not given."""
    named = [layer.config[name] for name in names if layer.config.get(name) is not None]
    return named[0] if named else operands[place] if len(operands) > place else None


def _powers(exponent: float) -> Operation:
    """A root, or 1 divided by it: of numbers above 0."""

    def read(reader: LayerReader, layer: FlatLayer, operands: list[Any]) -> None:
        (before,) = reader.before(layer)
        reader.emit(layer, "power", before.shape, {"exponent": exponent})

    return read


def _logarithm(reader: LayerReader, layer: FlatLayer, operands: list[Any]) -> None:
    (before,) = reader.before(layer)
    reader.emit(layer, "logarithm", before.shape)


def _spread(deviation: bool) -> Operation:
    """The variance along neighbouring axes, or its root."""

    def read(reader: LayerReader, layer: FlatLayer, operands: list[Any]) -> None:
        (before,) = reader.before(layer)
        own, given = keras_shape(before), _setting(layer, operands, 0, "axis")
        if given is None or given == []:
            raise BadInput(
                f"{layer.key}: expected a variance over height, width or channels, got one over all images. {AS_IT_IS}"
            )
        axes = axes_of(replace(layer, config={"axis": given}), before)
        if axes != list(range(axes[0], axes[-1] + 1)):
            raise BadInput(f"{layer.key}: expected a variance over neighbouring axes, got {given}. {AS_IT_IS}")
        kept = from_keras([1 if axis in axes else side for axis, side in enumerate(own)])
        mean = reader.emit(layer, "mean", kept, {"axes": tuple(axes)}, part="mean")
        away = reader.emit(layer, "subtract", before.shape, inputs=[before, mean], part="away")
        left = [side for axis, side in enumerate(own) if axis not in axes] or [1]
        result = kept if layer.config.get("keepdims") else from_keras(left)
        if deviation:
            share = {"factor": 1 / prod(own[axis] for axis in axes), "epsilon": 0.0, "inverse": False}
            reader.emit(layer, "root_of_squares", result, {"axes": tuple(axes), **share}, inputs=[away])
            return
        square = reader.emit(layer, "multiply", before.shape, inputs=[away, away], part="squares")
        reader.emit(layer, "mean", result, {"axes": tuple(axes)}, inputs=[square])

    return read


def _split(reader: LayerReader, layer: FlatLayer, operands: list[Any]) -> None:
    """``tf.split(x, 2, axis=-1)``, ``split(x, [2, 4])``: Keras 3 has places there, TensorFlow sizes."""
    (before,) = reader.before(layer)
    own = keras_shape(before)
    axis = axis_of(layer, _setting(layer, operands, 1, "axis"), len(own))
    given = _setting(layer, operands, 0, "num_or_size_splits", "indices_or_sections")
    side = own[axis]
    if isinstance(given, int):
        count = whole_number(given, layer, "the number of parts")
        ends = [side // count * number for number in range(1, count + 1)] if side % count == 0 else []
    elif "function" in layer.config:
        ends = [sum(given[: number + 1]) for number in range(len(given))] if min(given) > 0 else []
    else:
        ends = [*given, side]
    starts = [0, *ends[:-1]]
    if not ends or ends[-1] != side or any(first >= last for first, last in zip(starts, ends, strict=True)):
        raise BadInput(f"{layer.key}: expected parts that add up to {side}, got {str(given)[:60]}. {AS_IT_IS}")
    for place, (start, stop) in enumerate(zip(starts, ends, strict=True)):
        attributes = {"axis": axis, "start": start, "stop": stop, "step": 1}
        shape = from_keras((*own[:axis], stop - start, *own[axis + 1 :]))
        node = reader.emit(layer, "cut", shape, attributes, inputs=[before], part="part" if place else "")
        reader.node_of[output_key(layer.key, place)] = node.name
    reader.node_of[layer.key] = layer.key


def _swapped(reader: LayerReader, layer: FlatLayer, operands: list[Any]) -> None:
    (before,) = reader.before(layer)
    order = list(range(1, len(before.shape) + 1))
    first, second = (
        axis_of(layer, _setting(layer, operands, place, f"axis{place + 1}"), len(order)) for place in (0, 1)
    )
    order[first], order[second] = order[second], order[first]
    permute(reader, replace(layer, config={"dims": order}))


def _repeated(reader: LayerReader, layer: FlatLayer, operands: list[Any]) -> None:
    """``tile(x, [1, 1, 1, 3])``, ``repeat(x, 3, axis=-1)``: of axes of one, where both are the same."""
    (before,) = reader.before(layer)
    own = list(keras_shape(before))
    kind = str(layer.config.get("function") or layer.class_name).lower()
    if kind.endswith("tile"):
        counts = list(_setting(layer, operands, 0, "multiples", "repeats"))
        counts = [1] * (len(own) + 1 - len(counts)) + counts
        several = {axis: count for axis, count in enumerate(counts[1:]) if count != 1} if counts[0] == 1 else {0: 0}
    elif kind == "image.grayscale_to_rgb":
        several = {len(own) - 1: 3}
    else:
        several = {
            axis_of(layer, _setting(layer, operands, 1, "axis"), len(own)): _setting(layer, operands, 0, "repeats")
        }
    if any(not isinstance(count, int) or count < 1 or own[axis] != 1 for axis, count in several.items()):
        raise BadInput(f"{layer.key}: expected to repeat axes of 1, got {several} times {own}. {AS_IT_IS}")
    for axis, count in several.items():
        own[axis] = count
    attributes = {"axes": tuple(several), "counts": tuple(several.values())}
    reader.emit(layer, "repeat", from_keras(own), attributes)


def matrix_product(reader: LayerReader, layer: FlatLayer) -> None:
    """``matmul(x, y)``: the last two axes of both; axes before them, such as heads, are the same in both."""
    left, right = reader.before(layer, 2)
    one, two = keras_shape(left), keras_shape(right)
    options = layer.options or {}
    last = bool(options.get("transpose_b"))
    inner = two[-1] if last else two[-2] if len(two) > 1 else 0
    others = [name for name, value in options.items() if value and name not in ("b", "x2", "name", "transpose_b")]
    if others or len(one) != len(two) or not 2 <= len(one) <= 3 or one[:-2] != two[:-2] or one[-1] != inner:
        raise BadInput(
            f"{layer.key}: expected a product of matrices that fit, got {list(one)} and {list(two)}"
            f"{' with ' + ', '.join(others) if others else ''}. {AS_IT_IS}"
        )

    def heads_second(node: Node, part: str) -> Node:
        """(heads, N, K) as (N, heads, K)."""
        own = keras_shape(node)
        if len(own) == 2:
            return reader.emit(layer, "regroup", from_keras((own[0], 1, own[1])), inputs=[node], part=part)
        turned = from_keras((own[1], own[0], own[2]))
        return reader.emit(layer, "transpose", turned, {"axes": (1, 0, 2)}, inputs=[node], part=part)

    nodes = [heads_second(left, "left"), heads_second(right, "right")]
    heads, columns = prod(one[:-2]), two[-2] if last else two[-1]
    shape = from_keras((one[-2], heads, columns))
    node = reader.emit(layer, "matmul", shape, {"last": last}, inputs=nodes, part="product")
    if len(one) == 2:
        reader.emit(layer, "regroup", from_keras((one[-2], columns)), inputs=[node])
    else:
        reader.emit(layer, "transpose", from_keras((heads, one[-2], columns)), {"axes": (1, 0, 2)}, inputs=[node])


OPERATIONS: dict[str, Operation] = {
    **dict.fromkeys(("math.sqrt", "Sqrt"), _powers(0.5)),
    **dict.fromkeys(("math.rsqrt", "Rsqrt"), _powers(-0.5)),
    **dict.fromkeys(("math.log", "Log"), _logarithm),
    **dict.fromkeys(("math.reduce_variance", "Var"), _spread(deviation=False)),
    **dict.fromkeys(("math.reduce_std", "Std"), _spread(deviation=True)),
    **dict.fromkeys(("split", "Split"), _split),
    "Swapaxes": _swapped,
    **dict.fromkeys(("tile", "Tile", "repeat", "Repeat", "image.grayscale_to_rgb"), _repeated),
}
MATRIX_PRODUCTS = ("linalg.matmul", "matmul", "Matmul")

"""Operations that join places of a map by fixed numbers, rows and columns apart: odd sizes, mirrored padding, averages.

What they do along one axis is a matrix. It is found by giving the operation itself an identity.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional

from export.graph.record import module_path
from export.graph.simpler.windows import pair
from export.graph.tracer import Converter, NoKerasCounterpart, Tracer, arguments, name_of, shape_of

Along = Callable[[Tensor], Tensor]
"""An operation on (1, n, n, 1), that changes the third axis alone."""


def matrix_along(size: int, operation: Along) -> tuple[tuple[float, ...], ...] | None:
    """What a linear operation does to one axis, in float64: (result, size), row by row; None if nothing.

    Args:
        size: the axis's.
        operation: it is given an identity, (1, size, size, 1).

    Raises:
        ValueError: its result is not (1, size, any, 1), or is not linear.
    """
    given = torch.eye(size, dtype=torch.float64)[None, :, :, None]
    with torch.no_grad():
        result, of_nothing = operation(given), operation(torch.zeros_like(given))
    if result.shape[:2] != given.shape[:2] or result.shape[3:] != (1,) or of_nothing.any():
        raise ValueError(f"{tuple(result.shape)} is no result of a linear operation along one axis")
    if torch.equal(result, given):
        return None
    return tuple(tuple(row) for row in result[0, :, :, 0].T.tolist())


def emit_map(tracer: Tracer, operation: fx.Node, source: fx.Node, rows: Along | None, columns: Along | None) -> None:
    """Add the node of an operation that is linear along rows and along columns; nothing if it changes neither.

    Args:
        tracer: gets the node.
        operation: the recorded operation, (B, C, H', W').
        source: what it reads, (B, C, H, W).
        rows: what it does to the rows; None: nothing.
        columns: the same for the columns, which it is given as rows.
    """
    tracer.as_map(source)
    if len(shape_of(source)) != 3 or tracer.is_channels_last(source):
        raise NoKerasCounterpart(name_of(operation), module_path(operation), f"of shape {shape_of(source)}")
    sizes = shape_of(source)[1:]
    matrices = [each and matrix_along(size, each) for each, size in zip((rows, columns), sizes, strict=True)]
    result = [len(matrix) if matrix else size for matrix, size in zip(matrices, sizes, strict=True)]
    if tuple(result) != shape_of(operation)[1:]:
        raise ValueError(f"its rows and columns are {result}, not {shape_of(operation)[1:]}")
    if matrices == [None, None]:
        tracer.alias(operation, source)
    else:
        tracer.emit(operation, "map_places", [source], {"rows": matrices[0], "columns": matrices[1]})


def _resize(name: str) -> Converter:
    """Of an interpolation to any size; its own kernel computes the matrices."""

    def convert(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
        source = given["self"] if "self" in given else given["input"]
        before, after = shape_of(source)[-2:], shape_of(operation)[-2:]
        factors = given.get("scale_factors") or [given.get("scales_h"), given.get("scales_w")]
        if name == "nearest" and not any(large % small for small, large in zip(before, after, strict=True)):
            tracer.emit(operation, "upsample", [source], {"factors": (after[0] // before[0], after[1] // before[1])})
            return

        def along(axis: int) -> Along:
            def one(value: Tensor) -> Tensor:
                value = value.expand(-1, -1, -1, 2)  # of one column torch's antialiasing gives the first row everywhere
                options = {"align_corners": given["align_corners"]} if "align_corners" in given else {}
                options |= {"antialias": True} if name.endswith("_aa") else {}
                # with a scale, torch finds its places by that and not by the sizes
                size = {"scale_factor": (factors[axis], 1.0), "recompute_scale_factor": False}
                size = size if factors[axis] else {"size": (after[axis], value.shape[3])}
                return functional.interpolate(value, mode=name.removesuffix("_aa"), **size, **options)[..., :1]  # type: ignore[arg-type]

            return one

        emit_map(tracer, operation, source, along(0), along(1))

    return convert


def pad_sides(given: dict[str, Any]) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) of an `aten.pad`, whose own order is left, right, top, bottom; negative: cut off."""
    if len(given["pad"]) > 4:
        raise ValueError("it pads more than rows and columns")
    left, right, top, bottom = (*given["pad"], 0, 0, 0, 0)[:4]
    return top, bottom, left, right


def pad_value(given: dict[str, Any]) -> float:
    """What an `aten.pad` with constants pads with."""
    return float(given["value"] or 0.0)


def padding_before(source: fx.Node, filled_with: float) -> tuple[int, int, int, int] | None:
    """The padding that the only reader of an `aten.pad` may take over: with that constant, and no cropping."""
    if source.op != "call_function" or name_of(source) != "aten.pad" or len(source.users) != 1:
        return None
    given = arguments(source)
    if given["mode"] != "constant" or pad_value(given) != filled_with or min(given["pad"]) < 0 or len(given["pad"]) > 4:
        return None
    return pad_sides(given)


# What reads a padded value may take the padding over: a convolution zeros, a maximum what never wins.
_TAKES_OVER = {"aten.conv2d": 0.0, "aten.max_pool2d": -torch.inf, "aten.max_pool2d_with_indices": -torch.inf}


def _pad(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    source, mode = given["self"], given["mode"]
    readers = [name_of(user) for user in operation.users]
    if len(readers) == 1 and padding_before(operation, _TAKES_OVER.get(readers[0], torch.nan)) is not None:
        return
    top, bottom, left, right = sides = pad_sides(given)
    if mode == "constant":
        cut = tuple(max(-side, 0) for side in sides)
        added = tuple(max(side, 0) for side in sides)
        value = pad_value(given)
        if abs(value) == torch.inf:
            raise NoKerasCounterpart("aten.pad", module_path(operation), f"with {value}, and no maximum follows")
        _pad_constant(tracer, operation, source, cut, added, value)
        return

    def along(first: int, last: int) -> Along:
        return lambda value: functional.pad(value, (0, 0, first, last), mode=mode)

    emit_map(tracer, operation, source, along(top, bottom), along(left, right))


def _pad_constant(
    tracer: Tracer, operation: fx.Node, source: fx.Node, cut: Sequence[int], added: Sequence[int], value: float
) -> None:
    if any(cut) and any(added):
        if value:
            raise NoKerasCounterpart("aten.pad", module_path(operation), f"with {value}, that cuts off as well")

        def along(axis: int) -> Along:
            ends = added[2 * axis] - cut[2 * axis], added[2 * axis + 1] - cut[2 * axis + 1]
            return lambda value: functional.pad(value, (0, 0, *ends))

        emit_map(tracer, operation, source, along(0), along(1))
    elif any(cut):
        tracer.emit(operation, "crop", [source], {"cropping": tuple(cut)})
    elif any(added):
        named = ("pad_constant", {"value": value}) if value else ("pad", {})
        tracer.emit(operation, named[0], [source], {"padding": tuple(added), **named[1]})
    else:
        tracer.alias(operation, source)


def _flip(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    axes = [axis % 4 for axis in given["dims"]]
    if not set(axes) <= {2, 3}:
        raise NoKerasCounterpart("aten.flip", module_path(operation), f"of dimensions {given['dims']}")
    rows, columns = ((lambda value: value.flip(2)) if axis in axes else None for axis in (2, 3))
    emit_map(tracer, operation, given["self"], rows, columns)


def _roll(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    shifts = dict(zip([axis % 4 for axis in given["dims"]], given["shifts"], strict=True))
    if not set(shifts) <= {2, 3}:
        raise NoKerasCounterpart("aten.roll", module_path(operation), f"of dimensions {given['dims']}")

    def along(shift: int) -> Along:
        return lambda value: value.roll(shift, 2)

    rows, columns = (along(shifts[axis]) if axis in shifts else None for axis in (2, 3))
    emit_map(tracer, operation, given["self"], rows, columns)


def average_along(given: dict[str, Any], axis: int) -> Along:
    """What an `aten.avg_pool2d` does along one axis: its divisor is the product of those of both axes."""
    kernel, padding = pair(given["kernel_size"])[axis], pair(given["padding"])[axis]
    stride = pair(given["stride"] or given["kernel_size"])[axis]
    ceil_mode, count = given["ceil_mode"], given["count_include_pad"]
    return lambda value: functional.avg_pool2d(value, (kernel, 1), (stride, 1), (padding, 0), ceil_mode, count)


CONVERTERS: dict[str, Converter] = {
    "aten.pad": _pad,
    "aten.flip": _flip,
    "aten.roll": _roll,
    "aten.upsample_nearest2d": _resize("nearest"),
    "aten._upsample_nearest_exact2d": _resize("nearest-exact"),
    "aten.upsample_bilinear2d": _resize("bilinear"),
    "aten.upsample_bicubic2d": _resize("bicubic"),
    "aten._upsample_bilinear2d_aa": _resize("bilinear_aa"),
    "aten._upsample_bicubic2d_aa": _resize("bicubic_aa"),
}

"""Convolutions, pools and interpolation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from export.graph.simpler.products import Simpler


def _conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Any:
    """With groups or dilation: a convolution, with the kernel turned, of the places apart and zeros between them."""
    stride, padding, more, dilation = (pair(each) for each in (stride, padding, output_padding, dilation))
    if groups == 1 and dilation == (1, 1):
        return NotImplemented
    value, sides = input, []
    for axis in (0, 1):
        size, dim = input.shape[2 + axis], 2 + axis
        if stride[axis] > 1:
            apart = torch.zeros(size, (size - 1) * stride[axis] + 1, dtype=input.dtype, device=input.device)
            apart[torch.arange(size), torch.arange(size) * stride[axis]] = 1.0
            value = (value.movedim(dim, -1) @ apart).movedim(-1, dim)
        reach = dilation[axis] * (weight.shape[2 + axis] - 1) - padding[axis]
        sides.append((reach, reach + more[axis]))
    kernel = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1).flip(2, 3)
    return functional.conv2d(functional.pad(value, (*sides[1], *sides[0])), kernel, bias, 1, 0, dilation, groups)


def _conv_transpose1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    stride, padding, more, dilation = (pair(each)[0] for each in (stride, padding, output_padding, dilation))
    rows = functional.conv_transpose2d(
        input.unsqueeze(2), weight.unsqueeze(2), bias, (1, stride), (0, padding), (0, more), groups, (1, dilation)
    )
    return rows.squeeze(2)


def pair(value: Any) -> tuple[int, int]:
    """One number, or two, as (rows, columns)."""
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    return (values[0], values[0]) if len(values) == 1 else (values[0], values[1])


def _as_rows(operation: Callable[..., Tensor], one_axis: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """An operation on (B, C, L) as that on maps of one row."""

    def run(**given: Any) -> Tensor:
        value = given.pop("self") if "self" in given else given.pop("input")
        return operation(value.unsqueeze(2), **one_axis(given)).squeeze(2)

    return run


def _window(given: dict[str, Any]) -> dict[str, Any]:
    one = {"kernel_size": 1, "stride": 1, "padding": 0, "dilation": 1}
    given = {**given, "stride": given.get("stride") or given["kernel_size"]}
    return {
        name: (one[name], value[0] if isinstance(value, list | tuple) else value) if name in one else value
        for name, value in given.items()
    }


def _interpolated(mode: str) -> Any:
    def run(value: Tensor, **given: Any) -> Tensor:
        aligned = {"align_corners": given["align_corners"]} if "align_corners" in given else {}
        factors = given.get("scale_factors")
        scale = factors[0] if factors else given.get("scales")
        if given.get("output_size") is None or scale:
            return functional.interpolate(value, scale_factor=(1.0, float(scale or 1.0)), mode=mode, **aligned)
        return functional.interpolate(value, size=(1, given["output_size"][0]), mode=mode, **aligned)

    return _as_rows(run, lambda given: given)


def _adaptive_max_pool2d(self: Tensor, output_size: list[int]) -> Any:
    """To a size that does not divide the map's: the windows overlap, and are not all of one size."""
    value = self
    if not any(value.shape[2 + axis] % output_size[axis] for axis in (0, 1)):
        return NotImplemented
    for axis, count in enumerate(output_size):
        dim, size = 2 + axis, value.shape[2 + axis]
        ends = [(number * size // count, -(-(number + 1) * size // count)) for number in range(count)]
        value = torch.cat([value.narrow(dim, start, end - start).amax(dim, keepdim=True) for start, end in ends], dim)
    return value, torch.zeros((), dtype=torch.int64, device=self.device)


def _avg_pool2d(
    self: Tensor,
    kernel_size: list[int],
    stride: list[int] | None = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Any:
    """With a divisor of its own."""
    if divisor_override is None or ceil_mode:
        return NotImplemented
    kernel = pair(kernel_size)
    return functional.avg_pool2d(self, kernel, stride or None, padding) * (kernel[0] * kernel[1] / divisor_override)


def _adaptive_max_pool1d(self: Tensor, output_size: list[int]) -> Any:
    pooled = functional.adaptive_max_pool2d(self.unsqueeze(2), (1, output_size[0])).squeeze(2)
    return pooled, torch.zeros((), dtype=torch.int64, device=self.device)


def _avg_pool3d(self: Tensor, kernel_size: list[int], stride: list[int] | None = None, **given: Any) -> Any:
    """Along one axis, as a local response norm has it."""
    kernel = list(kernel_size) * (3 if len(kernel_size) == 1 else 1)
    stride = list(stride or kernel) * (3 if len(stride or kernel) == 1 else 1)
    if kernel[1:] != [1, 1] or stride[1:] != [1, 1] or any(given.get("padding") or ()) or given.get("ceil_mode"):
        return NotImplemented
    pooled = functional.avg_pool2d(self.flatten(3), (kernel[0], 1), (stride[0], 1))
    return pooled.unflatten(3, self.shape[3:])


OF_IMAGES: dict[str, Simpler] = {
    "aten.conv_transpose2d": _conv_transpose2d,
    "aten.conv_transpose1d": _conv_transpose1d,
    "aten.avg_pool2d": _avg_pool2d,
    "aten.adaptive_max_pool2d": _adaptive_max_pool2d,
    "aten.avg_pool1d": _as_rows(functional.avg_pool2d, _window),
    "aten.max_pool1d": _as_rows(functional.max_pool2d, _window),
    "aten.adaptive_avg_pool1d": _as_rows(
        functional.adaptive_avg_pool2d, lambda given: {"output_size": (1, given["output_size"][0])}
    ),
    "aten.adaptive_max_pool1d": _adaptive_max_pool1d,
    "aten.avg_pool3d": _avg_pool3d,
    "aten.upsample_linear1d": _interpolated("bilinear"),
    "aten.upsample_nearest1d": _interpolated("nearest"),
}

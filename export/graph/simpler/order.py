"""Places and channels in another order, windows, paddings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from export.graph.simpler.products import Simpler


def pixel_shuffle(self: Tensor, upscale_factor: int) -> Tensor:
    """`torch.pixel_shuffle`: (B, C * r * r, H, W) to (B, C, H * r, W * r)."""
    batch, channels, rows, columns = self.shape
    factor = upscale_factor
    apart = self.reshape(batch, channels // factor**2, factor, factor, rows, columns)
    return apart.permute(0, 1, 4, 2, 5, 3).reshape(batch, channels // factor**2, rows * factor, columns * factor)


def pixel_unshuffle(self: Tensor, downscale_factor: int) -> Tensor:
    """`torch.pixel_unshuffle`: (B, C, H * r, W * r) to (B, C * r * r, H, W)."""
    batch, channels, rows, columns = self.shape
    factor = downscale_factor
    apart = self.reshape(batch, channels, rows // factor, factor, columns // factor, factor)
    return apart.permute(0, 1, 3, 5, 2, 4).reshape(batch, channels * factor**2, rows // factor, columns // factor)


def channel_shuffle(groups: int, **value: Tensor) -> Tensor:
    """`torch.channel_shuffle`: of (B, C, ...), the first channel of each group, then the second of each, ..."""
    (self,) = value.values()
    apart = self.reshape(len(self), groups, self.shape[1] // groups, *self.shape[2:])
    return apart.transpose(1, 2).reshape(self.shape)


def _repeat_interleave(self: Tensor, repeats: int, dim: int | None = None, output_size: int | None = None) -> Any:
    if not isinstance(repeats, int) or dim is None:
        return NotImplemented
    dim %= self.dim()
    shape = list(self.shape)
    return self.unsqueeze(dim + 1).expand(*shape[: dim + 1], repeats, *shape[dim + 1 :]).flatten(dim, dim + 1)


def _repeat(self: Tensor, repeats: list[int]) -> Tensor:
    value = self.reshape((1,) * (len(repeats) - self.dim()) + tuple(self.shape))
    for dim, count in enumerate(repeats):
        if count > 1:
            shape = list(value.shape)
            value = value.unsqueeze(dim).expand(*shape[:dim], count, *shape[dim:]).flatten(dim, dim + 1)
    return value


def chosen_along(value: Tensor, dim: int, places: Tensor) -> Tensor:
    """The places of one axis that a constant names, in its order: a product with a matrix of zeros and ones."""
    matrix = torch.eye(value.shape[dim], dtype=value.dtype, device=value.device)[places].T
    return (value.movedim(dim, -1) @ matrix).movedim(-1, dim)


def _index_select(self: Tensor, dim: int, index: Tensor) -> Tensor:
    return chosen_along(self, dim % self.dim(), index)


def _index(self: Tensor, indices: list[Tensor | None]) -> Any:
    """By constants, of one axis or of several neighbours, which are seen as one."""
    indices = [part for each in indices for part in _as_numbers(each)]
    given = [dim for dim, each in enumerate(indices) if each is not None]
    if not given or given[0] == 0 or given != list(range(given[0], given[0] + len(given))):
        return NotImplemented
    dim, sizes = given[0], self.shape[given[0] : given[0] + len(given)]
    places = torch.zeros((), dtype=torch.int64, device=self.device)
    for each, size in zip(given, sizes, strict=True):
        places = places * size + indices[each] % size  # type: ignore[operator]
    value = self.flatten(dim, dim + len(given) - 1)
    return chosen_along(value, dim, places.reshape(-1)).unflatten(dim, places.shape)


def _as_numbers(index: Tensor | None) -> list[Tensor | None]:
    """A mask as the numbers of what is true in it, one tensor for each of its axes."""
    if index is None or index.dtype != torch.bool:
        return [index]
    return list(index.nonzero(as_tuple=True))


def _gather(weights: set[str], self: Tensor, dim: int, index: Tensor, sparse_grad: bool = False) -> Any:
    """By constants that are the same along all other axes."""
    if "index" not in weights:
        return NotImplemented
    dim %= self.dim()
    places = index.movedim(dim, 0).flatten(1)[:, 0]
    same = index == places.reshape([-1 if axis == dim else 1 for axis in range(self.dim())])
    if not same.all():
        return NotImplemented
    value = chosen_along(self, dim, places)
    for axis, size in enumerate(index.shape):
        value = value if axis == dim else value.narrow(axis, 0, size)
    return value


def _index_put(
    weights: set[str], self: Tensor, indices: list[Tensor | None], values: Tensor, accumulate: bool = False
) -> Any:
    """`x[mask] = number`, where the mask is one of all numbers."""
    mask = indices[0]
    if len(indices) != 1 or mask is None or mask.dtype != torch.bool or mask.shape != self.shape or accumulate:
        return NotImplemented
    return self.masked_fill(mask, values.item()) if "values" in weights and values.numel() == 1 else NotImplemented


def _diagonal(self: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    rows, columns = self.shape[dim1], self.shape[dim2]
    count = min(rows + min(offset, 0), columns - max(offset, 0))
    places = torch.arange(count, device=self.device)
    places = (places - min(offset, 0)) * columns + places + max(offset, 0)
    return chosen_along(self.movedim((dim1, dim2), (-2, -1)).flatten(-2), self.dim() - 2, places)


def _flip(self: Tensor, dims: list[int]) -> Any:
    of_places = [dim for dim in dims if self.dim() == 4 and dim % 4 in (2, 3)]  # of a map
    if len(of_places) == len(dims):
        return NotImplemented
    for dim in set(dims) - set(of_places):
        self = chosen_along(self, dim % self.dim(), torch.arange(self.shape[dim] - 1, -1, -1, device=self.device))
    return self.flip(of_places) if of_places else self


def _rot90(self: Tensor, k: int = 1, dims: Sequence[int] = (0, 1)) -> Tensor:
    turns = k % 4
    value = self.flip({0: [], 1: [dims[1]], 2: list(dims), 3: [dims[0]]}[turns]) if turns else self
    return value.transpose(*dims) if turns in (1, 3) else value


def _expand(self: Tensor, size: list[int], implicit: bool = False) -> Any:
    """To more axes."""
    more = len(size) - self.dim()
    return self.reshape((1,) * more + tuple(self.shape)).expand(size) if more else NotImplemented


def _cumulative(self: Tensor, dim: int, dtype: Any = None) -> Tensor:
    matrix = torch.ones(self.shape[dim], self.shape[dim], dtype=self.dtype, device=self.device).triu()
    return (self.movedim(dim, -1) @ matrix).movedim(-1, dim)


def _windows_of(self: Tensor, dimension: int, size: int, step: int) -> Tensor:
    """`Tensor.unfold`: windows along one axis, each in a new last axis."""
    dim = dimension % self.dim()
    count = (self.shape[dim] - size) // step + 1
    if size == step:
        return self.narrow(dim, 0, count * size).unflatten(dim, (count, size)).movedim(dim + 1, -1)
    places = torch.arange(count, device=self.device)[:, None] * step + torch.arange(size, device=self.device)
    return chosen_along(self, dim, places.reshape(-1)).unflatten(dim, (count, size)).movedim(dim + 1, -1)


def _im2col(self: Tensor, kernel_size: list[int], dilation: list[int], padding: list[int], stride: list[int]) -> Tensor:
    """`nn.Unfold`: a depthwise convolution whose kernels are each a single one."""
    count, channels = math.prod(kernel_size), self.shape[1]
    ones = torch.eye(count, dtype=self.dtype, device=self.device).reshape(count, 1, *kernel_size)
    kernel = ones.repeat(channels, 1, 1, 1)
    return functional.conv2d(self, kernel, None, stride, padding, dilation, channels).flatten(2)


def _col2im(
    self: Tensor,
    output_size: list[int],
    kernel_size: list[int],
    dilation: list[int],
    padding: list[int],
    stride: list[int],
) -> Any:
    """`nn.Fold`: a transposed convolution whose kernels are each a single one."""
    if list(dilation) != [1, 1]:
        return NotImplemented
    windows = [(output_size[axis] + 2 * padding[axis] - kernel_size[axis]) // stride[axis] + 1 for axis in (0, 1)]
    more = [
        output_size[axis] + 2 * padding[axis] - kernel_size[axis] - (windows[axis] - 1) * stride[axis]
        for axis in (0, 1)
    ]
    rows = self.shape[1]
    kernel = torch.eye(rows, dtype=self.dtype, device=self.device)
    kernel = kernel.reshape(rows, rows // math.prod(kernel_size), *kernel_size)
    return functional.conv_transpose2d(self.unflatten(2, windows), kernel, None, stride, padding, more)


def _pad(self: Tensor, pad: list[int], mode: str = "constant", value: float | None = None) -> Any:
    pairs = [(self.dim() - 1 - index // 2, pad[index : index + 2]) for index in range(0, len(pad), 2)]
    changed = [(dim, pair) for dim, pair in pairs if any(pair)]
    if mode == "constant" and len(changed) > 1 and len(pad) > 4:  # one axis at a time
        for dim, pair in changed:
            self = functional.pad(self, (0, 0) * (self.dim() - 1 - dim) + tuple(pair), value=value)
        return self
    if mode != "constant" and self.dim() == 3:
        return functional.pad(self.unsqueeze(2), (*pad, 0, 0), mode=mode).squeeze(2)
    return NotImplemented


ALWAYS: dict[str, Simpler] = {
    "aten.pixel_shuffle": pixel_shuffle,
    "aten.pixel_unshuffle": pixel_unshuffle,
    "aten.channel_shuffle": channel_shuffle,
    "aten.native_channel_shuffle": channel_shuffle,
}


BY_CONSTANTS: dict[str, Simpler] = {"aten.gather": _gather, "aten.index_put": _index_put}
"""Of a value and constants, whose argument's names come first."""

OF_IMAGES: dict[str, Simpler] = {
    "aten.repeat_interleave": _repeat_interleave,
    "aten.repeat": _repeat,
    "aten.index_select": _index_select,
    "aten.index": _index,
    "aten.diagonal": _diagonal,
    "aten.rot90": _rot90,
    "aten.unsafe_chunk": lambda self, chunks, dim=0: self.chunk(chunks, dim),
    "aten.unsafe_split": lambda self, split_size, dim=0: self.split(split_size, dim),
    "aten.expand": _expand,
    "aten.copy": lambda self, src, non_blocking=False: (
        NotImplemented if src.shape == self.shape else src.expand(self.shape)
    ),
    "aten.fill": lambda self, value: torch.full_like(self, value) if isinstance(value, int | float) else NotImplemented,
    "aten.zero": torch.zeros_like,
    # all that they take of the other is its shape or type
    "aten.expand_as": lambda self, other: self.expand(other.shape),
    **dict.fromkeys(("aten.view_as", "aten.reshape_as"), lambda self, other: self.reshape(other.shape)),
    "aten.type_as": lambda self, other: self.to(other.dtype),
    "aten.flip": _flip,
    "aten.cumsum": _cumulative,
    "aten.unfold": _windows_of,
    "aten.im2col": _im2col,
    "aten.col2im": _col2im,
    "aten.pad": _pad,
}

"""Operations that are recorded as several simpler ones, which Keras has: one short function for each.

`record` runs the function in the operation's place, so its steps are what the graph and the proof see. Each function
takes the operation's arguments by their names in torch's schema. It returns `NotImplemented` for a form that the
converters take as it is, or that nothing here takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


class NotRecorded(RuntimeError):
    """Something that an operation-by-operation record cannot hold."""


# Products of matrices -------------------------------------------------------------------------------------------------


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`scaled_dot_product_attention` in operations that a graph has: torch's own are one for each processor.

    Args:
        query: (..., N, d).
        key: (..., M, d).
        value: (..., M, d').
        attn_mask: added to the (..., N, M) products, or true where one counts.
        dropout_p: it is not done in inference.
        is_causal: whether a token attends to those before it alone.
        scale: of the products; d ** -0.5 if not given.
        enable_gqa: refused.
    """
    if enable_gqa or dropout_p:
        raise NotRecorded("attention with dropout, or with fewer heads for keys than for queries")
    scores = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.transpose(-2, -1)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=scores.dtype).masked_fill(~attn_mask, -torch.inf)
    if attn_mask is not None:
        scores = scores + attn_mask
    return scores.softmax(-1) @ value


def _add_product(self: Tensor, beta: float = 1, alpha: float = 1, **factors: Tensor) -> Tensor:
    """`addmm` and `baddbmm`."""
    left, right = factors.values()
    product = left @ right
    product = product if alpha == 1 else product * alpha
    return product if beta == 0 else product + (self if beta == 1 else self * beta)


# Places and channels in another order ---------------------------------------------------------------------------------


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
    given = [dim for dim, each in enumerate(indices) if each is not None]
    if len(given) != 1 or given[0] == 0:
        return NotImplemented
    (dim,) = given
    places = indices[dim]
    assert places is not None
    if places.dtype == torch.bool:
        if places.dim() != 1:
            return NotImplemented
        places = places.nonzero()[:, 0]
    return chosen_along(self, dim, places.reshape(-1)).unflatten(dim, places.shape)


def _flip(self: Tensor, dims: list[int]) -> Any:
    if self.dim() == 4:  # a map
        return NotImplemented
    for dim in dims:
        self = chosen_along(self, dim % self.dim(), torch.arange(self.shape[dim] - 1, -1, -1, device=self.device))
    return self


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


# Convolutions and pools -----------------------------------------------------------------------------------------------


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
    stride, padding, more, dilation = (_two(each) for each in (stride, padding, output_padding, dilation))
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


def _two(value: Any) -> tuple[int, int]:
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


# Along axes -----------------------------------------------------------------------------------------------------------


def _dims(value: Tensor, dim: Any) -> list[int]:
    dims = range(1, value.dim()) if dim is None else dim if isinstance(dim, list | tuple) else [dim]
    return [each % value.dim() for each in dims]


def _centred(self: Tensor, given: dict[str, Any]) -> tuple[Tensor, Tensor, list[int], float]:
    """A value less its mean, the mean, over which axes, and how many numbers less the correction."""
    dims = _dims(self, given.get("dim"))
    correction = given.get("correction")
    if correction is None:
        correction = int(given.get("unbiased", True))
    mean = self.mean(dims, keepdim=True)
    return self - mean, mean, dims, math.prod(self.shape[dim] for dim in dims) - correction


def _variance(self: Tensor, **given: Any) -> Any:
    dims = _dims(self, given.get("dim"))
    if len(dims) == 1 and dims[0] in (1, self.dim() - 1) and given.get("keepdim"):  # that of a norm
        return NotImplemented
    return _variance_and_mean(self, **given)[0]


def _variance_and_mean(self: Tensor, **given: Any) -> tuple[Tensor, Tensor]:
    centred, mean, dims, count = _centred(self, given)
    keep = bool(given.get("keepdim"))
    variance = centred.square().sum(dims, keepdim=keep) / count
    return variance, mean if keep else mean.reshape(variance.shape)


def _deviation(self: Tensor, **given: Any) -> Tensor:
    centred, _, dims, count = _centred(self, given)
    return torch.linalg.vector_norm(centred, dim=dims, keepdim=bool(given.get("keepdim"))) / count**0.5


def _norm(self: Tensor, ord: float = 2, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Any:
    if ord == 1:
        return self.abs().sum(_dims(self, dim), keepdim=keepdim)
    if ord == math.inf:
        return self.abs().amax(_dims(self, dim), keepdim=keepdim)
    return NotImplemented


def _amin(self: Tensor, dim: Any = (), keepdim: bool = False) -> Tensor:
    return -(-self).amax(dim, keepdim=keepdim)


def _min(self: Tensor, **given: Any) -> Any:
    if "dim" not in given:
        return NotImplemented
    value = -(-self).amax(given["dim"], keepdim=bool(given.get("keepdim")))
    return value, torch.zeros((), dtype=torch.int64, device=self.device)


# Numbers --------------------------------------------------------------------------------------------------------------


def _reciprocal(self: Tensor) -> Tensor:
    return (self * 0.0 + 1.0) / self


def _erf(self: Tensor) -> Tensor:
    """`gelu(y) + gelu(-y)` is `y * erf(y / sqrt(2))`."""
    value = self * math.sqrt(2)
    return (functional.gelu(value) + functional.gelu(-value)) / value


def _power(self: Any, exponent: Any) -> Any:
    """Whole powers are products; a trained power, and a power of a number, go by the logarithm."""
    if isinstance(self, int | float):
        return (exponent * math.log(self)).exp()
    if isinstance(exponent, Tensor):
        return (self.log() * exponent).exp()
    if exponent != int(exponent) or exponent in (2, 3) or abs(exponent) > 16:
        return NotImplemented
    if exponent < 0:
        return _reciprocal(self if exponent == -1 else self.pow(-exponent))
    if exponent < 2:
        return self * 1.0 if exponent else self * 0.0 + 1.0
    half = self.pow(exponent // 2) if exponent > 3 else self
    return half * half * self if exponent % 2 else half * half


def _log_sum_exp(self: Tensor, dim: list[int], keepdim: bool = False) -> Tensor:
    largest = self.amax(dim, keepdim=True)
    total = (self - largest).exp().sum(dim, keepdim=True).log() + largest
    return total if keepdim else total.squeeze(dim)


def _larger(self: Tensor, other: Any) -> Tensor:
    """Whether a value is above another, as that their difference is above 0."""
    return torch.gt(self if isinstance(other, int | float) and other == 0 else self - other, 0)


def _gt(self: Tensor, other: Any) -> Any:
    return NotImplemented if isinstance(other, int | float) and other == 0 else _larger(self, other)


def _lt(self: Tensor, other: Any) -> Tensor:
    return torch.gt(-self if isinstance(other, int | float) and other == 0 else other - self, 0)


def _sign(self: Tensor) -> Tensor:
    return torch.gt(self, 0).to(self.dtype) - torch.gt(-self, 0).to(self.dtype)


def _where(condition: Tensor, self: Any, other: Any) -> Any:
    kind = next((each.dtype for each in (self, other) if isinstance(each, Tensor)), torch.get_default_dtype())
    yes = condition.to(kind)
    if _is_zero(other):
        return yes * self
    return yes * self + (1.0 - yes) * other


def _masked_fill(self: Tensor, mask: Tensor, value: Any) -> Any:
    if not isinstance(value, int | float):
        return NotImplemented
    if math.isinf(value):
        return self + torch.zeros(mask.shape, dtype=self.dtype, device=self.device).masked_fill(mask, value)
    kept = self * (1.0 - mask.to(self.dtype))
    return kept if value == 0 else kept + mask.to(self.dtype) * value


def _is_zero(value: Any) -> bool:
    return isinstance(value, int | float) and value == 0


def _rrelu(self: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, **others: Any) -> Any:
    return functional.leaky_relu(self, (float(lower) + float(upper)) / 2)


# With weights ---------------------------------------------------------------------------------------------------------


def _product_with_weight(weights: set[str], **given: Any) -> Any:
    """A linear layer, where all images and heads have the same matrix; otherwise the weight is one for each image."""
    left, right = given.values()
    if len(weights) == 2 or min(left.dim(), right.dim()) < 2:
        return NotImplemented
    weight, value = (left, right) if next(iter(given)) in weights else (right, left)
    if weight.shape[:-2].numel() == 1 and weight.dim() <= value.dim():
        matrix = weight.reshape(weight.shape[-2:])
        if weight is right:
            return functional.linear(value, matrix.T)
        return functional.linear(value.transpose(-1, -2), matrix).transpose(-1, -2)
    if weight.shape[:-2] == value.shape[:-2] or weight.dim() > value.dim():
        return NotImplemented
    weight = weight.expand(*value.shape[:-2], *weight.shape[-2:])
    return weight @ value if weight is left else value @ weight


def _difference_with_weight(weights: set[str], self: Any, other: Any, alpha: float = 1) -> Any:
    if alpha != 1:
        return NotImplemented
    return self + -other


def _quotient_with_weight(weights: set[str], self: Any, other: Any, rounding_mode: Any = None) -> Any:
    return NotImplemented if rounding_mode else self * other.reciprocal()


def _larger_of_weight(weights: set[str], self: Tensor, other: Tensor) -> Tensor:
    value, weight = (self, other) if "other" in weights else (other, self)
    return functional.relu(value - weight) + weight


def _smaller_of_weight(weights: set[str], self: Tensor, other: Tensor) -> Tensor:
    value, weight = (self, other) if "other" in weights else (other, self)
    return weight - functional.relu(weight - value)


def _in_line(operation: Callable[..., Any]) -> Callable[..., Any]:
    """An operation of two computed values, of which one lacks axes in front that the other has: it gets axes of one."""

    def run(self: Any, other: Any, **given: Any) -> Any:
        if not (isinstance(self, Tensor) and isinstance(other, Tensor)) or self.dim() == other.dim():
            return NotImplemented
        rank = max(self.dim(), other.dim())
        one, two = (each.reshape((1,) * (rank - each.dim()) + tuple(each.shape)) for each in (self, other))
        return operation(one, two, **given)

    return run


def _weight_in_line(operation: Callable[..., Any]) -> Callable[..., Any]:
    """The same of a value and a weight, which may lack axes, but not have more."""
    in_line = _in_line(operation)

    def run(weights: set[str], self: Any, other: Any, **given: Any) -> Any:
        value, weight = (other, self) if "self" in weights else (self, other)
        return in_line(self, other, **given) if weight.dim() > value.dim() else NotImplemented

    return run


Simpler = Callable[..., Any]

ALWAYS: dict[str, Simpler] = {
    "aten.scaled_dot_product_attention": attention,
    "aten.pixel_shuffle": pixel_shuffle,
    "aten.pixel_unshuffle": pixel_unshuffle,
    "aten.channel_shuffle": channel_shuffle,
    "aten.native_channel_shuffle": channel_shuffle,
}
"""Of weights as well as of what is computed from images."""

OF_IMAGES: dict[str, Simpler] = {
    "aten.add": _in_line(torch.add),
    "aten.sub": _in_line(torch.sub),
    "aten.mul": _in_line(torch.mul),
    "aten.div": _in_line(torch.div),
    "aten.mm": lambda self, mat2: self @ mat2,
    "aten.mv": lambda self, vec: self @ vec,
    "aten.addmm": _add_product,
    "aten.baddbmm": _add_product,
    "aten.repeat_interleave": _repeat_interleave,
    "aten.repeat": _repeat,
    "aten.index_select": _index_select,
    "aten.index": _index,
    "aten.flip": _flip,
    "aten.cumsum": _cumulative,
    "aten.unfold": _windows_of,
    "aten.im2col": _im2col,
    "aten.col2im": _col2im,
    "aten.pad": _pad,
    "aten.conv_transpose2d": _conv_transpose2d,
    "aten.avg_pool1d": _as_rows(functional.avg_pool2d, _window),
    "aten.max_pool1d": _as_rows(functional.max_pool2d, _window),
    "aten.adaptive_avg_pool1d": _as_rows(
        functional.adaptive_avg_pool2d, lambda given: {"output_size": (1, given["output_size"][0])}
    ),
    "aten.adaptive_max_pool1d": _adaptive_max_pool1d,
    "aten.avg_pool3d": _avg_pool3d,
    "aten.upsample_linear1d": _interpolated("bilinear"),
    "aten.upsample_nearest1d": _interpolated("nearest"),
    "aten.var": _variance,
    "aten.var_mean": _variance_and_mean,
    "aten.std": _deviation,
    "aten.linalg_vector_norm": _norm,
    "aten.amin": _amin,
    "aten.min": _min,
    "aten.reciprocal": _reciprocal,
    "aten.erf": _erf,
    "aten.pow": _power,
    "aten.log1p": lambda self: (self + 1.0).log(),
    "aten.log2": lambda self: self.log() * (1 / math.log(2)),
    "aten.log10": lambda self: self.log() * (1 / math.log(10)),
    "aten.logsumexp": _log_sum_exp,
    "aten.expm1": lambda self: self.exp() - 1.0,
    "aten.gt": _gt,
    "aten.ge": lambda self, other: torch.logical_not(_lt(self, other)),
    "aten.lt": _lt,
    "aten.le": lambda self, other: torch.logical_not(_larger(self, other)),
    "aten.sign": _sign,
    "aten.where": _where,
    "aten.masked_fill": _masked_fill,
    "aten.bitwise_not": lambda self: torch.logical_not(self),
    **dict.fromkeys(("aten.logical_and", "aten.bitwise_and", "aten.__and__"), lambda self, other: self * other),
    **dict.fromkeys(("aten.logical_or", "aten.bitwise_or", "aten.__or__"), lambda self, other: ~(~self * ~other)),
    "aten.rrelu": _rrelu,
}
"""Of what is computed from images alone."""

BY_WEIGHTS: dict[str, Simpler] = {
    "aten.add": _weight_in_line(torch.add),
    "aten.mul": _weight_in_line(torch.mul),
    "aten.matmul": _product_with_weight,
    "aten.bmm": _product_with_weight,
    "aten.sub": _difference_with_weight,
    "aten.rsub": lambda weights, self, other, alpha=1: _difference_with_weight(weights, other, self, alpha),
    "aten.div": _quotient_with_weight,
    "aten.maximum": _larger_of_weight,
    "aten.minimum": _smaller_of_weight,
}
"""Of one computed value and one weight, whose argument's name comes first."""

BY_CONSTANTS = frozenset(
    f"aten.{name}" for name in ("matmul", "bmm", "maximum", "minimum", "add", "mul", "sub", "rsub")
)
"""Those of them that take a constant as well; one to divide by is exact as it is."""

TAKEN_APART = frozenset(
    f"aten.{name}" for name in ("einsum", "narrow", "tensordot", "inner", "outer", "tile", "cosine_similarity", "lstm",
                                "gru", "rnn_tanh", "rnn_relu", "rot90", "fliplr", "flipud")
)  # fmt: skip
"""Torch itself says what they consist of."""

KNOWN = frozenset({*OF_IMAGES, *BY_WEIGHTS, *TAKEN_APART})

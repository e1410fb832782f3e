"""Functions of single numbers, comparisons and choices."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from export.graph.simpler.products import Simpler


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


def _celu(self: Tensor, alpha: float = 1.0) -> Any:
    return NotImplemented if alpha == 1 else functional.elu(self / alpha) * alpha


def _leaky_relu(self: Tensor, negative_slope: float = 0.01) -> Any:
    """With a slope that Keras's does not have."""
    if 0 <= negative_slope <= 1:
        return NotImplemented
    return functional.relu(self) - functional.relu(-self) * negative_slope


def _prelu(self: Tensor, weight: Tensor) -> Any:
    """Of (B, C, L)."""
    if self.dim() != 3:
        return NotImplemented
    return functional.relu(self) - functional.relu(-self) * weight.reshape(-1, 1)


def _threshold(self: Tensor, threshold: float, value: float) -> Any:
    return torch.where(self > threshold, self, value) if value or threshold < 0 else NotImplemented


def _softplus(self: Tensor, beta: float = 1, threshold: float = 20) -> Any:
    """Torch's is straight above the threshold, which is seen if it is low."""
    if threshold >= 20:
        return NotImplemented
    return torch.where(self * beta > threshold, self, functional.softplus(self, beta))


def _glu(self: Tensor, dim: int = -1) -> Any:
    """Not of a map's or vector's channels."""
    if self.dim() != 3 and dim % self.dim() in (1, self.dim() - 1):
        return NotImplemented
    value, gate = self.chunk(2, dim)
    return value * gate.sigmoid()


def _log_softmax(self: Tensor, dim: int, *others: Any, **more: Any) -> Any:
    """Not of a vector: there a network may end in it."""
    return NotImplemented if self.dim() == 2 else self - torch.logsumexp(self, dim, keepdim=True)


def _clamp(self: Tensor, min: Any = None, max: Any = None) -> Any:
    """By weights or values."""
    if not isinstance(min, Tensor) and not isinstance(max, Tensor):
        return NotImplemented
    self = self if min is None else torch.maximum(self, min)
    return self if max is None else torch.minimum(self, max)


OF_IMAGES: dict[str, Simpler] = {
    "aten.celu": _celu,
    "aten.leaky_relu": _leaky_relu,
    "aten.prelu": _prelu,
    "aten.threshold": _threshold,
    "aten.softplus": _softplus,
    "aten.glu": _glu,
    "aten.log_softmax": _log_softmax,
    **dict.fromkeys(("aten.clamp", "aten.clamp_min", "aten.clamp_max"), _clamp),
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
    "aten.ne": lambda self, other: (self > other) | (self < other),
    "aten.eq": lambda self, other: ~(self != other),
    "aten.sign": _sign,
    "aten.where": _where,
    "aten.masked_fill": _masked_fill,
    "aten.bitwise_not": lambda self: torch.logical_not(self),
    **dict.fromkeys(("aten.logical_and", "aten.bitwise_and", "aten.__and__"), lambda self, other: self * other),
    **dict.fromkeys(("aten.logical_or", "aten.bitwise_or", "aten.__or__"), lambda self, other: ~(~self * ~other)),
    "aten.rrelu": _rrelu,
}

"""Statistics, extremes and norms along axes."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from export.graph.simpler.products import Simpler


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
    if self.dim() in (2, 4) and len(dims) == 1 and dims[0] in (1, self.dim() - 1) and given.get("keepdim"):  # a norm's
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


def _max(self: Tensor, **given: Any) -> Any:
    """Of two values, or along an axis; not of everything, all images included."""
    return torch.maximum(self, given["other"]) if "other" in given else NotImplemented


def _min(self: Tensor, **given: Any) -> Any:
    if "other" in given:
        return torch.minimum(self, given["other"])
    if "dim" not in given:
        return NotImplemented
    value = -(-self).amax(given["dim"], keepdim=bool(given.get("keepdim")))
    return value, torch.zeros((), dtype=torch.int64, device=self.device)


def _layer_norm(
    input: Tensor,
    normalized_shape: list[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Any:
    """Over several axes, unless it is over a whole map."""
    several, whole_map = len(normalized_shape), input.dim() == 4 and len(normalized_shape) == 3
    if several == 1 or whole_map:
        return NotImplemented
    weight, bias = (each if each is None else each.flatten() for each in (weight, bias))
    value = input.flatten(-several)
    return functional.layer_norm(value, value.shape[-1:], weight, bias, eps).unflatten(-1, normalized_shape)


def _rms_norm(
    input: Tensor, normalized_shape: list[int], weight: Tensor | None = None, eps: float | None = None
) -> Any:
    """Without an epsilon it is that of the type, which in the Keras file is float32."""
    if eps is not None:
        return NotImplemented
    return functional.rms_norm(input, normalized_shape, weight, torch.finfo(torch.float32).eps)


def _of_a_row(norm: Any) -> Simpler:
    """A norm of (B, C, L) as that of maps of one row."""

    def run(input: Tensor, **given: Any) -> Any:
        return norm(input.unsqueeze(2), **given).squeeze(2) if input.dim() == 3 else NotImplemented

    return run


OF_IMAGES: dict[str, Simpler] = {
    "aten.layer_norm": _layer_norm,
    "aten.rms_norm": _rms_norm,
    "aten.group_norm": _of_a_row(torch.group_norm),
    "aten.instance_norm": _of_a_row(torch.instance_norm),
    "aten.var": _variance,
    "aten.var_mean": _variance_and_mean,
    "aten.std": _deviation,
    "aten.linalg_vector_norm": _norm,
    "aten.amin": _amin,
    "aten.max": _max,
    "aten.min": _min,
}

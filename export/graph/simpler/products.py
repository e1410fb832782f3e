"""Products of matrices; sums, products and the like of values and weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

Simpler = Callable[..., Any]


class NotRecorded(RuntimeError):
    """Something that an operation-by-operation record cannot hold."""


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
        enable_gqa: whether several heads may share their keys and values, (..., heads, M, d).
    """
    if dropout_p:
        raise NotRecorded("attention with dropout")
    if enable_gqa:
        key, value = (each.repeat_interleave(query.shape[-3] // each.shape[-3], -3) for each in (key, value))
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


# With weights --------------------------------------------------------------------------------------------------------


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
    if weight.shape[:-2] == value.shape[:-2]:
        return NotImplemented
    front = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    left, right = (each.expand(*front, *each.shape[-2:]) for each in (left, right))
    return left @ right


def _difference_with_weight(weights: set[str], self: Any, other: Any, alpha: float = 1) -> Any:
    return self + -(other if alpha == 1 else other * alpha)


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

    def run(self: Any, other: Any, alpha: float = 1, **given: Any) -> Any:
        if alpha != 1:
            return operation(self, other * alpha, **given)
        if not (isinstance(self, Tensor) and isinstance(other, Tensor)) or self.dim() == other.dim():
            return NotImplemented
        rank = max(self.dim(), other.dim())
        one, two = (each.reshape((1,) * (rank - each.dim()) + tuple(each.shape)) for each in (self, other))
        return operation(one, two, **given)

    return run


def _weight_in_line(operation: Callable[..., Any]) -> Callable[..., Any]:
    """The same of a value and a weight, which may lack axes; the value is repeated where that has several for one."""
    in_line = _in_line(operation)

    def run(weights: set[str], self: Any, other: Any, **given: Any) -> Any:
        value, weight = (other, self) if "self" in weights else (self, other)
        if given.get("alpha", 1) != 1 or weight.dim() > value.dim():
            return in_line(self, other, **given)
        shape = np.broadcast_shapes(value.shape, weight.shape)
        if shape == value.shape:
            return NotImplemented
        value = value.expand(shape)
        return operation(weight, value) if "self" in weights else operation(value, weight)

    return run


# Of several values at once --------------------------------------------------------------------------------------------


def _lerp(self: Tensor, end: Tensor, weight: Any) -> Tensor:
    return self + (end - self) * weight


def _addcmul(self: Tensor, tensor1: Tensor, tensor2: Tensor, value: float = 1) -> Tensor:
    product = tensor1 * tensor2
    return self + (product if value == 1 else product * value)


def _addcmul_with_weights(weights: set[str], **given: Any) -> Any:
    """One computed value, with a factor and an offset that are weights, is one layer."""
    if given.get("value", 1) == 1 and len(weights) == 2 and "self" in weights:
        return NotImplemented
    return _addcmul(**given)


def _addcdiv(self: Tensor, tensor1: Tensor, tensor2: Tensor, value: float = 1) -> Tensor:
    return self + tensor1 / tensor2 * value


def _bilinear(input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`nn.Bilinear`: a linear layer of the first, and for each result the sum of its products with the second."""
    results, _, second = weight.shape
    apart = functional.linear(input1, weight.transpose(1, 2).flatten(0, 1)).unflatten(-1, (results, second))
    product = (apart * input2.unsqueeze(-2)).sum(-1)
    return product if bias is None else product + bias


def _distances(x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: int | None = None) -> Tensor:
    """`torch.cdist`: the norms of all differences."""
    return torch.linalg.vector_norm(x1.unsqueeze(-2) - x2.unsqueeze(-3), p, dim=-1)


def _pairwise_distance(x1: Tensor, x2: Tensor, p: float = 2, eps: float = 1e-6, keepdim: bool = False) -> Tensor:
    return torch.linalg.vector_norm(x1 - x2 + eps, p, dim=-1, keepdim=keepdim)


ALWAYS: dict[str, Simpler] = {"aten.scaled_dot_product_attention": attention}

OF_IMAGES: dict[str, Simpler] = {
    "aten.add": _in_line(torch.add),
    "aten.sub": _in_line(torch.sub),
    "aten.mul": _in_line(torch.mul),
    "aten.div": _in_line(torch.div),
    "aten.mm": lambda self, mat2: self @ mat2,
    "aten.mv": lambda self, vec: self @ vec,
    "aten.addmm": _add_product,
    "aten.baddbmm": _add_product,
    "aten.rsub": lambda self, other, alpha=1: NotImplemented if alpha == 1 else other - self * alpha,
    "aten.lerp": _lerp,
    "aten.addcmul": _addcmul,
    "aten.addcdiv": _addcdiv,
    "aten.bilinear": _bilinear,
    "aten.cdist": _distances,
    "aten.pairwise_distance": _pairwise_distance,
}

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
    "aten.addcmul": _addcmul_with_weights,
}

BY_CONSTANTS = frozenset(
    f"aten.{name}" for name in ("matmul", "bmm", "maximum", "minimum", "add", "mul", "sub", "rsub")
)

"""Operations without weights, as functions of a node and the values that it reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def _affine(node: Mapping[str, Any], value: Tensor) -> Tensor:
    scale, offset = (
        torch.tensor(node["attributes"][name], dtype=value.dtype, device=value.device) for name in ("scale", "offset")
    )
    shape = (-1, *(1,) * (value.ndim - 2))
    return value * scale.reshape(shape) + offset.reshape(shape)


def _relu(node: Mapping[str, Any], value: Tensor) -> Tensor:
    return value.clamp(0, node["attributes"]["max_value"])


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "elu": F.elu,
    "selu": F.selu,
    # torch's own has a threshold above which it is linear
    "softplus": lambda value: torch.logaddexp(value, torch.zeros((), dtype=value.dtype, device=value.device)),
    "softsign": F.softsign,
    "exponential": torch.exp,
}


def _padded(value: Tensor, padding: Sequence[int], filled_with: float) -> Tensor:
    top, bottom, left, right = padding
    return F.pad(value, (left, right, top, bottom), value=filled_with) if any(padding) else value


def _max_pool(node: Mapping[str, Any], value: Tensor) -> Tensor:
    attributes = node["attributes"]
    padded = _padded(value, attributes["padding"], -torch.inf)
    return F.max_pool2d(padded, tuple(attributes["kernel"]), tuple(attributes["strides"]))


def _average_pool(node: Mapping[str, Any], value: Tensor) -> Tensor:
    attributes = node["attributes"]
    window = tuple(attributes["kernel"]), tuple(attributes["strides"])
    pooled = F.avg_pool2d(_padded(value, attributes["padding"], 0.0), *window)
    if attributes["count_padding"] or not any(attributes["padding"]):
        return pooled
    inside = F.avg_pool2d(_padded(torch.ones_like(value[:1, :1]), attributes["padding"], 0.0), *window)
    return pooled / inside


def _global(reduce: Callable[..., Tensor]) -> Callable[[Mapping[str, Any], Tensor], Tensor]:
    def pool(node: Mapping[str, Any], value: Tensor) -> Tensor:
        return reduce(value, dim=(2, 3), keepdim=node["attributes"]["keep_dimensions"])

    return pool


def _crop(node: Mapping[str, Any], value: Tensor) -> Tensor:
    top, bottom, left, right = node["attributes"]["cropping"]
    return value[:, :, top : value.shape[2] - bottom, left : value.shape[3] - right]


def _upsample(node: Mapping[str, Any], value: Tensor) -> Tensor:
    rows, columns = node["attributes"]["factors"]
    return value.repeat_interleave(rows, 2).repeat_interleave(columns, 3)


def _upsample_bilinear(node: Mapping[str, Any], value: Tensor) -> Tensor:
    return F.interpolate(value, tuple(node["shape"][1:]), mode="bilinear", align_corners=False)


def _resize(node: Mapping[str, Any], value: Tensor) -> Tensor:
    if node["attributes"]["interpolation"] == "nearest":
        return F.interpolate(value, tuple(node["shape"][1:]), mode="nearest-exact")
    return F.interpolate(value, tuple(node["shape"][1:]), mode="bilinear", align_corners=False)


def _map_places(node: Mapping[str, Any], value: Tensor) -> Tensor:
    rows, columns = (
        None if matrix is None else torch.tensor(matrix, dtype=value.dtype, device=value.device)
        for matrix in map(node["attributes"].get, ("rows", "columns"))
    )
    value = value if rows is None else rows @ value
    return value if columns is None else value @ columns.T


def _flatten(node: Mapping[str, Any], value: Tensor) -> Tensor:
    return value.movedim(1, -1).reshape(len(value), -1)


def _reshape(node: Mapping[str, Any], value: Tensor) -> Tensor:
    channels, *size = node["shape"]
    return _flatten(node, value).reshape(len(value), *size, channels).movedim(-1, 1)


def _transpose(node: Mapping[str, Any], value: Tensor) -> Tensor:
    """The axes are Keras's, channels last."""
    return value.movedim(1, -1).permute(0, *(axis + 1 for axis in node["attributes"]["axes"])).movedim(-1, 1)


# Values with any number of axes: a node's `axis` is Keras's, without the batch and with the channels last.


def _seen_by_keras(value: Tensor) -> Tensor:
    return value.movedim(1, -1)


def _as_stated(node: Mapping[str, Any], value: Tensor) -> Tensor:
    """Numbers in Keras's order, in the node's shape."""
    channels, *size = node["shape"]
    return value.reshape(len(value), *size, channels).movedim(-1, 1)


def _over_axes(reduce: Callable[..., Tensor]) -> Callable[[Mapping[str, Any], Tensor], Tensor]:
    def compute(node: Mapping[str, Any], value: Tensor) -> Tensor:
        axes = tuple(axis + 1 for axis in node["attributes"]["axes"])
        return _as_stated(node, reduce(_seen_by_keras(value), dim=axes))

    return compute


def _join(node: Mapping[str, Any], *values: Tensor) -> Tensor:
    return _as_stated(node, torch.cat([_seen_by_keras(each) for each in values], node["attributes"]["axis"] + 1))


def _cut(node: Mapping[str, Any], value: Tensor) -> Tensor:
    attributes = node["attributes"]
    part = slice(attributes["start"], attributes["stop"], attributes["step"])
    return _as_stated(node, _seen_by_keras(value)[(slice(None),) * (attributes["axis"] + 1) + (part,)])


def _power(node: Mapping[str, Any], value: Tensor) -> Tensor:
    exponent = node["attributes"]["exponent"]
    return value.clamp(min=0.0 if exponent > 0 else 1e-34) ** exponent


def _root_of_squares(node: Mapping[str, Any], value: Tensor) -> Tensor:
    attributes = node["attributes"]
    axes = tuple(axis + 1 for axis in attributes["axes"])
    sums = attributes["factor"] * _seen_by_keras(value).square().sum(axes) + attributes["epsilon"]
    return _as_stated(node, sums.rsqrt() if attributes["inverse"] else sums.sqrt())


def _repeat(node: Mapping[str, Any], value: Tensor) -> Tensor:
    value = _seen_by_keras(value)
    for axis, count in zip(node["attributes"]["axes"], node["attributes"]["counts"], strict=True):
        value = value.repeat_interleave(count, axis + 1)
    return _as_stated(node, value)


def _with_array(operation: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Mapping[str, Any], Tensor], Tensor]:
    """With an array that is the same for all images."""

    def compute(node: Mapping[str, Any], value: Tensor) -> Tensor:
        attributes = node["attributes"]
        array = torch.tensor(attributes["constant"], dtype=value.dtype, device=value.device)
        array = array.reshape(attributes["shape"]).permute(*map(attributes["order"].index, range(value.ndim - 1)))
        return _as_stated(node, operation(_seen_by_keras(value), array))

    return compute


def _matmul(node: Mapping[str, Any], left: Tensor, right: Tensor) -> Tensor:
    how = "bnhk,bmhk->bnhm" if node["attributes"]["last"] else "bnhk,bkhm->bnhm"
    return _as_stated(node, torch.einsum(how, _seen_by_keras(left), _seen_by_keras(right)))


def _inverse_rms(node: Mapping[str, Any], value: Tensor) -> Tensor:
    attributes = node["attributes"]
    value = value - value.mean(1, keepdim=True) if attributes["centred"] else value
    return (attributes["factor"] * value.square().mean(1, keepdim=True) + attributes["epsilon"]).rsqrt()


def _glu(node: Mapping[str, Any], value: Tensor) -> Tensor:
    first, second = value.chunk(2, 1)
    return first * torch.sigmoid(second)


def _folded(operation: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    def merge(node: Mapping[str, Any], first: Tensor, *others: Tensor) -> Tensor:
        for each in others:
            first = operation(first, each)
        return first

    return merge


FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "affine": _affine,
    "relu": _relu,
    "leaky_relu": lambda node, value: F.leaky_relu(value, node["attributes"]["negative_slope"]),
    "elu": lambda node, value: F.elu(value, node["attributes"]["alpha"]),
    "threshold": lambda node, value: F.threshold(value, node["attributes"]["threshold"], 0.0),
    "activation": lambda node, value: _ACTIVATIONS[node["attributes"]["function"]](value),
    "absolute": lambda node, value: value.abs(),
    "clip": lambda node, value: value.clamp(node["attributes"]["low"], node["attributes"]["high"]),
    "hard_shrink": lambda node, value: F.hardshrink(value, node["attributes"]["threshold"]),
    "soft_shrink": lambda node, value: F.softshrink(value, node["attributes"]["threshold"]),
    "glu": _glu,
    "hard_sigmoid": lambda node, value: F.hardsigmoid(value),
    "hard_swish": lambda node, value: F.hardswish(value),
    "mish": lambda node, value: F.mish(value),
    "softmax": lambda node, value: value.softmax(1),
    "pad": lambda node, value: _padded(value, node["attributes"]["padding"], 0.0),
    "crop": _crop,
    "max_pool": _max_pool,
    "average_pool": _average_pool,
    "global_average_pool": _global(torch.mean),
    "global_max_pool": _global(torch.amax),
    "upsample": _upsample,
    "upsample_bilinear": _upsample_bilinear,
    "resize": _resize,
    "map_places": _map_places,
    "slice_channels": lambda node, value: value[:, node["attributes"]["start"] : node["attributes"]["stop"]],
    "flatten": _flatten,
    "reshape": _reshape,
    "regroup": _reshape,
    "transpose": _transpose,
    "add": _folded(torch.add),
    "subtract": _folded(torch.sub),
    "multiply": _folded(torch.mul),
    "maximum": _folded(torch.maximum),
    "minimum": _folded(torch.minimum),
    "average": lambda node, *values: sum(values) / len(values),
    "divide": lambda node, first, second: first / second,
    "unit_norm": lambda node, value: F.normalize(value, dim=1, eps=node["attributes"]["least"]),
    "inverse_rms": _inverse_rms,
    "divide_by_rms": lambda node, first, second: first * _inverse_rms(node, second),
    "mean": _over_axes(torch.mean),
    "sum": _over_axes(torch.sum),
    "join": _join,
    "cut": _cut,
    "repeat": _repeat,
    "power": _power,
    "logarithm": lambda node, value: value.clamp(min=1e-34).log(),
    "root_of_squares": _root_of_squares,
    "add_array": _with_array(torch.add),
    "multiply_array": _with_array(torch.mul),
    "matmul": _matmul,
    "concatenate": lambda node, *values: torch.cat(values, 1),
}

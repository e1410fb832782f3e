"""Operations with weights: torch's own modules wherever it has one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PaddedConv2d(nn.Conv2d):
    """A convolution with its own number of zeros at each of the four sides.

    Args:
        padding: top, bottom, left, right.
        others: of `nn.Conv2d`.
    """

    def __init__(self, *others: Any, padding: Sequence[int], **named: Any) -> None:
        top, bottom, left, right = padding
        even = top == bottom and left == right
        named["padding"] = (top, left) if even else 0
        super().__init__(*others, **named)
        self.uneven = None if even else (left, right, top, bottom)

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H', W')."""
        return super().forward(input if self.uneven is None else F.pad(input, self.uneven))


class CroppedConvTranspose2d(nn.ConvTranspose2d):
    """A transposed convolution of whose whole result the sides are cut off, before the bias is added.

    Args:
        crop: top, bottom, left, right; negative where zeros are added.
        others: of `nn.ConvTranspose2d`.
    """

    def __init__(self, *others: Any, crop: Sequence[int], **named: Any) -> None:
        super().__init__(*others, **named)
        top, bottom, left, right = crop
        self.ends = (-left, -right, -top, -bottom)

    def forward(self, input: Tensor, output_size: Any = None) -> Tensor:
        """(B, C, H, W) to (B, C', H', W')."""
        whole = F.conv_transpose2d(input, self.weight, None, self.stride)
        result = F.pad(whole, self.ends)
        return result if self.bias is None else result + self.bias[:, None, None]


class ChannelsLinear(nn.Linear):
    """A dense layer over the channels, at every place of a map."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, C) or (B, C, H, W), to the same with other channels."""
        return super().forward(input) if input.ndim == 2 else super().forward(input.movedim(1, -1)).movedim(-1, 1)


class ChannelsNorm(nn.LayerNorm):
    """A LayerNorm over the channels, at every place of a map."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, C) or (B, C, H, W), to the same shape."""
        return super().forward(input) if input.ndim == 2 else super().forward(input.movedim(1, -1)).movedim(-1, 1)


class PReLU(nn.Module):
    """``x`` where it is positive, else ``x * weight``; Keras may have a weight for every place."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(tuple(shape)))

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) or (B, C), to the same shape."""
        return input.clamp(min=0) + self.weight * input.clamp(max=0)


class ChannelScale(nn.Module):
    """A trained factor for each channel, or one for all."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) or (B, C), to the same shape."""
        return input * self.weight.reshape(-1, *(1,) * (input.ndim - 2))


class ChannelShift(nn.Module):
    """A trained sum for each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) or (B, C), to the same shape."""
        return input + self.bias.reshape(-1, *(1,) * (input.ndim - 2))


class ChannelsRMSNorm(nn.RMSNorm):
    """A root-mean-square norm over the channels, at every place of a map."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, C) or (B, C, H, W), to the same shape."""
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


# Role of a weight -> its name in torch's module.
TENSORS = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
    "alpha": "weight",
    "scale": "weight",
    "offset": "bias",
}


def _conv2d(node: Mapping[str, Any]) -> nn.Module:
    attributes, (out_channels, per_group, *kernel) = node["attributes"], node["weights"]["kernel"]
    return PaddedConv2d(
        per_group * attributes["groups"],
        out_channels,
        tuple(kernel),
        tuple(attributes["strides"]),
        dilation=tuple(attributes["dilation"]),
        groups=attributes["groups"],
        bias="bias" in node["weights"],
        padding=attributes["padding"],
    )


def _conv2d_transpose(node: Mapping[str, Any]) -> nn.Module:
    attributes, (in_channels, out_channels, *kernel) = node["attributes"], node["weights"]["kernel"]
    biased = "bias" in node["weights"]
    return CroppedConvTranspose2d(
        in_channels, out_channels, tuple(kernel), tuple(attributes["strides"]), bias=biased, crop=attributes["crop"]
    )


def _batch_norm(node: Mapping[str, Any]) -> nn.Module:
    kind = nn.BatchNorm2d if len(node["shape"]) == 3 else nn.BatchNorm1d
    attributes = node["attributes"]
    # Keras's momentum is what is kept of the old statistics, torch's what is taken of the new ones
    norm = kind(node["shape"][0], eps=attributes["epsilon"], momentum=1 - attributes["momentum"])
    return _with_its_weights(node, norm)


def _with_its_weights(node: Mapping[str, Any], norm: nn.Module) -> nn.Module:
    """Without the parameters that the node does not have."""
    for role in ("gamma", "beta"):
        if role not in node["weights"] and hasattr(norm, TENSORS[role]):
            norm.register_parameter(TENSORS[role], None)
    return norm


def _layer_norm(node: Mapping[str, Any]) -> nn.Module:
    return _with_its_weights(node, ChannelsNorm(node["shape"][0], eps=node["attributes"]["epsilon"]))


def _group_norm(node: Mapping[str, Any]) -> nn.Module:
    attributes = node["attributes"]
    return _with_its_weights(node, nn.GroupNorm(attributes["groups"], node["shape"][0], eps=attributes["epsilon"]))


def _rms_norm(node: Mapping[str, Any]) -> nn.Module:
    return _with_its_weights(node, ChannelsRMSNorm(node["shape"][0], eps=node["attributes"]["epsilon"]))


def _dense(node: Mapping[str, Any]) -> nn.Module:
    units, features = node["weights"]["kernel"]
    return ChannelsLinear(features, units, bias="bias" in node["weights"])


MODULES: dict[str, Callable[[Mapping[str, Any]], nn.Module]] = {
    "conv2d": _conv2d,
    "conv2d_transpose": _conv2d_transpose,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "group_norm": _group_norm,
    "rms_norm": _rms_norm,
    "dense": _dense,
    "prelu": lambda node: PReLU(node["weights"]["alpha"]),
    "channel_scale": lambda node: ChannelScale(node["weights"]["scale"][0]),
    "channel_shift": lambda node: ChannelShift(node["shape"][0]),
    "dropout": lambda node: nn.Dropout(node["attributes"]["rate"]),
}

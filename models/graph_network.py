"""A torch module built from a description of its operations: for networks that timm does not have.

The description is plain data, so that a checkpoint can hold it: a list of nodes as in `export.graph.nodes`, each with
``name``, ``op``, ``inputs``, ``shape``, ``attributes`` and ``weights`` (role -> shape). Operations with weights are
torch's own modules, so that training treats them as any other network's; all others are functions in `_FUNCTIONS`.
"""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.bad_input import BadInput
from models.timm_mobilenetv2 import Normalise, TimmClassifier, three_floats

Description = Sequence[Mapping[str, Any]]


class GraphNetwork(nn.Module):
    """The operations of a description, one after the other.

    The weights are ordinary parameters and buffers under ``layers.NAME``, NAME being the node's with underscores for
    whatever a module's name may not have.

    Args:
        nodes: the description; each node reads nodes before it, or the network's input under the name `source`.
        source: name of the input.

    Raises:
        KeyError, TypeError, ValueError: the description is none that this class can build.
    """

    def __init__(self, nodes: Description, source: str) -> None:
        super().__init__()
        self.source = source
        self.nodes = [dict(node) for node in nodes]
        self.layers = nn.ModuleDict()
        self.module_of: dict[str, str] = {}  # node name -> key in `layers`
        shapes: dict[str, tuple[int, ...] | None] = {source: None}
        for node in self.nodes:
            missing = [name for name in node["inputs"] if name not in shapes]
            if missing or node["name"] in shapes:
                raise ValueError(f"node {node['name']!r} is named twice or reads {missing} before they are computed")
            if node["op"] in _MODULES:
                self.module_of[node["name"]] = key = self._unique(node["name"])
                self.layers[key] = _MODULES[node["op"]](node)
            elif node["op"] not in _FUNCTIONS:
                raise ValueError(f"node {node['name']!r} has the unknown operation {node['op']!r}")
            shapes[node["name"]] = tuple(node["shape"])
        self.output = self.nodes[-1]["name"] if self.nodes else source

    def _unique(self, name: str) -> str:
        plain = re.sub(r"[^0-9A-Za-z_]+", "_", name) or "layer"
        key, number = plain, 0
        while key in self.layers or hasattr(self.layers, key):  # some names are methods of a ModuleDict
            number += 1
            key = f"{plain}_{number}"
        return key

    def tensor_name(self, node: str, role: str) -> str:
        """Name in the state dict of the tensor that a node has in a role (``kernel``, ``gamma``, ...)."""
        return f"layers.{self.module_of[node]}.{_TENSORS[role]}"

    def forward(self, images: Tensor, record: dict[str, Tensor] | None = None) -> Tensor:
        """Compute the last node's output.

        Args:
            images: the input, (B, C, H, W) or (B, C).
            record: is filled with the output of every node, by name.
        """
        values = {self.source: images}
        last_reader = {name: node["name"] for node in self.nodes for name in node["inputs"]}
        for node in self.nodes:
            name, inputs = node["name"], [values[each] for each in node["inputs"]]
            if name in self.module_of:
                values[name] = self.layers[self.module_of[name]](*inputs)
            else:
                values[name] = _FUNCTIONS[node["op"]](node, *inputs)
            if record is not None:
                record[name] = values[name]
            for each in node["inputs"]:  # what nothing reads any more need not be kept
                if last_reader[each] == name and each != self.source:
                    values.pop(each, None)
        return values[self.output]


# Operations with weights ----------------------------------------------------------------------------------------------


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
    """A trained factor for each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) or (B, C), to the same shape."""
        return input * self.weight.reshape(-1, *(1,) * (input.ndim - 2))


# Role of a weight -> its name in torch's module.
_TENSORS = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
    "alpha": "weight",
    "scale": "weight",
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
    for role in ("gamma", "beta"):
        if role not in node["weights"]:
            norm.register_parameter(_TENSORS[role], None)
    return norm


def _layer_norm(node: Mapping[str, Any]) -> nn.Module:
    norm = ChannelsNorm(node["shape"][0], eps=node["attributes"]["epsilon"])
    for role in ("gamma", "beta"):
        if role not in node["weights"]:
            norm.register_parameter(_TENSORS[role], None)
    return norm


def _dense(node: Mapping[str, Any]) -> nn.Module:
    units, features = node["weights"]["kernel"]
    return ChannelsLinear(features, units, bias="bias" in node["weights"])


_MODULES: dict[str, Callable[[Mapping[str, Any]], nn.Module]] = {
    "conv2d": _conv2d,
    "conv2d_transpose": _conv2d_transpose,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "dense": _dense,
    "prelu": lambda node: PReLU(node["weights"]["alpha"]),
    "channel_scale": lambda node: ChannelScale(node["shape"][0]),
    "dropout": lambda node: nn.Dropout(node["attributes"]["rate"]),
}


# Operations without weights -------------------------------------------------------------------------------------------


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


def _flatten(node: Mapping[str, Any], value: Tensor) -> Tensor:
    return value.movedim(1, -1).reshape(len(value), -1)


def _reshape(node: Mapping[str, Any], value: Tensor) -> Tensor:
    channels, *size = node["shape"]
    return _flatten(node, value).reshape(len(value), *size, channels).movedim(-1, 1)


def _transpose(node: Mapping[str, Any], value: Tensor) -> Tensor:
    """The axes are Keras's, channels last."""
    return value.movedim(1, -1).permute(0, *(axis + 1 for axis in node["attributes"]["axes"])).movedim(-1, 1)


def _folded(operation: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    def merge(node: Mapping[str, Any], first: Tensor, *others: Tensor) -> Tensor:
        for each in others:
            first = operation(first, each)
        return first

    return merge


_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "affine": _affine,
    "relu": _relu,
    "leaky_relu": lambda node, value: F.leaky_relu(value, node["attributes"]["negative_slope"]),
    "elu": lambda node, value: F.elu(value, node["attributes"]["alpha"]),
    "threshold": lambda node, value: F.threshold(value, node["attributes"]["threshold"], 0.0),
    "activation": lambda node, value: _ACTIVATIONS[node["attributes"]["function"]](value),
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
    "concatenate": lambda node, *values: torch.cat(values, 1),
}


# The whole classifier -------------------------------------------------------------------------------------------------

# A description that unpacks to more than this is none of a classifier's.
_MOST_TEXT = 64 << 20


def packed(description: dict[str, Any]) -> str:
    """A description as one line of text (JSON, compressed, base64), for hyper-parameters."""
    return base64.b64encode(zlib.compress(json.dumps(description).encode(), 9)).decode()


def unpacked(text: str) -> dict[str, Any]:
    """The opposite of `packed`.

    Raises:
        BadInput: the text is none, or too long.
    """
    try:
        unpacker = zlib.decompressobj()
        content = unpacker.decompress(base64.b64decode(text, validate=True), _MOST_TEXT)
        if unpacker.unconsumed_tail:
            raise ValueError("too long")
        description = json.loads(content)
        if not isinstance(description, dict) or set(description) != {"backbone", "head"}:
            raise ValueError("no description of backbone and head")
    except (ValueError, TypeError, zlib.error, RecursionError) as error:
        raise BadInput(
            f"--model.graph: expected what `lightning import` wrote, received something else ({error}). Leave it to "
            "--ckpt_path."
        ) from error
    return description


class GraphClassifier(TimmClassifier):
    """A classifier that came from a Keras file and has no counterpart in timm.

    It has the parts of a `TimmClassifier`, so that it trains, predicts and is exported like one: normalisation, a
    backbone up to the features, and a head.

    Args:
        num_classes: as many as the head gives logits.
        graph: from `packed`: a description for ``backbone`` (it reads ``image``) and one for ``head``.
        mean: per channel, for pixels of 0 to 1.
        std: per channel, for pixels of 0 to 1, above zero.

    Raises:
        BadInput: the description is none that can be built, or gives another number of logits.
    """

    def __init__(self, num_classes: int, graph: str, mean: Any, std: Any) -> None:
        nn.Module.__init__(self)
        self.num_classes, self.backbone_name, self.graph = num_classes, IMPORTED, graph
        # what the settings of a timm network would say; the description says it for each layer
        self.hidden, self.dropout, self.pad_type, self.bn_eps = (), 0.0, "", None
        self.mean, self.std = three_floats(mean, "mean"), three_floats(std, "std")
        if min(self.std) <= 0:
            raise BadInput(f"--model.std: expected numbers above zero, received {std!r}. It divides the pixels.")
        self.normalise = Normalise(self.mean, self.std)
        description = unpacked(graph)
        try:
            self.backbone: Any = GraphNetwork(description["backbone"], INPUT)
            self.head: Any = GraphNetwork(description["head"], self.backbone.output)
            shape = list(self.head.nodes[-1]["shape"])
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError, OverflowError) as error:
            raise BadInput(
                f"--model.graph: expected the description of a network, received one that raises "
                f"{type(error).__name__}: {str(error)[:200]}. Leave it to --ckpt_path."
            ) from error
        if shape != [num_classes]:
            raise BadInput(f"--model.graph: expected {num_classes} logits, received a network that gives {shape}.")

    @property
    def architecture(self) -> dict[str, Any]:
        """As `TimmClassifier.architecture`, and ``graph``."""
        return {**super().architecture, "graph": self.graph}


# Name of a backbone that is described by a graph, and of the graph's input.
IMPORTED = "imported"
INPUT = "normalise"


def build_classifier(num_classes: int, graph: str | None = None, **architecture: Any) -> TimmClassifier:
    """The classifier that settings describe: a `TimmClassifier`, or a `GraphClassifier` if there is a graph.

    Args:
        num_classes: at least 2.
        graph: from `packed`; only ``mean`` and ``std`` of the other settings count then.
        architecture: the settings of `TimmClassifier`.

    Raises:
        BadInput: as the two raise it.
    """
    if graph is None:
        return TimmClassifier(num_classes, **architecture)
    return GraphClassifier(num_classes, graph, architecture["mean"], architecture["std"])

"""The network: any timm CNN as backbone, Keras-style dense head, normalisation inside.

The backbone comes from `timm.create_model`, so MobileNetV2 is just a name and needs no code here. Settings that differ
between timm and `keras.applications` are explicit here and saved in the checkpoint: padding, BatchNorm epsilon, mean
and standard deviation.
"""

from collections import OrderedDict
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np
import timm
import torch
from timm.data import resolve_model_data_config
from timm.layers import Conv2dSame
from torch import Tensor, nn

from models.bad_input import BadInput
from models.classifier import Classifier

ARCHITECTURE = ("backbone", "hidden", "dropout", "pad_type", "bn_eps", "mean", "std")
"""All that is needed, besides the number of classes, to rebuild the network. These are names of constructor arguments
and keys of the hyperparameters."""

PAD_TYPES = ("", "same")
"""timm's symmetric padding, and TensorFlow's SAME (asymmetric if the stride is 2 and the size is even)."""


def three_floats(value: float | str | Sequence[float], name: str) -> tuple[float, float, float]:
    """Convert one number, or three (red, green, blue), to three floats.

    Args:
        value: one number for all channels, three numbers, or either as text such as "0.485,0.456,0.406".
        name: the setting's name, for the error message.

    Raises:
        BadInput: the value is neither, or a number is not finite.
    """
    parts = value.strip("[]() ").split(",") if isinstance(value, str) else value
    try:
        if isinstance(parts, (int, float)):
            parts = [parts] * 3
        numbers = [float(part) for part in parts]
        numbers = numbers * 3 if len(numbers) == 1 else numbers
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) != 3 or not np.isfinite(numbers).all():
        raise BadInput(
            f"--model.{name}: expected one finite number or three (red, green, blue) on the scale where pixels are "
            f"0 to 1, received {value!r}. Give for example --model.{name} 0.5 or --model.{name} 0.485,0.456,0.406."
        )
    return numbers[0], numbers[1], numbers[2]


class Normalise(nn.Module):
    """`x * scale + offset`, which is `(x - mean) / std` per channel, as the first layer of the network.

    Both twins compute one multiplication and one addition, with constants rounded once from float64. A subtraction
    followed by a division would round differently on each side. The constants are not weights, so they are rebuilt from
    the hyperparameters and not kept in the state dict.

    Args:
        mean: per channel, for pixels of 0 to 1.
        std: per channel, for pixels of 0 to 1, above zero.
    """

    scale: Tensor
    offset: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        mean64, std64 = np.asarray(mean, np.float64), np.asarray(std, np.float64)
        scale, offset = (1.0 / std64).astype(np.float32), (-mean64 / std64).astype(np.float32)
        self.register_buffer("scale", torch.from_numpy(scale).reshape(1, -1, 1, 1), persistent=False)
        self.register_buffer("offset", torch.from_numpy(offset).reshape(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Normalise images, shape (B, C, H, W), values 0 to 1."""
        return images * self.scale + self.offset


class TimmClassifier(Classifier):
    """Normalisation, a timm backbone with global average pooling, and a dense head.

    `None` for a setting means timm's own value for that backbone. The attributes of the same names hold the resolved
    values; passing those to the constructor builds the same network.

    Args:
        num_classes: at least 2.
        backbone: timm's name of a CNN, such as "mobilenetv2_100", "mobilenetv2_035", "resnet18".
        hidden: widths of the dense layers with ReLU between pooled features and predictions; may be empty.
        dropout: rate after each hidden layer (before the predictions if there is none), 0 <= dropout < 1.
        pad_type: "" (timm's symmetric padding) or "same" (TensorFlow's SAME).
        bn_eps: BatchNorm's epsilon, above zero; 1e-5 is timm's for MobileNetV2, 1e-3 is TensorFlow's.
        mean: one number or three, subtracted from pixels of 0 to 1.
        std: one number or three, above zero; the pixels are divided by it after the subtraction.

    Raises:
        BadInput: a name that timm does not know, a setting out of its range, or one that this backbone does not have.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: str = "mobilenetv2_100",
        hidden: Sequence[int] = (128,),
        dropout: float = 0.0,
        pad_type: str | None = None,
        bn_eps: float | None = None,
        mean: float | str | Sequence[float] | None = None,
        std: float | str | Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        _check_settings(num_classes, hidden, dropout, pad_type, bn_eps)
        self.num_classes, self.backbone_name = num_classes, backbone
        self.hidden, self.dropout = tuple(hidden), float(dropout)
        self.backbone: Any = create_backbone(backbone, pad_type, bn_eps)
        self.pad_type, self.bn_eps = _pad_type_of(self.backbone), _bn_eps_of(self.backbone)
        timm_data = resolve_model_data_config(self.backbone)
        self.mean = three_floats(timm_data["mean"] if mean is None else mean, "mean")
        self.std = three_floats(timm_data["std"] if std is None else std, "std")
        if min(self.std) <= 0:
            raise BadInput(f"--model.std: expected numbers above zero, received {std!r}. It divides the pixels.")
        self.normalise = Normalise(self.mean, self.std)
        features: Any = getattr(self.backbone, "head_hidden_size", None) or self.backbone.num_features
        self.head = _dense_head(features, self.hidden, self.dropout, num_classes)

    @property
    def architecture(self) -> dict[str, Any]:
        """The resolved `ARCHITECTURE` settings in plain Python types, for hyperparameters and files."""
        return {
            "backbone": self.backbone_name,
            "hidden": list(self.hidden),
            "dropout": self.dropout,
            "pad_type": self.pad_type,
            "bn_eps": self.bn_eps,
            "mean": list(self.mean),
            "std": list(self.std),
        }

    def features(self, images: Tensor) -> Tensor:
        """Compute pooled features, shape (B, F), of images, float32 (B, 3, H, W) with values 0 to 1."""
        return self.backbone(self.normalise(images))

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits, shape (B, num_classes), of RGB images, float32 (B, 3, H, W) with values 0 to 1."""
        return self.head(self.features(images))


def create_backbone(name: str, pad_type: str | None = None, bn_eps: float | None = None) -> nn.Module:
    """Build timm's model without its classifier: from normalised images (B, 3, H, W) to pooled features (B, F).

    Args:
        name: timm's name, with or without a pretrained tag.
        pad_type: as in `TimmClassifier`.
        bn_eps: as in `TimmClassifier`.

    Raises:
        BadInput: the name or tag is unknown, or the model does not have a setting that was given.
    """
    if not timm.is_model(name):
        near = get_close_matches(name, timm.list_models(), n=5, cutoff=0.5)
        raise BadInput(
            f"--model.backbone: timm {timm.__version__} knows no model {name!r}. "
            f"Near matches: {', '.join(near) or 'none'}. `timm.list_models()` lists all."
        )
    given: dict[str, Any] = {"pad_type": pad_type, "bn_eps": bn_eps}
    given = {key: value for key, value in given.items() if value is not None}
    try:
        backbone = timm.create_model(name, pretrained=False, num_classes=0, **given)
    except TypeError:
        # Most families outside EfficientNet's have no such argument. That matters only if their value is another one.
        backbone = timm.create_model(name, pretrained=False, num_classes=0)
    except RuntimeError as error:
        raise BadInput(f"--model.backbone: timm cannot build {name!r}: {error}") from error
    built = {"pad_type": _pad_type_of(backbone), "bn_eps": _bn_eps_of(backbone)}
    for key, value in given.items():
        if built[key] != value:
            raise BadInput(
                f"--model.{key}: {name} cannot take {value!r}, timm builds it with {built[key]!r}. "
                f"Leave --model.{key} out, or choose a backbone of the MobileNet or EfficientNet families."
            )
    return backbone


def _pad_type_of(backbone: nn.Module) -> str:
    return "same" if any(isinstance(module, Conv2dSame) for module in backbone.modules()) else ""


def _bn_eps_of(backbone: nn.Module) -> float | None:
    """Return the epsilon that all BatchNorm layers share, or None if there is no such layer or they differ."""
    epsilons = {float(module.eps) for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)}
    return epsilons.pop() if len(epsilons) == 1 else None


def _dense_head(features: int, hidden: tuple[int, ...], dropout: float, num_classes: int) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for index, width in enumerate(hidden):
        number = f"_{index}" if index else ""
        layers[f"dense{number}"] = nn.Linear(features, width)
        layers[f"dense{number}_relu"] = nn.ReLU()
        if dropout:
            layers[f"dropout{number}"] = nn.Dropout(dropout)
        features = width
    if dropout and not hidden:
        layers["dropout"] = nn.Dropout(dropout)
    layers["predictions"] = nn.Linear(features, num_classes)
    for layer in layers.values():
        if isinstance(layer, nn.Linear):
            # Initialised as in keras.layers.Dense (glorot_uniform, zeros); torch's default for Linear is different.
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    return nn.Sequential(layers)


def _check_settings(
    num_classes: int, hidden: Sequence[int], dropout: float, pad_type: str | None, bn_eps: float | None
) -> None:
    if num_classes < 2:
        raise BadInput(f"num_classes: expected at least 2, received {num_classes}. One class cannot be told apart.")
    if any(width < 1 for width in hidden):
        raise BadInput(f"--model.hidden: expected widths of at least 1, received {list(hidden)}. [] means no layer.")
    if not 0 <= dropout < 1:
        raise BadInput(f"--model.dropout: expected a rate from 0 to below 1, received {dropout}.")
    if pad_type is not None and pad_type not in PAD_TYPES:
        raise BadInput(
            f"--model.pad_type: expected '' (timm's symmetric padding) or 'same' (TensorFlow's), received {pad_type!r}."
        )
    if bn_eps is not None and not 0 < bn_eps < 1:
        raise BadInput(
            f"--model.bn_eps: expected a number above 0 and below 1, received {bn_eps}. "
            "1e-5 is timm's, 1e-3 is TensorFlow's."
        )

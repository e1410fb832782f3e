"""What must be said about a network that was trained elsewhere, as its checkpoint does not say it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Numbers = tuple[float, ...]


@dataclass(frozen=True)
class ForeignSettings:
    """What the caller states; None means that it is found, or taken from where the network comes from, and said so.

    Attributes:
        model: timm's name, or ``package.module:factory``.
        num_classes: how many numbers the network gives.
        class_names: as many names, in their order.
        image_size: (height, width) in pixels.
        mean: subtracted from pixels of 0 to 1, one number or one for each channel; empty: nothing is.
        std: divides what is left; empty: nothing does.
        output: what the network's forward gives, one of `models.choices.OUTPUTS`.
        use_ema: take the averaged weights.
        prefix: what the names of the network's tensors begin with in the file.
        model_args: further arguments of the network's factory.
        interpolation: how photos are resized, by Keras's name.
    """

    model: str | None = None
    num_classes: int | None = None
    class_names: Sequence[str] | None = None
    image_size: tuple[int, int] | None = None
    mean: Numbers | None = None
    std: Numbers | None = None
    output: str = "logits"
    use_ema: bool = False
    prefix: str | None = None
    model_args: Mapping[str, Any] = field(default_factory=dict)
    interpolation: str | None = None

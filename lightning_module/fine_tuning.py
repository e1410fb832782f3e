"""Settings for fine-tuning a backbone: the learning rate schedule, and regularisation against overfitting.

All of it is done by torch, timm and Lightning. Each setting is off by default, so that the Keras recipe is not
changed. docs/accuracy.md has measurements of which ones help.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from timm.data.mixup import Mixup, one_hot
from timm.data.random_erasing import RandomErasing
from torch import Tensor, nn

from models.bad_input import BadInput
from models.choices import BATCH_NORM_POLICIES, BatchNormPolicy

ClassWeights = Literal["none", "balanced"]


@dataclass(frozen=True)
class Schedule:
    """Learning rates of head and backbone over the epochs.

    Attributes:
        head_epochs: number of first epochs in which only the head is trained, at a constant rate; the backbone uses its
            fast frozen pass meanwhile. Only with `trainable: all`.
        warmup_epochs: number of epochs after those in which the rates rise from zero; may be a fraction.
        cosine: let the rates fall to zero by the last epoch, along half a cosine (Loshchilov and Hutter 2017).
        backbone_factor: the backbone's learning rate divided by the head's, above zero.
        batch_norm: BatchNorm in a backbone that is trained. `train`: normalise by each batch's own statistics and
            update the running ones; `frozen`: keep the pretrained statistics (scale and shift are still trained).

    Raises:
        BadInput: a setting is out of its range.
    """

    head_epochs: int = 0
    warmup_epochs: float = 0.0
    cosine: bool = False
    backbone_factor: float = 1.0
    batch_norm: BatchNormPolicy = "train"

    def __post_init__(self) -> None:
        for name, expected, fits in (
            ("head_epochs", "0 or more epochs", self.head_epochs >= 0),
            ("warmup_epochs", "0 or more epochs", math.isfinite(self.warmup_epochs) and self.warmup_epochs >= 0),
            ("backbone_factor", "a number above 0", math.isfinite(self.backbone_factor) and self.backbone_factor > 0),
            (
                "batch_norm",
                f"one of {', '.join(BATCH_NORM_POLICIES)}",
                self.batch_norm in BATCH_NORM_POLICIES,
            ),
        ):
            _check("schedule", name, getattr(self, name), expected, fits)

    @property
    def changes_rates(self) -> bool:
        """Whether the learning rates change during training."""
        return bool(self.head_epochs or self.warmup_epochs or self.cosine)

    def rate(self, step: int, steps_per_epoch: int, total_steps: float, of_backbone: bool = False) -> float:
        """Return the factor of a learning rate in a step, 0 to 1.

        Args:
            step: number of optimiser steps so far.
            steps_per_epoch: at least 1.
            total_steps: number of steps of the whole fit; infinite only without `cosine`.
            of_backbone: return the backbone's factor, which is 0 while only the head is trained.
        """
        start = self.head_epochs * steps_per_epoch
        if step < start:
            return 0.0 if of_backbone else 1.0
        warm = self.warmup_epochs * steps_per_epoch
        done = step - start
        if done < warm:
            return (done + 1) / (math.floor(warm) + 1)
        if not self.cosine:
            return 1.0
        left = max(1.0, total_steps - start - warm)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (done - warm) / left)))


@dataclass(frozen=True)
class Regularisation:
    """Changes to training batches and their loss that prevent overfitting.

    Attributes:
        label_smoothing: share of the probability that is spread evenly over all classes, 0 to below 1 (Szegedy et al.
            2016).
        mixup: alpha of the Beta distribution for blending pairs of photos, 0 for none (Zhang et al. 2018); timm's.
        cutmix: the same for pasting a rectangle of one photo into another (Yun et al. 2019); timm's. If both are given,
            each batch gets one of them, chosen at random.
        mix_share: share of the batches to which mixup or cutmix is applied, 0 to 1.
        random_erasing: share of the photos in which a rectangle is erased, 0 to 1 (Zhong et al. 2020); timm's.
        class_weights: `balanced` weights each photo's loss by how rare its class is; the average weight is 1.

    Raises:
        BadInput: a setting is out of its range.
    """

    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_share: float = 1.0
    random_erasing: float = 0.0
    class_weights: ClassWeights = "none"

    def __post_init__(self) -> None:
        for name, expected, fits in (
            ("label_smoothing", "a share from 0 to below 1", 0 <= self.label_smoothing < 1),
            ("mixup", "0 or more", 0 <= self.mixup < math.inf),
            ("cutmix", "0 or more", 0 <= self.cutmix < math.inf),
            ("mix_share", "a share from 0 to 1", 0 <= self.mix_share <= 1),
            ("random_erasing", "a share from 0 to 1", 0 <= self.random_erasing <= 1),
            (
                "class_weights",
                f"one of {', '.join(get_args(ClassWeights))}",
                self.class_weights in get_args(ClassWeights),
            ),
        ):
            _check("regularisation", name, getattr(self, name), expected, fits)


def _check(group: str, name: str, value: object, expected: str, fits: bool) -> None:
    if not fits:
        raise BadInput(f"--model.{group}.{name}: expected {expected}, received {value!r}.")


class BatchRegulariser:
    """Applies a `Regularisation` to training batches, on their device.

    Random numbers come from the global generators of Python and numpy, as in timm.

    Args:
        settings: the settings.
        num_classes: C.
    """

    def __init__(self, settings: Regularisation, num_classes: int) -> None:
        self.settings, self.num_classes = settings, num_classes
        self._mixup = None
        if settings.mixup or settings.cutmix:
            self._mixup = Mixup(
                settings.mixup, settings.cutmix, prob=settings.mix_share,
                label_smoothing=0, num_classes=num_classes + 1,
            )  # fmt: skip

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the settings to a batch.

        Args:
            images: shape (B, 3, H, W), 0 to 1; may be changed in place.
            labels: class indices, shape (B,); -1 where a photo has none.

        Returns:
            The images, and the target probability of each class, shape (B, C). A row adds up to the labelled share of
            its photo: 1, or 0 without a label, or what was mixed of both.
        """
        labels = labels % (self.num_classes + 1)  # the last of timm's classes is to have no label
        targets = one_hot(labels, self.num_classes + 1)
        if self._mixup is not None and (pairs := len(images) // 2 * 2):
            # timm mixes a batch with itself in reverse order and needs an even number; a last odd photo is not mixed
            images[:pairs], targets[:pairs] = self._mixup(images[:pairs], labels[:pairs])
        targets = targets[:, :-1]
        smoothing = self.settings.label_smoothing
        targets = (1 - smoothing) * targets + smoothing / self.num_classes * targets.sum(dim=1, keepdim=True)
        if self.settings.random_erasing:
            erase = RandomErasing(self.settings.random_erasing, mode="const", device=images.device)
            # timm erases to zero, the mean of normalised images. Ours are not normalised yet: use the batch's mean.
            middle = images.mean((0, 2, 3), keepdim=True)
            images = erase(images - middle) + middle
        return images, targets


def balanced_weights(labels: Sequence[int], num_classes: int) -> Tensor:
    """Return class weights, shape (C,), with which all classes count the same and the average photo has weight 1.

    The same as scikit-learn's `class_weight="balanced"`.

    Args:
        labels: class indices of all training photos.
        num_classes: C; each class must occur.
    """
    counts = torch.bincount(torch.as_tensor(labels), minlength=num_classes).double()
    return (len(labels) / (num_classes * counts)).float()


def shrink(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a batch, shape (B, 3, H, W), to (height, width), antialiased; channels-last stays channels-last."""
    small = nn.functional.interpolate(images, size, mode="bilinear", antialias=True)
    return small.contiguous(memory_format=torch.channels_last)


class EmaOfWeights(WeightAveraging):
    """An exponential moving average of all weights and BatchNorm statistics; the average is what is measured and saved.

    The decay begins small and grows, so that the first weights are soon forgotten: min(decay, (1 + n) / (10 + n)) in
    update n, as in TensorFlow's `ExponentialMovingAverage`.

    Args:
        decay: the largest decay, 0 to below 1.

    Raises:
        BadInput: the decay is out of its range.
    """

    def __init__(self, decay: float = 0.995) -> None:
        if not 0 <= decay < 1:
            raise BadInput(f"EmaOfWeights.decay: expected a number from 0 to below 1, received {decay}.")

        def average(averaged: Tensor, current: Tensor, count: Tensor | int) -> Tensor:
            if not averaged.is_floating_point():
                return current
            updates = torch.as_tensor(count, dtype=averaged.dtype)  # stays on its device, so nothing waits for a GPU
            keep = ((1 + updates) / (10 + updates)).clamp(max=decay)
            return averaged.lerp(current, 1 - keep)

        super().__init__(avg_fn=average)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Move the average to the weights' device and dtype: Lightning creates it before the weights get theirs."""
        super().on_train_start(trainer, pl_module)
        if self._average_model is not None:
            self._average_model.to(pl_module.device, next(pl_module.parameters()).dtype)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Discard the average after the fit: from then on checkpoints are measured, with the weights they contain."""
        self._average_model = None

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restore the average and the current weights if a fit continues; otherwise the average was loaded already."""
        if trainer.state.fn == TrainerFn.FITTING:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)

"""Checks the ranges of ProductClassifier's settings before anything is read or built."""

import math
from collections.abc import Sequence
from pathlib import Path

from lightning_module.fine_tuning import Schedule
from models.bad_input import BadInput, quoted
from models.choices import TRAINABLE


def check_settings(
    class_names: Sequence[str],
    image_size: Sequence[int],
    trainable: str,
    learning_rate: float,
    pretrained: bool,
    weights: str | Path | None,
) -> None:
    """Check the settings that every fit has; the arguments are ProductClassifier's.

    Raises:
        BadInput: a setting is out of its range.
    """
    if len(set(class_names)) != len(class_names):
        raise BadInput(f"class_names: expected each name once, received {quoted(class_names)}.")
    if len(image_size) != 2 or min(image_size) < 1:
        raise BadInput(f"image_size: expected (height, width) in pixels, received {list(image_size)}.")
    if trainable not in TRAINABLE:
        raise BadInput(f"--model.trainable: expected 'head' or 'all', received {trainable!r}.")
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise BadInput(f"--model.learning_rate: expected a number above zero, received {learning_rate}.")
    if weights is not None and not pretrained:
        raise BadInput(
            f"--model.weights {weights} together with --model.pretrained false: expected one or the other. "
            "Leave --model.weights out to start untrained, or --model.pretrained out to use the file."
        )


def check_fine_tuning(image_size: Sequence[int], trainable: str, train_size: int | None, schedule: Schedule) -> None:
    """Check the settings for fine-tuning; the arguments are ProductClassifier's.

    Raises:
        BadInput: a setting is out of its range, or would have no effect because only the head is trained.
    """
    if train_size is not None and not 1 <= train_size <= max(image_size):
        raise BadInput(
            f"--model.train_size: expected 1 to {max(image_size)} pixels, the longer side of image_size, received "
            f"{train_size}. Give --model.train_size null to train at the full size."
        )
    if trainable == "head" and schedule.head_epochs:
        raise BadInput(
            "--model.schedule.head_epochs: expected 0 where only the head is trained, received "
            f"{schedule.head_epochs}. Give --model.trainable all as well, or leave it out."
        )

"""The optimiser, Adam as Keras computes it, and its learning rates over the epochs."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from lightning import Trainer
from torch.optim.lr_scheduler import LambdaLR

from lightning_module.fine_tuning import Schedule
from models.bad_input import BadInput
from models.keras_adam import KerasAdam
from models.timm_mobilenetv2 import TimmClassifier


def make_adam(network: TimmClassifier, trainable: str, rate: float, schedule: Schedule) -> KerasAdam:
    """Make Adam for the trainable weights: a group for the head and, if it is trained, one for the backbone.

    Args:
        network: the network whose weights are trained.
        trainable: `head` or `all`.
        rate: the head's learning rate.
        schedule: its `backbone_factor` gives the backbone's learning rate.
    """
    groups: list[dict[str, Any]] = [{"params": list(network.head.parameters()), "lr": rate}]
    if trainable == "all":
        groups.append({"params": list(network.backbone.parameters()), "lr": rate * schedule.backbone_factor})
    fused = all(parameter.is_cuda for group in groups for parameter in group["params"])
    return KerasAdam(groups, rate, fused=fused)


def make_scheduler(adam: KerasAdam, schedule: Schedule, trainer: Trainer) -> LambdaLR:
    """Make the scheduler that sets the learning rates at each step.

    Raises:
        BadInput: the rates should fall until the last epoch, but no last epoch is set.
    """
    total, epochs = trainer.estimated_stepping_batches, trainer.max_epochs
    if schedule.cosine and not (math.isfinite(total) and epochs and epochs > 0):
        raise BadInput(
            "--model.schedule.cosine: expected a last epoch for the learning rate to fall to, received "
            f"--trainer.max_epochs {epochs}. Give a number."
        )
    per_epoch = steps_per_epoch(trainer)
    factors: list[Callable[[int], float]] = [
        partial(schedule.rate, steps_per_epoch=per_epoch, total_steps=total, of_backbone=index > 0)
        for index in range(len(adam.param_groups))
    ]
    return LambdaLR(adam, factors)


def follow_epochs(scheduler: Any, trainer: Trainer) -> None:
    """Set the learning rates to those of the current epoch.

    This matters when a run is resumed with another number of processes: its step count so far does not fit any more.

    Args:
        scheduler: from `make_scheduler`; None or another scheduler, such as the learning rate finder's, is not changed.
        trainer: at the start of an epoch.
    """
    if not isinstance(scheduler, LambdaLR):
        return
    step = trainer.current_epoch * steps_per_epoch(trainer)
    if scheduler.last_epoch != step:
        scheduler.last_epoch = step - 1
        scheduler.step()


def steps_per_epoch(trainer: Trainer) -> int:
    """Return the number of optimiser steps in an epoch."""
    trainer.fit_loop.setup_data()  # without a last epoch, the batches would not have been counted yet
    return math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)

"""`--find_lr` and `--find_batch_size`: Lightning's Tuner, run on a copy of the module.

The Tuner would have to restore what it has trained; with a copy there is nothing to restore. So the search changes
nothing in the fit that follows: weights, the frozen backbone's passes, random numbers and callbacks stay the same.
"""

import copy
import dataclasses
import logging
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.tuner import Tuner
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from tqdm import tqdm

from datamodule.photo_store import memory_size
from lightning_module.classifier import ProductClassifier
from models.bad_input import BadInput

LOWEST_RATE, HIGHEST_RATE, RATES = 1e-6, 1.0, 100
"""Range and number of the learning rates that are tried, one per step."""
WINDOW = 9
"""Number of neighbouring losses that are averaged."""
CLEARLY = 5
"""The mean loss must fall by more than this many of its standard deviations. Among some ten means that only fluctuate,
the lowest is about 3 below."""
FIRST_SIZE, MOST_ON_GPU, MOST_ON_CPU = 8, 1024, 256
"""First and largest batch sizes that are tried; each is twice the one before. A CPU is no faster with more."""
STEPS = 2
"""Training steps per batch size: from the second one on, Adam's moments are in memory, too."""
MEMORY_SHARE = 0.8
"""Share of the memory that a process may use on a CPU. The system would kill it for more; a GPU raises an error."""
OVERRIDES = {
    "logger": False,
    "callbacks": None,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
    "max_epochs": 10_000,  # the Tuner counts steps
    "max_steps": -1,
    "min_epochs": None,
    "min_steps": None,
    "max_time": None,
    "overfit_batches": 0.0,
    "limit_train_batches": None,
    "check_val_every_n_epoch": 10_000,
    "val_check_interval": None,
}


class FoundRate(NamedTuple):
    """The result of the learning rate finder.

    Attributes:
        rates: the learning rates that were tried, in order; fewer than `RATES` if training diverged.
        losses: training loss at each rate; the last may be NaN or infinite.
        smooth: mean of the `WINDOW` losses around each rate; NaN at both ends.
        suggestion: see `suggest_rate`.
    """

    rates: np.ndarray
    losses: np.ndarray
    smooth: np.ndarray
    suggestion: float | None


def find_learning_rate(
    module: ProductClassifier, datamodule: LightningDataModule, settings: Mapping[str, Any]
) -> FoundRate:
    """Train a copy with a learning rate that grows from step to step (Smith 2017, "Cyclical Learning Rates").

    Head and backbone are trained at the same rate. If the schedule begins with epochs that train only the head, these
    are left out: the best rate depends on what is trained, and the head's own epochs are few.

    Args:
        module: with the weights that the fit will start from; not changed.
        datamodule: with the batch size that the fit will use.
        settings: the trainer's arguments, by name.
    """
    losses: list[float] = []
    with _tuned_copy(module, settings, "--find_lr") as (trial, trainer):
        step = trial.training_step

        def recorded(batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            loss = step(batch, batch_idx)
            losses.append(float(loss.detach()))
            return loss

        trial.training_step = recorded  # type: ignore[method-assign]
        found = Tuner(trainer).lr_find(
            trial, datamodule=datamodule, min_lr=LOWEST_RATE, max_lr=HIGHEST_RATE, num_training=RATES,
            update_attr=False,
        )  # fmt: skip
    assert found is not None
    rates = np.asarray(found.results["lr"])
    # several losses per rate if gradients are accumulated
    each = np.asarray(losses[: len(rates) * (len(losses) // len(rates))]).reshape(len(rates), -1).mean(axis=1)
    smooth = np.full(len(rates), np.nan)
    if len(rates) >= WINDOW:
        side = WINDOW // 2
        smooth[side : len(rates) - side] = np.convolve(each, np.ones(WINDOW) / WINDOW, "valid")
    return FoundRate(rates, each, smooth, suggest_rate(rates, each, smooth))


def suggest_rate(rates: np.ndarray, losses: np.ndarray, smooth: np.ndarray) -> float | None:
    """Return the rate at which the loss falls most steeply, rounded to two digits.

    The slope is taken over the logarithm of the rate, because the rates grow by a constant factor. Lightning's own
    suggestion takes it over the rate itself. The first rates are so close together that noise is always steepest there.

    Args:
        rates: growing by a constant factor, shape (N,).
        losses: shape (N,).
        smooth: shape (N,), NaN where there is no mean.

    Returns:
        The rate; None if the loss does not fall by more than chance.
    """
    known = np.flatnonzero(np.isfinite(smooth))
    if len(known) < WINDOW:
        return None
    lowest = known[smooth[known].argmin()]
    falling = known[known <= lowest]
    # the median, because the large losses where training diverges do not affect it
    chance = 1.48 * np.median(np.abs(losses[known] - smooth[known])) / np.sqrt(WINDOW)
    if smooth[known[0]] - smooth[lowest] <= CLEARLY * chance or len(falling) < 3:
        return None
    slope = np.gradient(smooth[falling], np.log(rates[falling]))
    return float(f"{rates[falling[slope.argmin()]]:.1e}")


def find_batch_size(module: ProductClassifier, datamodule: Any, settings: Mapping[str, Any]) -> int:
    """Find the largest batch size, a power of two, with which training and validation steps fit into memory.

    If the whole network will be trained, the whole network is tried, even if the first epochs train only the head and
    need less memory.

    Args:
        module: not changed.
        datamodule: its `batch_size` is restored afterwards.
        settings: the trainer's arguments, by name.

    Returns:
        At most `MOST_ON_GPU` or `MOST_ON_CPU`. If there are fewer photos than the size found, their number.

    Raises:
        BadInput: the memory is too small for any batch size.
    """
    before = datamodule.batch_size
    succeeded: list[int] = []
    with _tuned_copy(module, settings, "--find_batch_size") as (trial, trainer):
        on_cpu = trainer.strategy.root_device.type == "cpu"
        most = MOST_ON_CPU if on_cpu else MOST_ON_GPU
        _watch(trial, succeeded, MemoryGuard() if on_cpu and sys.platform != "win32" else None)
        try:
            # twice the limit, because the Tuner returns its limit without trying it
            found = Tuner(trainer).scale_batch_size(
                trial, datamodule=datamodule, init_val=FIRST_SIZE, steps_per_trial=STEPS, max_val=2 * most
            )
        except ValueError as error:
            if succeeded:
                raise
            raise BadInput(
                "--find_batch_size: expected memory for a step of at least one photo; there is not. Give a smaller "
                "--data.image_size or --model.backbone."
            ) from error
        finally:
            datamodule.batch_size = before
    assert found is not None
    return min(found, most, len(datamodule.train_files))


class MemoryGuard:
    """Predicts from smaller steps whether a step will fit into a CPU's memory."""

    def __init__(self) -> None:
        self.base = self.peak = _peak_memory()
        self.photos = 0

    def check(self, photos: int) -> None:
        """Raise the error that torch raises when it is out of memory, before the system kills the process.

        Args:
            photos: number of photos in the next step.
        """
        if not self.photos:
            return
        expected = self.base + (self.peak - self.base) * photos / self.photos
        if expected > MEMORY_SHARE * memory_size():
            # the words by which the Tuner recognises the error
            raise RuntimeError(f"DefaultCPUAllocator: can't allocate memory: {expected:.2g} bytes for {photos} photos")

    def note(self, photos: int) -> None:
        """Record the memory that a step took."""
        self.peak, self.photos = _peak_memory(), photos


def _peak_memory() -> int:
    """Return the peak memory of this process, in bytes."""
    import resource  # not available on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _watch(trial: ProductClassifier, succeeded: list[int], guard: MemoryGuard | None) -> None:
    """Make each training step of a copy also run a validation step on its batch."""
    step = trial.training_step

    def watched(batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        photos = len(batch[1])
        if guard is not None:
            guard.check(photos)
        loss = step(batch, batch_idx)
        trial.eval()
        with torch.no_grad():
            trial.validation_step(batch, batch_idx)
        trial.train()
        if guard is not None:
            guard.note(photos)
        succeeded.append(photos)
        return loss

    trial.training_step = watched  # type: ignore[method-assign]


@contextmanager
def _tuned_copy(
    module: ProductClassifier, settings: Mapping[str, Any], flag: str
) -> Iterator[tuple[ProductClassifier, Trainer]]:
    """Yield a copy of the module that trains everything from the start, and a trainer that leaves no files behind.

    Raises:
        BadInput: the trainer would use several processes.
    """
    trial = copy.deepcopy(module)
    # Most of a fit comes after the head's own epochs. It takes more memory and needs another learning rate.
    trial.schedule = dataclasses.replace(trial.schedule, head_epochs=0)
    trial._frozen_backbone.compile = "never"  # compiling would take longer than it saves
    with tempfile.TemporaryDirectory(prefix="shelftwin-") as folder, isolate_rng(), _quietly():
        trainer = Trainer(**{**settings, **OVERRIDES, "default_root_dir": Path(folder)})
        if trainer.world_size > 1:
            raise BadInput(
                f"{flag}: expected a single process, received {trainer.world_size}. Look for it on one device first "
                "(--trainer.devices 1), then give what was found."
            )
        yield trial, trainer


@contextmanager
def _quietly() -> Iterator[None]:
    """Let Lightning log a trial's batch sizes, but not its stopping, saving and loading."""
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")

    def matters(record: logging.LogRecord) -> bool:
        return record.getMessage().startswith("Batch size")

    logger.addFilter(matters)
    try:
        # show the Tuner's progress bar only in a terminal
        with mock.patch("lightning.pytorch.tuner.lr_finder.tqdm", partial(tqdm, disable=None)):
            yield
    finally:
        logger.removeFilter(matters)

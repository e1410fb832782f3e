"""`--find_lr` and `--find_batch_size`: Lightning's Tuner, on a copy of what is to be trained.

The Tuner restores what it has trained; a copy has nothing to restore. So weights, the frozen backbone's passes, the
random numbers and the callbacks of the fit to come are as if nothing had been looked for.
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
"""Learning rates that are tried, one a step."""
WINDOW = 9
"""Neighbouring losses that are averaged."""
CLEARLY = 5
"""Standard deviations of such a mean by which the loss must fall: the lowest of some ten that only shake is 3 below."""
FIRST_SIZE, MOST_ON_GPU, MOST_ON_CPU = 8, 1024, 256
"""Batch sizes that are tried, doubling; a CPU is no faster with more."""
STEPS = 2
"""Of each size: Adam has its moments from the second on."""
MEMORY_SHARE = 0.8
"""Of the memory that a CPU's process may fill; the system would kill it for more, where a GPU raises an error."""
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
    """What the learning rate finder found.

    Attributes:
        rates: those tried, in order; fewer than `RATES` where training diverged.
        losses: of the training step at each; the last may be no numbers.
        smooth: mean of `WINDOW` losses around each; NaN at both ends.
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

    All parts learn at that rate, in each step. Where a schedule begins with the head alone, its epochs are left out:
    what bears a rate differs with what learns, and few epochs are the head's.

    Args:
        module: with the weights that the fit will start from; is not changed.
        datamodule: with the batch size that the fit will have.
        settings: of the trainer, by the names of its arguments.
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
    # several losses a rate where gradients are accumulated
    each = np.asarray(losses[: len(rates) * (len(losses) // len(rates))]).reshape(len(rates), -1).mean(axis=1)
    smooth = np.full(len(rates), np.nan)
    if len(rates) >= WINDOW:
        side = WINDOW // 2
        smooth[side : len(rates) - side] = np.convolve(each, np.ones(WINDOW) / WINDOW, "valid")
    return FoundRate(rates, each, smooth, suggest_rate(rates, each, smooth))


def suggest_rate(rates: np.ndarray, losses: np.ndarray, smooth: np.ndarray) -> float | None:
    """The rate at which the loss falls most steeply, with two digits.

    Steepness is against the rate's logarithm, as the rates were tried. Lightning's own suggestion takes it against the
    rate itself, which is so small at the beginning that any noise there is the steepest.

    Args:
        rates: growing by the same factor, shape (N,).
        losses: shape (N,).
        smooth: shape (N,), NaN where there is no mean.

    Returns:
        None where the loss does not fall by more than chance.
    """
    known = np.flatnonzero(np.isfinite(smooth))
    if len(known) < WINDOW:
        return None
    lowest = known[smooth[known].argmin()]
    falling = known[known <= lowest]
    # the median, because it does not mind where training diverges
    chance = 1.48 * np.median(np.abs(losses[known] - smooth[known])) / np.sqrt(WINDOW)
    if smooth[known[0]] - smooth[lowest] <= CLEARLY * chance or len(falling) < 3:
        return None
    slope = np.gradient(smooth[falling], np.log(rates[falling]))
    return float(f"{rates[falling[slope.argmin()]]:.1e}")


def find_batch_size(module: ProductClassifier, datamodule: Any, settings: Mapping[str, Any]) -> int:
    """Find the largest power of two photos whose steps fit into memory, training's and validation's.

    Those of the whole network, where that is trained: also after epochs of the head alone, which need less.

    Args:
        module: is not changed.
        datamodule: has `batch_size`, which is as before afterwards.
        settings: of the trainer, by the names of its arguments.

    Returns:
        At most `MOST_ON_GPU` or `MOST_ON_CPU`, and no power of two where there are fewer photos than that.

    Raises:
        BadInput: the memory is too small for any.
    """
    before = datamodule.batch_size
    succeeded: list[int] = []
    with _tuned_copy(module, settings, "--find_batch_size") as (trial, trainer):
        on_cpu = trainer.strategy.root_device.type == "cpu"
        most = MOST_ON_CPU if on_cpu else MOST_ON_GPU
        _watch(trial, succeeded, MemoryGuard() if on_cpu and sys.platform != "win32" else None)
        try:
            # twice the limit, because what reaches the Tuner's limit is returned without a trial
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
    """Foresees that a step will not fit into a CPU's memory, from what smaller ones took."""

    def __init__(self) -> None:
        self.base = self.peak = _peak_memory()
        self.photos = 0

    def check(self, photos: int) -> None:
        """Raise what torch raises when it is out of memory, before the system kills the process.

        Args:
            photos: of the step to come.
        """
        if not self.photos:
            return
        expected = self.base + (self.peak - self.base) * photos / self.photos
        if expected > MEMORY_SHARE * memory_size():
            # the words by which the Tuner knows it
            raise RuntimeError(f"DefaultCPUAllocator: can't allocate memory: {expected:.2g} bytes for {photos} photos")

    def note(self, photos: int) -> None:
        """Remember what a step took."""
        self.peak, self.photos = _peak_memory(), photos


def _peak_memory() -> int:
    """Largest number of bytes that this process has had in memory."""
    import resource  # Windows has none

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _watch(trial: ProductClassifier, succeeded: list[int], guard: MemoryGuard | None) -> None:
    """Make each training step of a copy measure its batch, too, as a validation step would."""
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
    """A copy of the module that trains all it will ever train, and a trainer for it that leaves nothing behind.

    Raises:
        BadInput: several processes are to train.
    """
    trial = copy.deepcopy(module)
    # Nearly all of a fit is what follows the head's own epochs: it takes more memory, and bears another rate.
    trial.schedule = dataclasses.replace(trial.schedule, head_epochs=0)
    trial._frozen_backbone.compile = "never"  # half a minute would not be earned back
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
    """Let Lightning say of a trial how large a batch was, and nothing of stopping, saving and loading."""
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")

    def matters(record: logging.LogRecord) -> bool:
        return record.getMessage().startswith("Batch size")

    logger.addFilter(matters)
    try:
        # the Tuner's bar, for a person only
        with mock.patch("lightning.pytorch.tuner.lr_finder.tqdm", partial(tqdm, disable=None)):
            yield
    finally:
        logger.removeFilter(matters)

"""`last.ckpt`, from which a run continues as if it had never been interrupted."""

import math
import random
import time
from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_sum

from datamodule.photo_order import mix_seed
from lightning_module.run.run_folder import BEST_CHECKPOINT, run_folder_of
from lightning_module.run.stop_signals import REQUEUE, StopSignals, leave, requeue_job
from models.bad_input import BadInput

KEY = "shelftwin_resume"
"""Key in a checkpoint for what Lightning does not save."""
BEFORE_VALIDATION = 20.0
"""If the last checkpoint is at least this old, in seconds, one is written after an epoch's last step but one. The
validation at the end of the epoch may be long, and a run that is stopped in it continues from there."""
STEPS_UNSEEN = 32
"""On a GPU, reading a loss waits until it is computed, so the losses of this many steps are checked together."""


def continues(trainer: L.Trainer) -> bool:
    """Return whether a trainer continues the run in its folder, and does not begin a new one."""
    given = trainer.ckpt_path
    return given is not None and Path(given).resolve() == run_folder_of(trainer).last_checkpoint.resolve()


class BatchSeed(Callback):
    """Seeds all random generators before every training step, so that a step does not depend on earlier random numbers.

    Everything random in a step (dropout, mixup, erasing) comes from torch's, NumPy's and Python's generators. They are
    seeded by (seed, epoch, step, process). So a resumed run draws the same numbers, even on another device. The
    alternative would be to save the states of every generator, device and process at the same moment.

    It must come before other callbacks, which may draw random numbers in the same step.
    """

    def __init__(self) -> None:
        self._seed: int | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the seed; without `seed_everything` it would be different in each process."""
        return {"seed": self._seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the seed that the run began with."""
        self._seed = state_dict["seed"]

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the seed of `seed_everything`, or a random one without it; a resumed run keeps its own."""
        if self._seed is None or not continues(trainer):
            self._seed = trainer.strategy.broadcast(torch.initial_seed() % 2**63)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed all generators."""
        seed = mix_seed(cast(int, self._seed), trainer.current_epoch, batch_idx, trainer.global_rank)
        seed_generators(seed)


def seed_generators(seed: int) -> None:
    """Seed torch's, NumPy's and Python's generators."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


class LastCheckpoint(Checkpoint):
    """Keeps `last.ckpt` in the run's folder, and ends the program cleanly when the run cannot or must not continue.

    It is written at the end of every epoch, at an interval of minutes within an epoch, before the last step of an
    epoch, which validation follows, and when the process is asked to stop (`StopSignals`). Each checkpoint is written
    completely or not at all.

    If the loss is NaN or infinite, the run stops, and nothing with that loss is written.

    It is a Checkpoint, so that Lightning calls it after all other callbacks and the file contains what they have done
    in the step or epoch.

    Args:
        minutes: minutes between two checkpoints within an epoch, 0 or more; 0 writes one after every step.

    Raises:
        BadInput: less than 0 minutes.
    """

    def __init__(self, minutes: float = 5.0) -> None:
        if not minutes >= 0:
            raise BadInput(f"--last_checkpoint.minutes: expected 0 or more, received {minutes}.")
        self.minutes = minutes
        self.signals = StopSignals()
        self._losses: list[Tensor] = []
        self._saved_at = 0.0
        self._place = ""
        self._figures: dict[str, dict[str, Tensor]] = {}
        self._what_learns: dict[str, list[str]] = {}

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget an earlier fit."""
        self._losses, self._place = [], ""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Hold signals back until a step is done; in the middle of an epoch, restore what was being trained."""
        self._saved_at = time.monotonic()
        launcher = trainer.strategy.launcher
        if launcher is not None and hasattr(launcher, "kill"):
            self.signals.forward = launcher.kill
        self.signals.take()
        self.signals.hold()
        if not trainer.fit_loop.restarted_mid_epoch:
            self._figures = {}
        else:
            # Lightning restores the loader's state when it creates the loader. If a learning rate schedule has asked
            # for the number of steps, that is before the state is known. No batch has been taken from it yet.
            trainer.fit_loop._load_combined_loader_states()
            _restore_what_learns(pl_module, self._what_learns)
        self._what_learns = {}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add the metrics from before an interruption, check the loss, and write a checkpoint if one is due.

        Raises:
            BadInput: the loss is NaN or infinite, or the checkpoint cannot be written.
            Preempted: the process was asked to stop.
        """
        if self._figures:
            _add_figures(trainer, self._figures)
            self._figures = {}
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor):
            self._losses.append(loss.detach())
        validation_follows = _validation_follows(trainer, batch_idx)
        can_save = not validation_follows and not trainer.fit_loop._should_accumulate()
        age = time.monotonic() - self._saved_at
        last_but_one = batch_idx + 2 == trainer.num_training_batches
        due = can_save and (age >= 60 * self.minutes or (last_but_one and age >= BEFORE_VALIDATION))
        number = self.signals.received
        looks = due or number or validation_follows or len(self._losses) >= STEPS_UNSEEN
        bad = -1
        if looks or pl_module.device.type == "cpu" or trainer.world_size > 1:
            weights_too = bool(due or number or validation_follows)
            bad = self._first_bad_loss(trainer, pl_module, batch_idx, weights_too)
        number, bad, due = self._agree(trainer, number, bad, due)
        if bad >= 0:
            self._refuse(trainer, bad)
        if due or (number and can_save):
            self._save(trainer, f"epoch {trainer.current_epoch + 1}, step {batch_idx + 1}")
        if number:
            self._leave(trainer, number)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Install the signal handlers again, because Lightning has installed its own since."""
        self.signals.take()

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Install the signal handlers again, as for validation."""
        self.signals.take()

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stop during a fit's validation, if asked to; a resumed run does the validation again.

        Raises:
            Preempted: the process was asked to stop.
        """
        if trainer.state.fn == TrainerFn.FITTING:
            number, _, _ = self._agree(trainer, self.signals.received, -1, False)
            if number:
                self._leave(trainer, number)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write a checkpoint, after early stopping, the journal and the best checkpoint have done their work.

        Raises:
            BadInput: it cannot be written.
            Preempted: the process was asked to stop.
        """
        if getattr(trainer, "fast_dev_run", False):
            return
        self._save(trainer, f"the end of epoch {trainer.current_epoch + 1}")
        number, _, _ = self._agree(trainer, self.signals.received, -1, False)
        if number:
            self._leave(trainer, number)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop at once again when a signal comes, or if one has come since the last step."""
        self.signals.release()
        if self.signals.received:
            self._leave(trainer, self.signals.received)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Stop at once again when a signal comes."""
        self.signals.release()

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save what Lightning does not: whether training is over, what is trained, metrics of a partial epoch."""
        loop = trainer.fit_loop.epoch_loop
        within = trainer.state.fn == TrainerFn.FITTING and not loop.batch_progress.is_last_batch
        checkpoint[KEY] = {
            "should_stop": bool(trainer.should_stop),
            "what_learns": {
                "parameters": [name for name, each in pl_module.named_parameters() if each.requires_grad],
                "modules": [name for name, each in pl_module.named_modules() if each.training],
            },
            "figures": _take_figures(trainer) if within else {},
        }

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restore that if a fit continues, and look for the best checkpoint where the run's folder is now."""
        kept = checkpoint.get(KEY)
        if kept is None or trainer.state.fn != TrainerFn.FITTING:
            return
        self._figures = kept["figures"] if trainer.is_global_zero else {}
        self._what_learns = kept["what_learns"]
        if continues(trainer):
            trainer.should_stop = kept["should_stop"]
            _move_best_checkpoint(trainer, checkpoint)

    def _save(self, trainer: L.Trainer, place: str) -> None:
        if getattr(trainer, "fast_dev_run", False):
            return
        trainer.save_checkpoint(run_folder_of(trainer).last_checkpoint, weights_only=False)
        self._saved_at, self._place = time.monotonic(), place

    def _leave(self, trainer: L.Trainer, number: int) -> None:
        """End the program in all processes together."""
        if number == REQUEUE and trainer.is_global_zero:
            requeue_job()
        last = run_folder_of(trainer).last_checkpoint
        leave(number, f"{last} is of {self._place}." if self._place else "nothing new was trained.")

    def _first_bad_loss(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch_idx: int, weights_too: bool
    ) -> int:
        """Return the first step since the last check whose loss is NaN or infinite; -1 for none."""
        losses, self._losses = self._losses, []
        # In float16 a loss out of range is normal: the gradient scaler skips such a step.
        if losses and getattr(trainer.precision_plugin, "scaler", None) is None:
            finite = torch.stack(losses).isfinite().tolist()
            if not all(finite):
                return batch_idx + 1 - len(losses) + finite.index(False)
        # A finite loss may have NaN or infinite gradients, and then the weights do.
        if weights_too and not torch.stack([each.isfinite().all() for each in pl_module.parameters()]).all():
            return batch_idx
        return -1

    @staticmethod
    def _agree(trainer: L.Trainer, number: int, bad: int, due: bool) -> tuple[int, int, bool]:
        """Share a signal or bad loss with all processes; the first one's clock decides whether a checkpoint is due."""
        if trainer.world_size == 1:
            return number, bad, due
        known = torch.tensor([number, bad, int(due and trainer.is_global_zero)], device=trainer.strategy.root_device)
        agreed = trainer.strategy.reduce(known, reduce_op="max")
        number, bad, due = cast(Tensor, agreed).tolist()
        return number, bad, bool(due)

    def _refuse(self, trainer: L.Trainer, step: int) -> None:
        last = run_folder_of(trainer).last_checkpoint
        kept = f"{last} is of {self._place} and sound" if self._place else "Nothing was written"
        if not self._place and continues(trainer):
            kept = f"{last} is as it was"
        raise BadInput(
            f"expected a finite loss, received one that is none in epoch {trainer.current_epoch + 1}, step {step + 1} "
            f"of {trainer.num_training_batches}. {kept}; with --resume the same would happen again. "
            "Lower --model.learning_rate, or look at the photos and labels."
        )


def _restore_what_learns(module: L.LightningModule, what_learns: dict[str, list[str]]) -> None:
    """Restore what was trainable, and the layers' modes, in the middle of an epoch.

    Freezing, unfreezing and changes of BatchNorm's mode happen when an epoch begins, and this epoch has begun already.
    """
    if what_learns:
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name in what_learns["parameters"])
        for name, each in module.named_modules():
            each.training = name in what_learns["modules"]


def _validation_follows(trainer: L.Trainer, batch_idx: int) -> bool:
    """Return whether a step is an epoch's last, or is followed by a validation within the epoch."""
    every = trainer.val_check_batch
    return trainer.fit_loop.epoch_loop.batch_progress.is_last_batch or (
        every is not None and math.isfinite(every) and (batch_idx + 1) % every == 0
    )


def _figures_of(trainer: L.Trainer) -> dict[str, Metric]:
    """Return what is logged over a training epoch: Lightning's own accumulators, or the metrics behind them."""
    return {
        key: result if result.is_tensor else result.value
        for key, result in trainer.fit_loop.epoch_loop._results.items()
        if result.meta.on_epoch
    }


def _sums(metric: Metric) -> dict[str, Tensor]:
    """Return the parts of a metric's state that are sums; for the metrics used here, these are all parts."""
    return {
        name: value
        for name, value in metric.metric_state.items()
        if isinstance(value, Tensor) and metric._reductions[name] in (torch.sum, dim_zero_sum)
    }


def _take_figures(trainer: L.Trainer) -> dict[str, dict[str, Tensor]]:
    """Return the metrics' sums over the epoch so far, over all processes."""
    return {
        key: {
            name: cast(Tensor, trainer.strategy.reduce(value.detach().clone(), reduce_op="sum"))
            for name, value in _sums(metric).items()
        }
        for key, metric in _figures_of(trainer).items()
    }


def _add_figures(trainer: L.Trainer, figures: dict[str, dict[str, Tensor]]) -> None:
    """Add the sums from before an interruption to those of the first step after it."""
    done: set[int] = set()  # metrics of one collection may share their state
    for key, metric in _figures_of(trainer).items():
        for name, value in _sums(metric).items():
            if key in figures and name in figures[key] and id(value) not in done:
                value += figures[key][name].to(value.device)  # in place, for those that share it
                done.add(id(value))
        metric._computed = None


def _move_best_checkpoint(trainer: L.Trainer, checkpoint: dict[str, Any]) -> None:
    """Update the best checkpoint's path in its callback's state, in case the folder has been moved since."""
    folder = str(trainer.default_root_dir)
    best = str(Path(folder, BEST_CHECKPOINT))
    for state in checkpoint.get("callbacks", {}).values():
        if isinstance(state, dict) and Path(state.get("best_model_path") or "").name == BEST_CHECKPOINT:
            scores = {best: state["best_model_score"]}
            state |= {"best_model_path": best, "kth_best_model_path": best, "best_k_models": scores}
        if isinstance(state, dict) and "best_model_path" in state:
            state["dirpath"] = folder

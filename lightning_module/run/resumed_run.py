"""What a fit continues from: with `--resume` the run in its folder, if any; with `--ckpt_path` a checkpoint."""

import csv
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_only

from export.checkpoint import read_hyper_parameters
from lightning_module.fine_tuning import Schedule
from lightning_module.run.last_checkpoint import KEY
from lightning_module.run.run_folder import RunFolder, read_environment
from models.bad_input import BadInput

FREE_TO_CHANGE = (
    "ckpt_path", "data.demo", "data.kaggle", "data.listing", "data.num_workers", "data.on_copies",
    "data.file_column", "data.label_column", "data.photos", "data.predict_root", "data.root", "data.set_column",
    "data.store_dir", "data.store_ram_share", "data.table", "data.test_root", "data.unlabelled", "data.val_root",
    "hand_over", "journal", "last_checkpoint", "model.classes", "model.compile", "model.weights", "num_threads",
    "trainer.accelerator", "trainer.default_root_dir", "trainer.devices", "trainer.enable_checkpointing",
    "trainer.enable_model_summary", "trainer.enable_progress_bar", "trainer.log_every_n_steps", "trainer.logger",
    "trainer.max_epochs", "trainer.max_time", "trainer.num_nodes", "trainer.profiler", "trainer.strategy",
)  # fmt: skip
"""Settings that may change when a run is resumed, including all settings below them. The photos' folders are among them
because only their content must stay the same, which `check_photos` checks."""


def last_checkpoint(run: RunFolder) -> Path | None:
    """Return the checkpoint that the run in a folder continues from; None if there is none.

    Raises:
        BadInput: the checkpoint cannot be read.
    """
    if not run.last_checkpoint.is_file():
        return None
    read_hyper_parameters(run.last_checkpoint)
    return run.last_checkpoint


class Progress(NamedTuple):
    """How far a run had come when a checkpoint was written.

    Attributes:
        epochs: number of finished epochs.
        steps: number of steps.
        stopped: whether training had been stopped, for example by early stopping.
    """

    epochs: int
    steps: int
    stopped: bool


def progress_of(checkpoint: Path) -> Progress:
    """Return how far the run of a checkpoint had come."""
    content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    epochs = content["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    return Progress(epochs, content["global_step"], content.get(KEY, {}).get("should_stop", False))


OF_OPTIMIZER = ("trainable", "learning_rate", "schedule")
"""Settings of the model that are already part of a saved optimiser's state."""


def check_optimizer_settings(checkpoint: Path, saved: Mapping[str, Any], model: Mapping[str, Any]) -> None:
    """Refuse settings that differ from those of the checkpoint's optimiser, because they would have no effect.

    Args:
        checkpoint: the checkpoint to continue from; an imported one has no optimiser state yet.
        saved: the checkpoint's settings.
        model: the fit's settings of the model.

    Raises:
        BadInput: the settings differ.
    """
    if not torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True).get("optimizer_states"):
        return
    for name in OF_OPTIMIZER:
        then, now = saved.get(name), model[name]
        if name == "schedule":
            then, now = (asdict(Schedule(**dict(each or {}))) for each in (then, now))
        if then is not None and then != now:
            raise BadInput(
                f"--model.{name}: expected {then}, with which the optimiser in {checkpoint} goes on, received {now}. "
                f"Give the same; or begin anew from its weights: --model.weights {checkpoint} in place of --ckpt_path."
            )


def differing(group: str, saved: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """Return the options whose value in a checkpoint differs from the given one, with the checkpoint's value."""
    return [
        f"--{group}.{name} {value}"
        for name, value in saved.items()
        if given[name] is not None and _alike(given[name]) != _alike(value) and value is not None
    ]


def _alike(value: Any) -> Any:
    """Convert a list of equal numbers to that number, which is another way to write the same setting."""
    if isinstance(value, list | tuple):
        return value[0] if value and len(set(value)) == 1 else list(value)
    return value


def changed_settings(run: RunFolder, settings: dict[str, Any], defaults: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return by name the settings that have changed since the run began, as (then, now).

    A setting that the run's version did not have yet counts as its default, which does what that version did.

    Args:
        run: the run's folder.
        settings: the settings as `KeepConfig` writes them.
        defaults: likewise, of a fit that is given none.
    """
    try:
        before = yaml.safe_load(run.config.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}  # the run was killed before the file was written
    if not isinstance(before, dict):
        return {}
    then, today = _flat(before), _flat(settings)
    then = {name: value for name, value in _flat(defaults).items() if name in today and _is_new(name, before)} | then
    return {
        name: (then.get(name), today.get(name)) for name in sorted({*then, *today}) if then.get(name) != today.get(name)
    }


def check_settings(run: RunFolder, changed: dict[str, tuple[Any, Any]]) -> None:
    """Refuse to resume a run if settings have changed that must not change.

    Raises:
        BadInput: there are such settings.
    """
    others = [name for name in changed if not _is_free(name)]
    if others:
        listed = ", ".join(f"--{name} {changed[name][0]} (now {changed[name][1]})" for name in others)
        raise BadInput(
            f"--resume: expected the settings that the run in {run.path} began with, {listed}. Give the same command, "
            "or begin anew without --resume."
        )


def check_photos(run: RunFolder, sets: dict[str, dict[str, Any]]) -> None:
    """Refuse to resume a run with other photos than it began with.

    Raises:
        BadInput: the photos have changed.
    """
    before = read_environment(run).get("data", {})
    for name in ("train", "val"):
        then, today = before.get(name), sets.get(name)
        if then is not None and today is not None and then != today:
            raise BadInput(
                f"--resume: expected the {name} photos that the run in {run.path} began with, {then['photos']} with "
                f"digest {then['sha256'][:12]}; received {today['photos']} with {today['sha256'][:12]}. Put them back, "
                "or begin anew without --resume."
            )


def finished(run: RunFolder) -> dict[str, Any] | None:
    """Return how the run in a folder has finished; None if it has not."""
    outcome = read_environment(run).get("finished")
    return outcome if isinstance(outcome, dict) else None


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _is_new(name: str, before: dict[str, Any]) -> bool:
    """Whether settings that were written down have none of that name, and none above it but groups of settings."""
    *groups, last = name.split(".")
    for group in groups:
        if group not in before:
            return True
        before = before[group]
        if not isinstance(before, dict):
            return False  # such as null in place of a group
    return last not in before


def _is_free(name: str) -> bool:
    return any(name == free or name.startswith(f"{free}.") for free in FREE_TO_CHANGE)


class ContinuedCSVLogger(CSVLogger):
    """A CSVLogger that keeps the rows from before an interruption; Lightning's starts a new file.

    Args:
        save_dir: as in CSVLogger.
        name: as in CSVLogger.
        version: as in CSVLogger.
        steps: number of steps that the run had made. Rows from this step on belong to an earlier run or to steps that
            are done again, so they are dropped.
    """

    def __init__(self, save_dir: Path, name: str, version: str, steps: int = 0) -> None:
        super().__init__(save_dir, name, version)
        file = Path(self.log_dir, "metrics.csv")
        self._earlier: list[dict[str, Any]] = []
        if file.is_file():
            with file.open(newline="", encoding="utf-8") as rows:
                for row in csv.DictReader(rows):
                    # killing the process may have left half a row at the end
                    if (row.get("step") or "").isdigit() and int(row["step"]) < steps:
                        self._earlier.append({key: value for key, value in row.items() if key and value})

    @rank_zero_only
    def save(self) -> None:
        """Write the rows, the earlier ones first."""
        self.experiment.metrics[:0], self._earlier = self._earlier, []
        super().save()

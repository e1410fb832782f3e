"""What happens around training: the best checkpoint, the journal of figures, a line per epoch, the hand-over."""

import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lightning_module.classifier import ProductClassifier
from lightning_module.evaluation.figures import finite, per_class
from lightning_module.run.last_checkpoint import continues
from lightning_module.run.run_folder import BEST_CHECKPOINT, run_folder_of, write_json
from models.bad_input import BadInput, some_lines_of, some_of

if TYPE_CHECKING:
    from export.proof.report import Report

METRICS_SCHEMA = 1
LAST_EPOCH = "epoch"
"""What `BestCheckpoint` watches to keep the last epoch."""


def best_checkpoint_of(trainer: L.Trainer) -> Path:
    """Return the checkpoint with the best monitored figure.

    Raises:
        BadInput: there is none, because the figure was never a finite number.
    """
    callback = trainer.checkpoint_callback
    path, score = getattr(callback, "best_model_path", ""), getattr(callback, "best_model_score", None)
    monitor = getattr(callback, "monitor", None)
    if score is None and monitor is not None and monitor not in trainer.callback_metrics:
        raise BadInput(
            f"There is no best checkpoint: no epoch was measured for {monitor}. Train for at least as many epochs as "
            "--trainer.check_val_every_n_epoch, with some batches each."
        )
    if not path or score is None or finite(score) is None:
        raise BadInput(
            f"There is no best checkpoint: no epoch ended with a finite {getattr(callback, 'monitor', 'figure')}. "
            "Lower --model.learning_rate, or look at the photos and labels."
        )
    return Path(path)


class BestCheckpoint(ModelCheckpoint):
    """Keeps the best epoch as `best.ckpt` in the run's folder, whatever the loggers.

    Args:
        monitor: the figure that decides. `epoch` keeps the last that was measured, whatever it did: right where the
            learning rates fall to zero by a plan, and no photos choose, so that their figures flatter nothing.
        mode: whether the smallest or the largest is best; `max` with `epoch`.
    """

    def __init__(self, monitor: str = "val/loss", mode: Literal["min", "max"] = "min") -> None:
        super().__init__(
            filename=Path(BEST_CHECKPOINT).stem,
            monitor=monitor,
            mode=mode,
            save_top_k=1,
            auto_insert_metric_name=False,
            enable_version_counter=False,  # best.ckpt is the best of this run, never best-v1.ckpt
        )

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Choose the run's folder, which the command line knows only now."""
        self.dirpath = str(trainer.default_root_dir)
        super().setup(trainer, pl_module, stage)

    def check_monitor_top_k(self, trainer: L.Trainer, current: Tensor | None = None) -> bool:
        """As Lightning's; of several measurements within the last epoch, the last."""
        return self.monitor == LAST_EPOCH or super().check_monitor_top_k(trainer, current)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As Lightning's, which leaves one figure out."""
        super().load_state_dict(state_dict)
        self.current_score = state_dict.get("current_score")


class MetricsJournal(Callback):
    """Keeps `metrics.json` in the run's folder: a row per epoch, and the evaluation of the best checkpoint.

    Rows have the logged figures by their names (`train/loss`, `val/accuracy`, ...), `seconds` of the whole epoch,
    `train_seconds` of its training part and `images_per_second` in that. With `augment_validation`, `val/` are the
    augmented validation photos and `val_clean/` the same as they are; without, `val/` are as they are. `final` and
    `test` are always unaugmented.

    Also prints one line per epoch, so that a log file tells what a progress bar cannot.
    """

    def __init__(self) -> None:
        self.epochs: list[dict[str, Any]] = []
        self._earlier_epochs: list[dict[str, Any]] = []
        self.evaluations: dict[str, dict[str, Any]] = {}
        self._epoch_start = self._train_end = 0.0
        self._images, self._validated = 0, False
        self._begun = {"seconds": 0.0, "train_seconds": 0.0, "images": 0}

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin anew, after the epochs that a resumed checkpoint brought along; say what is trained on what."""
        self.epochs, self._earlier_epochs = self._earlier_epochs, []
        self.evaluations = {}
        module, datamodule = cast(ProductClassifier, pl_module), getattr(trainer, "datamodule", None)
        weights = [parameter.numel() for parameter in module.parameters()]
        trainable = [parameter.numel() for parameter in module.parameters() if parameter.requires_grad]
        trainer.print(
            f"{module.hparams['backbone']}: {sum(weights):,} weights, {sum(trainable):,} of them trained, "
            f"{len(module.class_names)} classes, {' x '.join(map(str, module.hparams['image_size']))} pixels"
        )
        if datamodule is not None and hasattr(datamodule, "train_labels"):
            more = f", {len(datamodule.unlabelled_files)} without a label" if datamodule.unlabelled is not None else ""
            trainer.print(
                f"{len(datamodule.train_files)} training and {len(datamodule.val_files)} validation photos{more}"
            )
            trained, held_out = (Counter(labels) for labels in (datamodule.train_labels, datamodule.val_labels))
            classes = [f"{name} {trained[row]} + {held_out[row]}" for row, name in enumerate(module.class_names)]
            trainer.print(f"of each class, training + validation: {some_of(classes, 50)}")
            if trainer.world_size > 1:
                together = trainer.world_size * datamodule.batch_size
                trainer.print(f"{trainer.world_size} processes, {together} photos a step together")

    def state_dict(self) -> dict[str, Any]:
        """The epochs so far travel in the checkpoint, so that a resumed run's journal is whole."""
        begun = {
            "seconds": time.perf_counter() - self._epoch_start,
            "train_seconds": self._train_end - self._epoch_start,
            "images": self._images,
        }
        return {"epochs": list(self.epochs), "begun": begun}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the epochs before the interruption until fitting starts; an evaluation must not take them up."""
        self._earlier_epochs = list(state_dict["epochs"])
        self._begun = state_dict.get("begun", self._begun)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Let the clock of an epoch that was interrupted run on, without the time between."""
        if trainer.fit_loop.restarted_mid_epoch:
            self._epoch_start = time.perf_counter() - self._begun["seconds"]
            self._train_end = self._epoch_start + self._begun["train_seconds"]
            self._images = int(self._begun["images"])

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._epoch_start = self._train_end = time.perf_counter()
        self._images, self._validated = 0, False

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count photos."""
        self._images += len(batch[1]) * trainer.world_size
        self._train_end = time.perf_counter()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add this epoch's row and print its line. Validation has run by now."""
        train_seconds = self._train_end - self._epoch_start
        row = {
            "epoch": trainer.current_epoch,
            **{
                name: finite(value)
                for name, value in trainer.callback_metrics.items()
                if self._validated or not name.startswith("val")  # Lightning keeps an earlier epoch's
            },
            "learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
            "seconds": round(time.perf_counter() - self._epoch_start, 3),
            "train_seconds": round(train_seconds, 3),
            "images_per_second": round(self._images / train_seconds, 2) if train_seconds else 0.0,
        }
        self.epochs.append(row)
        self._write(trainer)
        trainer.print(epoch_line(row, trainer.max_epochs))

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record an evaluation of its own (`trainer.validate`), not the one within an epoch."""
        self._validated = True
        if trainer.state.fn == TrainerFn.VALIDATING:
            name = "val_clean" if "val_clean/loss" in trainer.callback_metrics else "val"
            self._record(trainer, cast(ProductClassifier, pl_module), "final", name)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record `trainer.test`."""
        self._record(trainer, cast(ProductClassifier, pl_module), "test", "test")

    def _record(self, trainer: L.Trainer, module: ProductClassifier, key: str, name: str) -> None:
        figures = {metric: trainer.callback_metrics[f"{name}/{metric}"] for metric in ("loss", "accuracy", "f1_macro")}
        confusion = module.confusion_counts[name]
        self.evaluations[key] = {
            "checkpoint": Path(trainer.ckpt_path).name if trainer.ckpt_path else None,
            "set": name,
            "photos": int(np.sum(confusion)),
            **{metric: finite(value) for metric, value in figures.items()},
            "per_class": per_class(confusion, module.class_names),
            "confusion_matrix": {"rows": "true", "columns": "predicted", "counts": confusion},
        }
        if self.epochs:  # an evaluation on its own has no journal to write into
            self._write(trainer)

    def add(self, trainer: L.Trainer, key: str, figures: dict[str, Any]) -> None:
        """Add figures to the evaluation `final` or `test`."""
        self.evaluations[key] |= figures
        self._write(trainer)

    def _write(self, trainer: L.Trainer) -> None:
        if not trainer.is_global_zero:
            return
        best = trainer.checkpoint_callback
        content: dict[str, Any] = {"schema": METRICS_SCHEMA, "epochs": self.epochs}
        if isinstance(best, ModelCheckpoint) and best.monitor:
            content["best"] = best_epoch(self.epochs, best.monitor, best.mode)
        write_json(run_folder_of(trainer).metrics, content | self.evaluations)


def best_epoch(epochs: list[dict[str, Any]], monitor: str, mode: str) -> dict[str, Any] | None:
    """Return the first epoch with the best value of the monitored figure, as a checkpoint keeps it."""
    measured = [row for row in epochs if row.get(monitor) is not None]
    if not measured:
        return None
    best = (min if mode == "min" else max)(measured, key=lambda row: row[monitor])
    return {"epoch": best["epoch"], "monitor": monitor, "value": best[monitor]}


def epoch_line(row: dict[str, Any], max_epochs: int | None) -> str:
    """One epoch in one line."""
    parts = [f"epoch {row['epoch'] + 1}/{max_epochs}"]
    for name in ("train", "val", "val_clean"):
        if f"{name}/loss" in row:
            loss, accuracy = (row.get(f"{name}/{metric}") for metric in ("loss", "accuracy"))
            parts.append(f"{name} loss {_number(loss)} accuracy {_number(accuracy)}")
    return " | ".join([*parts, f"{row['seconds']:.1f} s", f"{row['images_per_second']:.0f} images/s"])


def _number(value: float | None) -> str:
    return "nan" if value is None else f"{value:.4f}"


class ExportTwin(Callback):
    """After fitting: best checkpoint -> `model.h5` -> proof in `parity.json`; `labels.json` says what it takes.

    Runs on the first process only.

    Args:
        enabled: false trains only; `lightning export` and `lightning parity` do the same later.
        input_range: `unit`: the twin takes values 0 to 1; `raw`: 0 to 255.
        max_photos: how many validation photos at most, evenly spread over them, go through both twins.
        keras_python: interpreter whose Keras judges; null for this environment's.
        temperature: `fitted`: what is handed over is `calibrated.ckpt`, the best checkpoint with the temperature that
            metrics.json has in its last layer, so that both twins give calibrated probabilities; `none`: the best
            checkpoint as it was trained.

    Attributes:
        report: the outcome; None until there is one.
        at_fit_end: whether to act as soon as fitting ends. The command line evaluates first, so that no figure is
            lost should Keras fail, and calls `export_twin` then.
    """

    def __init__(
        self,
        enabled: bool = True,
        input_range: Literal["unit", "raw"] = "unit",
        max_photos: int = 1000,
        keras_python: str | None = None,
        temperature: Literal["none", "fitted"] = "none",
    ) -> None:
        if max_photos < 0:
            raise BadInput(f"--hand_over.max_photos: expected 0 or more, received {max_photos}.")
        self.enabled = enabled
        self.input_range = input_range
        self.max_photos = max_photos
        self.keras_python = Path(keras_python) if keras_python else None
        self.temperature = temperature
        self.report: Report | None = None
        self.at_fit_end = True

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the previous run's results out of the way; data and weights have been found sound by now."""
        self.report = None
        if trainer.is_global_zero:
            run = run_folder_of(trainer)
            run.check_writable()
            previous = run.shelve_previous(goes_on=continues(trainer))
            if previous:
                what = "finished run" if previous.name == "previous" else "run"
                rank_zero_info(f"The {what} in {run.path} was copied to {previous}.")

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Hand over, unless somebody else does it in a moment."""
        if self.at_fit_end:
            self.export_twin(trainer, pl_module)

    def export_twin(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the twin of the best checkpoint and its labels, prove it, and keep the proof.

        Raises:
            BadInput: there is no best checkpoint, or its network has no Keras twin.
            KerasFailed: the Keras process crashed or ran out of time.
        """
        if not self.enabled or getattr(trainer, "fast_dev_run", False) or not trainer.is_global_zero:
            return
        from datamodule.photo_store import load_photo
        from export.calibrated import write_calibrated
        from export.fitted_temperature import fitted_temperature
        from export.proof.keras_side import chosen_files
        from export.proof.page import write_page
        from export.proof.parity import Pair, check_parity
        from export.proof.report import write_json as write_report
        from export.torch_to_keras import write_twin  # only training that ends needs them

        run = run_folder_of(trainer)
        best = best_checkpoint_of(trainer)
        module = cast(ProductClassifier, pl_module)
        trainer.print("Writing the Keras twin of the best checkpoint ...")
        if self.temperature == "fitted":
            fitted = fitted_temperature(best)
            if fitted.doubt:
                trainer.print(fitted.doubt)
            write_calibrated(best, run.calibrated_checkpoint, fitted.temperature)
            best = run.calibrated_checkpoint
        write_twin(best, run.model_h5, self.input_range)
        write_json(
            run.labels,
            {
                "class_names": module.class_names,
                "image_size": list(module.hparams["image_size"]),
                "interpolation": module.hparams["interpolation"],
                "background": module.hparams["background"],
                "deep_grey": module.hparams["deep_grey"],
                "formats": module.hparams["formats"],
                "input_range": self.input_range,
            },
        )
        photos, files, known = self._photos(trainer)
        of = f" of {known}" if len(files) < known else ""  # --hand_over.max_photos
        trainer.print(f"Checking it against Keras on {len(files)}{of} validation photos and synthetic images ...")
        there = [file for file in files if file.is_file()]
        if gone := len(files) - len(there):
            trainer.print(f"{gone} of them are not there any more: compared as they were decoded, not loaded again.")
        there, spoiled = _readable(chosen_files(there))
        if spoiled:
            trainer.print(f"These cannot be read any more, and are not loaded again:\n{some_lines_of(spoiled)}")
        pair = Pair(best, run.model_h5, photos, [str(file) for file in files], there, load_photo)
        self.report = check_parity(pair, self.keras_python)
        write_report([self.report], run.parity)
        write_page([self.report], run.parity_page)

    def _photos(self, trainer: L.Trainer) -> tuple[np.ndarray | None, list[Path], int]:
        """Validation photos, uint8 (N, H, W, 3), their files, and how many there are in all."""
        datamodule: Any = getattr(trainer, "datamodule", None)
        known = list(getattr(datamodule, "val_files", []))
        if not known or not self.max_photos:
            return None, [], len(known)
        chosen = np.linspace(0, len(known) - 1, min(len(known), self.max_photos)).round().astype(int)
        files = [known[index] for index in chosen]
        return datamodule.photos_of(files), files, len(known)


def _readable(files: list[Path]) -> tuple[list[Path], list[str]]:
    """Split files, which may have changed since training began, into those that still load and the others' reasons."""
    from datamodule.photo_store import BadPhoto, load_photo

    readable, reasons = [], []
    for file in files:
        try:
            load_photo(file, (1, 1))
        except BadPhoto as bad:
            reasons.append(str(bad))
        else:
            readable.append(file)
    return readable, reasons

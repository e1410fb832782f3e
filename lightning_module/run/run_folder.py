"""The run's folder: which file is where, and how a new run treats those of the last one."""

import json
import shutil
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.atomic_write import write_text
from models.bad_input import BadInput

if TYPE_CHECKING:
    from lightning import Trainer

BEST_CHECKPOINT, LAST_CHECKPOINT = "best.ckpt", "last.ckpt"
HANDED_OVER = (
    "model.h5", "calibrated.ckpt", "parity.json", "parity.html", "labels.json", "metrics.json", "report.html",
)  # fmt: skip
"""What belongs to one finished run, and must never be taken for another's."""


@dataclass(frozen=True)
class RunFolder:
    """`--trainer.default_root_dir`.

    A run that is begun anew in the folder of a finished one first copies that one's files to `previous/`, and then
    takes away those that say what a run's result was (`HANDED_OVER`). So a run that dies half way leaves no verdict
    that seems to be its own, and the last finished run is whole in `previous/` until the next one has finished. What a
    run that has not finished had come to goes to `interrupted/`, should another be begun in its place.

    Attributes:
        path: the folder.
    """

    path: Path

    @property
    def best_checkpoint(self) -> Path:
        """The epoch with the lowest validation loss."""
        return self.path / BEST_CHECKPOINT

    @property
    def last_checkpoint(self) -> Path:
        """Where an interrupted run goes on."""
        return self.path / LAST_CHECKPOINT

    @property
    def environment(self) -> Path:
        """What the run was made with, and whether it has finished."""
        return self.path / "environment.json"

    @property
    def model_h5(self) -> Path:
        """The Keras twin of the best checkpoint."""
        return self.path / "model.h5"

    @property
    def parity(self) -> Path:
        """The verdict on the twin, and what it rests on."""
        return self.path / "parity.json"

    @property
    def parity_page(self) -> Path:
        """The proof, for people."""
        return self.path / "parity.html"

    @property
    def calibrated_checkpoint(self) -> Path:
        """The best checkpoint with the fitted temperature in its last layer; only with `hand_over.temperature`."""
        return self.path / "calibrated.ckpt"

    @property
    def report(self) -> Path:
        """How good the best checkpoint is, for people."""
        return self.path / "report.html"

    @property
    def learning_rates(self) -> Path:
        """The loss against the learning rate; only with `--find_lr`."""
        return self.path / "learning_rates.png"

    @property
    def evaluation(self) -> Path:
        """Folder of the report's pictures, and of each measured photo's logits."""
        return self.path / "evaluation"

    @property
    def training_batch(self) -> Path:
        """Picture of photos as the network was given them in training."""
        return self.evaluation / "training_batch.png"

    @property
    def labels(self) -> Path:
        """What a user of the twin must know: class names, size, interpolation, range."""
        return self.path / "labels.json"

    @property
    def metrics(self) -> Path:
        """Losses and accuracies per epoch, and the evaluation of the best checkpoint."""
        return self.path / "metrics.json"

    @property
    def config(self) -> Path:
        """All settings, for `lightning fit --config`."""
        return self.path / "config.yaml"

    @property
    def logs(self) -> Path:
        """CSV and TensorBoard logs."""
        return self.path / "logs"

    def check_writable(self) -> None:
        """Make the folder and write to it, before anything costly is done.

        Raises:
            BadInput: it cannot be made or written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path) as file:
                file.write(b"writable")
        except OSError as error:
            raise BadInput(
                f"--trainer.default_root_dir: expected a folder that can be written, received {self.path} "
                f"({error.strerror or error}). Choose another, or mend its permissions or the disk's space."
            ) from error

    def shelve_previous(self, goes_on: bool = False) -> Path | None:
        """Clear the way for a new run: see the class.

        Args:
            goes_on: whether it is the same run, which keeps what it goes on from; if it had finished, it is to be
                trained for longer.

        Returns:
            The folder that holds the previous run now: `previous`, or `interrupted` if it had not finished; None where
            there was none.
        """
        finished = self._has_finished()
        shelf = self.path / ("previous" if finished else "interrupted")
        found = finished or (self.last_checkpoint.is_file() and not goes_on)
        if found:
            fresh = Path(tempfile.mkdtemp(prefix=f".{shelf.name}-", dir=self.path))
            fresh.chmod(stat.S_IMODE(self.path.stat().st_mode))  # whoever may read the run may read this
            for name in (BEST_CHECKPOINT, LAST_CHECKPOINT, "config.yaml", "environment.json", *HANDED_OVER):
                if (self.path / name).is_file():
                    shutil.copy2(self.path / name, fresh / name)
            if self.evaluation.is_dir():
                shutil.copytree(self.evaluation, fresh / self.evaluation.name)
            shutil.rmtree(shelf, ignore_errors=True)
            fresh.replace(shelf)
        if found or not goes_on:
            # The last checkpoint first: without it, nothing could be gone on with that is no longer whole.
            for name in (*(() if goes_on else (LAST_CHECKPOINT, "environment.json")), *HANDED_OVER):
                (self.path / name).unlink(missing_ok=True)
            shutil.rmtree(self.evaluation, ignore_errors=True)
        self.sweep()
        return shelf if found else None

    def _has_finished(self) -> bool:
        """Whether the run in the folder came to its end: it says so, or its proof is there."""
        return bool(read_environment(self).get("finished")) or (self.model_h5.is_file() and self.parity.is_file())

    def sweep(self) -> None:
        """Remove what a killed process had half written."""
        for each in self.path.glob(".*.tmp"):
            if each.is_file():
                each.unlink(missing_ok=True)
        for folder in (*self.path.glob(".previous-*"), *self.path.glob(".interrupted-*")):
            shutil.rmtree(folder, ignore_errors=True)


def run_folder_of(trainer: "Trainer") -> RunFolder:
    """Return the folder that `--trainer.default_root_dir` names."""
    return RunFolder(Path(trainer.default_root_dir))


def read_environment(run: RunFolder) -> dict[str, Any]:
    """Return the run's environment.json; empty where there is none that can be read."""
    try:
        content = json.loads(run.environment.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON whole or not at all; numbers must be finite.

    Raises:
        BadInput: it cannot be written there.
    """
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")

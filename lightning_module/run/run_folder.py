"""The run's folder: where each file is, and what a new run does with the files of the previous one."""

import json
import shutil
import stat
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from models.atomic_write import write_text
from models.bad_input import BadInput

if TYPE_CHECKING:
    from lightning import Trainer

BEST_CHECKPOINT, LAST_CHECKPOINT = "best.ckpt", "last.ckpt"
HANDED_OVER = (
    "model.h5", "calibrated.ckpt", "parity.json", "parity.html", "labels.json", "metrics.json", "report.html",
    "model_card.md",
)  # fmt: skip
"""Results of one finished run, which must never be mistaken for another run's."""


@dataclass(frozen=True)
class RunFolder:
    """The folder given by `--trainer.default_root_dir`.

    A new run in the folder of a finished one first copies that run's files to `previous/`, and then removes its results
    (`HANDED_OVER`). So a run that fails half way leaves no verdict that seems to be its own, and the last finished run
    is complete in `previous/` until the next one has finished. If the old run had not finished, its files are copied to
    `interrupted/`.

    Attributes:
        path: the folder.
    """

    path: Path

    @property
    def best_checkpoint(self) -> Path:
        """The best epoch; by default the one with the lowest validation loss."""
        return self.path / BEST_CHECKPOINT

    @property
    def last_checkpoint(self) -> Path:
        """The checkpoint from which an interrupted run continues."""
        return self.path / LAST_CHECKPOINT

    @property
    def environment(self) -> Path:
        """The software, hardware and data of the run, and whether it has finished."""
        return self.path / "environment.json"

    @property
    def model_h5(self) -> Path:
        """The Keras twin of the best checkpoint."""
        return self.path / "model.h5"

    @property
    def parity(self) -> Path:
        """The verdict on the twin, with the results of all checks."""
        return self.path / "parity.json"

    @property
    def parity_page(self) -> Path:
        """The proof as a page to read."""
        return self.path / "parity.html"

    @property
    def calibrated_checkpoint(self) -> Path:
        """The best checkpoint with the fitted temperature in its last layer; only with `hand_over.temperature`."""
        return self.path / "calibrated.ckpt"

    @property
    def report(self) -> Path:
        """The evaluation of the best checkpoint as a page to read."""
        return self.path / "report.html"

    @property
    def model_card(self) -> Path:
        """What the run is, for strangers, in the form of a model hub's cards."""
        return self.path / "model_card.md"

    @property
    def learning_rates(self) -> Path:
        """The loss against the learning rate; only with `--find_lr`."""
        return self.path / "learning_rates.png"

    @property
    def evaluation(self) -> Path:
        """Folder with the report's pictures and each measured photo's logits."""
        return self.path / "evaluation"

    @property
    def training_batch(self) -> Path:
        """Picture of photos as the network was given them in training."""
        return self.evaluation / "training_batch.png"

    @property
    def labels(self) -> Path:
        """What users of the twin need to know: class names, image size, interpolation, input range."""
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
        """Create the folder and try to write to it, before anything expensive is done.

        Raises:
            BadInput: the folder cannot be created or written to.
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

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Create the folder, and keep every other run out of it until the end.

        If the run fails before it has trained, what it made is removed: an empty folder, or one with nothing but logs.

        Raises:
            BadInput: another process has the folder, or it cannot be created or written to.
        """
        made = [each for each in (self.path, *self.path.parents) if not each.exists()]
        self.check_writable()
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            raise BadInput(
                f"--trainer.default_root_dir: expected a folder of no other run, received {self.path}, where one is "
                "running. Wait until it has ended, or name another folder."
            ) from None
        except (OSError, NotImplementedError) as error:
            warnings.warn(
                f"{self.path}: no second run can be kept out, as no file can be locked: {error}", stacklevel=2
            )
        try:
            yield
        finally:
            # Removed while it is locked: another process could lock it in the moment between.
            with suppress(OSError):
                (self.path / ".lock").unlink()
            lock.release()
            with suppress(OSError):  # somebody has removed the folder, or put something into one above it
                if made and {each.name for each in self.path.iterdir()} <= {self.logs.name}:
                    shutil.rmtree(self.path)
                    for each in made[1:]:
                        each.rmdir()

    def shelve_previous(self, goes_on: bool = False) -> Path | None:
        """Move the old run's files out of the way of a new run, as described for the class.

        Args:
            goes_on: whether the same run is resumed. It then keeps the files that it continues from. If it had
                finished, it is now trained for more epochs.

        Returns:
            The folder that the old run's files are in now: `previous`, or `interrupted` if it had not finished; None
            if there was no old run.
        """
        finished = self._has_finished()
        shelf = self.path / ("previous" if finished else "interrupted")
        found = finished or (self.last_checkpoint.is_file() and not goes_on)
        if found:
            fresh = Path(tempfile.mkdtemp(prefix=f".{shelf.name}-", dir=self.path))
            fresh.chmod(stat.S_IMODE(self.path.stat().st_mode))  # the same permissions as the run's folder
            for name in (BEST_CHECKPOINT, LAST_CHECKPOINT, "config.yaml", "environment.json", *HANDED_OVER):
                if (self.path / name).is_file():
                    shutil.copy2(self.path / name, fresh / name)
            if self.evaluation.is_dir():
                shutil.copytree(self.evaluation, fresh / self.evaluation.name)
            shutil.rmtree(shelf, ignore_errors=True)
            fresh.replace(shelf)
        if found or not goes_on:
            # The last checkpoint first: without it, a run whose other files are partly removed cannot be resumed.
            for name in (*(() if goes_on else (LAST_CHECKPOINT, "environment.json")), *HANDED_OVER):
                (self.path / name).unlink(missing_ok=True)
            shutil.rmtree(self.evaluation, ignore_errors=True)
        self.sweep()
        return shelf if found else None

    def _has_finished(self) -> bool:
        """Return whether the run in the folder has finished: environment.json says so, or there is a proof."""
        return bool(read_environment(self).get("finished")) or (self.model_h5.is_file() and self.parity.is_file())

    def sweep(self) -> None:
        """Remove what a killed process left unfinished."""
        for each in self.path.glob(".*.tmp"):
            if each.is_file():
                each.unlink(missing_ok=True)
        for folder in (*self.path.glob(".previous-*"), *self.path.glob(".interrupted-*")):
            shutil.rmtree(folder, ignore_errors=True)


def run_folder_of(trainer: "Trainer") -> RunFolder:
    """Return the folder that `--trainer.default_root_dir` names."""
    return RunFolder(Path(trainer.default_root_dir))


def read_environment(run: RunFolder) -> dict[str, Any]:
    """Return the content of the run's environment.json; empty if it is missing or cannot be read."""
    return read_json(run.environment)


def read_json(path: Path) -> dict[str, Any]:
    """Return the content of one of a run's JSON files; empty if it is missing, cannot be read, or is no object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file, completely or not at all; numbers must be finite.

    Raises:
        BadInput: the file cannot be written.
    """
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")

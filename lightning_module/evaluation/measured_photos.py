"""A checkpoint's logits for each measured photo, from which everything in the report is computed."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from models.atomic_write import replacing
from models.digests import file_digest

Measured = Literal["validation", "test"]


@dataclass(frozen=True)
class MeasuredPhotos:
    """Logits of a set of photos, measured without augmentation.

    Attributes:
        name: `validation`: the photos by which the checkpoint was chosen; `test`: other photos.
        class_names: C names.
        files: N paths, as text.
        labels: int64, shape (N,), indices into `class_names`.
        logits: float32, shape (N, C).
        checkpoint: path of the checkpoint's file, as text.
        checkpoint_sha256: SHA-256 of that file, hexadecimal.
        image_size: (height, width) that the photos were resized to.
        interpolation: how they were resized.
        seen: how many test photos are also training or validation photos, byte for byte; None if those are not known.
    """

    name: Measured
    class_names: list[str]
    files: list[str]
    labels: np.ndarray
    logits: np.ndarray
    checkpoint: str
    checkpoint_sha256: str
    image_size: tuple[int, int]
    interpolation: str
    seen: int | None = None

    def save(self, path: Path) -> None:
        """Write everything as `.npz`, completely or not at all; logits stay float32.

        Raises:
            BadInput: the file cannot be written.
        """
        facts = {
            "name": self.name,
            "class_names": self.class_names,
            "files": self.files,
            "checkpoint": self.checkpoint,
            "checkpoint_sha256": self.checkpoint_sha256,
            "image_size": list(self.image_size),
            "interpolation": self.interpolation,
            "seen": self.seen,
        }
        # as bytes, so that a file name that is not UTF-8 is kept
        text = np.frombuffer(json.dumps(facts).encode(), np.uint8)
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, facts=text, labels=self.labels, logits=self.logits)

    @classmethod
    def load(cls, path: Path) -> "MeasuredPhotos | None":
        """Read what `save` wrote; None if there is no such file or it cannot be read."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                facts = json.loads(arrays["facts"].tobytes())
                facts["image_size"] = tuple(facts["image_size"])
                return cls(**facts, labels=arrays["labels"], logits=arrays["logits"])
        except Exception:  # damaged files raise nearly anything, and this file can always be written again
            return None


class KeepLogits(Callback):
    """Keeps the logits of `trainer.validate` and `trainer.test`, but not of the validation within a fit.

    Attributes:
        kept: the photos by name of the set. If validation photos are augmented, these are the ones without
            augmentation.
    """

    def __init__(self) -> None:
        self.kept: dict[Measured, MeasuredPhotos] = {}
        self._logits: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._last: Tensor | None = None
        self._hook: Any = None

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start collecting the module's outputs."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._begin(pl_module)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start collecting the module's outputs."""
        self._begin(pl_module)

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Collect a batch of the last loader, which has the photos without augmentation."""
        if self._hook is not None and dataloader_idx == len(_loaders(trainer.val_dataloaders)) - 1:
            self._take(batch)

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Collect a batch."""
        self._take(batch)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the logits of the validation photos."""
        if self._hook is not None:
            self._keep(trainer, pl_module, "validation", _loaders(trainer.val_dataloaders)[-1], "val_files")

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the logits of the test photos; if there are none, the validation photos were tested."""
        datamodule: Any = getattr(trainer, "datamodule", None)
        name: Measured = "test" if getattr(datamodule, "has_test_photos", False) else "validation"
        self._keep(trainer, pl_module, name, _loaders(trainer.test_dataloaders)[-1], "test_files")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Stop collecting outputs."""
        self._stop()

    def _begin(self, module: L.LightningModule) -> None:
        self._stop()

        def listen(_: Any, __: Any, output: Any) -> None:
            # Lightning may run whole steps through the module's forward call; those return something else
            if isinstance(output, Tensor) and output.ndim == 2:
                self._last = output.detach()

        # a hook, so that the steps, which return no logits, need not be changed
        self._hook = module.register_forward_hook(listen)

    def _stop(self) -> None:
        if self._hook is not None:
            self._hook.remove()
        self._hook, self._last, self._logits, self._labels = None, None, [], []

    def _take(self, batch: Any) -> None:
        labels = batch[1]
        if self._last is None or len(self._last) != len(labels):
            raise RuntimeError("a step of the module did not compute its logits by calling the module")
        self._logits.append(self._last.float().cpu())
        self._labels.append(labels.cpu())
        self._last = None

    def _keep(
        self, trainer: L.Trainer, module: L.LightningModule, name: Measured, loader: Any, files_attribute: str
    ) -> None:
        logits, labels = torch.cat(self._logits), torch.cat(self._labels)
        self._stop()
        logits, labels = in_order(trainer, loader, logits, labels)
        datamodule: Any = getattr(trainer, "datamodule", None)
        files = getattr(datamodule, files_attribute, None)
        files = [] if files is None else files[: len(labels)]  # --trainer.limit_val_batches takes the first
        whole = len(files) == len(labels) and not logits.isnan().all(dim=1).any()
        if trainer.is_global_zero and trainer.ckpt_path and whole:
            self.kept[name] = MeasuredPhotos(
                name=name,
                class_names=list(module.class_names),  # type: ignore[arg-type]
                files=[str(file) for file in files],
                labels=labels.numpy().astype(np.int64),
                logits=logits.numpy(),
                checkpoint=str(trainer.ckpt_path),
                checkpoint_sha256=file_digest(Path(trainer.ckpt_path)),
                image_size=tuple(module.hparams["image_size"]),
                interpolation=module.hparams["interpolation"],
                seen=count_seen(datamodule) if name == "test" else None,
            )


def count_seen(datamodule: Any) -> int | None:
    """Count test photos that are also training or validation photos, byte for byte; None if those are not loaded."""
    try:
        others = [*datamodule.train_files, *datamodule.val_files]
    except RuntimeError:  # not set up: a test on its own
        return None
    digest_of = datamodule.store.digest_of
    known = {digest_of(file) for file in others}
    return sum(digest_of(file) in known for file in datamodule.test_files)


def _loaders(loaders: Any) -> list[Any]:
    return list(loaders) if isinstance(loaders, list | tuple) else [loaders]


def in_order(trainer: L.Trainer, loader: Any, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Put the results of all processes into the order of the files; a photo measured by two processes counts once."""
    rows = torch.tensor(list(loader.sampler)[: len(labels)])
    parts: list[Any] = [(rows, logits, labels)]
    if trainer.world_size > 1:
        parts = [None] * trainer.world_size
        torch.distributed.all_gather_object(parts, (rows, logits, labels))
    count = int(max(part[0].max() for part in parts)) + 1
    ordered = torch.full((count, logits.shape[1]), torch.nan), torch.zeros(count, dtype=torch.int64)
    for rows, some_logits, some_labels in parts:
        ordered[0][rows], ordered[1][rows] = some_logits, some_labels
    return ordered

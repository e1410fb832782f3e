"""What a checkpoint said of each measured photo, from which everything in the report is computed."""

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

from export.checkpoint import file_digest
from models.atomic_write import replacing

Measured = Literal["validation", "test"]


@dataclass(frozen=True)
class MeasuredPhotos:
    """Logits of photos as they are, unaugmented.

    Attributes:
        name: `validation`: those by which the checkpoint was chosen; `test`: others.
        class_names: C names.
        files: N paths, as text.
        labels: int64, shape (N,), indices into `class_names`.
        logits: float32, shape (N, C).
        checkpoint: path of the checkpoint's file, as text.
        checkpoint_sha256: of that file, hexadecimal.
        image_size: (height, width) that the photos were resized to.
        interpolation: how.
        seen: of test photos, how many are training or validation photos, too, byte for byte; None where the latter are
            not at hand.
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
        """Write it as `.npz`, whole or not at all; a float32 stays what it is.

        Raises:
            BadInput: it cannot be written there.
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
        # as bytes: a file's name that is not UTF-8 keeps its own
        text = np.frombuffer(json.dumps(facts).encode(), np.uint8)
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, facts=text, labels=self.labels, logits=self.logits)

    @classmethod
    def load(cls, path: Path) -> "MeasuredPhotos | None":
        """Read what `save` wrote; None where there is none, or none that can be read."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                facts = json.loads(arrays["facts"].tobytes())
                facts["image_size"] = tuple(facts["image_size"])
                return cls(**facts, labels=arrays["labels"], logits=arrays["logits"])
        except Exception:  # damaged files raise nearly anything, and this one can always be made again
            return None


class KeepLogits(Callback):
    """Keeps the logits of an evaluation of its own (`trainer.validate`, `trainer.test`), not of one within an epoch.

    Attributes:
        kept: by name; after `trainer.validate` of photos that are augmented for validation, those as they are.
    """

    def __init__(self) -> None:
        self.kept: dict[Measured, MeasuredPhotos] = {}
        self._logits: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._last: Tensor | None = None
        self._hook: Any = None

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin to listen to the module."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._begin(pl_module)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin to listen to the module."""
        self._begin(pl_module)

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Take up a batch of the last loader: the one with the photos as they are."""
        if self._hook is not None and dataloader_idx == len(_loaders(trainer.val_dataloaders)) - 1:
            self._take(batch)

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Take up a batch."""
        self._take(batch)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep what was said of the validation photos."""
        if self._hook is not None:
            self._keep(trainer, pl_module, "validation", _loaders(trainer.val_dataloaders)[-1], "val_files")

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep what was said of the test photos; without any, the validation photos were tested."""
        datamodule: Any = getattr(trainer, "datamodule", None)
        name: Measured = "test" if getattr(datamodule, "test_root", None) is not None else "validation"
        self._keep(trainer, pl_module, name, _loaders(trainer.test_dataloaders)[-1], "test_files")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Stop listening."""
        self._stop()

    def _begin(self, module: L.LightningModule) -> None:
        self._stop()

        def listen(_: Any, __: Any, output: Any) -> None:
            # Lightning may pass whole steps through the module's call, which give something else
            if isinstance(output, Tensor) and output.ndim == 2:
                self._last = output.detach()

        # a hook, so that the steps remain what they are: they measure, and give nothing back
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
    """How many test photos are training or validation photos, too, byte for byte; None where it knows only those."""
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
    """Put what all processes measured into the order of the files; a photo that two measured counts once."""
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

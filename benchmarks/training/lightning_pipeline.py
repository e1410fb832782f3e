"""This project's training, one epoch at a time, for `train_throughput.py`. Never imports Keras."""

import json
import resource
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from datamodule.augment import Augmentation
from datamodule.product_photos import PhotoBatch, ProductPhotos
from export.torch_to_keras import write_twin
from lightning_module.classifier import ProductClassifier

MAX_EPOCHS = 30
"""The Keras recipe; `--model.compile auto` depends on it. Training ends when the command says so."""


class MeasuredPhotos(ProductPhotos):
    """The data module, which can also train an epoch on a single batch that is held in memory.

    Attributes:
        kind: of the next epoch. `epoch`: as always; `held`: the same number of steps on one batch as the loader yields
            it (uint8, augmented in each step); `ready`: on one batch that is already augmented.
    """

    kind = "epoch"

    def train_dataloader(self) -> DataLoader:
        """Return the loader for an epoch of this kind."""
        loader = super().train_dataloader()
        if self.kind == "epoch":
            return loader
        held = next(iter(loader))
        if self.trainer is not None:
            held = self.transfer_batch_to_device(held, self.trainer.strategy.root_device, 0)
        self.ready = super().on_after_batch_transfer(held, 0)
        return DataLoader([held] * len(loader), batch_size=None, collate_fn=lambda batch: batch)

    def on_after_batch_transfer(self, batch: PhotoBatch, dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """Augment as always; if the batch is ready, do nothing."""
        return self.ready if self.kind == "ready" else super().on_after_batch_transfer(batch, dataloader_idx)


class Turns(L.Callback):
    """Trains an epoch when told to, and reports how long it took.

    Args:
        photos: the data module, which is told the kind of each epoch.
        answer: called with each answer.
    """

    def __init__(self, photos: MeasuredPhotos, answer: Any) -> None:
        self.photos, self.answer = photos, answer
        self.wait()

    def wait(self) -> bool:
        """Wait for a command; False means stop."""
        self.photos.kind = sys.stdin.readline().strip()
        self.start = time.perf_counter()
        return self.photos.kind != "stop"

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Send the answer and wait for the next command."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds = time.perf_counter() - self.start
        loader = trainer.train_dataloader
        count = len(self.photos.train_files) if self.photos.kind == "epoch" else len(loader) * self.photos.batch_size
        metrics = pl_module.metrics["train/"]
        self.answer({"seconds": seconds, "photos": count, "accuracy": metrics.compute()["train/accuracy"].item()})
        trainer.should_stop = not self.wait()


def build_classifier(settings: dict[str, Any], photos: ProductPhotos) -> ProductClassifier:
    """Return the recipe's network, with TensorFlow's weights if there are any."""
    pretrained: dict[str, Any] = {"pretrained": False}
    if settings["weights"]:
        pretrained = {"weights": settings["weights"], "pad_type": "same", "bn_eps": 1e-3, "mean": 0.5, "std": 0.5}
    return ProductClassifier(
        photos.class_names,
        photos.image_size,
        photos.interpolation,
        trainable=settings["trainable"],
        learning_rate=settings["learning_rate"],
        compile=settings["compile"],
        **pretrained,
    )


def main() -> None:
    """Answer each line of input with a line of JSON."""
    answers, sys.stdout = sys.stdout, sys.stderr
    settings = json.loads(sys.argv[1])
    warnings.filterwarnings("ignore")

    def answer(content: dict[str, Any]) -> None:
        print(json.dumps(content), file=answers, flush=True)

    L.seed_everything(0, verbose=False)
    start = time.perf_counter()
    photos = MeasuredPhotos(
        settings["root"],
        image_size=settings["image_size"],
        batch_size=settings["batch_size"],
        augmentation=Augmentation(**settings["augmentation"]),
    )
    module = build_classifier(settings, photos)
    module.load_pretrained_weights()
    photos.setup("fit")
    started = time.perf_counter() - start
    write_untrained_twin(module, Path(settings["h5"]))
    answer({"seconds": started, "device": "gpu" if torch.cuda.is_available() else "cpu"})
    trainer = L.Trainer(
        max_epochs=MAX_EPOCHS,
        precision=settings["precision"],
        reload_dataloaders_every_n_epochs=1,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Turns(photos, answer)],
    )
    trainer.fit(module, photos)
    used_gpu = torch.cuda.is_available()
    memory = (
        torch.cuda.max_memory_allocated() if used_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    answer({"peak_memory_mb": memory / 1e6})


def write_untrained_twin(module: ProductClassifier, h5: Path) -> None:
    """Export the network as it is before training, so that the other side can start from it."""
    checkpoint = h5.with_suffix(".ckpt")
    torch.save({"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}, checkpoint)
    write_twin(checkpoint, h5)


if __name__ == "__main__":
    main()

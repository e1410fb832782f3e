"""What a LightningModule measures: loss, accuracy, macro F1 and confusion of each set of photos."""

from typing import Any, cast

import lightning as L
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassF1Score

from lightning_module.mean_loss import MeanLoss

SETS = ("train", "val", "val_clean", "test")
"""Sets of photos with metrics of their own; `val_clean` are the validation photos without augmentation."""


class MeasuredModule(L.LightningModule):
    """Measures sets of photos, and logs what it measures as `SET/loss`, `SET/accuracy` and `SET/f1_macro`.

    Attributes:
        confusion_counts: set -> confusion matrix of its last measurement: rows are the true class, columns the
            predicted one, in plain numbers.
    """

    def measure_sets(self, num_classes: int) -> None:
        """Make the metrics of all sets. To be called once, when the module is made."""
        # the keys have a slash because a ModuleDict takes no name that a module's own attributes have, such as train
        self.metrics = nn.ModuleDict({f"{name}/": _figures(name, num_classes) for name in SETS})
        self.confusion = nn.ModuleDict(
            {f"{name}/": MulticlassConfusionMatrix(num_classes, validate_args=False) for name in SETS[1:]}
        )
        self.mean_losses = nn.ModuleDict({f"{name}/": MeanLoss() for name in SETS})
        self.confusion_counts: dict[str, list[list[int]]] = {}

    def measure(self, name: str, logits: Tensor, labels: Tensor, loss: Tensor) -> None:
        """Count one batch.

        Args:
            name: of the set.
            logits: shape (B, C).
            labels: shape (B,), whole numbers below C.
            loss: the batch's mean loss, a scalar.
        """
        metrics = cast(MetricCollection, self.metrics[f"{name}/"])
        metrics.update(logits, labels)
        if name != "train":
            self._confusion_of(name).update(logits, labels)
        mean_loss = cast(MeanLoss, self.mean_losses[f"{name}/"])
        mean_loss.update(loss, len(labels))
        self.log(
            f"{name}/loss",
            mean_loss,
            on_step=False,
            on_epoch=True,
            prog_bar=name != "val_clean",
            batch_size=len(labels),
            add_dataloader_idx=False,
        )
        self.log_dict(metrics, on_step=False, on_epoch=True, add_dataloader_idx=False)

    @property
    def validation_sets(self) -> list[str]:
        """Names of the data module's validation loaders, in order."""
        return list(getattr(self.datamodule, "val_sets", None) or ["val"])

    @property
    def datamodule(self) -> L.LightningDataModule | None:
        """The data of the trainer, where it has got it as a module."""
        return getattr(self._trainer, "datamodule", None)

    def on_validation_epoch_start(self) -> None:
        """Count confusions anew."""
        self._reset_confusion(*self.validation_sets)

    def on_test_epoch_start(self) -> None:
        """Count confusions anew."""
        self._reset_confusion("test")

    def on_validation_epoch_end(self) -> None:
        """Keep the confusion matrices of all processes together."""
        self._compute_confusion(*self.validation_sets)

    def on_test_epoch_end(self) -> None:
        """Keep the confusion matrix of all processes together."""
        self._compute_confusion("test")

    def _confusion_of(self, name: str) -> MulticlassConfusionMatrix:
        return cast(MulticlassConfusionMatrix, self.confusion[f"{name}/"])

    def _reset_confusion(self, *names: str) -> None:
        for name in names:
            self._confusion_of(name).reset()

    def _compute_confusion(self, *names: str) -> None:
        """Rows are the true class, columns the predicted one; plain numbers, for metrics.json."""
        for name in names:
            self.confusion_counts[name] = self._confusion_of(name).compute().tolist()


def _figures(name: str, num_classes: int) -> MetricCollection:
    # To validate arguments may be to look at labels, for which a GPU has to be waited for. The data module makes labels
    # of folders, and the loss refuses those that are none.
    metrics: dict[str, Any] = {"accuracy": MulticlassAccuracy(num_classes, average="micro", validate_args=False)}
    if name != "train":
        metrics["f1_macro"] = MulticlassF1Score(num_classes, average="macro", validate_args=False)
    return MetricCollection(metrics, prefix=f"{name}/")

"""The metrics of the LightningModule: loss, accuracy, macro F1 and confusion matrix of each set of photos."""

from typing import Any, cast

import lightning as L
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassF1Score

from lightning_module.mean_loss import MeanLoss

SETS = ("train", "val", "val_clean", "test")
"""The sets of photos; each has its own metrics. `val_clean` are the validation photos without augmentation."""


class MacroF1(MulticlassF1Score):
    """The mean F1 of the classes that have photos; torchmetrics' own mean counts a class without any as 0 if predicted.

    Args:
        num_classes: how many there are.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, average="none", validate_args=False)

    def compute(self) -> Tensor:
        """Return the mean, a scalar; 0 without photos."""
        of_classes = super().compute()
        have_photos = (cast(Tensor, self.tp) + cast(Tensor, self.fn)) > 0
        return (of_classes * have_photos).sum() / have_photos.sum().clamp(min=1)


class MeasuredModule(L.LightningModule):
    """Measures sets of photos and logs the results as `SET/loss`, `SET/accuracy` and `SET/f1_macro`.

    Attributes:
        confusion_counts: set -> confusion matrix of its last measurement, as lists of int: rows are the true class,
            columns the predicted one.
    """

    def measure_sets(self, num_classes: int) -> None:
        """Create the metrics of all sets. Call this once, in the constructor."""
        # the keys end in a slash because a ModuleDict refuses names of a module's own attributes, such as train
        self.metrics = nn.ModuleDict({f"{name}/": _figures(name, num_classes) for name in SETS})
        self.confusion = nn.ModuleDict(
            {f"{name}/": MulticlassConfusionMatrix(num_classes, validate_args=False) for name in SETS[1:]}
        )
        self.mean_losses = nn.ModuleDict({f"{name}/": MeanLoss() for name in SETS})
        self.confusion_counts: dict[str, list[list[int]]] = {}

    def measure(self, name: str, logits: Tensor, labels: Tensor, loss: Tensor) -> None:
        """Add one batch to the metrics.

        Args:
            name: name of the set.
            logits: shape (B, C).
            labels: shape (B,), integers from 0 to C - 1; -1 for training photos without a label.
            loss: the batch's mean loss, a scalar.
        """
        metrics = cast(MetricCollection, self.metrics[f"{name}/"])
        if name == "train" and self.learns_unlabelled:
            if len(known := (labels >= 0).nonzero()[:, 0]):
                metrics.update(logits[known], labels[known])
        else:  # to look for labels would be to wait for a GPU
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
        """The trainer's data module, if it has one."""
        return getattr(self._trainer, "datamodule", None)

    @property
    def learns_unlabelled(self) -> bool:
        """Whether the data module has training photos without a label."""
        return getattr(self.datamodule, "unlabelled", None) is not None

    def on_validation_epoch_start(self) -> None:
        """Reset the confusion matrices."""
        self._reset_confusion(*self.validation_sets)

    def on_test_epoch_start(self) -> None:
        """Reset the confusion matrix."""
        self._reset_confusion("test")

    def on_validation_epoch_end(self) -> None:
        """Keep the confusion matrices, summed over all processes."""
        self._compute_confusion(*self.validation_sets)

    def on_test_epoch_end(self) -> None:
        """Keep the confusion matrix, summed over all processes."""
        self._compute_confusion("test")

    def _confusion_of(self, name: str) -> MulticlassConfusionMatrix:
        return cast(MulticlassConfusionMatrix, self.confusion[f"{name}/"])

    def _reset_confusion(self, *names: str) -> None:
        for name in names:
            self._confusion_of(name).reset()

    def _compute_confusion(self, *names: str) -> None:
        """Store the matrices as lists of int, for metrics.json: rows are the true class, columns the predicted one."""
        for name in names:
            self.confusion_counts[name] = self._confusion_of(name).compute().tolist()


def _figures(name: str, num_classes: int) -> MetricCollection:
    # Validating arguments may read the labels, which means waiting for the GPU. It is not needed: the data module makes
    # the labels from folders, and the loss refuses invalid ones.
    metrics: dict[str, Any] = {"accuracy": MulticlassAccuracy(num_classes, average="micro", validate_args=False)}
    if name != "train":
        metrics["f1_macro"] = MacroF1(num_classes)
    return MetricCollection(metrics, prefix=f"{name}/")

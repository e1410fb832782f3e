"""The mean loss of all photos of a set, however they are divided into batches and processes."""

import torch
from torch import Tensor
from torchmetrics import Metric


class MeanLoss(Metric):
    """Mean over photos.

    Lightning's own mean over processes rounds the number of photos in each. torchmetrics' MeanMetric skips NaN, so a
    loss that is NaN would go unnoticed; when told not to skip it, it ignores the weights.

    Attributes:
        total: sum of the losses of all photos.
        photos: number of photos.
    """

    full_state_update = False
    total: Tensor
    photos: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("photos", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, loss: Tensor, photos: int) -> None:
        """Add a batch: its mean loss, a scalar, and its number of photos."""
        self.total = self.total + loss.detach().float() * photos
        self.photos = self.photos + photos

    def compute(self) -> Tensor:
        """Return the mean, a scalar."""
        return self.total / self.photos

"""The mean loss of all photos of a set, whatever the batches and the processes that they were in."""

import torch
from torch import Tensor
from torchmetrics import Metric


class MeanLoss(Metric):
    """Mean over photos.

    Lightning's own mean over processes rounds the number of photos that each has, and torchmetrics' MeanMetric leaves
    NaN out, by which a loss that is none would look like one; told not to, it forgets the weights.

    Attributes:
        total: sum of the losses of all photos.
        photos: how many.
    """

    full_state_update = False
    total: Tensor
    photos: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("photos", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, loss: Tensor, photos: int) -> None:
        """Add a batch: its mean loss, a scalar, and how many photos it has."""
        self.total = self.total + loss.detach().float() * photos
        self.photos = self.photos + photos

    def compute(self) -> Tensor:
        """Return the mean, a scalar."""
        return self.total / self.photos

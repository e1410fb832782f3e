"""The mean loss of a set's photos, in whatever batches they come."""

import pytest
import torch

from lightning_module.mean_loss import MeanLoss


def test_batches_count_by_their_photos():
    losses, metric = torch.rand(10), MeanLoss()
    for part in losses.split(4):
        metric.update(part.mean(), len(part))
    assert float(metric.compute()) == pytest.approx(float(losses.mean()))
    assert float(torch.stack([part.mean() for part in losses.split(4)]).mean()) != pytest.approx(float(losses.mean()))
    metric.reset()
    metric.update(torch.tensor(2.0), 3)
    assert float(metric.compute()) == 2


def test_processes_add_up():
    parts = [MeanLoss() for _ in range(2)]
    for metric, (loss, photos) in zip(parts, [(1.0, 3), (2.0, 4)], strict=True):
        metric.update(torch.tensor(loss), photos)
    together = MeanLoss()
    for name in ("total", "photos"):
        reduced = together._reductions[name](torch.stack([getattr(metric, name) for metric in parts]))
        setattr(together, name, reduced)
    together._update_count = 1
    assert float(together.compute()) == pytest.approx(11 / 7)


def test_loss_that_is_no_number_is_not_left_out():
    metric = MeanLoss()
    metric.update(torch.tensor(1.0), 2)
    metric.update(torch.tensor(float("nan")), 2)
    assert metric.compute().isnan()

"""Keras's formula, written out in numpy, against our Adam; the real Keras is asked in test_parity.py."""

import lightning as L
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from models.keras_adam import KerasAdam


def by_the_formula(start: np.ndarray, gradients: list[np.ndarray], rate: float, epsilon: float) -> np.ndarray:
    """`keras.optimizers.Adam`: alpha = rate * sqrt(1 - b2^t) / (1 - b1^t); w -= alpha * m / (sqrt(v) + epsilon)."""
    w, m, v = start.copy(), np.zeros_like(start), np.zeros_like(start)
    for t, g in enumerate(gradients, start=1):
        m, v = m + (g - m) * (1 - 0.9), v + (g * g - v) * (1 - 0.999)
        w -= rate * np.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (np.sqrt(v) + epsilon)
    return w


def problem() -> tuple[np.ndarray, list[np.ndarray]]:
    random = np.random.default_rng(0)
    # as small as epsilon, where its place matters
    return random.normal(size=50), [random.normal(size=50) * 1e-6 for _ in range(4)]


def run(optimiser: type[torch.optim.Adam], **settings) -> np.ndarray:
    start, gradients = problem()
    weights = torch.nn.Parameter(torch.from_numpy(start.copy()))
    adam = optimiser([weights], **settings)
    for gradient in gradients:
        weights.grad = torch.from_numpy(gradient)
        adam.step()
    return weights.detach().numpy()


def test_every_step_is_keras_own():
    expected = by_the_formula(*problem(), rate=1e-2, epsilon=1e-7)
    assert np.abs(run(KerasAdam, learning_rate=1e-2) - expected).max() < 1e-15


def test_torchs_own_adam_is_another():
    expected = by_the_formula(*problem(), rate=1e-2, epsilon=1e-7)
    assert np.abs(run(torch.optim.Adam, lr=1e-2, eps=1e-7) - expected).max() > 1e-3


def test_a_resumed_optimiser_goes_on_counting():
    start, gradients = problem()
    weights = torch.nn.Parameter(torch.from_numpy(start.copy()))
    adam = KerasAdam([weights], learning_rate=1e-2)
    for number, gradient in enumerate(gradients):
        if number == 2:
            state = adam.state_dict()
            adam = KerasAdam([weights], learning_rate=1e-2)
            adam.load_state_dict(state)
        weights.grad = torch.from_numpy(gradient)
        adam.step()
    assert np.array_equal(weights.detach().numpy(), run(KerasAdam, learning_rate=1e-2))


def test_fused_is_the_same_step():
    expected = by_the_formula(*problem(), rate=1e-2, epsilon=1e-7)
    assert np.abs(run(KerasAdam, learning_rate=1e-2, fused=True) - expected).max() < 1e-15


class Line(L.LightningModule):
    """One weight, trained by a fused optimiser, as all are on a GPU."""

    def __init__(self, optimiser: type[torch.optim.Adam]):
        super().__init__()
        self.optimiser, self.layer = optimiser, torch.nn.Linear(1, 1)

    def training_step(self, batch):
        return self.layer(batch).square().mean()

    def configure_optimizers(self):
        return self.optimiser(self.parameters(), 0.1, fused=True)


def fit_clipped(module: Line, folder) -> None:
    """What gpu.yaml and finetune.yaml together ask for."""
    L.Trainer(
        default_root_dir=folder, accelerator="cpu", precision="bf16-mixed", gradient_clip_val=1.0, max_steps=2,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    ).fit(module, DataLoader(torch.ones(4, 1), batch_size=2))  # fmt: skip


def test_fused_gradients_can_be_clipped_under_mixed_precision(tmp_path):
    module = Line(KerasAdam)
    before = module.layer.weight.detach().clone()
    fit_clipped(module, tmp_path)
    assert not torch.equal(module.layer.weight, before)
    with pytest.raises(RuntimeError, match="does not allow for gradient clipping"):  # the negative control: torch's own
        fit_clipped(Line(torch.optim.Adam), tmp_path)


def test_a_step_left_out_for_its_gradients_is_not_counted():
    """The trainer's 16-mixed: gradients are scaled, and those that overflow make no step."""
    weights = torch.nn.Parameter(torch.ones(3))
    adam, scaler = KerasAdam([weights], fused=True), torch.amp.GradScaler("cpu")
    for factor in (1.0, float("inf"), 1.0):
        adam.zero_grad()
        scaler.scale((weights * factor).sum()).backward()
        scaler.step(adam)
        scaler.update()
    assert adam.param_groups[0]["iterations"] == 2
    assert torch.isfinite(weights).all()

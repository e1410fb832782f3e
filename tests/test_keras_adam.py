"""Keras's formula, written out in numpy, against our Adam; the real Keras is asked in test_parity.py."""

import numpy as np
import torch

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

"""Whether a network's confidence matches its accuracy (Guo et al. 2017, "On Calibration of Modern Neural Networks")."""

from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from export.fitted_temperature import HIGHEST_TEMPERATURE, LOWEST_TEMPERATURE

BINS = 15
"""Number of bins, of equal width, as in the paper."""
FOLDS = 5


@dataclass(frozen=True)
class ReliabilityBin:
    """The photos whose likeliest class has a probability in an interval.

    Attributes:
        low: start of the interval, inclusive.
        high: end of the interval, exclusive (inclusive in the last one).
        photos: number of photos.
        confidence: mean probability of the likeliest class; 0 without photos.
        accuracy: share of the photos that are right; 0 without photos.
    """

    low: float
    high: float
    photos: int
    confidence: float
    accuracy: float


def probabilities_of(logits: np.ndarray, temperature: float | np.ndarray = 1.0) -> np.ndarray:
    """Compute the softmax in float64, shape (N, C).

    Args:
        logits: shape (N, C).
        temperature: the logits are divided by it; one number, or one for each photo, shape (N,).
    """
    divisor = np.reshape(np.asarray(temperature, np.float64), (-1, 1))
    return softmax(logits.astype(np.float64) / divisor, axis=1)


def negative_log_likelihood(logits: np.ndarray, labels: np.ndarray, temperature: float = 1.0) -> float:
    """Compute the negative log-likelihood, averaged over photos; cross-entropy training minimises it."""
    logs = log_softmax(logits.astype(np.float64) / temperature, axis=1)
    return float(-logs[np.arange(len(labels)), labels].mean())


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Find the number to divide the logits by that maximises the likelihood of the labels.

    The likelihood has only one maximum, so a bounded search over one number finds the same as LBFGS in the paper's own
    code. If all photos are right, there is no maximum; then the temperature is 1, which changes nothing.

    Args:
        logits: shape (N, C).
        labels: shape (N,).

    Returns:
        From `LOWEST_TEMPERATURE` to `HIGHEST_TEMPERATURE`; above 1 means that the network was too sure.
    """
    if not mistakes_of(logits, labels):
        return 1.0
    bounds = np.log(LOWEST_TEMPERATURE), np.log(HIGHEST_TEMPERATURE)
    loss = partial(negative_log_likelihood, logits, labels)
    found = minimize_scalar(lambda x: loss(float(np.exp(x))), bounds=bounds, method="bounded", options={"xatol": 1e-7})
    return float(np.exp(found.x))


def mistakes_of(logits: np.ndarray, labels: np.ndarray) -> int:
    """Count the photos for which another class is predicted."""
    return int((logits.argmax(axis=1) != labels).sum())


def cross_fitted_temperatures(logits: np.ndarray, labels: np.ndarray, seed: int = 0) -> np.ndarray:
    """Fit the temperature of each photo on other photos, so that the same set can be used to fit and to judge.

    Args:
        logits: shape (N, C).
        labels: shape (N,).
        seed: for the division into `FOLDS` parts.

    Returns:
        shape (N,).
    """
    fold = np.random.default_rng(seed).permutation(len(labels)) % min(FOLDS, len(labels))
    temperatures = np.ones(len(labels))
    for number in range(fold.max() + 1):
        others = fold != number
        if others.any():
            temperatures[~others] = fit_temperature(logits[others], labels[others])
    return temperatures


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Compute the paper's ECE: the mean distance of confidence and accuracy over `BINS` bins, weighted by photos.

    Args:
        probabilities: shape (N, C).
        labels: shape (N,).
    """
    # torchmetrics has it, too, but rounds to float32, and then puts a probability of 1 into a bin of its own.
    bins = reliability(probabilities, labels)
    return sum(each.photos * abs(each.confidence - each.accuracy) for each in bins) / len(labels)


def reliability(probabilities: np.ndarray, labels: np.ndarray) -> list[ReliabilityBin]:
    """Return the reliability diagram's bins; `expected_calibration_error` is computed from them."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    number = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return [
        ReliabilityBin(
            each / BINS, (each + 1) / BINS, int(here.sum()),
            float(confidence[here].mean()) if here.any() else 0.0, float(right[here].mean()) if here.any() else 0.0,
        )
        for each in range(BINS)
        for here in [number == each]
    ]  # fmt: skip

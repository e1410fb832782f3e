"""Whether a network is as sure as it is right (Guo et al. 2017, "On Calibration of Modern Neural Networks")."""

from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

BINS = 15
"""Of equal width, as in the paper."""
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.05, 20.0
"""Photos that are nearly all right ask for a nearly infinitely sure network, and a temperature of nearly 0."""
FOLDS = 5


@dataclass(frozen=True)
class ReliabilityBin:
    """Photos whose likeliest class has a probability in an interval.

    Attributes:
        low: begin of the interval; belongs to it.
        high: end of the interval; belongs to the next.
        photos: how many.
        confidence: mean probability of the likeliest class; 0 without photos.
        accuracy: share of them that are right; 0 without photos.
    """

    low: float
    high: float
    photos: int
    confidence: float
    accuracy: float


def probabilities_of(logits: np.ndarray, temperature: float | np.ndarray = 1.0) -> np.ndarray:
    """Softmax in float64, shape (N, C).

    Args:
        logits: shape (N, C).
        temperature: divides them; one number, or one for each photo, shape (N,).
    """
    divisor = np.reshape(np.asarray(temperature, np.float64), (-1, 1))
    return softmax(logits.astype(np.float64) / divisor, axis=1)


def negative_log_likelihood(logits: np.ndarray, labels: np.ndarray, temperature: float = 1.0) -> float:
    """Mean over photos; what cross-entropy trains for."""
    logs = log_softmax(logits.astype(np.float64) / temperature, axis=1)
    return float(-logs[np.arange(len(labels)), labels].mean())


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The one number that the logits are best divided by, by the likelihood of the labels.

    The likelihood has one maximum only, so that a bounded search of one number finds what LBFGS finds in the paper's
    own code. Photos that are all right have none: they leave the network as sure as it is.

    Args:
        logits: shape (N, C).
        labels: shape (N,).

    Returns:
        From `LOWEST_TEMPERATURE` to `HIGHEST_TEMPERATURE`; above 1 the network was too sure.
    """
    if not mistakes_of(logits, labels):
        return 1.0
    bounds = np.log(LOWEST_TEMPERATURE), np.log(HIGHEST_TEMPERATURE)
    loss = partial(negative_log_likelihood, logits, labels)
    found = minimize_scalar(lambda x: loss(float(np.exp(x))), bounds=bounds, method="bounded", options={"xatol": 1e-7})
    return float(np.exp(found.x))


def mistakes_of(logits: np.ndarray, labels: np.ndarray) -> int:
    """How many photos are taken for another class."""
    return int((logits.argmax(axis=1) != labels).sum())


def cross_fitted_temperatures(logits: np.ndarray, labels: np.ndarray, seed: int = 0) -> np.ndarray:
    """For each photo the temperature that was fitted on others, so that the same photos can fit and judge.

    Args:
        logits: shape (N, C).
        labels: shape (N,).
        seed: of the division into `FOLDS` parts.

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
    """Mean distance between confidence and accuracy over `BINS` bins, weighted by their photos: the paper's ECE.

    Args:
        probabilities: shape (N, C).
        labels: shape (N,).
    """
    # torchmetrics has it too, but rounds to float32, and puts a probability that is 1 then into a bin of its own.
    bins = reliability(probabilities, labels)
    return sum(each.photos * abs(each.confidence - each.accuracy) for each in bins) / len(labels)


def reliability(probabilities: np.ndarray, labels: np.ndarray) -> list[ReliabilityBin]:
    """What the diagram shows; the distances weighted by photos add up to `expected_calibration_error`."""
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

"""Figures of a measured set of photos, with confidence intervals."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import binomtest

from lightning_module.evaluation.calibration import (
    cross_fitted_temperatures,
    expected_calibration_error,
    fit_temperature,
    mistakes_of,
    negative_log_likelihood,
    probabilities_of,
)
from lightning_module.evaluation.measured_photos import Measured, MeasuredPhotos

CONFIDENCE = 0.95
"""Confidence level of all intervals."""
RESAMPLES = 2000


@dataclass(frozen=True)
class Evaluation:
    """All figures of one set.

    Attributes:
        measured: the photos and logits that the figures were computed from.
        confusion: int64, shape (C, C): number of photos by true class (row) and predicted class (column).
        accuracy: share of photos that are right.
        accuracy_interval: Wilson's interval.
        f1_macro: mean of the classes' F1.
        f1_interval: percentiles over resampled photos; None if they cannot vary.
        loss: mean cross-entropy.
        temperature: the number that the logits are best divided by.
        fitted_on: the set that the temperature was fitted on; if it is this one, `ece_scaled` is cross-fitted.
        mistakes: number of wrong photos in that set; with few, the temperature says little.
        ece: expected calibration error of the probabilities before temperature scaling.
        ece_scaled: the same after temperature scaling.
        probabilities: float64, shape (N, C), before temperature scaling.
        scaled: the same after temperature scaling.
    """

    measured: MeasuredPhotos
    confusion: np.ndarray
    accuracy: float
    accuracy_interval: tuple[float, float]
    f1_macro: float
    f1_interval: tuple[float, float] | None
    loss: float
    temperature: float
    fitted_on: Measured
    mistakes: int
    ece: float
    ece_scaled: float
    probabilities: np.ndarray
    scaled: np.ndarray

    def figures(self) -> dict[str, Any]:
        """Return the figures that metrics.json has in addition to the logged ones."""
        return {
            "accuracy_interval": list(self.accuracy_interval),
            "f1_macro_interval": self.f1_interval and list(self.f1_interval),
            "ece": self.ece,
            "temperature": self.temperature,
            "temperature_fitted_on": self.fitted_on,
            "temperature_mistakes": self.mistakes,
            "ece_scaled": self.ece_scaled,
            "checkpoint_sha256": self.measured.checkpoint_sha256,
        }


def evaluate(measured: MeasuredPhotos, validation: MeasuredPhotos | None = None) -> Evaluation | None:
    """Compute all figures.

    Args:
        measured: the set; only the figures after temperature scaling depend on another set.
        validation: the set to fit the temperature on; None to fit it on `measured` itself.

    Returns:
        The figures; None if there are no photos, or logits are NaN or infinite.
    """
    logits, labels = measured.logits, measured.labels
    if not np.isfinite(logits).all() or not len(labels):
        return None
    if validation is None or not np.isfinite(validation.logits).all():
        validation = measured
    own = validation.name == measured.name
    temperature = fit_temperature(validation.logits, validation.labels)
    probabilities = probabilities_of(logits)
    scaled = probabilities_of(logits, cross_fitted_temperatures(logits, labels) if own else temperature)
    confusion = np.zeros((logits.shape[1],) * 2, np.int64)
    np.add.at(confusion, (labels, logits.argmax(axis=1)), 1)
    hits = int(np.trace(confusion))
    return Evaluation(
        measured=measured,
        confusion=confusion,
        accuracy=hits / len(labels),
        accuracy_interval=wilson_interval(hits, len(labels)),
        f1_macro=macro_f1(confusion),
        f1_interval=f1_interval(confusion),
        loss=negative_log_likelihood(logits, labels),
        temperature=temperature,
        fitted_on=validation.name,
        mistakes=mistakes_of(validation.logits, validation.labels),
        ece=expected_calibration_error(probabilities, labels),
        ece_scaled=expected_calibration_error(scaled, labels),
        probabilities=probabilities,
        scaled=scaled,
    )


def wilson_interval(hits: int, photos: int) -> tuple[float, float]:
    """Compute Wilson's score interval of a share. Unlike the usual one, it is good near 0 and 1 and for few photos."""
    interval = binomtest(hits, photos).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def macro_f1(confusion: np.ndarray) -> float:
    """Compute the mean F1 of the classes that have photos; of what is not there nothing can be found."""
    hits = np.diag(confusion)
    either = confusion.sum(axis=0) + confusion.sum(axis=1)
    present = confusion.sum(axis=1) > 0
    return float((2 * hits[present] / either[present]).mean())


def f1_interval(confusion: np.ndarray, seed: int = 0) -> tuple[float, float] | None:
    """Compute the percentile interval of `macro_f1` over resampled photos (bootstrap).

    Drawing photos with replacement is equivalent to drawing cells of the matrix by their share of the photos, which is
    fast for any number of photos.

    Args:
        confusion: shape (C, C).
        seed: for the resampling.

    Returns:
        The interval; None if all photos are right or all are wrong. Then every resample is, too, which says nothing
        about chance.
    """
    if np.trace(confusion) in (0, confusion.sum()):
        return None
    generator, photos = np.random.default_rng(seed), int(confusion.sum())
    cells = np.flatnonzero(confusion)
    shares = confusion.flat[cells] / photos
    drawn = np.zeros(confusion.size, np.int64)
    values = []
    for _ in range(RESAMPLES):
        drawn[cells] = generator.multinomial(photos, shares)
        values.append(macro_f1(drawn.reshape(confusion.shape)))
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


class Mistake(NamedTuple):
    """A photo for which another class was predicted, with the probability of that class."""

    file: Path
    true: str
    predicted: str
    probability: float


def most_confident_mistakes(evaluation: Evaluation, count: int) -> list[Mistake]:
    """Return at most `count` mistakes, the most confident first."""
    measured, probabilities = evaluation.measured, evaluation.probabilities
    predicted, surety = probabilities.argmax(axis=1), probabilities.max(axis=1)
    wrong = np.flatnonzero(predicted != measured.labels)
    names = measured.class_names
    return [
        Mistake(Path(measured.files[row]), names[measured.labels[row]], names[predicted[row]], float(surety[row]))
        for row in wrong[np.argsort(-surety[wrong], kind="stable")][:count]
    ]


def per_class(confusion: list[list[int]], class_names: list[str]) -> dict[str, dict[str, float]]:
    """Compute precision, recall, F1 and support of each class.

    A class that was never predicted has precision 0, and a class without photos has recall 0, which is the default of
    scikit-learn's `classification_report`.

    Args:
        confusion: number of photos by true class (row) and predicted class (column), shape (C, C).
        class_names: C names.
    """
    counts = np.asarray(confusion, np.int64)
    hits, predicted, support = np.diag(counts), counts.sum(axis=0), counts.sum(axis=1)
    return {
        name: {
            "precision": _share(hits[index], predicted[index]),
            "recall": _share(hits[index], support[index]),
            "f1": _share(2 * hits[index], predicted[index] + support[index]),
            "support": int(support[index]),
        }
        for index, name in enumerate(class_names)
    }


def _share(part: int, whole: int) -> float:
    return float(part / whole) if whole else 0.0


def finite(value: Any) -> float | None:
    """Convert a scalar for JSON: None for NaN and infinity, which JSON cannot hold."""
    number = float(value)
    return number if math.isfinite(number) else None

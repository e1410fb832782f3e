"""How much can be labelled by machine, and how good those labels are, by the probability of each photo's label.

A photo whose label is less probable than a threshold is left to a person (`lightning predict --min_probability`). The
higher the threshold, the fewer photos get a label, and the more of those are right: selective classification, Geifman
and El-Yaniv 2017.
"""

from typing import NamedTuple

import numpy as np

from lightning_module.evaluation.figures import wilson_interval

COVERAGES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.5)
"""Shares of the photos, those with the most probable labels, of which the accuracy is told."""
PRECISIONS = (0.95, 0.99)
"""Shares of right labels that a threshold per class is looked for."""
FEWEST = 20
"""Photos that must be at or above a class's threshold: of fewer, the share of right ones says little."""


class Level(NamedTuple):
    """What labelling by machine gives at one threshold.

    Attributes:
        coverage: share of the photos that get a label.
        photos: how many those are.
        min_probability: the threshold: the smallest probability among their labels.
        accuracy: share of them that is right.
        interval: Wilson's interval of it.
    """

    coverage: float
    photos: int
    min_probability: float
    accuracy: float
    interval: tuple[float, float]


class Thresholds(NamedTuple):
    """What each threshold covers, from the highest to the one that covers all photos.

    Photos with equally probable labels are labelled together, as any threshold would have it.

    Attributes:
        counts: how many photos have a label at least as probable, int, shape (T,), rising.
        hits: how many of those are right, int, shape (T,).
        min_probability: the thresholds, float, shape (T,), falling.
    """

    counts: np.ndarray
    hits: np.ndarray
    min_probability: np.ndarray


def each_threshold(probabilities: np.ndarray, labels: np.ndarray) -> Thresholds:
    """Count what is labelled, and rightly, at every threshold.

    Args:
        probabilities: shape (N, C).
        labels: the true classes, int, shape (N,).
    """
    surety, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    order = np.argsort(-surety, kind="stable")
    surety, hits = surety[order], np.cumsum(right[order])
    last = np.flatnonzero(np.append(surety[1:] != surety[:-1], True))  # of those with the same probability
    return Thresholds(last + 1, hits[last], surety[last])


def coverage_curve(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute the accuracy at every threshold.

    Args:
        probabilities: shape (N, C).
        labels: the true classes, int, shape (N,).

    Returns:
        Coverage, accuracy of what is covered, and threshold, each float64, shape (T,), of rising coverage to 1.
    """
    counts, hits, threshold = each_threshold(probabilities, labels)
    return counts / len(labels), hits / counts, threshold


def automation_levels(probabilities: np.ndarray, labels: np.ndarray) -> list[Level]:
    """Return what labelling by machine gives at each of `COVERAGES`, or at the next larger share that is possible."""
    counts, hits, threshold = each_threshold(probabilities, labels)
    coverage = counts / len(labels)
    rows = dict.fromkeys(int(np.searchsorted(coverage, wanted - 1e-9)) for wanted in COVERAGES)
    return [
        Level(
            float(coverage[row]), int(counts[row]), float(threshold[row]), float(hits[row] / counts[row]),
            wilson_interval(int(hits[row]), int(counts[row])),
        )
        for row in rows
    ]  # fmt: skip


class ClassThreshold(NamedTuple):
    """The threshold above which enough of a class's labels are right.

    Attributes:
        min_probability: the smallest with which the precision is reached, by the photos at hand.
        photos: how many photos get the label then.
        of: how many get it without a threshold.
    """

    min_probability: float
    photos: int
    of: int


def class_thresholds(probabilities: np.ndarray, labels: np.ndarray, precision: float) -> list[ClassThreshold | None]:
    """Find for each class the smallest threshold at which this share of the photos so labelled is right.

    Args:
        probabilities: shape (N, C).
        labels: the true classes, int, shape (N,).
        precision: the wanted share, 0 to 1.

    Returns:
        C thresholds; None where none reaches it with at least `FEWEST` photos.
    """
    predicted = probabilities.argmax(axis=1)
    found: list[ClassThreshold | None] = []
    for number in range(probabilities.shape[1]):
        mine = predicted == number
        if not mine.any():
            found.append(None)
            continue
        counts, hits, threshold = each_threshold(probabilities[mine], labels[mine])
        enough = np.flatnonzero((hits / counts >= precision) & (counts >= FEWEST))
        row = enough[-1] if len(enough) else None
        found.append(None if row is None else ClassThreshold(float(threshold[row]), int(counts[row]), int(mine.sum())))
    return found

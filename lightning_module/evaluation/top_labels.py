"""The likeliest labels of photos, printed identically by torch and Keras, on every processor, for every batch size.

They all compute the same function but round differently on the way, so their probabilities differ in float32's last
digits. Rounding for print cannot hide that: near the border between two printed numbers, a small difference decides
which one is printed. So if a probability is too near to such a border, or two probabilities are too near to each other,
the photo is computed again in float64, whose errors are a hundred thousand times smaller than the remaining distances.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

SHOWN = 3
"""Number of labels per photo."""
DECIMALS = 3
"""Decimals of a printed probability. Each more would send ten times as many photos through float64, which takes ten
times as long. With three it is one photo in twenty, for a network that is unsure of most."""
FLOAT32_ERROR = 1e-5
"""Largest error of a probability in float32; the proof of a twin allows the same difference between both sides."""
RELATIVE_GAP = 1e-3
"""Two probabilities whose relative difference is less may be in the wrong order. This is much more than float32's error
of the logits, which becomes a relative error of the probabilities."""


class TopLabels(NamedTuple):
    """The likeliest classes.

    Attributes:
        classes: int64, shape (N, K), class indices, the likeliest first; K is `SHOWN`, or the number of classes if that
            is smaller. Equally likely classes are in the order of their indices.
        probabilities: float64, shape (N, K), to be printed with `DECIMALS` decimals.
    """

    classes: np.ndarray
    probabilities: np.ndarray


def top_labels(probabilities: np.ndarray, exact: Callable[[np.ndarray], np.ndarray]) -> TopLabels:
    """Choose the likeliest labels and round their probabilities; get exact ones where float32's error could matter.

    Args:
        probabilities: float32, shape (N, C), each at most `FLOAT32_ERROR` from the exact one.
        exact: takes row numbers, int64, shape (M,), and returns their probabilities in float64, shape (M, C).
    """
    wide = probabilities.astype(np.float64)
    rows = np.flatnonzero(float32_decides(wide))
    if len(rows):
        wide[rows] = exact(rows)
    with np.errstate(divide="ignore"):
        likelihood = np.round(np.log(wide), 9)  # what differs only by float64's rounding is made equal
    classes = np.argsort(-likelihood, axis=1, kind="stable")[:, :SHOWN]
    # 1/16 is exactly between two printed numbers, and float64's results may be just above or just below it
    return TopLabels(classes, np.round(np.take_along_axis(wide, classes, axis=1), 10))


def float32_decides(probabilities: np.ndarray) -> np.ndarray:
    """Return for each photo whether float32's error could change what is printed.

    Args:
        probabilities: shape (N, C).

    Returns:
        bool, shape (N,).
    """
    top = -np.sort(-probabilities, axis=1)[:, : SHOWN + 1]
    scaled = top[:, :SHOWN] * 10**DECIMALS
    from_edge = np.abs(scaled - np.floor(scaled) - 0.5)
    at_edge = (from_edge <= FLOAT32_ERROR * 10**DECIMALS).any(axis=1)
    near_tie = (top[:, 1:] >= top[:, :-1] * (1 - RELATIVE_GAP)).any(axis=1)
    return np.asarray(at_edge | near_tie)

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
"""Number of labels per photo, unless told otherwise."""
DECIMALS = 3
"""Decimals of a printed probability. Each more would send ten times as many photos through float64, which takes ten
times as long. With three it is one photo in twenty, for a network that is unsure of most."""
FLOAT32_ERROR = 1e-5
"""Largest error of a probability in float32; the proof of a twin allows the same difference between both sides."""
RELATIVE_GAP = 1e-3
"""Two probabilities whose relative difference is less may be in the wrong order. This is much more than float32's error
of the logits, which becomes a relative error of the probabilities."""
LEAST = 1e-30
"""In float32, what is less may have lost its digits, and a temperature above 1 makes it large again."""


class TopLabels(NamedTuple):
    """The likeliest classes.

    Attributes:
        classes: int64, shape (N, K), class indices, the likeliest first; K is as many as were asked for, or the number
            of classes if that is smaller. Equally likely classes are in the order of their indices.
        probabilities: float64, shape (N, K), to be printed with `DECIMALS` decimals.
    """

    classes: np.ndarray
    probabilities: np.ndarray


def top_labels(
    probabilities: np.ndarray,
    exact: Callable[[np.ndarray], np.ndarray],
    shown: int = SHOWN,
    temperature: float = 1.0,
) -> TopLabels:
    """Choose the likeliest labels and round their probabilities; get exact ones where float32's error could matter.

    Args:
        probabilities: float32, shape (N, C), each at most `FLOAT32_ERROR` from the exact one.
        exact: takes row numbers, int64, shape (M,), and returns their probabilities in float64, shape (M, C).
        shown: number of labels per photo.
        temperature: the logits are divided by it; 1 leaves the probabilities as they are.
    """
    wide = probabilities.astype(np.float64)
    rows = np.flatnonzero(float32_decides(wide, shown, temperature))
    if len(rows):
        wide[rows] = exact(rows)
    wide = with_temperature(wide, temperature)
    with np.errstate(divide="ignore"):
        likelihood = np.round(np.log(wide), 9)  # what differs only by float64's rounding is made equal
    classes = np.argsort(-likelihood, axis=1, kind="stable")[:, :shown]
    # 1/16 is exactly between two printed numbers, and float64's results may be just above or just below it
    return TopLabels(classes, np.round(np.take_along_axis(wide, classes, axis=1), 10))


def with_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Return the probabilities that the logits, divided by a temperature, have: the same powers of all, to the sum 1.

    Args:
        probabilities: float64, shape (N, C), adding up to 1 in each row.
        temperature: above zero.
    """
    if temperature == 1:
        return probabilities
    with np.errstate(divide="ignore"):
        logits = np.log(probabilities) / temperature
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def float32_decides(probabilities: np.ndarray, shown: int = SHOWN, temperature: float = 1.0) -> np.ndarray:
    """Return for each photo whether float32's error could change what is printed.

    Args:
        probabilities: shape (N, C), before the temperature.
        shown: as for `top_labels`; likewise the temperature.
        temperature: one below 1 enlarges the logits, and so their errors.

    Returns:
        bool, shape (N,).
    """
    larger = max(1.0, 1 / temperature)
    lost = (probabilities < LEAST).any(axis=1) if temperature > 1 else np.zeros(len(probabilities), bool)
    top = -np.sort(-with_temperature(probabilities, temperature), axis=1)[:, : shown + 1]
    scaled = top[:, :shown] * 10**DECIMALS
    from_edge = np.abs(scaled - np.floor(scaled) - 0.5)
    at_edge = (from_edge <= FLOAT32_ERROR * larger * 10**DECIMALS).any(axis=1)
    near_tie = (top[:, 1:] >= top[:, :-1] * (1 - RELATIVE_GAP * larger)).any(axis=1)
    return np.asarray(at_edge | near_tie | lost)

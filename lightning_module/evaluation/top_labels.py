"""The likeliest labels of photos, so that every road to them prints the same.

torch and Keras, one processor and another, batches of 8 and of 32: all compute the same function and round differently
on the way, so their probabilities differ in the last of float32's digits. No way of rounding can hide that: wherever
it changes from one printed number to the next, a small difference decides. So where a probability is so near to such a
place, or two are so near to each other, that float32 could decide, the photo is computed again in float64, whose
errors are a hundred thousand times smaller than what is left to decide by.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

SHOWN = 3
"""Labels of each photo."""
DECIMALS = 3
"""Of a printed probability. Each more would send ten times as many photos through float64, which takes ten times as
long: one in twenty now, of a network that is unsure of most."""
FLOAT32_ERROR = 1e-5
"""How far a probability in float32 may be from the exact one: what the proof of a twin allows between the two."""
RELATIVE_GAP = 1e-3
"""Two probabilities that differ by less of the larger may be the other way round: much more than float32's error of
the logits, which is a relative error of the probabilities."""


class TopLabels(NamedTuple):
    """The likeliest classes.

    Attributes:
        classes: int64, shape (N, K), indices, the likeliest first; K is `SHOWN`, or all classes where there are fewer.
            Of classes that are equally likely the first comes first.
        probabilities: float64, shape (N, K), to be printed with `DECIMALS`.
    """

    classes: np.ndarray
    probabilities: np.ndarray


def top_labels(probabilities: np.ndarray, exact: Callable[[np.ndarray], np.ndarray]) -> TopLabels:
    """Choose and round; ask for exact probabilities where float32 could decide.

    Args:
        probabilities: float32, shape (N, C), each at most `FLOAT32_ERROR` from the exact one.
        exact: of rows (int64, shape (M,)) the probabilities in float64, shape (M, C).
    """
    wide = probabilities.astype(np.float64)
    rows = np.flatnonzero(float32_decides(wide))
    if len(rows):
        wide[rows] = exact(rows)
    with np.errstate(divide="ignore"):
        likelihood = np.round(np.log(wide), 9)  # equal but for float64's rounding is equal
    classes = np.argsort(-likelihood, axis=1, kind="stable")[:, :SHOWN]
    # 1/16 is exactly half way between two printed numbers, and half of float64's results lie above
    return TopLabels(classes, np.round(np.take_along_axis(wide, classes, axis=1), 10))


def float32_decides(probabilities: np.ndarray) -> np.ndarray:
    """Whether float32's error could change what is printed.

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

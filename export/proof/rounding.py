"""How far apart float32 answers may be: what rounding does to this network, if float64 has shown it to be the same.

A deep network with random weights can amplify the rounding of float32 to 1e-3 of a probability. Where every layer
agrees in float64, that is no fault of either side, and the usual threshold would blame it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from export.proof.report import Check

PROBABILITY_THRESHOLD = 1e-5
"""Largest difference of a probability, both sides in float32; usual rounding causes about a tenth of it."""
# The smaller of the two sides' own rounding counts, so that a fault of one side in float32 alone does not excuse
# itself. The other side may sum in another order and round several times as much (Keras 2's old kernels: four times). A
# side that computes in a shorter type, bfloat16 or TF32, rounds thousands of times as much.
_TIMES = 10.0
# Answers that rounding alone moves by more than this prove nothing.
_MOST = 1e-2


@dataclass(frozen=True)
class Allowed:
    """How far apart answers may be.

    Attributes:
        threshold: the largest difference that passes.
        why: for the report; empty if it is the usual threshold.
    """

    threshold: float = PROBABILITY_THRESHOLD
    why: str = ""


def allowed_difference(
    layers: Check, sides: Mapping[str, tuple[np.ndarray, np.ndarray]], scale: float = 1.0
) -> Allowed:
    """The threshold for this network.

    Args:
        layers: the check of every layer in float64.
        sides: name of each of the two sides -> its answers to the same images, (N, C), in float32 and in float64.
        scale: of the answers: 1 for probabilities; the largest value for logits.
    """
    usual = Allowed(PROBABILITY_THRESHOLD * scale)
    rounding = {
        name: float(np.abs(single.astype(np.float64) - double).max())
        for name, (single, double) in sides.items()
        if single.shape == double.shape and single.size
    }
    # also false where one of them is NaN
    if not layers.passed or len(rounding) < 2 or not all(value >= 0 for value in rounding.values()):
        return usual
    threshold = min(_TIMES * min(rounding.values()), _MOST * scale)
    if not threshold > usual.threshold:
        return usual
    shown = ", ".join(f"{name} {value:.2g}" for name, value in rounding.items())
    return Allowed(
        threshold,
        f"every layer agrees in float64, so it is judged by what float32 does to this network: {_TIMES:g} times the "
        f"smaller of each side's own rounding ({shown})",
    )

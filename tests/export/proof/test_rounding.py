"""What float32 may do to a network's answers, and what is not excused by it."""

import numpy as np
import pytest

from export.proof.checks import check_probabilities
from export.proof.image_sets import ImageSet
from export.proof.report import Check
from export.proof.rounding import PROBABILITY_THRESHOLD, allowed_difference

IMAGES = ImageSet("synthetic", np.zeros((2, 4, 4, 3), np.float32), ["a", "b"])
EXACT = np.array([[0.25, 0.75], [0.5, 0.5]])


def layers(passed: bool) -> Check:
    return Check("layers_float64", passed, 0.0, 1e-10, "", "")


def moved(by: float) -> np.ndarray:
    return (EXACT + np.array([[by, -by], [0, 0]])).astype(np.float32)


def test_a_deep_network_is_judged_by_its_own_rounding():
    """Both sides round by 3e-4, one up and one down: with every layer equal in float64, that is no difference."""
    ours, theirs = moved(3e-4), moved(-3e-4)
    allowed = allowed_difference(layers(True), {"torch": (ours, EXACT), "Keras": (theirs, EXACT)})
    check = check_probabilities(IMAGES, ours, theirs, threshold=allowed.threshold, why=allowed.why)
    assert check.passed
    assert "torch 0.0003, Keras 0.0003" in check.detail
    assert not check_probabilities(IMAGES, ours, theirs).passed


@pytest.mark.parametrize(
    ("passed", "ours", "theirs"),
    [(False, 3e-4, -3e-4), (True, 1e-6, 3e-4), (True, 3e-4, 5e-3), (True, 0.03, -0.03), (True, 0.0, float("nan"))],
    ids=["a layer differs", "one side alone", "one side far more", "too much to prove anything", "no number"],
)
def test_a_real_difference_is_not_excused(passed, ours, theirs):
    gave = moved(ours), moved(theirs)
    allowed = allowed_difference(layers(passed), {"torch": (gave[0], EXACT), "Keras": (gave[1], EXACT)})
    assert not check_probabilities(IMAGES, *gave, threshold=allowed.threshold).passed


def test_a_network_that_rounds_little_has_the_usual_threshold():
    allowed = allowed_difference(layers(True), {"torch": (moved(1e-7), EXACT), "Keras": (moved(2e-7), EXACT)})
    assert (allowed.threshold, allowed.why) == (PROBABILITY_THRESHOLD, "")

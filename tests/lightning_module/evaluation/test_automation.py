"""Labelling by machine: the accuracy of the surest photos, and the thresholds from which labels can be trusted."""

import numpy as np
import pytest

from lightning_module.evaluation.automation import (
    FEWEST,
    automation_levels,
    class_thresholds,
    coverage_curve,
)

TEN = np.array([0.99, 0.95, 0.95, 0.9, 0.8, 0.8, 0.7, 0.6, 0.6, 0.55])
"""Probability of the label of ten photos of two classes; the first five labels are right, and the last one."""
RIGHT = np.array([True] * 5 + [False] * 4 + [True])


def two_classes(surety: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Photos labelled 0 with this probability."""
    return np.stack([surety, 1 - surety], axis=1), np.where(right, 0, 1)


def test_curve_counts_photos_of_the_same_probability_together():
    coverage, accuracy, threshold = coverage_curve(*two_classes(TEN, RIGHT))
    assert threshold.tolist() == [0.99, 0.95, 0.9, 0.8, 0.7, 0.6, 0.55]
    assert coverage == pytest.approx([0.1, 0.3, 0.4, 0.6, 0.7, 0.9, 1.0])
    assert accuracy == pytest.approx([1, 1, 1, 5 / 6, 5 / 7, 5 / 9, 0.6])


def test_curve_does_not_depend_on_the_order_of_photos():
    order = np.random.default_rng(0).permutation(10)
    for one, other in zip(
        coverage_curve(*two_classes(TEN, RIGHT)), coverage_curve(*two_classes(TEN[order], RIGHT[order])), strict=True
    ):
        assert one.tolist() == other.tolist()


def test_levels_are_the_next_possible_ones():
    levels = {round(each.coverage, 2): each for each in automation_levels(*two_classes(TEN, RIGHT))}
    assert list(levels) == [1.0, 0.9, 0.7, 0.6]  # 0.95 takes all, 0.8 takes 0.9, 0.5 takes 0.6
    assert levels[0.6].min_probability == 0.8
    assert levels[0.6].photos == 6
    assert levels[0.6].accuracy == pytest.approx(5 / 6)
    assert levels[0.6].interval[0] < 5 / 6 < levels[0.6].interval[1]


def test_threshold_of_a_class_is_the_smallest_that_suffices():
    surety = np.linspace(0.99, 0.6, 40)
    right = np.ones(40, bool)
    right[[25, 30, 31, 32]] = False  # of the first 25 all are right; of 29, 28; at the end 36 of 40
    probabilities, labels = two_classes(surety, right)
    first, second = class_thresholds(probabilities, labels, 0.95)
    assert first is not None
    assert first.photos == 30  # 29 of 30 are right, and 29 of 31 are not enough
    assert first.min_probability == pytest.approx(surety[29])
    assert first.of == 40
    assert second is None  # never predicted
    (all_right, _) = class_thresholds(probabilities, labels, 0.99)
    assert all_right is not None
    assert all_right.photos == 25


def test_too_few_photos_are_no_threshold():
    probabilities, labels = two_classes(np.linspace(0.99, 0.9, FEWEST - 1), np.ones(FEWEST - 1, bool))
    assert class_thresholds(probabilities, labels, 0.95) == [None, None]
    probabilities, labels = two_classes(np.linspace(0.99, 0.9, FEWEST), np.ones(FEWEST, bool))
    assert class_thresholds(probabilities, labels, 0.95)[0] is not None

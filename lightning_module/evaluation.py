"""Figures per class from a confusion matrix."""

import math
from typing import Any

import numpy as np


def per_class(confusion: list[list[int]], class_names: list[str]) -> dict[str, dict[str, float]]:
    """Precision, recall, F1 and support of each class.

    Where nothing was predicted as a class its precision is 0, where a class has no photos its recall is 0: as
    scikit-learn's `classification_report` has it by default.

    Args:
        confusion: photos of true class (row) that were taken for a class (column), shape (C, C).
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
    """Return a scalar as JSON can hold it: None for NaN and infinity."""
    number = float(value)
    return number if math.isfinite(number) else None

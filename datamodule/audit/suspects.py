"""Finds photos that do not look like their class, using features of a frozen backbone.

Two questions decide how suspicious a photo is. *Would a classifier that never saw this photo give it this label?* Two
linear classifiers, logistic regression and a shrunk discriminant analysis, are cross-validated and their probabilities
multiplied; cleanlab scores the label. Near-duplicates are in the same fold, because otherwise a photo would confirm the
label of its copy. *Is it far from the middle of its class?* This finds photos that resemble no class; a classifier is
often sure of those. Both scores are standardised, and the second has a fifth of the weight.
"""

import warnings
from dataclasses import dataclass

import numpy as np
from cleanlab.rank import get_label_quality_scores
from sklearn.cluster import KMeans
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold

FOLDS = 5
COMPONENTS = 96
"""Number of principal components used by the discriminant analysis."""
TEMPERATURE = 4.0
"""The discriminant analysis's scores are divided by this: with so many components it is far too sure of itself."""
DISTANCE_WEIGHT = 0.2
OUTLYING_ABOVE = 4.0
"""A photo whose distance from the middle of its class is more than this many robust standard deviations above the
median is listed, whatever the classifier says."""
GROUPS = 4
"""Into how many groups a class is divided."""
FEWEST_IN_CLASS = 5


@dataclass(frozen=True)
class Suspects:
    """The verdict on N photos.

    Attributes:
        suspicion: shape (N,); only the order has a meaning. Lowest for photos of classes too small to judge.
        listed: shape (N,), bool: photos that should be looked at.
        probability: out-of-sample probability of the photo's own class, shape (N,); NaN if not judged.
        likeliest: index of the most probable class, shape (N,).
        outlying: distance from the class's middle in robust standard deviations, shape (N,).
        unjudged: labels of classes with fewer than `FEWEST_IN_CLASS` photos.
    """

    suspicion: np.ndarray
    listed: np.ndarray
    probability: np.ndarray
    likeliest: np.ndarray
    outlying: np.ndarray
    unjudged: tuple[int, ...]


def represent(features: np.ndarray) -> np.ndarray:
    """Return square roots of the features (signs kept), scaled to length 1, so that a few channels do not dominate."""
    roots = np.sign(features) * np.sqrt(np.abs(features))
    return roots / np.maximum(np.linalg.norm(roots, axis=1, keepdims=True), 1e-12)


def find_suspects(features: np.ndarray, labels: np.ndarray, groups: np.ndarray, seed: int = 0) -> Suspects:
    """Judge every photo by the other photos.

    Args:
        features: pooled features, shape (N, F).
        labels: class indices, shape (N,).
        groups: group numbers, the same for near-duplicates, shape (N,).
        seed: for the folds.
    """
    count = len(labels)
    sizes = np.bincount(labels, minlength=1)
    judged = sizes[labels] >= FEWEST_IN_CLASS
    unit = represent(features.astype(np.float64))
    probability, likeliest = np.full(count, np.nan), labels.copy()
    outlying, suspicion, listed = np.zeros(count), np.full(count, -np.inf), np.zeros(count, bool)
    present = np.unique(labels[judged])
    for label in present:
        rows = np.flatnonzero(labels == label)
        distance = np.linalg.norm(unit[rows] - np.median(unit[rows], axis=0), axis=1)
        spread = 1.4826 * np.median(np.abs(distance - np.median(distance)))
        outlying[rows] = (distance - np.median(distance)) / max(spread, 1e-6)
    listed |= judged & (outlying > OUTLYING_ABOVE)
    rows = np.flatnonzero(judged)
    if len(rows):
        suspicion[rows] = DISTANCE_WEIGHT * _standardised(outlying[rows])
    if len(present) > 1:
        own = np.searchsorted(present, labels[rows])
        probabilities = cross_validate(unit[rows], own, groups[rows], seed)
        quality = get_label_quality_scores(own, probabilities, method="self_confidence")
        suspicion[rows] += _standardised(-np.log(np.maximum(quality, 1e-12)))
        probability[rows], likeliest[rows] = quality, present[probabilities.argmax(1)]
        listed |= likeliest != labels
    unjudged = tuple(label for label in range(len(sizes)) if 0 < sizes[label] < FEWEST_IN_CLASS)
    return Suspects(suspicion, listed, probability, likeliest, outlying, unjudged)


def cross_validate(unit: np.ndarray, labels: np.ndarray, groups: np.ndarray, seed: int) -> np.ndarray:
    """Compute out-of-sample class probabilities, shape (N, C), of two classifiers combined.

    Args:
        unit: shape (N, F), see `represent`.
        labels: 0 to C - 1, each at least `FEWEST_IN_CLASS` times, shape (N,).
        groups: see `find_suspects`.
        seed: for the folds.
    """
    classes = int(labels.max()) + 1
    # log of the product of both probabilities; very small for a class that is missing in a fold's training part
    scores = np.full((len(labels), classes), 2 * np.log(1e-6))
    with warnings.catch_warnings():
        # a class with few photos, all near-duplicates, cannot be spread over the folds; it is judged all the same
        warnings.simplefilter("ignore", UserWarning)
        folds = list(StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed).split(unit, labels, groups))
    for train, held_out in folds:
        seen = np.unique(labels[train])
        if len(seen) < 2 or not len(held_out):
            continue
        logistic = LogisticRegression(C=10, max_iter=500).fit(unit[train], labels[train])
        reduction = PCA(min(COMPONENTS, len(train) - 1, unit.shape[1]), random_state=0).fit(unit[train])
        even = np.full(len(seen), 1 / len(seen))  # a larger class is not likelier: its photos may be mislabelled
        discriminant = LinearDiscriminantAnalysis(solver="lsqr", covariance_estimator=LedoitWolf(), priors=even)
        discriminant.fit(reduction.transform(unit[train]), labels[train])
        margin = discriminant.decision_function(reduction.transform(unit[held_out]))
        if margin.ndim == 1:  # for two classes scikit-learn returns only the difference
            margin = np.stack([np.zeros_like(margin), margin], axis=1)
        scores[np.ix_(held_out, seen)] = logistic.predict_log_proba(unit[held_out]) + _log_softmax(margin / TEMPERATURE)
    return np.exp(_log_softmax(scores / 2))


def find_groups(features: np.ndarray, labels: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Divide the photos of every class into a few groups of similar ones.

    Args:
        features: pooled features, shape (N, F).
        labels: class indices, shape (N,).
        seed: for the search.

    Returns:
        The group of each photo within its class, 0 the smallest, and its distance from the group's middle; both (N,).
    """
    unit = represent(features.astype(np.float64))
    groups, distances = np.zeros(len(labels), int), np.zeros(len(labels))
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        parts = min(GROUPS, len(rows) // FEWEST_IN_CLASS)
        if parts < 2:
            continue
        reduced = PCA(min(32, len(rows) - 1, unit.shape[1]), random_state=0).fit_transform(unit[rows])
        search = KMeans(parts, n_init=10, random_state=seed).fit(reduced)
        by_size = np.argsort(np.argsort(np.bincount(search.labels_, minlength=parts), kind="stable"), kind="stable")
        groups[rows] = by_size[search.labels_]
        distances[rows] = np.linalg.norm(reduced - search.cluster_centers_[search.labels_], axis=1)
    return groups, distances


def _standardised(values: np.ndarray) -> np.ndarray:
    return (values - values.mean()) / max(float(values.std()), 1e-12)


def _log_softmax(scores: np.ndarray) -> np.ndarray:
    scores = scores - scores.max(axis=1, keepdims=True)
    return scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))

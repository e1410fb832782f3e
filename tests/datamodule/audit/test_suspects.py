import numpy as np
import pytest

from datamodule.audit.suspects import find_groups, find_suspects


def features_of(labels, seed=0, width=40):
    """Positive features, as a pooled ReLU gives them, around a middle for each class; -1 belongs to none."""
    chance = np.random.default_rng(seed)
    middles = np.random.default_rng(99).gamma(0.6, 1.0, (4, width))
    rows = [chance.gamma(0.6, 1.0, width) if label < 0 else middles[label] for label in labels]
    return np.maximum(np.stack(rows) + chance.normal(0, 0.25, (len(labels), width)), 0)


@pytest.fixture(scope="module")
def planted():
    real = np.repeat([0, 1, 2], 60)
    labels = real.copy()
    wrong = np.arange(0, 180, 20)
    labels[wrong] = (labels[wrong] + 1) % 3
    foreign = np.arange(5, 180, 36)
    real[foreign] = -1
    return features_of(real), labels, wrong, foreign


def test_planted_errors_come_first(planted):
    features, labels, wrong, foreign = planted
    suspects = find_suspects(features, labels, np.arange(180))
    bad = {*wrong.tolist(), *foreign.tolist()}
    first = set(np.argsort(-suspects.suspicion)[: len(bad)].tolist())
    assert len(first & bad) >= 0.9 * len(bad)
    assert (suspects.likeliest[wrong] == (labels[wrong] - 1) % 3).mean() > 0.8
    assert suspects.listed[wrong].mean() > 0.8
    assert suspects.listed.sum() < 2 * len(bad)
    assert np.median(suspects.outlying[foreign]) > 3


def test_without_errors_hardly_anything_is_listed():
    labels = np.repeat([0, 1, 2], 60)
    assert find_suspects(features_of(labels), labels, np.arange(180)).listed.sum() <= 3


def test_features_that_say_nothing_find_nothing(planted):
    _, labels, wrong, _ = planted
    suspects = find_suspects(np.random.default_rng(0).random((180, 40)), labels, np.arange(180))
    first = set(np.argsort(-suspects.suspicion)[: len(wrong)].tolist())
    assert len(first & set(wrong.tolist())) <= 3


def test_a_photo_does_not_vouch_for_its_twin():
    labels = np.repeat([0, 1], 40)
    features = features_of(labels)
    chance = np.random.default_rng(1)
    twins = features[3] + chance.normal(0, 0.001, (12, features.shape[1]))  # of class 0, with label 1
    features, labels = np.vstack([features, np.abs(twins)]), np.append(labels, np.ones(12, int))
    apart = find_suspects(features, labels, np.arange(92)).probability[80:].mean()
    together = find_suspects(features, labels, np.append(np.arange(80), np.full(12, 80))).probability[80:].mean()
    assert together < 0.5 < apart


@pytest.mark.parametrize("labels", [np.zeros(12, int), np.repeat([0, 1], [12, 2]), np.array([0, 1])])
def test_few_classes_or_photos_are_no_crash(labels):
    suspects = find_suspects(features_of(labels), labels, np.arange(len(labels)))
    assert suspects.unjudged == tuple(label for label, size in enumerate(np.bincount(labels)) if size < 5)
    assert not suspects.listed[np.isin(labels, suspects.unjudged)].any()
    find_groups(features_of(labels), labels)


def test_a_foreign_kind_is_a_group_of_its_own():
    kinds = np.repeat([0, 3], [60, 15])
    groups, distances = find_groups(features_of(kinds), np.zeros(75, int))
    of_foreign = np.bincount(groups[60:]).argmax()
    assert set(np.flatnonzero(groups == of_foreign)) == set(range(60, 75))
    assert np.bincount(groups).argmin() == 0
    assert (distances >= 0).all()

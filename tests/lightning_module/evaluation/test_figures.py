import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_confusion_matrix, multiclass_f1_score

from lightning_module.evaluation.figures import (
    evaluate,
    f1_interval,
    macro_f1,
    most_confident_mistakes,
    wilson_interval,
)
from lightning_module.evaluation.measured_photos import MeasuredPhotos
from lightning_module.measured_module import MacroF1


def measured(count: int = 200, name: str = "validation", seed: int = 0, **changes) -> MeasuredPhotos:
    """Photos of a network that is right half of the time, and too sure."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, count)
    logits = generator.normal(size=(count, 3)).astype(np.float32)
    logits[np.arange(count), labels] += 1
    facts = {
        "name": name,
        "class_names": ["a", "b", "c"],
        "files": [f"photos/{number}.jpg" for number in range(count)],
        "labels": labels,
        "logits": logits * 4,
        "checkpoint": "run/best.ckpt",
        "checkpoint_sha256": "0" * 64,
        "image_size": (32, 32),
        "interpolation": "nearest",
    }
    return MeasuredPhotos(**facts | changes)


def test_wilson_interval_by_the_formula():
    for hits, photos in ((292, 341), (0, 10), (10, 10), (1, 2)):
        z, share = 1.959963984540054, hits / photos
        middle = (share + z**2 / (2 * photos)) / (1 + z**2 / photos)
        half = z / (1 + z**2 / photos) * np.sqrt(share * (1 - share) / photos + z**2 / (4 * photos**2))
        assert wilson_interval(hits, photos) == pytest.approx((middle - half, middle + half), abs=1e-9)


def test_wilson_interval_covers_the_truth_as_often_as_it_says():
    intervals = {count: wilson_interval(count, 100) for count in range(101)}
    covered = []
    for share in np.linspace(0.5, 0.98, 25):
        hits = np.random.default_rng(0).binomial(100, share, 2000).tolist()
        covered.append(np.mean([intervals[count][0] <= share <= intervals[count][1] for count in hits]))
    assert np.mean(covered) == pytest.approx(0.95, abs=0.01)


def test_macro_f1_is_torchmetrics_of_the_classes_that_have_photos():
    generator = np.random.default_rng(1)
    for classes, predictable in ((3, 3), (5, 3), (5, 5)):
        labels = torch.from_numpy(generator.integers(0, 3, 60))
        predicted = torch.from_numpy(generator.integers(0, predictable, 60))
        confusion = multiclass_confusion_matrix(predicted, labels, classes).numpy()
        expected = multiclass_f1_score(predicted, labels, classes, average="none")[:3].mean()
        assert macro_f1(confusion) == pytest.approx(expected.item(), abs=1e-6)
        logged = MacroF1(classes)
        logged.update(predicted[:30], labels[:30])
        logged.update(predicted[30:], labels[30:])
        assert logged.compute().item() == pytest.approx(expected.item(), abs=1e-6)
    # negative control: torchmetrics' own mean counts what was predicted and is not there
    assert expected > multiclass_f1_score(predicted, labels, classes, average="macro") + 0.05


def test_f1_interval_is_seeded_and_narrows_with_photos():
    confusion = np.array([[8, 1, 1], [2, 7, 1], [0, 1, 9]])
    low, high = f1_interval(confusion)
    assert low < macro_f1(confusion) < high
    assert f1_interval(confusion) == (low, high)
    assert f1_interval(confusion, seed=1) != (low, high)
    more = f1_interval(confusion * 100)
    assert more[1] - more[0] < (high - low) / 5
    # whatever is drawn of photos that are all right is all right: that is no certainty
    assert f1_interval(np.diag([5, 5])) is None
    assert f1_interval(np.array([[0, 3], [2, 0]])) is None
    assert f1_interval(np.array([[5, 1], [0, 5]])) is not None


def test_figures_of_a_set():
    photos = measured()
    found = evaluate(photos)
    predicted = photos.logits.argmax(axis=1)
    assert found.accuracy == np.mean(predicted == photos.labels)
    assert found.confusion.sum(axis=1).tolist() == np.bincount(photos.labels).tolist()
    assert found.accuracy_interval[0] < found.accuracy < found.accuracy_interval[1]
    assert found.temperature > 1
    assert found.ece_scaled < found.ece
    assert (found.scaled.argmax(axis=1) == found.probabilities.argmax(axis=1)).all()
    assert found.fitted_on == "validation"
    assert set(found.figures()) >= {"accuracy_interval", "ece", "temperature"}


def test_test_photos_are_scaled_by_what_was_fitted_on_validation_photos_and_by_nothing_of_their_own():
    validation, test = measured(seed=1), measured(name="test", seed=2)
    found = evaluate(test, validation)
    assert found.temperature == evaluate(validation).temperature != evaluate(test).temperature
    assert (found.fitted_on, evaluate(test).fitted_on) == ("validation", "test")
    other = measured(name="test", seed=2, labels=(test.labels + 1) % 3)
    assert evaluate(other, validation).temperature == found.temperature


def test_logits_that_are_no_numbers_are_not_evaluated():
    photos = measured()
    photos.logits[3, 1] = np.nan
    assert evaluate(photos) is None
    assert evaluate(measured(name="test"), photos).fitted_on == "test"


def test_most_confident_mistakes_come_first():
    found = evaluate(measured())
    mistakes = most_confident_mistakes(found, 10)
    sure = [each.probability for each in mistakes]
    assert sure == sorted(sure, reverse=True)
    wrong = found.probabilities.argmax(axis=1) != found.measured.labels
    assert sure[0] == found.probabilities[wrong].max()
    for each in mistakes:
        row = int(each.file.stem)
        assert each.true == "abc"[found.measured.labels[row]] != each.predicted


def test_measured_photos_come_back_from_their_file(tmp_path):
    photos = measured(files=[f"photos/\udce4{number}.jpg" for number in range(200)])
    photos.save(tmp_path / "validation.npz")
    again = MeasuredPhotos.load(tmp_path / "validation.npz")
    assert (again.files, again.name, again.image_size) == (photos.files, "validation", (32, 32))
    np.testing.assert_array_equal(again.logits, photos.logits)
    np.testing.assert_array_equal(again.labels, photos.labels)
    assert MeasuredPhotos.load(tmp_path / "none.npz") is None
    content = (tmp_path / "validation.npz").read_bytes()
    (tmp_path / "validation.npz").write_bytes(content[: len(content) // 2])
    assert MeasuredPhotos.load(tmp_path / "validation.npz") is None

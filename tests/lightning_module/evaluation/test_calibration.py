import numpy as np
import pytest
import torch
from scipy.special import softmax
from torchmetrics.functional.classification import multiclass_calibration_error

from lightning_module.evaluation.calibration import (
    BINS,
    HIGHEST_TEMPERATURE,
    LOWEST_TEMPERATURE,
    cross_fitted_temperatures,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
    probabilities_of,
    reliability,
)


def calibrated(count: int = 20_000, classes: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels drawn by their probabilities: a network that is exactly as sure as it is right."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(count, classes)) * 2
    chances = softmax(logits, axis=1).cumsum(axis=1)
    return logits.astype(np.float32), (generator.random((count, 1)) > chances).sum(axis=1).clip(max=classes - 1)


@pytest.mark.parametrize("truth", [0.4, 1.0, 2.5])
def test_the_temperature_that_was_put_in_is_found(truth):
    logits, labels = calibrated()
    assert fit_temperature(logits * truth, labels) == pytest.approx(truth, rel=0.03)


def test_search_finds_what_lbfgs_finds():
    """The optimiser of the paper's code, as an independent reference."""
    logits, labels = calibrated(2000)
    log_temperature = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([log_temperature], lr=0.1, max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-14)
    given, wanted = torch.from_numpy(logits * 1.7).double(), torch.from_numpy(labels)

    def loss():
        optimiser.zero_grad()
        value = torch.nn.functional.cross_entropy(given / log_temperature.exp(), wanted)
        value.backward()
        return value

    optimiser.step(loss)
    assert fit_temperature(logits * np.float32(1.7), labels) == pytest.approx(log_temperature.exp().item(), rel=1e-4)


@pytest.mark.parametrize("gap", [5, 20, 300, 800])
def test_photos_that_are_all_right_tell_no_temperature(gap):
    logits = np.eye(3, dtype=np.float32)[[0, 1, 2, 0]] * gap
    assert fit_temperature(logits, np.array([0, 1, 2, 0])) == 1.0
    # one that is wrong, however sure the others are; and all of them
    assert LOWEST_TEMPERATURE <= fit_temperature(logits, np.array([0, 1, 2, 1])) <= HIGHEST_TEMPERATURE
    assert fit_temperature(logits, np.array([1, 2, 0, 1])) == pytest.approx(HIGHEST_TEMPERATURE, rel=0.01)


def test_error_by_hand():
    # Two photos at 0.9, one of them right; two at 0.6, both right.
    probabilities = np.array([[0.9, 0.1], [0.1, 0.9], [0.6, 0.4], [0.4, 0.6]])
    labels = np.array([0, 0, 0, 1])
    assert expected_calibration_error(probabilities, labels) == pytest.approx(0.5 * 0.4 + 0.5 * 0.4)


def test_probability_of_one_is_in_the_last_bin():
    # Two photos at 1, one of them right; two at 0.95, both right: one bin of mean 0.975 and accuracy 0.75.
    probabilities = np.array([[1.0, 0.0], [1.0, 0.0], [0.95, 0.05], [0.05, 0.95]])
    labels = np.array([0, 1, 0, 1])
    assert expected_calibration_error(probabilities, labels) == pytest.approx(0.225)


def test_error_is_torchmetrics_where_no_probability_is_one():
    logits, labels = calibrated(3000)
    probabilities = probabilities_of(logits, 0.5).clip(0, 1 - 1e-6)
    given = torch.from_numpy(probabilities), torch.from_numpy(labels)
    theirs = multiclass_calibration_error(*given, probabilities.shape[1], n_bins=BINS, norm="l1")
    assert expected_calibration_error(probabilities, labels) == pytest.approx(float(theirs), abs=1e-5)  # in float32


def test_diagram_shows_what_the_error_measures():
    logits, labels = calibrated(3000)
    probabilities = probabilities_of(logits, 0.5)
    bins = reliability(probabilities, labels)
    assert len(bins) == BINS
    assert sum(each.photos for each in bins) == 3000
    gaps = sum(each.photos * abs(each.accuracy - each.confidence) for each in bins) / 3000
    assert gaps == pytest.approx(expected_calibration_error(probabilities, labels))


def test_too_sure_is_an_error_that_scaling_mends_on_photos_it_was_not_fitted_on():
    logits, labels = calibrated()
    half, other = slice(0, 10_000), slice(10_000, None)
    before = expected_calibration_error(probabilities_of(logits[other] * 3), labels[other])
    temperature = fit_temperature(logits[half] * 3, labels[half])
    after = expected_calibration_error(probabilities_of(logits[other] * 3, temperature), labels[other])
    assert before > 0.15
    assert after < 0.02


def test_cross_fitting_leaves_each_photo_out_of_its_own_fit():
    logits, labels = calibrated(60)
    temperatures = cross_fitted_temperatures(logits, labels)
    # whatever is changed in a photo, its own temperature stays and those of the other parts do not
    for row in (0, 31):
        changed = labels.copy()
        changed[row] = (labels[row] + 1) % 5
        again = cross_fitted_temperatures(logits, changed)
        assert again[row] == temperatures[row]
        assert (again != temperatures).mean() > 0.5
    assert len(set(temperatures)) == 5


def test_few_photos_and_single_ones_can_be_scaled():
    logits, labels = calibrated(3)
    assert np.isfinite(cross_fitted_temperatures(logits, labels)).all()
    assert cross_fitted_temperatures(logits[:1], labels[:1]).tolist() == [1.0]


def test_probabilities_and_loss_are_torchs():
    logits, labels = calibrated(50)
    given = torch.from_numpy(logits).double()
    np.testing.assert_allclose(probabilities_of(logits, 2.0), (given / 2).softmax(dim=1), rtol=1e-12)
    loss = torch.nn.functional.cross_entropy(given, torch.from_numpy(labels))
    assert negative_log_likelihood(logits, labels) == pytest.approx(loss.item(), rel=1e-12)
    each = np.linspace(0.5, 3, 50)
    np.testing.assert_allclose(probabilities_of(logits, each)[7], (given[7] / each[7]).softmax(dim=0), rtol=1e-12)

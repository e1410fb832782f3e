import numpy as np
import pytest

from lightning_module.evaluation import top_labels as module
from lightning_module.evaluation.calibration import probabilities_of
from lightning_module.evaluation.top_labels import (
    DECIMALS,
    FLOAT32_ERROR,
    float32_decides,
    top_labels,
    with_temperature,
)


def printed(found) -> list[list[tuple[int, str]]]:
    return [
        [(int(index), f"{value:.{DECIMALS}f}") for index, value in zip(*row, strict=True)]
        for row in zip(found.classes, found.probabilities, strict=True)
    ]


@pytest.fixture(scope="module")
def exact() -> np.ndarray:
    """Probabilities of all kinds: sure, unsure, and with a tie or nearly one."""
    generator = np.random.default_rng(0)
    logits = np.concatenate([generator.normal(size=(4000, 6)) * scale for scale in (0.1, 1, 4, 12)])
    logits[::50, 1] = logits[::50, 0] + generator.normal(size=len(logits[::50])) * 1e-6
    logits[::77, 3] = logits[::77, 2]
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)


def computed(exact: np.ndarray, seed: int) -> np.ndarray:
    """What one side computes: float32 with an error of its own in the logits, at most float32's."""
    noise = np.random.default_rng(seed).uniform(-1, 1, exact.shape) * FLOAT32_ERROR
    return (exact * (1 + noise)).astype(np.float32)


def labelled(exact: np.ndarray, seed: int) -> list[list[tuple[int, str]]]:
    return printed(top_labels(computed(exact, seed), lambda rows: exact[rows] * (1 + 1e-13 * (seed - 1.5))))


def test_two_roads_print_the_same(exact):
    assert labelled(exact, 1) == labelled(exact, 2)
    assert 0 < float32_decides(exact).mean() < 0.2  # or float64 would be all that counts


def test_without_the_second_look_they_do_not(exact, monkeypatch):
    for name in ("FLOAT32_ERROR", "RELATIVE_GAP"):
        with monkeypatch.context() as changed:
            first, second = computed(exact, 1), computed(exact, 2)
            changed.setattr(module, name, -1.0)
            assert printed(top_labels(first, lambda rows: exact[rows])) != printed(
                top_labels(second, lambda rows: exact[rows])
            )


def test_what_is_printed_is_the_exact_probability_rounded(exact):
    for row, shown in zip(exact, labelled(exact, 1), strict=True):
        for index, text in shown:
            assert abs(row[index] - float(text)) <= 0.5 * 10**-DECIMALS + 1e-9
        assert row[shown[0][0]] >= row.max() * (1 - 1e-8)


def test_equally_likely_classes_come_in_their_order():
    tied = np.array([[0.1, 0.45, 0.45], [1 / 3, 1 / 3, 1 / 3]])
    shaken = tied * (1 + np.array([0.0, 1e-15, 2e-15]))
    assert printed(top_labels(tied.astype(np.float32), lambda rows: shaken[rows])) == [
        [(1, "0.450"), (2, "0.450"), (0, "0.100")],
        [(0, "0.333"), (1, "0.333"), (2, "0.333")],
    ]


def test_half_way_between_two_printed_numbers_falls_one_way_only():
    for shake in (-1e-15, 1e-15):
        even = np.full((1, 16), 1 / 16 + shake)
        assert printed(top_labels(even.astype(np.float32), lambda rows, even=even: even[rows]))[0][0] == (0, "0.062")


def test_two_classes_have_two_labels():
    assert printed(top_labels(np.array([[0.25, 0.75]], np.float32), lambda rows: None)) == [
        [(1, "0.750"), (0, "0.250")]
    ]


@pytest.mark.parametrize("temperature", [0.05, 0.4, 2.5, 20.0])
@pytest.mark.parametrize("shown", [1, 3, 6])
def test_two_roads_print_the_same_at_a_temperature(exact, temperature, shown):
    first, second = (
        printed(
            top_labels(
                computed(exact, seed), lambda rows, seed=seed: exact[rows] * (1 + 1e-13 * seed), shown, temperature
            )
        )
        for seed in (1, 2)
    )
    assert first == second
    assert {len(row) for row in first} == {shown}


def test_a_small_temperature_needs_wider_margins(exact):
    """The negative control: with those of temperature 1, the errors that it enlarges would be printed."""
    tempered = with_temperature(exact, 0.05)
    narrow = [
        top_labels(with_temperature(computed(exact, seed).astype(np.float64), 0.05), lambda rows: tempered[rows])
        for seed in (1, 2)
    ]
    assert printed(narrow[0]) != printed(narrow[1])


def test_a_temperature_divides_the_logits(exact):
    for temperature in (0.5, 3.0):
        expected = probabilities_of(np.log(exact), temperature)
        np.testing.assert_allclose(with_temperature(exact, temperature), expected, rtol=1e-9)
    assert with_temperature(exact, 1.0) is exact
    sure = np.array([[1.0, 0.0], [0.0, 1.0]])
    np.testing.assert_array_equal(with_temperature(sure, 4.0), sure)


def test_what_float32_lost_is_computed_again():
    """A hot temperature makes much of what is zero in float32: 1e-60 to the power of 1/20 is 0.001."""
    exact = np.array([[1 - 1e-60, 1e-60]])
    found = top_labels(exact.astype(np.float32), lambda rows: exact[rows], 2, 20.0)
    assert printed(found) == [[(0, "0.999"), (1, "0.001")]]

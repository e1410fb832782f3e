"""Why a network says what it says of one photo: where it looks, and what makes it unsure.

Where it looks is found by covering: parts of the photo are covered with its mean colour, and what lowers the
probability was looked at. It needs no gradients, so it is the same for every network.

Source mirrored: Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks" (2014), section 4.2.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from lightning_module.evaluation.labelling import as_printed
from lightning_module.serving.model_facts import Confusion

CELLS = 8
"""Rows and columns of the map. A window of 2 x 2 cells is covered at a time, at 7 x 7 places."""
WINDOW = 2
LEAST_ODDS = 1e-6
"""Probabilities are kept this far from 0 and 1, where float32 has no more digits."""
LEAST_LOSS = 1e-3
"""Log-odds that covering costs: below, it is rounding, and nowhere on the photo matters."""
SURE = 0.8
"""From this probability on an answer counts as sure, unless `--min_probability` says otherwise."""
CLOSE, NOTABLE, SPREAD = 0.5, 0.1, 3
"""The second class is close at half the first one's probability; a class is notable from a tenth on; three are many."""
OFTEN = 0.05
"""Share of the measured photos with that label that were of one other class."""
STRETCHED, ENLARGED = 2.0, 1.5
"""How much one side may be stretched against the other, and both enlarged, before it counts."""
EVEN, DARK = 8.0, 40.0
"""Standard deviation, and mean, of the grey values 0 to 255, below which a photo shows little."""


class PhotoFacts(NamedTuple):
    """What is known of a photo's file.

    Attributes:
        width: in pixels.
        height: in pixels.
        orientation: EXIF's, 1 to 8; 1 is upright.
        transparent: whether it has transparency.
    """

    width: int
    height: int
    orientation: int
    transparent: bool


class Said(NamedTuple):
    """The answer that is explained: the class's index, and its probability as it is printed."""

    best: int
    probability: float


def covered(pixels: np.ndarray) -> np.ndarray:
    """Return the photo with each window covered, uint8 (49, H, W, 3), row by row.

    Args:
        pixels: uint8, shape (H, W, 3).
    """
    colour = np.round(pixels.reshape(-1, 3).mean(axis=0)).astype(np.uint8)
    rows, columns = (np.round(np.linspace(0, side, CELLS + 1)).astype(int) for side in pixels.shape[:2])
    copies = []
    for row in range(CELLS - WINDOW + 1):
        for column in range(CELLS - WINDOW + 1):
            copy = pixels.copy()
            copy[rows[row] : rows[row + WINDOW], columns[column] : columns[column + WINDOW]] = colour
            copies.append(copy)
    return np.stack(copies)


def saliency(whole: float, without: np.ndarray) -> np.ndarray:
    """Return how much each cell matters: the mean loss of log-odds of the windows that cover it, not below 0.

    Args:
        whole: probability of the label, nothing being covered.
        without: probabilities of the same label, shape (49,), of `covered` photos.

    Returns:
        float64, shape (8, 8).
    """
    places = CELLS - WINDOW + 1
    losses = (_log_odds(np.float64(whole)) - _log_odds(without)).reshape(places, places)
    total, count = np.zeros((CELLS, CELLS)), np.zeros((CELLS, CELLS))
    for row in range(WINDOW):
        for column in range(WINDOW):
            total[row : row + places, column : column + places] += losses
            count[row : row + places, column : column + places] += 1
    return np.maximum(total / count, 0)


def _log_odds(probability: np.ndarray | np.float64) -> np.ndarray:
    kept = np.clip(np.asarray(probability, np.float64), LEAST_ODDS, 1 - LEAST_ODDS)
    return np.log(kept) - np.log1p(-kept)


def explain(
    pixels: np.ndarray,
    photo: PhotoFacts,
    said: Said,
    probabilities: Callable[[np.ndarray], np.ndarray],
    class_names: Sequence[str],
    loading_hides_transparency: bool,
    min_probability: float | None = None,
    confusion: Confusion | None = None,
    batch_size: int = 16,
) -> dict[str, Any]:
    """Explain a twin's answer.

    Args:
        pixels: as the network sees the photo, uint8 (H, W, 3).
        photo: what its file was.
        said: the answer.
        probabilities: computes them, (N, C), of uint8 (N, H, W, 3).
        class_names: C names.
        loading_hides_transparency: whether transparent pixels become what is hidden under them.
        min_probability: below it an answer is unsure; None for `SURE`.
        confusion: of the run's measured photos.
        batch_size: how many photos are computed at once.

    Returns:
        For JSON: `label`, `probability`, `unsure`, `saliency` (8 rows of 8 numbers from 0 to 1, relative to the
        largest, all 0 where covering changes nothing), `covered` (`probability` of the label and `likeliest` where the
        most important part is covered), and `reasons`, each with a `code` and the values that its sentence names.
    """
    turned = [np.ascontiguousarray(pixels[:, ::-1]), *_turned(pixels)]
    photos = np.concatenate([pixels[None], covered(pixels), np.stack(turned)])
    parts = [probabilities(photos[start : start + batch_size]) for start in range(0, len(photos), batch_size)]
    answers = np.concatenate(parts)
    first, without, others = answers[0], answers[1 : -len(turned)], answers[-len(turned) :]
    best = said.best  # where two are equal to the last digit, float32 may have another one first
    cells = saliency(float(first[best]), without[:, best])
    largest = cells.max()
    weakest = without[int(without[:, best].argmin())]
    limit = SURE if min_probability is None else min_probability
    reasons = [
        *_about_classes(first, best, class_names, confusion),
        *_about_photo(pixels, photo, loading_hides_transparency),
        *_about_changes(first, best, weakest, others, class_names),
    ]
    return {
        "label": class_names[best],
        "probability": said.probability,
        "unsure": said.probability < limit,
        "saliency": np.round(cells / largest if largest > LEAST_LOSS else 0 * cells, 3).tolist(),
        "covered": {
            "probability": as_printed(float(weakest[best])),
            "likeliest": class_names[int(weakest.argmax())],
        },
        "reasons": reasons,
    }


def _turned(pixels: np.ndarray) -> list[np.ndarray]:
    """The photo turned by a quarter to the left, half, and a quarter to the right, at its size."""
    height, width = pixels.shape[:2]
    quarters = []
    for times in (1, 2, 3):
        turned = np.rot90(pixels, times)
        if turned.shape[:2] != (height, width):  # the nearest pixel, as the network's own input is not square
            rows, columns = (
                np.minimum((np.arange(to) + 0.5) * of / to, of - 1).astype(int)
                for to, of in zip((height, width), turned.shape[:2], strict=True)
            )
            turned = turned[rows][:, columns]
        quarters.append(np.ascontiguousarray(turned))
    return quarters


def _about_classes(
    first: np.ndarray, best: int, class_names: Sequence[str], confusion: Confusion | None
) -> list[dict[str, Any]]:
    second = next(int(each) for each in np.argsort(-first, kind="stable") if each != best)
    reasons: list[dict[str, Any]] = []
    notable = int((first >= NOTABLE).sum())
    if first[best] < SURE and notable >= SPREAD:
        reasons.append({"code": "many_classes", "count": notable})
    elif first[second] >= CLOSE * first[best]:
        reasons.append(
            {
                "code": "close_second",
                "label": class_names[best],
                "other": class_names[second],
                "probability": as_printed(float(first[second])),
            }
        )
    if confusion is not None:
        labelled = sum(row[best] for row in confusion.counts)
        wrong = [0 if true == best else row[best] for true, row in enumerate(confusion.counts)]
        other = int(np.argmax(wrong))
        if labelled and wrong[other] >= OFTEN * labelled and first[best] < 1 - OFTEN:
            reasons.append(
                {
                    "code": f"confused_in_{confusion.set}",
                    "label": class_names[best],
                    "other": class_names[other],
                    "count": wrong[other],
                    "photos": labelled,
                }
            )
    return reasons


def _about_photo(pixels: np.ndarray, photo: PhotoFacts, hides_transparency: bool) -> list[dict[str, Any]]:
    height, width = pixels.shape[:2]
    sides = {"width": photo.width, "height": photo.height, "to_width": width, "to_height": height}
    wider, higher = width / photo.width, height / photo.height
    grey = pixels.mean(axis=2)
    found = {
        "enlarged": min(wider, higher) >= ENLARGED,
        "stretched": max(wider / higher, higher / wider) >= STRETCHED,
        "sideways": photo.orientation != 1,
        "transparent": photo.transparent and hides_transparency,
        "even": grey.std() < EVEN,
        "dark": grey.mean() < DARK,
    }
    return [{"code": code, **sides} for code, is_so in found.items() if is_so]


def _about_changes(
    first: np.ndarray, best: int, weakest: np.ndarray, others: np.ndarray, class_names: Sequence[str]
) -> list[dict[str, Any]]:
    reasons: list[dict[str, Any]] = []
    if int(weakest.argmax()) != best:
        reasons.append({"code": "part_decides", "label": class_names[int(weakest.argmax())]})
    for code, changed in zip(("mirrored", "turned_left", "turned_round", "turned_right"), others, strict=True):
        label = int(changed.argmax())
        # a turned shirt is often no shirt to a network; it is a reason only where it is surer then
        if label != best and (code == "mirrored" or changed[label] > max(first[best], SURE)):
            reasons.append(
                {"code": code, "label": class_names[label], "probability": as_printed(float(changed[label]))}
            )
    return reasons

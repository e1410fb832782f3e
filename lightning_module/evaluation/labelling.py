"""What `lightning predict` writes of each photo: how many labels, from which probability on, at which temperature."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from datamodule.photo_store import BadPhoto
from export.fitted_temperature import HIGHEST_TEMPERATURE, LOWEST_TEMPERATURE, Fitted, fitted_beside
from lightning_module.evaluation.decoding import Found, decoded
from lightning_module.evaluation.labellers import Labeller
from lightning_module.evaluation.prediction_files import Row
from lightning_module.evaluation.top_labels import DECIMALS, SHOWN, top_labels
from models.bad_input import BadInput

UNSURE = "unsure"
LIKELIEST = "likeliest"
Temperature = float | Literal["auto", "none", "fitted"]


@dataclass(frozen=True)
class Labelling:
    """What is written of each photo.

    Attributes:
        top: number of labels.
        min_probability: with less, the label is `UNSURE`, and the likeliest class is in a column of its own; None for
            no limit.
        temperature: the logits are divided by it.
    """

    top: int = SHOWN
    min_probability: float | None = None
    temperature: float = 1.0

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        places = ["", *(f"_{place}" for place in range(2, self.top + 1))]
        labels = [f"{column}{place}" for place in places for column in ("label", "probability")]
        return ["file", *labels, *([] if self.min_probability is None else [LIKELIEST])]


def labelled(
    batches: Iterable[Sequence[Found]],
    labeller: Labeller,
    labelling: Labelling,
    threads: int | None = None,
    name_of: Callable[[Any], str] = str,
) -> Iterator[list[Row | BadPhoto]]:
    """Label photos batch by batch; the next batch is decoded while one is computed.

    Args:
        batches: photos, and what was named but cannot be one.
        labeller: computes the probabilities.
        labelling: what is written.
        threads: how many photos are decoded at once; None for as many as there are cores.
        name_of: what a photo is called in its row.

    Yields:
        For each photo of a batch, in order, its row, or why it cannot be read.

    Raises:
        BadInput: the labeller's outputs are not probabilities, or an address cannot be reached.
    """
    for batch in decoded(batches, labeller, threads):
        files = [name_of(file) for file, pixels in batch if not isinstance(pixels, BadPhoto)]
        photos = [pixels for _, pixels in batch if not isinstance(pixels, BadPhoto)]
        rows = label(labeller, files, np.stack(photos), labelling) if photos else iter(())
        yield [pixels if isinstance(pixels, BadPhoto) else next(rows) for _, pixels in batch]


def label(
    labeller: Labeller, files: Sequence[Path | str], photos: np.ndarray, labelling: Labelling = Labelling()
) -> Iterator[Row]:
    """Yield the rows of the table.

    Args:
        labeller: computes the probabilities.
        files: what N photos are called.
        photos: their pixels, uint8, shape (N, H, W, 3).
        labelling: what is written.

    Raises:
        BadInput: the labeller's outputs are not probabilities.
    """
    probabilities = checked_probabilities(labeller, files, photos)
    found = top_labels(probabilities, lambda rows: labeller.exact(photos[rows]), labelling.top, labelling.temperature)
    least = labelling.min_probability
    for file, classes, values in zip(files, found.classes, found.probabilities, strict=True):
        row: Row = [str(file)]
        for index, value in zip(classes, values, strict=True):
            row += [labeller.class_names[index], float(value)]
        row += [None] * (1 + 2 * labelling.top - len(row))
        if least is not None:
            row.append(row[1])
            if as_printed(row[2]) < least:
                row[1] = UNSURE
        yield row


def checked_probabilities(labeller: Labeller, files: Sequence[Path | str], photos: np.ndarray) -> np.ndarray:
    """Return the probabilities of photos in float32, shape (N, C); see `label` for the arguments.

    Raises:
        BadInput: the labeller's outputs are not probabilities.
    """
    probabilities = labeller.probabilities(photos)
    if not (np.abs(probabilities.sum(axis=1) - 1) < 1e-3).all() or (probabilities < 0).any():  # NaN is not near 1
        raise BadInput(
            f"expected probabilities of {len(labeller.class_names)} classes that add up to 1, received "
            f"{probabilities[0].tolist()[:4]} ... for {files[0]}. The model gives something else, or its weights are "
            "no numbers."
        )
    return probabilities


def as_printed(probability: float) -> float:
    """Return a probability as it is printed, which is the same from both twins."""
    return float(f"{probability:.{DECIMALS}f}")


def check_min_probability(min_probability: float | None) -> None:
    """Check the range of --min_probability, which needs no model.

    Raises:
        BadInput: it is none from 0 to 1.
    """
    if min_probability is not None and not 0 <= min_probability <= 1:
        raise BadInput(
            f"--min_probability: expected a number from 0 to 1, received {min_probability}. Give 0.8 for eighty "
            "percent."
        )


def choose_labelling(
    labeller: Labeller,
    model: Path,
    top: int | None,
    min_probability: float | None,
    temperature: Temperature,
) -> Labelling:
    """Return what is written of each photo, and print which temperature was found.

    Args:
        labeller: computes the probabilities.
        model: its file.
        top: number of labels; None for `SHOWN`.
        min_probability: as in `Labelling`.
        temperature: a number; `fitted`: the one that `lightning fit` fitted; `auto`: that one, where there is one and
            a probability is asked for; else none.

    Raises:
        BadInput: it does not fit the model.
    """
    names = labeller.class_names
    if top is not None and not 1 <= top <= len(names):
        raise BadInput(f"--top: expected 1 to {len(names)}, as many as {model} has classes, received {top}.")
    if min_probability is not None and UNSURE in names:
        raise BadInput(
            f"--min_probability: expected classes of other names than {UNSURE!r}, received {model} with that one. "
            "Leave it out, and use the column probability."
        )
    if isinstance(temperature, str):
        wanted = temperature == "fitted" or (temperature == "auto" and min_probability is not None)
        fitted = _fitted(labeller, model, required=temperature == "fitted") if wanted else None
        value = fitted.temperature if fitted else 1.0
        if fitted:
            print(f"probabilities: calibrated, the logits divided by {value:.4f}, which lightning fit fitted")
            print(fitted.doubt, end="\n" * bool(fitted.doubt))
        elif wanted:
            print(f"probabilities: as {model} gives them; no metrics.json with a temperature for it is beside it")
    else:
        value = float(temperature)
    if not LOWEST_TEMPERATURE <= value <= HIGHEST_TEMPERATURE:
        raise BadInput(
            f"--temperature: expected a number from {LOWEST_TEMPERATURE} to {HIGHEST_TEMPERATURE:g}, received {value}. "
            "Leave it out, or give none."
        )
    return Labelling(SHOWN if top is None else top, min_probability, value)


def _fitted(labeller: Labeller, model: Path, required: bool) -> Fitted | None:
    try:
        return fitted_beside(model, labeller.checkpoint_digest or "")
    except BadInput:
        if required:
            raise
        return None

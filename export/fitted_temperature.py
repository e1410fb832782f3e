"""The temperature that `lightning fit` fitted, as a run's metrics.json states it; read without torch."""

import json
from pathlib import Path
from typing import NamedTuple

from models.bad_input import BadInput
from models.digests import file_digest

LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.05, 20.0
"""Limits of a fitted temperature. If nearly all photos are right, the best one would be almost 0, which would make the
network almost infinitely sure."""
FEW_MISTAKES = 5
"""With fewer mistakes, a fitted temperature says little: a single additional mistake would change it."""


class Fitted(NamedTuple):
    """A temperature, and how many of the photos it was fitted on are misclassified; None if that is not known."""

    temperature: float
    mistakes: int | None

    @property
    def doubt(self) -> str:
        """A warning if the temperature says little, otherwise ''."""
        if self.mistakes is None or self.mistakes >= FEW_MISTAKES:
            return ""
        wrong = "none is" if not self.mistakes else "one is" if self.mistakes == 1 else f"{self.mistakes} are"
        return (
            f"The fitted temperature is {self.temperature:.3f}: of the validation photos {wrong} wrong, so it says "
            "little of how sure to be of others. Take more photos, or --temperature with a number."
        )


def fitted_temperature(checkpoint: Path) -> Fitted:
    """The temperature that was fitted on the validation photos, as the metrics.json beside the checkpoint states it.

    Raises:
        BadInput: there is none, or it belongs to another checkpoint.
    """
    return fitted_beside(checkpoint, file_digest(checkpoint))


def fitted_beside(file: Path, checkpoint_digest: str) -> Fitted:
    """The same for any file of a run, such as its `.h5`.

    Args:
        file: metrics.json is looked for beside it.
        checkpoint_digest: SHA-256 of the checkpoint that the file is, or was made of.

    Raises:
        BadInput: as for `fitted_temperature`.
    """
    metrics = file.parent / "metrics.json"
    try:
        final = json.loads(metrics.read_text(encoding="utf-8"))["final"]
        fitted = Fitted(float(final["temperature"]), final.get("temperature_mistakes"))
        digest = final["checkpoint_sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(
            f"temperature: expected {metrics} to have the one fitted to {file.name}, received none. "
            "`lightning fit` writes it; or give a number, such as the one in report.html."
        ) from error
    if digest != checkpoint_digest:
        raise BadInput(
            f"temperature: expected {metrics} to be of {file}, received one of another checkpoint. Give the "
            "run's best.ckpt, or a number."
        )
    return fitted

"""A checkpoint with a temperature in its last layer: the same labels, but no surer than it is right.

Logits divided by T are those of a last dense layer whose weights and bias are divided. So the calibrated network is a
checkpoint like any other: what is exported of it, and what proves the twin, need not know.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch

from export.checkpoint import file_digest, read_checkpoint, read_content
from models.atomic_write import replacing
from models.bad_input import BadInput

_LAST_LAYER = ("network.head.predictions.weight", "network.head.predictions.bias")
# Key of what is noted; Lightning leaves it alone.
_NOTE = "shelftwin_temperature"


FEW_MISTAKES = 5
"""With fewer, a fitted temperature says little: one photo more that is wrong would make it another."""


class Fitted(NamedTuple):
    """A temperature, and how many of the photos that it was fitted on are wrong; None where that is not known."""

    temperature: float
    mistakes: int | None

    @property
    def doubt(self) -> str:
        """What is to be said of a temperature that says little; else ''."""
        if self.mistakes is None or self.mistakes >= FEW_MISTAKES:
            return ""
        wrong = "none is" if not self.mistakes else "one is" if self.mistakes == 1 else f"{self.mistakes} are"
        return (
            f"The fitted temperature is {self.temperature:.3f}: of the validation photos {wrong} wrong, so it says "
            "little of how sure to be of others. Take more photos, or --temperature with a number."
        )


def write_calibrated(checkpoint: Path, out: Path, temperature: float) -> None:
    """Write a copy that differs in its last layer, and notes `temperature` and `of_sha256`, the original's digest.

    Args:
        checkpoint: of ``lightning fit``, not calibrated yet.
        out: where to; an older file is replaced only by a whole one.
        temperature: above zero; above 1 makes it less sure.

    Raises:
        BadInput: it is no such checkpoint, is calibrated already, or `out` is the checkpoint or cannot be written; or
            the temperature is no such number.
    """
    if not (math.isfinite(temperature) and temperature > 0):
        raise BadInput(f"--temperature: expected a number above zero, received {temperature}.")
    if out.exists() and out.samefile(checkpoint):
        raise BadInput(f"expected a place for the calibrated checkpoint, received {out}, the original. Name another.")
    read_checkpoint(checkpoint)  # refuses what is none
    content = read_content(checkpoint)
    if is_calibrated(content):
        raise BadInput(
            f"--temperature: expected a checkpoint as it was trained, received {checkpoint}, which has a temperature "
            "in it already. Give RUN/best.ckpt."
        )
    for name in _LAST_LAYER:
        tensor = content["state_dict"][name]
        content["state_dict"][name] = (tensor.double() / temperature).to(tensor.dtype)  # rounded once
    content[_NOTE] = {"temperature": float(temperature), "of_sha256": file_digest(checkpoint)}
    with replacing(out) as temporary:
        torch.save(content, temporary)


def is_calibrated(content: dict[str, Any]) -> bool:
    """Whether a checkpoint, as `read_content` gives it, has a temperature in it already."""
    return _NOTE in content


def fitted_temperature(checkpoint: Path) -> Fitted:
    """The temperature that `lightning fit` fitted on the validation photos: it stands in metrics.json beside.

    Raises:
        BadInput: there is none, or it is of another checkpoint.
    """
    metrics = checkpoint.parent / "metrics.json"
    try:
        final = json.loads(metrics.read_text(encoding="utf-8"))["final"]
        fitted = Fitted(float(final["temperature"]), final.get("temperature_mistakes"))
        digest = final["checkpoint_sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(
            f"temperature: expected {metrics} to have the one fitted to {checkpoint.name}, received none. "
            "`lightning fit` writes it; or give a number, such as the one in report.html."
        ) from error
    if digest != file_digest(checkpoint):
        raise BadInput(
            f"temperature: expected {metrics} to be of {checkpoint}, received one of another checkpoint. Give the "
            "run's best.ckpt, or a number."
        )
    return fitted

"""A checkpoint with a temperature in its last layer: it gives the same labels, with calibrated confidence.

Dividing the logits by T is the same as dividing the weights and the bias of the last dense layer by T. So a calibrated
network is a checkpoint like any other: neither the export nor the proof needs to know about the temperature.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch

from export.checkpoint import read_checkpoint, read_content
from models.atomic_write import replacing
from models.bad_input import BadInput
from models.digests import file_digest

_LAST_LAYER = ("network.head.predictions.weight", "network.head.predictions.bias")
# Key under which the temperature is recorded in the checkpoint; Lightning ignores it.
_NOTE = "shelftwin_temperature"


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


def write_calibrated(checkpoint: Path, out: Path, temperature: float) -> None:
    """Write a copy with a different last layer, which records `temperature` and the original's digest, `of_sha256`.

    Args:
        checkpoint: written by ``lightning fit``, not calibrated yet.
        out: where to write it; an existing file is replaced only by a complete one.
        temperature: above zero; above 1 makes the network less confident.

    Raises:
        BadInput: the checkpoint is not one of ``lightning fit`` or is calibrated already, `out` is the checkpoint
            itself or cannot be written, or the temperature is not a positive number.
    """
    if not (math.isfinite(temperature) and temperature > 0):
        raise BadInput(f"--temperature: expected a number above zero, received {temperature}.")
    if out.exists() and out.samefile(checkpoint):
        raise BadInput(f"expected a place for the calibrated checkpoint, received {out}, the original. Name another.")
    read_checkpoint(checkpoint)  # raises if it is not a checkpoint of ours
    content = read_content(checkpoint)
    if is_calibrated(content):
        raise BadInput(
            f"--temperature: expected a checkpoint as it was trained, received {checkpoint}, which has a temperature "
            "in it already. Give RUN/best.ckpt."
        )
    for name in _LAST_LAYER:
        tensor = content["state_dict"][name]
        content["state_dict"][name] = (tensor.double() / temperature).to(tensor.dtype)  # rounded only once
    content[_NOTE] = {"temperature": float(temperature), "of_sha256": file_digest(checkpoint)}
    with replacing(out) as temporary:
        torch.save(content, temporary)


def is_calibrated(content: dict[str, Any]) -> bool:
    """Whether a checkpoint's content, as `read_content` returns it, already contains a temperature."""
    return _NOTE in content


def fitted_temperature(checkpoint: Path) -> Fitted:
    """The temperature that `lightning fit` fitted on the validation photos, as the metrics.json beside it states.

    Raises:
        BadInput: there is none, or it belongs to another checkpoint.
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

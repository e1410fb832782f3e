"""A checkpoint with a temperature in its last layer: the same labels, but no surer than it is right.

Logits divided by T are those of a last dense layer whose weights and bias are divided. So the calibrated network is a
checkpoint like any other: what is exported of it, and what proves the twin, need not know.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch

from export.checkpoint import file_digest, read_checkpoint, read_content
from models.bad_input import BadInput
from models.whole_file import replacing

_LAST_LAYER = ("network.head.predictions.weight", "network.head.predictions.bias")
# Key of what is noted; Lightning leaves it alone.
_NOTE = "shelftwin_temperature"


# Below it, nearly all photos were right, and the fit says little of how sure to be of others.
_DOUBTFUL = 0.2


def doubt(temperature: float) -> str:
    """What to say of a fitted temperature that makes the network far surer than its few photos can tell; else ''."""
    if temperature >= _DOUBTFUL:
        return ""
    return (
        f"The fitted temperature is {temperature:.3f}: nearly all validation photos are right, so it says little of "
        "how sure to be of others. Take more photos, or --temperature with a number."
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


def fitted_temperature(checkpoint: Path) -> float:
    """The temperature that `lightning fit` fitted on the validation photos: it stands in metrics.json beside.

    Raises:
        BadInput: there is none, or it is of another checkpoint.
    """
    metrics = checkpoint.parent / "metrics.json"
    try:
        final = json.loads(metrics.read_text(encoding="utf-8"))["final"]
        temperature, digest = float(final["temperature"]), final["checkpoint_sha256"]
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
    return temperature

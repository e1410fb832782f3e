"""A checkpoint with a temperature in its last layer: it gives the same labels, with calibrated confidence.

Dividing the logits by T is the same as dividing the weights and the bias of the last dense layer by T. So a calibrated
network is a checkpoint like any other: neither the export nor the proof needs to know about the temperature.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from export.checkpoint import read_checkpoint, read_content
from models.atomic_write import replacing
from models.bad_input import BadInput
from models.digests import file_digest

_LAST_LAYER = ("network.head.predictions.weight", "network.head.predictions.bias")
# Key under which the temperature is recorded in the checkpoint; Lightning ignores it.
_NOTE = "shelftwin_temperature"


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

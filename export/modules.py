"""A torch network that is in memory -> Keras `.h5`, and the proof: for whoever has a module and no file of ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import nn

from export.foreign_checkpoint import checkpoint_of_module
from export.keras_file.read import read_keras_h5
from export.proof.comparison import Pair
from export.proof.parity import check_parity
from export.proof.report import Report
from export.torch_to_keras import Twin, write_twin
from models.bad_input import BadInput

Numbers = float | Sequence[float]


def export_module(
    network: nn.Module,
    h5: str | Path,
    image_size: tuple[int, int],
    class_names: Sequence[str] | None = None,
    output: str = "logits",
    mean: Numbers | None = None,
    std: Numbers | None = None,
    input_range: str = "unit",
    channels: int = 3,
) -> Twin:
    """Write a network as one Keras `.h5` that every Keras loads with a plain ``load_model(path)``.

    The network itself is left as it is: a copy of it is put into eval mode, on the CPU.

    Args:
        network: takes float32 (B, channels, H, W), gives (B, C).
        h5: where to write it; an existing file is replaced only by a complete one.
        image_size: (height, width) in pixels.
        class_names: C names, in the order of its outputs; None: numbers.
        output: what the network gives: ``logits``, ``softmax``, ``log_softmax`` or ``sigmoid``. The file gives
            probabilities: a softmax for the first three (of a single logit a sigmoid), or the sigmoid.
        mean: subtracted from pixels of 0 to 1 before the network, one number or one for each channel; None: the network
            takes the pixels as they are. It becomes part of the file.
        std: divides what is left; given where `mean` is.
        input_range: what the file takes: ``unit``, 0 to 1, or ``raw``, 0 to 255.
        channels: of the images: 1, 3 or 4.

    Raises:
        BadInput: the network does not run on such images, an operation has no counterpart in Keras, or a setting does
            not fit.
    """
    source = checkpoint_of_module(network, image_size, class_names, output, _each(mean), _each(std), channels)
    return write_twin(source, Path(h5), input_range)


def prove_module(
    network: nn.Module, h5: str | Path, photos: np.ndarray | None = None, keras_python: str | Path | None = None
) -> Report:
    """Prove that a file of `export_module` computes what the network computes, in a real Keras, layer by layer.

    Size, classes, normalisation and output are those that the file states.

    Args:
        network: the network, which is left as it is.
        h5: the file.
        photos: uint8 (N, H, W, channels) to run through both; None: synthetic images only.
        keras_python: interpreter whose Keras loads the file; None: our own.

    Returns:
        The report: ``verdict`` is ``PASS`` or ``FAIL``, ``checks`` are the single checks, ``last_line()`` names the
        first layer that differs.

    Raises:
        BadInput: the file is not of `export_module`, or that Keras cannot load it.
        KerasFailed: the Keras process crashed or ran out of time.
    """
    details = read_keras_h5(Path(h5)).details
    stated = details.get("network")
    if not isinstance(stated, dict) or not {"mean", "std", "output", "channels"} <= stated.keys():
        raise BadInput(
            f"expected a .h5 that export_module wrote, got {h5}, which does not say what its network takes. Export it "
            "again, or prove it with `lightning parity`."
        )
    try:
        source = checkpoint_of_module(
            network, tuple(details["image_size"]), details["class_names"], stated["output"],
            _each(stated["mean"]), _each(stated["std"]), stated["channels"],
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(
            f"expected a .h5 as export_module wrote it, got {h5}, whose facts are damaged. Export it."
        ) from error
    # in memory there is no file to be the origin; the weights themselves are compared, and the layer is named
    source = replace(source, digest=str(details.get("checkpoint_sha256")))
    return check_parity(Pair(source, Path(h5), photos), Path(keras_python) if keras_python else None)


def _each(value: Numbers | None) -> tuple[float, ...] | None:
    if value is None:
        return None
    return tuple(float(each) for each in np.atleast_1d(value))  # NumPy's and torch's numbers as well

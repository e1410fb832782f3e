"""Computes probabilities of photos with a checkpoint in torch; `labellers.py` does it with a `.h5`."""

import copy
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import Self, get_args

import numpy as np
import torch
from torch import Tensor, nn

from export.checkpoint import read_checkpoint
from lightning_module.evaluation.labellers import Device
from models.bad_input import BadInput
from models.choices import H5_ENDINGS
from models.frozen_backbone import FrozenBackbone, without_tf32
from models.parts_on_cores import PartsOnCores


class CheckpointLabeller:
    """A checkpoint's network in torch.

    Args:
        checkpoint: a checkpoint of `lightning fit`.
        device: `auto` is a GPU if there is one.

    Raises:
        BadInput: no such checkpoint, or no such device.
    """

    def __init__(self, checkpoint: Path, device: Device = "auto") -> None:
        self.device = choose_device(device)
        try:
            source = read_checkpoint(checkpoint)
        except BadInput as error:
            if checkpoint.suffix.lower() not in H5_ENDINGS:
                raise
            raise BadInput(
                f"expected a Keras .h5, as its name says, received {checkpoint}, which begins as none. Is it damaged, "
                "or a .keras? `lightning fit` writes RUN/model.h5."
            ) from error
        self.class_names, self.image_size = list(source.class_names), source.image_size
        self.interpolation, self.loading, self.formats = source.interpolation, source.loading, source.formats
        self.checkpoint_digest: str | None = source.digest
        self.network = source.network.to(self.device).to(memory_format=torch.channels_last)
        # the network is not trained any more, so its whole backbone counts as frozen
        self._backbone = FrozenBackbone(self.network, "float32", "never")
        self._parts = PartsOnCores()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        pass

    def probabilities(self, photos: np.ndarray) -> np.ndarray:
        """Compute probabilities in float32, shape (N, C), of photos, uint8 (N, H, W, 3), RGB."""
        return self._softmax(self._logits, torch.from_numpy(photos).to(self.device).float())

    def exact(self, photos: np.ndarray) -> np.ndarray:
        """Compute the same in float64."""
        in_parts = partial(self._parts.map, self._in_float64, most=len(photos))
        return self._softmax(in_parts, torch.from_numpy(photos).to(self.device).double())

    @cached_property
    def _in_float64(self) -> nn.Module:
        return copy.deepcopy(self.network).double()

    def _logits(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network.head(self._backbone.features(images, exact=True))
        return logits

    def _softmax(self, network: Callable[[Tensor], Tensor], pixels: Tensor) -> np.ndarray:
        # TF32 keeps 10 bits of a float32's mantissa, far fewer than `top_labels` needs
        with torch.inference_mode(), without_tf32():
            probabilities = network(pixels.mul_(1 / 255).permute(0, 3, 1, 2)).softmax(dim=1)
        return probabilities.cpu().numpy()


def choose_device(device: Device) -> torch.device:
    """Return the device of that name; `auto` is a GPU if there is one.

    Raises:
        BadInput: the name is unknown, or there is no such device.
    """
    if device not in get_args(Device):
        raise BadInput(f"--device: expected one of {', '.join(get_args(Device))}, received {device!r}.")
    if device == "cuda" and not torch.cuda.is_available():
        raise BadInput("--device: expected a GPU that torch can use, received cuda and found none. Use --device cpu.")
    return torch.device("cuda" if device == "cuda" or (device == "auto" and torch.cuda.is_available()) else "cpu")

"""What a network computes in torch from the same NHWC images that Keras would be given."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from models.classifier import Classifier, probabilities_of


def torch_probabilities(network: nn.Module, batches: Iterable[np.ndarray]) -> np.ndarray:
    """The network's probabilities, float32, (N, C).

    Args:
        network: in eval mode, takes NCHW in [0, 1].
        batches: float32, NHWC, in [0, 1].
    """
    with torch.inference_mode():
        given = [probabilities_of(network(nchw(batch)), output_of(network)).numpy() for batch in batches]
    return np.concatenate(given)


def output_of(network: nn.Module) -> str:
    """What the network's forward gives, one of `OUTPUTS`; logits, unless it is a `Classifier` that says otherwise."""
    return network.output if isinstance(network, Classifier) else "logits"


def nchw(images: np.ndarray) -> Tensor:
    """NHWC array -> NCHW tensor of the same type."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()

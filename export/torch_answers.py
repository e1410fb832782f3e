"""What a network computes in torch from the same NHWC images that Keras would be given."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn


def torch_probabilities(network: nn.Module, batches: Iterable[np.ndarray]) -> np.ndarray:
    """Softmax of the network's logits, float32, (N, C).

    Args:
        network: in eval mode, takes NCHW in [0, 1].
        batches: float32, NHWC, in [0, 1].
    """
    with torch.inference_mode():
        given = [network(nchw(batch)).softmax(dim=1).numpy() for batch in batches]
    return np.concatenate(given)


def nchw(images: np.ndarray) -> Tensor:
    """NHWC array -> NCHW tensor of the same type."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()

"""Golden images: a few inputs with torch's answers, and digests of everything important, stored inside the `.h5`.

With them a team that has neither torch nor the checkpoint can check its copy: ``python keras_worker.py verify
MODEL.h5``. Every Keras ignores the group when it loads the file. What is digested, and how, is defined only once, in
the worker (`keras_worker.array_digest`), so that writing and checking cannot drift apart.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import h5py
import numpy as np

from export.worker.keras_worker import DIGESTED_ATTRIBUTES, GOLDEN_GROUP, array_digest


@dataclass(frozen=True)
class Golden:
    """Inputs, and torch's answers to them.

    Attributes:
        images: uint8, NHWC, (N, H, W, channels), RGB where there are three.
        probabilities: torch's for these images, float32, (N, C).
    """

    images: np.ndarray
    probabilities: np.ndarray


def golden_images(image_size: tuple[int, int], channels: int = 3) -> np.ndarray:
    """Draw three images, always the same for a given size: noise, waves of colour, and noise at the bottom right only.

    Noise excites every channel, waves resemble photos, and the bottom-right corner is where TensorFlow's SAME and
    torch's symmetric padding differ.

    Args:
        image_size: (height, width) in pixels.
        channels: of the images, at most four.

    Returns:
        uint8, NHWC, (3, H, W, channels).
    """
    height, width = image_size
    # the legacy generator's output is frozen
    noise = np.random.RandomState(0).randint(0, 256, (height, width, channels))
    # Triangle waves in integers: the sine of another numpy version might be rounded differently.
    rows, columns = np.arange(height)[:, None, None] * 512 // height, np.arange(width)[None, :, None] * 512 // width
    phase = (rows * [1, 2, 3, 4][:channels] + columns * [3, 1, 2, 4][:channels]) % 512
    waves = np.minimum(phase, 511 - phase)
    corner = np.zeros_like(noise)
    corner[-(height // 4 + 1) :, -(width // 4 + 1) :] = noise[-(height // 4 + 1) :, -(width // 4 + 1) :]
    return np.stack([noise, waves, corner]).astype(np.uint8)


def write_golden(file: h5py.File, golden: Golden, weights: dict[str, list[np.ndarray]]) -> None:
    """Add the golden group to a Keras file whose other contents are already written.

    Args:
        file: open for writing.
        golden: what to store.
        weights: layer name -> its arrays in Keras's order and layout; layers without arrays may be left out.
    """
    digests = {name: array_digest(np.frombuffer(_bytes(file.attrs[name]), np.uint8)) for name in DIGESTED_ATTRIBUTES}
    digests |= {"inputs": array_digest(golden.images), "outputs": array_digest(golden.probabilities)}
    layers = {name: array_digest(*arrays) for name, arrays in weights.items() if arrays}
    group = file.create_group(GOLDEN_GROUP)
    group.create_dataset("inputs", data=golden.images, compression="gzip", compression_opts=1)
    group.create_dataset("outputs", data=golden.probabilities)
    group.attrs["sha256"] = json.dumps({**digests, "layers": layers}).encode()


def _bytes(value: bytes | str) -> bytes:
    return value.encode() if isinstance(value, str) else value

"""Images that no catalogue holds, to see the twins agree far from the photos they were trained on."""

from __future__ import annotations

import numpy as np

NAMES = (
    "zeros",
    "ones",
    "grey",
    "uniform noise",
    "dark noise",
    "saturated noise",
    "one white pixel",
    "one black pixel",
)


def synthetic_images(image_size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Draw the images `NAMES` lists, in that order.

    Args:
        image_size: (height, width) in pixels.
        seed: of the noise.

    Returns:
        float32, NHWC, (8, H, W, 3), in [0, 1].
    """
    random = np.random.default_rng(seed)
    shape = (*image_size, 3)
    noise = random.random(shape)
    white_pixel, black_pixel = np.zeros(shape), np.ones(shape)
    # Bottom right: the corner that TensorFlow's SAME and torch's symmetric padding treat differently.
    white_pixel[-1, -1], black_pixel[-1, -1] = 1.0, 0.0
    images = [
        np.zeros(shape),
        np.ones(shape),
        np.full(shape, 0.5),
        noise,
        noise / 255,
        (random.random(shape) > 0.5).astype(np.float64),
        white_pixel,
        black_pixel,
    ]
    return np.stack(images).astype(np.float32)

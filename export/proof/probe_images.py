"""Images unlike any catalogue photo, to test whether the twins also agree far from what they were trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image

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
# Those for the check of every layer: in colour, and as many as the photos that would be used.
EXACT_NAMES = ("uniform noise", "saturated noise")


def synthetic_images(image_size: tuple[int, int], seed: int = 0, channels: int = 3) -> np.ndarray:
    """Draw the images listed in `NAMES`, in that order.

    Args:
        image_size: (height, width) in pixels.
        seed: for the noise.
        channels: of the images.

    Returns:
        float32, NHWC, (8, H, W, channels), in [0, 1].
    """
    random = np.random.default_rng(seed)
    shape = (*image_size, channels)
    noise = random.random(shape)
    white_pixel, black_pixel = np.zeros(shape), np.ones(shape)
    # at the bottom right, because TensorFlow's SAME and torch's symmetric padding treat that corner differently
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


def write_probe_files(folder: Path) -> list[Path]:
    """Write photos of kinds that readers treat differently: JPEG, PNG (palette, grey, alpha), CMYK, EXIF-rotated, tall.

    Args:
        folder: must exist.

    Returns:
        The files. All have at least 300 pixels by 200 or, the tall one, 900 by 60: so resizing is tested, too.
    """
    height, width = 211, 307
    down, across = np.mgrid[0 : 1 : complex(height), 0 : 1 : complex(width)]
    noise = np.random.default_rng(0).integers(0, 60, (height, width, 3))
    colours = (np.stack([down, across, 1 - down * across], axis=-1) * 195 + noise).astype(np.uint8)
    photo = Image.fromarray(colours)
    with_alpha = photo.copy()
    with_alpha.putalpha(Image.fromarray((across * 255).astype(np.uint8)))
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6  # to be displayed rotated by 90 degrees
    files: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "plain.jpg": (photo, {}),
        "palette.png": (photo.quantize(16), {}),
        "palette_transparent.png": (photo.quantize(16), {"transparency": 3}),
        "grey.png": (photo.convert("L"), {}),
        "grey.jpg": (photo.convert("L"), {}),
        "alpha.png": (with_alpha, {}),
        "cmyk.jpg": (photo.convert("CMYK"), {}),
        "exif_rotated.jpg": (photo, {"exif": turned}),
        # Pillow 13 resizes such photos in another order of rows and columns than Pillow 12, and rounds otherwise.
        "tall.png": (photo.rotate(90, expand=True).resize((60, 900)), {}),
    }
    for name, (image, options) in files.items():
        image.save(folder / name, **options)
    return [folder / name for name in files]

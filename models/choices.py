"""Settings with a fixed set of choices, shared by packages that do not import each other."""

from typing import Literal, get_args

import numpy as np

Interpolation = Literal["nearest", "bilinear", "bicubic", "hamming", "box", "lanczos"]
INTERPOLATIONS: tuple[str, ...] = get_args(Interpolation)
"""How photos are resized: Pillow's filters, by Keras's names."""

Trainable = Literal["head", "all"]
TRAINABLE: tuple[str, ...] = get_args(Trainable)
"""Which part of the network is trained."""

BatchNormPolicy = Literal["train", "frozen"]
BATCH_NORM_POLICIES: tuple[str, ...] = get_args(BatchNormPolicy)
"""Whether BatchNorm's statistics are updated while the backbone is trained."""

Output = Literal["logits", "softmax", "log_softmax", "sigmoid"]
OUTPUTS: tuple[str, ...] = get_args(Output)
"""What a network's forward may give; stated by whoever has the network, never guessed."""

PHOTO_FORMATS = ("JPEG", "PNG", "BMP", "DIB", "PPM", "TIFF", "GIF", "WEBP", "AVIF")
"""Pillow's names of the formats that a photo may have, whatever its name says. Left to itself, Pillow opens any format
that it knows, and for PostScript it starts another program. (Its JPEG reader reads MPO too, a JPEG of two pictures.)"""

MOST_PIXELS = 64_000_000
"""Upper limit for height times width of a photo and of the network's input. A larger size is taken as a sign of a
damaged file and refused before any memory is allocated."""

MOST_PHOTO_BYTES = 1 << 28
"""Upper limit for a photo's file: 256 MiB, enough for `MOST_PIXELS` of four bytes each, not compressed."""

RESCALE = np.float32(1 / 255)
"""From 0..255 to [0, 1]: `ImageDataGenerator(rescale=1/255)` multiplies by the rounded reciprocal. Dividing would
differ in the last bit."""

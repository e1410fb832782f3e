"""Settings that are a choice of few, for folders that do not import each other."""

from typing import Literal, get_args

Interpolation = Literal["nearest", "bilinear", "bicubic", "hamming", "box", "lanczos"]
INTERPOLATIONS: tuple[str, ...] = get_args(Interpolation)
"""How photos are resized: Pillow's filters, by Keras's names."""

Trainable = Literal["head", "all"]
TRAINABLE: tuple[str, ...] = get_args(Trainable)
"""Which part of the network is trained."""

BatchNormPolicy = Literal["train", "frozen"]
BATCH_NORM_POLICIES: tuple[str, ...] = get_args(BatchNormPolicy)
"""What becomes of the statistics of a backbone that is trained."""

MOST_PIXELS = 64_000_000
"""Of a photo as the network sees it, height times width. A size beyond is damage, not a wish: nothing is allocated."""

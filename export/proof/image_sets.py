"""Sets of images that both twins are given: the same array on both sides."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from models.choices import RESCALE

BATCH_SIZE = 32


@dataclass(frozen=True)
class ImageSet:
    """Images that both twins are given.

    Attributes:
        name: the set's, for the report.
        images: NHWC, (N, H, W, 3), RGB: uint8 (photos), or float32 in [0, 1].
        names: N names.
    """

    name: str
    images: np.ndarray
    names: Sequence[str]

    def batches(self) -> Iterator[np.ndarray]:
        """Batches as float32 in [0, 1], NHWC."""
        for start in range(0, len(self.images), BATCH_SIZE):
            part = self.images[start : start + BATCH_SIZE].astype(np.float32)
            yield part * RESCALE if self.images.dtype == np.uint8 else part

    def exact(self, count: int) -> np.ndarray:
        """The first and last images as float64 in [0, 1], NHWC."""
        chosen = self.images[np.unique(np.linspace(0, len(self.images) - 1, count).round().astype(int))]
        return chosen.astype(np.float64) * (1 / 255 if self.images.dtype == np.uint8 else 1.0)

    def save(self, folder: Path, input_range: str) -> dict[str, object]:
        """Save the images for another process, in the range that its model takes.

        Args:
            folder: where ``NAME.npy`` is written.
            input_range: ``unit``: [0, 1]; ``raw``: 0..255; ``tf``: [-1, 1].

        Returns:
            What `keras_worker.images` needs to read them: ``inputs``, ``scale`` (a factor) and ``batch_size``.
        """
        path, photos, raw = folder / f"{self.name}.npy", self.images.dtype == np.uint8, input_range == "raw"
        if input_range == "tf":
            # computed as by mobilenet_v2.preprocess_input
            images = self.images / np.float32(127.5) if photos else self.images * np.float32(2)
            np.save(path, images.astype(np.float32) - np.float32(1))
            return {"inputs": str(path), "scale": 1.0, "batch_size": BATCH_SIZE}
        np.save(path, self.images * np.float32(255) if raw and not photos else self.images)
        return {"inputs": str(path), "scale": float(RESCALE) if photos and not raw else 1.0, "batch_size": BATCH_SIZE}

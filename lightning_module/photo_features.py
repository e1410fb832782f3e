"""Pooled features of photo files from a frozen backbone, cached by file content so that a second run is fast."""

import hashlib
import os
import zipfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from datamodule.audit.inspection import Inspection
from datamodule.photo_store import load_photo
from models.cores import usable_cores
from models.frozen_backbone import FrozenBackbone
from models.timm_mobilenetv2 import TimmClassifier

CROP = 7 / 8
"""The central view's share of the photo's short side: timm's and Keras's usual crop for evaluation."""
PHOTOS_AT_ONCE = 32


class PhotoFeatures:
    """Features of photos, averaged over three views: whole (squeezed to a square), mirrored, and the central part.

    The views have the product in common and differ mostly in background. With the average, the audit finds a larger
    share of planted errors (docs/audit.md).

    Args:
        network: in evaluation mode.
        size: side of a view in pixels.
        interpolation: Pillow's filter, by Keras's name.
        cache: `.npz` file for the features; one that was written for another network is replaced.
    """

    def __init__(self, network: TimmClassifier, size: int, interpolation: str, cache: Path) -> None:
        self.size, self.interpolation, self.cache = size, interpolation, cache
        # float32 on every processor, so that the audit's findings do not depend on the machine
        self.backbone = FrozenBackbone(network, "float32", "never")
        digest = hashlib.sha256()
        for name, tensor in network.backbone.state_dict().items():
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().tobytes())
        facts = (network.architecture, size, interpolation, CROP, "float32")
        self.key = hashlib.sha256(f"{facts}{digest.hexdigest()}".encode()).hexdigest()

    def of(self, photos: Sequence[Inspection], progress: Callable[[Iterable, int], Iterable]) -> np.ndarray:
        """Return the features of photos, and compute those that are not in the cache.

        Args:
            photos: readable photos.
            progress: wraps an iteration to show progress; called with it and its length.

        Returns:
            float32, shape (N, F).
        """
        known = self._read()
        wanted = {photo.digest: photo for photo in photos}
        missing = [photo for digest, photo in wanted.items() if digest not in known]
        parts = [missing[start : start + PHOTOS_AT_ONCE] for start in range(0, len(missing), PHOTOS_AT_ONCE)]
        try:
            with ThreadPoolExecutor(usable_cores()) as pool:
                for part in progress(parts, len(parts)):
                    views = torch.from_numpy(np.stack(list(pool.map(self._views, part)))).flatten(0, 1)
                    pixels = views.permute(0, 3, 1, 2).float() * (1 / 255)
                    features = self.backbone.features(pixels.contiguous(memory_format=torch.channels_last))
                    mean = features.unflatten(0, (len(part), -1)).mean(1).numpy()
                    known.update({photo.digest: row for photo, row in zip(part, mean, strict=True)})
        finally:
            # also after an interruption, because this may be minutes of work
            if known and missing:
                self._write(known)
        return np.stack([known[photo.digest] for photo in photos])

    def _views(self, photo: Inspection) -> np.ndarray:
        """Return the three views of a photo, uint8, shape (3, size, size, 3)."""
        whole = load_photo(photo.path, (self.size, self.size), self.interpolation)
        scale = self.size / CROP / min(photo.size)
        height, width = (max(self.size, round(side * scale)) for side in photo.size)
        # An extremely long or wide photo would need a huge picture for a small crop.
        height, width = min(height, 4 * self.size), min(width, 4 * self.size)
        large = load_photo(photo.path, (height, width), self.interpolation)
        top, left = (height - self.size) // 2, (width - self.size) // 2
        return np.stack([whole, whole[:, ::-1], large[top : top + self.size, left : left + self.size]])

    def _read(self) -> dict[str, np.ndarray]:
        try:
            with np.load(self.cache, allow_pickle=False) as file:
                if str(file["key"]) != self.key:
                    return {}
                return dict(zip(file["digests"].tolist(), file["features"], strict=True))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return {}  # there is none yet, or it is damaged: it is written again

    def _write(self, known: dict[str, np.ndarray]) -> None:
        fresh = self.cache.with_name(f".{self.cache.name}.{os.getpid()}")
        try:
            with fresh.open("wb") as file:
                np.savez(file, key=self.key, digests=np.array(list(known)), features=np.stack(list(known.values())))
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self.cache)
        finally:
            fresh.unlink(missing_ok=True)

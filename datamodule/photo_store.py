"""Photos decoded once: the pixels that `keras.utils.load_img` gives, kept as uint8."""

import io
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from PIL import Image

Interpolation = Literal["nearest", "bilinear", "bicubic", "hamming", "box", "lanczos"]
INTERPOLATIONS: tuple[str, ...] = get_args(Interpolation)


class BadPhoto(Exception):
    """A file that cannot be read as a photo.

    Attributes:
        path: the file.
        reason: what is wrong with it, in one line.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


def load_photo(path: Path, image_size: tuple[int, int], interpolation: str = "nearest") -> np.ndarray:
    """Load one photo exactly as `keras.utils.load_img(path, target_size=image_size, interpolation=...)` does.

    Pillow decodes, converts to RGB (palettes, CMYK, alpha and 16 bits by Pillow's own rules) and resizes to the exact
    size; the aspect ratio is not kept. EXIF orientation is ignored, as Keras ignores it. Of Keras's colour modes only
    `rgb` applies: `grayscale` gives one channel and `rgba` four, and the network takes three.

    Source mirrored: `keras/src/utils/image_utils.py`, `load_img`.

    Args:
        path: the file.
        image_size: (height, width) in pixels.
        interpolation: one of `INTERPOLATIONS`.

    Returns:
        uint8, shape (height, width, 3), RGB, 0..255.

    Raises:
        BadPhoto: the file cannot be read, or has more pixels than Pillow's limit against decompression bombs (about
            179 million), which Keras refuses too.
    """
    height, width = image_size
    resample = Image.Resampling[interpolation.upper()]
    try:
        content = path.read_bytes()
        if not content:
            raise BadPhoto(path, "is empty (0 bytes)")
        with Image.open(io.BytesIO(content)) as photo:
            rgb = photo if photo.mode == "RGB" else photo.convert("RGB")
            if rgb.size != (width, height):
                rgb = rgb.resize((width, height), resample)
            return np.array(rgb, dtype=np.uint8)
    except BadPhoto:
        raise
    except Image.UnidentifiedImageError:
        raise BadPhoto(path, "is not an image in a format that Pillow knows") from None
    except Image.DecompressionBombError as error:
        raise BadPhoto(path, f"is too large, make it smaller: {error}") from None
    # Pillow's readers meet broken files with nearly any exception (OSError, SyntaxError, struct.error, IndexError...);
    # whichever it is, this file is the one to name.
    except Exception as error:
        raise BadPhoto(path, f"cannot be read: {error or type(error).__name__}") from error


class PhotoStore:
    """Decoded photos of one size and interpolation, in memory.

    Every photo is decoded once, on a pool of threads (Pillow releases the interpreter lock while it works).

    Args:
        image_size: (height, width) in pixels.
        interpolation: one of `INTERPOLATIONS`.
    """

    def __init__(self, image_size: tuple[int, int], interpolation: str = "nearest") -> None:
        self.image_size = image_size
        self.interpolation = interpolation
        self._pixels: dict[Path, np.ndarray] = {}

    def __contains__(self, path: Path) -> bool:
        return path in self._pixels

    def __len__(self) -> int:
        return len(self._pixels)

    def add(self, files: Iterable[Path], progress: Callable[[Iterable, int], Iterable] | None = None) -> list[BadPhoto]:
        """Decode the files that are not in the store yet.

        Args:
            files: paths; those already in the store cost nothing.
            progress: wraps the iteration over results to show how far it is; receives it and the number of photos.

        Returns:
            The files that cannot be read, in the order of `files`; they are not in the store.
        """
        missing = [file for file in dict.fromkeys(files) if file not in self._pixels]
        # One block for all, so that no copy is made and memory is not in pieces.
        block = np.empty((len(missing), *self.image_size, 3), np.uint8)

        def decode(row: int) -> BadPhoto | None:
            try:
                block[row] = load_photo(missing[row], self.image_size, self.interpolation)
            except BadPhoto as bad:
                return bad
            return None

        bad_photos = []
        with ThreadPoolExecutor(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None) as pool:
            results: Iterable[BadPhoto | None] = pool.map(decode, range(len(missing)))
            for row, bad in enumerate(progress(results, len(missing)) if progress else results):
                if bad is None:
                    self._pixels[missing[row]] = block[row]
                else:
                    bad_photos.append(bad)
        return bad_photos

    def photos_of(self, files: Sequence[Path]) -> np.ndarray:
        """Return the pixels of `files`, in their order.

        Returns:
            uint8, shape (N, height, width, 3), RGB, 0..255; a copy.

        Raises:
            KeyError: a file is not in the store.
        """
        if not files:
            return np.empty((0, *self.image_size, 3), np.uint8)
        return np.stack([self._pixels[file] for file in files])

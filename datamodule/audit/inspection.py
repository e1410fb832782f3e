"""One look at each file: what it is, and what can be said of the photo without any network."""

import hashlib
import io
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import imagehash
import numpy as np
from PIL import Image, ImageOps

from datamodule.photo_store import BadPhoto, load_photo

FORMATS = {
    ".jpg": {"JPEG", "MPO"},
    ".jpeg": {"JPEG", "MPO"},
    ".png": {"PNG"},
    ".bmp": {"BMP", "DIB"},
    ".ppm": {"PPM"},
    ".tif": {"TIFF"},
    ".tiff": {"TIFF"},
}
"""Pillow's names of the formats that an extension promises (MPO: a camera's JPEG with a second picture)."""

DARK_BELOW = 0.32
"""The brightest 1% of the pixels are darker than this share of white; cleanvision's own threshold."""
SHARPNESS_SIDE = 244
"""Longest side, in pixels, at which a photo is judged: about what a network sees of it."""
BLURRY_BELOW = 0.17
"""See `sharpness_of`; benchmarks/audit_planted.py prints how many real photos are below, as they are and blurred.
cleanvision judges blur at 64 pixels, where what blurs a photo for a network of 224 pixels is hardly left."""
BLANK_BELOW = 5.0
"""Standard deviation of the grey values, 0 to 255."""
SQUEEZED_ABOVE = 3.0
"""Long side over short side."""

EXIF_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Inspection:
    """What was seen of a photo that can be read.

    Attributes:
        path: the file.
        digest: SHA-256 of its bytes.
        size: (height, width) in pixels.
        oddities: in words, what may make the file be read otherwise than meant.
        brightness: of the brightest 1% of pixels, 0 to 1.
        sharpness: see `sharpness_of`.
        contrast: standard deviation of the grey values, 0 to 255.
        hash64: perceptual hash (DCT), 64 bits.
        mirrored_hash64: the same of the mirrored photo.
    """

    path: Path
    digest: str
    size: tuple[int, int]
    oddities: tuple[str, ...]
    brightness: float
    sharpness: float
    contrast: float
    hash64: int
    mirrored_hash64: int


def inspect_all(
    files: Sequence[Path], progress: Callable[[Iterable, int], Iterable]
) -> tuple[list[Inspection], list[BadPhoto]]:
    """Inspect files on all cores.

    Args:
        files: paths.
        progress: wraps the iteration over results; receives it and their number.

    Returns:
        The photos that can be read, in the order of `files`, and those that cannot.
    """
    # With links to nowhere and the like a file may be listed that is not there: that is a BadPhoto too.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        seen = list(progress(pool.map(_try_inspect, files), len(files)))
    return [each for each in seen if isinstance(each, Inspection)], [
        each for each in seen if isinstance(each, BadPhoto)
    ]


def inspect(path: Path) -> Inspection:
    """Inspect one file.

    Raises:
        BadPhoto: it cannot be read as a photo.
    """
    load_photo(path, (8, 8))  # decodes all of it, and names what is wrong as training would
    content = path.read_bytes()
    with Image.open(io.BytesIO(content)) as photo:
        height, width = photo.height, photo.width
        oddities = tuple(_oddities(path, photo))
        # as large as the network sees it, more or less; a small copy is enough for all that follows
        small = photo.convert("RGB")
    small.thumbnail((SHARPNESS_SIDE, SHARPNESS_SIDE))
    grey = small.convert("L")
    return Inspection(
        path=path,
        digest=hashlib.sha256(content).hexdigest(),
        size=(height, width),
        oddities=oddities,
        brightness=brightness_of(small),
        sharpness=sharpness_of(grey),
        contrast=float(np.asarray(grey, np.float32).std()),
        hash64=_as_integer(imagehash.phash(grey)),
        mirrored_hash64=_as_integer(imagehash.phash(ImageOps.mirror(grey))),
    )


def brightness_of(photo: Image.Image) -> float:
    """Perceived brightness of the brightest 1% of an RGB photo's pixels, 0 to 1 (the measure of cleanvision)."""
    red, green, blue = np.moveaxis(np.asarray(photo, np.float32) / 255, 2, 0)
    return float(np.percentile(np.sqrt(0.241 * red**2 + 0.691 * green**2 + 0.068 * blue**2), 99))


def sharpness_of(grey: Image.Image) -> float:
    """How steep the steepest edges are, relative to the photo's own contrast; about 0.6 for a sharp photo.

    The 99th percentile of the Laplacian's magnitude over the range of grey values from the 1st to the 99th percentile.
    A plain background lowers a Laplacian's *variance*, the usual measure, as much as blur does; this it leaves alone.
    """
    pixels = np.asarray(grey, np.float32)
    if min(pixels.shape) < 3:
        return float("inf")  # too small to say
    laplacian = 4 * pixels[1:-1, 1:-1] - pixels[:-2, 1:-1] - pixels[2:, 1:-1] - pixels[1:-1, :-2] - pixels[1:-1, 2:]
    dark, bright = np.percentile(pixels, (1, 99))
    return float(np.percentile(np.abs(laplacian), 99) / (bright - dark + 1))


def _try_inspect(path: Path) -> Inspection | BadPhoto:
    try:
        return inspect(path)
    except BadPhoto as bad:
        return bad
    # A file that changes or goes between two readings; whatever is raised, this file is the one to name.
    except Exception as error:
        return BadPhoto(path, f"cannot be read: {error or type(error).__name__}")


def _oddities(path: Path, photo: Image.Image) -> list[str]:
    found = []
    promised = FORMATS.get(path.suffix.lower())
    if promised is None:
        found.append(f"its name has no ending of a photo; it is {photo.format}")
    elif photo.format not in promised:
        found.append(f"named {path.suffix} but is {photo.format}")
    if photo.mode == "CMYK":
        found.append("CMYK: made for print, colours shift in RGB")
    elif photo.mode.startswith("I") or photo.mode == "F":
        found.append(f"{photo.mode}: more than 8 bits, cut off and not scaled in RGB")
    elif photo.mode == "P":
        found.append(f"palette of {len(photo.getcolors(256) or ())} colours")
    elif photo.mode == "1":
        found.append("black and white only")
    elif photo.mode not in ("RGB", "RGBA", "L", "LA"):
        found.append(f"colour mode {photo.mode}")
    if photo.has_transparency_data and photo.convert("RGBA").getchannel("A").getextrema()[0] != 255:
        found.append("transparent: what is hidden shows in RGB")
    if getattr(photo, "n_frames", 1) > 1 and photo.format != "MPO":
        found.append(f"{getattr(photo, 'n_frames', 1)} frames, the first is used")
    orientation = photo.getexif().get(EXIF_ORIENTATION, 1)
    if orientation not in (0, 1):
        found.append("EXIF says to rotate or mirror it; Keras and training do not")
    long, short = max(photo.size), min(photo.size)
    if long > SQUEEZED_ABOVE * short:
        found.append(f"{photo.width} x {photo.height}: squeezed into a square")
    return found


def _as_integer(bits: imagehash.ImageHash) -> int:
    return int(str(bits), 16)

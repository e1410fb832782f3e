"""Inspects each file: its format and what can be measured of the photo without a network."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import imagehash
import numpy as np
from PIL import Image, ImageOps

from datamodule.photo_store import BadPhoto, load_photo, open_photo, read_file
from models.cores import usable_cores

FORMATS = {
    ".jpg": {"JPEG", "MPO"},
    ".jpeg": {"JPEG", "MPO"},
    ".png": {"PNG"},
    ".bmp": {"BMP", "DIB"},
    ".ppm": {"PPM"},
    ".tif": {"TIFF"},
    ".tiff": {"TIFF"},
    ".webp": {"WEBP"},
    ".avif": {"AVIF"},
    ".gif": {"GIF"},
    ".jfif": {"JPEG"},
}
"""Pillow's names of the formats expected for each extension (MPO: a camera's JPEG with a second picture)."""

DARK_BELOW = 0.32
"""A photo is dark if the brightest 1% of its pixels are darker than this share of white; cleanvision's threshold."""
SHARPNESS_SIDE = 244
"""Photos are judged with a longest side of this many pixels, about the network's input size."""
BLURRY_BELOW = 0.17
"""See `sharpness_of`; benchmarks/audit_planted.py prints how many real photos are below, unchanged and blurred.
cleanvision judges blur at 64 pixels, where blur that matters to a network of 224 pixels is hardly visible."""
BLANK_BELOW = 5.0
"""Standard deviation of the grey values, 0 to 255."""
SQUEEZED_ABOVE = 3.0
"""Longer side divided by shorter side."""

EXIF_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Inspection:
    """What was measured of a readable photo.

    Attributes:
        path: the file.
        digest: SHA-256 of its bytes.
        size: (height, width) in pixels.
        oddities: reasons, in words, why the file may not be read as intended.
        brightness: brightness of the brightest 1% of its pixels, 0 to 1.
        sharpness: see `sharpness_of`.
        contrast: standard deviation of the grey values, 0 to 255.
        hash64: perceptual hash (DCT), 64 bits.
        mirrored_hash64: the same for the mirrored photo.
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
        progress: wraps the iteration over results to show progress; called with it and the number of results.

    Returns:
        The photos that can be read, in the order of `files`, and those that cannot.
    """
    # A listed file may not exist, for example if it is a broken link. Then it is a BadPhoto, too.
    with ThreadPoolExecutor(usable_cores()) as pool:
        seen = list(progress(pool.map(_try_inspect, files), len(files)))
    return [each for each in seen if isinstance(each, Inspection)], [
        each for each in seen if isinstance(each, BadPhoto)
    ]


def inspect(path: Path) -> Inspection:
    """Inspect one file.

    Raises:
        BadPhoto: it cannot be read as a photo.
    """
    load_photo(path, (8, 8))  # decodes the whole file, and reports errors in the same words as training
    content = read_file(path)
    with open_photo(path, content) as photo:
        height, width = photo.height, photo.width
        oddities = tuple(_oddities(path, photo))
        # about the network's input size, which is enough for all that follows
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
    """Return the perceived brightness of the brightest 1% of an RGB photo's pixels, 0 to 1 (cleanvision's measure)."""
    red, green, blue = np.moveaxis(np.asarray(photo, np.float32) / 255, 2, 0)
    return float(np.percentile(np.sqrt(0.241 * red**2 + 0.691 * green**2 + 0.068 * blue**2), 99))


def sharpness_of(grey: Image.Image) -> float:
    """Return how steep the steepest edges are, relative to the photo's own contrast; about 0.6 for a sharp photo.

    It is the 99th percentile of the Laplacian's magnitude, divided by the range of grey values from the 1st to the 99th
    percentile. The usual measure is the Laplacian's *variance*, but a plain background lowers that as much as blur
    does. This measure is not affected by the background.
    """
    pixels = np.asarray(grey, np.float32)
    if min(pixels.shape) < 3:
        return float("inf")  # too small to measure
    laplacian = 4 * pixels[1:-1, 1:-1] - pixels[:-2, 1:-1] - pixels[2:, 1:-1] - pixels[1:-1, :-2] - pixels[1:-1, 2:]
    dark, bright = np.percentile(pixels, (1, 99))
    return float(np.percentile(np.abs(laplacian), 99) / (bright - dark + 1))


def _try_inspect(path: Path) -> Inspection | BadPhoto:
    try:
        return inspect(path)
    except BadPhoto as bad:
        return bad
    # The file changed or was deleted between two reads. Whatever is raised, this file has to be named.
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

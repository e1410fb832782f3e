"""Settings with a fixed set of choices, shared by packages that do not import each other."""

import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

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

H5_ENDINGS = (".h5", ".hdf5")
"""How the names of Keras's files end."""

PHOTO_FORMATS = ("JPEG", "PNG", "BMP", "DIB", "PPM", "TIFF", "GIF", "WEBP", "AVIF")
"""Pillow's names of the formats that a photo may have, whatever its name says. Left to itself, Pillow opens any format
that it knows, and for PostScript it starts another program. (Its JPEG reader reads MPO too, a JPEG of two pictures.)"""

Formats = Literal["keras", "web", "all"]
"""Which files are listed as photos."""

_KERAS = ("png", "jpg", "jpeg", "bmp", "ppm", "tif", "tiff")
_WEB = (*_KERAS, "webp", "avif", "gif", "jfif")
FORMAT_ENDINGS: dict[Formats, tuple[str, ...]] = {
    "keras": _KERAS,
    "web": _WEB,
    "all": (*_WEB, "jpe", "apng", "dib", "pbm", "pgm", "pnm"),
}
"""How their names end: without a dot, as in Keras, so a file named "scan-png" is listed, too. `keras` is Keras's list,
which has neither WebP nor GIF; `all` are the usual names of `PHOTO_FORMATS`."""


def widest(*formats: Formats) -> Formats:
    """Return the one that lists the most files."""
    return max(formats, key=get_args(Formats).index)


def stated_formats(facts: Mapping[str, Any]) -> Formats:
    """Take them from a checkpoint's settings or a file's attributes; older ones do not state them.

    Raises:
        ValueError: what is stated is not possible.
    """
    formats: Formats = facts.get("formats", "keras")
    if formats not in get_args(Formats):
        raise ValueError(f"formats {str(formats)[:40]!r}, which are none of {get_args(Formats)}")
    return formats


DeepGrey = Literal["clip", "scale"]
"""What becomes of grey photos of 16 bits: Pillow cuts what is above 255; or 0..65535 is scaled to 0..255."""


class Loading(NamedTuple):
    """How a photo's colours become RGB. The defaults are Pillow's, and so Keras's.

    Attributes:
        background: colour that transparent photos are composed on, as "#rrggbb"; None shows what is hidden under the
            transparency, often black.
        deep_grey: what becomes of grey photos of 16 bits.
    """

    background: str | None = None
    deep_grey: DeepGrey = "clip"

    @classmethod
    def stated(cls, facts: Mapping[str, Any]) -> "Loading":
        """Take it from a checkpoint's settings or a file's attributes; older ones do not state it.

        Raises:
            ValueError: what is stated is not possible.
        """
        loading = cls(facts.get("background"), facts.get("deep_grey", "clip"))
        colour = loading.background
        if not (colour is None or (isinstance(colour, str) and re.fullmatch("#[0-9a-f]{6}", colour))):
            raise ValueError(f"background {str(colour)[:40]!r}, which is no colour as #rrggbb")
        if loading.deep_grey not in get_args(DeepGrey):
            raise ValueError(f"deep_grey {str(loading.deep_grey)[:40]!r}, which is none of {get_args(DeepGrey)}")
        return loading


AS_KERAS = Loading()
"""What `keras.utils.load_img` does."""

MOST_PIXELS = 64_000_000
"""Upper limit for height times width of a photo and of the network's input. A larger size is taken as a sign of a
damaged file and refused before any memory is allocated."""

MOST_PHOTO_BYTES = 1 << 28
"""Upper limit for a photo's file: 256 MiB, enough for `MOST_PIXELS` of four bytes each, not compressed."""

RESCALE = np.float32(1 / 255)
"""From 0..255 to [0, 1]: `ImageDataGenerator(rescale=1/255)` multiplies by the rounded reciprocal. Dividing would
differ in the last bit."""

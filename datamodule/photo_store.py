"""Decodes each photo once and keeps its pixels as uint8, exactly as `keras.utils.load_img` returns them."""

import hashlib
import io
import math
import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any

import numpy as np
import PIL
from PIL import Image

from datamodule.pixel_file import DamagedRow, PixelFile, Signature
from models.bad_input import BadInput
from models.choices import AS_KERAS, MOST_PHOTO_BYTES, MOST_PIXELS, PHOTO_FORMATS, Loading
from models.cores import usable_cores

READ_FORMATS = [name for name in PHOTO_FORMATS if name != "AVIF" or find_spec("PIL.AvifImagePlugin")]
"""Those that this Pillow has: before 11.3 it has no AVIF."""

BYTES_AT_ONCE = 1 << 26
"""How many bytes of decoded photos may wait to be stored."""

CONTAINER_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Files in which Linux states how much memory a container may use (cgroup 2 and 1)."""


class BadPhoto(Exception):
    """A file that cannot be read as a photo.

    Attributes:
        path: the file, or its address.
        reason: what is wrong with it, in one line.
    """

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path: Any = path
        self.reason = reason


class LargePhoto(BadPhoto):
    """A file with more bytes or pixels than are read."""


def read_file(path: Path) -> bytes:
    """Return the whole content of a photo's file.

    Raises:
        BadPhoto: it is a pipe, a socket or a device, and reading one might never end; or it is empty, or too large.
        OSError: it cannot be read.
    """
    found = path.stat()
    kind, size = found.st_mode, found.st_size
    if not S_ISREG(kind) and not S_ISDIR(kind):
        raise BadPhoto(path, "is a pipe, a socket or a device")
    if S_ISREG(kind) and not size:  # so say the files of /proc as well, of which some never end
        raise BadPhoto(path, "is empty (0 bytes)")
    if size > MOST_PHOTO_BYTES:
        raise LargePhoto(
            path, f"is too large, make it smaller: {size >> 20} MiB, at most {MOST_PHOTO_BYTES >> 20} are read"
        )
    with path.open("rb") as file:
        return file.read(size)


def open_photo(path: Path | str, content: bytes | None = None, most_pixels: int = MOST_PIXELS) -> Image.Image:
    """Open a photo's file without decoding it yet. Every photo is opened here: Pillow alone would open too much.

    Args:
        path: the file, or its address.
        content: what is in it, if it was read already.
        most_pixels: of a photo that is read.

    Raises:
        BadPhoto: it is none of `PHOTO_FORMATS`, whatever its name says, or what `read_file` refuses; `LargePhoto` if it
            has more than `most_pixels`.
        OSError: it cannot be read; or any other exception of Pillow's readers.
    """
    if content is not None and not content:
        raise BadPhoto(path, "is empty (0 bytes)")
    most = f"at most {most_pixels / 10**6:g} megapixels are read"
    try:
        photo = Image.open(io.BytesIO(read_file(Path(path)) if content is None else content), formats=READ_FORMATS)
    except Image.UnidentifiedImageError:
        *first, last = (name for name in READ_FORMATS if name != "DIB")
        raise BadPhoto(path, f"is not an image in a format that is read: {', '.join(first)} or {last}") from None
    except Image.DecompressionBombError:  # its text names Pillow's limit, which is another one
        raise LargePhoto(path, f"is too large, make it smaller: {most}") from None
    if photo.width * photo.height > most_pixels:
        size = f"{photo.width} x {photo.height} pixels"
        raise LargePhoto(path, f"is too large, make it smaller: {size}, {most}")
    return photo


def to_rgb(photo: Image.Image, loading: Loading = AS_KERAS) -> Image.Image:
    """Convert a photo to RGB.

    Args:
        photo: as Pillow opens it.
        loading: with the defaults, by Pillow's own rules.
    """
    if loading.deep_grey == "scale" and photo.mode.startswith("I"):
        # Pillow opens 16 bits as "I;16" or, in older versions, as "I" of 32 bits
        values = np.clip(np.asarray(photo).astype(np.int64), 0, 65535)
        photo = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    if loading.background is not None and photo.has_transparency_data:
        under = Image.new("RGBA", photo.size, loading.background)
        under.alpha_composite(photo.convert("RGBA"))
        photo = under
    return photo if photo.mode == "RGB" else photo.convert("RGB")


def load_photo(
    path: Path | str,
    image_size: tuple[int, int],
    interpolation: str = "nearest",
    loading: Loading = AS_KERAS,
    content: bytes | None = None,
    most_pixels: int = MOST_PIXELS,
) -> np.ndarray:
    """Load one photo exactly as `keras.utils.load_img(path, target_size=image_size, interpolation=...)` does.

    Pillow decodes, converts to RGB (palettes, CMYK, alpha and 16 bits by Pillow's own rules) and resizes to the exact
    size; the aspect ratio is not kept. EXIF orientation is ignored, as in Keras. Of Keras's colour modes only `rgb` is
    supported: `grayscale` gives one channel and `rgba` four, but the network takes three.

    Source mirrored: `keras/src/utils/image_utils.py`, `load_img`.

    Args:
        path: the file, or its address.
        image_size: (height, width) in pixels.
        interpolation: one of `models.choices.INTERPOLATIONS`.
        loading: how its colours become RGB; the defaults are Keras's.
        content: what is in the file, if it was read already; then there need not be one.
        most_pixels: of a photo that is read.

    Returns:
        uint8, shape (height, width, 3), RGB, 0..255.

    Raises:
        BadPhoto: the file cannot be read; `LargePhoto` if it has more than `most_pixels`. (Keras reads photos of up to
            179 million pixels, Pillow's limit against decompression bombs.)
    """
    height, width = image_size
    resample = Image.Resampling[interpolation.upper()]
    try:
        with open_photo(path, content, most_pixels) as photo:
            rgb = to_rgb(photo, loading)
            if rgb.size != (width, height):
                rgb = rgb.resize((width, height), resample)
            return np.array(rgb, dtype=np.uint8)
    except BadPhoto:
        raise
    # For broken files, Pillow's readers raise nearly any exception (OSError, SyntaxError, struct.error, IndexError...).
    # Whichever it is, this file has to be named.
    except Exception as error:
        raise BadPhoto(path, f"cannot be read: {error or type(error).__name__}") from error


class PhotoStore:
    """Decoded photos of one size and interpolation: in memory, or in a memory-mapped file if they need too much memory.

    A photo is identified by the digest of its content. So it is decoded once even if it has several names, and again if
    it changes. One thread per core decodes (Pillow releases the interpreter lock while it works).

    The file remains after the process ends and is shared. One process decodes while the others wait; photos that a
    killed process had finished are kept. The file never shrinks; its folder may be deleted between runs. If several
    processes train on this machine, the file is always used, because otherwise each of them would decode and hold every
    photo.

    Args:
        image_size: (height, width) in pixels.
        interpolation: one of `models.choices.INTERPOLATIONS`.
        ram_share: share of this machine's (or container's) memory, 0 to 1. Photos that need more go to the file.
        folder: folder of the file; None: `default_store_dir()`.
        loading: how colours become RGB.

    Attributes:
        processes: how many processes on this machine have such a store.
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        interpolation: str = "nearest",
        ram_share: float = 0.5,
        folder: Path | None = None,
        loading: Loading = AS_KERAS,
    ) -> None:
        self.loading = loading
        self.image_size = image_size
        self.interpolation = interpolation
        self.ram_share = ram_share
        self.folder = folder if folder is not None else default_store_dir()
        self.processes = local_processes()
        self._seen: dict[Path, tuple[Signature, bytes]] = {}
        self._memory: dict[bytes, np.ndarray] = {}
        self._file: PixelFile | None = None

    def __contains__(self, path: Path) -> bool:
        return path in self._seen

    def __len__(self) -> int:
        return len(self._seen)

    @property
    def photo_bytes(self) -> int:
        """Size of one decoded photo."""
        return self.image_size[0] * self.image_size[1] * 3

    def add(self, files: Iterable[Path], progress: Callable[[Iterable, int], Iterable] | None = None) -> list[BadPhoto]:
        """Decode the files that are not in the store yet, or have changed since.

        Args:
            files: paths; for those that are in the store already, only size and times are checked.
            progress: wraps the iteration over results to show progress; called with it and the number of photos.

        Returns:
            The files that cannot be read, in the order of `files`; they are not in the store.

        Raises:
            BadInput: the photos need the file, but its folder cannot be created or the disk has too little space.
        """
        missing = [file for file in dict.fromkeys(files) if not self._is_current(file)]
        if not missing:
            return []
        needed = (len(self._memory) + len(missing)) * self.photo_bytes
        if self.processes == 1 and needed <= self.ram_share * memory_size():
            return self._fill(missing, self._remember, progress)
        pixel_file = self._open_file()
        with pixel_file.locked():
            seen = pixel_file.read_seen({str(file.absolute()) for file in missing})
            for file in missing:
                signature, digest = seen.get(str(file.absolute()), (None, b""))
                if digest in pixel_file and signature is not None and signature == signature_of(file):
                    self._seen[file] = signature, digest
            still_missing = [file for file in missing if not self._is_current(file)]
            self._check_room(len(still_missing))
            bad_photos = self._fill(still_missing, pixel_file.append, progress)
            if still_missing:
                pixel_file.write_seen({str(file.absolute()): known for file, known in self._seen.items()})
        return bad_photos

    def _is_current(self, file: Path) -> bool:
        return file in self._seen and self._seen[file][0] == signature_of(file)

    def _open_file(self) -> PixelFile:
        if self._file is None:
            height, width = self.image_size
            # Another version of Pillow may decode to other pixels.
            name = f"{height}x{width}-{self.interpolation}-pillow{PIL.__version__}"
            if self.loading != AS_KERAS:
                name += f"-{(self.loading.background or 'hidden').lstrip('#')}-{self.loading.deep_grey}"
            self._file = PixelFile(self.folder / name, (height, width, 3))
        return self._file

    def _check_room(self, photos: int) -> None:
        needed, free = photos * self.photo_bytes, shutil.disk_usage(self.folder).free
        if needed > free:
            raise BadInput(
                f"store_dir: expected room for {photos} decoded photos, {needed / 1e9:.1f} GB; received {self.folder} "
                f"with {free / 1e9:.1f} GB free. Make room, or give another folder with --data.store_dir."
            )

    def _remember(self, fresh: dict[bytes, np.ndarray]) -> None:
        self._memory.update(fresh)

    def _fill(
        self,
        files: list[Path],
        keep: Callable[[dict[bytes, np.ndarray]], None],
        progress: Callable[[Iterable, int], Iterable] | None,
    ) -> list[BadPhoto]:
        results = self._decode(files, keep)
        return [bad for bad in (progress(results, len(files)) if progress else results) if bad is not None]

    def _decode(self, files: list[Path], keep: Callable[[dict[bytes, np.ndarray]], None]) -> Iterator[BadPhoto | None]:
        """Decode the files in parts, so that no more than one part waits to be written."""
        step = max(1, BYTES_AT_ONCE // self.photo_bytes)
        with ThreadPoolExecutor(usable_cores()) as pool:
            for start in range(0, len(files), step):
                part = files[start : start + step]
                fresh: dict[bytes, np.ndarray] = {}
                known: dict[Path, tuple[Signature, bytes]] = {}
                for file, result in zip(part, pool.map(self._read, part), strict=True):
                    if isinstance(result, BadPhoto):
                        self._seen.pop(file, None)
                        yield result
                        continue
                    signature, digest, pixels = result
                    known[file] = signature, digest
                    if pixels is not None:
                        fresh[digest] = pixels
                    yield None
                keep(fresh)
                self._seen.update(known)

    def _read(self, file: Path) -> tuple[Signature, bytes, np.ndarray | None] | BadPhoto:
        """Return a file's signature, its digest and, if they are not in the store yet, its pixels."""
        try:
            signature = signature_of(file)
            if signature is not None:
                digest = hashlib.sha256(read_file(file)).digest()
                if digest in self._memory or (self._file is not None and digest in self._file):
                    return signature, digest, None
            pixels = load_photo(file, self.image_size, self.interpolation, self.loading)
        except BadPhoto as bad:
            return bad
        except OSError as error:
            return BadPhoto(file, f"cannot be read: {error}")
        if signature is None or signature_of(file) != signature:
            return BadPhoto(file, "cannot be read: it is being written to; wait until that is done")
        return signature, digest, pixels

    def digest_of(self, file: Path) -> bytes:
        """Return the SHA-256 of the content of a file that is in the store.

        Raises:
            KeyError: the file is not in the store.
        """
        return self._seen[file][1]

    def photos_of(self, files: Sequence[Path]) -> np.ndarray:
        """Return the pixels of `files`, in their order.

        Returns:
            uint8, shape (N, height, width, 3), RGB, 0..255; a copy.

        Raises:
            KeyError: a file is not in the store.
        """
        photos = np.empty((len(files), *self.image_size, 3), np.uint8)
        for row, file in enumerate(files):
            digest = self._seen[file][1]
            in_memory = self._memory.get(digest)
            if in_memory is None:
                in_memory = self._from_file(file, digest)
            photos[row] = in_memory
        return photos

    def _from_file(self, file: Path, digest: bytes) -> np.ndarray:
        """Stored pixels of a photo; decoded again if they were damaged on the disk.

        Raises:
            BadInput: they were, and the photo is no longer there to be decoded.
        """
        assert self._file is not None
        try:
            return self._file[digest]
        except DamagedRow:
            warnings.warn(f"the stored pixels of {file} were damaged; they are decoded again", stacklevel=2)
        try:
            whole = hashlib.sha256(read_file(file)).digest() == digest
            pixels = load_photo(file, self.image_size, self.interpolation, self.loading) if whole else None
        except (BadPhoto, OSError):
            pixels = None
        if pixels is None:
            raise BadInput(
                f"expected the stored pixels of {file} as they were written, received damaged ones in "
                f"{self._file.folder}, and the photo cannot be decoded again: it has changed or is gone. Put it back."
            )
        self._file.repair(digest, pixels)
        return pixels


def signature_of(file: Path) -> Signature | None:
    """Return a file's size and times, a quick way to see whether it has changed; None if it cannot be accessed."""
    try:
        stat = file.stat()
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def memory_size() -> float:
    """Return the bytes of memory that this machine has, or its container may use; infinite if that is not known."""
    sizes = [math.inf]
    if hasattr(os, "sysconf"):
        sizes.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for limit in CONTAINER_LIMITS:
        if limit.is_file() and (text := limit.read_text().strip()).isdigit():
            sizes.append(int(text))
    return min(sizes)


def local_processes() -> int:
    """Return how many processes of one training run on this machine, as stated by torchrun; 1 without it."""
    count = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(1, int(count)) if count.isdigit() else 1


def default_store_dir() -> Path:
    """Return the user's cache folder for decoded photos."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shelftwin" / "photos"

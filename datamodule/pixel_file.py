"""Decoded photos in a memory-mapped file that several processes may fill and read at once."""

import itertools
import json
import os
import tempfile
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from filelock import FileLock

from models.bad_input import BadInput

DIGEST_BYTES = 32
Signature = tuple[int, int, int]
"""A file's size, modification time and status change time (nanoseconds). While they stay the same, its content does."""


class PixelFile:
    """Rows of uint8 pixels, each identified by the digest of the photo that it was decoded from.

    The file `pixels` holds the rows and `digests` their digests, in the same order; both only grow. A digest is written
    after its pixels are on the disk, and a row is valid only with its digest. So the next process overwrites what a
    killed one left unfinished. `seen.json` is a shortcut: the digest that each path had when it was last seen.

    Args:
        folder: created if it is missing; may be deleted at any time between runs.
        row_shape: (height, width, 3).

    Raises:
        BadInput: the folder cannot be created.
    """

    def __init__(self, folder: Path, row_shape: tuple[int, int, int]) -> None:
        self.folder = folder
        self.row_shape = row_shape
        self.row_bytes = int(np.prod(row_shape))
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput(
                f"store_dir: expected a folder for decoded photos; received {folder}, which cannot be made "
                f"({error.strerror}). Give another one with --data.store_dir."
            ) from None
        self._rows: dict[bytes, int] = {}
        self._map: np.ndarray | None = None

    def __getstate__(self) -> dict:
        """Leave the memory map out: another process maps the file itself instead of receiving all pixels."""
        return self.__dict__ | {"_map": None}

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._rows

    def __getitem__(self, digest: bytes) -> np.ndarray:
        """Return the pixels of a digest: a view of the file, uint8, shape `row_shape`."""
        row = self._rows[digest]
        if self._map is None or row >= len(self._map):
            shape = (len(self._rows), *self.row_shape)
            self._map = np.memmap(self.folder / "pixels", np.uint8, "r", shape=shape)
        return self._map[row]

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from adding rows meanwhile, and read all rows that they have added before.

        If a process is killed, the operating system releases its lock.
        """
        with FileLock(self.folder / "lock"):
            self._read_digests()
            yield

    def _read_digests(self) -> None:
        paths = [self.folder / name for name in ("digests", "pixels")]
        sizes = [path.stat().st_size if path.exists() else 0 for path in paths]
        count = min(sizes[0] // DIGEST_BYTES, sizes[1] // self.row_bytes)
        content = paths[0].read_bytes() if count else b""
        self._rows = {content[row * DIGEST_BYTES : (row + 1) * DIGEST_BYTES]: row for row in range(count)}

    def append(self, fresh: Mapping[bytes, np.ndarray]) -> None:
        """Add pixels by digest; only while `locked`.

        Raises:
            BadInput: they cannot be written, for example because the disk is full. Earlier rows stay valid.
        """
        if not fresh:
            return
        count = len(self._rows)
        try:
            self._write("pixels", count * self.row_bytes, (pixels.tobytes() for pixels in fresh.values()))
            self._write("digests", count * DIGEST_BYTES, fresh)
        except OSError as error:
            raise BadInput(
                f"store_dir: expected to write decoded photos to {self.folder}; received: {error.strerror}. "
                "Make room, or give another folder with --data.store_dir."
            ) from error
        self._rows.update(zip(fresh, range(count, count + len(fresh)), strict=True))

    def _write(self, name: str, start: int, parts: Iterable[bytes]) -> None:
        path = self.folder / name
        path.touch()
        with path.open("r+b") as file:
            file.truncate(start)
            file.seek(start)
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())

    def read_seen(self, wanted: Container[str]) -> dict[str, tuple[Signature, bytes]]:
        """Return the signature and digest that each of the wanted paths had when it was last seen."""
        return {path: known for path, known in self._stored() if path in wanted}

    def write_seen(self, seen: Mapping[str, tuple[Signature, bytes]]) -> None:
        """Add paths to those that `read_seen` can return, all of them or none; only while `locked`."""
        # Written path by path, because serialising all at once would take many times the memory.
        with tempfile.NamedTemporaryFile("w", dir=self.folder, prefix="seen.", delete=False) as file:
            others = ((path, known) for path, known in self._stored() if path not in seen)
            file.write("{")
            for number, (path, (signature, digest)) in enumerate(itertools.chain(others, seen.items())):
                file.write(f"{',' if number else ''}\n{json.dumps(path)}: {json.dumps([*signature, digest.hex()])}")
            file.write("\n}\n")
        Path(file.name).replace(self.folder / "seen.json")

    def _stored(self) -> Iterator[tuple[str, tuple[Signature, bytes]]]:
        """Yield the stored paths, one per line (older versions: all on one line), as far as they can be read."""
        try:
            with (self.folder / "seen.json").open() as lines:
                for line in lines:
                    entries = json.loads("{" + line.strip().lstrip("{").rstrip(",}") + "}")
                    for path, (size, modified, changed, digest) in entries.items():
                        yield path, ((size, modified, changed), bytes.fromhex(digest))
        except (FileNotFoundError, ValueError, TypeError, AttributeError):
            return

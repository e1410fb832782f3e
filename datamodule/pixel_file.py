"""Decoded photos in a memory-mapped file that several processes may fill and read at once."""

import itertools
import json
import os
import tempfile
import zlib
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from filelock import FileLock

from models.bad_input import BadInput

DIGEST_BYTES, CHECKSUM_BYTES = 32, 4
Signature = tuple[int, int, int]
"""A file's size, modification time and status change time (nanoseconds). While they stay the same, its content does."""


class DamagedRow(Exception):
    """The pixels of a digest are not those that were written."""


class PixelFile:
    """Rows of uint8 pixels, each identified by the digest of the photo that it was decoded from.

    The file `pixels` holds the rows and `index` their digests with a checksum of both, in the same order; both only
    grow. A digest is written after its pixels are on the disk, and a row is valid only with its digest. So the next
    process overwrites what a killed one left unfinished. Each process compares a row with its checksum when it first
    reads it. `seen.json` is a shortcut: the digest that each path had when it was last seen, with a checksum, too.

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
        self._rows: dict[bytes, tuple[int, int]] = {}  # digest -> row, checksum
        self._checked: set[int] = set()
        self._map: np.ndarray | None = None

    def __getstate__(self) -> dict:
        """Leave the memory map out: another process maps the file itself instead of receiving all pixels."""
        return self.__dict__ | {"_map": None}

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._rows

    def __getitem__(self, digest: bytes) -> np.ndarray:
        """Return the pixels of a digest: a view of the file, uint8, shape `row_shape`.

        Raises:
            DamagedRow: they are not those that were written; `repair` them.
        """
        row, checksum = self._rows[digest]
        if self._map is None or row >= len(self._map):
            shape = (len(self._rows), *self.row_shape)
            self._map = np.memmap(self.folder / "pixels", np.uint8, "r", shape=shape)
        pixels = self._map[row]
        if row not in self._checked:
            if _checksum(digest, pixels) != checksum:
                raise DamagedRow
            self._checked.add(row)
        return pixels

    def repair(self, digest: bytes, pixels: np.ndarray) -> None:
        """Write the pixels of a digest again, where they were damaged.

        Raises:
            BadInput: they cannot be written.
        """
        with self.locked():
            row, _ = self._rows[digest]
            self._try_to_write(row, {digest: pixels}, last=False)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from adding rows meanwhile, and read all rows that they have added before.

        If a process is killed, the operating system releases its lock.
        """
        with FileLock(self.folder / "lock"):
            self._read_digests()
            yield

    def _read_digests(self) -> None:
        paths = [self.folder / name for name in ("index", "pixels")]
        sizes = [path.stat().st_size if path.exists() else 0 for path in paths]
        entry = DIGEST_BYTES + CHECKSUM_BYTES
        count = min(sizes[0] // entry, sizes[1] // self.row_bytes)
        content = paths[0].read_bytes() if count else b""
        entries = (content[row * entry : (row + 1) * entry] for row in range(count))
        self._rows = {
            each[:DIGEST_BYTES]: (row, int.from_bytes(each[DIGEST_BYTES:], "little"))
            for row, each in enumerate(entries)
        }

    def append(self, fresh: Mapping[bytes, np.ndarray]) -> None:
        """Add pixels by digest; only while `locked`.

        Raises:
            BadInput: they cannot be written, for example because the disk is full. Earlier rows stay valid.
        """
        if not fresh:
            return
        count = len(self._rows)
        self._try_to_write(count, fresh, last=True)

    def _try_to_write(self, start: int, rows: Mapping[bytes, np.ndarray], last: bool) -> None:
        """Write rows and their entries from a row on; if they are the last, what a killed process left is cut off."""
        sums = [_checksum(digest, pixels) for digest, pixels in rows.items()]
        entries = [
            digest + checksum.to_bytes(CHECKSUM_BYTES, "little") for digest, checksum in zip(rows, sums, strict=True)
        ]
        try:
            self._write("pixels", start * self.row_bytes, (pixels.tobytes() for pixels in rows.values()), last)
            self._write("index", start * (DIGEST_BYTES + CHECKSUM_BYTES), entries, last)
        except OSError as error:
            raise BadInput(
                f"store_dir: expected to write decoded photos to {self.folder}; received: {error.strerror}. "
                "Make room, or give another folder with --data.store_dir."
            ) from error
        self._rows.update(zip(rows, zip(range(start, start + len(rows)), sums, strict=True), strict=True))

    def _write(self, name: str, start: int, parts: Iterable[bytes], truncate: bool) -> None:
        path = self.folder / name
        path.touch()
        with path.open("r+b") as file:
            if truncate:
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
                known = [*signature, digest.hex()]
                entry = json.dumps([*known, _seen_checksum(path, known)])
                file.write(f"{',' if number else ''}\n{json.dumps(path)}: {entry}")
            file.write("\n}\n")
        Path(file.name).replace(self.folder / "seen.json")

    def _stored(self) -> Iterator[tuple[str, tuple[Signature, bytes]]]:
        """Yield the stored paths, one per line, as far as they can be read and their checksums match."""
        try:
            with (self.folder / "seen.json").open() as lines:
                for line in lines:
                    entries = json.loads("{" + line.strip().lstrip("{").rstrip(",}") + "}")
                    for path, (*known, checksum) in entries.items():
                        if checksum == _seen_checksum(path, known):
                            size, modified, changed, digest = known
                            yield path, ((size, modified, changed), bytes.fromhex(digest))
        except (FileNotFoundError, ValueError, TypeError, AttributeError):
            return


def _checksum(digest: bytes, pixels: np.ndarray) -> int:
    """Of both together: neither pixels nor digests can change places unnoticed."""
    return zlib.crc32(pixels.tobytes(), zlib.crc32(digest))


def _seen_checksum(path: str, known: list[object]) -> int:
    return zlib.crc32(json.dumps([path, *known]).encode())

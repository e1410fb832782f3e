"""The photos that a data set is asked for, in a file, so that millions of them need no memory."""

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from datamodule.photo_store import BadPhoto
from datamodule.sources.addresses import is_address
from datamodule.sources.remote_photos import Address
from lightning_module.evaluation.decoding import Found


class Part(NamedTuple):
    """Photos whose labels are one file.

    Attributes:
        number: from 0.
        found: the photos, at least one.
    """

    number: int
    found: list[Found]


class Listing:
    """A file with a line for each photo: its path or address as JSON, or [path, reason] of what cannot be one.

    Args:
        file: is there already.
        per_part: photos of a part; the last may have fewer.
        starts: byte at which each part begins.
        photos: how many there are.
        digest: SHA-256 of the file, hexadecimal.
    """

    def __init__(self, file: Path, per_part: int, starts: array, photos: int, digest: str) -> None:
        self.file, self.per_part, self._starts = file, per_part, starts
        self.photos, self.digest = photos, digest

    @classmethod
    def written(cls, file: Path, found: Iterable[Found], per_part: int) -> "Listing":
        """Write the file.

        Args:
            file: where to.
            found: the photos, in order.
            per_part: photos of a part.
        """
        starts, photos, place, digest = array("Q"), 0, 0, hashlib.sha256()
        with file.open("wb") as lines:
            for each in found:
                if photos % per_part == 0:
                    starts.append(place)
                entry = [str(each.path), each.reason] if isinstance(each, BadPhoto) else str(each)
                line = json.dumps(entry).encode() + b"\n"  # ASCII: what is not UTF-8 keeps its bytes as \udc..
                lines.write(line)
                digest.update(line)
                photos, place = photos + 1, place + len(line)
        return cls(file, per_part, starts, photos, digest.hexdigest())

    @property
    def parts(self) -> int:
        """How many parts there are."""
        return len(self._starts)

    def rows(self, number: int) -> int:
        """Return how many photos a part has."""
        return min(self.per_part, self.photos - number * self.per_part)

    def lines(self, number: int) -> bytes:
        """Return the lines of a part, which `part_of` reads: what is sent to another machine."""
        with self.file.open("rb") as lines:
            lines.seek(self._starts[number])
            if number + 1 < self.parts:
                return lines.read(self._starts[number + 1] - self._starts[number])
            return lines.read()

    def each_part(self, numbers: Iterable[int]) -> Iterator[Part]:
        """Yield parts of these numbers."""
        return (part_of(number, self.lines(number)) for number in numbers)


def part_of(number: int, lines: bytes) -> Part:
    """Return the photos that a listing's lines name."""
    given = [json.loads(line) for line in lines.splitlines()]
    return Part(number, [_found(each) for each in given])


def _found(entry: str | list[str]) -> Found:
    if not isinstance(entry, str):
        return BadPhoto(Path(entry[0]), entry[1])
    return Address(entry) if is_address(entry) else Path(entry)  # no path has two slashes that follow each other

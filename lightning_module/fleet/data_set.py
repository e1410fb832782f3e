"""The folder of a Parquet data set: what it has, what it lacks, and how it is finished.

Whoever reads it, such as pyarrow, pandas, Spark or Ray, leaves out what begins with `_` or a dot.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from lightning_module.evaluation.decoding import Found
from lightning_module.fleet.listing import Listing
from lightning_module.fleet.parts import NUMBER_KEY, REQUEST_KEY, LabelledPart
from lightning_module.fleet.request import Request
from models.atomic_write import replacing, write_text
from models.bad_input import BadInput, some_lines_of

PHOTOS, REQUEST, SUMMARY, SUCCESS, LOCK = "_photos.jsonl", "_request.json", "_summary.json", "_SUCCESS", ".lock"
BEFORE_PARTS = re.compile(r"_photos\.jsonl|\..*", re.S)
OWN = re.compile(rf"part-\d{{5,}}\.parquet|_request\.json|_summary\.json|_SUCCESS|{BEFORE_PARTS.pattern}", re.S)


class DataSet:
    """The folder.

    Args:
        folder: is made if it is not there, but not the one that it is in.
        resume: go on with what is there.

    Raises:
        BadInput: it cannot be written to, has other files, or has a data set and `resume` is false.
    """

    def __init__(self, folder: Path, resume: bool) -> None:
        self.folder = folder
        if (folder.exists() and not folder.is_dir()) or not folder.parent.is_dir():
            what = "is a file" if folder.exists() else "is in no folder that is there"
            raise BadInput(f"--out: expected a folder for a data set, received {folder}, which {what}. Name another.")
        names = [each.name for each in folder.iterdir()] if folder.exists() else []
        own = OWN if REQUEST in names else BEFORE_PARTS
        if foreign := sorted(name for name in names if not own.fullmatch(name)):
            raise BadInput(
                f"--out: expected an empty folder, a new one, or one with a data set of lightning predict; received "
                f"{folder}, which has other files, such as {foreign[0]}. Name another."
            )
        if REQUEST in names and not resume:
            state = "a whole data set" if SUCCESS in names else "a data set that is not finished"
            raise BadInput(
                f"--out: expected an empty folder or a new one, received {folder} with {state}. Give --resume to go "
                "on with it, name another, or remove it."
            )
        if not os.access(folder if folder.exists() else folder.parent, os.W_OK):
            raise BadInput(f"--out: expected a folder that can be written, received {folder}. Name another.")

    @property
    def is_whole(self) -> bool:
        """Whether every part and the summary are there."""
        return (self.folder / SUCCESS).is_file()

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Make the folder, and keep every other run out of it until the end.

        Raises:
            BadInput: another run has it.
        """
        made = not self.folder.exists()
        self.folder.mkdir(exist_ok=True)
        lock = FileLock(self.folder / LOCK)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            raise BadInput(
                f"--out: expected a folder of no other run, received {self.folder}, which one is writing. Wait until "
                "it has ended, or name another."
            ) from None
        try:
            yield
        finally:
            # Removed while it is locked: another process could lock it in the moment between.
            (self.folder / LOCK).unlink(missing_ok=True)
            lock.release()
            if made and not any(self.folder.iterdir()):
                self.folder.rmdir()

    @contextmanager
    def listed(self, found: Iterable[Found], per_part: int) -> Iterator[Listing]:
        """Write the listing beside its place; it takes it when the context ends well.

        Args:
            found: the photos, in order.
            per_part: rows of a file.
        """
        with replacing(self.folder / PHOTOS) as temporary:
            listing = Listing.written(temporary, found, per_part)
            yield listing
        listing.file = self.folder / PHOTOS

    def begin(self, request: Request) -> None:
        """Write down what is asked for, or make sure that what is there was begun with the same.

        Raises:
            BadInput: it was begun with something else.
        """
        file = self.folder / REQUEST
        if not file.is_file():
            write_text(file, request.text)
            return
        try:
            before = dict(json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise BadInput(
                f"--resume: expected in {file} what the data set was begun with, received what cannot be read. Name "
                "another folder with --out, or remove this one."
            ) from error
        if differing := request.differences(before):
            raise BadInput(
                f"--resume: expected the request that {self.folder} was begun with, received one that differs in\n"
                f"{some_lines_of(differing)}\nGive the same command again, or name another folder with --out."
            )

    def reopen(self) -> None:
        """Take back that all is there: a part of it is missing, or damaged."""
        (self.folder / SUCCESS).unlink(missing_ok=True)

    def path(self, number: int, parts: int) -> Path:
        """Return a part's file. Names sort as numbers do."""
        return self.folder / f"part-{number:0{max(5, len(str(parts - 1)))}}.parquet"

    def missing(self, listing: Listing, request: Request) -> list[int]:
        """Return the numbers of parts that are not there, or are damaged, or are none of this request."""
        return [number for number in range(listing.parts) if not self._has(number, listing, request)]

    def _has(self, number: int, listing: Listing, request: Request) -> bool:
        import pyarrow
        from pyarrow import parquet

        file = self.path(number, listing.parts)
        if not file.is_file():
            return False
        try:
            table = parquet.read_table(file, page_checksum_verification=True)
        except (pyarrow.ArrowException, OSError):
            return False
        stated = table.schema.metadata or {}
        mine = stated.get(REQUEST_KEY.encode()), stated.get(NUMBER_KEY.encode())
        return mine == (request.digest.encode(), str(number).encode()) and table.num_rows == listing.rows(number)

    def write(self, part: LabelledPart, parts: int) -> None:
        """Write a part's file: whole, or not at all."""
        with replacing(self.path(part.number, parts)) as temporary:
            temporary.write_bytes(part.content)

    def finish(self, summary: str) -> None:
        """Write the summary, and then that all is there."""
        write_text(self.folder / SUMMARY, summary)
        write_text(self.folder / SUCCESS, "")

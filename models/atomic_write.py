"""Files that are written whole or not at all: nothing half-written ever replaces a good one.

What is not whole yet has a temporary name beside its place, with the number of the process that writes it. A killed
process leaves it there; whoever writes to the same place next removes it.
"""

from __future__ import annotations

import ctypes
import glob
import os
import platform
import re
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from models.bad_input import BadInput


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary file beside `path`; on success flush it to disk and rename it to `path`, else remove it.

    Args:
        path: what is to be written; an older file there is whole until the rename.

    Raises:
        BadInput: it cannot be written there.
    """
    temporary = _temporary(path, "tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        _flush(path.parent)  # the rename itself
    except OSError as error:
        raise BadInput(
            f"expected a place where {path} can be written, got: {error.strerror or error}. An older file there is "
            "untouched. Free the disk or name another place."
        ) from error
    finally:
        # Where even this cannot be done, such as in a folder without rights, nothing was written.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str, encoding: str = "utf-8", errors: str = "strict") -> None:
    """Write a text file.

    Args:
        path: of the file.
        text: its content.
        encoding: Python's name of it.
        errors: Python's name of what becomes of characters that the encoding has not; `surrogateescape` writes the
            bytes of a file's name that is not UTF-8 as they were.

    Raises:
        BadInput: it cannot be written there.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding=encoding, errors=errors)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Give the name of a temporary folder beside `path`, still to be made; otherwise as `replacing`.

    Where the system can swap two names (Linux), there is no moment without a whole folder at `path`. Elsewhere the old
    one is moved aside first, and back if the new one cannot take its place.

    Args:
        path: the folder that is to be written; an older one there goes, with all that is in it.

    Raises:
        BadInput: it cannot be written there.
    """
    path = path.resolve()  # of a link to a folder, the folder is replaced
    temporary = _temporary(path, "tmp")
    aside = path.with_name(f".{path.name}.{os.getpid()}.old")
    try:
        yield temporary
        for each in (*temporary.rglob("*"), temporary):
            _flush(each)
        if path.exists() and not _swap(temporary, path):
            path.rename(aside)
            try:
                temporary.rename(path)
            except OSError:
                aside.rename(path)
                raise
        elif not path.exists():
            temporary.rename(path)
        _flush(path.parent)
    except OSError as error:
        raise BadInput(
            f"expected a place where {path} can be written, got: {error.strerror or error}. An older folder there is "
            "untouched. Free the disk or name another place."
        ) from error
    finally:
        for left in (temporary, aside):
            shutil.rmtree(left, ignore_errors=True)


@contextmanager
def working_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder beside `path`, for what is made on the way to it; removed at the end.

    Args:
        path: what is to be written; on the same disk, so that what lies in the folder can be renamed to it.

    Raises:
        BadInput: it cannot be made there.
    """
    folder = _temporary(path, "work")
    try:
        folder.mkdir()
    except OSError as error:
        raise BadInput(
            f"expected a folder that can be written for {path.name}, got {path.parent}: {error.strerror or error}. "
            "Free the disk or name another place."
        ) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _temporary(path: Path, ending: str) -> Path:
    """A name beside `path` that no other process gives; what killed processes left under such names is removed."""
    here = _where_processes_are_counted()
    leftover = re.compile(rf"\.{re.escape(path.name)}\.{here}-(\d{{1,9}})\.{ending}")
    for each in path.parent.glob(f".{glob.escape(path.name)}.{here}-*.{ending}"):
        match = leftover.fullmatch(each.name)
        if match and _is_gone(int(match[1])):
            shutil.rmtree(each, ignore_errors=True)
            with suppress(OSError):  # of a folder nothing is left; where this cannot be done, it is in nobody's way
                each.unlink(missing_ok=True)
    return path.with_name(f".{path.name}.{here}-{os.getpid()}.{ending}")


def _where_processes_are_counted() -> str:
    """Eight letters for this machine, and in a container for it: processes elsewhere have the same numbers.

    A folder may be shared with others that write to the same place just now, and that we could not see.
    """
    try:
        container = str(Path("/proc/self/ns/pid").readlink())
    except OSError:  # not Linux
        container = ""
    return f"{zlib.crc32(f'{platform.node()} {container}'.encode()):08x}"


def _is_gone(process: int) -> bool:
    """Whether there is no process of that number; False where that cannot be told."""
    if os.name != "posix":
        return False  # there the call would end it
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False  # somebody else's
    return False


def _flush(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _swap(left: Path, right: Path) -> bool:
    """Exchange what two names stand for, in one step; False where the system or its disk cannot."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename(here, os.fsencode(left), here, os.fsencode(right), exchange) == 0

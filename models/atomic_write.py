"""Files that are written completely or not at all: a half-written file never replaces a good one.

An unfinished file has a temporary name beside its target, which contains the ID of the process that writes it. A
killed process leaves its file there; the next one that writes to the same target removes it.
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
    """Yield a temporary file beside `path`; on success flush it to disk and rename it to `path`, else remove it.

    Args:
        path: the file to write; an older file there stays intact until the rename. If it is a link to a file, the
            file is replaced and not the link.

    Raises:
        BadInput: `path` cannot be written, or is a device or the like, which a file must not take the place of.
    """
    if path.exists() and not path.is_file():
        raise BadInput(f"expected a file that can be written, received {path}, which is no plain file. Name another.")
    path = path.resolve() if path.is_symlink() else path
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
        # If even this fails, as in a folder without write permission, nothing was written.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str, encoding: str = "utf-8", errors: str = "strict") -> None:
    """Write a text file.

    Args:
        path: the file.
        text: its content.
        encoding: as in `open`.
        errors: as in `open`, for characters that the encoding lacks; `surrogateescape` writes the original bytes of
            a file name that is not UTF-8.

    Raises:
        BadInput: `path` cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding=encoding, errors=errors)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Like `replacing`, for a folder: yield the name of a temporary folder beside `path`, which the caller creates.

    Where the system can swap two names (Linux), there is a complete folder at `path` at every moment. Elsewhere the
    old one is moved aside first, and moved back if the new one cannot take its place.

    Args:
        path: the folder to write; an older one there is removed with all its content.

    Raises:
        BadInput: `path` cannot be written.
    """
    path = path.resolve()  # if it is a link to a folder, the folder is replaced and not the link
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
    """Yield a temporary folder beside `path` for intermediate files; it is removed at the end.

    Args:
        path: the file to write. The folder is on the same disk, so a file in it can be renamed to `path`.

    Raises:
        BadInput: the folder cannot be created.
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
    """Return a name beside `path` that no other process uses; remove what killed processes left under such names."""
    here = _where_processes_are_counted()
    leftover = re.compile(rf"\.{re.escape(path.name)}\.{here}-(\d{{1,9}})\.{ending}")
    for each in path.parent.glob(f".{glob.escape(path.name)}.{here}-*.{ending}"):
        match = leftover.fullmatch(each.name)
        if match and _is_gone(int(match[1])):
            shutil.rmtree(each, ignore_errors=True)
            with suppress(OSError):  # a folder is gone already; a file that cannot be removed does no harm
                each.unlink(missing_ok=True)
    return path.with_name(f".{path.name}.{here}-{os.getpid()}.{ending}")


def _where_processes_are_counted() -> str:
    """Return eight characters for this machine and, in a container, for that container.

    Process IDs are unique only within one of them, and a shared folder may be written by processes of another one,
    which cannot be seen from here.
    """
    try:
        container = str(Path("/proc/self/ns/pid").readlink())
    except OSError:  # not Linux
        container = ""
    return f"{zlib.crc32(f'{platform.node()} {container}'.encode()):08x}"


def _is_gone(process: int) -> bool:
    """Return whether there is no process with that ID; False if that cannot be determined."""
    if os.name != "posix":
        return False  # on Windows the call below would end the process
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False  # it exists, but belongs to another user
    return False


def _flush(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _swap(left: Path, right: Path) -> bool:
    """Exchange two names atomically; False if the operating system or the file system cannot do that."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename(here, os.fsencode(left), here, os.fsencode(right), exchange) == 0

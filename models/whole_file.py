"""Files that are written whole or not at all: nothing half-written ever replaces a good one."""

from __future__ import annotations

import os
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
    # The process's number: two that write the same file must not write into each other's.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the rename itself
        finally:
            os.close(folder)
    except OSError as error:
        raise BadInput(
            f"expected a place where {path} can be written, got: {error.strerror or error}. An older file there is "
            "untouched. Free the disk or name another place."
        ) from error
    finally:
        # Where even this cannot be done, such as in a folder without rights, nothing was written.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, UTF-8.

    Raises:
        BadInput: it cannot be written there.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")

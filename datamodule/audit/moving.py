"""Moves one file, never replacing another, and never with half a file under the final name."""

import hashlib
import os
import shutil
from pathlib import Path

HALF_COPY = ".half_copy"
"""Ending of a copy's temporary name until the copy is complete."""


def move_file(source: Path, target: Path) -> None:
    """Move a file, but never replace another one.

    Raises:
        FileExistsError: there is something at `target`.
        OSError: the file cannot be moved; `source` is unchanged.
    """
    try:
        # A hard link, a second name for the same file. Unlike a rename it fails if the target exists.
        os.link(source, target, follow_symlinks=False)
    except FileExistsError:
        raise
    except (OSError, NotImplementedError):
        # another disk, a file system without hard links, or Windows, which cannot make a hard link to a symbolic link
        if source.is_symlink():
            target.symlink_to(source.readlink())
        else:
            _copy_exclusively(source, target)
    source.unlink()


def _copy_exclusively(source: Path, target: Path) -> None:
    """Copy to a temporary name first, so that there is never half a file under the final name."""
    half = half_copy_of(target)
    try:
        with source.open("rb") as reading, half.open("wb") as writing:
            shutil.copyfileobj(reading, writing)
            writing.flush()
            os.fsync(writing.fileno())
        shutil.copystat(source, half)
        if _digest(source) != _digest(half):
            raise OSError(f"the copy of {source} is not the same as the file")
        try:
            os.link(half, target)
        except FileExistsError:
            raise
        except OSError:
            # Without hard links it is renamed, which would replace a file that is created at this very moment.
            if os.path.lexists(target):
                raise FileExistsError(f"{target} exists") from None
            half.rename(target)
    finally:
        half.unlink(missing_ok=True)


def half_copy_of(target: Path) -> Path:
    """Return the temporary name of a copy that becomes `target`."""
    # Always the same name, so that the next copy overwrites an interrupted one; short, however long the file's name is.
    name = hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16]
    return target.with_name(f".{name}{HALF_COPY}")


def try_move(source: Path, target: Path) -> str:
    """Move a file; return why that failed, or an empty text."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        move_file(source, target)
    except OSError as error:
        return f"cannot be moved to {target}: {error.strerror or error}"
    return ""


def obstacle(source: Path, target: Path) -> str:
    """Return why a file cannot be moved, judged by what is there; empty if nothing is in its way."""
    if not os.path.lexists(source):
        return "is not there (any more)"
    if source.is_dir() and not source.is_symlink():
        return "is a folder"
    if not os.path.lexists(target):
        return ""
    if same_content(source, target):
        return "the same file is in both places; remove one by hand"
    return "its place is taken by another file"


def is_one_file(one: Path, other: Path) -> bool:
    """Return whether two names in different folders belong to the same file, so that either can be removed."""
    try:
        first, second = one.lstat(), other.lstat()
    except OSError:
        return False
    return first.st_nlink > 1 and os.path.samestat(first, second) and one.parent.resolve() != other.parent.resolve()


def same_content(one: Path, other: Path) -> bool:
    """Return whether two files are the same byte for byte, or two links that say the same."""
    if one.is_symlink() or other.is_symlink():
        return one.is_symlink() and other.is_symlink() and one.readlink() == other.readlink()
    return one.is_file() and other.is_file() and _digest(one) == _digest(other)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

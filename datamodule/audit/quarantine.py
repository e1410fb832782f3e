"""Sets files aside and brings them back. Nothing is deleted or overwritten; a journal records every move beforehand."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple, TextIO

from models.bad_input import BadInput

JOURNAL = "journal.jsonl"
HALF_COPY = ".half_copy"
"""Ending of a copy's temporary name until the copy is complete."""


class Move(NamedTuple):
    """The move of one file.

    Attributes:
        file: path relative to the photos' folder and to the quarantine, with forward slashes.
        home: absolute path among the photos.
        aside: absolute path in the quarantine.
    """

    file: str
    home: Path
    aside: Path


class Outcome(NamedTuple):
    """The result of a number of moves.

    Attributes:
        moved: moves that were done.
        left: moves that were not done, with the reason.
        done_before: files that an earlier call had set aside.
    """

    moved: list[Move]
    left: list[tuple[Move, str]]
    done_before: list[Move]


def set_aside(root: Path, files: Iterable[str], quarantine: Path) -> Outcome:
    """Move files from `root` into the quarantine, under the same path.

    Each move is in the journal, flushed to the disk, before it begins. So `bring_back` works after any interruption.

    Args:
        root: the photos' folder.
        files: paths relative to `root`, with forward slashes.
        quarantine: folder, created if it is missing.

    Raises:
        BadInput: a path leads out of `root` (then nothing is moved), or the journal cannot be written.
    """
    moves = [_move_of(file, root, quarantine, "the CSV's column file") for file in files]
    outcome = Outcome([], [], [])
    try:
        quarantine.mkdir(parents=True, exist_ok=True)
        with (quarantine / JOURNAL).open("a+", encoding="ascii", errors="replace") as journal:
            _finish_last_line(journal)
            for move in moves:
                if _is_one_file(move.home, move.aside):
                    # an earlier call was interrupted when the file had both names
                    move.home.unlink()
                    outcome.moved.append(move)
                    continue
                if not os.path.lexists(move.home) and os.path.lexists(move.aside):
                    outcome.done_before.append(move)
                    continue
                reason = _obstacle(move.home, move.aside)
                if not reason:
                    journal.write(json.dumps({"file": move.file}) + "\n")  # ASCII: bytes of a name are escaped
                    journal.flush()
                    os.fsync(journal.fileno())
                    reason = _try_move(move.home, move.aside)
                if reason:
                    outcome.left.append((move, reason))
                else:
                    outcome.moved.append(move)
    except OSError as error:
        raise BadInput(
            f"expected a quarantine that can be written, received for {quarantine}: {error}. "
            f"{len(outcome.moved)} files were moved; --undo brings them back."
        ) from error
    return outcome


def bring_back(root: Path, quarantine: Path) -> Outcome:
    """Move everything in the journal back to where it was, the last move first.

    A file whose old place is taken stays in the quarantine. Files that could not be brought back stay in the journal. A
    file in the quarantine that is not in the journal is reported and not moved.

    Args:
        root: the photos' folder, where it is now.
        quarantine: the quarantine's folder, where it is now.

    Raises:
        BadInput: there is no journal, or it cannot be read.
    """
    quarantine = quarantine.resolve()
    journal = quarantine / JOURNAL
    moves = [_move_of(file, root, quarantine, str(journal)) for file in _read_journal(journal)]
    outcome = Outcome([], [], [])
    for move in reversed(moves):
        # left by an interrupted apply; the original is still at home
        with contextlib.suppress(OSError):
            _half_copy_of(move.aside).unlink(missing_ok=True)
        if not os.path.lexists(move.aside):
            # brought back before, or the apply was interrupted before this move
            if not os.path.lexists(move.home):
                outcome.left.append((move, "is in neither place"))
            continue
        if _is_one_file(move.home, move.aside):
            # an earlier call was interrupted when the file had both names: remove the one in the quarantine
            move.aside.unlink()
            outcome.moved.append(move)
            continue
        reason = _obstacle(move.aside, move.home) or _try_move(move.aside, move.home)
        if reason:
            outcome.left.append((move, reason))
        else:
            outcome.moved.append(move)
    _write_journal(journal, [move.file for move, _ in reversed(outcome.left)])
    _remove_empty_folders(quarantine)
    known = {move.aside for move in moves} | {journal}
    for path in sorted(_files_below(quarantine)):
        if path not in known and not path.name.endswith(HALF_COPY):
            file = path.relative_to(quarantine).as_posix()
            move = _move_of(file, root, quarantine, str(quarantine))
            outcome.left.append((move, "is in the quarantine, but not in its journal; move it by hand"))
    return outcome


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
    half = _half_copy_of(target)
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


def _half_copy_of(target: Path) -> Path:
    # Always the same name, so that the next copy overwrites an interrupted one; short, however long the file's name is.
    name = hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16]
    return target.with_name(f".{name}{HALF_COPY}")


def _try_move(source: Path, target: Path) -> str:
    """Move a file; return why that failed, or an empty text."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        move_file(source, target)
    except OSError as error:
        return f"cannot be moved to {target}: {error.strerror or error}"
    return ""


def _move_of(file: str, root: Path, quarantine: Path, source: str) -> Move:
    parts = PurePosixPath(file).parts
    if not parts or PurePosixPath(file).is_absolute() or ".." in parts or "\0" in file:
        raise BadInput(f"expected paths below {root} in {source}, received {file!r}. Nothing was moved.")
    return Move(file, root.resolve() / file, quarantine.resolve() / file)


def _read_journal(journal: Path) -> list[str]:
    try:
        lines = journal.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError as error:
        raise BadInput(f"expected the journal of an earlier --apply in {journal.parent}, received: {error}.") from error
    files: dict[str, None] = {}
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # only partly written: the move it announces had not begun
        if not isinstance(entry, dict) or not isinstance(entry.get("file"), str):
            raise BadInput(
                f'expected {{"file": path}} in {journal}, line {number}; received {line[:200]!r}. Nothing was moved. '
                "Move the files back by hand: they keep their folders in the quarantine."
            )
        files[entry["file"]] = None
    return list(files)


def _write_journal(journal: Path, files: list[str]) -> None:
    fresh = journal.with_suffix(".new")
    try:
        with fresh.open("w", encoding="ascii") as file:
            file.writelines(json.dumps({"file": name}) + "\n" for name in files)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(journal)
    except OSError as error:
        raise BadInput(
            f"expected a journal that can be written, received for {journal}: {error}. The files are back; "
            "a second --undo is harmless."
        ) from error


def _finish_last_line(journal: TextIO) -> None:
    """End a line that an interruption cut off, so that the next entry is not appended to it."""
    journal.seek(0)
    content = journal.read()
    if content and not content.endswith("\n"):
        journal.write("\n")


def _files_below(folder: Path) -> list[Path]:
    return [Path(parent, name) for parent, _, names in os.walk(folder.resolve()) for name in names]


def _remove_empty_folders(quarantine: Path) -> None:
    for parent, _, _ in os.walk(quarantine.resolve(), topdown=False):
        folder = Path(parent)
        if folder != quarantine.resolve():
            with contextlib.suppress(OSError):  # not empty: a file is still there
                folder.rmdir()


def _obstacle(source: Path, target: Path) -> str:
    if not os.path.lexists(source):
        return "is not there (any more)"
    if source.is_dir() and not source.is_symlink():
        return "is a folder"
    if not os.path.lexists(target):
        return ""
    if _same_file_content(source, target):
        return "the same file is in both places; remove one by hand"
    return "its place is taken by another file"


def _is_one_file(one: Path, other: Path) -> bool:
    """Return whether two names in different folders belong to the same file, so that either can be removed."""
    try:
        first, second = one.lstat(), other.lstat()
    except OSError:
        return False
    return first.st_nlink > 1 and os.path.samestat(first, second) and one.parent.resolve() != other.parent.resolve()


def _same_file_content(one: Path, other: Path) -> bool:
    if one.is_symlink() or other.is_symlink():
        return one.is_symlink() and other.is_symlink() and one.readlink() == other.readlink()
    return one.is_file() and other.is_file() and _digest(one) == _digest(other)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

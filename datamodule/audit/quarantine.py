"""Set files aside, and bring them back. Nothing is deleted or overwritten; every move is written down first."""

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


class Move(NamedTuple):
    """One file's way.

    Attributes:
        home: where it was, absolute.
        aside: where it is in the quarantine, absolute.
    """

    home: Path
    aside: Path


class Outcome(NamedTuple):
    """What became of the moves.

    Attributes:
        moved: done.
        left: not done, with the reason.
    """

    moved: list[Move]
    left: list[tuple[Move, str]]


def set_aside(root: Path, files: Iterable[str], quarantine: Path) -> Outcome:
    """Move files from `root` into the quarantine, under the same path.

    Each move is in the journal, on the disk, before it begins: whenever this is interrupted, `bring_back` knows.

    Args:
        root: the photos' folder.
        files: paths below `root`, with forward slashes.
        quarantine: folder; is made.

    Raises:
        BadInput: a path leads out of `root` (nothing is moved then), or the quarantine cannot be written.
    """
    root, quarantine = root.resolve(), quarantine.resolve()
    moves = []
    for file in files:
        parts = PurePosixPath(file).parts
        if not parts or PurePosixPath(file).is_absolute() or ".." in parts:
            raise BadInput(
                f"expected paths below {root} in the CSV's column file, received {file!r}. Nothing was moved."
            )
        moves.append(Move(root / file, quarantine / file))
    outcome = Outcome([], [])
    try:
        quarantine.mkdir(parents=True, exist_ok=True)
        with (quarantine / JOURNAL).open("a+", encoding="utf-8") as journal:
            _finish_last_line(journal)
            for move in moves:
                reason = _obstacle(move.home, move.aside)
                if reason:
                    outcome.left.append((move, reason))
                    continue
                entry = json.dumps({"home": os.fsdecode(move.home), "aside": os.fsdecode(move.aside)})
                journal.write(entry + "\n")  # ASCII: undecodable bytes of a name are escaped
                journal.flush()
                os.fsync(journal.fileno())
                move.aside.parent.mkdir(parents=True, exist_ok=True)
                move_file(move.home, move.aside)
                outcome.moved.append(move)
    except OSError as error:
        raise BadInput(
            f"expected a quarantine that can be written, received for {quarantine}: {error}. "
            f"{len(outcome.moved)} files were moved; --undo brings them back."
        ) from error
    return outcome


def bring_back(quarantine: Path) -> Outcome:
    """Move everything in the journal back to where it was, the last move first.

    A file whose place has been taken stays where it is. What could not be brought back stays in the journal.

    Raises:
        BadInput: there is no journal, or it cannot be read.
    """
    journal = quarantine / JOURNAL
    try:
        lines = journal.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise BadInput(f"expected the journal of an earlier --apply in {quarantine}, received: {error}.") from error
    outcome = Outcome([], [])
    for line in reversed(lines):
        try:
            entry = json.loads(line)
            move = Move(Path(entry["home"]), Path(entry["aside"]))
        except (ValueError, KeyError, TypeError):
            continue  # torn while it was written: the move it announced had not begun
        if not os.path.lexists(move.aside):
            # brought back before, or the apply was interrupted before this move
            if not os.path.lexists(move.home):
                outcome.left.append((move, "is in neither place"))
            continue
        if os.path.lexists(move.home) and _same_file_content(move.home, move.aside):
            # interrupted between the second name and the first one's end: the file is at home, and whole
            move.aside.unlink()
            outcome.moved.append(move)
            continue
        reason = _obstacle(move.aside, move.home)
        if reason:
            outcome.left.append((move, reason))
            continue
        move.home.parent.mkdir(parents=True, exist_ok=True)
        move_file(move.aside, move.home)
        outcome.moved.append(move)
        for folder in move.aside.parents:
            if folder == quarantine.resolve():
                break
            with contextlib.suppress(OSError):  # not empty: another file is still there
                folder.rmdir()
    remaining = [json.dumps({"home": str(move.home), "aside": str(move.aside)}) for move, _ in reversed(outcome.left)]
    fresh = journal.with_suffix(".new")
    with fresh.open("w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in remaining)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(journal)
    return outcome


def move_file(source: Path, target: Path) -> None:
    """Move a file, never over another one.

    Raises:
        FileExistsError: there is something at `target`.
        OSError: it cannot be moved; `source` is still whole.
    """
    try:
        # A second name for the same file, which unlike a rename fails where there is a file already.
        os.link(source, target, follow_symlinks=False)
    except FileExistsError:
        raise
    except OSError:
        # another disk, or a file system without hard links: an exclusive copy does the same
        if source.is_symlink():
            target.symlink_to(source.readlink())
        else:
            _copy_exclusively(source, target)
    source.unlink()


def _copy_exclusively(source: Path, target: Path) -> None:
    with source.open("rb") as reading, target.open("xb") as writing:
        try:
            shutil.copyfileobj(reading, writing)
            writing.flush()
            os.fsync(writing.fileno())
        except OSError:
            target.unlink()  # the half of a copy; `x` made sure that it is ours
            raise
    shutil.copystat(source, target)
    if _digest(source) != _digest(target):
        target.unlink()
        raise OSError(f"the copy {target} is not the same as {source}")


def _finish_last_line(journal: TextIO) -> None:
    """Let an entry that was torn by an interruption not swallow the next one."""
    journal.seek(0)
    content = journal.read()
    if content and not content.endswith("\n"):
        journal.write("\n")


def _obstacle(source: Path, target: Path) -> str:
    if not os.path.lexists(source):
        return "is not there (any more)"
    if source.is_dir() and not source.is_symlink():
        return "is a folder"
    return "its place is taken by another file" if os.path.lexists(target) else ""


def _same_file_content(one: Path, other: Path) -> bool:
    if one.is_symlink() or other.is_symlink():
        return one.is_symlink() and other.is_symlink() and one.readlink() == other.readlink()
    return one.is_file() and other.is_file() and _digest(one) == _digest(other)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

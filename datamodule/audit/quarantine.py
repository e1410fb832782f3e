"""Sets files aside, moves them to other classes, and undoes both: nothing is deleted or overwritten.

A journal records every move beforehand.
"""

import contextlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple, TextIO

from datamodule.audit.moving import HALF_COPY, half_copy_of, is_one_file, obstacle, same_content, try_move
from models.bad_input import BadInput, quoted

JOURNAL = "journal.jsonl"


class Move(NamedTuple):
    """The move of one file.

    Attributes:
        file: path relative to the photos' folder, with forward slashes.
        home: absolute path among the photos.
        aside: absolute path in the quarantine, or in another class.
        to: of a move to another class, `aside` relative to the photos' folder; empty in the quarantine, where a file
            has the path that it had among the photos.
    """

    file: str
    home: Path
    aside: Path
    to: str = ""

    @property
    def entry(self) -> str:
        """Its line in the journal."""
        # ASCII: bytes of a name are escaped
        return json.dumps({"file": self.file} | ({"to": self.to} if self.to else {})) + "\n"


class Outcome(NamedTuple):
    """The result of a number of moves.

    Attributes:
        moved: moves that were done.
        left: moves that were not done, with the reason.
        done_before: moves that an earlier call had done.
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
    return _do(((move, "") for move in moves), quarantine)


def relabel(
    root: Path, classes: Mapping[str, str], quarantine: Path, sets: Iterable[str] = ("",), kept: Iterable[str] = ()
) -> Outcome:
    """Move files to the folders of other classes; the journal is that of `set_aside`, and `bring_back` undoes both.

    A file keeps its name where that is free, and what stands between it and its class's folder. Otherwise the name says
    where it came from: `tv/1.jpg` becomes `hat/1_from_tv.jpg`.

    Args:
        root: the photos' folder.
        classes: path relative to `root`, with forward slashes -> name of the new class.
        quarantine: folder of the journal, created if it is missing.
        sets: where class folders are, relative to `root`: "" for `root` itself, else as in "train/". A file stays in
            its set.
        kept: paths relative to `root` that are not to be used for other files, besides those that files come from.

    Raises:
        BadInput: a path leads out of `root`, or there is no such class (then nothing is moved); or the journal cannot
            be written.
    """
    sets = sorted(sets, key=len, reverse=True)
    moves = [_move_of(file, root, quarantine, "the CSV's column file") for file in classes]
    known = {name for each in sets for name in _folders_in(root / each)}
    if unknown := sorted({*classes.values()} - known):
        raise BadInput(
            f"expected classes that have a folder in {root}, {quoted(sorted(known))}, in the CSV's column action; "
            f"received {quoted(unknown)}. Nothing was moved. Correct the name, or make a folder for a new class first."
        )
    done = _read_journal(root, quarantine) if (quarantine / JOURNAL).exists() else []
    taken = {*classes, *kept, *(move.file for move in done)}

    def each_move() -> Iterable[tuple[Move, str]]:
        for move in moves:
            start = next((each for each in sets if move.file.startswith(each)), "")
            folders, name = move.file[len(start) :].split("/")[:-1], PurePosixPath(move.file).name
            goal = PurePosixPath(start, classes[move.file], *folders[1:])
            if goal == PurePosixPath(move.file).parent:
                continue  # it is there
            before = [each for each in done if each.file == move.file and os.path.lexists(each.aside)]
            if before and PurePosixPath(before[-1].to).parent == goal:
                yield before[-1], ""
                continue
            to = _free_name(root, goal, name, folders[0] if folders else "", taken, move.home)
            taken.add(to)
            found = _move_of(move.file, root, quarantine, "", to)
            yield found, _why_not(found)

    return _do(each_move(), quarantine)


def _folders_in(folder: Path) -> list[str]:
    return [each.name for each in os.scandir(folder) if each.is_dir()]


def _free_name(root: Path, goal: PurePosixPath, name: str, came_from: str, taken: set[str], home: Path) -> str:
    """Return the path relative to `root` of a name in `goal` that no file has, or has had; or of the same photo."""
    stem, ending = PurePosixPath(name).stem, PurePosixPath(name).suffix
    number = 0
    while True:
        told = f"_from_{came_from}" if came_from else "_moved"
        tried = name if number == 0 else f"{stem}{told}{f'_{number}' if number > 1 else ''}{ending}"
        path = (goal / tried).as_posix()
        there = root / path
        if path not in taken and (not os.path.lexists(there) or same_content(home, there)):
            return path
        number += 1


def _why_not(move: Move) -> str:
    """Return why a file should not become one of another class; empty if nothing speaks against it."""
    if os.path.lexists(move.aside):
        return f"the same photo is there already, {move.to}; set this one aside"
    if move.home.is_symlink() and (move.aside.parent / move.home.readlink()).resolve() != move.home.resolve():
        return "is a link that would lead elsewhere from there; move it by hand"
    return ""


def _do(moves: Iterable[tuple[Move, str]], quarantine: Path) -> Outcome:
    """Do moves, but for those that come with a reason why not."""
    outcome = Outcome([], [], [])
    try:
        quarantine.mkdir(parents=True, exist_ok=True)
        with (quarantine / JOURNAL).open("a+", encoding="ascii", errors="replace") as journal:
            _finish_last_line(journal)
            for move, reason in moves:
                if reason:
                    outcome.left.append((move, reason))
                    continue
                if is_one_file(move.home, move.aside):
                    # an earlier call was interrupted when the file had both names
                    move.home.unlink()
                    outcome.moved.append(move)
                    continue
                if not os.path.lexists(move.home) and os.path.lexists(move.aside):
                    outcome.done_before.append(move)
                    continue
                reason = obstacle(move.home, move.aside)
                if not reason:
                    journal.write(move.entry)
                    journal.flush()
                    os.fsync(journal.fileno())
                    reason = try_move(move.home, move.aside)
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

    A file whose old place is taken stays where it is. Files that could not be brought back stay in the journal. A file
    in the quarantine that is not in the journal is reported and not moved.

    Args:
        root: the photos' folder, where it is now.
        quarantine: the quarantine's folder, where it is now.

    Raises:
        BadInput: there is no journal, or it cannot be read.
    """
    quarantine = quarantine.resolve()
    journal = quarantine / JOURNAL
    moves = _read_journal(root, quarantine)
    outcome = Outcome([], [], [])
    left_homes: set[Path] = set()
    for move in reversed(moves):
        if any(move == other for other, _ in outcome.left[-1:]):
            continue  # an interrupted apply was repeated, and so is in the journal twice
        # left by an interrupted apply; the original is still at home
        with contextlib.suppress(OSError):
            half_copy_of(move.aside).unlink(missing_ok=True)
        reason = _bring_back(move) if move.aside not in left_homes else f"{move.to} could not be brought back before it"
        if reason:
            outcome.left.append((move, reason))
            left_homes.add(move.home)
        elif reason is not None:
            outcome.moved.append(move)
            if move.to:
                _remove_made_folders(root.resolve(), move)
    _write_journal(journal, [move for move, _ in reversed(outcome.left)])
    _remove_empty_folders(quarantine)
    known = {move.aside for move in moves} | {journal}
    for path in sorted(_files_below(quarantine)):
        if path not in known and not path.name.endswith(HALF_COPY):
            file = path.relative_to(quarantine).as_posix()
            move = _move_of(file, root, quarantine, str(quarantine))
            outcome.left.append((move, "is in the quarantine, but not in its journal; move it by hand"))
    return outcome


def _move_of(file: str, root: Path, quarantine: Path, source: str, to: str = "") -> Move:
    for name in (file, *([to] if to else [])):
        parts = PurePosixPath(name).parts
        if not parts or PurePosixPath(name).is_absolute() or ".." in parts or "\0" in name:
            raise BadInput(f"expected paths below {root} in {source}, received {name!r}. Nothing was moved.")
    return Move(file, root.resolve() / file, root.resolve() / to if to else quarantine.resolve() / file, to)


def _bring_back(move: Move) -> str | None:
    """Undo a move; return why that failed, an empty text, or None where there was nothing to undo."""
    if not os.path.lexists(move.aside):
        # brought back before, or the apply was interrupted before this move
        return None if os.path.lexists(move.home) else "is in neither place"
    if is_one_file(move.home, move.aside):
        # an earlier call was interrupted when the file had both names: remove the one that it got last
        move.aside.unlink()
        return ""
    return obstacle(move.aside, move.home) or try_move(move.aside, move.home)


def _read_journal(root: Path, quarantine: Path) -> list[Move]:
    journal = quarantine / JOURNAL
    try:
        lines = journal.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError as error:
        raise BadInput(f"expected the journal of an earlier --apply in {journal.parent}, received: {error}.") from error
    moves = []
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # only partly written: the move it announces had not begun
        file, to = (entry.get("file"), entry.get("to", "")) if isinstance(entry, dict) else (None, None)
        if not isinstance(file, str) or not isinstance(to, str):
            raise BadInput(
                f'expected {{"file": path}} in {journal}, line {number}; received {line[:200]!r}. Nothing was moved. '
                "Move the files back by hand: they keep their folders in the quarantine."
            )
        moves.append(_move_of(file, root, quarantine, str(journal), to))
    return moves


def _write_journal(journal: Path, moves: list[Move]) -> None:
    fresh = journal.with_suffix(".new")
    try:
        with fresh.open("w", encoding="ascii") as file:
            file.writelines(move.entry for move in moves)
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


def _remove_made_folders(root: Path, move: Move) -> None:
    """Remove what a file left empty below another class's folder, but not that folder itself."""
    before, after = PurePosixPath(move.file).parts, PurePosixPath(move.to).parts
    place = next(place for place, (one, other) in enumerate(zip(before, after, strict=False)) if one != other)
    with contextlib.suppress(OSError):  # not empty
        for depth in range(len(after) - 1, place + 1, -1):
            root.joinpath(*after[:depth]).rmdir()

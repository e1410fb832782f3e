"""The kinds of findings of an audit, and the CSV in which a person decides what to do with each file."""

import codecs
import csv
import io
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from models.atomic_write import write_text
from models.bad_input import BadInput, quoted
from models.spreadsheet_text import as_text, from_text

QUARANTINE = "quarantine"
ACTIONS = ("", "keep", QUARANTINE)
"""Allowed values in the CSV's column `action`, besides `MOVE` and a class. Both an empty one and `keep` leave the file
where it is."""
MOVE = "move to "
"""What stands before the name of another class in that column. `move` alone means the one that is suggested."""

COLUMNS = ("file", "class", "finding", "score", "suggestion", "related_file", "detail", "action")


class Kind(NamedTuple):
    """A kind of finding.

    Attributes:
        title: the contact sheet's heading.
        meaning: the contact sheet's explanation of what was found and what to do.
    """

    title: str
    meaning: str


KINDS = {
    "suspect": Kind(
        "Does not look like its class",
        "Wrong label, or a photo that belongs to no class; most suspicious first. Judged by classifiers that never "
        "saw the photo; where they prefer another class, that is the suggestion.",
    ),
    "unreadable": Kind("Cannot be read", "Training would stop at these, or leave them out."),
    "not_listed": Kind(
        "Files that training never sees",
        "Neither Keras nor this project lists them: no photos, formats outside Keras's list, or photos outside any "
        "class folder.",
    ),
    "exact_duplicate": Kind(
        "The same file more than once", "Byte for byte. In two classes, at least one label is wrong."
    ),
    "near_duplicate": Kind(
        "Nearly the same photo",
        "Resized, compressed again, cropped a little or mirrored. Those in both the training and the validation part "
        "make the validation accuracy look better than it is. --data.split grouped keeps copies together by a stricter "
        "measure: crops of 3% and more, and white borders of 5%, it may still part, so set those aside here.",
    ),
    "dark": Kind("Dark", "Hardly a pixel is bright."),
    "blurry": Kind("Blurry", "No sharp edge at the size the network sees."),
    "blank": Kind("Blank", "Nearly one colour all over."),
    "tiny": Kind("Tiny", "Less than half the network's input size; it is blown up."),
    "odd_file": Kind(
        "Odd files",
        "They can be read, but maybe not as meant: the name lies about the format, colours go through a conversion, "
        "a rotation note is ignored (as Keras ignores it), or the shape is squeezed hard.",
    ),
    "group": Kind(
        "Groups inside each class",
        "The photos of each class in a few groups of alike ones, smallest first. A whole group that should not be "
        "there (remote controls among televisions) hides from the first list, because it looks like its class: look "
        "for it here.",
    ),
}
"""All kinds, in the page's order."""


@dataclass(frozen=True)
class Finding:
    """One finding about one file.

    Attributes:
        file: path relative to the photos' folder, with forward slashes.
        class_name: name of its class; empty for a file outside the class folders.
        kind: one of `KINDS`.
        score: 0 to 1, where 1 is the most suspicious of its kind; not a probability.
        suggestion: the class that it looks like, if that is another one.
        related_file: the other file of a pair.
        detail: explanation in words.
        action: one of `ACTIONS`, or `MOVE` and the name of a class.
    """

    file: str
    class_name: str
    kind: str
    score: float = 1.0
    suggestion: str = ""
    related_file: str = ""
    detail: str = ""
    action: str = ""

    @property
    def row(self) -> tuple[str, ...]:
        """The cells of `COLUMNS`: names as text, where a spreadsheet would take them for formulas (`as_text`)."""
        return (
            as_text(self.file),
            as_text(self.class_name),
            self.kind,
            f"{self.score:.4f}",
            as_text(self.suggestion),
            as_text(self.related_file),
            as_text(self.detail),
            self.action,
        )


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """Sort by kind, in the page's order, and within a kind by suspicion."""
    kinds = list(KINDS)
    return sorted(findings, key=lambda each: (kinds.index(each.kind), -each.score))


def write_findings(path: Path, findings: Iterable[Finding]) -> None:
    """Write findings as CSV with the header `COLUMNS`; `read_actions` reads the same names back, whatever their bytes.

    Raises:
        BadInput: the file cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(each.row for each in findings)
    # With the byte order mark, spreadsheets recognise UTF-8 and do not assume their country's old encoding.
    write_text(path, text.getvalue(), encoding="utf-8-sig", errors="surrogateescape")


def folder_of(file: str) -> str:
    """Return the name of a file's class where it lies in a folder per class; empty for one outside of these."""
    return file.partition("/")[0] if "/" in file else ""


def keep_decisions(
    findings: Sequence[Finding],
    decided: Mapping[tuple[str, str], str],
    root: Path,
    class_of: Callable[[str], str] = folder_of,
) -> list[Finding]:
    """Apply the decisions that a person made in an earlier run to the findings of this run.

    Args:
        findings: those of this run.
        decided: the decisions, from `read_actions`.
        root: the photos' folder.
        class_of: name of a file's class.

    Returns:
        The findings in order, with the actions decided. A file that was marked to be moved and still exists stays in
        the list, even if this run has no finding about it.
    """
    kept = [replace(each, action=decided.get((each.file, each.kind), each.action)) for each in findings]
    listed = {(each.file, each.kind) for each in findings}
    for (file, kind), action in decided.items():
        moves = action == QUARANTINE or action.startswith(MOVE)
        if moves and (file, kind) not in listed and kind in KINDS and os.path.lexists(root / file):
            kept.append(Finding(file, class_of(file), kind, 0.0, detail="marked earlier", action=action))
    return in_order(kept)


def displayable(text: str) -> str:
    """Replace bytes of a name that are not UTF-8 by question marks, because no terminal or page can show them."""
    return text.encode("utf-8", "replace").decode("utf-8")


def read_actions(path: Path) -> dict[tuple[str, str], str]:
    """Read what a person decided: (file, kind of finding) -> action. If a key has several rows, `quarantine` wins.

    Raises:
        BadInput: no such file, not the audit's CSV, saved in another encoding than UTF-8, or an unknown action.
    """
    try:
        rows = _read_rows(path)
    except (OSError, csv.Error) as error:
        raise BadInput(f"expected the audit's {path.name} in {path.parent}, received: {error}. Audit first.") from error
    actions: dict[tuple[str, str], str] = {}
    for number, row in enumerate(rows, start=2):
        key = from_text(row["file"]), row["finding"]
        actions[key] = _stronger(actions.get(key, ""), _action_of(row, f"{path}, row {number}"))
    return actions


def _action_of(row: Mapping[str, str | None], where: str) -> str:
    given = (row["action"] or "").lstrip()
    action = given.strip().lower()
    if action in ACTIONS:
        return action
    if given.lower().startswith(MOVE) and (name := given[len(MOVE) :]).strip():
        return MOVE + name
    if action == MOVE.split()[0] and (name := from_text(row.get("suggestion") or "")):
        return MOVE + name
    suggested = " (there is no suggestion)" if action.startswith(MOVE.split()[0]) else ""
    raise BadInput(
        f"{where}: expected the action to be empty, keep, quarantine or {MOVE}CLASS, received {given[:80]!r}"
        f"{suggested}. Write one of those."
    )


def _stronger(one: str, other: str) -> str:
    """Return which of two actions counts: `quarantine`, else a move, else `keep`; the later of equals."""
    strength = {QUARANTINE: 3, "keep": 1, "": 0}
    return one if strength.get(one, 2) > strength.get(other, 2) else other


class Decisions(NamedTuple):
    """What is to be done with files, by a CSV.

    Attributes:
        aside: files to set aside.
        classes: file -> the class to move it to.
    """

    aside: list[str]
    classes: dict[str, str]


def decisions_of(actions: Mapping[tuple[str, str], str], class_names: Iterable[str]) -> Decisions:
    """Combine what was decided about a file in several rows: `quarantine` wins over a move, and that over the rest.

    Args:
        actions: from `read_actions`.
        class_names: classes that there are; a name with other spaces around it is one of these.

    Raises:
        BadInput: a file is to be moved to two classes.
    """
    stripped = {name.strip(): name for name in class_names}
    aside = dict.fromkeys(file for (file, _), action in actions.items() if action == QUARANTINE)
    classes: dict[str, str] = {}
    for (file, _), action in actions.items():
        if not action.startswith(MOVE) or file in aside:
            continue
        name = action[len(MOVE) :]
        name = stripped.get(name.strip(), name)
        if classes.setdefault(file, name) != name:
            raise BadInput(
                f"expected one class to move {displayable(file)} to in the CSV's column action; received "
                f"{quoted([classes[file], name])}. Delete one. Nothing was moved."
            )
    return Decisions([*aside], classes)


def _read_rows(path: Path) -> list[dict[str, str]]:
    content = path.read_bytes()
    marked = content.startswith(codecs.BOM_UTF8)
    try:
        # Our own file has the byte order mark, and may contain names that are not UTF-8. If the mark is missing, such
        # bytes probably come from a spreadsheet that saved in its country's encoding. Then no file whose name has
        # accents would be found, so that is an error.
        text = content.decode("utf-8-sig", "surrogateescape" if marked else "strict")
    except UnicodeDecodeError as error:
        place = content[: error.start].count(b"\n") + 1
        raise BadInput(
            f"expected {path} in UTF-8, received other bytes in line {place}. Save it as 'CSV UTF-8' in the "
            "spreadsheet, or audit again."
        ) from error
    first = text.partition("\n")[0]
    # a spreadsheet may save with the separator of its country
    separator = ";" if first.count(";") > first.count(",") else ","
    rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter=separator))
    if not first.strip() or (rows and not {"file", "finding", "action"} <= set(rows[0])):
        raise BadInput(
            f"expected the columns file, finding and action in {path}, received {first.strip()[:200]!r}. "
            "Keep the header when editing, or audit again."
        )
    return rows

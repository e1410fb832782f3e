"""The audit as one HTML file: a contact sheet per kind of finding, thumbnails inside, boxes to tick."""

import base64
import io
import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from datamodule.audit.findings import COLUMNS, KINDS, MOVE, QUARANTINE, Finding, displayable, folder_of
from datamodule.photo_store import open_photo
from models.cores import usable_cores
from models.page_style import render_template

THUMBNAIL = 132
"""Longest side, in pixels."""
SMALL_THUMBNAIL = 96
"""The same of photos that are in nothing but a group: nearly all of them, so they decide about the page's size."""
SHOWN_OF_SHEET = 60
"""Cards of a sheet that are open to see; the rest unfolds."""
SHOWN_OF_GROUP = 8
PAIRED = ("exact_duplicate", "near_duplicate")
PARTNER = "the other of a pair"
"""What a row says that is only there so that its file can be ticked."""


def render_page(
    root: Path,
    findings: Sequence[Finding],
    facts: Sequence[str],
    csv_name: str,
    command: str,
    class_of: Callable[[str], str] = folder_of,
    copy: str = "",
    class_names: Sequence[str] = (),
) -> str:
    """Write the page. Every finding has its card and its picture, so that nobody ticks what cannot be looked at.

    Args:
        root: the photos' folder, for the thumbnails.
        findings: in the page's order.
        facts: sentences for the top.
        csv_name: name of the CSV beside the page.
        command: the command that applies the CSV.
        class_of: name of a file's class.
        copy: of a table: where its corrected copy is written, in place of moving files.
        class_names: the classes that a photo can be moved to.

    Returns:
        HTML that needs nothing but itself.
    """
    findings = [*findings, *_of_partners(findings, class_of)]
    row_of = {finding.file: row for row, finding in reversed(list(enumerate(findings)))}
    small = {finding.file for finding in findings if finding.kind == "group"}
    small -= {finding.file for finding in findings if finding.kind != "group"}
    pictures = _make_thumbnails(root, list(row_of), small)
    places = {file: place for place, (file, picture) in enumerate(pictures.items()) if picture}
    sheets = []
    for kind, (title, meaning) in KINDS.items():
        own = [finding for finding in findings if finding.kind == kind and finding.detail != PARTNER]
        if not own:
            continue
        blocks = []
        for name, members in _parts(own, lambda each: each.class_name if each.kind == "group" else "").items():
            parts = []
            for detail, part in _parts(members, lambda each: each.detail if each.kind == "group" else "").items():
                cards = [_card(finding, row_of, places, class_of, class_names) for finding in part]
                shown = SHOWN_OF_GROUP if kind == "group" else SHOWN_OF_SHEET
                rows = [row_of[finding.file] for finding in part]
                parts.append({"title": detail, "rows": rows, "cards": cards[:shown], "rest": cards[shown:]})
            blocks.append({"title": name, "parts": parts})
        layout = "group" if kind == "group" else "pairs" if kind in PAIRED else "choices" if kind == "suspect" else ""
        sheets.append(
            {"kind": kind, "title": title, "meaning": meaning, "count": len(own), "layout": layout, "blocks": blocks}
        )
    html = render_template(
        "datamodule.audit",
        "page.html",
        root=root,
        facts=facts,
        sheets=sheets,
        csv_name=csv_name,
        command=command,
        quarantine=QUARANTINE,
        move=MOVE,
        copy=copy,
        table=_script_json({"columns": COLUMNS, "rows": [finding.row for finding in findings]}),
        classes=_script_json(list(class_names)),
        pictures=json.dumps(list(pictures.values())),
    )
    return displayable(html)


def _script_json(value: Any) -> str:
    """Return JSON that can stand in a script: a file's name may not end it."""
    return json.dumps(value).replace("<", "\\u003c")


def _of_partners(findings: Sequence[Finding], class_of: Callable[[str], str]) -> list[Finding]:
    """Rows for files that are only ever the other of a pair, so that they can be ticked too."""
    listed = {finding.file for finding in findings}
    partners = {each.related_file: each for each in findings if each.kind in PAIRED and each.related_file not in listed}
    return [
        Finding(file, class_of(file), each.kind, each.score, "", each.file, PARTNER)
        for file, each in partners.items()
        if file
    ]


def _parts(findings: Iterable[Finding], name_of: Callable[[Finding], str]) -> dict[str, list[Finding]]:
    parts: dict[str, list[Finding]] = {}
    for finding in findings:
        parts.setdefault(name_of(finding), []).append(finding)
    return dict(sorted(parts.items()))


def _card(
    finding: Finding,
    row_of: dict[str, int],
    places: dict[str, int],
    class_of: Callable[[str], str],
    class_names: Sequence[str],
) -> dict[str, Any]:
    """What a card shows: a box and a picture for the file, and for the other of a pair as well."""
    files = {finding.file: finding.class_name}
    if finding.kind in PAIRED and finding.related_file:
        files[finding.related_file] = class_of(finding.related_file)
    return {
        "boxes": [
            {"row": row_of[file], "class_name": name or "no class", "file": file, "picture": places.get(file)}
            for file, name in files.items()
        ],
        "suggestion": finding.suggestion,
        "likelier": class_names.index(finding.suggestion) if finding.suggestion in class_names else "",
        "own": class_names.index(finding.class_name) if finding.class_name in class_names else "",
        "detail": "" if finding.kind == "group" else finding.detail,
    }


def _make_thumbnails(root: Path, files: Sequence[str], small: set[str]) -> dict[str, str]:
    """JPEG thumbnails as data URIs, one for each file however often it is shown; empty where the file is no photo."""
    with ThreadPoolExecutor(usable_cores()) as pool:
        made = pool.map(lambda file: _thumbnail(root / file, SMALL_THUMBNAIL if file in small else THUMBNAIL), files)
        return dict(zip(files, made, strict=True))


def _thumbnail(path: Path, side: int) -> str:
    try:
        with open_photo(path) as photo:
            photo.draft("RGB", (2 * side, 2 * side))
            thumbnail = photo.convert("RGB")
        thumbnail.thumbnail((side, side))
        content = io.BytesIO()
        thumbnail.save(content, "JPEG", quality=70)
    # The files that cannot be read, among others, are what the page is about; their card says why.
    except Exception:
        return ""
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode("ascii")

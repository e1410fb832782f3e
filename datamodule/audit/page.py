"""The audit as one HTML file: a contact sheet per kind of finding, thumbnails inside, boxes to tick."""

import base64
import io
import json
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from PIL import Image

from datamodule.audit.findings import COLUMNS, KINDS, QUARANTINE, Finding

THUMBNAIL = 132
"""Longest side, in pixels."""
MOST_PER_SHEET = 60
MOST_PER_GROUP = 8
PAIRED = ("exact_duplicate", "near_duplicate")


def render_page(root: Path, findings: Sequence[Finding], facts: Sequence[str], csv_name: str, command: str) -> str:
    """Write the page.

    Args:
        root: the photos' folder, for the thumbnails.
        findings: in the page's order.
        facts: sentences for the top.
        csv_name: name of the CSV beside the page.
        command: the command that applies the CSV.

    Returns:
        HTML that needs nothing but itself.
    """
    thumbnails = _Thumbnails(root)
    rows = {id(finding): row for row, finding in enumerate(findings)}
    sheets = []
    for kind, (title, meaning) in KINDS.items():
        own = [finding for finding in findings if finding.kind == kind]
        if not own:
            continue
        parts = _by_detail(own) if kind == "group" else {"": own}
        limit = MOST_PER_GROUP if kind == "group" else MOST_PER_SHEET
        sheets.append(
            {
                "kind": kind,
                "title": title,
                "meaning": meaning,
                "count": len(own),
                "parts": [
                    {
                        "title": part,
                        "rows": [rows[id(finding)] for finding in members],
                        "left_out": max(0, len(members) - limit),
                        "cards": [
                            _card(finding, rows[id(finding)], thumbnails, kind) for finding in islice(members, limit)
                        ],
                    }
                    for part, members in parts.items()
                ],
            }
        )
    environment = Environment(loader=PackageLoader("datamodule.audit", "."), autoescape=True, trim_blocks=True)
    html = environment.get_template("page.html").render(
        root=root,
        facts=facts,
        sheets=sheets,
        csv_name=csv_name,
        command=command,
        quarantine=QUARANTINE,
        # "<" escaped: a file's name may not end the script
        table=json.dumps({"columns": COLUMNS, "rows": [finding.row for finding in findings]}).replace("<", "\\u003c"),
    )
    # names with bytes that are no UTF-8 cannot be shown as they are
    return html.encode("utf-8", "replace").decode("utf-8")


def _by_detail(findings: Iterable[Finding]) -> dict[str, list[Finding]]:
    parts: dict[str, list[Finding]] = {}
    for finding in findings:
        parts.setdefault(finding.detail, []).append(finding)
    return parts


def _card(finding: Finding, row: int, thumbnails: "_Thumbnails", kind: str) -> dict[str, Any]:
    return {
        "row": row,
        "file": finding.file,
        "class_name": finding.class_name or "no class",
        "suggestion": finding.suggestion,
        "detail": "" if kind == "group" else finding.detail,
        "related_file": finding.related_file,
        "marked": finding.action == QUARANTINE,
        "picture": thumbnails.of(finding.file),
        "related_picture": thumbnails.of(finding.related_file) if kind in PAIRED else "",
    }


class _Thumbnails:
    """JPEG thumbnails as data URIs.

    Args:
        root: folder of the photos.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._made: dict[str, str] = {}

    def of(self, file: str) -> str:
        if file not in self._made:
            self._made[file] = self._make(self.root / file)
        return self._made[file]

    def _make(self, path: Path) -> str:
        """Make one; empty where the file is no photo."""
        try:
            with Image.open(path) as photo:
                photo.draft("RGB", (2 * THUMBNAIL, 2 * THUMBNAIL))
                small = photo.convert("RGB")
            small.thumbnail((THUMBNAIL, THUMBNAIL))
            content = io.BytesIO()
            small.save(content, "JPEG", quality=70)
        # The files that cannot be read, among others, are what the page is about; their card says why.
        except Exception:
            return ""
        return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode("ascii")

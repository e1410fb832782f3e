"""Cells of a CSV that a spreadsheet takes for text, and a program reads back as they were.

A spreadsheet computes what begins like a formula, and a file may have any name: `=HYPERLINK(...).jpg` is one.
"""

import re

_FORMULA = re.compile(r"'*[=+\-@\t\r\n]")
"""What begins a formula, or is dropped in front of one; after apostrophes too, so that they can be told from ours."""


def as_text(cell: str) -> str:
    """Put an apostrophe before what a spreadsheet would take for a formula."""
    return f"'{cell}" if _FORMULA.match(cell) else cell


def from_text(cell: str) -> str:
    """Undo `as_text`; a cell that a spreadsheet has undone already stays as it is."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell

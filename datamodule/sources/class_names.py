"""Names of classes: which cannot be one, and which may be two spellings of one."""

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from models.bad_input import BadInput, quoted, some_of


def is_writable(name: str) -> bool:
    """Return whether a name can be written into files and shown on one line.

    Line ends and control characters cannot, nor can a folder's name that is not UTF-8, as old archives have them.
    """
    return not any(unicodedata.category(each) in ("Cc", "Cs", "Zl", "Zp") for each in name)


def check_folders(what: str, root: Path, names: Sequence[str]) -> None:
    """Make sure that the names of class folders can be written.

    Args:
        what: setting or option, named in the message.
        root: their folder.
        names: theirs.

    Raises:
        BadInput: some cannot.
    """
    if odd := [name for name in names if not is_writable(name)]:
        raise BadInput(
            f"{what}: expected names of classes that can be written, in UTF-8 and on one line; received the folders "
            f"{quoted(odd)} in {root}. Rename them."
        )


def say_alike(names: Sequence[str]) -> str:
    """Return which names differ by capitals, spaces, dashes or characters that nobody sees; empty if none do."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(_plain(name) or name, []).append(name)
    twins = [each for each in alike.values() if len(each) > 1]
    if not twins:
        return ""
    said = some_of([" and ".join(_told_apart(name, twin) for name in twin) for twin in twins])
    return f"Classes with nearly the same name, which may be one: {said}."


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", _seen(unicodedata.normalize("NFKC", name))).strip().casefold()


def _seen(name: str) -> str:
    """Without the characters that nobody sees."""
    return "".join(each for each in name if unicodedata.category(each) != "Cf")


def _told_apart(name: str, twins: Sequence[str]) -> str:
    """In quotation marks, and with codes where the twins look the same."""
    look = {unicodedata.normalize("NFC", _seen(each)) for each in twins}
    return repr(name) if len(look) == len(twins) else ascii(name)

"""Records which folder was audited, so that the findings are not applied to another folder."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from models.atomic_write import write_text
from models.bad_input import BadInput

RECORD = "audited.json"


def write_record(out: Path, root: Path, class_names: Sequence[str]) -> None:
    """Record beside the audit's CSV which folder was audited.

    Args:
        out: the audit's output folder.
        root: the photos' folder.
        class_names: names of its class folders.

    Raises:
        BadInput: the record cannot be written.
    """
    seen = root.stat()
    # ASCII, so that names with any bytes can be read back
    record = {"root": os.fspath(root.resolve()), "folder": [seen.st_dev, seen.st_ino], "classes": list(class_names)}
    write_text(out / RECORD, json.dumps(record) + "\n")


def check_same_folder(out: Path, root: Path) -> None:
    """Refuse a folder that is not the one whose audit is in `out`; without a record in `out`, any folder is accepted.

    A folder is the same if its path is the same. Because folders get renamed and moved, it is also the same if it has
    the same classes and either the same device and inode numbers, or there is no folder at the old path any more.

    Raises:
        BadInput: it is another folder, or the record cannot be read.
    """
    path = out / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        recorded, folder, classes = Path(record["root"]), list(record["folder"]), list(record["classes"])
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"expected the audit's own {path}, received: {error}. Audit into a new --out.") from error
    if root.resolve() == recorded:
        return
    seen = root.stat()
    very_same = folder == [seen.st_dev, seen.st_ino]
    if all((root / name).is_dir() for name in classes) and (very_same or not recorded.is_dir()):
        return
    raise BadInput(
        f"expected the folder whose audit is in {out}, {recorded}; received {root.resolve()}. Give that folder, or "
        f"another --out for this one. If they are the same, remove {path}."
    )

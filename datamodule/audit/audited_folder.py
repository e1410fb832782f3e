"""Which folder an audit is of: what one folder's audit found is not applied to another one."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from models.atomic_write import write_text
from models.bad_input import BadInput

RECORD = "audited.json"


def write_record(out: Path, root: Path, class_names: Sequence[str]) -> None:
    """Write down beside the audit's CSV which folder it is of.

    Args:
        out: the audit's folder.
        root: the photos' folder.
        class_names: of its class folders.

    Raises:
        BadInput: it cannot be written there.
    """
    seen = root.stat()
    # ASCII, so that names of any bytes come back
    record = {"root": os.fspath(root.resolve()), "folder": [seen.st_dev, seen.st_ino], "classes": list(class_names)}
    write_text(out / RECORD, json.dumps(record) + "\n")


def check_same_folder(out: Path, root: Path) -> None:
    """Refuse a folder that is not the one whose audit is in `out`; an `out` without record is of none yet.

    The same is: what is at the same place; and, since folders are renamed and moved, one with the same classes that is
    either that very folder by the disk's own number or, on another disk, when there is none at the old place any more.

    Raises:
        BadInput: another folder, or the record cannot be read.
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

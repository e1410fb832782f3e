"""What lies among photos and is neither class nor photo: what programs leave there, and sets beside each other."""

import re
import shlex
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

from datamodule.split import find_class_names, is_junk_folder, list_photos, unlisted
from models.bad_input import BadInput, some_of
from models.choices import Formats

Listing = Literal["checked", "keras"]

APPLE_DOUBLE = b"\x00\x05\x16\x07"
"""First bytes of the file `._x.jpg` in which a Mac keeps what other systems cannot store of `x.jpg`."""

COPY = "-checkpoint"
"""What Jupyter adds to the name of a copy that it makes."""

ROLES = {
    **dict.fromkeys(("train", "training"), "root"),
    **dict.fromkeys(("val", "valid", "validate", "validation", "dev", "eval"), "val_root"),
    **dict.fromkeys(("test", "testing", "holdout"), "test_root"),
    **dict.fromkeys(("pred", "predict", "prediction", "predictions", "unlabeled", "unlabelled", "unseen"), "predict"),
}
"""Words that name sets, and the setting of each; those to predict have none."""

FILLERS = {"data", "dataset", "folder", "images", "image", "img", "imgs", "photos", "pictures", "set", "split", "to"}
"""Words that stand beside those and say nothing."""


def kind_of_junk(file: Path, folder: Path) -> str:
    """Return what makes a listed file no photo; empty for one that may be a photo.

    Args:
        file: a path in `folder`, at any depth.
        folder: where listing began; its own name does not matter.
    """
    for part in file.relative_to(folder).parts[:-1]:
        if is_junk_folder(part):
            return f"in {part}"
    if file.name.startswith("._") and _first_bytes(file) == APPLE_DOUBLE:
        return "that a Mac adds (._*)"
    # without the other file beside it, a name that ends so is somebody's own
    if file.stem.endswith(COPY) and file.with_name(file.stem.removesuffix(COPY) + file.suffix).exists():
        return f"that a notebook copied (*{COPY})"
    return ""


def _first_bytes(file: Path) -> bytes:
    try:
        if not file.is_file():  # a pipe may never end
            return b""
        with file.open("rb") as content:
            return content.read(len(APPLE_DOUBLE))
    except OSError:
        return b""  # it is named with the reason when it is decoded


def without_junk(files: Iterable[Path], folder: Path, left_out: Counter[str]) -> list[Path]:
    """Return the files that may be photos, in their order; count the others by their kind in `left_out`."""
    kept = []
    for file in files:
        if kind := kind_of_junk(file, folder):
            left_out[kind] += 1
        else:
            kept.append(file)
    return kept


def count_in_junk_folders(root: Path, formats: Formats = "keras") -> Counter[str]:
    """Count the photos in the folders of `root` that are no classes: 0 for an empty one."""
    return Counter(
        {
            f"in {name}": len(list_photos(root / name, formats))
            for name in find_class_names(root)
            if is_junk_folder(name)
        }
    )


def describe_junk(left_out: Counter[str]) -> str:
    """Return counts as text, such as "12 files in __MACOSX, 1 file in .ipynb_checkpoints"; empty if there are none."""
    counts = sorted(left_out.items(), key=lambda item: (-item[1], item[0]))
    return some_of([f"{count} {'file' if count == 1 else 'files'} {kind}" for kind, count in counts])


def what_else(folder: Path, formats: Formats = "keras") -> str:
    """Say what a folder without photos has in their place, such as " (12 .webp)"; empty for nothing."""
    junk: Counter[str] = Counter()
    without_junk(list_photos(folder, formats), folder, junk)
    found = [each for each in (unlisted(folder, formats=formats), describe_junk(junk)) if each]
    return f" ({', '.join(found)})" if found else ""


def clean_class_names(root: Path) -> list[str]:
    """Return the sorted names of the folders in `root`, without those that are hidden or that programs make."""
    return [name for name in find_class_names(root) if not is_junk_folder(name)]


def innermost(folder: Path) -> Path:
    """Go down as long as there is one folder only, as archives are often packed."""
    while len(names := clean_class_names(folder)) == 1:
        folder = folder / names[0]
    return folder


def role_of(name: str) -> str:
    """Return the setting of a set that is called so (`train`, `seg_test`, `images to predict`); empty for no set."""
    words = re.findall(r"[^\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name))
    telling = [word.lower() for word in words if word.lower() not in FILLERS]
    # A set's name ends in such a word: "seg_train" is one, "training shoes" is not.
    return ROLES.get(telling[-1], "") if telling else ""


def check_classes(setting: str, root: Path, names: list[str]) -> None:
    """Make sure that folders are classes, and not sets that each have the classes inside.

    Args:
        setting: named in the message.
        root: their folder.
        names: names of folders in `root`, two or more.

    Raises:
        BadInput: they look like sets, or one of them holds the others once more.
    """
    if (found := find_sets(root, names)) is None:
        return
    folders, to_predict = found.folders, found.folders.get("predict")
    given = " ".join(
        f"--data.{role} {shlex.quote(str(folders[role]))}"
        for role in sorted(folders.keys() - {"predict"}, key=list(ROLES.values()).index)
    )
    if found.twice:
        remedy = (
            f"Move {folders['root']} elsewhere, or give that one: --data.{setting} {shlex.quote(str(folders['root']))}"
        )
    else:
        label = f" (and label {to_predict} with lightning predict)" if to_predict else ""
        remedy = f"Give the sets apart: {given}{label}"
    raise BadInput(
        f"{setting}: expected one folder per class in {root}; received {found.what}. {remedy}. "
        "If these are classes, --data.listing keras takes them."
    )


class Sets(NamedTuple):
    """What was found where classes belong.

    Attributes:
        what: in words.
        folders: setting -> the folder that has its classes; `predict`: photos to label.
        twice: whether it is the class folders that are there, but once more in `folders["root"]`.
    """

    what: str
    folders: dict[str, Path]
    twice: bool = False


def find_sets(root: Path, names: list[str]) -> Sets | None:
    """Find out whether folders are sets that each have the classes inside; None if they may be classes.

    Args:
        root: their folder.
        names: names of folders in `root`, two or more.
    """
    inner = {name: set(clean_class_names(root / name)) for name in names}
    roles = {name: role for name in names if (role := role_of(name))}
    shared, united = set.intersection(*inner.values()), set.union(*inner.values())
    most = len(roles) * 2 > len(names)
    # Sets without folders inside must be three: two classes may be called train and test.
    if len(set(roles.values())) > 1 and (
        (most and (len(roles) > 2 or any(inner[name] for name in roles)))
        or len(set.intersection(*(inner[name] for name in roles))) > 1
    ):
        what = f"one per set: {some_of(names)}"
    elif len(shared) > 1 and len(shared) * 2 > len(united):
        what = f"folders that all hold the same ones, {some_of(sorted(shared), 5)}, as sets do: {some_of(names)}"
    elif twice := [name for name in names if len(inner[name] & set(names)) > 1]:
        again = root / twice[0]
        classes = some_of(sorted(inner[twice[0]] & set(names)), 5)
        return Sets(f"the class folders {classes} there and again in {again}", {"root": again}, twice=True)
    else:
        return None
    folders: dict[str, Path] = {}
    for name in sorted(names, key=lambda name: name not in roles):
        role = roles.get(name) or next((each for each in ("root", "val_root") if each not in folders), "")
        if role and (name in roles or not roles):
            folders.setdefault(role, innermost(root / name))
    return Sets(what, folders)

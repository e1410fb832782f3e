"""Where photos and labels come from, and which classes there are."""

import shlex
import zipfile
from pathlib import Path
from typing import Literal, NamedTuple

from datamodule.layout import Listing, check_classes, clean_class_names, find_sets, innermost, role_of
from datamodule.sources.class_names import check_folders
from datamodule.sources.photo_table import PhotoTable
from datamodule.sources.table_file import advise_tables, is_table
from datamodule.split import find_class_names, is_junk_folder
from models.bad_input import BadInput, quoted, some_of

ForeignClasses = Literal["stop", "skip"]
"""What is done about a class of the validation or test photos that is not trained on."""

WORDS = {"root": "training", "val_root": "validation", "test_root": "test"}


class Roots(NamedTuple):
    """Folders of class folders.

    Attributes:
        root: of the training photos, and of the others where these have none of their own.
        val_root: of the validation photos, or None.
        test_root: of the test photos, or None.
        said: that they were found as sets, in words; empty where `root` has classes.
    """

    root: Path
    val_root: Path | None
    test_root: Path | None
    said: str = ""


def find_roots(root: Path, val_root: Path | None, test_root: Path | None, listing: Listing) -> Roots:
    """Take the sets in a folder as they are, where `root` has sets and not classes; else return what was given.

    Only sets with names of sets are taken: `train` beside `val` or `test`, each with the classes inside, perhaps one
    level further down. What else is there is left out.
    """
    given = Roots(root, val_root, test_root)
    if listing == "keras" or val_root is not None or test_root is not None or not root.is_dir():
        return given
    names = clean_class_names(root)
    found = find_sets(root, names) if len(names) > 1 else None
    if found is None or found.twice:
        return given
    named = {name: role for name in names if (role := role_of(name)) in WORDS and _has_classes(root / name)}
    sets = {role: innermost(root / name) for name, role in named.items()}
    if "root" not in sets or len(sets) < len(named):
        return given  # two folders of one set, or none to train on: a person has to say
    taken = ", ".join(f"{WORDS[role]} {sets[role].relative_to(root)}" for role in WORDS if role in sets)
    left = [f"{name} (no classes inside)" if not _has_classes(root / name) else name for name in names]
    left = [each for each, name in zip(left, names, strict=True) if name not in named]
    left_out = f" Left out: {some_of(left)}." if left else ""
    said = f"{root} has sets, which are taken as they are: {taken}.{left_out}"
    return Roots(sets["root"], sets.get("val_root"), sets.get("test_root"), said)


def _has_classes(folder: Path) -> bool:
    return len(clean_class_names(innermost(folder))) > 1


def check_class_names(
    setting: str, place: Path, found: list[str], class_names: list[str], foreign_classes: ForeignClasses
) -> str:
    """Compare the classes of photos with those of the outputs: those that are trained on, or a checkpoint's.

    Args:
        setting: named in messages.
        place: the folder or table, for messages.
        found: its classes.
        class_names: the classes of the outputs.
        foreign_classes: what is done about classes that are not among them.

    Returns:
        Which are missing and which are left out, in words; empty where they are the same.

    Raises:
        BadInput: none is the same, or some are foreign and `foreign_classes` is `stop`.
    """
    missing, foreign = sorted({*class_names} - {*found}), sorted({*found} - {*class_names})
    if (foreign and foreign_classes == "stop") or len(missing) == len(class_names):
        raise BadInput(
            f"{setting}: expected the classes {quoted(class_names)}; received {quoted(found)} in {place} "
            f"(missing: {quoted(missing)}, foreign: {quoted(foreign)}). Give photos of these classes, named likewise"
            + ("." if len(missing) == len(class_names) else ", or leave others out with --data.foreign_classes skip.")
        )
    said = [f"lacks the classes {quoted(missing)}, and is measured over the others"] if missing else []
    said += [f"classes that are not trained on are left out: {quoted(foreign)}"] if foreign else []
    return f"{setting} {place}: {'; '.join(said)}." if said else ""


def check_sources(root: str | None, table: str | None, kaggle: str | None, demo: bool) -> None:
    """Make sure that there is one source of photos.

    Raises:
        BadInput: there is none, or more than one, or it is an empty text.
    """
    for setting, place in (("root", root), ("table", table)):
        if place is not None and not str(place):  # which would be the working folder
            raise BadInput(f"{setting}: expected a path; received an empty text. Is a variable of the shell not set?")
    given = [
        *([f"root {root}"] if root is not None else []),
        *([f"table {table}"] if table is not None else []),
        *([f"kaggle {kaggle}"] if kaggle is not None else []),
        *(["demo"] if demo and (kaggle is not None or table is not None) else []),
    ]
    if len(given) > 1:
        raise BadInput(
            f"expected one source of photos; received {' and '.join(given)}. Leave one out; one that a configuration "
            f"has is left out with --data.{given[0].split()[0]} null."
        )
    if not given and not demo:
        raise BadInput(
            "root: expected a folder with one folder of photos per class; received nothing. Give it with "
            "--data.root PHOTOS, or a table of labels with --data.table FILE, or try --data.demo true for a drawn "
            "catalogue."
        )


def check_sets(table: PhotoTable, val_root: str | None, test_root: str | None) -> None:
    """Make sure that no set is given twice.

    Raises:
        BadInput: the table has validation or test photos, and a folder is given, too.
    """
    for setting, folder, name in (("val_root", val_root, "val"), ("test_root", test_root, "test")):
        if folder is not None and name in table.classes:
            raise BadInput(
                f"{setting}: expected none, as {table.file} has photos of that set; received {folder}. Leave it out, "
                'or the table\'s sets with --data.set_column "".'
            )


def check_folder(setting: str, folder: Path) -> None:
    """Make sure that a folder is there.

    Raises:
        BadInput: it is not, or is a file.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        remedy = "Check the path."
        if folder.exists() and is_table(folder):
            remedy = f"If it has the labels: --data.table {shlex.quote(str(folder))}"
        elif folder.exists() and zipfile.is_zipfile(folder):
            remedy = f"An archive is given so: --data.{setting} {shlex.quote(f'zip://{folder}')}"
        raise BadInput(f"{setting}: expected a folder; received {folder}, which {what}. {remedy}")


def read_class_names(setting: str, root: Path, listing: Listing = "checked", fewest: int = 2) -> list[str]:
    """Return the sorted names of the class folders in `root`, at least `fewest`.

    Raises:
        BadInput: the folder is missing or not laid out as one folder per class.
    """
    check_folder(setting, root)
    names = [name for name in find_class_names(root) if listing == "keras" or not is_junk_folder(name)]
    if not names:
        raise BadInput(
            f"{setting}: expected one folder of photos per class in {root}; received no folders there. "
            f"Sort the photos into folders named as their classes.{advise_tables(root) or advise_tables(root.parent)}"
        )
    check_folders(setting, root, names)
    if len(names) == 1 < fewest:
        inner = innermost(root / names[0])
        several = len(clean_class_names(inner)) > 1
        remedy = f" Did you mean {inner}?" if several else f" Add a folder for a second class.{advise_tables(root)}"
        raise BadInput(f"{setting}: expected two or more class folders in {root}; received one, {names[0]!r}.{remedy}")
    if listing == "checked" and len(names) > 1:
        check_classes(setting, root, names)
    return names

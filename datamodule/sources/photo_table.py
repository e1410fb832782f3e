"""Photos whose labels are in a table: which file each row names, its label, and its set where the table says it."""

# pathlib would take ten times as long for a million names
# ruff: noqa: PTH100, PTH118

import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

from datamodule.layout import clean_class_names, role_of
from datamodule.sources.addresses import is_address
from datamodule.sources.class_names import is_writable, say_alike
from datamodule.sources.table_file import Cell, TableFile, shown_columns
from datamodule.split import is_listed
from models.bad_input import BadInput, quoted, some_of
from models.choices import FORMAT_ENDINGS, Formats
from models.spreadsheet_text import from_text

TableSet = Literal["train", "val", "test"]
SET_OF_ROLE: dict[str, TableSet] = {"root": "train", "val_root": "val", "test_root": "test"}
"""The settings that folders of sets are given with -> the set."""

FILE_NAMES = ("file", "filename", "file_name", "filepath", "file_path", "path", "image", "image_id", "photo", "id")
LABEL_NAMES = ("label", "labels", "class", "class_name", "category", "target")
"""Names that columns have where nothing else tells which they are."""

NO_LABEL = {"", "nan", "null", "<na>", "#n/a"}
"""What programs write for a label that is missing, in lower case."""
MAYBE_NO_LABEL = {"none", "na", "n/a", "n.a.", "-", "--", "?"}
"""What may mean the same, and may be a label."""
LONGEST_LABEL = 200
MOST_NAMED = 20
"""How many rows of a kind a message names."""
MOST_FOLDERS = 50
"""In how many folders beside a table its photos are looked for."""
NOT_THERE = "photos that are not there"
_NEW, _CONTRADICTED = -1, -2
"""In place of the number of a photo's set and label: not known yet; the table has two."""


class PhotoFinder:
    """Finds the files that a table names, each folder's names being read once.

    Args:
        bases: folders that names may be relative to, in order.
        formats: which files are photos; a name may lack its own.
        read: another finder's folders, which need not be read again.
    """

    def __init__(
        self,
        bases: Sequence[Path],
        formats: Formats = "keras",
        read: "dict[str, _Folder] | None" = None,
    ) -> None:
        self.bases = [str(base) for base in bases]
        self.formats = formats
        self._folders: dict[str, list[_Folder]] = {}  # what stands before a name -> where that may be
        self.read: dict[str, _Folder] = {} if read is None else read

    def find(self, cell: str) -> tuple[str, str]:
        """Return the path of the photo that a cell names, and "" or else why there is none."""
        path, why = self._find(cell)
        if why and "\\" in cell:
            path, why = self._find(cell.replace("\\", "/"))
        # our own tables have an apostrophe before what a spreadsheet would take for a formula
        return self.find(plain) if why and (plain := from_text(cell)) != cell else (path, why)

    def _find(self, cell: str) -> tuple[str, str]:
        before, slash, last = cell.rpartition("/")
        folders = self._folders.get(before + slash)
        if folders is None:
            paths = [os.path.abspath(os.path.join(base, before + slash)) for base in self.bases]
            folders = [
                self.read.setdefault(path, _Folder(path, self.formats)) for path in dict.fromkeys(paths)
            ]  # fmt: skip
            self._folders[before + slash] = folders
        why = NOT_THERE
        for folder in folders:
            if last in folder.names:
                if is_listed(folder.start, last, self.formats):
                    return folder.start + last, ""
                why = "files that are not listed as photos (see formats)"
            elif whole := folder.stems.get(last):
                if isinstance(whole, str):
                    return folder.start + whole, ""
                why = "photos of which there are several with different endings"
        if why == NOT_THERE and is_address(cell):
            why = "addresses, which are not fetched (download those photos, and name the files)"
        return "", why


class _Folder:
    """What is in a folder, read when it is first asked for."""

    def __init__(self, path: str, formats: Formats) -> None:
        self.start = path if path.endswith(os.sep) else path + os.sep
        self.formats = formats

    @cached_property
    def names(self) -> frozenset[str]:
        """The names of its files."""
        try:
            with os.scandir(self.start) as entries:
                return frozenset(entry.name for entry in entries if not entry.is_dir())
        except (OSError, ValueError):  # ValueError: a NUL in its name
            return frozenset()

    @cached_property
    def stems(self) -> dict[str, str | bool]:
        """Its photos' names without their endings -> the names; True for several."""
        stems: dict[str, str | bool] = {}
        for name in self.names:
            if name.lower().endswith(FORMAT_ENDINGS[self.formats]):
                stem = name.rpartition(".")[0]
                stems[stem] = True if stem in stems else name
        return stems


class Columns(NamedTuple):
    """Where a table says what.

    Attributes:
        file: column with the photos' files.
        label: column with the labels; None where none are wanted.
        set: column with the sets; None where there is none.
        base: folder that the files are relative to.
        finder: of the photos there.
    """

    file: str
    label: str | None
    set: str | None
    base: Path
    finder: PhotoFinder


class Unusable:
    """Rows that cannot be used: how many of each kind, and the first of them.

    Args:
        number_of: number that people give to a row.
    """

    def __init__(self, number_of: Callable[[int], int]) -> None:
        self.number_of = number_of
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}

    def add(self, kind: str, example: str, place: int | None = None, count: int = 1) -> None:
        """Note `count` rows of a kind; `place` says which row, counted from 0."""
        self.counts[kind] += count
        named = self.examples.setdefault(kind, [])
        if len(named) < MOST_NAMED:
            named.append(example if place is None else f"row {self.number_of(place)}: {example}")

    def __str__(self) -> str:
        return "\n".join(
            f"  {count} {kind}: {some_of(self.examples[kind])}{self._more(kind)}" for kind, count in self.counts.items()
        )

    def _more(self, kind: str) -> str:
        more = self.counts[kind] - len(self.examples[kind])
        return f", and {more} more" if more and len(self.examples[kind]) == MOST_NAMED else ""


class PhotoTable:
    """The photos of a table, each with one label and one set.

    The photos of each class are in the order in which Keras would list them, so that they are split as they would be in
    class folders.

    Args:
        file: a .csv, .tsv, .parquet or .jsonl.
        photos: folder that file names are relative to; without it the table's own, or one beside the table.
        file_column: column that names the files, whose endings may be missing; guessed from what is there.
        label_column: column with the labels; guessed where only one can be it.
        set_column: column with the sets (train, validation, test, by their usual names); a column of nothing else is
            one. "" for none.
        on_bad_photo: `stop` with the rows that cannot be used, or `skip` them and say how many.
        fewest: photos that a class needs where the table has no validation photos.
        foreign_classes: `stop` at validation and test photos of classes that have no training photos, or `skip` them.
        formats: which files are photos.

    Attributes:
        file: as given.
        base: folder that file names are relative to.
        class_names: sorted labels of the training photos.
        classes: for each set that the table has, the photos of each class.
        said: sentences about what was guessed and left out.

    Raises:
        BadInput: the table cannot be read, says too little, or has rows that cannot be used and `on_bad_photo` is
            `stop`.
    """

    def __init__(
        self,
        file: Path,
        photos: Path | None = None,
        file_column: str | None = None,
        label_column: str | None = None,
        set_column: str | None = None,
        on_bad_photo: Literal["stop", "skip"] = "stop",
        fewest: int = 1,
        foreign_classes: Literal["stop", "skip"] = "stop",
        formats: Formats = "keras",
    ) -> None:
        self.file = file
        table = TableFile(file)
        columns = find_columns(table, photos, file_column, label_column, set_column, formats)
        self.base = columns.base
        self._table, self._columns = table, columns
        self.said: list[str] = []
        unusable = Unusable(table.number_of)
        labelled = self._read(table, columns, unusable)
        self.class_names, self.classes = self._sort(labelled, unusable, fewest, foreign_classes)
        self._say(table, columns)
        self._refuse(unusable, on_bad_photo)
        if len(self.class_names) < 2:
            raise BadInput(
                f"table: expected two or more classes in the column {columns.label!r} of {file}; received "
                f"{quoted(self.class_names)}. Name another with --data.label_column, or add photos of a second class."
            )

    def write_corrected(self, target: Path, new_label: Callable[[Path], str | None]) -> int:
        """Write a copy of the table without some photos, and with other labels of some; return how many rows differ.

        Args:
            target: a file; its names are relative to `base`, too.
            new_label: takes a photo and returns its label, "" for the one it has, None to leave it out. Rows that
                name no photo stay.

        Raises:
            BadInput: it cannot be written.
        """

        def of_cell(cell: str) -> str | None:
            path, why = self._columns.finder.find(cell)
            return "" if why else new_label(Path(path))

        assert self._columns.label is not None
        return self._table.write_copy(target, self._columns.file, self._columns.label, of_cell)

    def _read(self, table: TableFile, columns: Columns, unusable: Unusable) -> dict[TableSet, dict[str, list[str]]]:
        """Return set -> label -> paths, in the table's order."""
        finder = columns.finder
        labels: dict[Cell, tuple[str, str]] = {}  # a cell -> the label, or else why it is none
        sets: dict[Cell, TableSet | Literal["predict", ""]] = {None: "" if columns.set else "train"}
        kinds: dict[tuple[TableSet, str], int] = {}  # (set, label) -> its number
        kind_of: dict[str, int] = {}  # path -> that number
        repeated = unlabelled = 0
        place = -1
        for piece in table.pieces([name for name in (columns.file, columns.label, columns.set) if name]):
            set_cells = piece[2] if columns.set else [None] * len(piece[0])
            for name, cell, set_cell in zip(piece[0], piece[1], set_cells, strict=True):
                place += 1
                if set_cell not in sets:
                    sets[set_cell] = set_of(set_cell)
                if cell not in labels:
                    labels[cell] = label_of(from_text(cell) if cell and table.is_text else cell)
                set_name, (label, why) = sets[set_cell], labels[cell]
                if set_name == "predict":  # such photos need no label
                    unlabelled += 1
                elif not set_name:
                    unusable.add(f"rows of unknown sets in {columns.set!r}", _short(set_cell), place)
                elif why:
                    unusable.add(why, _short(cell), place)
                else:
                    path, why = finder.find(name or "")
                    if why:
                        unusable.add(why, _short(name), place)
                        continue
                    kind = kinds.setdefault((set_name, label), len(kinds))
                    known = kind_of.setdefault(path, _NEW)
                    if known == _NEW:
                        kind_of[path] = kind
                    elif known == kind:
                        repeated += 1
                    elif known != _CONTRADICTED:
                        kind_of[path] = _CONTRADICTED
                        then_set, then = list(kinds)[known]
                        what = f"labels {then!r} and {label!r}" if then != label else f"in {then_set} and {set_name}"
                        unusable.add("photos named twice with two labels or sets", f"{_short(name)}, {what}", place)
        if table.crooked_count:
            unusable.add("rows with other cells than the header", "", count=table.crooked_count)
            unusable.examples["rows with other cells than the header"] = table.crooked
        if unlabelled:
            self.said.append(f"{unlabelled} rows of photos to predict are left out.")
        if repeated:
            self.said.append(f"{repeated} rows say again what others say, and count once.")
        labelled: dict[TableSet, dict[str, list[str]]] = {}
        # what is named twice is in none of these
        paths_of = [labelled.setdefault(set_name, {}).setdefault(label, []) for set_name, label in kinds]
        for path, kind in kind_of.items():
            if kind != _CONTRADICTED:
                paths_of[kind].append(path)
        found = {name: {label: paths for label, paths in each.items() if paths} for name, each in labelled.items()}
        return {name: each for name, each in found.items() if each}

    def _sort(
        self, labelled: dict[TableSet, dict[str, list[str]]], unusable: Unusable, fewest: int, foreign_classes: str
    ) -> tuple[list[str], dict[TableSet, list[list[Path]]]]:
        """Return the class names, and for each set the photos of each class in Keras's order."""
        needed = 1 if "val" in labelled else fewest
        training = labelled.get("train", {})
        small = sorted(name for name, paths in training.items() if len(paths) < needed)
        for name in small:
            kind = f"classes too small to hold a share out for validation (at least {needed} photos)"
            unusable.add(kind, f"{name} ({len(training[name])})")
        class_names = sorted(training.keys() - {*small})
        if labelled and not training:
            raise BadInput(
                f"table: expected training photos in {self.file}; received {' and '.join(labelled)} photos alone, by "
                f'its column {self._columns.set!r}. Add training photos, or take no sets from it: --data.set_column "".'
            )
        for set_name, by_label in labelled.items():
            foreign = sorted(by_label.keys() - training.keys())
            if foreign and foreign_classes == "skip":
                self.said.append(
                    f"{set_name} photos of classes that are not trained on are left out: {quoted(foreign)}."
                )
                continue
            for name in foreign:
                kind = f"{set_name} photos of classes without training photos (--data.foreign_classes skip allows them)"
                unusable.add(kind, name, count=len(by_label[name]))
        classes: dict[TableSet, list[list[Path]]] = {}
        for set_name, by_label in labelled.items():
            classes[set_name] = [_in_keras_order(by_label.pop(name, [])) for name in class_names]
            if not any(classes[set_name]):
                del classes[set_name]
                continue
            lacking = [name for name, files in zip(class_names, classes[set_name], strict=True) if not files]
            if lacking and set_name != "train":
                self.said.append(
                    f"{set_name} photos lack the classes {quoted(lacking)}, and are measured over the others."
                )
        return class_names, classes

    def _say(self, table: TableFile, columns: Columns) -> None:
        how = f" ({table.how})" if table.how else ""
        in_sets = f", sets from {columns.set!r}" if columns.set else ""
        self.said.insert(
            0,
            f"{self.file}{how}: files from its column {columns.file!r}, in {columns.base}; labels from "
            f"{columns.label!r}{in_sets}.",
        )
        if doubtful := [name for name in self.class_names if name.lower() in MAYBE_NO_LABEL]:
            self.said.append(f"Taken for classes, though they may mean that there is no label: {quoted(doubtful)}.")
        if alike := say_alike(self.class_names):
            self.said.append(alike)

    def _refuse(self, unusable: Unusable, on_bad_photo: str) -> None:
        if not unusable.counts:
            return
        if on_bad_photo == "stop" or not self.class_names:
            raise BadInput(
                f"table: expected a photo that is there and one label in every row of {self.file}; received\n"
                f"{unusable}\n({self.said[0].rstrip('.')}.) Mend the table or name other columns"
                + (", or leave these out with --data.on_bad_photo skip." if self.class_names else ".")
            )
        self.said.append(f"Left out of {self.file}:\n{unusable}")


def _in_keras_order(paths: list[str]) -> list[Path]:
    """Sort paths as `list_photos` does: folders by their whole path, files by name within each."""
    return [Path(path) for path in sorted(paths, key=lambda path: path.rpartition(os.sep))]


def _short(cell: Cell) -> str:
    return repr(cell if cell is None or len(cell) <= 60 else f"{cell[:57]}...")


def set_of(cell: Cell) -> Literal["train", "val", "test", "predict", ""]:
    """Return which set a cell names; "predict" for photos without a label, "" for none that is known."""
    role = role_of(cell or "")
    return "predict" if role == "predict" else SET_OF_ROLE.get(role, "")


def label_of(cell: Cell) -> tuple[str, str]:
    """Return the label that a cell means, and "" or else why it means none."""
    label = unicodedata.normalize("NFC", (cell or "").strip())
    if label.lower() in NO_LABEL:
        return "", "rows without a label"
    if len(label) > LONGEST_LABEL or not is_writable(label):
        return "", f"labels longer than {LONGEST_LABEL} characters, or with line ends and the like"
    return label, ""


def each_photo_of(
    file: Path,
    photos: Path | None = None,
    file_column: str | None = None,
    formats: Formats = "keras",
    options: tuple[str, str] | None = None,
) -> Iterator[tuple[str, str]]:
    """Yield for each row of a table without regard to labels: the photo's path and "", or its name and why it is none.

    Args:
        file: a table.
        photos: as `PhotoTable` has it; likewise the next two.
        file_column: likewise.
        formats: likewise.
        options: the command's options for the column and for the folder, which a message advises; None if it has none.

    Raises:
        BadInput: the table cannot be read, or has no column of photos.
    """
    table = TableFile(file)
    columns = find_columns(table, photos, file_column, None, "", formats, wants_label=False, options=options)
    for (names,) in table.pieces([columns.file]):
        for name in names:
            path, why = columns.finder.find(name or "")
            yield (name or "", why) if why else (path, "")


def find_columns(
    table: TableFile,
    photos: Path | None,
    file_column: str | None,
    label_column: str | None,
    set_column: str | None,
    formats: Formats = "keras",
    wants_label: bool = True,
    options: tuple[str, str] | None = ("--data.file_column", "--data.photos"),
) -> Columns:
    """Find out which columns name files, labels and sets, by what is in them.

    Args:
        table: read already as far as its columns' names.
        photos: folder of the photos; None to look for it.
        file_column: its name, or None to look for it; likewise the next two.
        label_column: likewise.
        set_column: likewise; "" for none.
        formats: which files are photos.
        wants_label: whether there has to be a column of labels.
        options: the command's options for the column of files and for their folder, if it has any.

    Raises:
        BadInput: a column is not there, or none or several may be meant.
    """
    if photos is not None and not photos.is_dir():
        what = "is a file" if photos.exists() else "does not exist"
        raise BadInput(
            f"photos: expected the folder that file names are relative to; received {photos}, which {what}. "
            "Check the path."
        )
    head = table.head()
    if not any(head.values()) and table.crooked:
        raise BadInput(
            f"{table.path}: expected rows with as many cells as the header, {quoted(table.columns)}; received "
            f"{table.crooked_count} with others, such as {table.crooked[0]}. Remove what is above the header."
        )
    if not any(head.values()):
        raise BadInput(f"{table.path}: expected rows, received a header alone: {quoted(table.columns)}. Add them.")
    named = {
        option: table.column(f"{option}_column", name)
        for option, name in (("file", file_column), ("label", label_column), ("set", set_column))
        if name
    }
    finder = PhotoFinder([], formats)
    file, base = _find_files(table, head, photos, named.get("file"), {*named.values()}, finder, options)
    finder = PhotoFinder([base, table.path.parent], formats, finder.read)
    label = named.get("label")
    in_set = named.get("set") or (None if set_column == "" else _find_sets(head, {file, label}))
    if label is None and wants_label:
        label = _find_label(table, head, {file, in_set})
    return Columns(file, label, in_set, base, finder)


def _find_files(
    table: TableFile,
    head: dict[str, list[Cell]],
    photos: Path | None,
    named: str | None,
    taken: set[str],
    reader: PhotoFinder,
    options: tuple[str, str] | None,
) -> tuple[str, Path]:
    here = table.path.parent
    beside = [here / name for name in clean_class_names(here)[:MOST_FOLDERS]]
    best: tuple[int, str, Path] = (0, "", here)
    candidates = [named] if named else [name for name in head if name not in taken]
    for base in [here, *beside] if photos is None else [photos]:
        finder = PhotoFinder([base], reader.formats, reader.read)
        if found := [name for name in candidates if finder.find(name)[0]]:
            raise BadInput(
                f"{table.path}: expected the columns' names in the first row, received a photo's, {found[0]!r}. Add a "
                "first row, such as file,label."
            )
        for name in candidates:
            count = sum(bool(cell and finder.find(cell)[0]) for cell in head[name][:200])
            if count > best[0]:
                best = count, name, base
    count, name, base = best
    if count:
        return name, base
    by_name = named or next((each for known in FILE_NAMES for each in candidates if each.lower() == known), None)
    where = f"in {photos}" if photos is not None else f"in {here} or in a folder of it"
    examples = some_of([f"{each}: {_short(next(iter(head[each]), None))}" for each in candidates])
    if by_name is None:
        remedy = f"Name it with {options[0]}, and the photos' folder with {options[1]}" if options else (
            "Put the table beside the photos, or write their whole paths into it"
        )  # fmt: skip
        raise BadInput(
            f"{table.path}: expected a column that names photos; received none whose files are {where}. The first row "
            f"has {examples}. {remedy}."
        )
    return table.column("file_column", by_name), photos or here


def _find_sets(head: dict[str, list[Cell]], taken: set[str | None]) -> str | None:
    for name, cells in head.items():
        if name not in taken and cells and all(set_of(cell) for cell in {*cells}):
            return name
    return None


def _find_label(table: TableFile, head: dict[str, list[Cell]], taken: set[str | None]) -> str:
    others = {name: cells for name, cells in head.items() if name not in taken}
    usual = [name for name in others if name.lower().replace(" ", "_") in LABEL_NAMES]
    if len(usual) == 1:
        return table.column("label_column", usual[0])
    if len(others) == 1:
        return table.column("label_column", next(iter(others)))
    # a label is there again and again, and is not the same all over
    repeated = {name: cells for name, cells in others.items() if 1 < len({*cells}) <= max(2, len(cells) // 2)}
    if len(repeated) == 1:
        return table.column("label_column", next(iter(repeated)))
    if len(repeated) > 1 and all({*cells} == {"0", "1"} for cells in repeated.values()):
        raise BadInput(
            f"{table.path}: expected one column that can be the labels; received one of ones and zeros for each of "
            f"{quoted([*repeated])}. Write each photo's class into a column of its own."
        )
    raise BadInput(
        f"{table.path}: expected one column that can be the labels; received "
        f"{shown_columns(repeated or others) or 'no column besides the files'}. Name it with --data.label_column."
    )

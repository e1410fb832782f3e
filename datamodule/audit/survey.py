"""The whole audit of a folder of classes, from files to findings."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datamodule.audit import inspection as looks
from datamodule.audit.duplicates import Pair, find_pairs, find_straddling, group_rows
from datamodule.audit.findings import QUARANTINE, Finding, in_order
from datamodule.audit.inspection import Inspection, inspect_all
from datamodule.audit.suspects import FEWEST_IN_CLASS, Suspects, find_groups, find_suspects
from datamodule.layout import (
    Listing,
    clean_class_names,
    count_in_junk_folders,
    describe_junk,
    kind_of_junk,
    what_else,
    without_junk,
)
from datamodule.photo_store import BadPhoto
from datamodule.sources.class_names import check_folders
from datamodule.sources.photo_table import PhotoTable
from datamodule.split import find_class_names, is_junk_folder, keras_split, list_photos
from models.bad_input import BadInput, some_of
from models.choices import Formats

Features = Callable[[Sequence[Inspection]], np.ndarray]
DOES = ("is trained on", "validates", "is for testing")
"""What a photo of each set is for."""


@dataclass(frozen=True)
class Survey:
    """All results of an audit.

    Attributes:
        root: the photos' folder.
        class_names: sorted.
        photos: how many photos can be read.
        findings: in the page's order.
        notes: sentences about what could not be judged.
    """

    root: Path
    class_names: list[str]
    photos: int
    findings: list[Finding]
    notes: list[str]


def survey(
    root: Path,
    features_of: Features,
    network_size: int,
    validation_split: float,
    seed: int,
    progress: Callable[[Iterable, int], Iterable],
    listing: Listing = "checked",
    table: PhotoTable | None = None,
    formats: Formats = "keras",
    sets: Sequence[Path | None] | None = None,
) -> Survey:
    """Audit a folder, a folder of sets, or the photos of a table.

    Args:
        root: folder with one folder per class; of sets and of a table a folder that has all photos, at any depth.
        features_of: returns pooled features of photos, shape (N, F).
        network_size: side of the network's input, in pixels.
        validation_split: share of each class that Keras's split holds out, strictly between 0 and 1.
        seed: for folds and groups.
        progress: wraps an iteration to show progress; called with it and its length.
        listing: as `ProductPhotos` has it; `keras` leaves out no hidden folders, nor what programs leave.
        table: says which photos there are, and their labels, in place of folders.
        formats: which files are photos.
        sets: the folders of classes of the training, validation and test photos, None for those that there are none
            of; by default `root` has the classes of the training photos.

    Raises:
        BadInput: there are no classes or no photos.
    """
    junk = Counter[str]()
    folders = {place: folder for place, folder in enumerate(sets or [root]) if folder is not None}
    if table is not None:
        class_names, of_set = table.class_names, {0: table.classes["train"]}
    else:
        class_names, of_set = _list_folders(folders, listing, junk, formats)
    # class after class, and in each the training photos first
    classes = [[file for each in of_set.values() for file in each[label]] for label in range(len(class_names))]
    files = [file for each in classes for file in each]
    if not files:
        raise BadInput(
            f"expected a folder with one folder of photos per class (PHOTOS/<class>/*.jpg), received {root}, "
            + (
                "which is not a folder."
                if not root.is_dir()
                else f"which has no photos in folders{what_else(root, formats)}."
            )
        )
    label_of = {file: label for label, each in enumerate(classes) for file in each}
    set_of = {file: place for place, each in of_set.items() for of_class in each for file in of_class}
    if 1 not in of_set:
        set_of |= dict.fromkeys(keras_split(of_set[0], validation_split)[1].files, 1)
    photos, bad = inspect_all(files, progress)
    teller = _Teller(root, class_names, label_of, photos, [*folders.values()])
    findings = [teller.unreadable(each) for each in bad]
    if table is None:
        findings += [teller.not_listed(path) for each in folders.values() for path in find_not_listed(each, set(files))]
    findings += [finding for photo in photos for finding in teller.looks(photo, network_size)]
    notes = [*table.said] if table is not None else [
        note for place, each in folders.items() for note in _notes_on_folder(root, each, class_names, of_set[place])
    ]  # fmt: skip
    if junk:
        notes.append(f"Left out as no photos of a class, as training does: {describe_junk(junk)}.")
    if photos:
        features = features_of(photos)
        labels = np.array([label_of[photo.path] for photo in photos])
        pairs = find_pairs(photos, features)
        groups = group_rows(pairs, len(photos))
        sets_of_photos = np.array([set_of[photo.path] for photo in photos])
        straddling = find_straddling(groups, sets_of_photos)
        findings += [teller.duplicate(pair, sets_of_photos, straddling) for pair in pairs]
        suspects = find_suspects(features, labels, groups, seed)
        findings += teller.suspects(suspects)
        findings += teller.groups(*find_groups(features, labels, seed), labels)
        if suspects.unjudged:
            names = some_of([class_names[label] for label in suspects.unjudged])
            notes.append(f"Fewer than {FEWEST_IN_CLASS} photos, so not judged for their class: {names}.")
        if len(np.unique(labels)) == 1:
            notes.append("There is one class only, so no photo could be compared with another class.")
        if pairs:
            how = "" if 1 in of_set else f" by Keras's split (validation_split {validation_split})"
            notes.append(
                f"Extra copies, exact or nearly so: {len(pairs)}. Photos with a twin in another set{how}: "
                f"{int(straddling.sum())}."
            )
    return Survey(root, class_names, len(photos), in_order(findings), notes)


def _list_folders(
    folders: Mapping[int, Path], listing: Listing, junk: Counter[str], formats: Formats
) -> tuple[list[str], dict[int, list[list[Path]]]]:
    """Return the classes in the folders of sets, and for each set the photos of each; count in `junk` what is left out.

    Args:
        folders: number of a set -> folder of its classes, of which it may lack some.
        listing: as `survey` has it.
        junk: what is left out -> how many files.
        formats: which files are photos.
    """
    folders = {place: folder for place, folder in folders.items() if folder.is_dir()}
    names_in = find_class_names if listing == "keras" else clean_class_names
    class_names = sorted({name for folder in folders.values() for name in names_in(folder)})
    for folder in folders.values():
        check_folders("audit", folder, names_in(folder))
    of_set = {place: [list_photos(folder / name, formats) for name in class_names] for place, folder in folders.items()}
    if listing == "checked":
        for place, folder in folders.items():
            junk.update(count_in_junk_folders(folder, formats))
            of_set[place] = [
                without_junk(files, folder / name, junk) for name, files in zip(class_names, of_set[place], strict=True)
            ]
    return class_names, of_set


def _notes_on_folder(
    root: Path, folder: Path, class_names: Sequence[str], classes: Sequence[Sequence[Path]]
) -> list[str]:
    notes = []
    empty = [name for name, files in zip(class_names, classes, strict=True) if not files]
    if empty and folder == root:
        notes.append(f"Classes without a photo, which training refuses: {some_of(empty)}.")
    elif empty:
        notes.append(f"Classes without a photo in {folder.relative_to(root)}: {some_of(empty)}.")
    links = [path.relative_to(root).as_posix() for name in class_names for path in find_linked_folders(folder / name)]
    if links:
        notes.append(
            f"Links to folders inside class folders, which neither Keras nor this project follows: {some_of(links)}. "
            "The photos behind them are not used and were not looked at."
        )
    return notes


def find_linked_folders(folder: Path) -> list[Path]:
    """Find the links to folders below `folder`, sorted; `folder` itself may be one."""
    return sorted(
        path for parent, names, _ in os.walk(folder) for name in names if (path := Path(parent, name)).is_symlink()
    )


def find_not_listed(root: Path, listed: set[Path]) -> list[Path]:
    """Find the files below `root` that Keras does not list, sorted; no hidden ones and none that programs leave."""
    found = []
    for parent, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not is_junk_folder(name)]
        found += [Path(parent, name) for name in names if not name.startswith(".") and Path(parent, name) not in listed]
    return sorted(path for path in found if not kind_of_junk(path, root))


def _unlinked(root: Path, path: Path) -> Path:
    """Return where the folder of `path` would be if there were no links between `root` and it."""
    return root.resolve() / path.parent.relative_to(root)


class _Teller:
    """Puts what was found into words.

    Args:
        root: the photos' folder.
        class_names: sorted.
        label_of: class index of each listed file.
        photos: the readable photos, by row.
        folders: those that have class folders.
    """

    def __init__(
        self,
        root: Path,
        class_names: list[str],
        label_of: dict[Path, int],
        photos: list[Inspection],
        folders: Sequence[Path],
    ) -> None:
        self.root, self.class_names, self.label_of, self.photos = root, class_names, label_of, photos
        self.folders = folders
        # Targets of links; moving one would break the link.
        self.real = {photo.path: photo.path.resolve() for photo in photos}
        at_home = {folder: folder.resolve() for folder in {path.parent for path in self.real}}
        self.linked_to = {
            real
            for path, real in self.real.items()
            if path.is_symlink() or at_home[path.parent] != _unlinked(root, path)
        }

    def about(
        self,
        path: Path,
        kind: str,
        score: float = 1.0,
        detail: str = "",
        suggestion: str = "",
        related: Path | None = None,
        action: str = "",
    ) -> Finding:
        file = path.relative_to(self.root).as_posix()
        label = self.label_of.get(path)
        folder = next((each for each in self.folders if path.is_relative_to(each)), self.root)
        first = path.relative_to(folder).parts[0]
        # a file outside the class folders has no class
        name = self.class_names[label] if label is not None else first if first in self.class_names else ""
        other = related.relative_to(self.root).as_posix() if related else ""
        return Finding(file, name, kind, min(max(score, 0.0), 1.0), suggestion, other, detail, action)

    def unreadable(self, bad: BadPhoto) -> Finding:
        return self.about(bad.path, "unreadable", detail=bad.reason, action=QUARANTINE)

    def not_listed(self, path: Path) -> Finding:
        if path.parent in self.folders:
            return self.about(path, "not_listed", detail="lies outside the class folders")
        return self.about(path, "not_listed", detail=f"ending {path.suffix or '(none)'} is not listed")

    def looks(self, photo: Inspection, network_size: int) -> list[Finding]:
        found = []
        if photo.brightness < looks.DARK_BELOW:
            detail = f"its brightest parts are at {photo.brightness:.0%} of white"
            found.append(self.about(photo.path, "dark", 1 - photo.brightness, detail))
        if photo.contrast < looks.BLANK_BELOW:
            detail = f"grey values spread by {photo.contrast:.1f} of 255"
            found.append(self.about(photo.path, "blank", 1 - photo.contrast / 255, detail))
        elif photo.sharpness < looks.BLURRY_BELOW:
            detail = f"sharpness {photo.sharpness:.2f}, a sharp photo has 0.4 and more"
            found.append(self.about(photo.path, "blurry", 1 - photo.sharpness, detail))
        short = min(photo.size)
        if 2 * short < network_size:
            detail = f"{photo.size[1]} x {photo.size[0]} pixels, the network sees {network_size} x {network_size}"
            found.append(self.about(photo.path, "tiny", 1 - short / network_size, detail))
        if photo.oddities:
            found.append(self.about(photo.path, "odd_file", len(photo.oddities) / 4, "; ".join(photo.oddities)))
        return found

    def duplicate(self, pair: Pair, sets_of_photos: np.ndarray, straddling: np.ndarray) -> Finding:
        first, second = self.photos[pair.first].path, self.photos[pair.second].path
        same_class = self.label_of[first] == self.label_of[second]
        said = ["mirrored"] if pair.mirrored else []
        if not same_class:
            said.append(f"in two classes: {self.class_names[self.label_of[first]]} too")
        one, other = sorted(int(sets_of_photos[row]) for row in (pair.first, pair.second))
        if one != other:
            said.append(f"one {DOES[one]}, the other {DOES[other]}")
        elif straddling[pair.second]:
            said.append("another of the same group is in another set")
        one_file = self.real[first] == self.real[second]
        if one_file:
            said.insert(0, "the same file by a link")
        elif self.real[second] in self.linked_to:
            said.append("a link leads to this file")
        # A second copy in the same class is useless, so it is marked. If the copies are in two classes, a person has to
        # choose the label. The target of a link is not marked either: moving it would break the link.
        action = QUARANTINE if pair.exact and same_class and self.real[second] not in self.linked_to else ""
        kind = "exact_duplicate" if pair.exact else "near_duplicate"
        score = pair.likeness if same_class else 1.0
        return self.about(second, kind, score, "; ".join(said), "", first, action)

    def suspects(self, suspects: Suspects) -> list[Finding]:
        count = len(self.photos)
        rank = np.empty(count, int)
        rank[np.argsort(-suspects.suspicion, kind="stable")] = np.arange(count)
        found = []
        for row in np.flatnonzero(suspects.listed):
            photo = self.photos[row]
            own = self.label_of[photo.path]
            said = []
            if not np.isnan(suspects.probability[row]):
                said.append(f"{suspects.probability[row]:.0%} {self.class_names[own]}")
            other = int(suspects.likeliest[row])
            suggestion = self.class_names[other] if other != own else ""
            if suspects.outlying[row] > 2:
                said.append("unlike most of its class")
            found.append(self.about(photo.path, "suspect", 1 - rank[row] / count, ", ".join(said), suggestion))
        return found

    def groups(self, groups: np.ndarray, distances: np.ndarray, labels: np.ndarray) -> list[Finding]:
        found = []
        for label in np.unique(labels):
            of_class = labels == label
            parts = int(groups[of_class].max()) + 1
            if parts < 2:
                continue
            for group in range(parts):
                rows = np.flatnonzero(of_class & (groups == group))
                photos = "1 photo" if len(rows) == 1 else f"{len(rows)} photos"
                detail = f"group {group + 1} of {parts} in {self.class_names[label]}: {photos}"
                # the most typical of a group first; small groups before large ones
                for place, row in enumerate(rows[np.argsort(distances[rows], kind="stable")]):
                    score = (1 - len(rows) / of_class.sum()) * (1 - place / len(rows) / 1000)
                    found.append(self.about(self.photos[row].path, "group", score, detail))
        return found

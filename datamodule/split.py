"""Which file is in which set: the split of Keras's `flow_from_directory`, with the same files in the same order.

Source mirrored: `keras/src/legacy/preprocessing/image.py` (`DirectoryIterator`, `_iter_valid_files`,
`_list_valid_filenames_in_directory`), Keras 3.15; `keras.preprocessing.image` of tf.keras 2 lists the same files.
"""

import os
from collections import Counter
from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from models.bad_input import BadInput, some_of
from models.choices import FORMAT_ENDINGS, Formats

BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"II*\0", b"MM\0*", b"P6", b"P5", b"BM")
"""First bytes of photos; WebP and AVIF have theirs a little further on."""

JUNK_FOLDERS = {
    "__macosx", "__pycache__", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found",
}  # fmt: skip
"""Folders that archivers, storage boxes and systems make, in lower case. Hidden ones are recognised by their dot."""


class LabelledFiles(NamedTuple):
    """Photos and their labels, in the same order.

    Attributes:
        files: paths, in Keras's order.
        labels: for each file, the index of its class in the sorted class names; -1 where it has none.
    """

    files: list[Path]
    labels: list[int]

    def of_rows(self, rows: Iterable[int]) -> "LabelledFiles":
        """Return some of them."""
        rows = list(rows)
        return LabelledFiles([self.files[row] for row in rows], [self.labels[row] for row in rows])

    @property
    def labelled(self) -> "LabelledFiles":
        """Those that have a label."""
        return self.of_rows(row for row, label in enumerate(self.labels) if label >= 0)


def find_class_names(root: Path) -> list[str]:
    """Return the names of the folders in `root`, including links to folders, sorted by code point (not by locale).

    Hidden folders are classes too, as in Keras.
    """
    return sorted(entry.name for entry in os.scandir(root) if entry.is_dir())


def list_photos(folder: Path, formats: Formats = "keras") -> list[Path]:
    """List the photos in `folder` and the folders below it, in Keras's order.

    Folders are ordered by their whole path as a string, files by name within each. Links to files are listed; links
    to folders are not followed (`follow_links=False`), except that `folder` itself may be one.
    """
    return list(each_photo(folder, formats))


def each_photo(folder: Path, formats: Formats = "keras") -> Iterator[Path]:
    """Yield what `list_photos` lists, with only one folder's names in memory, however many photos there are."""
    # os.walk and not Path.walk or glob: it yields exactly the files that Keras sees, including broken links.
    for parent in sorted(entry[0] for entry in os.walk(folder, followlinks=False)):
        # a folder that was deleted meanwhile has no photos
        _, _, names = next(os.walk(parent), (parent, [], []))
        yield from (Path(parent, name) for name in sorted(names) if is_listed(parent, name, formats))


def is_listed(parent: str, name: str, formats: Formats) -> bool:
    """Return whether a file is listed as a photo: by its ending, or without one by its first bytes if not as in Keras.

    Args:
        parent: path of its folder.
        name: its name.
        formats: which endings count.
    """
    if name.lower().endswith(FORMAT_ENDINGS[formats]):
        return True
    return formats != "keras" and "." not in name and _begins_as_photo(Path(parent, name))


def _begins_as_photo(file: Path) -> bool:
    try:
        if not file.is_file():  # a pipe may never end
            return False
        with file.open("rb") as content:
            start = content.read(16)
    except OSError:
        return False
    return start.startswith(BEGINNINGS) or start[8:12] == b"WEBP" or start[4:12] == b"ftypavif"


def is_junk_folder(name: str) -> bool:
    """Return whether a folder of this name is hidden, or one that programs make."""
    return name.startswith(".") or name.lower() in JUNK_FOLDERS


def count_unlisted(folder: Path, but: Container[Path] = (), formats: Formats = "keras") -> Counter[str]:
    """Count, by extension, the files below `folder` that are not listed as photos; hidden files are not counted.

    Nor are those in folders that programs leave.

    Args:
        folder: searched at any depth.
        but: resolved paths that are not counted either.
        formats: which files are listed.
    """
    counts: Counter[str] = Counter()
    for parent, folders, names in os.walk(folder, followlinks=False):
        folders[:] = [name for name in folders if not is_junk_folder(name)]
        others = (Path(parent, name) for name in names if not name.startswith("."))
        counts.update(
            other.suffix.lower() or "without ending"
            for other in others
            if not is_listed(parent, other.name, formats) and other.resolve() not in but
        )
    return counts


def unlisted(folder: Path, but: Container[Path] = (), formats: Formats = "keras") -> str:
    """Return `count_unlisted` as text, such as "3 .webp, 1 .txt"; empty if there are none."""
    return described_counts(count_unlisted(folder, but, formats))


def described_counts(by_ending: Counter[str]) -> str:
    """Return counts of files by their extension as text, such as "3 .webp, 1 .txt"; empty if there are none."""
    counts = sorted(by_ending.items(), key=lambda item: (-item[1], item[0]))
    return some_of([f"{count} {extension}" for extension, count in counts], 10)


def list_classes(root: Path, class_names: list[str]) -> list[list[Path]]:
    """List the photos of each class, in the order of `class_names`."""
    return [list_photos(root / name) for name in class_names]


def label_all(classes: list[list[Path]]) -> LabelledFiles:
    """Put every file of every class in one set, class after class."""
    return LabelledFiles(
        [file for files in classes for file in files],
        [label for label, files in enumerate(classes) for _ in files],
    )


def keras_split(classes: list[list[Path]], validation_split: float) -> tuple[LabelledFiles, LabelledFiles]:
    """Split each class as Keras does: the *first* `int(validation_split * n)` files validate, the rest train.

    Files with neighbouring names are often near-duplicates (scraped or burst photos), so this split may put copies of
    one photo into both sets. It is offered because the old training used it. `grouped_split` avoids this.

    Args:
        classes: the files of each class, in Keras's order (`list_classes`).
        validation_split: share of each class that validates, strictly between 0 and 1.

    Returns:
        The training set and the validation set (Keras's `subset="training"` and `subset="validation"`).
    """
    held_out = [int(validation_split * len(files)) for files in classes]
    training = [files[count:] for files, count in zip(classes, held_out, strict=True)]
    validation = [files[:count] for files, count in zip(classes, held_out, strict=True)]
    return label_all(training), label_all(validation)


def stratified_split(
    classes: list[list[Path]], validation_split: float, seed: int
) -> tuple[LabelledFiles, LabelledFiles]:
    """Split each class at random: as many files per class as `keras_split`, drawn by `seed`.

    Args:
        classes: the files of each class (`list_classes`).
        validation_split: share of each class that validates, strictly between 0 and 1.
        seed: the same seed gives the same split for the same files.

    Returns:
        The training set and the validation set; within each the files keep their order.
    """
    training, validation = [], []
    for label, files in enumerate(classes):
        order = np.random.default_rng([seed, label]).permutation(len(files))
        held_out = set(order[: int(validation_split * len(files))].tolist())
        validation.append([file for row, file in enumerate(files) if row in held_out])
        training.append([file for row, file in enumerate(files) if row not in held_out])
    return label_all(training), label_all(validation)


def grouped_split(
    classes: list[list[Path]], groups: list[int], validation_split: float, seed: int
) -> tuple[LabelledFiles, LabelledFiles]:
    """Split each class at random, near-duplicates together, with counts as close to `keras_split`'s as possible.

    A group that spans several classes (often one photo that was filed twice) stays in the training set, because its
    label is uncertain.

    Args:
        classes: the files of each class (`list_classes`).
        groups: for each file, class after class, the number of its group (`group_near_duplicates`).
        validation_split: share of each class that validates, strictly between 0 and 1.
        seed: the same seed gives the same split for the same files and groups.

    Returns:
        The training set and the validation set; within each the files keep their order.

    Raises:
        BadInput: a class has no group that could be held out as a whole.
    """
    labels = label_all(classes).labels
    classes_of_group: dict[int, set[int]] = {}
    for group, label in zip(groups, labels, strict=True):
        classes_of_group.setdefault(group, set()).add(label)
    training, validation = [], []
    start = 0
    for label, files in enumerate(classes):
        groups_of_files = groups[start : start + len(files)]
        start += len(files)
        sizes = Counter(group for group in groups_of_files if len(classes_of_group[group]) == 1)
        movable = list(sizes)  # in the order of their first files
        np.random.default_rng([seed, label]).shuffle(movable)
        wanted = int(validation_split * len(files))
        chosen = choose_closest([sizes[group] for group in movable], wanted, len(files) - 1)
        if chosen is None:
            raise BadInput(
                f"split: expected, with `grouped`, photos in the class of {files[0]} that differ enough to hold some "
                f"out; received {len(files)} that are all near-duplicates of each other or of photos in other classes. "
                "Remove copies, give val_root, or use --data.split stratified."
            )
        held_out = {movable[row] for row in chosen}
        validation.append([file for file, group in zip(files, groups_of_files, strict=True) if group in held_out])
        training.append([file for file, group in zip(files, groups_of_files, strict=True) if group not in held_out])
    return label_all(training), label_all(validation)


def choose_closest(sizes: list[int], wanted: int, most: int) -> list[int] | None:
    """Choose some of `sizes` whose sum, from 1 to `most`, is as close to `wanted` as possible.

    The choice uses the shortest possible beginning of the list, so a shuffled list gives a random choice.

    Returns:
        Indices into `sizes`; None if no choice is possible.
    """
    # Bit n of reachable[k]: some of the first k sizes add up to n.
    reachable = [1]
    for size in sizes:
        reachable.append(reachable[-1] | reachable[-1] << size)
    sums = [total for total in range(1, most + 1) if reachable[-1] >> total & 1]
    if not sums:
        return None
    left = min(sums, key=lambda total: (abs(total - wanted), total))
    chosen = []
    for row in reversed(range(len(sizes))):
        if not reachable[row] >> left & 1:
            chosen.append(row)
            left -= sizes[row]
    return chosen

"""Which photos are in which set: listed in class folders or by a table, and split."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from datamodule.layout import Listing, count_in_junk_folders, describe_junk, what_else, without_junk
from datamodule.near_duplicates import group_near_duplicates
from datamodule.photo_batches import SetName
from datamodule.photo_settings import show_progress
from datamodule.sources.photo_table import PhotoTable, TableSet
from datamodule.sources.roots import check_folder
from datamodule.split import (
    LabelledFiles,
    grouped_split,
    keras_split,
    label_all,
    list_photos,
    stratified_split,
    unlisted,
)
from models.bad_input import BadInput, quoted, some_of
from models.choices import FORMAT_ENDINGS, Formats

Split = Literal["keras", "stratified", "grouped"]
"""How a share of the training photos is held out."""


class Places(NamedTuple):
    """Where the photos are.

    Attributes:
        root: folder of the training photos, or of the table's.
        val_root: folder of the validation photos, or None; likewise the next two.
        test_root: likewise.
        predict_root: likewise.
        table: says which photos there are, in place of `root`.
        unlabelled: folder of photos that are trained on without a label, or None.
    """

    root: Path
    val_root: Path | None = None
    test_root: Path | None = None
    predict_root: Path | None = None
    table: PhotoTable | None = None
    unlabelled: Path | None = None


class PhotoSets:
    """Lists the photos of each set, anew with every call.

    Args:
        places: where they are.
        class_names: in the order of the labels.
        listing: as `ProductPhotos` has it; likewise the others.
        formats: likewise.
        split: likewise.
        validation_split: likewise.
        seed: likewise.
    """

    def __init__(
        self,
        places: Places,
        class_names: list[str],
        listing: Listing,
        formats: Formats,
        split: Split,
        validation_split: float,
        seed: int,
    ) -> None:
        self.root, self.val_root, self.test_root, self.predict_root, self.table, self.unlabelled = places
        self.class_names = class_names
        self.listing = listing
        self.formats = formats
        self.split = split
        self.validation_split = validation_split
        self.seed = seed
        self._said: set[str] = set()
        self._grouped_files: list[Path] = []
        self._groups: list[int] = []

    @property
    def has_validation_photos(self) -> bool:
        """Whether there are photos of their own for validation; otherwise a share of the training photos is."""
        return self.val_root is not None or (self.table is not None and "val" in self.table.classes)

    @property
    def has_test_photos(self) -> bool:
        """Whether there are photos of their own for testing; otherwise the validation photos are tested."""
        return self.test_root is not None or (self.table is not None and "test" in self.table.classes)

    def list_sets(self, wanted: Sequence[SetName]) -> dict[SetName, LabelledFiles]:
        """Return the photos of some sets, class after class; those without a label are the last to train on.

        Raises:
            BadInput: classes are empty or too small to split, or there are no photos to predict or without a label.
        """
        sets: dict[SetName, LabelledFiles] = {}
        if not self.has_validation_photos:
            training, validation = self._split_root("train" in wanted)
        else:
            training = label_all(self._classes_of("train")) if "train" in wanted else LabelledFiles([], [])
            validation = label_all(self._classes_of("val"))
        for name in wanted:
            if name == "train":
                sets[name] = training
                if self.unlabelled is not None:
                    others = self._photos_without_label("unlabelled", self.unlabelled)
                    sets[name] = LabelledFiles(training.files + others.files, training.labels + others.labels)
            elif name == "test" and self.has_test_photos:
                sets[name] = label_all(self._classes_of("test"))
            elif name == "predict" and self.predict_root is not None:
                sets[name] = self._photos_without_label("predict_root", self.predict_root)
            else:
                sets[name] = validation
        return sets

    def _photos_without_label(self, setting: str, folder: Path) -> LabelledFiles:
        """List a folder's photos, at any depth, with -1 for a label."""
        files = self._photos_in(folder, Counter())
        if not files:
            raise BadInput(
                f"{setting}: expected photos; received {folder}, which has none that ends in "
                f"{self._endings()}{what_else(folder, self.formats)}. Point it at the folder that has them, "
                f"{self._other_formats()}or convert photos with other endings."
            )
        return LabelledFiles(files, [-1] * len(files))

    def _classes_of(self, name: TableSet, training: bool = True) -> list[list[Path]]:
        """List the photos of a set per class; not to train on them, some classes are enough."""
        setting, root = {
            "train": ("root", self.root), "val": ("val_root", self.val_root), "test": ("test_root", self.test_root),
        }[name]  # fmt: skip
        if self.table is not None and name in self.table.classes:
            of_class = dict(zip(self.table.class_names, self.table.classes[name], strict=True))
            classes = [of_class.get(each, []) for each in self.class_names]
            self._check_classes(setting, self.table.file, classes, training)
            return classes
        assert root is not None
        return self._list_classes(setting, root, training)

    def _check_classes(self, setting: str, table: Path, classes: list[list[Path]], training: bool) -> None:
        empty = [name for name, files in zip(self.class_names, classes, strict=True) if not files]
        if empty and ((setting == "root" and training) or len(empty) == len(classes)):
            raise BadInput(
                f"class_names: expected photos of these classes in {table}; received none of {quoted(empty)}. Leave "
                "those names out, or add photos of them."
            )

    def _list_classes(self, setting: str, root: Path, training: bool = True) -> list[list[Path]]:
        """List the photos per class; every class must have some, but to validate and test any class has enough."""
        check_folder(setting, root)
        junk = count_in_junk_folders(root, self.formats) if self.listing == "checked" else Counter[str]()
        classes = [self._photos_in(root / name, junk) for name in self.class_names]
        empty = [name for name, files in zip(self.class_names, classes, strict=True) if not files]
        if empty and ((setting == "root" and training) or len(empty) == len(classes)):
            found = [
                f"{name}{what_else(root / name, self.formats)}" if place < 20 else name
                for place, name in enumerate(empty)
            ]
            raise BadInput(
                f"{setting}: expected photos ({self._endings()}) in every class folder of {root}; "
                f"received none in {some_of(found)}. "
                f"Put photos there, {self._other_formats()}convert those with other endings, or remove the folder"
                f"{' (some are hidden)' if any(name.startswith('.') for name in empty) else ''}."
            )
        left_out = []
        if junk:
            left_out.append(f"{describe_junk(junk)} (--data.listing keras takes them)")
        if others := unlisted(root, formats=self.formats):
            wider = self.formats == "keras" and others != unlisted(root, formats="web")
            remedy = " (--data.formats web takes more)" if wider else ""
            left_out.append(f"{self._not_listed()}: {others}{remedy}")
        if left_out and (said := f"{root}: left out {'; and '.join(left_out)}") not in self._said:
            self._said.add(said)  # the photos are listed again for every stage
            rank_zero_warn(said)
        return classes

    def _endings(self) -> str:
        names = FORMAT_ENDINGS[self.formats]
        return ", ".join(f".{name}" for name in names if name not in ("jpeg", "tiff"))

    def _not_listed(self) -> str:
        who = "Keras does not list as photos either" if self.formats == "keras" else "are not listed as photos"
        return f"files that {who}"

    def _other_formats(self) -> str:
        return "give --data.formats web if they are WebP and the like, " if self.formats == "keras" else ""

    def _photos_in(self, folder: Path, junk: Counter[str]) -> list[Path]:
        """List a folder's photos, and count in `junk` what is left out."""
        files = list_photos(folder, self.formats)
        return without_junk(files, folder, junk) if self.listing == "checked" else files

    def _split_root(self, training: bool = True) -> tuple[LabelledFiles, LabelledFiles]:
        classes = self._classes_of("train", training)
        too_small = [
            f"{name} ({len(files)})"
            for name, files in zip(self.class_names, classes, strict=True)
            if int(self.validation_split * len(files)) < 1 and files
        ]
        if too_small:
            raise BadInput(
                f"root: expected enough photos in each class to hold out a share of {self.validation_split} "
                f"(at least {int(np.ceil(1 / self.validation_split))}); received {some_of(too_small)}. "
                "Add photos, raise validation_split or give val_root."
            )
        if self.split == "stratified":
            return stratified_split(classes, self.validation_split, self.seed)
        if self.split == "grouped":
            return grouped_split(classes, self._group(label_all(classes).files), self.validation_split, self.seed)
        return keras_split(classes, self.validation_split)

    def _group(self, files: list[Path]) -> list[int]:
        """Group near-duplicates, which takes a while and so is done once for all stages."""
        if files != self._grouped_files:
            self._groups = group_near_duplicates(files, show_progress("comparing photos"))
            self._grouped_files = files
            if copies := len(files) - len(set(self._groups)):
                rank_zero_info(f"{copies} photos are near-duplicates of others; they stay in one set with them")
        return self._groups

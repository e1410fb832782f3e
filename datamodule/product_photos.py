"""The LightningDataModule: product photos in class folders, as batches on the device."""

import hashlib
import itertools
import os
import warnings
from pathlib import Path
from typing import Any, Literal, get_args

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader

from datamodule.augment import Augmentation, TransformParameters
from datamodule.demo_photos import DEMO_CLASSES, draw_catalogue
from datamodule.layout import Listing
from datamodule.photo_batches import PhotoBatch, PhotoSet, SetName, keep_batch
from datamodule.photo_order import EpochShuffle, OwnShare, ResumableLoader, even_batch_size, mix_seed
from datamodule.photo_sets import PhotoSets, Places, Split
from datamodule.photo_settings import fetched, parse_image_size, parse_loading, show_progress
from datamodule.photo_store import BadPhoto, PhotoStore, default_store_dir
from datamodule.sources.class_names import say_alike
from datamodule.sources.kaggle_photos import download_photos
from datamodule.sources.photo_table import PhotoTable
from datamodule.sources.roots import (
    ForeignClasses,
    check_class_names,
    check_folder,
    check_sets,
    check_sources,
    find_roots,
    read_class_names,
)
from datamodule.split import LabelledFiles
from models.bad_input import BadInput, quoted, some_lines_of, some_of
from models.choices import INTERPOLATIONS, DeepGrey, Formats, Interpolation

DEMO_ROOT = Path("runs/demo_photos")
MOST_NAMED = 20
"""How many photos that cannot be read a message names."""

SETS_OF_STAGE: dict[str | None, tuple[SetName, ...]] = {
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
    "predict": ("predict",),
    None: ("train", "val", "test", "predict"),
}


MOST_COPIES = 0.1
"""Share of the validation photos that may be training photos, too."""


class ProductPhotos(L.LightningDataModule):
    """Product photos in class folders, read as Keras's `flow_from_directory` reads them.

    `<root>/<class>/**/*.jpg` (or png, bmp, ppm, tif); classes are the sorted folder names. Every photo is decoded
    once, moves as uint8, and becomes float32 in [0, 1] on the device, where a whole batch is augmented at once.
    Batches arrive in the steps as (images float32 NCHW, shape (B, 3, H, W), [0, 1]; labels int64, shape (B,)); those
    for predicting as (images, indices into `predict_files`). NCHW is held channels-last in memory.

    Args:
        root: folder with one folder of photos per class; or one with sets (train beside valid or test) that each have
            the classes inside, which are then taken as they are. It names the classes, so every command needs it.
            As the other folders and the table it may be an address (s3://, gs://, hf://, zip://), fetched once.
        val_root: folder with the same class folders for validation; without it `validation_split` of `root` is held
            out.
        test_root: likewise for testing; without it the validation photos are tested.
        predict_root: any folder with photos, at any depth; without it the validation photos are predicted.
        unlabelled: any folder with photos, at any depth, that are trained on beside the others, but have no label: what
            a teacher says of them is learnt (`ProductClassifier`). Copies of the other photos are left out.
        image_size: height and width in pixels: one number, or two: [h, w] or "h,w". The aspect ratio is not kept.
        interpolation: how photos are resized; `nearest` is what `flow_from_directory` does unless told otherwise.
        batch_size: photos per batch (per process).
        epoch_photos: an epoch has at least so many photos: a smaller training set is gone through several times, each
            time augmented differently (timm's `--epoch-repeats`), so that it is not trained on for a few steps alone.
            By default each photo is in an epoch once.
        validation_split: share of every class that is held out, strictly between 0 and 1.
        split: `keras`: the first files of each class, as `flow_from_directory` holds them out; `stratified`: drawn by
            `seed`, as many; `grouped`: likewise, but near-duplicates stay together, and the counts come as near as
            that allows.
        augmentation: random changes of the training photos; none if not given.
        augment_validation: change the validation photos as well, as one ImageDataGenerator for both subsets does;
            there is then a second validation loader with the photos as they are (`val_sets`).
        on_bad_photo: `stop` with the names of unreadable photos, or `skip` them and say how many.
        num_workers: processes that put batches together. 0 is best: the photos are in memory already, and augmentation
            is done on the device.
        seed: of the stratified and the grouped split, the order and the augmentation.
        demo: draw a small catalogue (jeans, sofa, tshirt, tv) in `root`, or in runs/demo_photos, and use that.
        store_ram_share: decoded photos stay in memory up to this share of it, 0 to 1; more go to a mapped file, as all
            do where several processes train on this machine.
        store_dir: folder of that file, which is kept for the next run; by default in the user's cache folder.
        kaggle: owner/dataset on Kaggle, in place of `root`: downloaded once, by kagglehub into its cache.
        listing: `checked`: hidden folders and what Macs, notebooks and storage boxes leave are left out, with a line,
            and a root that has sets where classes belong is refused; `keras`: all that Keras lists.
        on_copies: what happens if more than a tenth of the validation photos are training photos, too, byte for byte:
            `stop`, or `warn`, as is done where they are fewer.
        table: a .csv, .tsv, .parquet or .jsonl with the labels, in place of `root`. Its rows that cannot be used are
            what `on_bad_photo` decides about, too.
        photos: folder that the table's file names are relative to; without it the table's own, or one beside it.
        file_column: the table's column of files, whose endings may be missing; without it the one that names photos.
        label_column: the table's column of labels; without it the only one that can be.
        set_column: the table's column of sets (train, validation, test); without it the one that says nothing else.
            "" for none: then the table is split as folders are.
        foreign_classes: what is done about validation and test photos of classes that are not trained on: `stop`, or
            `skip` them. They may lack classes.
        formats: which files are photos: `keras`: what Keras lists; `web`: WebP, AVIF, GIF and JFIF as well; `all`: all
            formats that are read. But for `keras`, files without an ending are looked at.
        background: colour that transparent photos are composed on, such as white or "#f0f0f0"; by default what is
            hidden under the transparency shows, often black, as in Keras.
        deep_grey: grey photos of 16 bits: `clip`, as Pillow and Keras do, or `scale` them to 8 bits.
        class_names: the classes in the order of the outputs, as `classes` of `flow_from_directory`; by default those
            of the folders or the table, sorted. `foreign_classes` decides about others, and `validate` and `test`,
            for which they are the checkpoint's, do with photos of some of them.

    Attributes:
        class_names: as given, or else the sorted names of the class folders.
        image_size: (height, width).
        interpolation: as given.
        val_sets: names of the validation loaders, in order: ["val"], or ["val", "val_clean"].
        train_files: and `val_files`, `test_files`, `predict_files`, `unlabelled_files`: paths, known after `setup`.
        train_labels: and `val_labels`, `test_labels`: class indices, known after `setup`.

    Raises:
        BadInput: a folder is missing or not laid out as said, or a setting is out of its range.
    """

    def __init__(
        self,
        root: str | None = None,
        val_root: str | None = None,
        test_root: str | None = None,
        predict_root: str | None = None,
        image_size: int | list[int] | str = 244,
        interpolation: Interpolation = "nearest",
        batch_size: int = 32,
        validation_split: float = 0.2,
        split: Split = "keras",
        augmentation: Augmentation | None = None,
        augment_validation: bool = False,
        on_bad_photo: Literal["stop", "skip"] = "stop",
        num_workers: int = 0,
        seed: int = 0,
        demo: bool = False,
        store_ram_share: float = 0.5,
        store_dir: str | None = None,
        kaggle: str | None = None,
        epoch_photos: int | None = None,
        listing: Listing = "checked",
        on_copies: Literal["stop", "warn"] = "stop",
        table: str | None = None,
        photos: str | None = None,
        file_column: str | None = None,
        label_column: str | None = None,
        set_column: str | None = None,
        foreign_classes: ForeignClasses = "stop",
        formats: Formats = "keras",
        background: str | None = None,
        deep_grey: DeepGrey = "clip",
        class_names: list[str] | None = None,
        unlabelled: str | None = None,
    ) -> None:
        super().__init__()
        self.image_size = parse_image_size(image_size)
        if interpolation not in INTERPOLATIONS:
            raise BadInput(f"interpolation: expected one of {', '.join(INTERPOLATIONS)}; received {interpolation!r}.")
        if batch_size < 1:
            raise BadInput(f"batch_size: expected 1 or more; received {batch_size}.")
        if epoch_photos is not None and epoch_photos < 1:
            raise BadInput(f"epoch_photos: expected 1 or more; received {epoch_photos}. Leave it out for each once.")
        if val_root is None and not 0 < validation_split < 1:
            raise BadInput(
                f"validation_split: expected a share strictly between 0 and 1; received {validation_split}. "
                "To validate on photos of their own, give val_root instead."
            )
        if not 0 <= store_ram_share <= 1:
            raise BadInput(
                f"store_ram_share: expected a share of the memory from 0 to 1; received {store_ram_share}. "
                "0 keeps all decoded photos in a file."
            )
        self.loading = parse_loading(background, deep_grey)
        self.background, self.deep_grey = self.loading
        check_sources(root, table, kaggle, demo)
        if table is None and (alone := [photos, file_column, label_column, set_column]) != [None] * 4:
            raise BadInput(
                f"photos, file_column, label_column, set_column: expected with a table; received "
                f"{next(each for each in alone if each is not None)!r} without one. Give it with --data.table FILE."
            )
        if kaggle is not None:
            root = str(download_photos(kaggle))
        cache = Path(store_dir) if store_dir is not None else default_store_dir()
        root, val_root, test_root, table, photos, unlabelled = (
            fetched(setting, place, cache)
            for setting, place in (
                ("root", root), ("val_root", val_root), ("test_root", test_root), ("table", table), ("photos", photos),
                ("unlabelled", unlabelled),
            )
        )  # fmt: skip
        self.val_root, self.test_root, self.predict_root, self.unlabelled = (
            None if folder is None else Path(folder) for folder in (val_root, test_root, predict_root, unlabelled)
        )
        self.interpolation = interpolation
        self.batch_size = batch_size
        self.epoch_photos = epoch_photos
        self.validation_split = validation_split
        self.split = split
        self.augmentation = augmentation
        self.augment_validation = augment_validation
        self.on_bad_photo = on_bad_photo
        self.num_workers = num_workers
        self.seed = seed
        self.demo = demo
        self.listing = listing
        self.on_copies = on_copies
        self.formats = formats

        self.table: PhotoTable | None = None
        if table is not None:
            fewest = 1 if val_root is not None else int(np.ceil(1 / validation_split))
            columns = file_column, label_column, set_column
            folder = None if photos is None else Path(photos)
            self.table = PhotoTable(Path(table), folder, *columns, on_bad_photo, fewest, foreign_classes, formats)
            check_sets(self.table, val_root, test_root)
            self.root = self.table.base
            said = self.table.said
        else:
            given = Path(root) if root is not None else DEMO_ROOT
            self.root, self.val_root, self.test_root, found = find_roots(given, self.val_root, self.test_root, listing)
            said = [found]
        found_names = (
            list(DEMO_CLASSES) if demo
            else self.table.class_names if self.table is not None
            else read_class_names("root", self.root, listing, fewest=2 if class_names is None else 1)
        )  # fmt: skip
        if self.table is None:
            said.append(say_alike(found_names))
        self.class_names = found_names if class_names is None else [str(name) for name in class_names]
        if class_names is not None:
            if len(self.class_names) < 2 or len({*self.class_names}) < len(self.class_names):
                raise BadInput(
                    f"class_names: expected two or more names, each once; received {quoted(self.class_names)}."
                )
            place = Path(table) if table is not None else self.root
            said.append(check_class_names("class_names", place, found_names, self.class_names, foreign_classes))
        for setting, folder in (("val_root", self.val_root), ("test_root", self.test_root)):
            if folder is not None:
                found_names = read_class_names(setting, folder, listing, fewest=1)
                said.append(check_class_names(setting, folder, found_names, self.class_names, foreign_classes))
        for sentence in filter(None, said):
            rank_zero_info(sentence)
        for setting, folder in (("predict_root", self.predict_root), ("unlabelled", self.unlabelled)):
            if folder is not None:
                check_folder(setting, folder)
        places = Places(self.root, self.val_root, self.test_root, self.predict_root, self.table, self.unlabelled)
        self.photo_sets = PhotoSets(places, self.class_names, listing, formats, split, validation_split, seed)
        self.val_sets: list[SetName] = ["val", "val_clean"] if augment_validation else ["val"]
        self.store = PhotoStore(
            self.image_size,
            interpolation,
            store_ram_share,
            None if store_dir is None else Path(store_dir),
            self.loading,
        )
        self._sets: dict[SetName, LabelledFiles] = {}
        self._named: set[Path] = set()
        self._drawn: dict[SetName, tuple[int, TransformParameters]] = {}
        self._order: EpochShuffle | None = None

    @property
    def has_validation_photos(self) -> bool:
        """Whether there are photos of their own for validation; otherwise a share of the training photos is."""
        return self.photo_sets.has_validation_photos

    @property
    def has_test_photos(self) -> bool:
        """Whether there are photos of their own for testing; otherwise the validation photos are tested."""
        return self.photo_sets.has_test_photos

    @property
    def train_files(self) -> list[Path]:
        """Training photos that have a label, class after class."""
        return self._set("train").labelled.files

    @property
    def train_labels(self) -> list[int]:
        """Index into `class_names` for each of `train_files`."""
        return self._set("train").labelled.labels

    @property
    def unlabelled_files(self) -> list[Path]:
        """Photos that are trained on without a label."""
        return [file for file, label in zip(*self._set("train"), strict=True) if label < 0]

    @property
    def val_files(self) -> list[Path]:
        """Validation photos, class after class."""
        return self._set("val").files

    @property
    def val_labels(self) -> list[int]:
        """Index into `class_names` for each of `val_files`."""
        return self._set("val").labels

    @property
    def test_files(self) -> list[Path]:
        """Test photos, class after class."""
        return self._set("test").files

    @property
    def test_labels(self) -> list[int]:
        """Index into `class_names` for each of `test_files`."""
        return self._set("test").labels

    @property
    def predict_files(self) -> list[Path]:
        """Photos to predict."""
        return self._set("predict").files

    def _set(self, name: SetName) -> LabelledFiles:
        if name not in self._sets:
            raise RuntimeError(f"the {name} photos are known after setup()")
        return self._sets[name]

    def prepare_data(self) -> None:
        """Draw the demo catalogue, where it is asked for and not there yet."""
        if self.demo:
            draw_catalogue(self.root)

    def setup(self, stage: str | None = None) -> None:
        """List the photos of a stage and decode those that are not decoded yet.

        After `fit` the other stages take its sets as they were, and the pixels that it decoded, even of files that have
        gone since.

        Args:
            stage: `fit`, `validate`, `test` or `predict`; None for all of them.

        Raises:
            BadInput: classes are empty or too small to split, or photos are unreadable and `on_bad_photo` is `stop`.
        """
        # Lightning's advice to use more workers does not fit here: no process could be faster than memory.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        wanted = SETS_OF_STAGE[stage]
        if stage == "fit" and self.has_test_photos:
            # a fit ends with the test: what is wrong with its photos must not wait till then
            wanted = (*wanted, "test")
        elif stage not in ("fit", None) and "train" in self._sets:
            # A fit's sets stay until the next fit: files may have gone by now, or come, and a split of those that are
            # left would measure photos that were trained on.
            own = {"test": self.has_test_photos, "predict": self.predict_root is not None}
            self._sets |= {name: self._sets["val"] for name in wanted if name in own and not own[name]}
            wanted = tuple(name for name in wanted if name not in self._sets)
            if not wanted:
                return
        listed = self.photo_sets.list_sets(wanted)
        if self.trainer is not None:  # Lightning starts processes itself, without torchrun's variables
            self.store.processes = max(self.store.processes, self.trainer.num_devices)
        bad_photos = self.store.add(
            [file for labelled in listed.values() for file in labelled.files], show_progress("decoding photos")
        )
        if bad_photos:
            listed = self._leave_out(bad_photos, listed)
        if "train" in listed and self.unlabelled is not None:
            listed["train"] = self._without_copies(listed)
        if "train" in listed and "val" in listed:
            training = listed["train"].labelled
            self._count_contradictions(training)
            self._count_copies(training.files, listed["val"].files)
        self._sets.update(listed)

    def _leave_out(
        self, bad_photos: list[BadPhoto], listed: dict[SetName, LabelledFiles]
    ) -> dict[SetName, LabelledFiles]:
        names = some_lines_of(bad_photos, MOST_NAMED)
        if self.on_bad_photo == "stop":
            raise BadInput(
                f"expected readable photos; received {len(bad_photos)} that cannot be read:\n{names}\n"
                "Mend or remove them (lightning audit lists all), or leave them out with --data.on_bad_photo skip."
            )
        bad_files = {bad.path for bad in bad_photos}
        if not bad_files <= self._named:  # they are met again at every stage
            self._named |= bad_files
            rank_zero_warn(f"left out {len(bad_photos)} photos that cannot be read:\n{names}")
        kept: dict[SetName, LabelledFiles] = {}
        for set_name, labelled in listed.items():
            rows = [row for row, file in enumerate(labelled.files) if file not in bad_files]
            kept[set_name] = labelled.of_rows(rows)
            lost = sorted(set(labelled.labels) - set(kept[set_name].labels))
            if lost:
                raise BadInput(
                    f"expected readable photos of every class; received none for "
                    f"{some_of([self.class_names[label] for label in lost if label >= 0]) or 'predicting'} "
                    f"among the {set_name} photos. Mend those that are named above, or remove the class."
                )
        return kept

    def _without_copies(self, listed: dict[SetName, LabelledFiles]) -> LabelledFiles:
        """The training photos, without those that have no label and are in a set with one, byte for byte."""
        seen = {self.store.digest_of(file) for labelled in listed.values() for file in labelled.labelled.files}
        training = listed["train"]
        kept = [
            row for row, (file, label) in enumerate(zip(*training, strict=True))
            if label >= 0 or self.store.digest_of(file) not in seen
        ]  # fmt: skip
        if len(kept) < len(training.files):
            rank_zero_info(
                f"{len(training.files) - len(kept)} of the unlabelled photos are labelled ones, too, byte for byte: "
                "they are left out"
            )
        return training.of_rows(kept)

    def _count_contradictions(self, training: LabelledFiles) -> None:
        first: dict[bytes, tuple[Path, int]] = {}
        pairs = [
            (file, other)
            for file, label in zip(*training, strict=True)
            for other, known in [first.setdefault(self.store.digest_of(file), (file, label))]
            if known != label
        ]
        if pairs:
            rank_zero_warn(
                f"{len(pairs)} of {len(training.files)} training photos are in another class, too, byte for byte, such "
                f"as {pairs[0][0]} and {pairs[0][1]}: one of the labels is wrong (lightning audit finds such photos)."
            )

    def _count_copies(self, training: list[Path], validation: list[Path]) -> None:
        first = {self.store.digest_of(file): file for file in reversed(training)}
        copies = [file for file in validation if self.store.digest_of(file) in first]
        if not copies:
            return
        found = (
            f"{len(copies)} of {len(validation)} validation photos are training photos, too, byte for byte, such as "
            f"{copies[0]} and {first[self.store.digest_of(copies[0])]}"
        )
        remedy = "Remove copies (lightning audit finds them)" + (
            ", or give other photos with --data.val_root" if self.val_root else ", or use --data.split grouped"
        )
        if self.on_copies == "stop" and len(copies) > MOST_COPIES * len(validation):
            raise BadInput(
                f"expected validation photos that are not trained on; received copies, which flatter the network: "
                f"{found}. {remedy}; --data.on_copies warn trains nevertheless."
            )
        rank_zero_warn(f"{found}, and flatter the network. {remedy}.")

    def train_dataloader(self) -> DataLoader:
        """Return the training loader: shuffled anew each epoch, the last batch may be smaller."""
        return self._loader("train")

    def val_dataloader(self) -> list[DataLoader]:
        """Return one loader for each of `val_sets`."""
        return [self._loader(name) for name in self.val_sets]

    def test_dataloader(self) -> DataLoader:
        """Return the test loader; its photos are never augmented."""
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader:
        """Return the loader of the photos to predict, in order."""
        return self._loader("predict")

    def _loader(self, name: SetName) -> DataLoader:
        photos = PhotoSet(name, self.store, self._set("val" if name == "val_clean" else name), self._repeats(name))
        processes, rank = self._processes()
        settings: dict[str, Any] = {
            "collate_fn": keep_batch,
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "pin_memory": torch.cuda.is_available(),
        }
        if name == "train":
            if (count := len(photos.files)) < processes:
                raise BadInput(
                    f"expected at least as many training photos as processes, {processes}; received {count}. "
                    "Give more photos or fewer devices."
                )
            self._order = EpochShuffle(photos, self.seed, self.batch_size, processes, rank)
            settings |= {"batch_size": self.batch_size, "sampler": self._order}
            return ResumableLoader(photos, self._epoch_that_begins, **settings)
        if processes == 1 or name == "predict":  # Lightning shares out what is predicted
            return DataLoader(photos, batch_size=self.batch_size, **settings)
        settings["batch_size"] = even_batch_size(len(photos), self.batch_size, processes)
        return DataLoader(photos, sampler=OwnShare(photos, processes, rank), **settings)

    def _repeats(self, name: SetName) -> int:
        """How many times each photo of a set is in an epoch."""
        if name != "train" or self.epoch_photos is None:
            return 1
        return -(-self.epoch_photos // len(self._set(name).files))

    def _processes(self) -> tuple[int, int]:
        """How many processes train together, and which of them this is."""
        return (1, 0) if self.trainer is None else (self.trainer.world_size, self.trainer.global_rank)

    def _epoch_that_begins(self) -> int | None:
        # As Lightning itself counts when it tells samplers; its `current_epoch` is one behind when a run is resumed.
        progress: Any = None if self.trainer is None else self.trainer.fit_loop.epoch_progress.current
        return None if progress is None else progress.processed

    def weight_of_share(self, step: int) -> float:
        """What the mean loss of this process counts for in a step of an epoch: 1 where all have as many photos."""
        return 1.0 if self._order is None else self._order.weight_of_share(step)

    def transfer_batch_to_device(self, batch: PhotoBatch, device: torch.device, dataloader_idx: int) -> PhotoBatch:
        """Move photos and labels. The indices are for the host: to ask a GPU for them is to wait for all it has to do.

        Args:
            batch: as a loader yields it.
            device: where it is to go.
            dataloader_idx: not needed.
        """
        photos, labels = super().transfer_batch_to_device((batch.photos, batch.labels), device, dataloader_idx)
        return batch._replace(photos=photos, labels=labels)

    def on_after_batch_transfer(self, batch: PhotoBatch, dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """Make the network's input of a batch that has arrived on the device.

        Args:
            batch: uint8 photos.
            dataloader_idx: not needed; the batch knows its set.

        Returns:
            images: float32, shape (B, 3, H, W), RGB, [0, 1], channels-last in memory.
            labels: int64, shape (B,); for predicting: indices into `predict_files`, on the host.
        """
        images = self._images_of(batch, 0 if self.trainer is None else self.trainer.current_epoch)
        if self.trainer is not None:
            # Lightning has converted the batch already, when it was uint8 (matters for precision 64-true, bf16-true).
            images = self.trainer.precision_plugin.convert_input(images)
        return images, batch.indices if batch.set_name == "predict" else batch.labels

    def training_batch(self, most: int) -> tuple[Tensor, Tensor]:
        """Return what the network was given first in training, to be looked at; nothing that training uses changes.

        Args:
            most: photos at most.

        Returns:
            images and labels of the first epoch's first photos, as `on_after_batch_transfer` gives them, on the host.
        """
        photos = PhotoSet("train", self.store, self._set("train"), self._repeats("train"))
        order = EpochShuffle(photos, self.seed, self.batch_size)
        batch = photos.__getitems__(list(itertools.islice(order, min(most, self.batch_size))))
        return self._images_of(batch, epoch=0), batch.labels

    def _images_of(self, batch: PhotoBatch, epoch: int) -> Tensor:
        """Return a batch's photos as float32, shape (B, 3, H, W), [0, 1], changed as they are in an epoch."""
        if self.augmentation is not None and self._augments(batch.set_name):
            images = self.augmentation.apply(batch.photos, self._parameters(batch.set_name, epoch)[batch.indices])
        else:
            images = batch.photos.float()  # new memory, as the augmentation's result is
        # Keras multiplies by the rounded 1/255 (`rescale=1/255`); a division would differ in the last bit.
        return images.mul_(1 / 255).permute(0, 3, 1, 2)

    def _augments(self, set_name: SetName) -> bool:
        return set_name == "train" or (set_name == "val" and self.augment_validation)

    def _parameters(self, set_name: SetName, epoch: int) -> TransformParameters:
        """Return an epoch's parameters, one row per photo of the set and time that it is in it.

        They are drawn for the whole set at once, so what happens to a photo depends on the seed, the epoch and its
        place in the list, and not on the batch size, the order, the rank or the number of workers.
        """
        drawn = self._drawn.get(set_name)
        if drawn is None or drawn[0] != epoch:
            assert self.augmentation is not None
            which = get_args(SetName).index(set_name)
            generator = torch.Generator().manual_seed(mix_seed(self.seed, epoch, which))
            count = len(self._set(set_name).files) * self._repeats(set_name)
            drawn = epoch, self.augmentation.draw_parameters(generator, count, *self.image_size)
            self._drawn[set_name] = drawn
        return drawn[1]

    def describe_sets(self) -> dict[str, dict[str, Any]]:
        """Return for each set that is set up how many photos it has, and the SHA-256 of their names and contents.

        The names are relative to the set's folder: the same photos elsewhere are the same.
        """
        return {name: {"photos": len(each.files), "sha256": self._digest(name)} for name, each in self._sets.items()}

    def _digest(self, name: SetName) -> str:
        roots = {"val": self.val_root, "test": self.test_root or self.val_root}
        digest = hashlib.sha256()
        for file, label in zip(*self._set(name), strict=True):
            without_label = self.predict_root if name == "predict" else self.unlabelled
            root = (roots.get(name) if label >= 0 else without_label) or self.root
            if self.table is not None and label >= 0:  # of a folder the name says it
                digest.update(self.class_names[label].encode() + b"\0")
            relative = file.relative_to(root) if file.is_relative_to(root) else file
            digest.update(os.fsencode(relative.as_posix()) + b"\0" + self.store.digest_of(file))
        return digest.hexdigest()

    def photos_of(self, files: list[Path]) -> np.ndarray:
        """Return the pixels of files, decoding those that no set has; the others need not be there any more.

        Returns:
            uint8, shape (N, H, W, 3), RGB, 0..255.

        Raises:
            BadInput: some cannot be read.
        """
        bad_photos = self.store.add(file for file in files if file not in self.store)
        if bad_photos:
            names = some_lines_of(bad_photos, MOST_NAMED)
            raise BadInput(f"expected readable photos; received:\n{names}\nMend or remove them.")
        return self.store.photos_of(files)

"""The photos of one set as the loader sees them: whole batches, fetched at once."""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodule.photo_store import PhotoStore
from datamodule.split import LabelledFiles

SetName = Literal["train", "val", "val_clean", "test", "predict"]


class PhotoBatch(NamedTuple):
    """What a loader yields and what moves to the device.

    Attributes:
        photos: uint8, shape (B, H, W, 3), RGB, 0..255.
        labels: int64, shape (B,); -1 where there are none.
        indices: int64, shape (B,), rows of the set's list of files; stays on the host.
        set_name: which set this is; decides about augmentation.
    """

    photos: Tensor
    labels: Tensor
    indices: Tensor
    set_name: SetName


class PhotoSet(Dataset):
    """The photos of one set, fetched a whole batch at a time.

    Args:
        name: the set's name, copied into every batch.
        store: holds all of `labelled.files`.
        labelled: the files and their labels.
        repeats: how many times each photo is in the set: photo i is at i, N + i, 2 N + i, ... of N photos.
    """

    def __init__(self, name: SetName, store: PhotoStore, labelled: LabelledFiles, repeats: int = 1) -> None:
        self.name = name
        self.store = store
        self.files = labelled.files
        self.labels = torch.tensor(labelled.labels, dtype=torch.int64)
        self.repeats = repeats

    def __len__(self) -> int:
        return len(self.files) * self.repeats

    def __getitem__(self, index: int) -> PhotoBatch:
        """Return one photo as a batch of one."""
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> PhotoBatch:
        """Return a batch: the loader calls this once per batch, so nothing has to be collated afterwards."""
        places = torch.tensor(indices, dtype=torch.int64)
        rows = places % len(self.files)
        photos = torch.from_numpy(self.store.photos_of([self.files[row] for row in rows.tolist()]))
        return PhotoBatch(photos, self.labels[rows], places, self.name)


def keep_batch(batch: Any) -> Any:
    """Collate nothing: `PhotoSet` gives whole batches."""
    return batch

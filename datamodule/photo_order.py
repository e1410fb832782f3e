"""Which photos come in which batch: the same whatever the number of processes, and from any batch on."""

import itertools
from collections.abc import Callable, Iterator, Sized
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, DistributedSampler

from models.bad_input import BadInput


def mix_seed(*numbers: int) -> int:
    """Make one well-mixed seed of several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


class EpochShuffle(DistributedSampler):
    """A random order that depends on the seed and the epoch alone, dealt out to the processes of a training.

    A resumed run continues in it as it would have. Several processes share each step: together they see in step j the
    photos that one process with all their batches as its batch size sees, so the weights come out the same. The last
    step of an epoch is smaller: its photos are shared out as evenly as they can be (`weight_of_share`), and where there
    are fewer than processes they wait for another epoch, since no process can do without.

    A DistributedSampler by name, which Lightning leaves alone: its own has photos twice where they do not divide.

    Args:
        data_source: the photos.
        seed: of the order.
        batch_size: photos of a step, per process.
        processes: how many share the steps.
        rank: which of them this is, from 0.

    Attributes:
        first: how many of this process's photos the next pass leaves out at the beginning; 0 again after it.
    """

    def __init__(self, data_source: Sized, seed: int, batch_size: int = 1, processes: int = 1, rank: int = 0) -> None:
        super().__init__(data_source, num_replicas=processes, rank=rank, seed=seed)  # type: ignore[arg-type]
        self.photos = len(data_source)
        self.batch_size = batch_size
        self.first = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next; Lightning calls it."""
        self.epoch = epoch

    def _share(self, step: int) -> tuple[int, int, int]:
        """Places in the order where a step's own photos begin and end, and how many all processes have in it."""
        start = step * self.batch_size * self.num_replicas
        together = min(self.batch_size * self.num_replicas, self.photos - start)
        if together < self.num_replicas:
            together = 0
        begin, end = (start + (self.rank + more) * together // self.num_replicas for more in (0, 1))
        return begin, end, together

    @property
    def _steps(self) -> int:
        return -(-self.photos // (self.batch_size * self.num_replicas))

    def weight_of_share(self, step: int) -> float:
        """What a mean over this process's photos of a step counts for, where the processes' means are averaged."""
        begin, end, together = self._share(step)
        return (end - begin) * self.num_replicas / together

    def __len__(self) -> int:
        begin, end, _ = self._share(self._steps - 1)
        return (self._steps - 1) * self.batch_size + end - begin

    def __iter__(self) -> Iterator[int]:
        first, self.first = self.first, 0
        generator = torch.Generator().manual_seed(mix_seed(self.seed, self.epoch))
        order = torch.randperm(self.photos, generator=generator).tolist()
        shares = (order[slice(*self._share(step)[:2])] for step in range(self._steps))
        return itertools.islice(itertools.chain.from_iterable(shares), first, None)


class OwnShare(DistributedSampler):
    """This process's part of photos that are measured: each photo is in exactly one, so no figure counts one twice.

    Args:
        data_source: the photos.
        processes: how many share them.
        rank: which of them this is, from 0.

    Raises:
        BadInput: there are fewer photos than processes.
    """

    def __init__(self, data_source: Sized, processes: int, rank: int) -> None:
        super().__init__(data_source, num_replicas=processes, rank=rank, shuffle=False)  # type: ignore[arg-type]
        if len(data_source) < processes:
            raise BadInput(
                f"expected at least as many photos to measure as processes, {processes}; received {len(data_source)}. "
                "Give more photos or fewer devices."
            )
        self._own = range(*((rank + more) * len(data_source) // processes for more in (0, 1)))

    def __len__(self) -> int:
        return len(self._own)

    def __iter__(self) -> Iterator[int]:
        return iter(self._own)


def even_batch_size(photos: int, batch_size: int, processes: int) -> int:
    """Return the smallest batch size from `batch_size` on with which all processes have as many batches.

    Shares differ by a photo at most. Where a batch begins with the one that some have more, these would wait for the
    others in a batch that does not come.
    """
    share = photos // processes
    if photos % processes == 0:
        return batch_size
    return next(size for size in itertools.count(batch_size) if share % size)


class ResumableLoader(DataLoader):
    """A loader of training photos that can go on in the middle of an epoch.

    Lightning keeps `state_dict()` in checkpoints, and gives it back before the first batch.

    Args:
        dataset: as in DataLoader.
        epoch: tells which epoch begins, or None where nobody knows. Lightning says it too late, when a run is resumed,
            to a loader whose workers fetch ahead.
        settings: of DataLoader.
    """

    def __init__(self, dataset: Any, epoch: Callable[[], int | None] = lambda: None, **settings: Any) -> None:
        super().__init__(dataset, **settings)
        self.epoch = epoch
        self._given = self._next_begins_at = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        self._given, self._next_begins_at = self._next_begins_at, 0
        order = self.sampler
        if isinstance(order, EpochShuffle):  # Lightning puts another in its place for `overfit_batches`
            if (epoch := self.epoch()) is not None:
                order.set_epoch(epoch)
            order.first = self._given * order.batch_size
        for batch in super().__iter__():
            self._given += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """How many batches of the epoch have been given out, and what they were made with."""
        return {
            "batches": self._given,
            "photos": len(self.dataset),  # type: ignore[arg-type]
            "batch_size": self.batch_size or 1,
            "processes": getattr(self.sampler, "num_replicas", 1),
        }

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Let the next pass begin where the one that is described here was.

        Raises:
            BadInput: its batches were others.
        """
        now = self.state_dict()
        for what in ("photos", "batch_size", "processes"):
            if state_dict[what] != now[what]:
                raise BadInput(
                    f"expected to go on in the middle of an epoch with as many {what} as it began with, "
                    f"{state_dict[what]}; received {now[what]}. Give what the run had, or begin a new one."
                )
        self._next_begins_at = state_dict["batches"] % len(self)

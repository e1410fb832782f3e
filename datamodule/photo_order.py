"""Which photo is in which batch. It does not depend on the number of processes, and can continue at any batch."""

import itertools
from collections.abc import Callable, Iterator, Sized
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, DistributedSampler

from models.bad_input import BadInput


def mix_seed(*numbers: int) -> int:
    """Mix several numbers into one seed."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


class EpochShuffle(DistributedSampler):
    """A random order that depends only on the seed and the epoch, divided among the processes of a training.

    So a resumed run continues in the same order. Several processes share each step: together they see in step j the
    same photos as a single process whose batch size is the sum of theirs, so the weights come out the same. The last
    step of an epoch may be smaller: its photos are divided as evenly as possible (`weight_of_share`). If there are
    fewer photos left than processes, that step is left out, because every process needs at least one photo.

    It is a DistributedSampler so that Lightning does not replace it by its own, which repeats photos if their number
    cannot be divided evenly.

    Args:
        data_source: the photos.
        seed: for the order.
        batch_size: photos per step and process.
        processes: how many share the steps.
        rank: index of this process, from 0.

    Attributes:
        first: how many of this process's photos the next pass skips at the beginning; then it is 0 again.
    """

    def __init__(self, data_source: Sized, seed: int, batch_size: int = 1, processes: int = 1, rank: int = 0) -> None:
        super().__init__(data_source, num_replicas=processes, rank=rank, seed=seed)  # type: ignore[arg-type]
        self.photos = len(data_source)
        self.batch_size = batch_size
        self.first = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that comes next, which determines the order; Lightning calls this."""
        self.epoch = epoch

    def _share(self, step: int) -> tuple[int, int, int]:
        """Return where this process's photos of a step begin and end in the order, and how many all processes have."""
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
        """Return the weight of this process's mean over a step when the means of all processes are averaged."""
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
    """This process's part of the photos to measure. Each photo is in exactly one part, so none is counted twice.

    Args:
        data_source: the photos.
        processes: how many share them.
        rank: index of this process, from 0.

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
    """Return the smallest batch size, at least `batch_size`, with which all processes have the same number of batches.

    The parts of two processes differ by one photo at most. If that photo were alone in a batch, the processes that have
    it would wait forever for the others.
    """
    share = photos // processes
    if photos % processes == 0:
        return batch_size
    return next(size for size in itertools.count(batch_size) if share % size)


class ResumableLoader(DataLoader):
    """A loader of training photos that can continue in the middle of an epoch.

    Lightning saves `state_dict()` in checkpoints, and loads it before the first batch.

    Args:
        dataset: as in DataLoader.
        epoch: returns the number of the epoch that begins, or None if it is not known. When a run is resumed, Lightning
            sets the epoch too late for a loader whose workers fetch ahead.
        settings: further arguments of DataLoader.
    """

    def __init__(self, dataset: Any, epoch: Callable[[], int | None] = lambda: None, **settings: Any) -> None:
        super().__init__(dataset, **settings)
        self.epoch = epoch
        self._given = self._next_begins_at = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        self._given, self._next_begins_at = self._next_begins_at, 0
        order = self.sampler
        if isinstance(order, EpochShuffle):  # Lightning replaces it by another sampler for `overfit_batches`
            if (epoch := self.epoch()) is not None:
                order.set_epoch(epoch)
            order.first = self._given * order.batch_size
        for batch in super().__iter__():
            self._given += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return how many batches of the epoch have been delivered, and the settings they depend on."""
        return {
            "batches": self._given,
            "photos": len(self.dataset),  # type: ignore[arg-type]
            "batch_size": self.batch_size or 1,
            "processes": getattr(self.sampler, "num_replicas", 1),
        }

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Let the next pass begin where the saved one stopped.

        Raises:
            BadInput: the saved pass had other batches.
        """
        now = self.state_dict()
        for what in ("photos", "batch_size", "processes"):
            if state_dict[what] != now[what]:
                raise BadInput(
                    f"expected to go on in the middle of an epoch with as many {what} as it began with, "
                    f"{state_dict[what]}; received {now[what]}. Give what the run had, or begin a new one."
                )
        self._next_begins_at = state_dict["batches"] % len(self)

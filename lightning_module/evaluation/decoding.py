"""Decodes photos batch by batch on all cores, while the batch before is computed."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np

from datamodule.photo_store import BadPhoto, load_photo
from lightning_module.evaluation.labellers import Labeller
from models.cores import usable_cores


def in_batches(files: Iterator[Path | BadPhoto], batch_size: int) -> Iterator[list[Path | BadPhoto]]:
    """Yield as many photos at once; the last may be fewer."""
    return iter(lambda: list(islice(files, batch_size)), [])


def decoded(
    batches: Iterable[Sequence[Path | BadPhoto]], labeller: Labeller, threads: int | None = None
) -> Iterator[list[tuple[Path, np.ndarray | BadPhoto]]]:
    """Decode photos batch by batch, only one batch ahead.

    Args:
        batches: paths, and what was named but cannot be one, which counts as a file that cannot be read.
        labeller: says how photos are loaded.
        threads: how many photos are decoded at once; None for as many as there are cores.

    Yields:
        For each file of a batch, in order, its pixels, uint8 (H, W, 3), or why it cannot be read.
    """
    coming = iter(batches)
    with ThreadPoolExecutor(threads or usable_cores()) as pool:

        def load(file: Path | BadPhoto) -> np.ndarray | BadPhoto:
            if isinstance(file, BadPhoto):
                return file
            try:
                return load_photo(file, labeller.image_size, labeller.interpolation, labeller.loading)
            except BadPhoto as error:
                return error

        def begin() -> list[tuple[Path, Future[np.ndarray | BadPhoto]]]:
            return [
                (each.path if isinstance(each, BadPhoto) else each, pool.submit(load, each))
                for each in next(coming, ())
            ]

        ahead = begin()
        while ahead:
            here, ahead = ahead, begin()
            yield [(file, result.result()) for file, result in here]

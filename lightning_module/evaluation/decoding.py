"""Decodes photos batch by batch on all cores, while the batch before is computed."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np

from datamodule.photo_store import BadPhoto, load_photo
from datamodule.sources.remote_photos import Address, read_address
from lightning_module.evaluation.labellers import Labeller
from models.cores import usable_cores

Found = Path | Address | BadPhoto
"""A photo's path or address, or what was named but cannot be one."""


def in_batches(files: Iterator[Found], batch_size: int) -> Iterator[list[Found]]:
    """Yield as many photos at once; the last may be fewer."""
    return iter(lambda: list(islice(files, batch_size)), [])


def decoded(
    batches: Iterable[Sequence[Found]], labeller: Labeller, threads: int | None = None
) -> Iterator[list[tuple[Path | str, np.ndarray | BadPhoto]]]:
    """Decode photos batch by batch, only one batch ahead.

    Args:
        batches: photos; what was named but cannot be one counts as a file that cannot be read.
        labeller: says how photos are loaded.
        threads: how many photos are decoded at once; None for as many as there are cores.

    Yields:
        For each file of a batch, in order, its pixels, uint8 (H, W, 3), or why it cannot be read.

    Raises:
        BadInput: an address cannot be reached.
    """
    coming = iter(batches)
    with ThreadPoolExecutor(threads or usable_cores()) as pool:

        def load(file: Found) -> np.ndarray | BadPhoto:
            if isinstance(file, BadPhoto):
                return file
            try:
                content = read_address(file) if isinstance(file, Address) else None
                return load_photo(file, labeller.image_size, labeller.interpolation, labeller.loading, content)
            except BadPhoto as error:
                return error

        def begin() -> list[tuple[Path | str, Future[np.ndarray | BadPhoto]]]:
            return [
                (each.path if isinstance(each, BadPhoto) else each, pool.submit(load, each))
                for each in next(coming, ())
            ]

        ahead = begin()
        while ahead:
            here, ahead = ahead, begin()
            yield [(file, result.result()) for file, result in here]

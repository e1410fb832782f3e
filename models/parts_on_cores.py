"""Parts of a batch side by side on a CPU, each on a core of its own.

Threads that share one operation wait for each other after each of them, and a network has hundreds: on virtual machines
that can cost more than it saves, most of all in float64. Threads that have a part each wait once.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor


class PartsOnCores:
    """Computes parts of batches in as many threads as torch computes with, each by itself.

    On a GPU, or where torch has one thread, they are computed one after another.
    """

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._made_for = (0, 0)

    def __getstate__(self) -> dict[str, object]:
        """Threads cannot be pickled; they are made again."""
        return {"_pool": None, "_made_for": (0, 0)}

    def map(self, run: Callable[[Tensor], Tensor], images: Tensor, most: int) -> Tensor:
        """Compute a batch in parts, without gradients.

        Args:
            run: what to compute, in any thread.
            images: shape (B, ...).
            most: images in a part.

        Returns:
            What `run` gave for all parts, shape (B, ...).
        """
        threads = torch.get_num_threads()
        if images.device.type != "cpu" or threads == 1:
            return torch.cat([run(part) for part in images.split(most)])
        parts = images.split(min(most, -(-len(images) // threads)))
        if self._made_for != (os.getpid(), threads):  # threads do not survive a fork
            self._pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
            self._made_for = os.getpid(), threads
        assert self._pool is not None

        def without_gradients(part: Tensor) -> Tensor:
            with torch.no_grad():
                return run(part)

        try:
            return torch.cat(list(self._pool.map(without_gradients, parts)))
        finally:
            torch.set_num_threads(threads)  # a thread of the pool sets it for itself, and for threads yet to come

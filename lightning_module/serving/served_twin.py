"""A twin in a thread of its own, which computes together what waits together."""

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import NamedTuple

import numpy as np

from export.worker.keras_process import KerasFailed
from lightning_module.evaluation.labellers import Labeller
from lightning_module.evaluation.labelling import checked_probabilities
from lightning_module.evaluation.top_labels import top_labels

LONGEST_PAUSE = 30.0
"""Seconds between two attempts to start a twin that does not start."""
LONGEST_BATCH = 60.0
"""Seconds of one batch from which on a twin counts as stuck."""


class Answer(NamedTuple):
    """What a twin says of a photo.

    Attributes:
        classes: class indices, int64, shape (K,), the likeliest first.
        probabilities: float64, shape (K,), as `lightning predict` prints them.
        raw: float32, shape (C,), of all classes, as the network gave them.
    """

    classes: np.ndarray
    probabilities: np.ndarray
    raw: np.ndarray


class TwinDown(RuntimeError):
    """The twin's process has ended; another one is being started."""


class _Waiting(NamedTuple):
    pixels: np.ndarray
    top: int
    future: "Future[Answer]"


class ServedTwin:
    """A labeller that takes photos one by one, from any thread, and computes them in batches.

    A batch is what waits when the one before is done. Where that is little and more photos are on their way, it waits
    for them, a few milliseconds at most.

    Args:
        labeller: computes the probabilities; its context is entered here.
        temperature: the logits are divided by it.
        batch_size: most photos that are computed at once.
        patience: seconds to wait for others.
        others_coming: whether photos are on their way.
        on_batch: is told the size of each batch.

    Attributes:
        down: why the twin cannot answer; None while it can.
    """

    def __init__(
        self,
        labeller: Labeller,
        temperature: float = 1.0,
        batch_size: int = 16,
        patience: float = 0.004,
        others_coming: Callable[[], bool] = lambda: False,
        on_batch: Callable[[int], None] = lambda size: None,
    ) -> None:
        self.labeller, self.temperature, self.batch_size, self.patience = labeller, temperature, batch_size, patience
        self.others_coming, self.on_batch = others_coming, on_batch
        self.down: str | None = None
        self._since: float | None = None
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._computing = threading.Lock()  # the explanations' photos come from another thread
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="twin", daemon=True)

    def start(self) -> None:
        """Start what computes, and have it compute every size of batch once, which later takes less time.

        Raises:
            BadInput: the model cannot be used.
            KerasFailed: the Keras process crashed or ran out of time.
        """
        self.labeller.__enter__()
        try:
            self._warm_up()
        except BaseException:
            self.labeller.__exit__(None, None, None)
            raise
        self._thread.start()

    def close(self) -> None:
        """Answer what is waiting, and end."""
        self._closing.set()
        self._queue.put(None)
        if self._thread.ident is not None:
            self._thread.join()
        self.labeller.__exit__(None, None, None)

    def stuck(self) -> str | None:
        """Return what is wrong if a batch takes far too long; otherwise None."""
        since = self._since
        lasted = 0.0 if since is None else time.monotonic() - since
        return f"it has been computing one batch for {lasted:.0f} s" if lasted > LONGEST_BATCH else None

    def submit(self, pixels: np.ndarray, top: int) -> "Future[Answer]":
        """Have a photo labelled.

        Args:
            pixels: uint8, shape (H, W, 3).
            top: number of labels.

        Raises:
            TwinDown: at once, or in the future's place.
        """
        if self.down is not None:
            raise TwinDown(self.down)
        future: Future[Answer] = Future()
        self._queue.put(_Waiting(pixels, top, future))
        return future

    def probabilities(self, photos: np.ndarray) -> np.ndarray:
        """Compute probabilities at once, float32 (N, C), of uint8 (N, H, W, 3); `batch_size` photos at most are best.

        Raises:
            TwinDown: the twin's process has ended.
        """
        if self.down is not None:
            raise TwinDown(self.down)
        try:
            with self._computing:
                return self.labeller.probabilities(photos)
        except KerasFailed as error:  # the next batch starts it again
            raise TwinDown(str(error)) from error

    def _warm_up(self) -> None:
        size = 1
        while True:
            blank = np.zeros((size, *self.labeller.image_size, 3), np.uint8)
            checked_probabilities(self.labeller, [Path("a black photo")] * size, blank)
            if size >= self.batch_size:
                break
            size = min(2 * size, self.batch_size)
        self.labeller.exact(blank[:1])

    def _run(self) -> None:
        while batch := self._next_batch():
            self._since = time.monotonic()
            try:
                answers = self._compute(batch)
            except KerasFailed as error:
                self.down = str(error).splitlines()[0]
                for each in batch:
                    each.future.set_exception(TwinDown(self.down))
                self._start_again()
            except Exception as error:  # whoever sent a photo is told, and the next ones are computed
                for each in batch:
                    each.future.set_exception(error)
            else:
                self.on_batch(len(batch))
                for each, answer in zip(batch, answers, strict=True):
                    each.future.set_result(answer)
            self._since = None

    def _next_batch(self) -> list[_Waiting]:
        """Wait for photos; an empty list at the end."""
        first = self._queue.get()
        while first is not None and not first.future.set_running_or_notify_cancel():  # its client has left
            first = self._queue.get()
        if first is None:
            return []
        batch, until = [first], time.monotonic() + self.patience
        while len(batch) < self.batch_size:
            try:
                waiting = self._queue.get_nowait()
            except queue.Empty:
                left = until - time.monotonic()
                if left <= 0 or not self.others_coming():
                    break
                try:
                    waiting = self._queue.get(timeout=left)
                except queue.Empty:
                    break
            if waiting is None:
                self._queue.put(None)  # for the next call
                break
            if waiting.future.set_running_or_notify_cancel():
                batch.append(waiting)
        return batch

    def _compute(self, batch: list[_Waiting]) -> list[Answer]:
        photos, labeller = np.stack([each.pixels for each in batch]), self.labeller
        most = max(each.top for each in batch)
        with self._computing:
            probabilities = checked_probabilities(labeller, [Path("a photo")] * len(batch), photos)

            def exact(rows: np.ndarray) -> np.ndarray:
                # one by one: Keras makes another graph for each number of photos
                return np.concatenate([labeller.exact(photos[row : row + 1]) for row in rows])

            found = top_labels(probabilities, exact, most, self.temperature)
        return [
            Answer(classes[: each.top], values[: each.top], raw)
            for each, classes, values, raw in zip(batch, found.classes, found.probabilities, probabilities, strict=True)
        ]

    def _start_again(self) -> None:
        pause = 1.0
        while not self._closing.is_set():
            self._refuse_waiting()
            try:
                with self._computing:
                    self.labeller.__exit__(None, None, None)
                    self.labeller.__enter__()
                    self._warm_up()
            except Exception as error:
                self.down = (str(error).strip() or type(error).__name__).splitlines()[0]
                self._closing.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                self.down = None
                return
        self._refuse_waiting()

    def _refuse_waiting(self) -> None:
        waiting: list[None] = []
        while not self._queue.empty():
            each = self._queue.get()
            if each is None:
                waiting.append(each)
            elif each.future.set_running_or_notify_cancel():
                each.future.set_exception(TwinDown(self.down))
        for each in waiting:
            self._queue.put(each)

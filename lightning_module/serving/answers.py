"""From photos' bytes to the twins' answers: the very same labels and numbers that `lightning predict` writes."""

import asyncio
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from datamodule.photo_store import BadPhoto, LargePhoto, load_photo, open_photo
from lightning_module.evaluation.labellers import Labeller
from lightning_module.evaluation.labelling import UNSURE, Labelling, as_printed
from lightning_module.evaluation.top_labels import with_temperature
from lightning_module.serving.counters import Counters
from lightning_module.serving.explanation import PhotoFacts, Said, explain
from lightning_module.serving.limits import Limits, Refused, Room
from lightning_module.serving.model_facts import ModelFacts
from lightning_module.serving.served_twin import Answer, ServedTwin, TwinDown
from lightning_module.serving.uploads import Upload
from models.cores import usable_cores

LARGE_PHOTO = 12_000_000
"""Pixels from which on a photo is decoded alone, because that takes hundreds of megabytes."""
EXPLAINED_AT_ONCE = 8
"""Photos that may wait to be explained."""
ORIENTATION = 0x0112
"""EXIF's number of the orientation."""


class Answers:
    """What answers; a context manager that starts the twins and ends them.

    Args:
        labellers: by the twin's name; the first one's labels are given.
        labelling: what is said of each photo, as for `lightning predict`.
        facts: of the model.
        limits: what is taken at most.
        batch_size: most photos that a twin computes at once.
        counters: are kept up.

    Raises:
        BadInput: a model cannot be used.
        KerasFailed: the Keras process crashed or ran out of time.
    """

    def __init__(
        self,
        labellers: Mapping[str, Labeller],
        labelling: Labelling,
        facts: ModelFacts,
        limits: Limits,
        batch_size: int,
        counters: Counters,
    ) -> None:
        self.labelling, self.facts, self.limits, self.counters = labelling, facts, limits, counters
        self.waiting = Room(limits.waiting, "waiting photos")
        self.received = Room(limits.received, "bytes")
        self._explaining = Room(EXPLAINED_AT_ONCE, "photos to explain")
        self._decoding, self._largest = 0, 0.0
        self._one_explanation = asyncio.Lock()
        self._large = threading.Lock()
        self._pool = ThreadPoolExecutor(usable_cores(), thread_name_prefix="decode")
        self.twins = {
            name: ServedTwin(
                labeller,
                labelling.temperature,
                batch_size,
                others_coming=lambda: self._decoding > 0,
                on_batch=counters.batches.labels(name).observe,
            )
            for name, labeller in labellers.items()
        }

    def __enter__(self) -> "Answers":
        started: list[ServedTwin] = []
        try:
            for twin in self.twins.values():
                twin.start()
                started.append(twin)
        except BaseException:
            for twin in started:
                twin.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for twin in self.twins.values():
            twin.close()
        self._pool.shutdown()

    @property
    def first(self) -> ServedTwin:
        """The twin whose labels are given: torch's, if it is served."""
        return next(iter(self.twins.values()))

    @property
    def class_names(self) -> list[str]:
        """In the order of the probabilities."""
        return self.first.labeller.class_names

    def down(self) -> dict[str, str]:
        """Return which twins cannot answer, and why."""
        why = {name: twin.down or twin.stuck() for name, twin in self.twins.items()}
        return {name: reason for name, reason in why.items() if reason is not None}

    async def answer(self, uploads: Sequence[Upload], top: int | None = None) -> list[dict[str, Any]]:
        """Label photos.

        Args:
            uploads: at most as many as the limits allow.
            top: number of labels; None for the service's own.

        Returns:
            For each photo, for JSON: `name`, `label`, `labels`, `twins` and, of both, `difference`.

        Raises:
            Refused: 413, 422 or 429 if the photos cannot be labelled, 503 if a twin is down.
        """
        top = self.labelling.top if top is None else min(top, len(self.class_names))
        with self.waiting.held() as share:
            share.grow(len(uploads))
            pixels = [pixels for pixels, _ in await self.decoded(uploads)]
            try:
                futures = [[twin.submit(each, top) for twin in self.twins.values()] for each in pixels]
                answers = [
                    await asyncio.gather(*(asyncio.wrap_future(each) for each in of_photo)) for of_photo in futures
                ]
            except TwinDown as down:
                raise _unavailable(down) from down
        return [
            self._in_words(upload.name, dict(zip(self.twins, each, strict=True)))
            for upload, each in zip(uploads, answers, strict=True)
        ]

    async def explain(self, upload: Upload) -> dict[str, Any]:
        """Explain the first twin's answer to one photo; see `explanation.explain`.

        Raises:
            Refused: as for `answer`.
        """
        twin, temperature = self.first, self.labelling.temperature

        def probabilities(photos: np.ndarray) -> np.ndarray:
            return with_temperature(twin.probabilities(photos).astype(np.float64), temperature)

        with self._explaining.held() as share:
            share.grow(1)
            ((pixels, photo),) = await self.decoded([upload])
            async with self._one_explanation:
                try:
                    answer = await asyncio.wrap_future(twin.submit(pixels, 1))
                    explained = await asyncio.to_thread(
                        explain,
                        pixels,
                        photo,
                        Said(int(answer.classes[0]), as_printed(float(answer.probabilities[0]))),
                        probabilities,
                        self.class_names,
                        twin.labeller.loading.background is None,
                        self.labelling.min_probability,
                        self.facts.confusion,
                        twin.batch_size,
                    )
                except TwinDown as down:
                    raise _unavailable(down) from down
        return {"name": upload.name, "twin": next(iter(self.twins)), **explained}

    async def decoded(self, uploads: Sequence[Upload]) -> list[tuple[np.ndarray, PhotoFacts]]:
        """Decode photos, as many at a time as there are cores.

        Returns:
            For each its pixels, uint8 (H, W, 3), as the network takes them, and what its file was.

        Raises:
            Refused: 422 naming all photos that cannot be read, or 413 if some of them have too many pixels.
        """
        loop = asyncio.get_running_loop()
        self._decoding += len(uploads)
        try:
            coming = [loop.run_in_executor(self._pool, self._decode, each) for each in uploads]
            found = await asyncio.gather(*coming, return_exceptions=True)
        finally:
            self._decoding -= len(uploads)
        bad = [(index, each) for index, each in enumerate(found) if isinstance(each, BadPhoto)]
        if bad:
            raise _unreadable(uploads, bad)
        photos = []
        for each in found:
            if isinstance(each, BaseException):
                raise each
            photos.append(each)
        return photos

    def _decode(self, upload: Upload) -> tuple[np.ndarray, PhotoFacts]:
        path, labeller, most = Path(upload.name.replace("\0", "")), self.first.labeller, self.limits.pixels
        try:
            with open_photo(path, upload.content, most) as photo:
                transparent = photo.has_transparency_data
                orientation = photo.getexif().get(ORIENTATION, 1)
                facts = PhotoFacts(photo.width, photo.height, _known(orientation), transparent)
        except BadPhoto:
            raise
        except Exception as error:  # as for `load_photo`, Pillow's readers raise nearly any
            raise BadPhoto(path, f"cannot be read: {error or type(error).__name__}") from error
        with self._large if facts.width * facts.height >= LARGE_PHOTO else nullcontext():
            loaded = load_photo(
                path, labeller.image_size, labeller.interpolation, labeller.loading, upload.content, most
            )
        return loaded, facts

    def _in_words(self, name: str, answers: dict[str, Answer]) -> dict[str, Any]:
        first = next(iter(answers.values()))
        twins = {twin: {"labels": self._labels(answer)} for twin, answer in answers.items()}
        labels = next(iter(twins.values()))["labels"]
        label, least = labels[0]["label"], self.labelling.min_probability
        unsure = least is not None and labels[0]["probability"] < least
        said: dict[str, Any] = {"name": name, "label": UNSURE if unsure else label, "labels": labels, "twins": twins}
        if len(answers) > 1:
            said["difference"] = max(float(np.abs(first.raw - each.raw).max()) for each in answers.values())
            said["agree"] = all(each["labels"] == labels for each in twins.values())
            self.counters.disagreements.inc(not said["agree"])
            self._largest = max(said["difference"], self._largest)
            self.counters.difference.set(self._largest)
        self.counters.photos.labels(label).inc()
        return said

    def _labels(self, answer: Answer) -> list[dict[str, Any]]:
        return [
            {"label": self.class_names[index], "probability": as_printed(float(value))}
            for index, value in zip(answer.classes, answer.probabilities, strict=True)
        ]


def _known(orientation: Any) -> int:
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def _unreadable(uploads: Sequence[Upload], bad: Sequence[tuple[int, BadPhoto]]) -> Refused:
    photos = [{"index": index, "name": uploads[index].name, "reason": each.reason} for index, each in bad]
    named = "; ".join(f"{each['name']} {each['reason']}" for each in photos[:3])
    more = f"; and {len(photos) - 3} more" if len(photos) > 3 else ""
    if any(isinstance(each, LargePhoto) for _, each in bad):
        return Refused(
            413, "too_many_pixels", f"expected photos of a size that is read, received: {named}{more}.", photos
        )
    return Refused(422, "no_photo", f"expected photos, received: {named}{more}. Leave those out.", photos)


def _unavailable(down: TwinDown) -> Refused:
    return Refused(
        503,
        "twin_down",
        f"expected a running twin, received none: {down}. It is started again; send the photo again in a few seconds.",
        headers={"Retry-After": "5"},
    )

"""The labelling of a part, the same for every engine: photos in, the content of one Parquet file out."""

import hashlib
import json
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np

from datamodule.photo_store import BadPhoto
from export.worker.keras_process import KerasFailed
from export.worker.keras_worker import pillow_versions
from lightning_module.evaluation.decoding import Found
from lightning_module.evaluation.labellers import Device, Labeller
from lightning_module.evaluation.labelling import Labelling, labelled
from lightning_module.evaluation.prediction_files import Row, parquet_table
from lightning_module.fleet.listing import Part
from models.bad_input import BadInput
from models.digests import file_digest

MODEL, REASON = "model_sha256", "reason"
"""Columns beside those of `lightning predict`: digest of the file that labelled, and why a photo cannot be read."""
REQUEST_KEY, NUMBER_KEY = "shelftwin_request", "shelftwin_part"
"""A part's metadata: the digest of the request that it belongs to, and its number."""


@dataclass(frozen=True)
class Job:
    """What an engine needs to label a part; it can be sent to another machine.

    Attributes:
        make_labeller: takes the model's file and a device.
        labelling: what is written of each photo.
        model_digest: SHA-256 of the model's file.
        request_digest: SHA-256 of the request.
        pillow: versions of the Pillow that decodes.
        batch_size: how many photos are computed at once.
        device: where a checkpoint is computed.
    """

    make_labeller: Callable[[Path, Device], Labeller]
    labelling: Labelling
    model_digest: str
    request_digest: str
    pillow: dict[str, str]
    batch_size: int
    device: Device

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return [*self.labelling.columns, MODEL, REASON]

    def check_machine(self, machine: str) -> None:
        """Make sure that photos become the same pixels here.

        Raises:
            BadInput: another Pillow decodes here.
        """
        if (here := pillow_versions()) != self.pillow:
            raise BadInput(
                f"expected on every machine what decodes photos where the command was given, {_said(self.pillow)}; "
                f"received {_said(here)} on {machine}. Install the same there: pip install pillow=="
                f"{self.pillow['pillow']}"
            )


def content_of(model: Path) -> dict[str, bytes]:
    """Return what a model's file has, under the name "", or each file of its folder, by its path in it."""
    files = sorted(each for each in model.rglob("*") if each.is_file()) if model.is_dir() else [model]
    return {"" if each == model else each.relative_to(model).as_posix(): each.read_bytes() for each in files}


def model_digest(model: Path) -> str:
    """Return the SHA-256 of a model's file, hexadecimal; of a folder, of its files' names and digests."""
    if not model.is_dir():
        return file_digest(model)
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in content_of(model).items()}
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()


def check_model(model: Path, digest: str) -> None:
    """Make sure that the model's file is the one that the rows name: another may have been put in its place meanwhile.

    Raises:
        BadInput: it is not.
    """
    try:
        now = model_digest(model)
    except OSError as error:
        now = error.strerror or str(error)
    if now != digest:
        raise BadInput(
            f"expected {model} to stay as it is while it labels ({digest[:8]}...), received another file ({now[:40]}). "
            "Put it back and give the same command with --resume, or name another folder with --out."
        )


class LabelledPart(NamedTuple):
    """A part's number and the content of its file."""

    number: int
    content: bytes


def labelled_parts(
    parts: Iterable[Part], job: Job, labeller: Labeller, threads: int | None = None
) -> Iterator[LabelledPart]:
    """Label parts one after the other; the next photos are decoded while the ones before are computed.

    A part's file depends on its photos, the model and the options alone: batches are always the same photos.

    Args:
        parts: the photos.
        job: what is asked for.
        labeller: computes the probabilities; a context that was entered.
        threads: how many photos are decoded at once; None for as many as there are cores.

    Raises:
        BadInput: all photos of a part are gone, or the model gives no probabilities.
    """
    begun: deque[Part] = deque()

    def batches() -> Iterator[list[Found]]:
        for part in parts:
            _check_there(part)
            begun.append(part)
            for start in range(0, len(part.found), job.batch_size):
                yield part.found[start : start + job.batch_size]

    rows: list[Row] = []
    for results in labelled(batches(), labeller, job.labelling, threads):
        rows += [_row(each, job) for each in results]
        if len(rows) == len(begun[0].found):
            number = begun.popleft().number
            yield LabelledPart(number, _content(rows, number, job))
            rows = []


def _row(result: Row | BadPhoto, job: Job) -> Row:
    if isinstance(result, BadPhoto):
        nothing = [None] * (len(job.labelling.columns) - 1)
        return [str(result.path), *nothing, job.model_digest, result.reason]
    return [*result, job.model_digest, None]


def _content(rows: list[Row], number: int, job: Job) -> bytes:
    import pyarrow
    from pyarrow import parquet

    table = parquet_table(job.columns, rows)
    table = table.replace_schema_metadata({REQUEST_KEY: job.request_digest, NUMBER_KEY: str(number)})
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(table, sink, compression="zstd", write_page_checksum=True)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _check_there(part: Part) -> None:
    """Refuse a part whose photos are all gone: a disk is missing, and a million rows would say so."""
    files = [each for each in part.found if isinstance(each, Path)]
    if files and not any(map(os.path.lexists, files)):
        raise BadInput(
            f"expected the photos that were listed, received none of the {len(files)} of part {part.number}: "
            f"{files[0]} and the others are not there. Is the disk mounted? On a cluster all machines must see it."
        )


def _said(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


class Restarting:
    """A labeller that is started anew, once for a batch, if its Keras process ends; otherwise the labeller itself.

    Args:
        labeller: not entered yet.
        check: is called when it was started anew, and raises where its file is another by now.
    """

    def __init__(self, labeller: Labeller, check: Callable[[], None] = lambda: None) -> None:
        self._labeller, self._check = labeller, check

    def __getattr__(self, name: str) -> Any:
        """Return its attribute of that name."""
        return getattr(self._labeller, name)

    def __enter__(self) -> Self:
        self._labeller.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self._labeller.__exit__(kind, value, at)

    def probabilities(self, photos: np.ndarray) -> np.ndarray:
        """Compute as the labeller does."""
        return self._again(self._labeller.probabilities, photos)

    def exact(self, photos: np.ndarray) -> np.ndarray:
        """Compute as the labeller does."""
        return self._again(self._labeller.exact, photos)

    def _again(self, compute: Callable[[np.ndarray], np.ndarray], photos: np.ndarray) -> np.ndarray:
        try:
            return compute(photos)
        except KerasFailed as failed:
            print(f"lightning: {str(failed).splitlines()[0]} It is started again.", file=sys.stderr)
            self._labeller.__exit__(None, None, None)
            self._labeller.__enter__()
            self._check()
            return compute(photos)

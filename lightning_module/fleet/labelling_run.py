"""A run that labels photos into a data set: lists them, has the missing parts labelled, counts, and says it is done."""

import shlex
import sys
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from export.worker.keras_worker import pillow_versions
from lightning_module.evaluation.decoding import Found
from lightning_module.evaluation.labellers import Device, Labeller
from lightning_module.evaluation.labelling import Labelling
from lightning_module.fleet.data_set import DataSet
from lightning_module.fleet.listing import Listing
from lightning_module.fleet.local_engine import label_here
from lightning_module.fleet.parts import Job, LabelledPart, check_model, model_digest
from lightning_module.fleet.request import Request
from lightning_module.fleet.summary import Summary
from models.bad_input import BadInput
from models.digests import file_digest

Engine = Literal["local", "ray"]
PHOTOS_PER_PART = 1000
"""Rows of a file, and what a kill loses at most of each worker."""


@dataclass(frozen=True)
class Engines:
    """Where parts are labelled, as the command line says it.

    Attributes:
        engine: this process, or a Ray cluster.
        num_workers: on Ray; None chooses.
        ray_address: as for `ray_engine.cluster`.
        photos_per_part: rows of a file.

    Raises:
        BadInput: they do not fit together, or Ray is not installed.
    """

    engine: Engine = "local"
    num_workers: int | None = None
    ray_address: str | None = None
    photos_per_part: int = PHOTOS_PER_PART

    def __post_init__(self) -> None:
        for name, value in (("num_workers", self.num_workers), ("photos_per_part", self.photos_per_part)):
            if value is not None and value < 1:
                raise BadInput(f"--{name}: expected 1 or more, received {value}.")
        if self.engine == "ray":
            from lightning_module.fleet.ray_engine import import_ray

            import_ray()
            return
        for name, given in (("num_workers", self.num_workers), ("ray_address", self.ray_address)):
            if given is not None:
                raise BadInput(
                    f"--{name}: expected with --engine ray, received {given} without it. Add --engine ray, or leave "
                    f"--{name} out: this machine's cores are used as they are (--num_threads limits them)."
                )

    def label(
        self, listing: Listing, numbers: Sequence[int], job: Job, model: Path, labeller: Labeller
    ) -> Generator[LabelledPart, None, None]:
        """Label parts; see `label_here` and `label_on_ray`."""
        if self.engine == "local":
            return label_here(listing, numbers, job, model, labeller)
        from lightning_module.fleet.ray_engine import label_on_ray

        return label_on_ray(listing, numbers, job, model, self.num_workers, self.ray_address)


def label_into(
    data_set: DataSet,
    photos: Iterable[Found],
    model: Path,
    labels: Path | None,
    labeller: Labeller,
    labelling: Labelling,
    engines: Engines,
    make_labeller: Callable[[Path, Device], Labeller],
    device: Device,
    batch_size: int,
    advance: Callable[[int, int], None],
) -> Summary:
    """Label photos into a data set, or what is missing of it.

    Args:
        data_set: the folder.
        photos: the photos, in order.
        model: its file.
        labels: the file of --labels.
        labeller: computes the probabilities; not entered yet.
        labelling: what is written of each photo.
        engines: where.
        make_labeller: takes the model's file and a device; for other machines.
        device: where a checkpoint is computed.
        batch_size: how many photos are computed at once.
        advance: is told how many photos are labelled, and of how many.

    Raises:
        BadInput: some input cannot be used, or the data set was begun with another request.
        KerasFailed: the Keras process crashed or ran out of time.
    """
    with data_set.taken():
        digest = model_digest(model)  # before the listing, which may take long
        with data_set.listed(photos, engines.photos_per_part) as listing:
            request = Request(
                listing.photos,
                listing.digest,
                engines.photos_per_part,
                digest,
                file_digest(labels) if labels else None,
                labelling.top,
                labelling.min_probability,
                labelling.temperature,
                pillow_versions(),
            )
            data_set.begin(request)
        missing = data_set.missing(listing, request)
        files = [data_set.path(number, listing.parts) for number in range(listing.parts)]
        if data_set.is_whole and not missing:
            print(f"all {listing.photos} photos were labelled before")
            return Summary(files)
        if len(missing) < listing.parts:
            print(f"{listing.parts - len(missing)} of {listing.parts} files are there; going on with the others")
        data_set.reopen()
        job = Job(make_labeller, labelling, digest, request.digest, request.pillow, batch_size, device)
        done = listing.photos - sum(listing.rows(number) for number in missing)
        advance(done, listing.photos)
        written = listing.parts - len(missing)
        try:
            with closing(engines.label(listing, missing, job, model, labeller)) as labelled:
                for part in labelled if missing else ():
                    if written == listing.parts - len(missing):  # the first: by now every engine has read the model
                        check_model(model, digest)
                    data_set.write(part, listing.parts)
                    written += 1
                    done += listing.rows(part.number)
                    advance(done, listing.photos)
        except BaseException:
            print(
                f"lightning: {written} of {listing.parts} files of {shlex.quote(str(data_set.folder))} are there; the "
                "same command with --resume goes on",
                file=sys.stderr,
            )
            raise
        summary = Summary(files)
        data_set.finish(summary.text)
        return summary

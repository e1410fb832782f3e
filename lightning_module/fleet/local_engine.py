"""Labels parts in this process: photos are decoded on all cores while the ones before are computed."""

from collections.abc import Generator, Sequence
from functools import partial
from pathlib import Path

from lightning_module.evaluation.labellers import Labeller
from lightning_module.fleet.listing import Listing
from lightning_module.fleet.parts import Job, LabelledPart, Restarting, check_model, labelled_parts


def label_here(
    listing: Listing, numbers: Sequence[int], job: Job, model: Path, labeller: Labeller
) -> Generator[LabelledPart, None, None]:
    """Label parts, in order.

    Args:
        listing: the photos.
        numbers: of the parts.
        job: what is asked for.
        model: its file.
        labeller: computes the probabilities; not entered yet.

    Raises:
        BadInput: some input cannot be used.
        KerasFailed: the Keras process crashed or ran out of time, and did so again.
    """
    with Restarting(labeller, partial(check_model, model, job.model_digest)) as ready:
        yield from labelled_parts(listing.each_part(numbers), job, ready)

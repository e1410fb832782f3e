"""Keras `.h5` -> checkpoint: read, prove, write. The opposite direction of `torch_to_keras.py`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from export.checkpoint import write_checkpoint
from export.keras_to_torch import KerasClassifier
from export.proof.comparison import image_sets
from export.proof.import_proof import Import, check_imports
from export.proof.parity import torch_versions
from export.proof.report import PASS, Report
from models.atomic_write import replacing
from models.bad_input import BadInput
from models.choices import Loading, stated_formats
from models.digests import file_digest


class ImportDiffers(Exception):
    """The network that was read does not compute what Keras computes from the file; no checkpoint was written."""

    def __init__(self, report: Report) -> None:
        super().__init__(report.last_line())
        self.report = report


def write_import(
    classifier: KerasClassifier,
    checkpoint: Path,
    photos: np.ndarray | None = None,
    photo_names: list[str] | None = None,
    *,
    check: bool = True,
    keras_python: Path | None = None,
    given: Path | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> Report | None:
    """Write a classifier that was read from Keras as a checkpoint that `fit` can continue from.

    Args:
        classifier: from `read_keras_classifier`.
        checkpoint: where to write it; an existing file is replaced only by a complete one that has been proved.
        photos: uint8, NHWC, RGB at the classifier's size, to run through both sides; None: synthetic images only.
        photo_names: their names, for the report.
        check: whether to prove that Keras computes the same; if False, nothing is proved.
        keras_python: interpreter whose Keras loads the file; None: our own.
        given: the file as its owner has it, if `classifier.path` was put together from it: its digest is kept.
        progress: called with a short text at each step.

    Returns:
        The proof; None without `check`.

    Raises:
        BadInput: the checkpoint cannot be written, or Keras cannot load the file.
        ImportDiffers: the two do not compute the same.
        KerasFailed: the Keras process crashed or ran out of time.
    """
    checkpoint, given = Path(checkpoint), Path(given or classifier.path)
    if checkpoint.exists() and checkpoint.samefile(given):
        raise BadInput(f"expected a place for the checkpoint, got {checkpoint}, the Keras file itself. Name another.")
    if not checkpoint.parent.is_dir() or checkpoint.is_dir():
        raise BadInput(
            f"expected a file in a folder that is there, got {checkpoint}. Make the folder, or name another."
        )
    facts = {
        "class_names": list(classifier.class_names),
        "image_size": list(classifier.image_size),
        "interpolation": classifier.interpolation,
        **_loading_of(classifier),
        "trainable": classifier.trainable,
        "learning_rate": classifier.learning_rate,
        "schedule": {"batch_norm": classifier.batch_norm},
    }
    origin = {
        "sha256": file_digest(given),
        "input_range": classifier.input_range,
        "output": classifier.output,
    }
    report = None
    with replacing(checkpoint) as temporary:
        write_checkpoint(temporary, classifier.network, facts, origin)
        if check:
            sets = image_sets(classifier.image_size, photos, photo_names or [])
            compared = Import(temporary, classifier.path, sets, given)
            (report,) = check_imports([compared], torch_versions(), keras_python, progress)
            report.checkpoint["path"], report.model["path"] = str(checkpoint), str(given)
            if report.verdict != PASS:
                raise ImportDiffers(report)
    return report


def _loading_of(classifier: KerasClassifier) -> dict[str, Any]:
    """Which files are photos and how they become RGB, where the file is ours and says so."""
    try:
        stated = classifier.file.details
        return {**Loading.stated(stated)._asdict(), "formats": stated_formats(stated)}
    except ValueError as error:
        raise BadInput(
            f"{classifier.path}: expected to know how photos are loaded, got {error}. Export the file anew."
        ) from error

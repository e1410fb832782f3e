"""Computes probabilities of photos with an `.onnx`, a `.tflite` or a SavedModel, in a process of its own."""

from pathlib import Path
from typing import Any

import numpy as np

from export.exported_facts import facts_of, format_of
from export.worker.format_process import FORMAT_WORKER
from export.worker.keras_process import KerasStream
from lightning_module.evaluation.labellers import SECONDS_TO_START, KerasFileLabeller, is_hdf5
from models.bad_input import BadInput


class ExportedLabeller(KerasFileLabeller):
    """A file of `lightning export` in another format than `.h5`, in that format's runtime on the CPU.

    Its probabilities differ from the checkpoint's by no more than `export.formats.FORMATS` states for the format: a
    runtime that computes in float32 alone cannot be asked more exactly, so what is printed may differ in its last
    digit, and labels where two classes are as near to each other as that.

    Args:
        path: the file, or a SavedModel's folder.
        labels: as for `KerasFileLabeller`, for a file that does not itself state them; with `image_size`, where the
            model has none of its own.
        python: interpreter that has the runtime: TensorFlow, or ONNX Runtime; None for the one that runs this process.

    Raises:
        BadInput: no such file, no such runtime, or the model's inputs and outputs are not known.
        KerasFailed: the process crashed or ran out of time.
    """

    def exact(self, photos: np.ndarray) -> np.ndarray:
        """Return the same numbers as `probabilities`, as float64."""
        return self.probabilities(photos).astype(np.float64)

    def probabilities(self, photos: np.ndarray) -> np.ndarray:
        """Compute probabilities in float32, shape (N, C), of photos, uint8 (N, H, W, 3), RGB."""
        given = super().probabilities(photos)
        if not self._keras.is_quantised:
            return given
        with np.errstate(invalid="ignore"):  # steps of 1/256 do not add up to 1; all zero is reported by whoever asks
            return given / given.sum(axis=1, keepdims=True)

    def _stated(self, path: Path) -> dict[str, Any]:
        self._format = format_of(path) or ""
        return {"output": "", **facts_of(path, self._format)}

    def _process(self) -> KerasStream:
        return KerasStream(self.h5, self.python, SECONDS_TO_START, (FORMAT_WORKER, "stream", self._format))


def labeller_of_file(model: Path) -> type[KerasFileLabeller] | None:
    """Return what computes with a file in a process of its own; None if it is for torch, as a checkpoint is.

    Raises:
        BadInput: there is no such file, or it cannot be read.
    """
    if format_of(model):
        return ExportedLabeller
    if model.suffix.lower() == ".tflite":
        raise BadInput(
            f"expected a TFLite model, as its name says, received {model}, which begins as none. Is it damaged? "
            "`lightning export CKPT OUT.tflite --format tflite` makes one."
        )
    return KerasFileLabeller if is_hdf5(model) else None

"""Second opinions: the same probabilities from other converters, which share as little as possible with ours.

- ``tf2onnx``: the `.h5` -> Keras -> tf2onnx -> onnxruntime. The exported file, but not computed by Keras.
- ``onnx2tf``: the checkpoint -> torch.onnx.export -> onnx2tf -> TensorFlow. Uses neither our trace nor our `.h5`.

If both agree with torch and with the twin, a fault would have to be the same in three independent converters.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from export.checkpoint import Checkpoint
from export.proof.checks import PROBABILITY_THRESHOLD, check_probabilities, check_top1
from export.proof.image_sets import ImageSet
from export.proof.report import Check
from export.worker.environments import ONNX2TF
from export.worker.format_process import prediction_tasks, read_outputs, run_formats
from export.worker.keras_process import KerasFailed
from models.classifier import Classifier, probabilities_of


@dataclass(frozen=True)
class Opinion:
    """What another converter's model computed.

    Attributes:
        name: of the converter, a key of `OPINIONS`.
        versions: of all packages that computed.
        probabilities: for each set of images, float32, (N, C).
        seconds: how long converting and computing took, without making an environment.
    """

    name: str
    versions: dict[str, str]
    probabilities: list[np.ndarray]
    seconds: float


@dataclass(frozen=True)
class Converter:
    """How to get a second opinion.

    Attributes:
        prepare: (checkpoint, `.h5`, an empty folder) -> tasks that make a model, its format, its path, and the batch
            size that it takes.
        takes_range: whether the model takes the `.h5`'s input range; otherwise it takes the checkpoint's [0, 1].
        python: finds the interpreter and reports progress if that takes long; None: the one that is running this.
        threshold: the largest difference of a probability that passes.
    """

    prepare: Callable[[Checkpoint, Path, Path], tuple[list[dict], str, Path, int]]
    takes_range: bool
    python: Callable[[Callable[[str], None]], Path] | None
    threshold: float


def second_opinion(
    name: str,
    source: Checkpoint,
    h5: Path,
    input_range: str,
    image_sets: Sequence[ImageSet],
    progress: Callable[[str], None] = lambda text: None,
) -> Opinion:
    """Ask one converter.

    Args:
        name: a key of `OPINIONS`.
        source: the checkpoint.
        h5: the file that is claimed to be its twin.
        input_range: what the `.h5` takes: ``unit`` or ``raw``.
        image_sets: the images to compute.
        progress: called with a short text at each step.

    Raises:
        BadInput: the `.h5` is refused, or the converter's environment cannot be made.
        KerasFailed: a converter fails, or its process crashes or runs out of time.
    """
    converter = OPINIONS[name]
    python = converter.python(progress) if converter.python else None
    progress(f"a second opinion: {name}")
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="shelftwin-") as temporary:
        folder = Path(temporary)
        saved = [images.save(folder, input_range if converter.takes_range else "unit") for images in image_sets]
        making, model_format, path, batch_size = converter.prepare(source, h5, folder)
        asking = prediction_tasks(model_format, path, saved, folder, batch_size=batch_size)
        reply = run_formats([*making, *asking], sum(len(each.images) for each in image_sets), python)
        failed = [result["failed"] for result in reply["results"] if "failed" in result]
        if failed:
            raise KerasFailed(f"second opinion {name}: {failed[0]}")
        probabilities = [read_outputs(task) for task in asking]
    return Opinion(name, reply["versions"], probabilities, round(time.perf_counter() - start, 2))


def opinion_checks(opinion: Opinion, image_sets: Sequence[ImageSet], torch_gave: Sequence[np.ndarray]) -> list[Check]:
    """The checks that a second opinion adds to the ladder.

    Args:
        opinion: what the converter's model computed.
        image_sets: the images that it was given.
        torch_gave: torch's probabilities for each set, (N, C).
    """
    checks, converter = [], OPINIONS[opinion.name]
    for images, expected, given in zip(image_sets, torch_gave, opinion.probabilities, strict=True):
        checks.append(check_probabilities(images, expected, given, opinion.name, converter.threshold))
        if images.name == "photos":
            checks.append(check_top1(images, expected, given, opinion.name))
    return [replace(check, detail=f"{check.detail}; it took {opinion.seconds:.0f} s") for check in checks]


def _tf2onnx(source: Checkpoint, h5: Path, folder: Path) -> tuple[list[dict], str, Path, int]:
    path = folder / "model.onnx"
    return [{"task": "make", "format": "onnx", "h5": str(h5.resolve()), "path": str(path)}], "onnx", path, 32


def _onnx2tf(source: Checkpoint, h5: Path, folder: Path) -> tuple[list[dict], str, Path, int]:
    onnx, path = folder / "torch.onnx", folder / "saved_model"
    write_torch_onnx(source, onnx)
    return [{"task": "from_onnx", "onnx": str(onnx), "path": str(path)}], "saved_model", path, 1


def write_torch_onnx(source: Checkpoint, path: Path) -> None:
    """Write the checkpoint's network and its softmax as ONNX: ``image``, float32, (1, C, H, W), in [0, 1].

    The batch size is fixed at 1: onnx2tf folds it into reshapes, so with any other size it would compute something else
    or fail, and with a free batch size it fails for some of the families. The exporter is the older one, because the
    newer one needs a further package (onnxscript).
    """
    network = _Probabilities(source.network).eval()
    image = torch.zeros(1, source.network.channels, *source.image_size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            network, (image,), path, dynamo=False, opset_version=17, input_names=["image"],
            output_names=["probabilities"],
        )  # fmt: skip


class _Probabilities(nn.Module):
    """A network, and what makes its answers probabilities."""

    def __init__(self, network: Classifier) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] to (B, classes)."""
        return probabilities_of(self.network(images), self.network.output)


OPINIONS = {
    "tf2onnx": Converter(_tf2onnx, takes_range=True, python=None, threshold=PROBABILITY_THRESHOLD),
    "onnx2tf": Converter(_onnx2tf, takes_range=False, python=ONNX2TF.python, threshold=PROBABILITY_THRESHOLD),
}

"""The proof: a ladder of checks that a checkpoint and a Keras `.h5` are the same function.

Every check compares what torch computes from the checkpoint with what a real Keras, in a process of its own, computes
from the file. A check passes only if its figure is a number and within its threshold. If one check fails, the verdict
is FAIL.

The checks: labels, weights, every layer in float64, probabilities and top-1 on synthetic images and on photos, photos
from file to label, training steps, and everything else in the file.
"""

from __future__ import annotations

import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from export.checkpoint import Checkpoint, as_checkpoint
from export.keras_file.read import read_keras_h5
from export.proof.checks import (
    check_file_labels,
    check_file_pixels,
    check_labels,
    check_layers,
    check_probabilities,
    check_top1,
    check_training,
    check_weights,
)
from export.proof.comparison import Comparison, Pair, TrainingSteps, exact_kind, image_sets, read_comparison
from export.proof.contents import check_contents
from export.proof.diagnosis.cause import likely_cause
from export.proof.image_sets import ImageSet
from export.proof.import_proof import Import, check_imports
from export.proof.keras_side import KerasSide, LoadedFiles, keras_sides
from export.proof.report import Check, Report, worst_photos
from export.proof.rounding import allowed_difference
from export.proof.second_opinions import opinion_checks, second_opinion
from export.proof.torch_side import torch_exact, torch_layers
from export.torch_answers import torch_probabilities
from export.worker.keras_worker import pillow_versions
from models.bad_input import BadInput
from models.digests import file_digest


def check_parity(
    pair: Pair,
    keras_python: Path | None = None,
    progress: Callable[[str], None] = lambda text: None,
    opinions: Sequence[str] = (),
) -> Report:
    """Make all checks for one pair.

    Args:
        pair: the two files, and photos.
        keras_python: interpreter whose Keras loads the file; None: our own.
        progress: called with a short text at each step.
        opinions: further converters to ask for the same probabilities, keys of `second_opinions.OPINIONS`.

    Raises:
        BadInput: a file is not what it should be, or that Keras cannot load the `.h5`.
        KerasFailed: the Keras process crashed or ran out of time.
    """
    source = as_checkpoint(pair.checkpoint)
    if not source.foreign and is_import(source, pair.h5):
        if opinions:
            raise BadInput(
                f"second opinions: expected a .h5 that `lightning export` wrote, got {pair.h5}, which was there before "
                "its checkpoint. Leave them out, or export the checkpoint and ask about that file."
            )
        sets = image_sets(source.image_size, pair.photos, pair.photo_names)
        return check_imports([Import(source.path, pair.h5, sets)], torch_versions(), keras_python, progress)[0]
    return check_pairs([pair], keras_python, progress, opinions)[0]


def is_import(source: Checkpoint, h5: Path) -> bool:
    """Whether the Keras file is the original: the checkpoint was imported from it, or we did not write it at all."""
    return not read_keras_h5(h5).details or source.imported_from == file_digest(h5)


def check_pairs(
    pairs: Sequence[Pair],
    keras_python: Path | None = None,
    progress: Callable[[str], None] = lambda text: None,
    opinions: Sequence[str] = (),
) -> list[Report]:
    """Make all checks for several pairs in a single Keras process; otherwise like `check_parity`."""
    start = time.perf_counter()
    known: dict[Path, Checkpoint] = {}
    comparisons = [read_comparison(pair, known) for pair in pairs]
    layers = _LayersOfLast()
    reports = []
    with tempfile.TemporaryDirectory(prefix="shelftwin-") as folder:
        progress("Keras computes, in a process of its own")
        sides = keras_sides(comparisons, Path(folder), keras_python)
        progress("torch computes the same")
        for comparison, keras_side in zip(comparisons, sides, strict=True):
            report, from_torch = _run_checks(comparison, keras_side, layers.of(comparison))
            asked = [
                second_opinion(
                    name, comparison.source, comparison.h5, comparison.input_range, comparison.sets, progress
                )
                for name in opinions
            ]
            for opinion in asked:
                report.checks += opinion_checks(opinion, comparison.sets, from_torch)
                report.versions[opinion.name] = opinion.versions
            for index, images in enumerate(comparison.sets):
                if images.name == "photos":
                    others = {opinion.name: opinion.probabilities[index] for opinion in asked}
                    report.photos = worst_photos(images, from_torch[index], keras_side.probabilities[index], others)
            report.seconds = round(time.perf_counter() - start, 2)
            reports.append(report)
    return reports


class _LayersOfLast:
    """Torch's output of every layer; computed once for several files of one checkpoint in a row."""

    def __init__(self) -> None:
        self._key: tuple[Any, ...] = ()
        self._layers: dict[str, np.ndarray] = {}

    def of(self, comparison: Comparison) -> dict[str, np.ndarray]:
        """Node name -> output in float64 for the comparison's exact images, NHWC."""
        images = comparison.exact_images
        key = (comparison.source, comparison.folded, images.shape, images.tobytes())
        if key != self._key:
            network, graph, state = comparison.source.network, comparison.graph, comparison.exact_state
            self._key, self._layers = key, torch_layers(network, graph, images, state)
        return self._layers


def _run_checks(
    comparison: Comparison, keras_side: KerasSide, torch_gave: dict[str, np.ndarray]
) -> tuple[Report, list[np.ndarray]]:
    """Compare what Keras and torch computed; also returns torch's probabilities for each set of images."""
    network, report = comparison.source.network, Report(
        checkpoint={"path": str(comparison.source.path), "sha256": comparison.source.digest},
        model={"path": str(comparison.h5), "sha256": file_digest(comparison.h5), "input_range": comparison.input_range},
        versions={"torch": torch_versions(), "keras": keras_side.versions},
        class_names=list(comparison.source.class_names),
    )  # fmt: skip
    report.checks += [
        check_labels(comparison.source, comparison.twin.details),
        check_weights(comparison.graph, comparison.twin, keras_side.weights),
    ]
    layers, report.layers = check_layers(comparison.graph, torch_gave, keras_side.layers, exact_kind(comparison.sets))
    report.checks.append(layers)
    probabilities = [torch_probabilities(network, images.batches()) for images in comparison.sets]
    sides = {
        "torch": (probabilities[0], torch_exact(network, comparison.sets[0].images, comparison.exact_state)),
        "Keras": (keras_side.probabilities[0], keras_side.exact),
    }
    allowed = allowed_difference(layers, sides)
    for images, from_torch, from_keras in zip(comparison.sets, probabilities, keras_side.probabilities, strict=True):
        report.checks.append(
            check_probabilities(images, from_torch, from_keras, threshold=allowed.threshold, why=allowed.why)
        )
        report.checks.append(check_top1(images, from_torch, from_keras, tie=allowed.threshold))
    if keras_side.loaded is not None:
        report.checks += _check_files(comparison, keras_side.loaded)
    elif comparison.pair.load_photo is not None and network.channels != 3:
        reason = f"photos have three channels, the network takes {network.channels}"
        report.skipped |= {"file_pixels": reason, "file_labels": reason}
    elif keras_side.loading_skipped:
        reason = f"this Keras cannot load photos: {keras_side.loading_skipped}"
        report.skipped |= {"file_pixels": reason, "file_labels": reason}
    if comparison.folded and comparison.source.trainable == "all":
        report.skipped["training_steps"] = "with BatchNorm folded into them, other weights are trained"
    elif comparison.source.trainable == "all" and any(each.sources for each in comparison.traced.computed.values()):
        report.skipped["training_steps"] = "in place of the weights that others are computed from, those are trained"
    elif isinstance(comparison.training_steps, str):
        report.skipped["training_steps"] = comparison.training_steps
    else:
        report.checks.append(_check_training(comparison, comparison.training_steps, keras_side))
    report.checks.append(check_contents(comparison))
    if report.failed:
        report.likely_cause = likely_cause(comparison, report, torch_gave, keras_side)
    return report, probabilities


def _check_files(comparison: Comparison, loaded: LoadedFiles) -> list[Check]:
    """Compare pixels and labels of the photos that each side has loaded from file."""
    names = [path.name for path in loaded.files]
    probabilities = torch_probabilities(comparison.source.network, ImageSet("files", loaded.expected, names).batches())
    checks = [
        check_file_pixels(names, (loaded.expected, loaded.pixels), loaded.unreadable),
        check_file_labels(names, (probabilities, loaded.probabilities), loaded.unreadable),
    ]
    lacking = "".join(
        f"; not compared: {count} {name}, which Keras's Pillow there was built without"
        for name, count in sorted(loaded.lacking.items())
    )
    return [replace(each, detail=each.detail + lacking) for each in checks]


def _check_training(comparison: Comparison, training_steps: TrainingSteps, keras_side: KerasSide) -> Check:
    """Compare what both sides have learned in the training steps."""
    after = comparison.graph_with(training_steps.learned)
    return check_training(
        comparison.graph,
        after,
        keras_side.trained,
        keras_side.training_failed,
        training_steps.steps,
        comparison.source.learning_rate,
    )


def torch_versions() -> dict[str, str]:
    """Versions of the packages that compute on torch's side."""
    own = {package: version(package) for package in ("torch", "timm", "lightning", "numpy")}
    return {"python": platform.python_version(), **own, **pillow_versions()}

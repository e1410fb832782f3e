"""The proof: a ladder of checks that a checkpoint and a Keras `.h5` are the same function.

Every rung compares what torch computes from the checkpoint with what a real Keras, in a process of its own, computes
from the file. A rung passes only if its figure is a number and within its threshold; one failed rung is a FAIL.

The rungs: labels, weights, every layer in float64, probabilities on synthetic images and on photos, top-1 on photos.
"""

from __future__ import annotations

import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import cast

import numpy as np

from export import probe_images
from export.checkpoint import Checkpoint, file_digest, read_checkpoint
from export.graph import Graph
from export.hand_over import INPUT_RANGES, trace_checkpoint
from export.image_sets import ImageSet
from export.keras_h5 import KerasFile, read_keras_h5
from export.keras_process import run_keras
from export.report import Report
from export.rungs import check_labels, check_layers, check_probabilities, check_top1, check_weights
from export.torch_side import torch_layers, torch_probabilities
from models.bad_input import BadInput

# Every layer of one of them is some 100 MB in float64.
EXACT_IMAGES = 2


@dataclass(frozen=True)
class Case:
    """A pair, read and found comparable.

    Attributes:
        source: the torch side.
        graph: its neutral graph.
        twin: the Keras side, read without Keras.
        h5: its path.
        input_range: what it takes: ``unit`` or ``raw``.
        sets: the images for both sides.
    """

    source: Checkpoint
    graph: Graph
    twin: KerasFile
    h5: Path
    input_range: str
    sets: list[ImageSet]

    @property
    def exact_images(self) -> np.ndarray:
        """Few images for the comparison of every layer: photos where there are some; float64 in [0, 1], NHWC."""
        return self.sets[-1].exact(EXACT_IMAGES)


@dataclass(frozen=True)
class Pair:
    """A checkpoint and what is claimed to be its twin.

    Attributes:
        checkpoint: from ``lightning fit``.
        h5: the Keras file.
        photos: uint8, NHWC, RGB, (N, H, W, 3) at the checkpoint's size; None or empty: synthetic images only.
        photo_names: N names, for the report.
    """

    checkpoint: Path
    h5: Path
    photos: np.ndarray | None = None
    photo_names: Sequence[str] = ()


def check_parity(
    pair: Pair, keras_python: Path | None = None, progress: Callable[[str], None] = lambda text: None
) -> Report:
    """Climb the ladder for one pair.

    Args:
        pair: the two files, and photos.
        keras_python: interpreter whose Keras is to load the file; None: our own.
        progress: is told what goes on.

    Raises:
        BadInput: when a file is not what it should be, or that Keras cannot load the `.h5`.
        KerasFailed: when the Keras process crashed or ran out of time.
    """
    return check_pairs([pair], keras_python, progress)[0]


def check_pairs(
    pairs: Sequence[Pair], keras_python: Path | None = None, progress: Callable[[str], None] = lambda text: None
) -> list[Report]:
    """Climb the ladder for several pairs, all of them in one Keras process; otherwise as `check_parity`."""
    start = time.perf_counter()
    cases = [_read(pair) for pair in pairs]
    progress("Keras computes, in a process of its own")
    keras_sides = _keras_sides(cases, keras_python)
    progress("torch computes the same")
    reports = []
    for case, keras_side in zip(cases, keras_sides, strict=True):
        rungs = [check_labels(case.source, case.twin), check_weights(case.graph, case.twin, keras_side.weights)]
        expected = torch_layers(case.source.network, case.graph, case.exact_images)
        layers_rung, layer_errors = check_layers(case.graph, expected, keras_side.layers)
        rungs.append(layers_rung)
        for images, keras_gave in zip(case.sets, keras_side.probabilities, strict=True):
            torch_gave = torch_probabilities(case.source.network, images.batches())
            rungs.append(check_probabilities(images, torch_gave, keras_gave))
            if images.name == "photos":
                rungs.append(check_top1(images, torch_gave, keras_gave))
        model = {"path": str(case.h5), "sha256": file_digest(case.h5), "input_range": case.input_range}
        report = Report(
            checkpoint={"path": str(case.source.path), "sha256": case.source.digest},
            model=model,
            rungs=rungs,
            versions={"torch": _torch_versions(), "keras": keras_side.versions},
            layers=layer_errors,
        )
        report.seconds = round(time.perf_counter() - start, 2)
        reports.append(report)
    return reports


# The two sides --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _KerasSide:
    probabilities: list[np.ndarray]
    layers: dict[str, np.ndarray]
    weights: dict[str, np.ndarray]
    versions: dict[str, str]


def _read(pair: Pair) -> Case:
    source, twin = read_checkpoint(pair.checkpoint), read_keras_h5(pair.h5)
    input_range = twin.details.get("input_range", "unit")
    if input_range not in INPUT_RANGES:
        raise BadInput(f"{pair.h5}: expected input_range to be one of {', '.join(INPUT_RANGES)}, got {input_range!r}.")
    _check_input_shape(source, twin, pair.h5)
    sets = _image_sets(source, pair.photos, pair.photo_names)
    return Case(source, trace_checkpoint(source), twin, pair.h5, input_range, sets)


def _keras_sides(cases: list[Case], python: Path | None) -> list[_KerasSide]:
    with tempfile.TemporaryDirectory(prefix="shelftwin-") as name:
        jobs = []
        for number, case in enumerate(cases):
            folder = Path(name) / str(number)
            folder.mkdir()
            jobs.append((case.h5, _keras_tasks(case, folder)))
        images = sum(len(each.images) for case in cases for each in case.sets)
        reply = run_keras(jobs, python=python, time_limit=600 + 5 * images)
        return [_collect(tasks, reply["versions"]) for _, tasks in jobs]


def _keras_tasks(case: Case, folder: Path) -> list[dict[str, object]]:
    raw = case.input_range == "raw"
    exact, layers = folder / "exact.npy", folder / "layers"
    layers.mkdir()
    np.save(exact, case.exact_images * 255 if raw else case.exact_images)
    in_file = {layer["config"]["name"] for layer in case.twin.config["config"]["layers"]}
    names = [node.name for node in case.graph.nodes[1:] if node.name in in_file]
    tasks: list[dict[str, object]] = [
        {"task": "weights", "outputs": str(folder / "weights.npz")},
        {"task": "layers", "inputs": str(exact), "names": names, "folder": str(layers)},
    ]
    for each in case.sets:
        inputs = each.save(folder, case.input_range)
        tasks.append({"task": "predict", **inputs, "outputs": str(folder / f"{each.name}_probabilities.npy")})
    return tasks


def _collect(tasks: list[dict[str, object]], versions: dict[str, str]) -> _KerasSide:
    weights_task, layers_task, *predict_tasks = tasks
    with np.load(str(weights_task["outputs"]), allow_pickle=False) as arrays:
        weights = dict(arrays)
    folder, names = Path(str(layers_task["folder"])), cast(list[str], layers_task["names"])
    layers = {name: np.load(folder / f"{index}.npy", allow_pickle=False) for index, name in enumerate(names)}
    probabilities = [np.load(str(task["outputs"]), allow_pickle=False) for task in predict_tasks]
    return _KerasSide(probabilities, layers, weights, versions)


def _image_sets(source: Checkpoint, photos: np.ndarray | None, photo_names: Sequence[str]) -> list[ImageSet]:
    sets = [ImageSet("synthetic", probe_images.synthetic_images(source.image_size), probe_images.NAMES)]
    if photos is None or not len(photos):
        return sets
    if photos.dtype != np.uint8 or photos.shape[1:] != (*source.image_size, 3):
        raise BadInput(
            f"expected photos as uint8 (N, {source.image_size[0]}, {source.image_size[1]}, 3), the checkpoint's size, "
            f"got {photos.dtype} {photos.shape}. Load them with datamodule.photo_store.load_photo."
        )
    names = list(photo_names) or [f"photo {number}" for number in range(len(photos))]
    return [*sets, ImageSet("photos", photos, names)]


def _check_input_shape(source: Checkpoint, twin: KerasFile, h5: Path) -> None:
    """A file that takes other images cannot be compared at all."""
    layers = twin.config.get("config", {}).get("layers", [])
    first = layers[0].get("config", {}) if layers else {}
    shape = first.get("batch_input_shape", first.get("batch_shape"))
    expected = [None, *source.image_size, 3]
    if shape != expected:
        raise BadInput(
            f"expected a model whose input is {expected} (NHWC), the checkpoint's, got {h5} with input {shape}. "
            "Is it the twin of another checkpoint?"
        )


def _torch_versions() -> dict[str, str]:
    packages = {"torch": "torch", "timm": "timm", "lightning": "lightning", "pillow": "pillow", "numpy": "numpy"}
    return {"python": platform.python_version(), **{name: version(package) for name, package in packages.items()}}

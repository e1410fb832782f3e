"""What Keras computes for the proof: `keras_worker.py` is asked in a single process, however many files there are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from export.keras_file.layers import joined_activations
from export.proof.comparison import Comparison
from export.proof.probe_images import write_probe_files
from export.worker.keras_process import run_keras
from models.choices import AS_KERAS, MOST_PIXELS, PHOTO_FORMATS, RESCALE

# The most photos that both sides load from files.
MOST_FILES = 64

Task = dict[str, Any]
"""A task for `keras_worker.TASKS`."""


@dataclass(frozen=True)
class LoadedFiles:
    """Photos that Keras was asked to load from files.

    Attributes:
        files: N files.
        expected: as our side loads them, uint8, NHWC, (N, H, W, 3).
        pixels: as Keras does; zeros for those that cannot be read.
        probabilities: float32, (N, C).
        unreadable: index -> reason.
        decoded: index -> height, width and `keras_worker.array_digest` of the whole photo, uint8 (h, w, 3), as Keras
            decodes it; of those whose pixels are not the expected ones.
        lacking: formats of photos that were left out, as Keras's Pillow was built without them -> how many.
    """

    files: Sequence[Path]
    expected: np.ndarray
    pixels: np.ndarray
    probabilities: np.ndarray
    unreadable: dict[int, str]
    decoded: dict[int, tuple[int, int, str]]
    lacking: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class KerasSide:
    """Everything that one Keras computed for one file.

    Attributes:
        versions: of all packages that computed.
        weights: ``LAYER/INDEX`` -> array, as Keras holds it after loading.
        layers: node name -> output in float64, for the comparison's exact images.
        probabilities: for each set of images, float32, (N, C).
        exact: for the synthetic images, float64, (N, C).
        trained: like `weights`, in float64, after a few training steps; None if there were none.
        training_failed: why Keras could not train; empty if it could.
        loaded: the photos from files; None if none were asked for or Keras cannot load any.
        loading_skipped: why Keras cannot load any; empty if it can.
    """

    versions: dict[str, str]
    weights: dict[str, np.ndarray]
    layers: dict[str, np.ndarray]
    probabilities: list[np.ndarray]
    exact: np.ndarray
    trained: dict[str, np.ndarray] | None = None
    training_failed: str = ""
    loaded: LoadedFiles | None = None
    loading_skipped: str = ""


def keras_sides(comparisons: Sequence[Comparison], folder: Path, python: Path | None) -> Iterator[KerasSide]:
    """Ask one Keras about all comparisons; what it computed for each is read when its turn comes.

    Args:
        comparisons: what to compare.
        folder: empty, for the files that are exchanged with the worker; must outlast the iterator.
        python: interpreter that has the Keras; None: our own.

    Raises:
        BadInput: the interpreter has no Keras, or its Keras cannot load a model.
        KerasFailed: the process crashed or ran out of time.
    """
    asked = []
    for number, comparison in enumerate(comparisons):
        own, probes = folder / f"{number}", folder / f"{number}-probes"
        own.mkdir()
        probes.mkdir()
        asked.append(_tasks(comparison, own, probes))
    jobs = [(comparison.h5, list(tasks.values())) for comparison, tasks in zip(comparisons, asked, strict=True)]
    images = sum(len(each.images) for comparison in comparisons for each in comparison.sets)
    reply = run_keras(jobs, python=python, time_limit=600 + 120 * len(comparisons) + 5 * images)
    return (
        _collect(comparison, tasks, dict(zip(tasks, results, strict=True)), reply["versions"])
        for comparison, tasks, results in zip(comparisons, asked, reply["results"], strict=True)
    )


def _tasks(comparison: Comparison, folder: Path, probes: Path) -> dict[str, Task]:
    """The tasks, by names of our own; the probe photos are written into `probes`."""
    exact, layers = folder / "exact.npy", folder / "layers"
    layers.mkdir()
    raw = comparison.input_range == "raw"
    np.save(exact, comparison.exact_images * 255 if raw else comparison.exact_images)
    in_file = {layer["config"]["name"] for layer in comparison.twin.config["config"]["layers"]}
    joined = {} if comparison.separate else joined_activations(comparison.graph)
    place_of = {node.name: joined.get(node.name, node.name) for node in comparison.graph.nodes[1:]}
    place_of = {node: place for node, place in place_of.items() if place in in_file}
    # a layer with an activation inside gives the activation's output: what it has before that is asked for, too
    before = [place for node, place in joined.items() if place in in_file]
    after = {node: place for node, place in place_of.items() if node not in before}
    tasks: dict[str, Task] = {
        "weights": {"task": "weights", "outputs": str(folder / "weights.npz")},
        "layers": {
            "task": "layers",
            "inputs": str(exact),
            "nodes": [*after, *before],
            "names": list(after.values()),
            "before_activation": before,
            "folder": str(layers),
        },
    }
    for each in comparison.sets:
        inputs = each.save(folder, comparison.input_range)
        if each is comparison.sets[0]:
            again = {"images": inputs["inputs"], "scale": inputs["scale"], "answers": str(folder / "exact_answers.npy")}
            tasks["layers"] |= again
        tasks[each.name] = {"task": "predict", **inputs, "outputs": str(folder / f"{each.name}_probabilities.npy")}
    steps = comparison.training_steps
    if comparison.twin.training_config is not None and not isinstance(steps, str):
        np.save(
            folder / "training_steps.npy",
            steps.images * 255 if raw else steps.images,
        )
        np.save(folder / "targets.npy", steps.targets)
        tasks["train"] = {
            "task": "train",
            "inputs": str(folder / "training_steps.npy"),
            "targets": str(folder / "targets.npy"),
            "steps": steps.steps,
            "copy": str(folder / "float64.h5"),
            "outputs": str(folder / "trained.npz"),
        }
        tasks["layers"] |= {"copy": tasks["train"]["copy"], "compiled": True}  # loaded once for both
    if (load_photo := comparison.pair.load_photo) is not None and comparison.source.network.channels == 3:
        files = [path.resolve() for path in [*write_probe_files(probes), *chosen_files(comparison.pair.photo_files)]]
        source = comparison.source
        loading = {} if source.loading == AS_KERAS else {"loading": source.loading}
        ours = [partial(load_photo, **loading)(path, source.image_size, source.interpolation) for path in files]
        np.save(folder / "expected_pixels.npy", np.stack(ours))
        tasks["files"] = {
            "task": "files",
            "files": [str(path) for path in files],
            "expected": str(folder / "expected_pixels.npy"),
            "image_size": list(comparison.source.image_size),
            # as someone would load them who has nothing but the file
            "interpolation": comparison.twin.details.get("interpolation", "nearest"),
            "background": comparison.twin.details.get("background"),
            "deep_grey": comparison.twin.details.get("deep_grey", "clip"),
            "scale": 1.0 if raw else float(RESCALE),
            "formats": list(PHOTO_FORMATS),
            "most_pixels": MOST_PIXELS,
            "pixels": str(folder / "file_pixels.npy"),
            "outputs": str(folder / "file_probabilities.npy"),
        }
    return tasks


def chosen_files(files: Sequence[Path]) -> list[Path]:
    """Return at most `MOST_FILES` of the files, evenly spread."""
    chosen = np.unique(np.linspace(0, len(files) - 1, min(len(files), MOST_FILES)).round().astype(int))
    return [files[index] for index in chosen]


def _collect(
    comparison: Comparison, tasks: dict[str, Task], results: dict[str, Any], versions: dict[str, str]
) -> KerasSide:
    layers = Path(tasks["layers"]["folder"])
    train, files = results.get("train", {}), results.get("files", {})
    loaded = None
    if "files" in tasks and "skipped" not in files:
        paths = tasks["files"]["files"]
        kept = [index for index in range(len(paths)) if str(index) not in files["lacking"]]
        place = {str(index): place for place, index in enumerate(kept)}
        loaded = LoadedFiles(
            [Path(paths[index]) for index in kept],
            _load(tasks["files"]["expected"])[kept],
            _load(tasks["files"]["pixels"])[kept],
            _load(tasks["files"]["outputs"])[kept],
            {place[index]: reason for index, reason in files["unreadable"].items()},
            {place[index]: (height, width, digest) for index, (height, width, digest) in files["decoded"].items()},
            dict(Counter(files["lacking"].values())),
        )
    return KerasSide(
        versions=versions,
        weights=_arrays(tasks["weights"]["outputs"]),
        layers={name: _load(layers / f"{index}.npy") for index, name in enumerate(tasks["layers"]["nodes"])},
        probabilities=[_load(tasks[each.name]["outputs"]) for each in comparison.sets],
        exact=_load(tasks["layers"]["answers"]),
        trained=_arrays(tasks["train"]["outputs"]) if train and "failed" not in train else None,
        training_failed=train.get("failed", ""),
        loaded=loaded,
        loading_skipped=files.get("skipped", ""),
    )


def _load(path: str | Path) -> np.ndarray:
    return np.load(path, allow_pickle=False)


def _arrays(path: str) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)

"""The proof of an upgrade: the new file computes in the new Keras what the old file computes in the old one.

Both sides are real Kerases in processes of their own, given the same arrays. The old file is tried in this
environment's Keras first. Where that cannot load it, `tf_keras` can, in an environment of its own.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from export.graph.nodes import Graph, Node
from export.keras_file.architecture import KerasGraph
from export.keras_file.preprocessing import likely_range
from export.keras_file.readers.axes import keras_shape
from export.keras_file.upgraded import UpgradedLayers
from export.proof.checks import check_layers, check_probabilities, check_top1, same_bits
from export.proof.image_sets import ImageSet
from export.proof.probe_images import EXACT_NAMES, NAMES, synthetic_images
from export.proof.report import Check, Report
from export.proof.rounding import allowed_difference
from export.worker.environments import TF_KERAS
from export.worker.keras_process import KERAS_WORKER, run_worker
from models.digests import file_digest

_TIME_LIMIT = 900.0
# Two Keras processes need about 1 GiB each; with less than this free, one runs after the other.
_FREE_FOR_TWO = 4 << 30


@dataclass(frozen=True)
class Upgrade:
    """An old file and the new one that should take its place.

    Attributes:
        old: the file, as its own Keras loads it.
        new: the `.h5` that was written.
        source: the old file's graph.
        translated: the new file's layers.
    """

    old: Path
    new: Path
    source: KerasGraph
    translated: UpgradedLayers


@dataclass(frozen=True)
class UpgradeProof:
    """The outcome.

    Attributes:
        report: all checks.
        refusal: what this environment's Keras said when it was to load the old file; None if it loaded it.
    """

    report: Report
    refusal: str | None


def check_upgrade(
    upgrade: Upgrade, keras_python: Path | None = None, progress: Callable[[str], None] = lambda text: None
) -> UpgradeProof:
    """Compare both files.

    Args:
        upgrade: the files.
        keras_python: interpreter whose Keras loads the old file; None: this environment's, or else `tf_keras`.
        progress: called with a short text at each step.

    Raises:
        BadInput: no Keras at hand loads the old file, or this environment's does not load the new one.
        KerasFailed: a Keras process crashed or ran out of time.
    """
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="shelftwin-") as name:
        sides = {side: Path(name) / side for side in ("old", "new", "early")}
        probes = _probes(upgrade.source)
        for folder in sides.values():
            _save(probes, folder)
        refusal, versions, old_side = _run(upgrade, sides, keras_python, progress)
        report = Report(
            checkpoint={"path": str(upgrade.old), "sha256": file_digest(upgrade.old)},
            model={"path": str(upgrade.new), "sha256": file_digest(upgrade.new), "input_range": "as the old file"},
            versions=versions,
            checks=[_check_weights(upgrade, sides["new"])],
        )
        old, new = (_answers(folder, upgrade, side) for folder, side in ((old_side, "old"), (sides["new"], "new")))
        layers, report.layers = _check_layers(upgrade, old, new)
        report.checks += [layers, *_check_answers(layers, probes, old, new)]
        report.seconds = round(time.perf_counter() - start, 2)
    return UpgradeProof(report, refusal)


def _probes(source: KerasGraph) -> ImageSet:
    """Images in the range that the old file takes, as far as its layers show it; both files are given the same."""
    shape = keras_shape(source.graph.nodes[0])
    height, width, channels = shape if len(shape) == 3 else (*shape, 1, 1)[:3]
    images = synthetic_images((height, width), channels=max(3, channels))[..., :channels].reshape(-1, *shape)
    shown = likely_range(source.graph)
    if shown == "raw":
        images = images * np.float32(255)
    elif shown is None:
        images = images * np.float32(2) - np.float32(1)
    return ImageSet("images", images, NAMES)


def _exact(probes: ImageSet) -> list[int]:
    return [list(probes.names).index(name) for name in EXACT_NAMES]


def _save(probes: ImageSet, folder: Path) -> None:
    (folder / "layers").mkdir(parents=True)
    np.save(folder / "images.npy", probes.images)
    np.save(folder / "exact.npy", probes.images[_exact(probes)].astype(np.float64))


def _run(
    upgrade: Upgrade, sides: dict[str, Path], keras_python: Path | None, progress: Callable[[str], None]
) -> tuple[str | None, dict[str, dict[str, str]], Path]:
    """Have both files computed.

    Returns:
        What this Keras said of the old file (None: it loaded it), the versions on both sides, and the folder with the
        old file's results.
    """
    new, old = _job(upgrade, sides["new"], "new"), {**_job(upgrade, sides["old"], "old"), "may_refuse": True}
    early: Future[dict[str, Any]] | None = None
    beside: Future[dict[str, Any]] | None = None
    with ThreadPoolExecutor(1) as pool:
        # Both files at once, where there is room for two processes; one of Keras 2 mostly needs its own Keras.
        if (os.cpu_count() or 1) > 1 and _free_memory() >= _FREE_FOR_TWO:
            if _mostly_refused(upgrade):
                if keras_python or TF_KERAS.is_whole:
                    early = pool.submit(_in_old_keras, upgrade, sides["early"], keras_python, lambda text: None)
            elif keras_python is None:
                beside = pool.submit(run_worker, KERAS_WORKER, {"jobs": [old]}, time_limit=_TIME_LIMIT)
        progress("Keras computes, in a process of its own")
        if keras_python:  # that one computes it; here it is only asked whether it can be loaded
            old["tasks"] = []
        reply = run_worker(KERAS_WORKER, {"jobs": [new] if beside else [new, old]}, time_limit=_TIME_LIMIT)
        asked = beside.result()["results"][0] if beside else reply["results"][1]
        refused = asked[0].get("refused") if asked else None
        refusal = _said(refused, upgrade.old) if refused else None
        if refusal is None and keras_python is None:
            return None, {"old file": reply["versions"], "new file": reply["versions"]}, sides["old"]
        progress("the old file's own Keras computes the same")
        other = early.result() if early else _in_old_keras(upgrade, sides["early"], keras_python, progress)
    return refusal, {"old file": other["versions"], "new file": reply["versions"]}, sides["early"]


def _in_old_keras(
    upgrade: Upgrade, folder: Path, keras_python: Path | None, progress: Callable[[str], None]
) -> dict[str, Any]:
    python = keras_python or TF_KERAS.python(progress)
    request = {"jobs": [_job(upgrade, folder, "old")]}
    return run_worker(KERAS_WORKER, request, python=python, time_limit=_TIME_LIMIT, legacy=keras_python is None)


def _mostly_refused(upgrade: Upgrade) -> bool:
    """Whether Keras 3 is known not to load the file: an old DepthwiseConv2D, or an operation of TensorFlow's."""
    return any(
        layer.class_name == "TFOpLambda" or "groups" in layer.config
        for layer in upgrade.source.layers.values()
        if layer.class_name in ("TFOpLambda", "DepthwiseConv2D")
    )


def _free_memory() -> int:
    """Bytes; 0 where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return 0


def _said(refused: str, old: Path) -> str:
    """Keras's own words, without ours before them."""
    return refused.partition(f"cannot load {old.resolve()}: ")[2] or refused


def _is_half(source: KerasGraph) -> bool:
    return bool(source.half_precision)


def _job(upgrade: Upgrade, folder: Path, side: str) -> dict[str, Any]:
    """What one side is asked: its answers in float32 and every layer in float64; of the new file, what it loaded."""
    is_old = side == "old"
    layers = upgrade.source.layers
    fed_by = {
        "/".join(path): None if feeding is None or layers[feeding].class_name == "InputLayer" else feeding
        for path, feeding in upgrade.source.fed_by.items()
    }
    predict: dict[str, Any] = {
        "task": "predict", "inputs": str(folder / "images.npy"), "scale": 1.0, "outputs": str(folder / "answers.npy"),
    }  # fmt: skip
    if is_old and _is_half(upgrade.source):
        # the same file, every layer in float32: half precision would be compared with nothing but itself
        predict |= {"task": "predict_exact", "dtype": "float32", "copy": str(folder / "float32.h5")}
    tasks = [
        {
            "task": "layers",
            "inputs": str(folder / "exact.npy"),
            "folder": str(folder / "layers"),
            "names": _names(upgrade, side),
            "fed_by": fed_by if is_old else {},
            "images": str(folder / "images.npy"),
            "scale": 1.0,
            "answers": str(folder / "answers_float64.npy"),
        },
    ]
    if not is_old:  # they are compared with what was read from the old file
        tasks.append({"task": "weights", "outputs": str(folder / "weights.npz")})
    model = upgrade.old if is_old else upgrade.new
    # the old file's own losses may be its author's
    return {"model": os.path.realpath(model), "tasks": [predict, *tasks], "compile": not is_old}


def _names(upgrade: Upgrade, side: str) -> list[str]:
    """The compared layers as that side's file calls them, in the order in which their outputs are stored."""
    compared = upgrade.translated.compared
    return list(compared) if side == "old" else list(dict.fromkeys(compared.values()))


@dataclass(frozen=True)
class _Answers:
    float32: np.ndarray
    float64: np.ndarray
    layers: dict[str, np.ndarray]


def _answers(folder: Path, upgrade: Upgrade, side: str) -> _Answers:
    names = _names(upgrade, side)
    layers = {name: np.load(folder / "layers" / f"{index}.npy", allow_pickle=False) for index, name in enumerate(names)}
    single, double = (np.load(folder / name, allow_pickle=False) for name in ("answers.npy", "answers_float64.npy"))
    return _Answers(single, double, layers)


def _check_weights(upgrade: Upgrade, folder: Path) -> Check:
    with np.load(folder / "weights.npz", allow_pickle=False) as arrays:
        loaded = dict(arrays)
    different, count = [], 0
    for layer in upgrade.translated.layers:
        for index, (role, _, array) in enumerate(layer.weights):
            count += 1
            held = loaded.pop(f"{layer.name}/{index}", None)
            if held is None or not same_bits(np.ascontiguousarray(array), held):
                different.append(f"{layer.name}/{role}")
    different += list(loaded)
    detail = f"{count} arrays of the old file, bit for bit, in the new one as Keras loaded it"
    return Check("weights", not different, len(different), 0, "arrays differ", detail, next(iter(different), None))


def _check_layers(upgrade: Upgrade, old: _Answers, new: _Answers) -> tuple[Check, list[Any]]:
    source, compared = upgrade.source, upgrade.translated.compared
    # each is judged and named by its key in the old file, in the order of computation
    nodes = []
    for key in compared:
        node = source.graph.node(source.outputs[key])
        nodes.append(Node(key, node.op, (), node.shape, node.attributes, {}, key))
    graph = Graph((source.graph.nodes[0], *nodes), {})
    received = {key: new.layers[name] for key, name in compared.items()}
    return check_layers(graph, old.layers, received, " and ".join(EXACT_NAMES))


def _check_answers(layers: Check, probes: ImageSet, old: _Answers, new: _Answers) -> list[Check]:
    scale = max(1.0, float(np.nanmax(np.abs(old.float32)))) if old.float32.size else 1.0
    sides = {"old file": (old.float32, old.float64), "new file": (new.float32, new.float64)}
    allowed = allowed_difference(layers, sides, scale)
    check = check_probabilities(probes, old.float32, new.float32, threshold=allowed.threshold)
    detail = (
        f"{len(probes.images)} images through both files, both in float32" if check.figure < np.inf else check.detail
    )
    why = f"; {allowed.why}" if allowed.why else ""
    answers = replace(check, name="answers", detail=detail + why)
    if old.float32.ndim != 2 or old.float32.shape[1] < 2:
        return [answers]
    return [answers, replace(check_top1(probes, old.float32, new.float32, tie=allowed.threshold), name="labels")]

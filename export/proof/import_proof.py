"""The proof of an import: a checkpoint and the Keras `.h5` that it was imported from are the same function.

The ladder is the same as for a twin (`parity.py`), but the file was not written by us: its layers have other names and
may be nested, it does not state its classes, and it may take another range of values. The layers of the two sides are
matched as when the weights were read (`keras_to_torch.py`). The checkpoint as it is on disk is compared with what a
real Keras computes from the file.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from export.checkpoint import Checkpoint, OwnCheckpoint, read_checkpoint
from export.graph.nodes import Graph, Node
from export.keras_file.architecture import WITHOUT_EFFECT
from export.keras_file.read import KerasFile, read_keras_file
from export.keras_to_torch import (
    INPUT_RANGES,
    ImportSettings,
    KerasClassifier,
    names_stated,
    probabilities_of,
    read_keras_classifier,
)
from export.proof.checks import check_layers, check_probabilities, check_top1, same_bits
from export.proof.comparison import exact_images, exact_kind
from export.proof.image_sets import ImageSet
from export.proof.report import Check, LayerError, PhotoDifference, Report, worst_photos
from export.proof.rounding import Allowed, allowed_difference
from export.proof.torch_side import torch_exact, torch_layers
from export.torch_answers import torch_probabilities
from export.worker.environments import TF_KERAS
from export.worker.keras_process import run_keras
from models.bad_input import BadInput
from models.digests import file_digest

# torch's layout -> Keras's
_TO_KERAS = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}
_TO_KERAS_DEPTHWISE = (2, 3, 0, 1)
# Checks that the ladder of a twin has, and why this one does not have them.
_SKIPPED = {
    **dict.fromkeys(
        ("file_pixels", "file_labels"),
        "an import is compared on the same pixels: a foreign file does not say how its photos are loaded",
    ),
    "training_steps": "an import is compared as it predicts: it is trained on with Adam, anew, whatever the file says",
}
# What a file of half precision gives as it is, for the synthetic images.
_AS_SAVED = "as_saved.npy"
# Advice if the checkpoint was not imported from a Keras file, and the file states nothing about its origin.
_SAVED_AGAIN = (
    "The file says nothing of its origin, and the checkpoint was imported from no file: probably the twin was saved "
    "again by Keras, which drops ShelfTwin's attributes (or the checkpoint has been trained on since its import). "
    "Compare the file as it was exported."
)


@dataclass(frozen=True)
class Import:
    """A checkpoint, the Keras file that it was imported from, and images for both.

    Attributes:
        checkpoint: from ``lightning import``.
        h5: the Keras file, as its owner saved it.
        sets: images for both sides, from `comparison.image_sets`.
        given: the file whose digest the checkpoint carries, if `h5` was put together from it; None: `h5`.
    """

    checkpoint: Path
    h5: Path
    sets: list[ImageSet]
    given: Path | None = None


@dataclass(frozen=True)
class _Comparison:
    """An import that has been read.

    Attributes:
        given: the two files and the images.
        source: the torch side.
        classifier: the network read from the file.
        facts: the check that both state the same facts.
        compared: our node -> the Keras layer with the same output.
    """

    given: Import
    source: OwnCheckpoint
    classifier: KerasClassifier
    facts: Check
    compared: dict[str, str]


def check_imports(
    imports: Sequence[Import],
    versions: dict[str, str],
    keras_python: Path | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> list[Report]:
    """Make all checks for checkpoints and the Keras files that they were imported from, in one Keras process.

    Args:
        imports: the files and the images.
        versions: of torch's side, for the report.
        keras_python: interpreter whose Keras loads the files; None: our own, and `tf_keras` where that does not.
        progress: called with a short text at each step.

    Raises:
        BadInput: a file is not what it should be, or neither Keras can load the `.h5`.
        KerasFailed: the Keras process crashed or ran out of time.
    """
    start = time.perf_counter()
    comparisons = [_read(given) for given in imports]
    progress("Keras computes, in a process of its own")
    reports = []
    with tempfile.TemporaryDirectory(prefix="shelftwin-") as name:
        folders = [Path(name) / str(number) for number in range(len(comparisons))]
        jobs = [
            (comparison.given.h5, _tasks(comparison, folder))
            for comparison, folder in zip(comparisons, folders, strict=True)
        ]
        images = sum(len(each.images) for comparison in comparisons for each in comparison.given.sets)
        reply = _computed(jobs, keras_python, 600 + 5 * images, progress)
        progress("torch computes the same")
        for comparison, folder in zip(comparisons, folders, strict=True):
            checks, layer_errors, photos = _run_checks(comparison, folder)
            report = Report(
                checkpoint={"path": str(comparison.given.checkpoint), "sha256": comparison.source.digest},
                model={
                    "path": str(comparison.given.h5),
                    "sha256": file_digest(comparison.given.given or comparison.given.h5),
                    "input_range": comparison.classifier.input_range,
                },
                checks=checks,
                versions={"torch": versions, "keras": reply["versions"]},
                layers=layer_errors,
                class_names=list(comparison.source.class_names),
                photos=photos,
                skipped=dict(_SKIPPED),
            )
            if report.failed and _is_saved_again(comparison.source, comparison.classifier.file):
                report.likely_cause = _SAVED_AGAIN
            report.seconds = round(time.perf_counter() - start, 2)
            reports.append(report)
    return reports


def _computed(
    jobs: list[tuple[Path, list[dict[str, Any]]]],
    keras_python: Path | None,
    time_limit: float,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """The worker's reply; where this environment's Keras does not load a file, that of `tf_keras`."""
    try:
        return run_keras(jobs, python=keras_python, time_limit=time_limit)
    except BadInput as refused:
        if keras_python:
            raise
        progress("this Keras does not load it: tf_keras computes")
        try:
            return run_keras(jobs, python=TF_KERAS.python(progress), time_limit=time_limit, legacy=True)
        except BadInput:
            raise refused from None


def _read(given: Import) -> _Comparison:
    source = read_checkpoint(given.checkpoint)
    imported_range = source.imported_range if source.imported_range in INPUT_RANGES else None
    settings = ImportSettings(
        source.class_names, source.image_size, source.interpolation, imported_range, source.imported_output
    )
    try:
        classifier = read_keras_classifier(given.h5, settings)
    except BadInput as error:
        if _is_saved_again(source, read_keras_file(given.h5)):
            raise BadInput(f"{error}\n{_SAVED_AGAIN}") from error
        raise
    return _Comparison(
        given,
        source,
        classifier,
        _check_facts(source, classifier, given.given or given.h5),
        _compared_nodes(classifier),
    )


def _is_saved_again(source: Checkpoint, file: KerasFile) -> bool:
    """Whether neither side refers to the other: then the checkpoint was probably not made from this file."""
    return source.imported_from is None and not file.details


def _run_checks(comparison: _Comparison, folder: Path) -> tuple[list[Check], list[LayerError], list[PhotoDifference]]:
    source, classifier = comparison.source, comparison.classifier
    checks = [comparison.facts]
    layer_errors: list[LayerError] = []
    photos: list[PhotoDifference] = []
    torch_gave = [torch_probabilities(source.network, images.batches()) for images in comparison.given.sets]
    keras_gave = [
        probabilities_of(np.load(folder / f"{images.name}_probabilities.npy", allow_pickle=False), classifier.output)
        for images in comparison.given.sets
    ]
    allowed = Allowed()
    if source.network.architecture == classifier.network.architecture:  # otherwise nothing can be matched
        with np.load(folder / "weights.npz", allow_pickle=False) as arrays:
            checks.append(_check_weights(source, classifier, dict(arrays)))
        gave = {
            node: np.load(folder / "layers" / f"{index}.npy", allow_pickle=False)
            for index, node in enumerate(comparison.compared)
        }
        # with the constants as the file states them, because Keras does not round them in float64 either
        expected = torch_layers(_unrounded(source, classifier), classifier.graph, exact_images(comparison.given.sets))
        gave = {node: _comparable(classifier, node, value, expected[node]) for node, value in gave.items()}
        nodes = (_alone(classifier.graph.node(node)) for node in comparison.compared)
        graph = Graph((classifier.graph.nodes[0], *nodes), {})
        check, layer_errors = check_layers(graph, expected, gave, exact_kind(comparison.given.sets))
        checks.append(check)
        synthetic = comparison.given.sets[0].images
        exact = probabilities_of(np.load(folder / "exact_answers.npy", allow_pickle=False), classifier.output)
        sides = {
            "torch": (torch_gave[0], torch_exact(_unrounded(source, classifier), synthetic)),
            "Keras": (keras_gave[0], exact),
        }
        allowed = allowed_difference(check, sides)
    why = "; ".join(filter(None, (_half_precision(classifier, folder, keras_gave[0]), allowed.why)))
    for images, from_torch, from_keras in zip(comparison.given.sets, torch_gave, keras_gave, strict=True):
        checks.append(check_probabilities(images, from_torch, from_keras, threshold=allowed.threshold, why=why))
        checks.append(check_top1(images, from_torch, from_keras, tie=allowed.threshold))
        if images.name == "photos":
            photos = worst_photos(images, from_torch, from_keras)
    return checks, layer_errors, photos


def _half_precision(classifier: KerasClassifier, folder: Path, in_float32: np.ndarray) -> str:
    """What is compared where the file computes in half precision, and what that does to its answers."""
    if not classifier.source.half_precision:
        return ""
    as_saved = probabilities_of(np.load(folder / _AS_SAVED, allow_pickle=False), classifier.output)
    moved = float(np.abs(as_saved.astype(np.float64) - in_float32).max())
    return f"Keras computes the file in float32: its own half precision moves its answers here by up to {moved:.2g}"


def _check_facts(source: Checkpoint, classifier: KerasClassifier, given: Path) -> Check:
    """Whether the checkpoint was made from this very file and describes the same network, classes and images."""
    stated, names = classifier.file.details, names_stated(classifier.file, bool(classifier.doubled))
    pairs: dict[str, tuple[Any, Any]] = {
        "imported_from": (source.imported_from, file_digest(given)),
        "architecture": (source.network.architecture, classifier.network.architecture),
        "class_names": (list(source.class_names), names if names is not None else list(source.class_names)),
        "image_size": (list(source.image_size), stated.get("image_size", list(classifier.image_size))),
        "interpolation": (source.interpolation, stated.get("interpolation", source.interpolation)),
    }
    wrong = [name for name, (own, other) in pairs.items() if own != other]
    detail = f"{', '.join(pairs)} of the checkpoint equal the file's, where it states them"
    if wrong:
        shown = [f"{name} {str(pairs[name][0])[:80]} (file: {str(pairs[name][1])[:80]})" for name in wrong]
        detail = f"the checkpoint says {'; '.join(shown)}"
    return Check("labels", not wrong, len(wrong), 0, "facts differ", detail, wrong[0] if wrong else None)


def _check_weights(source: Checkpoint, classifier: KerasClassifier, loaded: dict[str, np.ndarray]) -> Check:
    """Compare every array, both in the file and as loaded by Keras, with the checkpoint, bit for bit."""
    state = {name: tensor.numpy() for name, tensor in source.network.state_dict().items()}
    different, in_keras = [], dict(loaded)
    for node in classifier.graph.nodes:
        # the arrays are in Keras's order within a layer: kernel, bias; gamma, beta, moving_mean, moving_variance
        for index, tensor in enumerate(node.weights.values()):
            name = classifier.tensor_of[tensor]
            other = classifier.source.graph.node(classifier.layer_of[node.name])
            held = in_keras.pop(f"{other.source}/{place_in_keras(classifier.source.graph, other, index)}", None)
            own, in_file = state[tensor], classifier.source.graph.tensors[name]
            if other.name == classifier.doubled:  # the first of two classes is logit 0
                if own[:1].any():
                    different.append(name)
                own, in_file = own[1:], in_file[1:]
            expected, in_file = _keras_layout(node, own), _keras_layout(node, in_file)
            if held is not None and held.size == expected.size:  # heads and their sizes are two axes in Keras
                held = held.reshape(expected.shape)
            if held is None or not (same_bits(expected, in_file) and same_bits(expected, held)):
                different.append(name)
    preprocessing = {node.source for node in classifier.source.graph.nodes if node.op == "affine"}
    different += [
        f"{name} (not in the checkpoint)" for name in in_keras if name.rpartition("/")[0] not in preprocessing
    ]
    detail = f"{len(classifier.tensor_of)} arrays, in the file and as loaded, against the checkpoint's tensors"
    first = different[0] if different else None
    return Check("weights", not different, len(different), 0, "arrays differ", detail, first)


def place_in_keras(graph: Graph, node: Node, index: int) -> int:
    """Place of a node's array among those of its Keras layer: a SeparableConv2D is two nodes."""
    before = [each for each in graph.nodes if each.source == node.source and each.weights]
    return index + sum(len(each.weights) for each in before[: before.index(node)])


def _keras_layout(node: Node, array: np.ndarray) -> np.ndarray:
    if node.op == "prelu":
        return np.moveaxis(array, 0, -1)
    if node.op == "conv2d" and array.ndim == 4 and node.attributes["groups"] > 1 and array.shape[1] == 1:
        groups = node.attributes["groups"]
        return array.reshape(groups, -1, *array.shape[2:]).transpose(_TO_KERAS_DEPTHWISE)
    return array.transpose(_TO_KERAS[array.ndim])


def _compared_nodes(classifier: KerasClassifier) -> dict[str, str]:
    """Our node -> Keras layer with the same output. In a Dense with an activation, only the activation has one."""
    layer_with_output = {
        node: key
        for key, node in classifier.source.outputs.items()
        if classifier.source.layers[key].class_name not in WITHOUT_EFFECT
    }
    # the normalised image comes first: if it differs, nothing after it can agree
    pairs = {node: other for node, other in classifier.layer_of.items() if other in layer_with_output}
    return {node: layer_with_output[other] for node, other in pairs.items()}


def _comparable(classifier: KerasClassifier, node: str, value: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """A Keras layer's output in our node's shape.

    Keras's pooling may keep two dimensions: (N, 1, 1, C) becomes (N, C) if torch has that shape. A single output
    becomes two classes.
    """
    if value.ndim == 2 and value.shape[1] == 1 and expected.shape[1] == 2:
        logits = classifier.layer_of[node] == classifier.doubled
        return np.concatenate([0 * value, value] if logits else [1 - value, value], axis=1)
    if value.shape == expected.shape[:-1] and expected.shape[-1] == 1:
        return value[..., None]  # x[..., i]: Keras has no axis for the one channel
    return value[:, 0, 0] if value.ndim == 4 and expected.ndim == 2 and value.shape[1:3] == (1, 1) else value


def _alone(node: Node) -> Node:
    """The node without inputs and weights; the report needs only its name, operation and module."""
    return Node(node.name, node.op, (), node.shape, node.attributes, {}, node.source)


def _unrounded(source: OwnCheckpoint, classifier: KerasClassifier) -> torch.nn.Module:
    network = copy.deepcopy(source.network).double()
    scale, offset = (torch.from_numpy(each).reshape(1, 3, 1, 1) for each in classifier.constants)
    network.normalise.scale, network.normalise.offset = scale, offset
    return network


def _tasks(comparison: _Comparison, folder: Path) -> list[dict[str, object]]:
    classifier = comparison.classifier
    (folder / "layers").mkdir(parents=True)
    factor, shift = INPUT_RANGES[classifier.input_range]
    np.save(folder / "exact.npy", exact_images(comparison.given.sets) * factor + shift)
    layers = classifier.source.layers
    fed_by = {
        "/".join(path): None if feeding is None or layers[feeding].class_name == "InputLayer" else feeding
        for path, feeding in classifier.source.fed_by.items()
    }
    names = {"names": list(comparison.compared.values()), "fed_by": fed_by}
    paths = {"inputs": str(folder / "exact.npy"), "folder": str(folder / "layers")}
    tasks: list[dict[str, object]] = [
        {"task": "weights", "outputs": str(folder / "weights.npz")},
        {"task": "layers", **names, **paths},
    ]
    for each in comparison.given.sets:
        inputs = each.save(folder, classifier.input_range)
        if each is comparison.given.sets[0]:
            answers = str(folder / "exact_answers.npy")
            tasks[1] |= {"images": inputs["inputs"], "scale": inputs["scale"], "answers": answers}
        predict = {"task": "predict", **inputs, "outputs": str(folder / f"{each.name}_probabilities.npy")}
        if classifier.source.half_precision:
            # the same file, every layer in float32: half precision would be compared with nothing but itself
            if each is comparison.given.sets[0]:
                tasks.append({**predict, "outputs": str(folder / _AS_SAVED)})
            predict |= {"task": "predict_exact", "dtype": "float32", "copy": str(folder / "float32.h5")}
        tasks.append(predict)
    return tasks

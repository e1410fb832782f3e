"""Why twins differ, if the error shows a known pattern: find the hypothesis that reproduces what Keras computed."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from export.graph.nodes import Node
from export.keras_file.layers import keras_layers
from export.keras_file.write import training_config
from export.proof.checks import difference_of
from export.proof.comparison import Comparison, LoadPhoto
from export.proof.diagnosis.layer_faults import hypotheses
from export.proof.keras_side import KerasSide, LoadedFiles
from export.proof.report import Report
from export.worker.keras_worker import array_digest, pillow_versions
from models.bad_input import BadInput
from models.choices import INTERPOLATIONS

# A hypothesis is right if it reproduces Keras's output up to the float64 rounding of one layer.
EXPLAINS = 1e-9
# Checks that also fail where the network is the same, but Pillow is another.
_OF_FILES = {"file_pixels", "file_labels"}


def likely_cause(
    comparison: Comparison, report: Report, torch_gave: dict[str, np.ndarray], keras_side: KerasSide
) -> str | None:
    """Explain the first failed check; None if no known pattern fits.

    Args:
        comparison: what was compared.
        report: with its checks; at least one of them failed.
        torch_gave: node name -> output in float64.
        keras_side: what Keras computed.
    """
    first = report.failed[0]
    if first.name == "labels":
        return _of_labels(comparison)
    if first.name == "weights":
        return _of_weights(comparison)
    if first.name == "layers_float64" and first.first_divergence:
        return _of_layer(comparison, comparison.graph.node(first.first_divergence), torch_gave, keras_side.layers)
    if first.name == "file_pixels":
        return _of_files(comparison, report, keras_side)
    if first.name == "training_steps":
        return _of_training(comparison, first.first_divergence)
    return None


def _of_training(comparison: Comparison, first: str | None) -> str | None:
    stated = comparison.twin.training_config
    if stated is None:
        return None  # the check's own text says so
    if stated.get("optimizer_config") != training_config(comparison.source.learning_rate)["optimizer_config"]:
        return "The file's training configuration is not Adam at the checkpoint's learning rate with Keras's epsilon."
    layer = (first or "").partition("/")[0]
    frozen = [node.name for node in comparison.graph.nodes if not node.source.startswith("head")]
    if comparison.source.trainable == "head" and layer in frozen:
        return f"{layer} is frozen in the checkpoint, and this Keras trains it."
    return None


def _of_labels(comparison: Comparison) -> str | None:
    stated, source = comparison.twin.details, comparison.source
    named, interpolation = stated.get("class_names"), stated.get("interpolation")
    if isinstance(named, list) and sorted(map(str, named)) == sorted(source.class_names):
        if list(named) != list(source.class_names):
            return "The same classes in another order."
        if stated.get("checkpoint_sha256") != source.digest:
            return "The file was exported from another checkpoint, or the checkpoint has been trained on since."
    if interpolation is not None and interpolation != source.interpolation:
        return (
            f"The file says that photos are resized with {interpolation}, the network was trained with "
            f"{source.interpolation}."
        )
    return None


def _of_weights(comparison: Comparison) -> str | None:
    """Look for the first array that differs among the others, unchanged or transposed."""
    has_norms = any(
        layer.get("class_name") == "BatchNormalization" for layer in comparison.twin.config["config"]["layers"]
    )
    if comparison.folded and has_norms:
        return "The file says that its BatchNorms are folded, and has BatchNorms."
    expected = [
        (f"{layer.name}/{role}", array) for layer in keras_layers(comparison.graph) for role, _, array in layer.weights
    ]
    in_file = {
        f"{layer.name}/{role}": received
        for layer in keras_layers(comparison.graph)
        for (role, _, _), received in zip(layer.weights, comparison.twin.weights.get(layer.name, []), strict=False)
    }
    for name, array in expected:
        received = in_file.get(name)
        if received is None or np.array_equal(received, array):
            continue
        if received.size == array.size and array.ndim == 4 and np.array_equal(received, array.transpose(1, 0, 2, 3)):
            return f"{name} has rows and columns exchanged (layout)."
        if received.size == array.size and np.array_equal(np.sort(received, axis=None), np.sort(array, axis=None)):
            return f"{name} holds the right numbers in another order (layout)."
        for other, candidate in expected:
            if other != name and np.array_equal(received, candidate):
                return f"{name} holds what belongs to {other}."
        if received.shape == array.shape:
            changed = int(np.sum(received != array))
            return f"{changed} of {array.size} numbers of {name} are others: another checkpoint's twin, or edited."
    return None


def _of_layer(
    comparison: Comparison, node: Node, torch_gave: dict[str, np.ndarray], keras_gave: dict[str, np.ndarray]
) -> str | None:
    """Recompute the layer from torch's inputs, each time with another fault, until the result matches Keras's."""
    received = keras_gave.get(node.name)
    if received is None:
        return f"The file has no layer {node.name}."
    values = {comparison.graph.nodes[0].name: comparison.exact_images, **torch_gave}
    for text, compute in hypotheses(comparison.graph, node, values):
        try:
            computed = compute()
        except (RuntimeError, ValueError):
            continue  # the fault does not fit these shapes
        if computed.shape == received.shape and _relative(computed, received) <= EXPLAINS:
            return f"{node.name}: {text}."
    return None


def _relative(computed: np.ndarray, received: np.ndarray) -> float:
    return float(np.abs(computed - received).max() / (np.abs(received).max() or 1.0))


def _of_files(comparison: Comparison, report: Report, keras_side: KerasSide) -> str | None:
    """Why photos have other pixels on Keras's side: another interpolation, or another Pillow."""
    loaded, load_photo = keras_side.loaded, comparison.pair.load_photo
    if loaded is None or load_photo is None:
        return None
    ours, theirs, used = pillow_versions(), keras_side.versions, comparison.source.interpolation
    start = "The network is the same; photos" if {each.name for each in report.failed} <= _OF_FILES else "Photos"
    pinned = f"pillow=={ours['pillow']}"
    changed = list(loaded.decoded)
    if not changed:
        if ours["pillow"] == theirs["pillow"]:
            return None  # the check says why Keras cannot read a photo
        return f"{start} cannot be read by Pillow {theirs['pillow']} there: install {pinned} there, as here."
    if other := _other_interpolation(comparison.source.image_size, load_photo, loaded, changed[0]):
        return f"Keras resizes with {other}, the network was trained with {used}."
    alike = all(_decoded(load_photo, loaded.files[index], *loaded.decoded[index]) for index in changed)
    remedy = f"install {'the wheel of ' * (ours['pillow'] == theirs['pillow'])}{pinned} there"
    if alike and used != "nearest":
        remedy += ", or train with --data.interpolation nearest"
    here, there = (_pillow_said(versions, with_jpeg=not alike) for versions in (ours, theirs))
    by = f"by {there} there and {here} here"
    if here == there:
        by = f"though both sides have {here}: one of them is built otherwise"
    labels = [int(check.figure) for check in report.checks if check.name == "file_labels"]
    figures = (
        f"{len(changed)} of {len(loaded.files)}, {difference_of((loaded.expected, loaded.pixels), changed)}; "
        f"other labels: {labels[0] if labels else 'not compared'}"
    )
    return f"{start} are {'resized' if alike else 'decoded'} differently {by} ({figures}): {remedy}."


def _other_interpolation(size: tuple[int, int], load_photo: LoadPhoto, loaded: LoadedFiles, index: int) -> str | None:
    """The one that gives Keras's pixels, if there is one."""
    for interpolation in INTERPOLATIONS:
        try:
            if np.array_equal(load_photo(loaded.files[index], size, interpolation), loaded.pixels[index]):
                return interpolation
        except BadInput:
            continue
    return None


def _decoded(load_photo: LoadPhoto, file: Path, height: int, width: int, digest: str) -> bool:
    """Whether our side decodes the file to the same pixels; at its own size nothing is resized."""
    return array_digest(load_photo(file, (height, width), "nearest")) == digest


def _pillow_said(versions: dict[str, str], with_jpeg: bool) -> str:
    jpeg = [f"{name} {versions[name]}" for name in ("libjpeg-turbo", "libjpeg") if with_jpeg and name in versions]
    return " with ".join([f"Pillow {versions['pillow']}", *jpeg])

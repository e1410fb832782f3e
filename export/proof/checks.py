"""The checks of the ladder: each compares torch's results with Keras's and decides whether they are the same.

Nothing is computed or run here. A check passes only if its figure is a number and within its threshold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from export.graph.nodes import Graph
from export.keras_file.layers import keras_layers
from export.keras_file.read import KerasFile
from export.proof.image_sets import ImageSet
from export.proof.report import LAYERS_CHECK, Check, LayerError
from export.proof.rounding import PROBABILITY_THRESHOLD
from export.worker.keras_worker import same_labels

if TYPE_CHECKING:
    from export.checkpoint import Checkpoint

# Largest error of any layer's output relative to its largest value, both sides in float64; equal functions give 1e-14.
LAYER_THRESHOLD = 1e-10
# A mean of numbers less their mean is 0 but for rounding: what is smaller than so much of its inputs may be no more.
_NOTHING = 1e-4
# Largest difference of a weight after a few training steps, both sides in float64; a step moves it by about 1e-3.
TRAINING_THRESHOLD = 1e-6
TRAINING_SHARE = 0.01  # as a share of the learning rate, where that gives a smaller threshold
# What both sides must agree on besides the function itself.
_FACTS = ("class_names", "image_size", "interpolation", "background", "deep_grey", "formats", "checkpoint_sha256")


def check_labels(source: Checkpoint, details: dict[str, Any]) -> Check:
    """Whether class names (in order), size and interpolation agree, and the file names this checkpoint as its origin.

    Args:
        source: the checkpoint.
        details: the facts stored in the file.
    """
    from export.torch_to_keras import twin_details  # it needs torch, and not every proof does

    expected, details = twin_details(source, input_range="unit"), with_unstated(details, source)
    wrong = [fact for fact in _FACTS if details.get(fact) != expected[fact]]
    detail = f"{', '.join(_FACTS)} in the file equal the checkpoint's"
    if wrong:
        shown = [f"{fact} {str(details.get(fact))[:80]} (checkpoint: {str(expected[fact])[:80]})" for fact in wrong]
        detail = f"the file says {'; '.join(shown)}"
    return Check("labels", not wrong, len(wrong), 0, "facts differ", detail, wrong[0] if wrong else None)


def with_unstated(details: dict[str, Any], source: Checkpoint) -> dict[str, Any]:
    """Return a file's facts with what those mean that older versions did not state; such a file is as right as ever."""
    # which files are photos changes no photo, so whatever the checkpoint says of that is right
    return {"background": None, "deep_grey": "clip", "formats": source.formats, **details}


def check_weights(graph: Graph, twin: KerasFile, loaded: dict[str, np.ndarray]) -> Check:
    """Compare every array, both in the file and as loaded by Keras, with the checkpoint, bit for bit.

    That every tensor of the checkpoint is used exactly once is already checked when the graph is traced.

    Args:
        graph: the checkpoint's.
        twin: the file, read without Keras.
        loaded: ``LAYER/INDEX`` -> array, as returned by Keras.
    """
    different: list[str] = []
    compared = 0
    expected_layers = {layer.name: layer for layer in keras_layers(graph)}
    for name, layer in expected_layers.items():
        in_file = twin.weights.get(name, [])
        in_keras = [loaded[key] for index in range(len(in_file)) if (key := f"{name}/{index}") in loaded]
        if not len(layer.weights) == len(in_file) == len(in_keras):
            different.append(f"{name} (has {len(in_file)} arrays, not {len(layer.weights)})")
            continue
        for (role, _, array), file_array, keras_array in zip(layer.weights, in_file, in_keras, strict=True):
            compared += 1
            if not (same_bits(array, file_array) and same_bits(array, keras_array)):
                different.append(f"{name}/{role}")
    different += [
        f"{name} (not in the checkpoint)" for name in twin.weights.keys() - expected_layers if twin.weights[name]
    ]
    sources = {source for origin in graph.computed.values() for source in origin.sources}
    own = graph.tensors.keys() - graph.computed.keys()
    detail = f"{compared} arrays, in the file and as loaded, against {len(own | sources)} tensors of the checkpoint"
    if graph.computed:
        detail += f"; {len(graph.computed)} arrays are computed from {len(sources)} of these"
    if graph.unused:
        detail += f"; {len(graph.unused)} tensors have no part in what the network computes"
    first = different[0] if different else None
    return Check("weights", not different, len(different), 0, "arrays differ", detail, first)


def check_layers(
    graph: Graph,
    torch_gave: dict[str, np.ndarray],
    keras_gave: dict[str, np.ndarray],
    images: str = "the first and the last image",
) -> tuple[Check, list[LayerError]]:
    """Compare every node's output, both sides in float64: the largest error relative to that output's largest value.

    Args:
        graph: gives the order.
        torch_gave: node name -> (N, H, W, C) or (N, C).
        keras_gave: the same from Keras.
        images: which images they are, for the report, if there is more than one.
    """
    errors = [
        LayerError(
            node.name,
            node.op,
            node.source,
            _relative_error(
                torch_gave[node.name],
                keras_gave.get(node.name),
                [torch_gave[name] for name in node.inputs if name in torch_gave],
            ),
        )
        for node in graph.nodes[1:]
    ]
    diverging = [each for each in errors if not each.relative_error <= LAYER_THRESHOLD]
    figure = max((each.relative_error for each in errors), default=math.inf)  # nothing compared is nothing proved
    count = max((len(each) for each in torch_gave.values()), default=0)
    images = images if count != 1 else "one image"
    detail = f"outputs of {len(errors)} layers for {images}, both sides in float64"
    first = diverging[0].name if diverging else None
    if diverging:
        detail += f"; {first}: {diverging[0].stated()}"
    unit = "max relative error"
    return Check(LAYERS_CHECK, bool(errors) and not diverging, figure, LAYER_THRESHOLD, unit, detail, first), errors


def _relative_error(expected: np.ndarray, received: np.ndarray | None, inputs: Sequence[np.ndarray] = ()) -> float:
    """The largest error, relative to the largest value, or to `_NOTHING` of the largest input if that is more."""
    if received is None or expected.shape != received.shape:
        return float("inf")
    error = float(np.abs(expected - received).max())
    largest = max([float(np.abs(expected).max()), *(_NOTHING * float(np.abs(each).max()) for each in inputs)])
    return float("inf") if np.isnan(error) else error / (largest or 1.0)


def check_probabilities(
    images: ImageSet,
    torch_gave: np.ndarray,
    keras_gave: np.ndarray,
    converter: str = "",
    threshold: float = PROBABILITY_THRESHOLD,
    why: str = "",
) -> Check:
    """Compare the probabilities, both sides in float32: the largest absolute difference of any probability.

    Args:
        images: what both sides were given.
        torch_gave: probabilities, (N, C).
        keras_gave: the same from the other side.
        converter: its name, if the other side is not Keras; it becomes part of the check's name.
        threshold: the largest difference that passes.
        why: it is not the usual one, for the report.
    """
    name = f"probabilities_{images.name}" + (f"_{converter}" if converter else "")
    unit = "max abs difference"
    if torch_gave.shape != keras_gave.shape:
        detail = f"torch gave shape {torch_gave.shape}, {converter or 'Keras'} {keras_gave.shape}"
        return Check(name, False, float("inf"), threshold, unit, detail)
    per_image = np.abs(torch_gave.astype(np.float64) - keras_gave.astype(np.float64)).max(axis=1)
    per_image[np.isnan(per_image)] = np.inf  # NaN agrees with nothing
    worst = int(per_image.argmax())
    figure = float(per_image[worst])
    passed = figure <= threshold
    detail = f"{len(per_image)} images, softmax of both sides in float32; largest for {images.names[worst]}"
    detail += f"; {why}" if why else ""
    diverging = np.flatnonzero(per_image > threshold)
    first = None if passed else images.names[int(diverging[0])]
    return Check(name, passed, figure, threshold, unit, detail, first)


def check_top1(
    images: ImageSet,
    torch_gave: np.ndarray,
    keras_gave: np.ndarray,
    converter: str = "",
    threshold: float = 1.0,
    tie: float = PROBABILITY_THRESHOLD,
) -> Check:
    """Compare the labels: the share of images with the same class first, or one as likely (`keras_worker.same_labels`).

    Args:
        images: what both sides were given.
        torch_gave: probabilities, (N, C).
        keras_gave: the same from the other side.
        converter: its name, if the other side is not Keras; it becomes part of the check's name.
        threshold: the smallest share that passes.
        tie: the largest difference between two probabilities that count as equally likely.
    """
    same = same_labels(torch_gave, keras_gave, tie)
    agreement = float(np.mean(same))
    disagreeing = np.flatnonzero(~same)
    first = images.names[int(disagreeing[0])] if len(disagreeing) else None
    detail = f"the same label, or one as likely, for {int(np.sum(same))} of {len(torch_gave)} images"
    name = f"top1_{images.name}" + (f"_{converter}" if converter else "")
    passed = agreement >= threshold
    return Check(name, passed, agreement, threshold, "share of labels equal", detail, None if passed else first, True)


def check_training(
    before: Graph, after: Graph, trained: dict[str, np.ndarray] | None, failed: str, steps: int, rate: float
) -> Check:
    """Compare the weights after a few training steps from the same weights on the same batch, both sides in float64.

    Adam's steps are about as long as its learning rate, so weights that moved by at least a share of it have been
    trained. If the rate is small, the threshold must be small, too: otherwise doing nothing would pass.

    Args:
        before: the checkpoint's graph.
        after: the same with the weights that torch trained.
        trained: ``LAYER/INDEX`` -> array that Keras trained; None if it could not train.
        failed: why it could not.
        steps: how many steps were made.
        rate: Adam's learning rate.
    """
    unit, name = "max abs difference", "training_steps"
    threshold = min(TRAINING_THRESHOLD, TRAINING_SHARE * rate)
    if trained is None:
        detail = f"Keras cannot train the file: {failed or 'it has no training configuration'}"
        return Check(name, False, float("inf"), threshold, unit, detail)
    moved, figure, first = 0, 0.0, None
    for old, new in zip(keras_layers(before), keras_layers(after), strict=True):
        for index, ((role, _, start), (_, _, expected)) in enumerate(zip(old.weights, new.weights, strict=True)):
            received = trained.get(f"{new.name}/{index}")
            moved += bool(np.abs(start - expected).max() > threshold)
            same_shape = received is not None and received.shape == expected.shape
            difference = float(np.abs(received - expected).max()) if same_shape else np.inf
            difference = np.inf if np.isnan(difference) else difference
            if first is None and difference > threshold:
                first = f"{new.name}/{role}"
            figure = max(figure, difference)
    made = f"{steps} step{'s' * (steps > 1)}"
    detail = f"{moved} arrays moved in {made} of the training that the file describes, both sides in float64"
    if not moved:
        first = "the first step: nothing moved"
    return Check(name, bool(moved) and figure <= threshold, figure, threshold, unit, detail, first)


def check_file_pixels(names: Sequence[str], pixels: tuple[np.ndarray, np.ndarray], unreadable: dict[int, str]) -> Check:
    """Compare the pixels of photos that each side loads from file, with its own code and its own Pillow.

    Args:
        names: of the N files.
        pixels: torch's and Keras's, uint8, (N, H, W, 3).
        unreadable: index -> why Keras cannot read the file; torch's side has read all of them.
    """
    changed = [index for index in _changed(pixels) if index not in unreadable]
    detail = f"{len(names)} photos, loaded from file by each side: the same pixels"
    if changed:
        detail += f", but for {len(changed)}, {difference_of(pixels, changed)}"
    return _check_of_files("file_pixels", names, changed, unreadable, detail)


def check_file_labels(
    names: Sequence[str], probabilities: tuple[np.ndarray, np.ndarray], unreadable: dict[int, str]
) -> Check:
    """Compare the labels of photos that each side loads from file: each labels the pixels that it has loaded itself.

    Args:
        names: of the N files.
        probabilities: torch's and Keras's, (N, C).
        unreadable: index -> why Keras cannot read the file; such a photo has no label.
    """
    same = same_labels(*probabilities, PROBABILITY_THRESHOLD)
    read = [index for index in range(len(names)) if index not in unreadable]
    changed = [index for index in read if not same[index]]
    detail = (
        f"the same label, or one as likely, for {len(read) - len(changed)} of {len(names)} photos, loaded from file by "
        "each side"
    )
    if read and probabilities[0].shape == probabilities[1].shape:
        moved = np.abs(probabilities[0][read].astype(np.float64) - probabilities[1][read]).max(axis=1)
        detail += f"; largest difference of a probability {moved.max():.2g}, for {names[read[int(moved.argmax())]]}"
    return _check_of_files("file_labels", names, changed, unreadable, detail)


def difference_of(pixels: tuple[np.ndarray, np.ndarray], photos: Sequence[int]) -> str:
    """By how much some photos differ between the two sides, for people.

    Args:
        pixels: torch's and Keras's, uint8, (N, H, W, 3).
        photos: indices of photos that differ.
    """
    apart = np.stack([np.abs(pixels[0][index].astype(np.int16) - pixels[1][index]).max(axis=-1) for index in photos])
    share = float(f"{100 * np.mean(apart > 0):.2g}")  # two digits, and 100 where it is nearly all of them
    return f"by up to {apart.max()} of 255 in {share:g}% of their pixels"


def _changed(pixels: tuple[np.ndarray, np.ndarray]) -> list[int]:
    return [index for index, (ours, theirs) in enumerate(zip(*pixels, strict=True)) if not np.array_equal(ours, theirs)]


def _check_of_files(
    name: str, names: Sequence[str], changed: list[int], unreadable: dict[int, str], text: str
) -> Check:
    wrong = sorted({*changed, *unreadable})
    if unreadable:
        first = min(unreadable)
        text += f". {names[first]}: Keras cannot read it: {unreadable[first]}"
    return Check(name, not wrong, len(wrong), 0, "photos differ", text, names[wrong[0]] if wrong else None)


def same_bits(left: np.ndarray, right: np.ndarray) -> bool:
    """Whether type, shape and bytes are equal. Values are not compared: NaN equals itself, and 0.0 is not -0.0."""
    return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()

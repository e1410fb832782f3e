"""What is compared: a checkpoint, the file that is claimed to be its twin, and the images for both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from export.checkpoint import Checkpoint, read_checkpoint
from export.graph.fold import fold_batch_norms, folded_state
from export.graph.nodes import Graph
from export.keras_file.layers import joined_activations
from export.keras_file.read import KerasFile, read_keras_h5
from export.proof import probe_images
from export.proof.image_sets import ImageSet
from export.proof.torch_side import State, torch_train
from export.torch_answers import torch_probabilities
from export.torch_to_keras import INPUT_RANGES, trace_checkpoint
from models.bad_input import BadInput

# For each image, the outputs of all layers take about 100 MB in float64.
EXACT_IMAGES = 2
# A probability at least this far from 0 and from 1 leaves something to learn.
UNCERTAIN = 1e-4
# At most so many optimiser steps. From the second step on, the optimiser's moments are tested, too. But if everything
# is trained, the second step starts from weights that already differ by 7e-9 (Keras keeps beta_2 as float32). Every
# weight has then just moved by a whole learning rate, and such a network amplifies this to 1e-3.
TRAINING_STEPS = {"head": 3, "all": 1}

LoadPhoto = Callable[[Path, tuple[int, int], str], np.ndarray]
"""(file, (height, width), interpolation) -> uint8, (H, W, 3), RGB: `datamodule.photo_store.load_photo`."""


@dataclass(frozen=True)
class Pair:
    """A checkpoint and the file that is claimed to be its twin.

    Attributes:
        checkpoint: written by ``lightning fit``; or one that has been read, from wherever it came.
        h5: the Keras file.
        photos: uint8, NHWC, RGB, (N, H, W, 3) at the checkpoint's size; None or empty: synthetic images only.
        photo_names: N names, for the report; by default those of `photo_files`, where these are as many.
        photo_files: the photos that each side loads from file itself.
        load_photo: how our side loads them; None: loading is not compared.
    """

    checkpoint: Path | Checkpoint
    h5: Path
    photos: np.ndarray | None = None
    photo_names: Sequence[str] = ()
    photo_files: Sequence[Path] = ()
    load_photo: LoadPhoto | None = None

    def __post_init__(self) -> None:
        # A script has paths as text, Lightning's `best_model_path` above all.
        if not isinstance(self.checkpoint, Checkpoint):
            object.__setattr__(self, "checkpoint", Path(self.checkpoint))
        object.__setattr__(self, "h5", Path(self.h5))
        if not self.photo_names and self.photos is not None and len(self.photos) == len(self.photo_files):
            object.__setattr__(self, "photo_names", [str(file) for file in self.photo_files])


@dataclass(frozen=True)
class TrainingSteps:
    """The few training steps that both sides make.

    Attributes:
        images: float64 in [0, 1], NHWC.
        targets: float64, (B, C), one class for each image.
        steps: number of steps.
        learned: torch's weights after them, by name in the state dict, float64.
    """

    images: np.ndarray
    targets: np.ndarray
    steps: int
    learned: State


@dataclass(frozen=True)
class Comparison:
    """A pair that has been read and can be compared.

    Attributes:
        pair: the files and images that were read.
        source: the torch side.
        traced: its neutral graph.
        twin: the Keras side, read without Keras.
        folded: whether the file states that its BatchNorms are folded.
        input_range: what the file's model takes: ``unit`` or ``raw``.
        sets: the images for both sides.
    """

    pair: Pair
    source: Checkpoint
    traced: Graph
    twin: KerasFile
    folded: bool
    input_range: str
    sets: list[ImageSet]

    @property
    def h5(self) -> Path:
        """Path of the Keras file."""
        return self.pair.h5

    @cached_property
    def graph(self) -> Graph:
        """The graph that the file should contain."""
        return self.graph_with(self.traced.tensors)

    def graph_with(self, tensors: dict[str, np.ndarray]) -> Graph:
        """The same graph with other weights: name in the state dict -> array; those that are missing stay."""
        with_others = {name: tensors.get(name, array) for name, array in self.traced.tensors.items()}
        graph = replace(self.traced, tensors=with_others)
        return fold_batch_norms(graph) if self.folded else graph

    @cached_property
    def separate(self) -> bool:
        """Whether the file has its softmax as a layer of its own, as older versions wrote it."""
        in_file = {layer["config"]["name"] for layer in self.twin.config["config"]["layers"]}
        return any(name in in_file for name in joined_activations(self.graph))

    @cached_property
    def exact_state(self) -> State | None:
        """The weights to compute with in float64; None: the network's own.

        In a file with folded BatchNorms the folded weights have been rounded. Its layers are those of a network with
        the weights that this returns.
        """
        return folded_state(self.traced) if self.folded else None

    @cached_property
    def exact_images(self) -> np.ndarray:
        """A few images to compute with in float64; see the function `exact_images`."""
        return exact_images(self.sets)

    @cached_property
    def training_steps(self) -> TrainingSteps | str:
        """What to train on for a few steps; why there is nothing, if the network cannot learn.

        The class to learn is the one whose probability is nearest to 0.5. From the likeliest class there would be
        little to learn, and for a very unlikely one Keras has no gradient, because it clips probabilities at 1e-7. An
        image that the network is certain of is replaced by another, and training stops once it is certain of all.
        """
        images = np.concatenate([self.exact_images, self.sets[0].exact(len(self.sets[0].images))])
        probabilities = torch_probabilities(self.source.network, [images.astype(np.float32)])
        wanted = np.abs(probabilities - 0.5).argmin(axis=1)
        likely = np.take_along_axis(probabilities, wanted[:, None], axis=1)[:, 0]
        usable = np.flatnonzero(np.minimum(likely, 1 - likely) >= UNCERTAIN)[:EXACT_IMAGES]
        targets = np.eye(probabilities.shape[1])[wanted]
        if not len(usable):
            return "the network is certain of every image here: it would learn nothing from them"
        images, targets, source = images[usable], targets[usable], self.source
        try:
            learned, steps = torch_train(
                source.network, source.trainable, source.learning_rate, images, targets,
                TRAINING_STEPS[source.trainable], self.exact_state, UNCERTAIN,
            )  # fmt: skip
        except RuntimeError as error:  # such as of a value that is changed in place and has a gradient
            return f"torch cannot train the network: {str(error).splitlines()[0]}"
        return TrainingSteps(images, targets, steps, learned)


def read_comparison(pair: Pair, known: dict[Path, Checkpoint] | None = None) -> Comparison:
    """Read both files and the images.

    Args:
        pair: the files and images.
        known: checkpoints that have been read already; this one is added.

    Raises:
        BadInput: a file is not what it should be, or the two cannot be compared.
    """
    twin = read_keras_h5(pair.h5)
    known = {} if known is None else known
    if isinstance(pair.checkpoint, Checkpoint):
        source = pair.checkpoint
    elif pair.checkpoint in known:
        source = known[pair.checkpoint]
    else:
        source = known[pair.checkpoint] = read_checkpoint(pair.checkpoint)
    input_range = twin.details.get("input_range", "unit")
    if input_range not in INPUT_RANGES:
        raise BadInput(f"{pair.h5}: expected input_range to be one of {', '.join(INPUT_RANGES)}, got {input_range!r}.")
    _check_input_shape(source, twin, pair.h5)
    sets = image_sets(source.image_size, pair.photos, pair.photo_names, source.network.channels)
    folded = twin.details.get("fused_batchnorm") is True
    return Comparison(pair, source, trace_checkpoint(source), twin, folded, input_range, sets)


def image_sets(
    image_size: tuple[int, int], photos: np.ndarray | None, photo_names: Sequence[str], channels: int = 3
) -> list[ImageSet]:
    """The synthetic images, and the photos if there are any.

    Raises:
        BadInput: the photos have another type or size.
    """
    sets = [ImageSet("synthetic", probe_images.synthetic_images(image_size, channels=channels), probe_images.NAMES)]
    if photos is None or not len(photos):
        return sets
    if photos.dtype != np.uint8 or photos.shape[1:] != (*image_size, channels):
        raise BadInput(
            f"expected photos as uint8 (N, {image_size[0]}, {image_size[1]}, {channels}), the checkpoint's size, "
            f"got {photos.dtype} {photos.shape}. Load them with datamodule.photo_store.load_photo."
        )
    names = list(photo_names) or [f"photo {number}" for number in range(len(photos))]
    return [*sets, ImageSet("photos", photos, names)]


def exact_images(sets: Sequence[ImageSet]) -> np.ndarray:
    """A few images to compute with in float64: the first and last photo, or two noise images if there are no photos.

    Args:
        sets: from `image_sets`. The other synthetic images are grey, so they would not reveal swapped channels.

    Returns:
        float64 in [0, 1], NHWC.
    """
    last = sets[-1]
    if last.name == "photos":
        return last.exact(EXACT_IMAGES)
    noise = [last.names.index(name) for name in probe_images.EXACT_NAMES]
    return ImageSet(last.name, last.images[noise], probe_images.EXACT_NAMES).exact(len(noise))


def exact_kind(sets: Sequence[ImageSet]) -> str:
    """Which images `exact_images` returns, for the report."""
    return "the first and the last image" if sets[-1].name == "photos" else " and ".join(probe_images.EXACT_NAMES)


def _check_input_shape(source: Checkpoint, twin: KerasFile, h5: Path) -> None:
    """Refuse a file that cannot be compared: not a model with one input and output, or with another input size."""
    model = twin.config.get("config")
    model = model if isinstance(model, dict) else {}
    layers = model.get("layers")
    if not isinstance(layers, list) or not layers or not all(map(_is_layer, layers)):
        raise BadInput(f"expected the architecture of a Keras model, a list of named layers; {h5} has none. {_AGAIN}")
    for ends in ("input_layers", "output_layers"):
        if not _is_one_end(model.get(ends)):
            raise BadInput(f"expected a model of one input and one output, got {h5} with others. {_AGAIN}")
    first = layers[0]["config"]
    shape = first.get("batch_input_shape", first.get("batch_shape"))
    expected = [None, *source.image_size, source.network.channels]
    if shape != expected:
        raise BadInput(
            f"expected a model whose input is {expected} (NHWC), the checkpoint's, got {h5} with input {shape}. "
            "Is it the twin of another checkpoint?"
        )


_AGAIN = "Export it again with `lightning export`."


def _is_layer(layer: Any) -> bool:
    config = layer.get("config") if isinstance(layer, dict) else None
    return isinstance(config, dict) and isinstance(config.get("name"), str)


def _is_one_end(ends: Any) -> bool:
    """Whether this is ``[["x", 0, 0]]``, as we and Keras 2 write it, or Keras 3's ``["x", 0, 0]``."""
    if isinstance(ends, list) and len(ends) == 1:
        ends = ends[0]
    return isinstance(ends, list) and len(ends) == 3 and isinstance(ends[0], str)

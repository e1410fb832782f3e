"""Checkpoint -> Keras `.h5`: trace, translate, write."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from export.checkpoint import Checkpoint, as_checkpoint
from export.graph.fold import fold_batch_norms
from export.graph.layer_names import mobilenetv2_layer_names, plain_layer_name
from export.graph.network import graph_of
from export.graph.nodes import Graph
from export.graph.record import record
from export.graph.trace import LayerNames, trace_graph
from export.keras_file.golden import Golden, golden_images
from export.keras_file.layers import keras_layers
from export.keras_file.write import own_version, training_config, write_keras_h5
from export.torch_answers import nchw
from models.bad_input import BadInput
from models.choices import RESCALE
from models.classifier import Classifier, probabilities_of
from models.graph_network import GraphClassifier
from models.timm_mobilenetv2 import TimmClassifier

INPUT_RANGES = ("unit", "raw")
_BACKBONE = "backbone."
_HEAD = "head."


@dataclass(frozen=True)
class Twin:
    """The Keras file that was written.

    Attributes:
        path: the `.h5`.
        layers: number of Keras layers in it.
        parameters: number of weights in it, BatchNorm statistics included.
        details: the facts stored in the file, see `twin_details`.
    """

    path: Path
    layers: int
    parameters: int
    details: dict[str, Any]


def write_twin(
    checkpoint: Path | Checkpoint, h5: Path, input_range: str = "unit", fuse_batchnorm: bool = False
) -> Twin:
    """Export a checkpoint as one Keras `.h5` that every Keras loads with a plain ``load_model(path)``.

    Args:
        checkpoint: written by ``lightning fit``; or one that has been read, from wherever it came.
        h5: where to write it; an existing file is replaced only by a complete one.
        input_range: ``unit``: the model takes RGB in [0, 1], NHWC; ``raw``: it takes 0..255.
        fuse_batchnorm: fold every BatchNorm into the convolution before it, for a file that only predicts.

    Raises:
        BadInput: the checkpoint is not one of ``lightning fit``, the input range is unknown, the folder cannot be
            written, or the network has an operation that Keras's built-in layers do not have.
    """
    if input_range not in INPUT_RANGES:
        raise BadInput(f"expected input_range to be one of {', '.join(INPUT_RANGES)}, got {input_range!r}. Name one.")
    h5 = Path(h5)
    if not h5.parent.is_dir():
        raise BadInput(
            f"expected a folder to write {h5.name} into, got {h5.parent}, which does not exist. Make it first."
        )
    source = as_checkpoint(checkpoint)
    if h5.exists() and source.path.exists() and h5.samefile(source.path):
        raise BadInput(f"expected a place for the .h5, got {h5}, the checkpoint itself. Name another file.")
    traced = _traced(source)
    graph = fold_batch_norms(traced.graph) if fuse_batchnorm else traced.graph
    layers = keras_layers(graph, input_range)
    details = twin_details(source, input_range, fuse_batchnorm)
    write_keras_h5(
        h5,
        layers,
        model_name=source.model_name,
        details=details,
        training=training_config(source.learning_rate, source.gives),
        frozen=frozen_layers(source, graph),
        golden=Golden(golden_images(source.image_size, source.network.channels), traced.golden),
    )
    parameters = sum(array.size for layer in layers for _, _, array in layer.weights)
    return Twin(h5, len(layers), parameters, details)


class _Traced(NamedTuple):
    """A checkpoint's graph, and its probabilities of the golden images, float32, (3, C)."""

    graph: Graph
    golden: np.ndarray


def trace_checkpoint(checkpoint: Checkpoint) -> Graph:
    """The neutral graph of a checkpoint's network, its layers named as Keras users know them."""
    return _traced(checkpoint).graph


def _traced(checkpoint: Checkpoint) -> _Traced:
    """What is recorded is the network's pass over the golden images, so its answers to them are there as well.

    It is kept, because the export and its proof both need it; but not of a network whose file is not all that decides
    what it computes.
    """
    if checkpoint.digest in _kept and not checkpoint.foreign:
        return _kept[checkpoint.digest]
    network = checkpoint.network
    images = nchw(golden_images(checkpoint.image_size, network.channels).astype("float32") * RESCALE)
    if isinstance(network, GraphClassifier):  # it computes its description; torch's operations say less
        graph = graph_of(network, checkpoint.image_size)
        with torch.inference_mode():
            answers = network(images)
    else:
        recording = record(network, checkpoint.image_size, images)
        graph, answers = (
            trace_graph(recording, _layer_names(network, checkpoint.backbone), network.output),
            recording.output,
        )
    # copies: the network's owner may change its weights, and the file's are these
    tensors = {name: array.copy() for name, array in graph.tensors.items()}
    traced = _Traced(Graph(graph.nodes, tensors, graph.computed), probabilities_of(answers, network.output).numpy())
    if not checkpoint.foreign:
        if len(_kept) == _MOST_KEPT:
            _kept.clear()
        _kept[checkpoint.digest] = traced
    return traced


_MOST_KEPT = 8
_kept: dict[str, _Traced] = {}  # by the checkpoint's digest


def frozen_layers(checkpoint: Checkpoint, graph: Graph) -> frozenset[str]:
    """Names of the layers that Keras must not train, because they were frozen in training.

    Keras cannot keep the statistics of a BatchNorm while it trains its gamma and beta. So a BatchNorm whose statistics
    were frozen is frozen as a whole.
    """
    if checkpoint.trainable != "head" and checkpoint.batch_norm != "frozen":
        return frozenset()
    operations = {node.op for node in graph.nodes} if checkpoint.trainable == "head" else {"batch_norm"}
    # a class token belongs to the backbone itself, not to a module of it
    backbone = [node for node in graph.nodes if f"{node.source}.".startswith(_BACKBONE)]
    return frozenset(node.name for node in backbone if node.op in operations)


def trace_network(network: TimmClassifier, backbone: str, image_size: tuple[int, int]) -> Graph:
    """The neutral graph of a network that takes images of (height, width) pixels."""
    if isinstance(network, GraphClassifier):
        return graph_of(network, image_size)
    return trace_graph(record(network, image_size), _layer_names(network, backbone))


def twin_details(checkpoint: Checkpoint, input_range: str, fused_batchnorm: bool = False) -> dict[str, Any]:
    """The facts that are stored in the file's attributes."""
    facts = {
        "class_names": list(checkpoint.class_names),
        "image_size": list(checkpoint.image_size),
        "interpolation": checkpoint.interpolation,
        "background": checkpoint.loading.background,
        "deep_grey": checkpoint.loading.deep_grey,
        "formats": checkpoint.formats,
        "input_range": input_range,
        "fused_batchnorm": fused_batchnorm,
        "backbone": checkpoint.backbone,
        "checkpoint_sha256": checkpoint.digest,
        # not visible in the layers: Keras's BatchNorm has no counter, and at odd sizes both paddings are the same
        # of ours, all that builds it again; what others call their networks is no settings of ours
        "network" if checkpoint.foreign else "architecture": checkpoint.network.architecture,
        "batches_tracked": _batches_tracked(checkpoint.network),
        **_computed_weights(trace_checkpoint(checkpoint)),
        "shelftwin_version": own_version(),
    }
    return {**facts, "output": checkpoint.gives} if checkpoint.foreign else facts


def _computed_weights(graph: Graph) -> dict[str, Any]:
    """Which arrays of the file the checkpoint does not have, and from which of its tensors each was computed."""
    sources = {name: list(origin.sources) for name, origin in graph.computed.items()}
    return {"computed_weights": sources} if sources else {}


def _layer_names(network: Classifier, backbone: str) -> LayerNames:
    """Names for module paths: the dense head's own, those of Keras's MobileNetV2, those inside a network's trunk."""
    trunk = network.trunk or _BACKBONE

    def names(paths: Any) -> dict[str, str]:
        paths = list(paths)
        inner = [path.removeprefix(trunk) for path in paths if path.startswith(trunk)]
        named = {path: path.removeprefix(_HEAD).replace(".", "_") for path in paths if path.startswith(_HEAD)}
        if network.trunk:
            named |= {trunk + path: plain_layer_name(path) for path in inner}
        if backbone.startswith("mobilenetv2_"):
            named |= {trunk + path: name for path, name in mobilenetv2_layer_names(inner).items()}
        return named

    return names


def _batches_tracked(network: Classifier) -> int | list[int]:
    """How many batches each BatchNorm has seen; a single number if it is the same for all."""
    counts = [int(each) for name, each in network.state_dict().items() if name.endswith("num_batches_tracked")]
    return counts[0] if len(set(counts)) == 1 else counts

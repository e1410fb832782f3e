"""Checkpoint -> Keras `.h5`: trace, translate, write."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from export.checkpoint import Checkpoint, read_checkpoint
from export.graph.fold import fold_batch_norms
from export.graph.layer_names import mobilenetv2_layer_names
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


def write_twin(checkpoint: Path, h5: Path, input_range: str = "unit", fuse_batchnorm: bool = False) -> Twin:
    """Export a checkpoint as one Keras `.h5` that every Keras loads with a plain ``load_model(path)``.

    Args:
        checkpoint: written by ``lightning fit``.
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
    if h5.exists() and h5.samefile(checkpoint):
        raise BadInput(f"expected a place for the .h5, got {h5}, the checkpoint itself. Name another file.")
    source = read_checkpoint(checkpoint)
    graph = trace_checkpoint(source)
    graph = fold_batch_norms(graph) if fuse_batchnorm else graph
    layers = keras_layers(graph, input_range)
    details = twin_details(source, input_range, fuse_batchnorm)
    write_keras_h5(
        h5,
        layers,
        model_name=source.backbone,
        details=details,
        training=training_config(source.learning_rate),
        frozen=frozen_layers(source, graph),
        golden=Golden(golden_images(source.image_size), _traced[source.digest][1]),
    )
    parameters = sum(array.size for layer in layers for _, _, array in layer.weights)
    return Twin(h5, len(layers), parameters, details)


def trace_checkpoint(checkpoint: Checkpoint) -> Graph:
    """The neutral graph of a checkpoint's network, its layers named as Keras users know them.

    It is kept, because the export and its proof both need it. What is recorded is the network's pass over the golden
    images, so its answers to them are kept as well.
    """
    if checkpoint.digest not in _traced:
        if len(_traced) == _MOST_TRACED:
            _traced.clear()
        images = nchw(golden_images(checkpoint.image_size).astype("float32") * RESCALE)
        if isinstance(checkpoint.network, GraphClassifier):
            graph, logits = graph_of(checkpoint.network, checkpoint.image_size), _logits(checkpoint.network, images)
        else:
            recording = record(checkpoint.network, checkpoint.image_size, images)
            graph, logits = trace_graph(recording, _layer_names(checkpoint.backbone)), recording.output
        # copies: the network's owner may change its weights, and the file's are these
        tensors = {name: array.copy() for name, array in graph.tensors.items()}
        _traced[checkpoint.digest] = Graph(graph.nodes, tensors), logits.softmax(dim=1).numpy()
    return _traced[checkpoint.digest][0]


def _logits(network: GraphClassifier, images: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = network(images)
    return logits


_MOST_TRACED = 8
# Digest of a checkpoint -> its graph, and its probabilities of the golden images, float32, (3, C).
_traced: dict[str, tuple[Graph, np.ndarray]] = {}


def frozen_layers(checkpoint: Checkpoint, graph: Graph) -> frozenset[str]:
    """Names of the layers that Keras must not train, because they were frozen in training.

    Keras cannot keep the statistics of a BatchNorm while it trains its gamma and beta. So a BatchNorm whose statistics
    were frozen is frozen as a whole.
    """
    if checkpoint.trainable != "head" and checkpoint.batch_norm != "frozen":
        return frozenset()
    operations = {node.op for node in graph.nodes} if checkpoint.trainable == "head" else {"batch_norm"}
    return frozenset(node.name for node in graph.nodes if node.op in operations and node.source.startswith(_BACKBONE))


def trace_network(network: TimmClassifier, backbone: str, image_size: tuple[int, int]) -> Graph:
    """The neutral graph of a network that takes images of (height, width) pixels."""
    if isinstance(network, GraphClassifier):
        return graph_of(network, image_size)
    return trace_graph(record(network, image_size), _layer_names(backbone))


def twin_details(checkpoint: Checkpoint, input_range: str, fused_batchnorm: bool = False) -> dict[str, Any]:
    """The facts that are stored in the file's attributes."""
    return {
        "class_names": list(checkpoint.class_names),
        "image_size": list(checkpoint.image_size),
        "interpolation": checkpoint.interpolation,
        "input_range": input_range,
        "fused_batchnorm": fused_batchnorm,
        "backbone": checkpoint.backbone,
        "checkpoint_sha256": checkpoint.digest,
        # not visible in the layers: Keras's BatchNorm has no counter, and at odd sizes both paddings are the same
        "architecture": checkpoint.network.architecture,
        "batches_tracked": _batches_tracked(checkpoint.network),
        "shelftwin_version": own_version(),
    }


def _layer_names(backbone: str) -> LayerNames:
    def names(paths: Any) -> dict[str, str]:
        paths = list(paths)
        named = {path: path.removeprefix(_HEAD).replace(".", "_") for path in paths if path.startswith(_HEAD)}
        if backbone.startswith("mobilenetv2_"):
            inner = [path.removeprefix(_BACKBONE) for path in paths if path.startswith(_BACKBONE)]
            named |= {_BACKBONE + path: name for path, name in mobilenetv2_layer_names(inner).items()}
        return named

    return names


def _batches_tracked(network: TimmClassifier) -> int | list[int]:
    """How many batches each BatchNorm has seen; a single number if it is the same for all."""
    counts = [int(each) for name, each in network.state_dict().items() if name.endswith("num_batches_tracked")]
    return counts[0] if len(set(counts)) == 1 else counts

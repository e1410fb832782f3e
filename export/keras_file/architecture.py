"""Keras architecture -> neutral graph: the opposite direction of `layers.py`, for files saved by any Keras 2 or 3.

A model may contain other models as layers (`keras.applications` as a base), may be Functional or Sequential, and may
name its layers freely. `flat_layers.py` takes it apart, `layer_readers.py` knows each layer, and the result is one flat
graph in which everything is explicit.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

from export.graph.nodes import Graph, Node
from export.keras_file.flat_layers import DAMAGED, FlatLayer, flatten, output_key, weights_by_layer
from export.keras_file.layer_readers import read_layers
from export.keras_file.read import KerasFile
from export.keras_file.readers.layer_reader import LayerReader
from export.keras_file.readers.training import REGULARISATION
from export.worker.keras_worker import AUGMENTATION
from models.bad_input import BadInput

# Layers whose output is not compared: they leave their input unchanged when a photo is classified, or only reshape it.
WITHOUT_EFFECT = ("Dropout", "Flatten", "Reshape", "StochasticDepth", *REGULARISATION, *AUGMENTATION)


@dataclass(frozen=True)
class KerasGraph:
    """What a Keras file computes.

    Attributes:
        graph: neutral graph, NCHW like every graph; nodes are named by layer key, tensors by ``KEY/role``. Its output
            is what the file gives: softmax, sigmoid or logits, as many as the file has.
        layers: by key, in the order of computation.
        rates: the rate of each Dropout, by its key.
        augmentation: keys of the layers that change photos in training and do nothing when a photo is classified.
        outputs: layer key -> the node that computes its output.
        fed_by: path of a nested model -> key of the layer whose output it is fed, None if it is fed the images; in
            the order of computation.
        notes: for the owner: what the graph does not keep; none of it changes what is computed, except by rounding.
        half_precision: keys of the layers that compute in another type than float32 in the file.
        generation: the file's, 2 or 3.
    """

    graph: Graph
    layers: dict[str, FlatLayer]
    rates: dict[str, float]
    augmentation: list[str]
    outputs: dict[str, str]
    fed_by: dict[tuple[str, ...], str | None] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    half_precision: list[str] = field(default_factory=list)
    generation: int = 2


def read_keras_graph(
    file: KerasFile, image_size: tuple[int, int] | None = None, fold_padding: bool = True
) -> KerasGraph:
    """Translate a file's architecture and weights.

    Args:
        file: from `read_keras_file`.
        image_size: (height, width) to use if the file leaves it open; None: the file must state it.
        fold_padding: whether a ZeroPadding2D becomes part of the convolution after it, as in a traced graph.

    Raises:
        BadInput: a layer or setting has no counterpart here, the weights do not belong to the layers, or the input has
            another shape. The message names the layer.
    """
    try:
        layers, fed_by = flatten(file.config)
        reader = read_layers(layers, weights_by_layer(file, layers), image_size, file.generation)
        output = reader.node_of[next(reversed(layers))]
        nodes = _read_by(reader.nodes, output)
        graph = Graph(_fold_padding(nodes) if fold_padding else tuple(nodes.values()), reader.tensors)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, RecursionError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(
            f"expected the architecture of a Keras model, got one that cannot be read ({type(error).__name__}: "
            f"{str(error)[:120]}). {DAMAGED}"
        ) from error
    half = [key for key in reader.half_precision if layers[key].class_name != "InputLayer"]
    notes = [*_notes(reader, half), *_pixel_centres(file, layers), *_forgotten_statistics(file, layers)]
    # a layer with several outputs has none that could be compared by its name
    outputs = {key: reader.node_of[key] for key in layers if output_key(key, 1) not in reader.node_of}
    return KerasGraph(graph, layers, reader.rates, reader.augmentation, outputs, fed_by, notes, half, file.generation)


def _read_by(nodes: dict[str, Node], output: str) -> dict[str, Node]:
    """The nodes that the output depends on: a last layer may do nothing, and of several outputs some may be unread."""
    needed, waiting = set(), [output]
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed.add(name)
            waiting.extend(nodes[name].inputs)
    return {name: node for name, node in nodes.items() if name in needed}


def _notes(reader: LayerReader, half: list[str]) -> list[str]:
    notes = []
    if reader.augmentation:
        notes.append(
            f"{', '.join(reader.augmentation)}: left out, as such layers do nothing when a photo is classified."
        )
    if reader.without_effect:
        notes.append(f"{', '.join(reader.without_effect)}: left out, as they act in training alone.")
    if reader.renormed:
        notes.append(f"{', '.join(reader.renormed)}: trained with renorm=True; trained further, they go on without it.")
    if half:
        some = ", ".join(half[:3]) + (" ..." if len(half) > 3 else "")
        notes.append(
            f"{len(half)} layers compute in half precision or float64 ({some}): here they compute in "
            "float32, from the same weights, and are compared with what the file's own Keras computes in float32."
        )
    return notes


def _pixel_centres(file: KerasFile, layers: dict[str, FlatLayer]) -> list[str]:
    """Of an old UpSampling2D: its own Keras took the corners of the pixels, every later one takes their centres."""
    if not re.fullmatch(r"2\.[0-2]\.\d+", file.marks.get("keras_version", "")):
        return []
    enlarged = [
        key
        for key, layer in layers.items()
        if layer.class_name == "UpSampling2D" and layer.config.get("interpolation") == "bilinear"
    ]
    return [
        f"{key}: Keras {file.marks['keras_version']} on TensorFlow 1 enlarged by the pixels' corners and gave slightly "
        "other answers than every later Keras gives for this very file. Here it is what later ones compute."
        for key in enlarged
    ]


def _forgotten_statistics(file: KerasFile, layers: dict[str, FlatLayer]) -> list[str]:
    """Of a Normalization in a nested model, in an .h5 of Keras 3; in a .keras Keras finds them."""
    if file.generation == 2 or "groups" not in file.marks:
        return []
    return [
        f"{key}: loaded from an .h5, Keras 3 leaves out its mean and variance, because it is in a nested model, and so "
        "answers otherwise than the network that was saved. Here both count, and the new file gives what that one gave."
        for key, layer in layers.items()
        if layer.class_name == "Normalization" and len(layer.path) > 1 and layer.config.get("mean") is None
    ]


def _fold_padding(nodes: dict[str, Node]) -> tuple[Node, ...]:
    """Make a ZeroPadding2D part of the convolution if that is its only reader, as in a traced graph."""
    readers: dict[str, list[str]] = {}
    for node in nodes.values():
        for name in node.inputs:
            readers.setdefault(name, []).append(node.name)
    kept = dict(nodes)
    for node in nodes.values():
        if node.op != "conv2d" or nodes[node.inputs[0]].op != "pad" or len(readers[node.inputs[0]]) != 1:
            continue
        pad = kept.pop(node.inputs[0])
        own = node.attributes["padding"]
        padding = tuple(left + right for left, right in zip(own, pad.attributes["padding"], strict=True))
        kept[node.name] = replace(node, inputs=pad.inputs, attributes={**node.attributes, "padding": padding})
    return tuple(kept.values())

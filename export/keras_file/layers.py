"""Neutral graph -> Keras layers: built-in ones only, and only configuration keys that every Keras accepts.

Layout is Keras's: activations NHWC, convolution kernels (kh, kw, in, out), depthwise kernels (kh, kw, C, 1), dense
kernels (in, out).
"""

from __future__ import annotations

from dataclasses import replace

from export.graph.nodes import Graph, Node
from export.keras_file.joined_activations import join_activations
from export.keras_file.keras_layer import Emit, KerasLayer, NoKerasLayer
from export.keras_file.operations import (
    activation,
    arithmetic,
    convolution,
    normalisation,
    places,
    pooling,
    powers,
    shape,
    tokens,
    windows,
)
from models.bad_input import BadInput

_LAYERS: dict[str, Emit] = {
    **convolution.LAYERS,
    **normalisation.LAYERS,
    **activation.LAYERS,
    **arithmetic.LAYERS,
    **pooling.LAYERS,
    **places.LAYERS,
    **shape.LAYERS,
    **tokens.LAYERS,
    **windows.LAYERS,
    **powers.LAYERS,
}


def keras_layers(graph: Graph, input_range: str = "unit", separate: bool = False) -> list[KerasLayer]:
    """Translate the graph into Keras layers: one per node, plus a ZeroPadding2D where SAME would pad differently.

    Args:
        graph: the neutral graph.
        input_range: ``unit`` (the model takes [0, 1]) or ``raw`` (it takes 0..255 and divides first).
        separate: whether every activation is a layer of its own, as in files of older versions; otherwise those that a
            node says are inside another's layer (`Node.inside`) are.

    Returns:
        The layers in the order in which Keras loads their weights; the first is the input, the last the output.
    """
    image = graph.nodes[0]
    channels, *size = image.shape
    layers = [KerasLayer("InputLayer", image.name, {"batch_input_shape": [None, *size, channels]}, ())]
    renamed = {image.name: image.name}
    if input_range == "raw":
        rescale = {"scale": [1 / 255] * channels, "offset": [0.0] * channels}
        layers.append(KerasLayer("Rescaling", "rescale_raw", rescale, (image.name,)))
        renamed[image.name] = "rescale_raw"
    elif input_range != "unit":
        raise BadInput(f"expected input_range 'unit' ([0, 1]) or 'raw' (0..255), got {input_range!r}. Name one.")
    taken = {*(node.name for node in graph.nodes), *(layer.name for layer in layers)}
    for node in graph.nodes[1:]:
        inputs = tuple(renamed[name] for name in node.inputs)
        for layer in _unique(_layers_of(graph, node, inputs), node.name, taken):
            # a BatchNorm has its statistics besides what is trained
            others = layer.weights if layer.class_name != "BatchNormalization" else ()
            fixed = layer.fixed or any(tensor in graph.untrained for _, tensor, _ in others)
            layers.append(replace(layer, node=node.name, fixed=fixed))
        renamed[node.name] = node.name
    if not separate:
        layers, _ = join_activations(layers, {node.name: node.inside for node in graph.nodes if node.inside})
    return in_keras_order(layers)


def _unique(layers: list[KerasLayer], own: str, taken: set[str]) -> list[KerasLayer]:
    """The layers of one node with names that no other layer has: those before its last may be called like a node."""
    renamed: dict[str, str] = {}
    unique = []
    for layer in layers:
        name, number = layer.name, 1
        while name != own and name in taken:
            name, number = f"{layer.name}_{number}", number + 1
        inputs = tuple(renamed.get(each, each) for each in layer.inputs)
        renamed[layer.name] = name
        taken.add(name)
        unique.append(replace(layer, name=name, inputs=inputs))
    return unique


def _layers_of(graph: Graph, node: Node, inputs: tuple[str, ...]) -> list[KerasLayer]:
    try:
        return list(_LAYERS[node.op](graph, node, inputs))
    except BadInput:
        raise
    except Exception as error:  # a shape, or a weight's, that the writer of the operation does not expect
        raise NoKerasLayer(node, f"in this form ({type(error).__name__}: {error})") from error


def joined_activations(graph: Graph) -> dict[str, str]:
    """Activation -> the node in whose Keras layer it is: there the output of the layer is the activation's."""
    inside = {node.name: node.inside for node in graph.nodes if node.inside}
    return join_activations(keras_layers(graph, separate=True), inside)[1]


def in_keras_order(layers: list[KerasLayer]) -> list[KerasLayer]:
    """Sort as Keras sorts `model.layers` when it rebuilds a model, because it loads weights in that order.

    Mirrors `map_graph` in `keras/src/ops/function.py` (in Keras 2 `_map_graph_network`): by decreasing distance to the
    output, then by the order in which a depth-first walk from the output reaches the layers.
    """
    by_name = {layer.name: layer for layer in layers}
    distance = {layers[-1].name: 0}
    for layer in reversed(layers):
        for name in layer.inputs:
            distance[name] = max(distance.get(name, 0), distance[layer.name] + 1)
    met: dict[str, int] = {}
    stack = [layers[-1].name]
    while stack:
        name = stack.pop()
        if name not in met:
            met[name] = len(met)
            stack.extend(reversed(by_name[name].inputs))
    return sorted(layers, key=lambda layer: (-distance[layer.name], met[layer.name]))

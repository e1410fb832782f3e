"""Graph of an old Keras file -> layers of the universal `.h5`, under the names and in the places that they had.

The graph is written as it is: no preprocessing is added and no softmax. An activation goes back into the Dense or
convolution that it came from, so that ``model.layers[-2]`` is what it was.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from export.graph.nodes import Graph
from export.keras_file.architecture import WITHOUT_EFFECT, KerasGraph
from export.keras_file.joined_activations import join_activations
from export.keras_file.keras_layer import KerasLayer
from export.keras_file.layers import in_keras_order, keras_layers

_REGULARISERS = ("kernel_regularizer", "bias_regularizer", "depthwise_regularizer", "activity_regularizer")


@dataclass(frozen=True)
class UpgradedLayers:
    """What is written, and how it relates to the old file.

    Attributes:
        layers: in Keras's order.
        compared: key of an old layer -> name of the new layer with the same output.
        frozen: names of the new layers that are not trained.
        notes: for the owner: what does not come over.
    """

    layers: list[KerasLayer]
    compared: dict[str, str]
    frozen: frozenset[str]
    notes: list[str]


def upgraded_layers(source: KerasGraph, open_size: bool = False) -> UpgradedLayers:
    """Translate the graph of a file.

    Args:
        source: from `read_keras_graph`, with its paddings as they are.
        open_size: whether the old model takes images of any size.

    Raises:
        NoKerasLayer: an operation is none of those that every Keras has.
    """
    names, renamed_keys = _names(source)
    nodes = tuple(
        replace(node, name=names[node.name], inputs=tuple(names[each] for each in node.inputs))
        for node in source.graph.nodes
    )
    # an activation goes back into the layer that it came from
    source_of = {names[node.name]: node.source for node in source.graph.nodes}
    inside = {node.name: node.inputs[0] for node in nodes[1:] if source_of[node.inputs[0]] == source_of[node.name]}
    layers, moved = join_activations(keras_layers(Graph(nodes, source.graph.tensors)), inside)
    layers = in_keras_order(layers)
    if open_size:
        shape = layers[0].config["batch_input_shape"]
        layers[0] = replace(layers[0], config={"batch_input_shape": [None, None, None, shape[3]]})
    written = {layer.name for layer in layers}
    compared = {}
    for key, node in source.outputs.items():
        layer = source.layers[key]
        if layer.class_name in (*WITHOUT_EFFECT, "InputLayer") or node not in names:
            continue
        if layer.is_bare(source.generation) or layer.calls > 1:
            continue  # the first has no name that one could ask for, the second no one output
        name = moved.get(names[node], names[node])
        if name in written and name != layers[0].name:
            compared[key] = name
    frozen = frozenset(
        layer.name
        for layer in layers[1:]
        if layer.name in source_of and source.layers[source_of[layer.name]].config.get("trainable", True) is False
    )
    return UpgradedLayers(layers, compared, frozen, _notes(source, renamed_keys))


def _names(source: KerasGraph) -> tuple[dict[str, str], list[str]]:
    """Node -> name in the new file, and the keys of layers whose names were not unique."""
    count = Counter(layer.path[-1] for layer in source.layers.values())
    short = {
        key: layer.path[-1] if count[layer.path[-1]] == 1 else "_".join(layer.path)
        for key, layer in source.layers.items()
    }
    names: dict[str, str] = {}
    taken: set[str] = set(short.values())
    for node in source.graph.nodes:
        # the first node of a layer has the layer's key, a further one what it does behind it
        name = short[node.source]
        if node.name != node.source:
            name += node.name.removeprefix(node.source).replace("/", "_")
            while name in taken:
                name += "_"
            taken.add(name)
        names[node.name] = name.replace("/", "_")
    return names, [key for key, layer in source.layers.items() if short[key] != layer.path[-1]]


def _notes(source: KerasGraph, renamed: list[str]) -> list[str]:
    notes = list(source.notes)
    if renamed:
        some = ", ".join(renamed[:3]) + (" ..." if len(renamed) > 3 else "")
        notes.append(f"{len(renamed)} layers have a name that another one has, too ({some}): theirs is now their path.")
    regularised = [key for key, layer in source.layers.items() if any(layer.config.get(each) for each in _REGULARISERS)]
    if regularised:
        notes.append(f"{', '.join(regularised[:6])}: regularisers left out; they act in training alone.")
    return notes


# Training configuration -----------------------------------------------------------------------------------------------

# Optimiser -> its settings that every Keras takes, with Keras's defaults.
_OPTIMISERS: dict[str, dict[str, Any]] = {
    "Adam": {"learning_rate": 0.001, "beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-7, "amsgrad": False},
    "SGD": {"learning_rate": 0.01, "momentum": 0.0, "nesterov": False},
    "RMSprop": {"learning_rate": 0.001, "rho": 0.9, "momentum": 0.0, "epsilon": 1e-7, "centered": False},
    "Nadam": {"learning_rate": 0.001, "beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-7},
    "Adamax": {"learning_rate": 0.001, "beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-7},
    "Adagrad": {"learning_rate": 0.001, "initial_accumulator_value": 0.1, "epsilon": 1e-7},
    "Adadelta": {"learning_rate": 0.001, "rho": 0.95, "epsilon": 1e-7},
}
# Losses: Keras's class -> the name of its function.
_LOSSES = {
    "CategoricalCrossentropy": "categorical_crossentropy",
    "SparseCategoricalCrossentropy": "sparse_categorical_crossentropy",
    "BinaryCrossentropy": "binary_crossentropy",
    "MeanSquaredError": "mean_squared_error",
    "Hinge": "hinge",
    "CategoricalHinge": "categorical_hinge",
}
_LOSS_NAMES = (*_LOSSES.values(), "mse")
_METRICS = ("accuracy", "acc", "AUC", "Precision", "Recall")


def upgraded_training(config: dict[str, Any] | None) -> tuple[dict[str, Any] | None, list[str]]:
    """The training configuration as every Keras reads it, None if that is not possible; and notes for the owner."""
    if not config:
        return None, ["The old file is not compiled, and neither is the new one."]
    given = config.get("optimizer_config")
    given = given if isinstance(given, dict) else {}
    kind = str(given.get("class_name")).removeprefix("Custom>")
    loss = _loss(config.get("loss"))
    if kind not in _OPTIMISERS or loss is None:
        what = f"optimiser {kind}" if kind not in _OPTIMISERS else "loss"
        return None, [
            f"Its {what} is not one that every Keras reads from a file: the new file is not compiled. It predicts as "
            "it is; call model.compile(...) before training it further."
        ]
    notes = []
    own = _dictionary(given.get("config"))
    settings = {name: own.get(name, usual) for name, usual in _OPTIMISERS[kind].items()}
    if not isinstance(settings["learning_rate"], int | float):
        schedule = settings["learning_rate"]
        start = schedule.get("config", {}).get("initial_learning_rate") if isinstance(schedule, dict) else None
        settings["learning_rate"] = start if isinstance(start, float) else _OPTIMISERS[kind]["learning_rate"]
        notes.append(f"Learning-rate schedule left out: the new file has {settings['learning_rate']:g}.")
    metrics, left = _metrics(config.get("metrics"))
    if left:
        notes.append(f"Metrics left out, as not every Keras reads them from a file: {', '.join(left)}.")
    notes.append("The optimiser's state is left out: training goes on from the weights, with fresh moments.")
    return {
        "loss": loss,
        "metrics": metrics,
        "weighted_metrics": None,
        "loss_weights": None,
        "optimizer_config": {"class_name": kind, "config": {"name": kind, **settings}},
    }, notes


def _loss(loss: Any) -> str | dict[str, Any] | None:
    if isinstance(loss, list | tuple) and len(loss) == 1:
        loss = loss[0]
    if isinstance(loss, str):
        return loss if loss in _LOSS_NAMES else _LOSSES.get(loss)
    if not isinstance(loss, dict):
        return None
    kind, config = loss.get("class_name"), loss.get("config")
    if kind == "function":
        return config if config in _LOSS_NAMES else None
    if kind not in _LOSSES:
        return None
    config = config if isinstance(config, dict) else {}
    # "reduction" is not written: its default has another name in Keras 3
    settings = {
        name: config[name]
        for name in ("from_logits", "label_smoothing")
        if config.get(name) and kind.endswith("entropy")
    }
    return {"class_name": kind, "config": settings} if settings else _LOSSES[kind]


def _dictionary(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _metrics(metrics: Any) -> tuple[list[str], list[str]]:
    """Names that every Keras reads, and names of those that are left out."""
    kept: list[str] = []
    left: list[str] = []
    waiting = [metrics]
    while waiting:
        each = waiting.pop(0)
        if isinstance(each, list | tuple):
            waiting = [*each, *waiting]
            continue
        if each is None:
            continue
        name: Any = each
        if isinstance(each, dict):
            config = _dictionary(each.get("config"))
            name = each.get("class_name")
            if name == "MeanMetricWrapper":
                name = config.get("fn") if isinstance(config.get("fn"), str) else config.get("name")
            elif name == "Accuracy" or config.get("name") in ("accuracy", "acc"):
                name = "accuracy"
        (kept if name in _METRICS else left).append(str(name))
    return kept, left

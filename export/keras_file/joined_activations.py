"""Activations inside the layer before them, as ``Dense(4, activation="softmax")`` has one.

So ``model.layers[-2]`` is what somebody expects who cuts off the last layer to put another one on: the features.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from export.keras_file.keras_layer import KerasLayer

_WITH_ACTIVATION = ("Dense", "Conv2D", "DepthwiseConv2D", "Conv2DTranspose")
# Those that mean the same inside such a layer, in every Keras.
_INSIDE = ("softmax", "sigmoid", "tanh", "swish", "selu", "softplus", "softsign")


def join_activations(
    layers: Sequence[KerasLayer], inside: Mapping[str, str]
) -> tuple[list[KerasLayer], dict[str, str]]:
    """Put activations into the layers before them, where every Keras has that.

    Args:
        layers: each after those that it reads.
        inside: activation's name -> name of the layer that it should be in.

    Returns:
        The layers, in the same order without those activations; and activation's name -> where its output is now.
    """
    readers = Counter(name for layer in layers for name in layer.inputs)
    by_name = {layer.name: layer for layer in layers}
    moved: dict[str, str] = {}
    for layer in layers:
        function, first = _function(layer), layer.inputs[0] if len(layer.inputs) == 1 else ""
        before = by_name.get(first)
        if function is None or before is None or inside.get(layer.name) != first:
            continue
        if before.class_name not in _WITH_ACTIVATION or readers[first] != 1:
            continue
        by_name[first] = replace(before, config={**before.config, "activation": function})
        del by_name[layer.name]
        moved[layer.name] = first
    kept = [replace(layer, inputs=tuple(moved.get(name, name) for name in layer.inputs)) for layer in by_name.values()]
    return kept, moved


def _function(layer: KerasLayer) -> str | None:
    if layer.class_name == "Activation" and layer.config["activation"] in _INSIDE:
        return str(layer.config["activation"])
    return "relu" if layer.class_name == "ReLU" and layer.config == {"max_value": None} else None

"""Batch and layer normalisation."""

from __future__ import annotations

from collections.abc import Iterator

from export.graph.nodes import Graph, Node
from export.keras_file.keras_layer import (
    WEIGHT_ORDER,
    Emit,
    KerasLayer,
)


def _batch_norm(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    config = {"epsilon": node.attributes["epsilon"], "momentum": node.attributes["momentum"]}
    config |= {"center": "beta" in node.weights, "scale": "gamma" in node.weights}
    weights = tuple(
        (role, node.weights[role], graph.tensors[node.weights[role]])
        for role in WEIGHT_ORDER["BatchNormalization"]
        if role in node.weights
    )
    yield KerasLayer("BatchNormalization", node.name, config, inputs, weights)


def _layer_norm(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    config = {"epsilon": node.attributes["epsilon"], "center": "beta" in node.weights, "scale": "gamma" in node.weights}
    roles = [role for role in WEIGHT_ORDER["LayerNormalization"] if role in node.weights]
    weights = tuple((role, node.weights[role], graph.tensors[node.weights[role]]) for role in roles)
    yield KerasLayer("LayerNormalization", node.name, config, inputs, weights)


LAYERS: dict[str, Emit] = {
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
}

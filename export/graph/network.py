"""Neutral graph -> torch module, and what a checkpoint needs to build it again."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from export.graph.nodes import Graph, Node
from models.graph_network import GraphNetwork


def describe(graph: Graph) -> list[dict[str, Any]]:
    """The graph's nodes as plain data, with the shapes of the weights; without the input and the weights themselves."""
    return [
        {
            "name": node.name,
            "op": node.op,
            "inputs": list(node.inputs),
            "shape": list(node.shape),
            "attributes": {name: _plain(value) for name, value in node.attributes.items()},
            "weights": {role: list(graph.tensors[name].shape) for role, name in node.weights.items()},
        }
        for node in graph.nodes[1:]
    ]


def _plain(value: Any) -> Any:
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def graph_network(graph: Graph) -> GraphNetwork:
    """A torch module that computes the graph, with its weights, in eval mode; it takes and gives what the graph does."""
    network = GraphNetwork(describe(graph), graph.nodes[0].name).eval()
    load_weights(network, graph.nodes, graph.tensors)
    return network


def load_weights(network: GraphNetwork, nodes: tuple[Node, ...], tensors: dict[str, np.ndarray]) -> None:
    """Copy the arrays of the nodes into the network; every parameter and buffer gets one, except counters."""
    state = {
        network.tensor_name(node.name, role): torch.from_numpy(tensors[name].copy())
        for node in nodes
        if node.name in network.module_of
        for role, name in node.weights.items()
    }
    counters = {name: each for name, each in network.state_dict().items() if name.endswith("num_batches_tracked")}
    network.load_state_dict({**counters, **state})

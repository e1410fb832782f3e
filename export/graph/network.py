"""Neutral graph -> torch module, and what a checkpoint needs to build it again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from export.graph.nodes import Graph, Node
from export.graph.trace import last_node
from models.graph_network import INPUT, GraphClassifier, GraphNetwork


def describe_nodes(nodes: Sequence[Node], tensors: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Nodes as plain data, with the shapes of their weights."""
    return [
        {
            "name": node.name,
            "op": node.op,
            "inputs": list(node.inputs),
            "shape": list(node.shape),
            "attributes": {name: _plain(value) for name, value in node.attributes.items()},
            "weights": {role: list(tensors[name].shape) for role, name in node.weights.items()},
            **({"inside": node.inside} if node.inside else {}),
        }
        for node in nodes
    ]


def _plain(value: Any) -> Any:
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def graph_network(graph: Graph) -> GraphNetwork:
    """A torch module that computes the graph, with its weights, in eval mode."""
    network = GraphNetwork(describe_nodes(graph.nodes[1:], graph.tensors), graph.nodes[0].name).eval()
    load_weights(network, graph.nodes, graph.tensors)
    return network


def load_weights(network: GraphNetwork, nodes: Sequence[Node], tensors: dict[str, np.ndarray]) -> None:
    """Copy the arrays of the nodes into the network; every parameter and buffer gets one, except counters."""
    state = {
        network.tensor_name(node.name, role): torch.from_numpy(tensors[name].copy())
        for node in nodes
        if node.name in network.module_of
        for role, name in node.weights.items()
    }
    counters = {name: each for name, each in network.state_dict().items() if name.endswith("num_batches_tracked")}
    network.load_state_dict({**counters, **state})


def graph_of(network: GraphClassifier, image_size: tuple[int, int]) -> Graph:
    """The neutral graph of a classifier that was built from one, with its present weights and a softmax at the end.

    Tracing is not needed: the network computes its description.
    """
    shape = (3, *image_size)
    scale, offset = (
        tuple(float(each) for each in constant.reshape(-1))
        for constant in (network.normalise.scale, network.normalise.offset)
    )
    nodes = [
        Node("image", "input", (), shape),
        Node(INPUT, "affine", ("image",), shape, {"scale": scale, "offset": offset}, {}, INPUT, INPUT),
    ]
    state = network.state_dict()
    tensors: dict[str, np.ndarray] = {}
    for part in ("backbone", "head"):
        own: Any = network.get_submodule(part)
        for node in own.nodes:
            weights = {role: f"{part}.{own.tensor_name(node['name'], role)}" for role in node["weights"]}
            tensors |= {name: state[name].detach().cpu().numpy() for name in weights.values()}
            source = f"{part}.layers.{own.module_of[node['name']]}" if node["name"] in own.module_of else part
            attributes = {name: _tuples(value) for name, value in node["attributes"].items()}
            name, inputs, shape = node["name"], tuple(node["inputs"]), tuple(node["shape"])
            inside = node.get("inside", "")
            nodes.append(Node(name, node["op"], inputs, shape, attributes, weights, source, name, inside=inside))
    nodes.append(last_node(nodes[-1]))
    return Graph(tuple(nodes), tensors)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(each) for each in value) if isinstance(value, list) else value


def outputs_of(network: GraphClassifier, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """The output of every node of `graph_of`, by name, (B, C, H, W) or (B, C).

    Args:
        network: in the precision of the images.
        images: (B, 3, H, W), in [0, 1].
    """
    with torch.inference_mode():
        record = {INPUT: network.normalise(images)}
        record["probabilities"] = network.head(network.backbone(record[INPUT], record), record).softmax(1)
    return record

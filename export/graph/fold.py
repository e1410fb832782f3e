"""Fold BatchNorm into the convolution before it: fewer layers, and the same function up to float32's rounding."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from export.graph.nodes import Graph, Node


def fold_batch_norms(graph: Graph) -> Graph:
    """Fold each BatchNorm into the convolution or dense layer before it, if nothing else reads that layer's output.

    With s = gamma / sqrt(moving_variance + epsilon) the kernel becomes kernel * s and the bias becomes
    (bias - moving_mean) * s + beta, computed in float64 and rounded once. The layer keeps the convolution's name; its
    `trace_name` is the BatchNorm's.

    Args:
        graph: its BatchNorms are in inference mode. It is not changed.

    Returns:
        The smaller graph; arrays keep their type.
    """
    folded = {norm.name: convolution for convolution, norm in foldable(graph)}
    gone = {convolution.name for convolution in folded.values()}
    renamed = {norm: convolution.name for norm, convolution in folded.items()}
    nodes, tensors = [], dict(graph.tensors)
    for node in graph.nodes:
        if node.name in gone:
            continue
        inputs = tuple(renamed.get(name, name) for name in node.inputs)
        if node.name not in folded:
            nodes.append(replace(node, inputs=inputs))
            continue
        convolution = folded[node.name]
        kernel, bias = _folded_weights(graph, convolution, node)
        for name in (*convolution.weights.values(), *node.weights.values()):
            del tensors[name]
        weights = {"kernel": convolution.weights["kernel"], "bias": f"{convolution.weights['kernel']}.folded_bias"}
        tensors |= {weights["kernel"]: kernel, weights["bias"]: bias}
        before = tuple(renamed.get(name, name) for name in convolution.inputs)
        nodes.append(replace(convolution, inputs=before, weights=weights, trace_name=node.trace_name))
    computed = {name: each for name, each in graph.computed.items() if name in tensors}
    return Graph(tuple(nodes), tensors, computed, graph.unused, graph.untrained)


def foldable(graph: Graph) -> list[tuple[Node, Node]]:
    """Pairs of a convolution or dense layer and a BatchNorm that is the only one to read it."""
    readers: dict[str, int] = {}
    for node in graph.nodes:
        for name in node.inputs:
            readers[name] = readers.get(name, 0) + 1
    return [
        (before, node)
        for node in graph.nodes
        if node.op == "batch_norm"
        and (before := graph.node(node.inputs[0])).op in ("conv2d", "dense")
        and readers[before.name] == 1
    ]


def folded_state(graph: Graph) -> dict[str, np.ndarray]:
    """The folded weights as a state dict of the unfolded torch network, which with them computes the folded function.

    All that its BatchNorms still do is add the folded bias: mean 0, variance 1 - epsilon, gamma 1.

    Args:
        graph: before folding.

    Returns:
        name in the state dict -> float64 array; the folded values are rounded to float32 first.
    """
    state = {name: array.astype(np.float64) for name, array in graph.tensors.items()}
    for convolution, norm in foldable(graph):
        kernel, bias = _folded_weights(graph, convolution, norm)
        ones = np.ones(len(bias))
        put = {
            "gamma": ones,
            "beta": bias,
            "moving_mean": 0 * ones,
            "moving_variance": ones - norm.attributes["epsilon"],
        }
        state[convolution.weights["kernel"]] = kernel.astype(np.float64)
        if "bias" in convolution.weights:
            state[convolution.weights["bias"]] = 0 * ones
        state |= {name: put[role].astype(np.float64) for role, name in norm.weights.items()}
    return state


def _folded_weights(graph: Graph, convolution: Node, norm: Node) -> tuple[np.ndarray, np.ndarray]:
    kernel = graph.tensors[convolution.weights["kernel"]]
    weights = {role: graph.tensors[name].astype(np.float64) for role, name in norm.weights.items()}
    size = len(kernel)
    scale = weights.get("gamma", np.ones(size)) / np.sqrt(weights["moving_variance"] + norm.attributes["epsilon"])
    bias = graph.tensors[convolution.weights["bias"]] if "bias" in convolution.weights else np.zeros(size)
    folded_bias = (bias - weights["moving_mean"]) * scale + weights.get("beta", 0.0)
    per_output = scale.reshape(-1, *(1,) * (kernel.ndim - 1))
    return (kernel * per_output).astype(kernel.dtype), folded_bias.astype(kernel.dtype)

"""What torch computes in float64 for the proof: the output of every layer, and training steps."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor, nn

from export.graph.network import outputs_of
from export.graph.nodes import Graph, Node
from export.graph.record import record
from export.torch_answers import nchw
from models.bad_input import BadInput
from models.graph_network import GraphClassifier
from models.keras_adam import KerasAdam

State = dict[str, np.ndarray]
"""Name in the state dict -> float64 array."""


def torch_layers(
    network: nn.Module, graph: Graph, images: np.ndarray, state: State | None = None
) -> dict[str, np.ndarray]:
    """The output of every node of the graph, computed in float64.

    Args:
        network: the network that the graph was traced from; it is not changed.
        graph: its neutral graph.
        images: float64, NHWC, in [0, 1].
        state: weights to compute with instead of the network's.

    Returns:
        node name -> float64 in Keras's layout: (N, H, W, C) or (N, C). The input node is left out.
    """
    exact = _in_float64(network, state)
    if isinstance(exact, GraphClassifier):
        recorded = outputs_of(exact.eval(), nchw(images))
        return {node.name: _keras_layout(node, recorded[node.name]) for node in graph.nodes[1:]}
    nodes = {node.trace_name: node for node in graph.nodes[1:] if node.trace_name}
    recording = record(exact, (images.shape[1], images.shape[2]), nchw(images), keep=nodes)
    missing = [node.name for name, node in nodes.items() if name not in recording.values]
    if missing:
        raise BadInput(
            f"expected a network that computes the same operations in float64 as in its own type, and {missing[0]} is "
            "not among them. Take out of its forward what depends on the type."
        )
    values = {node.name: _keras_layout(node, recording.values[name]) for name, node in nodes.items()}
    values[graph.output.name] = recording.output.softmax(dim=1).numpy()  # the only node that does not exist in torch
    return values


def torch_exact(network: nn.Module, images: np.ndarray, state: State | None = None) -> np.ndarray:
    """Softmax of the network's logits in float64, (N, C).

    Args:
        network: takes NCHW in [0, 1]; it is not changed.
        images: NHWC, in [0, 1].
        state: weights to compute with instead of the network's.
    """
    with torch.inference_mode():
        probabilities: np.ndarray = (
            _in_float64(network, state).eval()(nchw(images.astype(np.float64))).softmax(dim=1).numpy()
        )
    return probabilities


def _in_float64(network: nn.Module, state: State | None) -> nn.Module:
    exact = copy.deepcopy(network).double()
    if state is not None:  # not strict, because it lacks BatchNorm's counters
        exact.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()}, strict=False)
    return exact


def _keras_layout(node: Node, value: Tensor) -> np.ndarray:
    if len(node.shape) == 1:
        return value.reshape(len(value), -1).numpy()
    return (value if node.trace_channels_last else value.permute(0, 2, 3, 1)).numpy()


def torch_train(
    network: nn.Module,
    trainable: str,
    learning_rate: float,
    images: np.ndarray,
    targets: np.ndarray,
    steps: int,
    state: State | None = None,
    uncertain: float = 0.0,
) -> tuple[State, int]:
    """Make optimiser steps in float64, with dropout off and BatchNorm in inference mode.

    Args:
        network: it is not changed. Its dense head is the attribute `head`.
        trainable: ``head``, or ``all`` for everything but BatchNorm.
        learning_rate: of Keras's Adam.
        images: float64, NHWC, in [0, 1].
        targets: float64, (B, C), each row adding up to 1.
        steps: the most steps to make.
        state: weights to start from instead of the network's.
        uncertain: after the first step, stop once the probability of a target is closer than this to 0 or 1.

    Returns:
        name in the state dict -> float64 array after the steps; and the number of steps made.
    """
    exact = _in_float64(network, state).eval()
    for module in exact.modules():
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(not isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d))
    if trainable == "head":
        exact.requires_grad_(False)
        exact.get_submodule("head").requires_grad_(True)
    adam = KerasAdam([each for each in exact.parameters() if each.requires_grad], learning_rate)
    photos, wanted = nchw(images), torch.from_numpy(targets)
    made = 0
    while made < steps:
        logits = exact(photos)
        likely = (logits.detach().softmax(1) * wanted).sum(1)
        if made and not torch.minimum(likely, 1 - likely).min() >= uncertain:
            break
        adam.zero_grad()
        nn.functional.cross_entropy(logits, wanted).backward()
        adam.step()
        made += 1
    return {name: tensor.detach().numpy() for name, tensor in exact.state_dict().items()}, made

"""What torch computes in float64 for the proof: the output of every layer, and training steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from export.graph.network import outputs_of
from export.graph.nodes import Graph, Node
from export.graph.record import record
from export.torch_answers import nchw, output_of
from models.bad_input import BadInput
from models.classifier import gives_of, probabilities_of
from models.graph_network import GraphClassifier
from models.keras_adam import KerasAdam
from models.state_dicts import copied

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
        return {node.name: _keras_layout(node, recorded[node.name], len(images)) for node in graph.nodes[1:]}
    nodes = [node for node in graph.nodes[1:] if node.trace_name]
    arrays = {**graph.tensors, **(state or {})}
    given = {  # as the file has them, rounded; computed anew in float64 they would be others
        origin.trace_name: torch.from_numpy(arrays[name]).double()
        for name, origin in graph.computed.items()
        if origin.trace_name
    }
    with _float64_by_default():
        keep = {node.trace_name for node in nodes}
        recording = record(exact, (images.shape[1], images.shape[2]), nchw(images), keep=keep, given=given)
    missing = [node.name for node in nodes if node.trace_name not in recording.values]
    if missing:
        raise BadInput(
            f"expected a network that computes the same operations in float64 as in its own type, and {missing[0]} is "
            "not among them. Take out of its forward what depends on the type."
        )
    values = {node.name: _keras_layout(node, recording.values[node.trace_name], len(images)) for node in nodes}
    # the only node that torch may not have, or have as something else
    values[graph.output.name] = probabilities_of(recording.output, output_of(network)).numpy()
    return values


def torch_exact(network: nn.Module, images: np.ndarray, state: State | None = None) -> np.ndarray:
    """The network's probabilities in float64, (N, C).

    Args:
        network: takes NCHW in [0, 1]; it is not changed.
        images: NHWC, in [0, 1].
        state: weights to compute with instead of the network's.
    """
    with torch.inference_mode(), _float64_by_default():
        answers = _in_float64(network, state).eval()(nchw(images.astype(np.float64)))
        probabilities: np.ndarray = probabilities_of(answers, output_of(network)).numpy()
    return probabilities


@contextmanager
def _float64_by_default() -> Iterator[None]:
    """Constants that a network makes while it runs, such as `torch.ones(3)`, are float64 as well."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(usual)


def _in_float64(network: nn.Module, state: State | None) -> nn.Module:
    exact = copied(network).double()
    if state is not None:  # not strict, because it lacks BatchNorm's counters
        exact.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()}, strict=False)
    return exact


def _keras_layout(node: Node, value: Tensor, batch: int) -> np.ndarray:
    if node.trace_layout is not None:
        return node.trace_layout.to_keras(value, batch).reshape(batch, *node.shape[1:], node.shape[0]).numpy()
    if len(node.shape) == 1:
        return value.reshape(len(value), -1).numpy()
    return (value if node.trace_channels_last else value.movedim(1, -1)).numpy()


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
            # an InstanceNorm with statistics of its own is a BatchNorm in Keras
            has_statistics = isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats
            parameter.requires_grad_(not has_statistics)
    if trainable == "head":
        exact.requires_grad_(False)
        exact.get_submodule("head").requires_grad_(True)
    adam = KerasAdam([each for each in exact.parameters() if each.requires_grad], learning_rate)
    photos, wanted = nchw(images), torch.from_numpy(targets)
    made = 0
    while made < steps:
        with _float64_by_default():
            answers = exact(photos)
        likely = (probabilities_of(answers.detach(), output_of(network)) * wanted).sum(1)
        if made and not torch.minimum(likely, 1 - likely).min() >= uncertain:
            break
        adam.zero_grad()
        _loss(answers, wanted, output_of(network)).backward()
        adam.step()
        made += 1
    return {name: tensor.detach().numpy() for name, tensor in exact.state_dict().items()}, made


def _loss(answers: Tensor, wanted: Tensor, output: str) -> Tensor:
    """The loss that the file's training configuration names: cross-entropy, of each number alone for a sigmoid."""
    if gives_of(output, answers.shape[1]) == "sigmoid":
        return nn.functional.binary_cross_entropy(probabilities_of(answers, output), wanted)
    if output == "softmax":
        answers = answers.log()
    return nn.functional.cross_entropy(answers, wanted)

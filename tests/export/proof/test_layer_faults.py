"""Faults that are planted in one layer: the message names the layer and the fault. No Keras is started."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from export.graph.record import record
from export.graph.trace import trace_graph
from export.proof.diagnosis.cause import likely_cause
from export.proof.keras_side import KerasSide
from export.proof.report import Check, Report
from export.proof.torch_side import torch_layers

SIZE = (9, 7)


class Net(nn.Module):
    def __init__(self, operation):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.operation = nn.Conv2d(3, 6, 3), operation

    def forward(self, images):
        return self.operation(self.conv(images)).flatten(2).mean(2)


def tokens(x):
    return x.flatten(2).transpose(1, 2)


def of_tokens(function):
    return lambda x: function(tokens(x)).transpose(1, 2)


def resized(x, mode, **settings):
    return functional.interpolate(x, (14, 10), mode=mode, **settings)


class Group(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.GroupNorm(3, 6)
        nn.init.uniform_(self.norm.weight, 0.5, 2)
        nn.init.uniform_(self.norm.bias, 0.5, 2)

    def forward(self, x):
        return self.norm(x)

    def with_groups(self, x):
        return functional.group_norm(x, 2, self.norm.weight.double(), self.norm.bias.double(), 1e-5)

    def with_epsilon(self, x):
        return functional.group_norm(x, 3, self.norm.weight.double(), self.norm.bias.double(), 1e-3)


def heads_of(x):
    """Queries, keys and values of two heads: (B, 2, N, 3)."""
    return tuple(each.unflatten(2, (2, 3)).transpose(1, 2) for each in (tokens(x), tokens(x.tanh()), tokens(x * x)))


def scores(x):
    query, key, _ = heads_of(x)
    return query @ key.mT


def attended(x):
    query, key, value = heads_of(x)
    return (query @ key.mT).softmax(-1) @ value


def as_keras(heads):
    """(B, heads, N, M), which Keras has as (N, heads, M), where `movedim` makes that of it."""
    return heads.permute(0, 3, 2, 1)


def scores_of(query, key):
    return as_keras(query @ key.mT)


def windows_of(x):
    """Nine windows of two tokens, (B, 9, 2, 6)."""
    return tokens(x)[:, :18].reshape(len(x), 9, 2, 6)


GROUP = Group()
# Name: what the network does, the operation's node, what Keras does instead, what must be said
FAULTS = {
    "groups": (GROUP, "group_norm", GROUP.with_groups, "it has 2 groups of channels, not 3"),
    "groups' epsilon": (GROUP, "group_norm", GROUP.with_epsilon, "its epsilon is 0.001, not 1e-05"),
    "norm's epsilon": (
        of_tokens(lambda t: functional.layer_norm(t, (6,), eps=1e-6)), "layer_norm",
        of_tokens(lambda t: functional.layer_norm(t, (6,), eps=1e-3)), "its epsilon is 0.001, not 1e-06",
    ),
    "norm's axis": (
        of_tokens(lambda t: functional.layer_norm(t, (6,), eps=1e-6)), "layer_norm",
        lambda x: functional.layer_norm(x.flatten(2), (35,), eps=1e-6), "it is over axis 1, not over the last, 2",
    ),
    "no mean": (
        of_tokens(lambda t: functional.layer_norm(t, (6,))), "layer_norm",
        of_tokens(lambda t: functional.rms_norm(t, (6,), eps=1e-5)), "it does not subtract the mean",
    ),
    "softmax's axis": (
        of_tokens(lambda t: t.softmax(-1)), "softmax", lambda x: x.flatten(2).softmax(-1),
        "its softmax is over axis 1, not over the last, 2",
    ),
    "no softmax": (
        of_tokens(lambda t: t.softmax(-1)), "softmax", lambda x: x.flatten(2),
        "it gives logits: its softmax is missing",
    ),
    "corners": (
        lambda x: resized(x, "bilinear"), None, lambda x: resized(x, "bilinear", align_corners=True),
        "it interpolates bilinearly with the corners aligned",
    ),
    "half pixels": (
        lambda x: resized(x, "bilinear", align_corners=True), None, lambda x: resized(x, "bilinear"),
        "it interpolates bilinearly with half-pixel centres",
    ),
    "nearest": (
        lambda x: resized(x, "bilinear"), None, lambda x: resized(x, "nearest"),
        "it interpolates with the nearest pixel",
    ),
    "gelu": (
        functional.gelu, "activation", lambda x: functional.gelu(x, approximate="tanh"),
        "it computes gelu by tanh, not gelu",
    ),
    "hard sigmoid": (
        functional.hardsigmoid, "hard_sigmoid", lambda x: (0.2 * x + 0.5).clamp(0, 1),
        "it computes Keras 2's hard_sigmoid, 0.2 * x + 0.5, not hard_sigmoid",
    ),
    "slope": (
        lambda x: functional.leaky_relu(x, 0.01), "leaky_relu", lambda x: functional.leaky_relu(x, 0.3),
        "its negative slope is 0.3, not 0.01",
    ),
    "attention's factor": (lambda x: x * 6**-0.5, "affine", lambda x: x, "it does nothing (its factor or offset"),
    "pool of zeros": (
        lambda x: functional.max_pool2d(x, 3, 2, 1), "max_pool",
        lambda x: functional.max_pool2d(functional.pad(x, (1, 1, 1, 1)), 3, 2), "it is padded with zeros",
    ),
    "padding counted": (
        lambda x: functional.avg_pool2d(x, 3, 2, 1, count_include_pad=False), "average_pool",
        lambda x: functional.avg_pool2d(x, 3, 2, 1), "it counts its padding",
    ),
    "padding not counted": (
        lambda x: functional.avg_pool2d(x, 3, 2, 1), "average_pool",
        lambda x: functional.avg_pool2d(x, 3, 2, 1, count_include_pad=False), "it does not count its padding",
    ),
    "order": (
        lambda x: torch.cat([x.relu(), x], 1), "concatenate", lambda x: torch.cat([x, x.relu()], 1),
        "its inputs are in another order: conv, layer",
    ),
    "difference": (
        lambda x: x - x.relu(), "subtract", lambda x: x.relu() - x, "its two inputs are exchanged",
    ),
    "squared factor": (
        lambda x: x * 6**-0.5, "affine", lambda x: x / 6, "its factor is squared (in attention 1 / d for 1 / sqrt(d))",
    ),
    "factor upside down": (
        lambda x: x * 6**-0.5, "affine", lambda x: x * 6**0.5, "it divides where it should multiply",
    ),
    "factor of all heads": (
        lambda x: x * 6**-0.5, "affine", lambda x: x * 18**-0.5, "its factor is divided by the root of 3",
    ),
    "queries and keys": (
        scores, "matmul", lambda x: scores_of(*heads_of(x)[1::-1]), "its two inputs are exchanged",
    ),
    "heads' order": (
        scores, "matmul", lambda x: scores_of(heads_of(x)[0], heads_of(x)[1].flip(1)),
        "each head of its first input meets the head 1 after it, of 2",
    ),
    "divided twice": (
        scores, "matmul", lambda x: scores_of(heads_of(x)[0] / 3**0.5, heads_of(x)[1]),
        "it is divided by the root of 3 as well",
    ),
    "scores of keys": (
        attended, ("matmul", 1),
        lambda x: as_keras((scores(x).softmax(-1)).mT @ heads_of(x)[2]),
        "the last two axes of its first input are exchanged",
    ),
    "softmax over queries": (
        lambda x: scores(x).softmax(-1), "softmax", lambda x: as_keras(scores(x).softmax(-2)),
        "its softmax is over axis 1, not over the last, 3",
    ),
    "windows' keys": (
        lambda x: windows_of(x) @ windows_of(x.tanh()).mT, "matmul_windows",
        lambda x: (windows_of(x.tanh()) @ windows_of(x).mT).permute(0, 3, 1, 2), "its two inputs are exchanged",
    ),
    "windows' order": (
        lambda x: windows_of(x) @ windows_of(x.tanh()).mT, "matmul_windows",
        lambda x: (windows_of(x) @ windows_of(x.tanh()).flip(1).mT).permute(0, 3, 1, 2),
        "the heads of its second input are in reverse order",
    ),
    "numbers of the heads in turn": (
        scores, "regroup", lambda x: tokens(x).unflatten(2, (3, 2)).permute(0, 2, 1, 3),
        "its numbers are in another order: axes (0, 2, 1) of (35, 2, 3)",
    ),
    "heads joined in turn": (
        lambda x: attended(x).transpose(1, 2).flatten(2).mT, ("regroup", -1),
        lambda x: attended(x).permute(0, 2, 3, 1).flatten(2).mT,
        "its numbers are in another order: axes (0, 2, 1) of (35, 2, 3)",
    ),
    "axes": (
        lambda x: windows_of(x).transpose(1, 3).reshape(len(x), 6, -1).softmax(1), "transpose",
        lambda x: windows_of(x).permute(0, 3, 1, 2).movedim(-1, 1),
        "its axes are in the order (2, 0, 1), not (2, 1, 0)",
    ),
    "values for keys": (
        lambda x: torch.cat([x, x.tanh()], 2)[:, :, 3:8], "cut", lambda x: torch.cat([x, x.tanh()], 2)[:, :, 4:9],
        "it takes places 4 to 9 of axis 1, not 3 to 8",
    ),
    "roll": (
        lambda x: torch.roll(x.permute(0, 2, 3, 1), (2, 1), (1, 2)).permute(0, 3, 1, 2), "roll",
        lambda x: torch.roll(x, (-2, -1), (2, 3)),
        "it shifts the other way",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_in_a_layer_is_named(name):
    operation, op, fault, said = FAULTS[name]
    network = Net(operation).eval()
    graph = trace_graph(record(network, SIZE))
    images = np.random.default_rng(0).random((2, *SIZE, 3))
    gave = torch_layers(network, graph, images)
    op, number = op if isinstance(op, tuple) else (op, 0)
    nodes = [node for node in graph.nodes if node.op == op or (op is None and node.source == "" and node.inputs)]
    node = nodes[number]
    with torch.no_grad():
        value = fault(copy.deepcopy(network.conv).double()(torch.from_numpy(images).movedim(-1, 1)))
    keras = KerasSide({}, {}, {node.name: value.movedim(1, -1).numpy()}, [], np.zeros(0))
    report = Report({}, {}, [Check("layers_float64", False, 1, 0, "", "", node.name)])
    comparison = SimpleNamespace(graph=graph, exact_images=images)
    cause = likely_cause(comparison, report, gave, keras)
    assert cause is not None
    assert cause.startswith(f"{node.name}: {said}")
    keras.layers[node.name] = keras.layers[node.name] * 1.001  # what no fault explains has no cause
    assert likely_cause(comparison, report, gave, keras) is None

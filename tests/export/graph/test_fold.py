"""BatchNorm folded: the same function, fewer layers."""

import numpy as np
import pytest
import torch

from export.checkpoint import read_checkpoint
from export.graph.fold import fold_batch_norms, foldable, folded_state
from export.graph.nodes import Graph
from export.keras_file.read import read_keras_h5
from export.proof.torch_side import torch_layers
from export.torch_to_keras import trace_checkpoint, write_twin
from tests.conftest import random_classifier, save_checkpoint

IMAGES = np.random.default_rng(0).random((2, 48, 40, 3))


@pytest.fixture(scope="module", params=["mobilenetv2_035", "resnet18"])
def traced(request, tmp_path_factory):
    network = random_classifier(backbone=request.param, hidden=(16,), mean=0.4, std=0.3)
    source = read_checkpoint(save_checkpoint(tmp_path_factory.mktemp("fold") / "a.ckpt", network, (48, 40)))
    return source.network, trace_checkpoint(source)


def test_no_batchnorm_is_left_and_the_graph_is_whole(traced):
    _, graph = traced
    folded = fold_batch_norms(graph)
    norms = sum(node.op == "batch_norm" for node in graph.nodes)
    assert norms > 10
    assert not [node for node in folded.nodes if node.op == "batch_norm"]
    assert len(folded.nodes) == len(graph.nodes) - norms
    assert folded.output.name == graph.output.name


def test_folded_network_computes_the_same_up_to_rounding(traced):
    network, graph = traced
    state = folded_state(graph)
    ours, folded = torch_layers(network, graph, IMAGES), torch_layers(network, fold_batch_norms(graph), IMAGES, state)
    difference = np.abs(ours["probabilities"] - folded["probabilities"]).max()
    assert 0 < difference < 1e-6
    for node in fold_batch_norms(graph).nodes[1:]:
        assert folded[node.name].shape[1:] == (*node.shape[1:], node.shape[0])


def test_another_epsilon_is_another_function(traced):
    network, graph = traced
    (_, norm), *_ = foldable(graph)
    changed = [node for node in graph.nodes if node.name != norm.name]
    other = type(norm)(**{**vars(norm), "attributes": {**norm.attributes, "epsilon": 0.3}})
    changed.insert(graph.nodes.index(norm), other)
    state = folded_state(Graph(tuple(changed), graph.tensors))
    ours = torch_layers(network, graph, IMAGES)
    assert np.abs(ours["probabilities"] - torch_layers(network, graph, IMAGES, state)["probabilities"]).max() > 1e-6


def test_batchnorm_that_is_not_alone_stays():
    class TwoReaders(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = torch.nn.Conv2d(3, 4, 3, bias=False), torch.nn.BatchNorm2d(4)

        def forward(self, x):
            y = self.conv(x)
            return (self.norm(y) + y).mean((2, 3))

    from export.graph.record import record
    from export.graph.trace import trace_graph

    graph = trace_graph(record(TwoReaders().eval(), (16, 16)))
    assert foldable(graph) == []
    assert fold_batch_norms(graph).nodes == graph.nodes


def test_file_says_that_it_is_folded(small_checkpoint, tmp_path):
    plain = write_twin(small_checkpoint, tmp_path / "plain.h5")
    folded = write_twin(small_checkpoint, tmp_path / "folded.h5", fuse_batchnorm=True)
    assert read_keras_h5(plain.path).details["fused_batchnorm"] is False
    assert read_keras_h5(folded.path).details["fused_batchnorm"] is True
    classes = {layer["class_name"] for layer in read_keras_h5(folded.path).config["config"]["layers"]}
    assert "BatchNormalization" not in classes
    assert folded.layers < plain.layers

"""Networks as people write them: all become a graph, and the file, read back into torch, computes the same.

`benchmarks/networks/own_networks.py` proves them by command, in several Kerases.
"""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional

from export.foreign_checkpoint import checkpoint_of_module
from export.graph.network import graph_network
from export.keras_file.architecture import read_keras_graph
from export.keras_file.read import read_keras_h5
from export.modules import export_module, prove_module
from export.torch_to_keras import trace_checkpoint, write_twin
from models.bad_input import BadInput
from models.classifier import probabilities_of
from tests.export.own_networks import NETWORKS

# A product of two computed values is written, and not read again; nor are four channels.
NOT_READ = {
    "ViT of a tutorial", "TransformerEncoder", "TransformerEncoder, batch first", "einsum", "non-local",
    "several labels, four channels", "learned query",
}  # fmt: skip


def built(name: str) -> nn.Module:
    """With a random value for every weight that starts as a constant: no part is trivially right."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about what people still use
        network = NETWORKS[name].build().eval()
    with torch.no_grad():
        for each, tensor in [*network.named_parameters(), *network.named_buffers()]:
            if each.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif tensor.is_floating_point() and tensor.numel() and bool((tensor == tensor.flatten()[0]).all()):
                tensor.add_(torch.randn_like(tensor) * 0.1)
    return network


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_of_ones_own_becomes_the_same_function(name, tmp_path):
    network, own = built(name), NETWORKS[name]
    channels, *size = own.shape
    source = checkpoint_of_module(network, tuple(size), output=own.output, channels=channels)
    if name in NOT_READ:
        assert trace_checkpoint(source).output.name == "probabilities"
        return
    write_twin(source, tmp_path / "net.h5")
    again = graph_network(read_keras_graph(read_keras_h5(tmp_path / "net.h5")).graph)
    images = torch.rand(3, *own.shape)
    with torch.inference_mode():
        expected, received = probabilities_of(network(images), own.output), again(images)
        other = again(torch.zeros_like(images))
    torch.testing.assert_close(received, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(other, expected, rtol=1e-4, atol=1e-5)  # a difference would be seen


def test_what_has_no_part_is_said_and_what_has_one_is_not_left_out():
    source = checkpoint_of_module(built("spare modules"), (16, 16))
    unused = trace_checkpoint(source).unused
    assert set(unused) == {"network.unused.weight", "network.unused.bias", "network.auxiliary.weight",
                           "network.auxiliary.bias"}  # fmt: skip


class Squeezed(nn.Module):
    def __init__(self, ending):
        super().__init__()
        self.conv, self.ending = nn.Conv2d(3, 1, 3), ending

    def forward(self, x):
        return self.ending(functional.adaptive_avg_pool2d(self.conv(x), 1))


@pytest.mark.parametrize(
    ("ending", "output"),
    [
        (lambda x: x.squeeze(), "logits"),
        (lambda x: torch.sigmoid(x.flatten(1)).squeeze(1), "sigmoid"),
        (lambda x: torch.sigmoid(x.squeeze()), "sigmoid"),
        (lambda x: x, "logits"),
    ],
    ids=["squeezed", "sigmoid squeezed", "squeezed sigmoid", "one place"],
)
def test_answers_without_their_second_axis_or_with_two_more(ending, output):
    source = checkpoint_of_module(Squeezed(ending).eval(), (8, 8), output=output)
    last = trace_checkpoint(source).output
    assert (last.op, last.shape) == ("activation", (1,))


@pytest.mark.parametrize(
    ("ending", "given"),
    [
        (lambda x: (x, x), r"tuple for 2 images.*It gives 0, 1: .*super\(\)\.forward\(images\)\[0\]`"),
        (lambda x: {"loss": None, "logits": x}, r"dict for 2 images.*It gives 'logits': .*\['logits'\]`"),
        (lambda x: None, r"NoneType for 2 images.*alone\.$"),
    ],
    ids=["tuple", "dict", "nothing"],
)
def test_several_tensors_are_refused_with_the_way_to_one(ending, given):
    with pytest.raises(BadInput, match=f"gives {given}"):
        checkpoint_of_module(Squeezed(ending).eval(), (8, 8))


@pytest.mark.keras
@pytest.mark.slow
@pytest.mark.parametrize("name", ["learned numbers", "GeM", "ViT of a tutorial", "spare modules"])
def test_the_whole_ladder_and_a_fault(name, tmp_path):
    network, own = built(name), NETWORKS[name]
    export_module(network, tmp_path / "net.h5", own.shape[1:], output=own.output, channels=own.shape[0])
    report = prove_module(network, tmp_path / "net.h5")
    assert report.verdict == "PASS", report.last_line()
    other = copy.deepcopy(network)
    weight = next(other.parameters())
    weight.data.view(-1)[0] += 1e-3
    assert prove_module(other, tmp_path / "net.h5").verdict == "FAIL"

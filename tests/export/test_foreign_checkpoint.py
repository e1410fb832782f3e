"""Somebody's weights become a checkpoint that computes what their network computes, and what is not known is asked."""

import argparse
from dataclasses import replace

import pytest
import torch
from torch import nn

import export.foreign_checkpoint
from export.foreign_checkpoint import checkpoint_of_module, read_any_checkpoint, read_foreign_checkpoint
from export.graph.record import NotTraced
from export.graph.trace import NoKerasCounterpart
from export.torch_to_keras import trace_checkpoint
from models.bad_input import BadInput
from models.foreign.networks import Factory
from models.foreign.settings import ForeignSettings
from tests.foreign_networks import KINDS, SIZE, Net, random_net, state_of

SETTINGS = ForeignSettings(model="net:Net", image_size=SIZE, mean=(0.5,), std=(0.25,))


@pytest.fixture(autouse=True)
def somebodys_network(monkeypatch):
    monkeypatch.setattr(export.foreign_checkpoint, "find_factory", lambda name: Factory(name, Net))


def answers(network, images):
    with torch.no_grad():
        return network(images)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_gives_the_same_network(kind, tmp_path):
    name, write = KINDS[kind]
    network = random_net(num_classes=7)
    write(network, tmp_path / name)
    source = read_foreign_checkpoint(tmp_path / name, SETTINGS)
    images = torch.rand(2, 3, *SIZE)
    expected = answers(network, (images - 0.5) / 0.25)
    assert torch.allclose(answers(source.network, images), expected, atol=5e-3 if "half" in kind else 1e-5)
    assert source.class_names == tuple("0123456")  # found from the classifier's rows
    assert source.notes[0].startswith(f"{tmp_path / name}: ")
    assert "all " in source.notes[0]
    assert ("loss.weight" in source.notes[0]) == ("LightningModule" in kind)
    assert any("--use_ema" in each for each in source.notes) == ("references" in kind)


def test_timms_train_checkpoint_needs_no_settings(tmp_path, monkeypatch):
    monkeypatch.undo()
    import timm

    network = timm.create_model("mobilenetv2_035", num_classes=3, bn_eps=1e-3)
    stated = argparse.Namespace(
        model="mobilenetv2_035", num_classes=3, img_size=64, mean=[0.5] * 3, std=None, bn_eps=1e-3
    )
    state = network.state_dict()
    doubled = {**state, "classifier.bias": state["classifier.bias"] + 1}
    torch.save({"arch": "x", "args": stated, "state_dict": state, "state_dict_ema": doubled}, tmp_path / "a.pth.tar")
    source = read_any_checkpoint(tmp_path / "a.pth.tar", ForeignSettings())
    averaged = read_any_checkpoint(tmp_path / "a.pth.tar", ForeignSettings(use_ema=True))
    images = torch.rand(2, 3, 64, 64)
    scaled = (images - 0.5) / torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    assert torch.allclose(answers(source.network, images), answers(network.eval(), scaled), atol=1e-4)
    assert torch.allclose(answers(averaged.network, images), answers(network, scaled) + 1, atol=1e-4)
    assert (source.image_size, source.interpolation, source.gives) == ((64, 64), "bicubic", "softmax")
    assert "from the checkpoint's args and timm's pretrained_cfg" in source.notes[-2]
    names = {node.name for node in trace_checkpoint(source).nodes}
    assert {"Conv1", "block_1_expand", "out_relu", "classifier", "probabilities"} <= names


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": None}, "Name it with --model"),
        ({"image_size": None}, "--image_size: expected the size"),
        ({"mean": None}, r"received mean none and std 0\.25.*or --mean none"),
        ({"mean": (0.5, 0.4)}, r"3 here, received mean 0\.5,0\.4"),
        ({"std": (0.0,)}, "std above zero"),
        ({"mean": (float("nan"),)}, "expected finite numbers"),
        ({"class_names": ("a", "b")}, "expected 5 different names.* received 2: a, b"),
        ({"class_names": ("a", "b", "c", "d", "a")}, "expected 5 different names"),
        ({"num_classes": 4}, r"fc\.weight is \(5, 6\), not \(4, 6\)"),
        ({"model_args": {"depth": 3}}, r"net:Net\(depth=3\), got TypeError"),
        ({"image_size": (20_000, 20_000)}, "at most 64 megapixels"),
        ({"prefix": "student."}, "expected tensors of the network under 'student.'"),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, dict) else "",
)
def test_what_is_not_known_is_asked(change, said, tmp_path):
    torch.save(state_of(random_net()), tmp_path / "a.pth")
    with pytest.raises(BadInput, match=said):
        read_foreign_checkpoint(tmp_path / "a.pth", replace(SETTINGS, **change))


class Versioned(Net):
    """As torchvision's MNASNet: it asks which version of it wrote the weights."""

    _version = 2

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *others):
        assert local_metadata.get("version") == 2
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *others)


def test_weights_without_versions_are_of_the_networks_own(tmp_path, monkeypatch):
    monkeypatch.setattr(export.foreign_checkpoint, "find_factory", lambda name: Factory(name, Versioned))
    torch.save(state_of(random_net()), tmp_path / "a.pth")
    assert len(read_foreign_checkpoint(tmp_path / "a.pth", SETTINGS).class_names) == 5


def in_another(num_classes):
    return nn.Sequential(nn.Sequential(Net(num_classes), nn.Sigmoid()))


class One(Net):
    def forward(self, images):
        return super().forward(images).sigmoid()


@pytest.mark.parametrize("build", [in_another, One])
@pytest.mark.parametrize("before", ["", "backbone."])
def test_a_network_inside_another_takes_its_own_file(build, before, tmp_path, monkeypatch):
    monkeypatch.setattr(export.foreign_checkpoint, "find_factory", lambda name: Factory(name, build))
    network = random_net(num_classes=4)
    torch.save(state_of(network, before), tmp_path / "a.pth")
    source = read_foreign_checkpoint(tmp_path / "a.pth", replace(SETTINGS, output="sigmoid", num_classes=4))
    images = torch.rand(2, 3, *SIZE)
    expected = answers(network, (images - 0.5) / 0.25).sigmoid()
    torch.testing.assert_close(answers(source.network, images), expected)
    torch.save({**state_of(network), "fc.bias": torch.zeros(3)}, tmp_path / "a.pth")
    with pytest.raises(BadInput, match=r"fc\.bias is \(3,\), not \(4,\)"):
        read_foreign_checkpoint(tmp_path / "a.pth", replace(SETTINGS, output="sigmoid", num_classes=4))


def test_pixels_as_they_are_is_said(tmp_path):
    torch.save(state_of(random_net()), tmp_path / "a.pth")
    source = read_foreign_checkpoint(tmp_path / "a.pth", replace(SETTINGS, mean=(), std=(), class_names=tuple("abcde")))
    assert "pixels of 0 to 1 as they are" in source.notes[1]
    assert source.notes[2] == "Output: 5 logits, of which the Keras file gives the softmax; class names: as stated"
    images = torch.rand(2, 3, *SIZE)
    assert torch.equal(answers(source.network, images), answers(random_net(), images))


def test_a_checkpoint_of_ours_needs_nothing_and_takes_nothing(small_checkpoint):
    assert not read_any_checkpoint(small_checkpoint, ForeignSettings()).foreign
    with pytest.raises(BadInput, match="expected no --model and the like with a checkpoint of this project"):
        read_any_checkpoint(small_checkpoint, SETTINGS)


# What a network gives -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "ending", "output", "last"),
    [
        (5, None, "logits", "softmax"),
        (1, None, "logits", "sigmoid"),
        (5, "softmax", "softmax", "softmax"),
        (5, "log_softmax", "log_softmax", "softmax"),
        (5, "sigmoid", "sigmoid", "sigmoid"),
        (1, "sigmoid", "sigmoid", "sigmoid"),
    ],
)
def test_the_graph_ends_in_what_the_network_gives(count, ending, output, last):
    source = checkpoint_of_module(random_net(num_classes=count, ending=ending), SIZE, output=output)
    nodes = trace_checkpoint(source).nodes
    assert (nodes[-1].name, nodes[-1].attributes.get("function", nodes[-1].op)) == ("probabilities", last)
    assert [node.op for node in nodes].count("dense") == 1
    assert nodes[-2].op == "dense"  # the network's own softmax is not there a second time
    assert source.gives == last
    assert nodes[-1].shape == (count,)


@pytest.mark.parametrize("output", ["logits", "softmax", "log_softmax", "sigmoid"])
@pytest.mark.parametrize("ending", [None, "softmax", "log_softmax", "sigmoid"])
def test_a_network_that_ends_otherwise_than_stated_is_refused_by_name(ending, output):
    source = checkpoint_of_module(random_net(ending=ending), SIZE, output=output)
    if (ending or "logits") == output:
        trace_checkpoint(source)
        return
    named = rf"ends in a {ending} in module '(?!network)" if ending else r"ends in aten\.linear in module"
    with pytest.raises(BadInput, match=rf"gives {output}, got one that {named}.*--output {ending or 'logits'} "):
        trace_checkpoint(source)


def test_a_softmax_of_one_number_is_refused():
    with pytest.raises(BadInput, match="it is always 1"):
        checkpoint_of_module(random_net(num_classes=1, ending="softmax"), SIZE, output="softmax")
    with pytest.raises(BadInput, match="its softmax is always 1"):
        trace_checkpoint(checkpoint_of_module(random_net(num_classes=1, ending="softmax"), SIZE))


def test_an_ending_behind_operations_that_do_nothing_is_seen():
    class Copied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = random_net()

        def forward(self, x):
            return torch.softmax(self.net(x), dim=-1).float().contiguous().clone()

    source = checkpoint_of_module(Copied(), SIZE, output="softmax")
    assert trace_checkpoint(source).nodes[-2].op == "dense"
    with pytest.raises(BadInput, match="ends in a softmax"):
        trace_checkpoint(checkpoint_of_module(Copied(), SIZE))


# A network in memory --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_module_is_taken_as_it_is_and_left_as_it_was(channels):
    network = random_net(channels=channels).train()
    network.pool.eval()
    before = state_of(network)
    source = checkpoint_of_module(network, SIZE, mean=(0.5,), std=(0.5,), channels=channels)
    trace_checkpoint(source)
    assert (network.training, network.features.training, network.pool.training) == (True, True, False)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert source.network.channels == channels
    images = torch.rand(2, channels, *SIZE)
    assert torch.allclose(answers(source.network, images), answers(network.eval(), images * 2 - 1), atol=1e-5)


def test_other_weights_are_another_digest():
    digests = {checkpoint_of_module(random_net(seed), SIZE).digest for seed in (0, 0, 1)}
    assert len(digests) == 2


def test_a_graph_is_not_kept_for_a_network_whose_code_may_change():
    network = random_net()
    before = trace_checkpoint(checkpoint_of_module(network, SIZE)).nodes[1]
    network.features[0].padding = (0, 0)
    assert trace_checkpoint(checkpoint_of_module(network, SIZE)).nodes[1] != before


def test_modules_that_cannot_be_taken_are_refused():
    with pytest.raises(NotTraced, match=r"module 'features\.0' raises"):
        checkpoint_of_module(random_net(channels=4), SIZE)
    with pytest.raises(BadInput, match="output: expected one of logits"):
        checkpoint_of_module(random_net(), SIZE, output="probabilities")
    with pytest.raises(BadInput, match=r"gives \(2, 6, 8, 6\) for 2 images"):
        checkpoint_of_module(random_net().features, SIZE)
    exact = random_net().double()
    exact.fc.bias.data += 1e-12
    with pytest.raises(BadInput, match=r"fc\.bias \(torch\.float64\)"):
        checkpoint_of_module(exact, SIZE)


def test_an_operation_that_keras_lacks_is_named_with_the_owners_path():
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3),
        torch.nn.FractionalMaxPool2d(2, (3, 2)),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
    )
    with pytest.raises(NoKerasCounterpart, match=r"aten\..* in module '1'"):
        trace_checkpoint(checkpoint_of_module(network, SIZE))

import numpy as np
import pytest
import torch
from timm.layers import Conv2dSame
from torch import nn

from models.bad_input import BadInput
from models.timm_mobilenetv2 import ARCHITECTURE, Normalise, TimmClassifier, three_floats

NARROW = "mobilenetv2_035"


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("size", [(32, 32), (33, 40)])
def test_logits_have_one_column_per_class(size):
    network = TimmClassifier(5, NARROW).eval()
    assert network(torch.rand(2, 3, *size)).shape == (2, 5)


def test_default_settings_are_resolved_to_timms():
    network = TimmClassifier(4, NARROW)
    assert (network.pad_type, network.bn_eps) == ("", 1e-5)
    assert network.mean == (0.485, 0.456, 0.406)
    assert network.std == (0.229, 0.224, 0.225)
    assert not any(isinstance(module, Conv2dSame) for module in network.modules())


def test_tensorflow_settings_reach_every_layer():
    network = TimmClassifier(4, NARROW, pad_type="same", bn_eps=1e-3, mean=0.5, std=0.5)
    strided = [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)]
    assert strided
    assert all(isinstance(module, Conv2dSame) for module in strided)
    assert {m.eps for m in network.modules() if isinstance(m, nn.BatchNorm2d)} == {1e-3}
    assert network.mean == (0.5, 0.5, 0.5)


def test_padding_changes_the_function():
    one, other = TimmClassifier(4, NARROW, pad_type="").eval(), TimmClassifier(4, NARROW, pad_type="same").eval()
    other.load_state_dict(one.state_dict())
    photos = torch.rand(2, 3, 32, 32)
    assert (one.features(photos) - other.features(photos)).abs().max() > 1e-3


@pytest.mark.parametrize("backbone", [NARROW, "tf_mobilenetv3_small_minimal_100", "resnet18", "convnext_atto"])
def test_resolved_architecture_rebuilds_the_same_function(backbone):
    network = TimmClassifier(3, backbone, hidden=(8, 4), dropout=0.25).eval()
    architecture = network.architecture
    assert tuple(architecture) == ARCHITECTURE
    again = TimmClassifier(3, **architecture).eval()
    again.load_state_dict(network.state_dict(), strict=True)
    photos = torch.rand(1, 3, 64, 64)
    assert torch.equal(network(photos), again(photos))
    assert again.architecture == architecture


def test_head_layers_are_named_and_start_as_keras_dense():
    network = TimmClassifier(4, NARROW, hidden=(16, 8), dropout=0.5)
    assert [name for name, _ in network.head.named_children()] == [
        "dense", "dense_relu", "dropout", "dense_1", "dense_1_relu", "dropout_1", "predictions",
    ]  # fmt: skip
    limit = (6 / (1280 + 16)) ** 0.5
    assert 0.99 * limit < network.head.dense.weight.abs().max() <= limit
    assert not network.head.dense.bias.any()


def test_head_without_hidden_layer():
    network = TimmClassifier(4, NARROW, hidden=())
    assert [name for name, _ in network.head.named_children()] == ["predictions"]


def test_normalise_is_one_multiply_add_rounded_once_from_float64():
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    normalise = Normalise(mean, std)
    photos = torch.rand(2, 3, 4, 5)
    scale = (1 / np.array(std)).astype(np.float32)[:, None, None]
    offset = (-np.array(mean) / np.array(std)).astype(np.float32)[:, None, None]
    assert np.array_equal(normalise(photos).numpy(), photos.numpy() * scale + offset)
    assert not normalise.state_dict()
    by_division = (photos - torch.tensor(mean).reshape(3, 1, 1)) / torch.tensor(std).reshape(3, 1, 1)
    torch.testing.assert_close(normalise(photos), by_division, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("value", [0.5, [0.5], (0.5, 0.5, 0.5), "0.5", "0.5, 0.5,0.5", "[0.5,0.5,0.5]"])
def test_one_number_or_three(value):
    assert three_floats(value, "mean") == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("value", [[], [1, 2], [1, 2, 3, 4], "a", "", float("nan"), [0.1, float("inf"), 0.1]])
def test_other_counts_of_numbers_are_refused(value):
    with pytest.raises(BadInput, match=r"--model\.mean"):
        three_floats(value, "mean")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"backbone": "mobilnetv2_100"}, "mobilenetv2_100"),
        ({"backbone": "mobilenetv2_100.no_such_tag"}, "no_such_tag"),
        ({"num_classes": 1}, "at least 2"),
        ({"hidden": (0,)}, "hidden"),
        ({"dropout": 1.0}, "dropout"),
        ({"dropout": float("nan")}, "dropout"),
        ({"pad_type": "valid"}, "pad_type"),
        ({"bn_eps": 0.0}, "bn_eps"),
        ({"bn_eps": float("nan")}, "bn_eps"),
        ({"std": 0.0}, "std"),
        ({"std": [0.5, -0.5, 0.5]}, "std"),
        ({"backbone": "resnet18", "pad_type": "same"}, "resnet18 cannot take"),
        ({"backbone": "resnet18", "bn_eps": 1e-3}, "resnet18 cannot take"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, words):
    with pytest.raises(BadInput, match=words):
        TimmClassifier(**{"num_classes": 3, "backbone": NARROW} | settings)

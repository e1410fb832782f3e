"""A network in memory is exported and proved in one process, and a network that is not the file's is found out."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import export
from export.keras_file.read import read_keras_h5
from export.proof.comparison import image_sets
from export.proof.probe_images import synthetic_images
from export.torch_to_keras import write_twin
from export.worker.keras_worker import same_labels
from models.bad_input import BadInput
from tests.foreign_networks import SIZE, random_net

NETWORKS = {
    "logits": ({}, {"mean": 0.5, "std": [0.2, 0.3, 0.4], "class_names": list("abcde")}),
    "log_softmax": ({"ending": "log_softmax"}, {"output": "log_softmax", "input_range": "raw"}),
    "one sigmoid, one channel": (
        {"num_classes": 1, "channels": 1, "ending": "sigmoid"},
        {"output": "sigmoid", "channels": 1, "class_names": ["sound"]},
    ),
    "several sigmoids, four channels": (
        {"channels": 4, "ending": "sigmoid"},
        {"output": "sigmoid", "channels": 4, "mean": 0.5, "std": 0.5},
    ),
    "one logit": ({"num_classes": 1}, {}),
    "softmax": ({"ending": "softmax"}, {"output": "softmax"}),
}


@pytest.mark.keras
@pytest.mark.parametrize("name", NETWORKS)
def test_a_module_is_exported_and_proved(name, tmp_path):
    settings, stated = NETWORKS[name]
    network, h5 = random_net(**settings).train(), tmp_path / "net.h5"
    twin = export.export_module(network, h5, SIZE, **stated)
    channels = stated.get("channels", 3)
    photos = np.random.default_rng(1).integers(0, 256, (3, *SIZE, channels), dtype=np.uint8)
    report = export.prove_module(network, h5, photos)
    assert report.verdict == "PASS", report.last_line()
    assert {"layers_float64", "probabilities_photos", "top1_photos", "training_steps", "contents"} <= {
        check.name for check in report.checks
    }
    assert network.training
    facts = read_keras_h5(h5).details
    assert (
        facts["output"]
        == twin.details["output"]
        == ("sigmoid" if "sigmoid" in name or name == "one logit" else "softmax")
    )
    assert facts["network"]["channels"] == channels
    assert facts["image_size"] == list(SIZE)


# What is changed in the network after its export -> what the report must name first.
CONTROLS = {
    "one weight of a convolution": (
        lambda net: net.features[0].weight.data[0, 0, 0, 0].add_(1e-3),
        "weights",
        "features_0",
    ),
    "one weight of the classifier": (lambda net: net.fc.weight.data[0, 0].mul_(1.01), "weights", "fc"),
    "a statistic of BatchNorm": (lambda net: net.features[1].running_var.data[2].mul_(1.01), "weights", "features_1"),
    "the padding": (lambda net: setattr(net.features[0], "padding", (2, 0)), "layers_float64", "features_0"),
    "the activation": (lambda net: setattr(net.features, "2", nn.ReLU6()), None, None),
    "BatchNorm's epsilon": (lambda net: setattr(net.features[1], "eps", 1e-2), "layers_float64", "features_1"),
}


@pytest.mark.keras
@pytest.mark.slow
@pytest.mark.parametrize("control", CONTROLS)
def test_another_network_is_found_out_and_the_layer_named(control, tmp_path):
    change, check, layer = CONTROLS[control]
    network, h5 = random_net(), tmp_path / "net.h5"
    export.export_module(network, h5, SIZE)
    other = copy.deepcopy(network)
    change(other)
    report = export.prove_module(other, h5)
    assert report.verdict == "FAIL"
    if check is None:  # the same values here: only what the file says of the layer differs
        assert [each.name for each in report.failed] == ["contents"]
        return
    assert report.failed[0].name == check
    assert report.last_line().startswith(f"parity FAIL: {check} at {layer}")
    named = [each.first_divergence or "" for each in report.failed if each.name in ("weights", "layers_float64")]
    assert named
    assert all(each.startswith(layer) for each in named), named


def test_a_file_that_does_not_say_what_its_network_takes_is_refused(tmp_path, small_checkpoint):
    write_twin(small_checkpoint, tmp_path / "ours.h5")
    with pytest.raises(BadInput, match=r"expected a \.h5 that export_module wrote"):
        export.prove_module(random_net(), tmp_path / "ours.h5")


def test_a_network_of_other_images_is_refused_before_keras_is_asked(tmp_path):
    export.export_module(random_net(channels=1), tmp_path / "net.h5", SIZE, channels=1)
    with pytest.raises(BadInput, match=r"module 'features\.0' raises"):
        export.prove_module(random_net(), tmp_path / "net.h5")
    with pytest.raises(BadInput, match=r"expected photos as uint8 \(N, 16, 12, 1\)"):
        export.prove_module(random_net(channels=1), tmp_path / "net.h5", np.zeros((2, *SIZE, 3), np.uint8))


@pytest.mark.parametrize("channels", [1, 4])
def test_synthetic_images_have_the_networks_channels(channels):
    (images,) = image_sets(SIZE, None, [], channels)
    assert images.images.shape == (8, *SIZE, channels)
    assert np.array_equal(synthetic_images(SIZE), image_sets(SIZE, None, [])[0].images)


def test_labels_of_a_single_probability_are_yes_and_no():
    torch_gave, keras_gave = np.array([[0.2], [0.7], [0.5000001]]), np.array([[0.3], [0.4], [0.4999999]])
    assert same_labels(torch_gave, keras_gave, 1e-5).tolist() == [True, False, True]


def test_names_are_imported_when_they_are_used():
    assert {"export_module", "prove_module"} <= set(dir(export))
    assert export.export_module.__module__ == "export.modules"
    assert torch.is_tensor(next(random_net().parameters()))

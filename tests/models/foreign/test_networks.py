"""A network is found by its name: timm's, torchvision's, or somebody's own in a module or file."""

import sys

import pytest
import timm
import torch

from models.bad_input import BadInput
from models.foreign.networks import ForeignClassifier, arguments_in, find_factory
from tests.foreign_networks import CODE, random_net


@pytest.fixture
def own_code(tmp_path, monkeypatch):
    """A folder with code in it is the working directory; what is imported from there is forgotten again."""
    (tmp_path / "package").mkdir()
    for name in ("own_net.py", "package/inner_net.py"):
        (tmp_path / name).write_text(CODE)
    (tmp_path / "broken_net.py").write_text("import no_such_package_anywhere")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each not in ("", str(tmp_path))])
    yield tmp_path
    for name in ("own_net", "package", "package.inner_net", "inner_net", "broken_net"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", ["own_net:Net", "own_net:make", "package.inner_net:Net", "package/inner_net.py:Net"])
def test_somebodys_own_network_is_built_from_the_working_directory(name, own_code):
    factory = find_factory(name)
    assert factory.takes_num_classes == ("make" in name or "Net" in name)
    assert factory.network({"num_classes": 4}).fc.out_features == 4


def test_timms_and_torchvisions_say_what_images_they_take():
    timms, torchvisions = find_factory("mobilenetv2_035"), find_factory("torchvision.models:resnet18")
    network = timms.network({"num_classes": 3})
    data = timms.data_of(network, {"mean": [0.5, 0.5, 0.5], "img_size": 128})
    assert (data.image_size, data.mean, data.interpolation) == ((128, 128), (0.5,) * 3, "bicubic")
    assert timms.data_of(network, {}).mean == timm.data.IMAGENET_DEFAULT_MEAN
    data = torchvisions.data_of(None, {})
    assert (data.image_size, data.mean, data.interpolation) == ((224, 224), (0.485, 0.456, 0.406), "bilinear")


def test_a_network_of_one_size_is_told_another():
    fixed, free = find_factory("vit_tiny_patch16_224"), find_factory("mobilenetv2_035")
    assert fixed.size_arguments((96, 96), {}) == {"img_size": (96, 96)}
    assert fixed.size_arguments(None, {"img_size": 96}) == {"img_size": (96, 96)}
    assert fixed.size_arguments(None, {"img_size": None, "input_size": [3, 96, 64]}) == {"img_size": (96, 64)}
    assert fixed.size_arguments((224, 224), {}) == fixed.size_arguments(None, {}) == {}
    assert free.size_arguments((96, 96), {}) == {}


def test_what_timms_training_was_told_of_the_network_is_taken():
    stated = {"bn_eps": 1e-3, "in_chans": None, "gp": "avg", "lr": 0.1, "model_kwargs": {"pad_type": "same"}}
    assert arguments_in(stated) == {"bn_eps": 1e-3, "global_pool": "avg", "pad_type": "same"}
    assert arguments_in({"input_size": [1, 96, 96], "in_chans": None}) == {"in_chans": 1}
    assert arguments_in({"input_size": [1, 96, 96], "in_chans": 4}) == {"in_chans": 4}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mobilenetv2_10", "which timm .* does not know. Near matches: .*mobilenetv2_100"),
        ("googlenet", r"torchvision's are called torchvision\.models:googlenet"),
        ("no_such_module:make", "whose module is not installed, nor in "),
        ("broken_net:Net", "whose module raises ModuleNotFoundError: No module named 'no_such_package_anywhere'"),
        ("own_net:Nett", "expected a function or class 'Nett' in own_net, which has none. Near matches: Net"),
        ("own_net:number", "expected a function or class, got own_net:number, a int"),
    ],
)
def test_a_name_that_leads_nowhere_is_refused(name, said, own_code):
    with pytest.raises(BadInput, match=said):
        find_factory(name)


def test_a_factory_that_fails_or_gives_no_network_is_refused(own_code):
    (own_code / "own_net.py").write_text(CODE + "\ndef text():\n    return 'x'\n")
    with pytest.raises(BadInput, match=r"own_net:fixed\(num_classes=3\), got TypeError.*--model_args"):
        find_factory("own_net:fixed").network({"num_classes": 3})
    assert not find_factory("own_net:fixed").takes_num_classes
    with pytest.raises(BadInput, match=r"expected a torch\.nn\.Module from own_net:text\(\), got str"):
        find_factory("own_net:text").network({})


def test_normalisation_is_part_of_the_network():
    images = torch.rand(2, 3, 16, 12)
    network = random_net()
    with torch.no_grad():
        plain = ForeignClassifier(network, "net")(images)
        normalised = ForeignClassifier(network, "net", mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))(images)
        by_hand = network(
            (images - torch.tensor([0.5, 0.4, 0.3])[:, None, None]) / torch.tensor([0.2, 0.3, 0.4])[:, None, None]
        )
        assert torch.equal(plain, network(images))
    assert torch.allclose(normalised, by_hand, atol=1e-5)

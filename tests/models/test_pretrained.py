from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from models import pretrained
from models.bad_input import BadInput
from models.pretrained import load_pretrained
from models.timm_mobilenetv2 import TimmClassifier
from tests.conftest import SHARED

NARROW = "mobilenetv2_035"
SHARED_WEIGHTS = SHARED / "weights"


def network_of(seed: int, backbone: str = NARROW) -> TimmClassifier:
    torch.manual_seed(seed)
    return TimmClassifier(3, backbone).eval()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_every_tensor_of_the_file_is_used_or_named(tmp_path, suffix):
    teacher, network = network_of(1), network_of(2)
    head_before = network.head.dense.weight.clone()
    tensors = {**teacher.backbone.state_dict(), "classifier.weight": torch.zeros(1000, 1280)}
    path = tmp_path / f"weights{suffix}"
    save_file(tensors, path) if suffix == ".safetensors" else torch.save({"state_dict": tensors}, path)
    photos = torch.rand(1, 3, 32, 32)
    assert not torch.equal(network.features(photos), teacher.features(photos))

    report = load_pretrained(network, path)

    assert set(report.used) == set(teacher.backbone.state_dict())
    assert report.unused == ("classifier.weight",)
    assert report.missing == ()
    assert f"{len(report.used)} tensors used; not used: classifier.weight" in str(report)
    assert torch.equal(network.features(photos), teacher.features(photos))
    assert torch.equal(network.head.dense.weight, head_before)


def test_batch_counters_may_be_missing_and_nothing_else(tmp_path):
    tensors = network_of(1).backbone.state_dict()
    tensors = {name: value for name, value in tensors.items() if not name.endswith("num_batches_tracked")}
    save_file(tensors, tmp_path / "w.safetensors")
    report = load_pretrained(network_of(2), tmp_path / "w.safetensors")
    assert report.missing
    assert all(name.endswith("num_batches_tracked") for name in report.missing)

    del tensors["bn1.running_var"]
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(BadInput, match=r"lacks 1 of .*bn1\.running_var"):
        load_pretrained(network_of(2), tmp_path / "w.safetensors")


def test_weights_of_another_width_are_refused_and_change_nothing(tmp_path):
    save_file(network_of(1, "mobilenetv2_050").backbone.state_dict(), tmp_path / "w.safetensors")
    network = network_of(2)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(BadInput, match=r"does not fit mobilenetv2_035.*blocks\.\d"):
        load_pretrained(network, tmp_path / "w.safetensors")
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_weights_of_another_model_are_refused(tmp_path):
    save_file({"layer1.0.conv1.weight": torch.zeros(4, 4, 3, 3)}, tmp_path / "w.safetensors")
    with pytest.raises(BadInput, match=r"lacks 260 of the 312 .*layer1\.0"):
        load_pretrained(network_of(1), tmp_path / "w.safetensors")


def test_weights_that_are_not_numbers_are_refused(tmp_path):
    tensors = network_of(1).backbone.state_dict()
    tensors["conv_stem.weight"][0, 0, 0, 0] = float("nan")
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(BadInput, match=r"NaN or infinity in conv_stem\.weight"):
        load_pretrained(network_of(2), tmp_path / "w.safetensors")


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
@pytest.mark.parametrize("content", [b"", b"not weights at all"])
def test_files_that_are_not_weights_are_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match="not a readable"):
        load_pretrained(network_of(1), tmp_path / name)


def test_pickled_objects_are_never_built(tmp_path):
    torch.save({"state_dict": Path("anything")}, tmp_path / "w.pth")
    with pytest.raises(BadInput, match="not a readable"):
        load_pretrained(network_of(1), tmp_path / "w.pth")


def test_missing_file_and_folder_are_told_apart(tmp_path):
    with pytest.raises(BadInput, match="not there"):
        load_pretrained(network_of(1), tmp_path / "none.pth")
    with pytest.raises(BadInput, match="a folder"):
        load_pretrained(network_of(1), tmp_path)


def test_hub_out_of_reach_names_the_offline_way(monkeypatch):
    class NoNet:
        def head(self, *_, **__):
            raise ConnectionError("no route")

    monkeypatch.setattr(pretrained.huggingface_hub, "get_session", NoNet)
    monkeypatch.setattr(pretrained.huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    with pytest.raises(BadInput, match=r"could not be reached.*--model\.weights FILE"):
        load_pretrained(network_of(1, "mobilenetv2_100"))


def test_model_without_pretrained_weights_names_the_way_out():
    with pytest.raises(BadInput, match=r"no pretrained weights for 'mobilenetv2_075'.*--model\.weights"):
        load_pretrained(network_of(1, "mobilenetv2_075"))


def test_shared_imagenet_weights():
    path = SHARED_WEIGHTS / "mobilenetv2_100.in1k_tf_same.safetensors"
    if not path.is_file():
        pytest.skip(f"needs {path.name} beside the repository")
    torch.manual_seed(0)
    network = TimmClassifier(4, "mobilenetv2_100", pad_type="same", bn_eps=1e-3, mean=0.5, std=0.5)
    report = load_pretrained(network, path)
    assert len(report.used) == 312
    assert report.unused == ("classifier.bias", "classifier.weight")

"""Checkpoints are read without unpickling anything, and only this project's."""

import pytest
import torch
from conftest import random_classifier, save_checkpoint

from export.checkpoint import read_checkpoint
from models.bad_input import BadInput


def test_network_computes_what_was_saved(tmp_path):
    network = random_classifier(
        backbone="mobilenetv2_035", hidden=(8, 6), pad_type="same", bn_eps=1e-3, mean=0.5, std=0.5
    )
    read = read_checkpoint(save_checkpoint(tmp_path / "a.ckpt", network, (32, 48)))
    photos = torch.rand(2, 3, 32, 48)
    with torch.no_grad():
        assert torch.equal(read.network(photos), network(photos))
    assert (read.image_size, read.class_names[0], len(read.digest)) == ((32, 48), "jeans", 64)


def test_checkpoint_of_another_model_is_refused(tmp_path):
    path = tmp_path / "other.ckpt"
    torch.save({"state_dict": {"weight": torch.zeros(3)}, "hyper_parameters": {"lr": 0.1}}, path)
    with pytest.raises(BadInput, match="of another model"):
        read_checkpoint(path)
    torch.save(torch.zeros(3), path)
    with pytest.raises(BadInput, match="of another model"):
        read_checkpoint(path)


def test_weights_of_another_width_are_refused(tmp_path):
    network = random_classifier(backbone="mobilenetv2_035")
    path = save_checkpoint(tmp_path / "a.ckpt", network, (32, 32), backbone="mobilenetv2_050")
    with pytest.raises(BadInput, match="do not fit"):
        read_checkpoint(path)


class Code:
    def __reduce__(self):
        return print, ("run by unpickling",)


def test_checkpoint_with_code_in_it_is_refused_and_not_run(tmp_path, capsys):
    path = tmp_path / "evil.ckpt"
    torch.save({"state_dict": {}, "hyper_parameters": Code()}, path)
    with pytest.raises(BadInput, match="cannot be read"):
        read_checkpoint(path)
    assert "run by unpickling" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b".", b"R.", b"not a checkpoint", b"PK\x03\x04 cut short"])
def test_file_that_is_no_checkpoint_is_refused(tmp_path, content):
    path = tmp_path / "broken.ckpt"
    path.write_bytes(content)
    with pytest.raises(BadInput, match="cannot be read") as caught:
        read_checkpoint(path)
    assert "weights_only=False" not in str(caught.value)  # torch's own advice, which would run what is in the file


@pytest.mark.parametrize("change", [{"class_names": 3}, {"interpolation": 1}, {"learning_rate": "fast"}], ids=str)
def test_hyper_parameters_of_other_types_are_refused(tmp_path, change):
    path = save_checkpoint(tmp_path / "a.ckpt", random_classifier(backbone="mobilenetv2_035"), (32, 32), **change)
    with pytest.raises(BadInput, match="no usable"):
        read_checkpoint(path)


def test_state_dict_that_is_none_is_refused(tmp_path):
    path = tmp_path / "a.ckpt"
    torch.save({"state_dict": [1, 2], "hyper_parameters": {}}, path)
    with pytest.raises(BadInput, match="no state_dict"):
        read_checkpoint(path)


def test_folder_is_refused(tmp_path):
    with pytest.raises(BadInput, match="is a folder"):
        read_checkpoint(tmp_path)


def test_missing_checkpoint_is_refused(tmp_path):
    with pytest.raises(BadInput, match="does not exist"):
        read_checkpoint(tmp_path / "none.ckpt")

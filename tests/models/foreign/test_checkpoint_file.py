"""Weights in every form that other tools write are read; what is something else is refused, and nothing is run."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from models.bad_input import BadInput
from models.foreign.checkpoint_file import is_ours, read_foreign_file
from models.foreign.fitting import find_own
from tests.conftest import flip_in_archive
from tests.foreign_networks import CODE, KINDS, random_net, state_of


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_found(kind, tmp_path):
    name, write = KINDS[kind]
    write(random_net(), tmp_path / name)
    read = read_foreign_file(tmp_path / name)
    assert len(read.digest) == 64
    weight = next(tensor for name, tensor in read.tensors.items() if name.endswith("fc.weight"))
    assert torch.allclose(weight.float(), random_net().fc.weight, atol=1e-3)
    assert not is_ours(tmp_path / name)


def test_averaged_weights_are_taken_when_asked_for_and_told_of_otherwise(tmp_path):
    name, write = KINDS["torchvision's references"]
    write(random_net(), tmp_path / name)
    plain, averaged = read_foreign_file(tmp_path / name), read_foreign_file(tmp_path / name, use_ema=True)
    assert (plain.averaged, averaged.averaged) == (True, False)
    assert torch.equal(averaged.tensors["module.fc.bias"], 2 * plain.tensors["fc.bias"])
    torch.save({"state_dict": state_of(random_net())}, tmp_path / "one.pth")
    with pytest.raises(BadInput, match=r"--use_ema: expected averaged weights under state_dict_ema.*Leave it out"):
        read_foreign_file(tmp_path / "one.pth", use_ema=True)


def test_timms_arguments_are_read_and_other_trainers_are_not(tmp_path):
    from argparse import Namespace

    content = {"state_dict": state_of(random_net()), "args": Namespace(model="resnet18"), "metric": np.float64(0.5)}
    torch.save({**content, "arch": "resnet18"}, tmp_path / "timm.pth")
    torch.save(content, tmp_path / "other.pth")
    assert read_foreign_file(tmp_path / "timm.pth").stated["model"] == "resnet18"
    assert read_foreign_file(tmp_path / "other.pth").stated == {}


@pytest.mark.parametrize("kind", ["whole", "whole, old", "script", "objects besides"])
def test_what_would_run_code_is_refused_with_lines_that_work(kind, tmp_path, monkeypatch):
    (tmp_path / "net_of_mine.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    import net_of_mine

    network, path = net_of_mine.Net().eval(), tmp_path / "it's a.pt"
    if kind == "script":
        torch.jit.save(torch.jit.trace(network, torch.rand(1, 3, 16, 12)), path)
    elif kind == "objects besides":
        torch.save({"state_dict": network.state_dict(), "settings": net_of_mine.make}, path)
    else:
        torch.save(network, path, _use_new_zipfile_serialization=kind == "whole")
    with pytest.raises(BadInput, match="if you trust who made it") as caught:
        read_foreign_file(path)
    lines = "\n".join(line.strip() for line in str(caught.value).split("\n")[1:3])
    assert lines.startswith("import torch")
    subprocess.run([sys.executable, "-c", lines], cwd=tmp_path, check=True, capture_output=True)
    read = read_foreign_file(tmp_path / "it's a_state_dict.pth")
    assert torch.equal(read.tensors["fc.weight"], network.fc.weight)


class Code:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return open, (self.file, "w")


def test_code_is_not_run(tmp_path):
    torch.save({"state_dict": state_of(random_net()), "x": Code(str(tmp_path / "run"))}, tmp_path / "evil.pth")
    with pytest.raises(BadInput, match=r"holds objects besides \(_?io\.open\)"):
        read_foreign_file(tmp_path / "evil.pth")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "content", [b"", b".", b"no weights", b"PK\x03\x04 cut", b"\x10\0\0\0\0\0\0\0{", b"\x89HDF\r\n\x1a\n"]
)
def test_a_file_that_is_something_else_is_refused(content, tmp_path):
    path = tmp_path / "a.pth"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"cannot be read|is a Keras file|is damaged") as caught:
        read_foreign_file(path)
    assert "weights_only" not in str(caught.value)


def test_a_damaged_archive_is_refused(tmp_path):
    path = tmp_path / "a.pth"
    torch.save(state_of(random_net()), path)
    flip_in_archive(path, "data/0")
    with pytest.raises(BadInput, match=r"damaged: the checksum .* Copy or download it again\."):
        read_foreign_file(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"epoch": 1, "optimizer": {"lr": 0.1}}, "which has: epoch, optimizer"),
        ({"state_dict": {"a": "text"}}, "which has under state_dict: a"),
        ({"state_dict": {}}, "which has: state_dict"),
        (torch.zeros(3), "which has: Tensor"),
        ({"a": torch.zeros(3, 3).to_sparse()}, "expected plain dense tensors, got 1"),
    ],
)
def test_what_has_no_weights_is_told_what_it_has(content, said, tmp_path):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(BadInput, match=said):
        read_foreign_file(tmp_path / "a.pth")


def test_teacher_and_student_are_both_read_and_nothing_is_guessed(tmp_path):
    torch.save({"student": state_of(random_net(), "module."), "teacher": state_of(random_net())}, tmp_path / "a.pth")
    read = read_foreign_file(tmp_path / "a.pth")
    assert {"student.module.fc.bias", "teacher.fc.bias"} <= read.tensors.keys()
    assert read.kind == "tensors under student, teacher"
    with pytest.raises(BadInput, match=r"under 2 prefixes: 'student\.', 'teacher\.'"):
        find_own(read.path, read.tensors, state_of(random_net()))


def test_nothing_there_and_a_folder(tmp_path):
    for path, said in ((tmp_path / "none.pth", "does not exist"), (tmp_path, "is a folder")):
        with pytest.raises(BadInput, match=said):
            read_foreign_file(path)

"""`lightning export` and `parity` with weights from elsewhere, as somebody types it who has a `.pth`."""

import json
import sys

import pytest
import torch

from export.keras_file.read import read_keras_h5
from export.torch_to_keras import write_twin
from lightning_module.commands.options import ForeignOptions, given_options
from models.bad_input import BadInput
from models.foreign.settings import ForeignSettings
from tests.conftest import lightning
from tests.foreign_networks import CODE, random_net, state_of

NET = ("--model", "weights_net.py:Net", "--image_size", "16,12", "--mean", "0.5", "--std", "0.25")


@pytest.fixture
def there(tmp_path, monkeypatch):
    """The working directory has somebody's code and weights."""
    (tmp_path / "weights_net.py").write_text(CODE)
    torch.save({"state_dict": state_of(random_net(), "module.")}, tmp_path / "net.pth")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each not in ("", str(tmp_path))])
    yield tmp_path
    sys.modules.pop("weights_net", None)


@pytest.mark.keras
@pytest.mark.slow
def test_weights_are_exported_and_proved_as_the_export_says(there, capsys):
    (there / "labels.txt").write_text("0 tv\n1 sofa\n2 jeans\n3 cup\n4 pan\n")
    assert lightning("export", "net.pth", "net.h5", *NET, "--class_names", "labels.txt") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        "net.pth: a state dict under state_dict; all 9 tensors of the network read, without module. before their "
        "names; none left over"
    )
    resized = "resized with bilinear, as nobody says how (--interpolation)"
    assert f"Input: 16 x 12 pixels, {resized}; mean 0.5,0.5,0.5, std 0.25,0.25,0.25" in lines
    assert read_keras_h5(there / "net.h5").details["class_names"] == ["tv", "sofa", "jeans", "cup", "pan"]
    again = lines[-1].removeprefix("Now prove it: lightning ").split(" ")
    assert lightning(*again) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("parity PASS: 9 of 9 checks")
    # other weights are another network, and the layer is named in the report
    torch.save(state_of(random_net(1)), there / "other.pth")
    again[1] = "other.pth"
    assert lightning(*again, "--json", "report.json") == 1
    (report,) = json.loads((there / "report.json").read_text())["reports"]
    failed = {each["name"]: each["first_divergence"] for each in report["rungs"] if not each["passed"]}
    assert failed["weights"].startswith("features_0")
    # and so is another mean
    again[1] = "net.pth"
    assert lightning(*again, "--mean", "0.4", "--json", "report.json") == 1


@pytest.mark.keras
@pytest.mark.slow
def test_weights_become_other_formats_and_so_does_a_keras_file_alone(there, capsys):
    assert lightning("export", "net.pth", "net.h5", *NET, "--format", "keras,onnx") == 0
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == "export PASS: 2 of 2 formats"
    (there / "net.onnx").unlink()
    assert lightning("export", "net.h5", "again.h5", "--format", "onnx") == 0
    said = capsys.readouterr().out
    assert "net.h5 was read into torch, and computes the same there (parity PASS" in said
    assert said.splitlines()[-1] == "export PASS: 1 of 1 formats"
    assert (there / "again.onnx").is_file()
    assert not (there / "again.h5").exists()


@pytest.mark.keras
@pytest.mark.slow
def test_a_keras_file_of_one_sigmoid_becomes_two_classes_in_other_formats(there, capsys):
    torch.save(state_of(random_net(num_classes=1)), there / "one.pth")
    sigmoid = (*NET, "--model_args", "ending=sigmoid", "--output", "sigmoid", "--class_names", "sound")
    assert lightning("export", "one.pth", "one.h5", *sigmoid) == 0
    assert "sigmoid (1), which the Keras file gives, too; class names: as stated" in capsys.readouterr().out
    assert read_keras_h5(there / "one.h5").details["class_names"] == ["sound"]
    assert lightning("export", "one.h5", "two.onnx", "--format", "onnx") == 0
    said = capsys.readouterr().out
    assert "its one output is two classes here" in said
    assert said.splitlines()[-1] == "export PASS: 1 of 1 formats"


REFUSED = [
    (["export", "net.pth", "net.h5"], "Name it with --model"),
    (["parity", "net.pth", "net.h5"], "Name it with --model"),
    (["export", "net.pth", "net.h5", "--model", "weights_net.py:Net"], "--image_size: expected the size"),
    (["export", "net.pth", "net.h5", *NET[:4]], "--mean none"),
    (["export", "net.pth", "net.h5", *NET, "--mean", "x"], "--mean: expected one number"),
    (["export", "net.pth", "net.h5", *NET, "--image_size", "0"], "--image_size: expected one number of pixels"),
    (["export", "net.pth", "net.h5", *NET, "--num_classes", "0"], "--num_classes: expected at least 1"),
    (["export", "net.pth", "net.h5", *NET, "--model_args", "ending"], "--model_args: expected name=value"),
    (["export", "net.pth", "net.h5", *NET, "--class_names", "none.txt"], "--class_names: expected a labels.json"),
    (["export", "net.pth", "net.h5", *NET, "--output", "sigmoid"], "State what it gives: --output logits"),
    (["export", "net.pth", "net.h5", *NET, "--model_args", "ending=softmax"], "State what it gives: --output softmax"),
    (["export", "net.pth", "net.h5", *NET, "--use_ema"], "--use_ema: expected averaged weights"),
    (["export", "net.pth", "net.h5", *NET, "--temperature", "2"], "--temperature: expected with a checkpoint of"),
    (["export", "ours.h5", "net.h5"], "a Keras file. Give other formats"),
    (
        ["export", "ours.h5", "net.h5", "--format", "onnx", "--mean", "0.5"],
        "--mean: expected with weights from elsewhere",
    ),
    (["parity", "ours.h5", "ours.h5"], "which is a Keras file. `lightning import"),
    (["export", "weights_net.py", "net.h5"], "cannot be read as one"),
]


@pytest.mark.parametrize(
    ("arguments", "said"), REFUSED, ids=lambda value: " ".join(value[3:]) if isinstance(value, list) else ""
)
def test_what_cannot_be_done_is_said(arguments, said, there, capsys, small_checkpoint):
    if "ours.h5" in arguments:
        write_twin(small_checkpoint, there / "ours.h5")
    assert lightning(*arguments) == 2
    assert said in capsys.readouterr().err
    assert not (there / "net.h5").exists()


def test_photos_are_for_three_channels(there, capsys):
    torch.save(state_of(random_net(channels=1)), there / "grey.pth")
    grey = ("--model", "weights_net.py:Net", "--image_size", "16,12", "--mean", "none", "--model_args", "channels=1")
    assert lightning("export", "grey.pth", "grey.h5", *grey) == 0
    assert "16 x 12 pixels x 1 channels" in capsys.readouterr().out
    (there / "photos").mkdir()
    (there / "photos" / "a.jpg").write_bytes(b"")
    assert lightning("parity", "grey.pth", "grey.h5", *grey, "--photos", "photos") == 2
    assert "expected a network that takes photos, of three channels" in capsys.readouterr().err


def test_options_are_read_as_they_are_written():
    options = ForeignOptions(
        "resnet18",
        3,
        "a, b,c",
        "224",
        "0.5",
        "0.1,0.2,0.3",
        "sigmoid",
        True,
        "net.",
        "pad_type=same,bn_eps=1e-3,a=true",
    )
    assert options.settings() == ForeignSettings(
        "resnet18", 3, ["a", "b", "c"], (224, 224), (0.5,), (0.1, 0.2, 0.3), "sigmoid", True, "net.",
        {"pad_type": "same", "bn_eps": 1e-3, "a": True},
    )  # fmt: skip
    assert ForeignOptions(mean="none").settings() == ForeignSettings(mean=(), std=())
    assert ForeignOptions(model_args='{"widths": [1, 2]}').settings().model_args == {"widths": [1, 2]}
    assert given_options(ForeignOptions()) == []
    assert given_options(options)[-6:] == ["--use_ema", "true", "--prefix", "net.", "--model_args", options.model_args]
    with pytest.raises(BadInput, match="--model_args"):
        ForeignOptions(model_args="{").settings()

"""A network that timm does not have is imported, trained, used and exported like any other, under its layers' names."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from datamodule.demo_photos import draw_catalogue
from export.checkpoint import read_checkpoint
from export.import_keras import write_import
from export.keras_file.read import read_keras_h5
from export.keras_to_torch import ImportSettings, read_keras_classifier
from export.proof.comparison import Pair
from export.proof.parity import check_pairs
from export.torch_to_keras import write_twin
from models.bad_input import BadInput
from tests.conftest import CLASS_NAMES, lightning
from tests.export.own_cnn import LAYERS, SIZE, own_cnn


@pytest.fixture(scope="module")
def imported(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    classifier = read_keras_classifier(own_cnn(folder / "own.h5"), ImportSettings(CLASS_NAMES))
    assert classifier.input_range == "raw"
    write_import(classifier, folder / "own.ckpt", check=False)
    return folder / "own.ckpt"


def layers_of(h5: Path) -> dict[str, dict]:
    return {layer["name"]: layer for layer in read_keras_h5(h5).config["config"]["layers"]}


@pytest.mark.keras
def test_import_is_trained_measured_used_and_exported(imported, tmp_path, monkeypatch, capsys):
    """As its user would: the whole way, with Keras's proof at both ends."""
    monkeypatch.chdir(tmp_path)
    draw_catalogue(tmp_path / "photos", per_class=10, size=SIZE)
    assert lightning("import", imported.with_name("own.h5"), "own.ckpt", "--photos_root", "photos") == 0
    said = capsys.readouterr().out
    assert said.splitlines()[-1].startswith("parity PASS")
    advice = next(line for line in said.splitlines() if line.startswith("To go on: "))
    given = [
        "--data.batch_size=8", "--data.epoch_photos=null", "--trainer.max_epochs=2", "--trainer.accelerator=cpu",
        "--trainer.default_root_dir=run",
    ]  # fmt: skip
    command = advice.removeprefix("To go on: lightning ").replace("PHOTOS", "photos").split()
    config = Path(__file__).parents[2] / "configs" / "finetune.yaml"
    assert lightning(*(str(config) if each == "configs/finetune.yaml" else each for each in command), *given) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("parity PASS: 11 of 11 checks")
    before, after = (read_checkpoint(Path(path)).network.state_dict() for path in ("own.ckpt", "run/best.ckpt"))
    moved = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert {"backbone.layers.second.weight", "head.layers.hidden.weight", "head.layers.classes.bias"} <= moved
    assert not {name for name in moved if "running" in name}  # finetune.yaml freezes BatchNorm's statistics
    for subcommand in ("validate", "test"):
        assert (
            lightning(subcommand, "--ckpt_path=run/best.ckpt", "--data.root=photos", "--trainer.accelerator=cpu") == 0
        )
    assert lightning("predict", "run/best.ckpt", "photos/tv", "--out=labels.csv") == 0
    assert len(Path("labels.csv").read_text().splitlines()) == 11


def test_twin_has_the_layers_of_the_file(imported, tmp_path):
    """The same names, and each gives what it gave: an activation that was inside a layer is inside."""
    twin, own = (
        layers_of(path) for path in (write_twin(imported, tmp_path / "t.h5").path, imported.with_name("own.h5"))
    )
    names = [name for name in own if name not in ("photo", "scale")]
    assert set(names) <= set(LAYERS) | {"first_pad"}
    assert [name for name in twin if name in names] == names
    for name in ("first", "norm", "second", "hidden", "classes"):
        config, wanted = twin[name]["config"], own[name]["config"]
        assert config | {"trainable": True} == wanted | {"trainable": True}, name
    assert [twin[name]["config"]["activation"] for name in ("second", "hidden", "classes")] == [
        "relu",
        "relu",
        "softmax",
    ]
    assert list(twin)[-2:] == ["drop", "classes"]


@pytest.mark.parametrize("trainable", ["head", "all"])
def test_what_is_frozen_is_what_comes_before_the_features(imported, trainable):
    """The head begins after the last pooling or flattening."""
    network = read_checkpoint(imported).network
    assert [node["name"] for node in network.head.nodes] == ["hidden", "hidden_relu", "drop", "classes"]
    assert {name.split(".")[1] for name, _ in network.backbone.named_parameters()} == {"first", "norm", "second"}


@pytest.mark.keras
def test_planted_differences_are_named(imported, tmp_path):
    """Inside a layer too: what comes before its activation is compared by itself."""

    def activation(file: h5py.File) -> None:
        config = json.loads(file.attrs["model_config"])
        (hidden,) = (each for each in config["config"]["layers"] if each["name"] == "hidden")
        hidden["config"]["activation"] = "softplus"
        file.attrs["model_config"] = json.dumps(config).encode()

    def logits(file: h5py.File) -> None:  # all by as much: the softmax does not show it
        file["model_weights/classes/classes/bias:0"][...] += 1

    twins = []
    for change in (None, activation, logits):
        twins.append(write_twin(imported, tmp_path / f"{len(twins)}.h5").path)
        if change:
            with h5py.File(twins[-1], "r+") as file:
                change(file)
    reports = check_pairs([Pair(imported, twin) for twin in twins])
    assert reports[0].verdict == "PASS", reports[0].failed
    first = [{check.name: check.first_divergence for check in report.failed} for report in reports[1:]]
    assert first[0]["layers_float64"] == "hidden_relu"
    assert first[1]["layers_float64"] == "classes"
    assert "probabilities_synthetic" not in first[1]


def test_smaller_photos_in_training_are_refused(imported):
    from lightning_module.classifier import ProductClassifier

    settings = torch.load(imported, weights_only=True)["hyper_parameters"]
    ProductClassifier(**settings)
    with pytest.raises(BadInput, match="train_size null"):
        ProductClassifier(**{**settings, "trainable": "all", "train_size": 24})


def test_features_are_what_the_head_reads(imported):
    network = read_checkpoint(imported).network
    photos = torch.rand((2, 3, SIZE, SIZE))
    with torch.inference_mode():
        assert network.features(photos).shape == (2, 8 * 8 * 8)
        assert np.ptp(network(photos).numpy()) > 0.01

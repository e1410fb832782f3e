"""What people do with an exported file works in the Keras here, and in an old one, and gives what torch gives."""

import json
import subprocess
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from export import torch_to_keras
from export.checkpoint import read_checkpoint
from export.keras_file.read import read_keras_h5
from export.proof.comparison import Pair
from export.proof.parity import check_pairs
from export.torch_answers import nchw
from export.torch_to_keras import write_twin
from export.worker import keras_process
from tests.conftest import OTHER_KERAS, random_classifier, save_checkpoint

SCRIPT = Path(__file__).with_name("consumer.py")
GENERATIONS = [pytest.param(None, id="here"), OTHER_KERAS]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    network = random_classifier(backbone="mobilenetv2_short", hidden=(16,), dropout=0.25)
    return save_checkpoint(tmp_path_factory.mktemp("used") / "best.ckpt", network, (48, 40), trainable="all")


def used(h5: Path, images: np.ndarray, python: str | None, folder: Path) -> dict[str, np.ndarray]:
    np.save(folder / "images.npy", images)
    environment = {**keras_process._environment(), "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [python or keras_process.sys.executable, SCRIPT, h5, folder / "images.npy", folder / "out.npz"]
    done = subprocess.run([str(each) for each in command], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(folder / "out.npz") as found:
        return dict(found)


@pytest.mark.keras
@pytest.mark.parametrize("python", GENERATIONS)
def test_file_is_used_as_people_use_files(checkpoint, tmp_path, python):
    images = np.random.default_rng(0).random((4, 48, 40, 3), np.float32)
    network = read_checkpoint(checkpoint).network
    found = used(write_twin(checkpoint, tmp_path / "t.h5").path, images, python, tmp_path)
    with torch.inference_mode():
        features = network.head[:-1](network.features(nchw(images))).numpy()
        probabilities = network(nchw(images)).softmax(1).numpy()
    # `layers[-2]` is what the last Dense reads, as everybody expects who puts another one on
    assert np.abs(found["another_head"] - features).max() <= 1e-4 * np.abs(features).max()
    for name in ("answers", "cloned", "from_json", "tflite"):
        assert np.abs(found[name] - probabilities).max() < 1e-5, name
    assert found["grad_cam"].shape == (4, 6, 5)
    assert np.ptp(found["grad_cam"]) > 0
    if found["quantised"].size:
        assert found["quantised"].shape == (4, 4)
        assert np.abs(found["quantised"].sum(1) - 1).max() < 1e-5


@pytest.mark.keras
def test_softmax_as_a_layer_of_its_own_is_still_a_twin(checkpoint, tmp_path, monkeypatch):
    """So older versions wrote it; the file says by itself which form it has."""
    new = write_twin(checkpoint, tmp_path / "new.h5").path
    older = partial(torch_to_keras.keras_layers, separate=True)
    monkeypatch.setattr(torch_to_keras, "keras_layers", older)
    old, changed = (write_twin(checkpoint, tmp_path / f"{name}.h5").path for name in ("old", "changed"))
    assert [last_layers(path) for path in (new, old)] == [["dropout", "predictions"], ["predictions", "probabilities"]]
    with h5py.File(changed, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        config["config"]["layers"][-1]["config"]["activation"] = "sigmoid"
        file.attrs["model_config"] = json.dumps(config).encode()
    reports = check_pairs([Pair(checkpoint, path) for path in (new, old, changed)])
    assert [report.verdict for report in reports] == ["PASS", "PASS", "FAIL"], [each.failed for each in reports]
    assert {check.name: check.first_divergence for check in reports[2].failed}["layers_float64"] == "probabilities"


def last_layers(path: Path) -> list[str]:
    return [layer["name"] for layer in read_keras_h5(path).config["config"]["layers"]][-2:]

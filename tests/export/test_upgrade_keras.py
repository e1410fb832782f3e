"""An old Keras file becomes one for every Keras: the same names, answers and training, proved or not written."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import pytest

from export import upgrade_keras
from export.import_keras import write_import
from export.keras_file.keras_layer import KerasLayer
from export.keras_file.read import read_keras_h5
from export.keras_file.upgraded import upgraded_training
from export.keras_file.write import write_keras_h5
from export.keras_to_torch import ImportSettings, read_keras_classifier
from export.proof import import_proof
from export.torch_to_keras import write_twin
from export.upgrade_keras import UpgradeDiffers, write_upgrade
from export.worker import keras_process
from export.worker.keras_process import KerasStream, run_keras
from lightning_module.commands.options import read_labels
from models.bad_input import BadInput
from tests.conftest import OTHER_KERAS


@pytest.fixture(scope="module")
def old(small_checkpoint, tmp_path_factory) -> Path:
    """A file as somebody else's Keras 2 has it: the softmax inside the last Dense, a loss and a metric of its own."""
    path = write_twin(small_checkpoint, tmp_path_factory.mktemp("old") / "old.h5").path
    with h5py.File(path, "r+") as file:
        del file.attrs["shelftwin"], file["shelftwin_golden"]
        training = json.loads(file.attrs["training_config"])
        training["metrics"] = ["accuracy", {"class_name": "f1", "config": {}}]
        file.attrs["training_config"] = json.dumps(training).encode()
    return path


def names_of(path: Path) -> list[str]:
    return [layer["name"] for layer in read_keras_h5(path).config["config"]["layers"]]


@pytest.mark.keras
def test_new_file_takes_the_old_ones_place(old, tmp_path):
    before = old.read_bytes()
    upgraded = write_upgrade(old, tmp_path / "new.h5", [f"class {place}" for place in range(upgraded_outputs(old))])
    report = upgraded.proof.report
    assert report.verdict == "PASS", report.failed
    assert upgraded.proof.refusal is None
    assert [check.name for check in report.checks] == ["weights", "layers_float64", "answers", "labels"]
    new = read_keras_h5(tmp_path / "new.h5")
    assert names_of(tmp_path / "new.h5") == names_of(old)
    # what everybody cuts off to put another head on: layers[-1] alone makes the probabilities
    assert new.config["config"]["layers"][-1]["config"]["activation"] == "softmax"
    assert new.config["config"]["layers"][-1]["class_name"] == "Dense"
    assert new.training_config is not None
    assert new.training_config["metrics"] == ["accuracy"]
    assert any("f1" in note for note in upgraded.notes)
    assert old.read_bytes() == before


def upgraded_outputs(path: Path) -> int:
    return int(read_keras_h5(path).config["config"]["layers"][-1]["config"]["units"])


@pytest.mark.keras
def test_a_network_that_differs_is_found_and_replaces_nothing(old, tmp_path, monkeypatch):
    """One epsilon is another, as where a converter takes its own default: weights are the same, answers nearly."""
    own = upgrade_keras.upgraded_layers

    def with_another_epsilon(*given, **options):
        translated = own(*given, **options)
        place = next(i for i, each in enumerate(translated.layers) if each.class_name == "BatchNormalization")
        layers = list(translated.layers)
        layers[place] = replace(layers[place], config={**layers[place].config, "epsilon": 1.1e-5})
        return replace(translated, layers=layers)

    monkeypatch.setattr(upgrade_keras, "upgraded_layers", with_another_epsilon)
    new = tmp_path / "new.h5"
    new.write_text("a good file")
    with pytest.raises(UpgradeDiffers, match="layers_float64 at bn_Conv1"):
        write_upgrade(old, new)
    assert new.read_text() == "a good file"
    assert list(tmp_path.iterdir()) == [new]


def deep_network(path: Path) -> Path:
    """Sixty convolutions with random weights, in which float32's rounding grows to about 1e-4 of a probability."""
    rng = np.random.default_rng(0)
    settings = {"filters": 8, "kernel_size": [3, 3], "strides": [1, 1], "dilation_rate": [1, 1], "padding": "same"}
    settings |= {"data_format": "channels_last", "activation": "tanh", "use_bias": False}
    layers = [KerasLayer("InputLayer", "photo", {"batch_input_shape": [None, 8, 8, 3]}, ())]
    for place in range(60):
        channels = 8 if place else 3
        kernel = rng.normal(0, 2 / np.sqrt(9 * channels), (3, 3, channels, 8)).astype(np.float32)
        weights = (("kernel", "", kernel),)
        layers.append(KerasLayer("Conv2D", f"conv_{place}", settings, (layers[-1].name,), weights))
    layers.append(KerasLayer("GlobalAveragePooling2D", "pool", {}, (layers[-1].name,)))
    kernel = rng.normal(0, 1, (8, 3)).astype(np.float32)
    head = {"units": 3, "activation": "softmax", "use_bias": False}
    layers.append(KerasLayer("Dense", "last", head, ("pool",), (("kernel", "", kernel),)))
    write_keras_h5(path, layers, model_name="deep", details={}, training=None)
    return path


@pytest.mark.keras
def test_one_weight_is_found_where_rounding_would_hide_it(tmp_path, monkeypatch):
    """What is allowed of the answers grows with the network's own rounding; a weight that is off by 1e-4 does not."""
    deep = deep_network(tmp_path / "deep.h5")
    checks = {check.name: check for check in write_upgrade(deep, tmp_path / "new.h5").proof.report.checks}
    assert checks["answers"].threshold > 1e-5, checks["answers"].detail
    own = upgrade_keras.upgraded_layers

    def with_another_weight(*given, **options):
        translated = own(*given, **options)
        place = [layer.name for layer in translated.layers].index("conv_30")
        layers = list(translated.layers)
        ((role, tensor, kernel),) = layers[place].weights
        kernel = kernel.copy()
        kernel[1, 1, 0, 0] *= np.float32(1.0001)
        layers[place] = replace(layers[place], weights=((role, tensor, kernel),))
        return replace(translated, layers=layers)

    monkeypatch.setattr(upgrade_keras, "upgraded_layers", with_another_weight)
    with pytest.raises(UpgradeDiffers, match="layers_float64 at conv_30"):
        write_upgrade(deep, tmp_path / "other.h5")
    assert not (tmp_path / "other.h5").exists()


def dense_alone(path: Path, shape: tuple[int, ...], as_list: bool) -> Path:
    """Flatten and Dense; as a Sequential's list, as Keras before 2.3 wrote it, or as a Functional."""
    kernel = np.random.default_rng(0).normal(0, 1, (int(np.prod(shape)), 3)).astype(np.float32)
    layers = [
        KerasLayer("InputLayer", "given", {"batch_input_shape": [None, *shape]}, ()),
        KerasLayer("Flatten", "flat", {}, ("given",)),
        KerasLayer("Dense", "last", {"units": 3, "use_bias": False}, ("flat",), (("kernel", "", kernel),)),
    ]
    write_keras_h5(path, layers, model_name="alone", details={}, training=None)
    if as_list:
        with h5py.File(path, "r+") as file:
            _, flat, dense = json.loads(file.attrs["model_config"])["config"]["layers"]
            flat["config"]["batch_input_shape"] = [None, *shape]
            config = [{name: layer[name] for name in ("class_name", "config")} for layer in (flat, dense)]
            file.attrs["model_config"] = json.dumps({"class_name": "Sequential", "config": config}).encode()
    return path


def as_keras_2_2(path: Path) -> Path:
    """Its layers' settings name no type, as those of Keras 3's bare operations do not."""
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        for layer in config["config"]["layers"]:
            layer["config"].pop("dtype", None)
        file.attrs["model_config"] = json.dumps(config).encode()
        file.attrs["keras_version"] = file["model_weights"].attrs["keras_version"] = b"2.2.4"
    return path


@pytest.mark.keras
def test_layers_of_keras_before_2_3_are_compared_as_well(old, tmp_path):
    report = write_upgrade(as_keras_2_2(shutil.copy(old, tmp_path / "old.h5")), tmp_path / "new.h5").proof.report
    assert report.verdict == "PASS", report.failed
    assert len(report.layers) > 100


@pytest.mark.keras
def test_layers_of_keras_before_2_3_that_are_called_as_operations_of_keras_3_are_layers(tmp_path):
    kernel = np.random.default_rng(0).normal(0, 0.2, (40, 3)).astype(np.float32)
    layers = [
        KerasLayer("InputLayer", "given", {"batch_input_shape": [None, 4, 5, 1]}, ()),
        KerasLayer("ReLU", "relu", {}, ("given",)),
        KerasLayer("Concatenate", "joined", {"axis": 1}, ("given", "relu")),
        KerasLayer("Reshape", "flat", {"target_shape": [40]}, ("joined",)),
        KerasLayer("Dense", "last", {"units": 3, "use_bias": False}, ("flat",), (("kernel", "", kernel),)),
        KerasLayer("Softmax", "probabilities", {"axis": -1}, ("last",)),
    ]
    old = tmp_path / "old.h5"
    write_keras_h5(old, layers, model_name="small", details={}, training=None)
    report = write_upgrade(as_keras_2_2(old), tmp_path / "new.h5").proof.report
    assert report.verdict == "PASS", report.failed
    assert "joined" in {layer.name for layer in report.layers}


@pytest.mark.keras
@pytest.mark.parametrize("as_list", [False, True], ids=["functional", "list"])
@pytest.mark.parametrize("shape", [(6,), (5, 4), (4, 3, 13)], ids=str)
def test_inputs_need_not_be_photos(tmp_path, shape, as_list):
    """Digits as vectors or rows, satellites' thirteen bands: a file for every Keras, and no checkpoint of photos."""
    old = dense_alone(tmp_path / "old.h5", shape, as_list)
    report = write_upgrade(old, tmp_path / "new.h5").proof.report
    assert report.verdict == "PASS", report.failed
    first, *_, last = read_keras_h5(tmp_path / "new.h5").config["config"]["layers"]
    assert (first["config"]["batch_input_shape"], last["config"]["units"]) == ([None, *shape], 3)
    with pytest.raises(BadInput, match=r"colour photos, got one that takes \("):
        read_keras_classifier(old, ImportSettings(list("abc"), output="logits"))


# As MobileNetV3 of keras.applications names its layers; Keras 3 allows no slash in a name.
SLASHES = """
import sys
from tensorflow import keras
images = keras.Input((6, 6, 3))
maps = keras.layers.Conv2D(3, 3, name="Conv")(images)
inner = keras.Model(images, keras.layers.BatchNormalization(name="Conv/BatchNorm")(maps), name="base/inner")
images = keras.Input((6, 6, 3))
maps = inner(keras.layers.Conv2D(3, 1, name="first/conv")(images))
classes = keras.layers.Dense(3, "softmax", name="top/dense")(keras.layers.GlobalAveragePooling2D()(maps))
keras.Model(images, classes).save(sys.argv[1])
"""


@pytest.mark.keras
@pytest.mark.parametrize("python", [OTHER_KERAS])
def test_names_with_slashes_come_over_and_the_keras_that_loads_them_is_found(tmp_path, monkeypatch, python):
    old = tmp_path / "old.h5"
    subprocess.run([python, "-c", SLASHES, old], check=True, capture_output=True)
    proof = write_upgrade(old, tmp_path / "new.h5", keras_python=Path(python)).proof
    assert proof.report.verdict == "PASS", proof.report.failed
    assert "first/conv" in proof.refusal
    assert len(proof.report.layers) == 5
    asked: list[bool] = []

    def run(jobs, **options):
        asked.append(options.pop("legacy", False))  # this one needs no switch
        return run_keras(jobs, **options)

    monkeypatch.setattr(import_proof, "run_keras", run)
    monkeypatch.setattr(import_proof, "TF_KERAS", Found(Path(python)))
    classifier = read_keras_classifier(old, ImportSettings(list("abc"), input_range="unit"))
    report = write_import(classifier, tmp_path / "out.ckpt")
    assert report.verdict == "PASS", report.failed
    assert report.versions["keras"]["keras"].startswith("2.")
    assert asked == [False, True]


NESTED_NORMALIZATION = """
import sys, keras, numpy
base = keras.Sequential([keras.Input((6, 6, 3)), keras.layers.Normalization(name="norm"), keras.layers.Conv2D(3, 3)])
base.layers[0].adapt(numpy.random.default_rng(0).random((9, 6, 6, 3)) * 99)
model = keras.Sequential([base, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3, "softmax")])
images = (numpy.random.default_rng(1).random((4, 6, 6, 3)) * 99).astype("float32")
numpy.savez(sys.argv[2], images=images, answers=model.predict(images, verbose=0))
model.save(sys.argv[1])
"""


@pytest.mark.keras
@pytest.mark.parametrize("ending", ["h5", "keras"])
def test_statistics_that_keras_3_forgets_when_it_loads_a_nested_model_count(tmp_path, ending):
    old, new = tmp_path / f"old.{ending}", tmp_path / "new.h5"
    command = [sys.executable, "-c", NESTED_NORMALIZATION, old, tmp_path / "given.npz"]
    subprocess.run(command, check=True, capture_output=True, env=keras_process._environment())
    upgraded = write_upgrade(old, new)
    assert upgraded.proof.report.verdict == "PASS", upgraded.proof.report.failed
    assert any("Keras 3 leaves out its mean" in note for note in upgraded.notes) == (ending == "h5")
    with np.load(tmp_path / "given.npz") as given:
        with KerasStream(new) as keras:
            answers = keras.compute({"task": "predict", "scale": 1.0}, given["images"], 60)
        assert np.abs(answers - given["answers"]).max() < 1e-6


class Found(NamedTuple):
    """An environment that has been made."""

    interpreter: Path

    def python(self, progress) -> Path:
        return self.interpreter


def test_places_that_cannot_be_meant_are_refused_before_anything_is_read(old, tmp_path):
    for new, said in (
        (old, "which is the old one"),
        (tmp_path / "new.keras", "ends in .h5"),
        (tmp_path / "no" / "new.h5", "does not exist"),
    ):
        with pytest.raises(BadInput, match=said):
            write_upgrade(old, new)
    with pytest.raises(BadInput, match="as many as the model has outputs"):
        write_upgrade(old, tmp_path / "new.h5", ["a"] * 99)
    assert not list(tmp_path.iterdir())


ADAM = {"class_name": "Adam", "config": {"learning_rate": 0.5, "weight_decay": None, "jit_compile": True}}


@pytest.mark.parametrize(
    ("loss", "metrics", "written"),
    [
        ("binary_crossentropy", [["accuracy"]], ("binary_crossentropy", ["accuracy"])),
        (
            {"class_name": "BinaryCrossentropy", "config": {"from_logits": True, "reduction": "auto"}},
            [{"class_name": "MeanMetricWrapper", "config": {"name": "accuracy", "fn": "accuracy"}}],
            ({"class_name": "BinaryCrossentropy", "config": {"from_logits": True}}, ["accuracy"]),
        ),
        (
            {"module": "builtins", "class_name": "function", "config": "categorical_crossentropy"},
            None,
            ("categorical_crossentropy", []),
        ),
        ("focal_loss", ["accuracy"], None),
    ],
)
def test_training_is_kept_where_every_keras_has_it(loss, metrics, written):
    training, notes = upgraded_training({"loss": loss, "metrics": metrics, "optimizer_config": ADAM})
    if written is None:
        assert training is None
        assert "not compiled" in notes[0]
        return
    assert training is not None
    assert (training["loss"], training["metrics"]) == written
    settings = training["optimizer_config"]["config"]
    assert settings["learning_rate"] == 0.5
    assert not settings.keys() & {"weight_decay", "jit_compile"}


def test_labels_of_teachable_machine_are_read(tmp_path):
    numbered, plain = tmp_path / "labels.txt", tmp_path / "plain.txt"
    numbered.write_text("0 cardboard\n1 glass jar\n")
    plain.write_text("2 doors\n4 doors\n")
    assert read_labels(numbered)["class_names"] == ["cardboard", "glass jar"]
    assert read_labels(plain)["class_names"] == ["2 doors", "4 doors"]

"""The .h5 is written from the common subset of Keras 2 and 3, whole or not at all."""

import json
import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from export.checkpoint import read_checkpoint
from export.keras_file.keras_layer import same_padding
from export.keras_file.layers import keras_layers
from export.keras_file.read import read_keras_h5
from export.torch_to_keras import trace_checkpoint, write_twin
from models.bad_input import BadInput
from tests.conftest import random_classifier, save_checkpoint

# Keys that one of the Kerases refuses (found by experiment; see docs/twin.md).
REFUSED_KEYS = {"batch_shape", "optional", "synchronized", "renorm", "invert", "quantization_config", "keepdims",
                "module", "registered_name", "kernel_initializer", "build_config"}  # fmt: skip


@pytest.fixture(scope="module")
def twin(small_checkpoint, tmp_path_factory):
    return write_twin(small_checkpoint, tmp_path_factory.mktemp("twin") / "model.h5")


def test_arrays_are_the_checkpoint_transposed_bit_for_bit(small_checkpoint, twin):
    state = {name: tensor.numpy() for name, tensor in read_checkpoint(small_checkpoint).network.state_dict().items()}
    with h5py.File(twin.path) as file:
        weights = file["model_weights"]
        kernel = weights["block_3_expand/block_3_expand/kernel:0"][()]
        depthwise = weights["block_3_depthwise/block_3_depthwise/depthwise_kernel:0"][()]
        dense = weights["predictions/predictions/kernel:0"][()]
        names = [name.decode() for name in weights["bn_Conv1"].attrs["weight_names"]]
    assert np.array_equal(kernel, state["backbone.blocks.2.0.conv_pw.weight"].transpose(2, 3, 1, 0))
    assert np.array_equal(depthwise, state["backbone.blocks.2.0.conv_dw.weight"].transpose(2, 3, 0, 1))
    assert np.array_equal(dense, state["head.predictions.weight"].T)
    assert names == [f"bn_Conv1/{role}:0" for role in ("gamma", "beta", "moving_mean", "moving_variance")]


def test_configuration_keeps_to_the_common_subset(twin):
    def keys(value):
        if isinstance(value, dict):
            yield from value
            for inner in value.values():
                yield from keys(inner)
        elif isinstance(value, list):
            for inner in value:
                yield from keys(inner)

    file = read_keras_h5(twin.path)
    assert not REFUSED_KEYS & set(keys(file.config))
    layers = file.config["config"]["layers"]
    assert layers[0]["config"]["batch_input_shape"] == [None, 48, 40, 3]
    assert layers[1]["inbound_nodes"] == [[["image", 0, 0, {}]]]
    assert file.config["config"]["input_layers"] == [["image", 0, 0]]
    assert "groups" not in next(layer for layer in layers if layer["class_name"] == "DepthwiseConv2D")["config"]
    assert file.training_config["optimizer_config"]["class_name"] == "Adam"


def test_names_are_fixed_length_bytes_and_configuration_has_no_64_kib_limit(twin):
    with h5py.File(twin.path) as file:
        assert file["model_weights"].attrs["layer_names"].dtype.kind == "S"
        assert h5py.check_string_dtype(file.attrs.get_id("model_config").dtype).length is None


def test_details_travel_in_the_file(small_checkpoint, twin):
    details = read_keras_h5(twin.path).details
    assert details["class_names"] == ["jeans", "sofa", "tshirt", "tv"]
    assert details["image_size"] == [48, 40]
    assert details["input_range"] == "unit"
    assert details["checkpoint_sha256"] == read_checkpoint(small_checkpoint).digest


def test_frozen_backbone_is_frozen_in_keras_too(tmp_path, small_checkpoint, twin):
    def trainable(path):
        return {
            layer["name"]: layer["config"].get("trainable") for layer in read_keras_h5(path).config["config"]["layers"]
        }

    assert trainable(twin.path)["bn_Conv1"] is False
    assert trainable(twin.path)["dense"] is True
    network = random_classifier(backbone="mobilenetv2_035")
    tuned = save_checkpoint(tmp_path / "all.ckpt", network, (32, 32), trainable="all")
    assert all(trainable(write_twin(tuned, tmp_path / "all.h5").path)[name] for name in ("bn_Conv1", "dense"))


def test_batch_norm_whose_statistics_stayed_is_frozen_in_keras_and_the_rate_is_the_backbones(tmp_path):
    network = random_classifier(backbone="mobilenetv2_035")
    schedule = {"batch_norm": "frozen", "backbone_factor": 0.3}
    tuned = save_checkpoint(tmp_path / "m.ckpt", network, (32, 32), trainable="all", schedule=schedule)
    file = read_keras_h5(write_twin(tuned, tmp_path / "m.h5").path)
    frozen = {
        layer["class_name"] for layer in file.config["config"]["layers"] if not layer["config"].get("trainable", 1)
    }
    assert frozen == {"BatchNormalization"}
    assert file.training_config["optimizer_config"]["config"]["learning_rate"] == pytest.approx(3e-4)
    for wrong in ({"batch_norm": "thawed"}, {"backbone_factor": -1}, {"backbone_factor": "fast"}):
        changed = save_checkpoint(tmp_path / "w.ckpt", network, (32, 32), schedule=schedule | wrong)
        with pytest.raises(BadInput, match="expected a schedule"):
            read_checkpoint(changed)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "expected"),
    [(244, 3, 2, (0, 1)), (245, 3, 2, (1, 1)), (7, 3, 1, (1, 1)), (10, 5, 2, (1, 2)), (4, 1, 2, (0, 0))],
)
def test_same_padding_is_tensorflows(size, kernel, stride, expected):
    assert same_padding(size, kernel, stride, 1) == expected


def test_padding_becomes_same_or_an_explicit_layer(tmp_path):
    def classes(pad_type):
        network = random_classifier(backbone="mobilenetv2_035", pad_type=pad_type)
        path = save_checkpoint(tmp_path / "c.ckpt", network, (48, 40))
        return [layer.class_name for layer in keras_layers(trace_checkpoint(read_checkpoint(path)))]

    assert "ZeroPadding2D" not in classes("same")
    assert "ZeroPadding2D" in classes("")


def test_writing_again_gives_the_same_file_content(small_checkpoint, twin, tmp_path):
    again = read_keras_h5(write_twin(small_checkpoint, tmp_path / "again.h5").path)
    first = read_keras_h5(twin.path)
    assert json.dumps(again.config) == json.dumps(first.config)
    assert all(
        np.array_equal(a, b)
        for name in first.weights
        for a, b in zip(first.weights[name], again.weights[name], strict=True)
    )


def test_failed_write_leaves_the_old_file_whole_and_nothing_beside_it(small_checkpoint, tmp_path, monkeypatch):
    target = tmp_path / "model.h5"
    target.write_bytes(b"the old good file")

    def fail(*arguments, **keywords):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(h5py.Group, "create_dataset", fail)
    with pytest.raises(BadInput, match="No space left"):
        write_twin(small_checkpoint, target)
    assert target.read_bytes() == b"the old good file"
    assert [path.name for path in tmp_path.iterdir()] == ["model.h5"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_unwritable_folder_is_named(small_checkpoint, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(BadInput, match="Permission denied"):
        write_twin(small_checkpoint, tmp_path / "model.h5")


def test_missing_folder_is_named(small_checkpoint, tmp_path):
    with pytest.raises(BadInput, match="does not exist"):
        write_twin(small_checkpoint, tmp_path / "nowhere" / "model.h5")


@pytest.mark.parametrize("content", [b"", b"no hdf5", None], ids=["empty", "text", "hdf5 without a model"])
def test_h5_that_is_not_one_is_refused(tmp_path, content):
    path = tmp_path / "model.h5"
    if content is None:
        with h5py.File(path, "w") as file:
            file["something"] = 1
    else:
        path.write_bytes(content)
    with pytest.raises(BadInput, match="expected a Keras"):
        read_keras_h5(path)


def test_missing_h5_is_refused():
    with pytest.raises(BadInput, match="does not exist"):
        read_keras_h5(Path("nowhere.h5"))


def test_checkpoint_is_not_overwritten_by_its_own_export(small_checkpoint):
    before = small_checkpoint.read_bytes()
    with pytest.raises(BadInput, match="the checkpoint itself"):
        write_twin(small_checkpoint, small_checkpoint)
    assert small_checkpoint.read_bytes() == before

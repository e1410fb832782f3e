"""Networks of Keras's own layers are read into the graph, and compute what their own Keras computed."""

import json
import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from export.checkpoint import read_hyper_parameters
from export.graph.network import graph_network
from export.graph.nodes import Graph, Node
from export.keras_file.architecture import read_keras_graph
from export.keras_file.flat_layers import FlatLayer, flatten, weights_by_layer
from export.keras_file.preprocessing import first_affine, likely_range
from export.keras_file.read import KerasFile, names_attributes, packed_labels, read_keras_file
from export.keras_file.readers.bare_operations import picked_channels
from export.keras_file.readers.layer_reader import LayerReader
from export.keras_file.weights_alone import given_architecture, whole_file
from export.keras_to_torch import ImportSettings, probabilities_of, read_keras_classifier
from export.upgrade_keras import UpgradeDiffers, write_upgrade
from models.bad_input import BadInput
from tests.conftest import lightning


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    script = Path(__file__).with_name("keras_cnns.py")
    done = subprocess.run([sys.executable, str(script), str(folder)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def difference(graph: Graph, answers: Path) -> float:
    with np.load(answers) as given:
        photos = torch.from_numpy(given["images"].transpose(0, 3, 1, 2)).double()
        with torch.inference_mode():
            return float(np.abs(graph_network(graph).double()(photos).numpy() - given["answer"]).max())


@pytest.mark.keras
def test_every_layer_computes_what_keras_computed(saved):
    files = sorted(saved.glob("*.h5")) + sorted(saved.glob("*.keras"))
    assert len(files) >= 5
    operations = set()
    for file in files:
        graph = read_keras_graph(read_keras_file(file)).graph
        operations |= {node.op for node in graph.nodes}
        assert difference(graph, file.with_suffix(".npz")) < 1e-5, file.name
    assert {"prelu", "conv2d_transpose", "resize", "crop", "upsample_bilinear", "reshape", "average"} <= operations


@pytest.mark.keras
@pytest.mark.parametrize(
    ("name", "op", "change"),
    [
        ("many_0", "average_pool", {"count_padding": True}),
        ("many_0", "leaky_relu", {"negative_slope": 0.2}),
        ("many_0", "elu", {"alpha": 1.0}),
        ("many_0", "conv2d_transpose", {"crop": (1, 0, 1, 0)}),
        ("many_0", "crop", {"cropping": (0, 1, 2, 1)}),
        ("called_again", "slice_channels", {"start": 1, "stop": 2}),
        ("called_again", "crop", {"cropping": (1, 0, 1, 0)}),
        ("called_again", "threshold", {"threshold": 0.4}),
        ("called_again", "relu", {"max_value": 6.0}),
    ],
)
def test_another_setting_would_be_noticed(saved, name, op, change):
    graph = read_keras_graph(read_keras_file(saved / f"{name}.h5")).graph
    node = next(each for each in graph.nodes if each.op == op)
    other = replace(node, attributes={**node.attributes, **change})
    graph = Graph(tuple(other if each is node else each for each in graph.nodes), graph.tensors)
    assert difference(graph, saved / f"{name}.npz") > 1e-5


@pytest.mark.keras
def test_h5_with_bare_operations_is_upgraded(saved, tmp_path):
    """Keras 3 does not find ``x / 127.5`` again in an .h5 that it wrote; the proof needs the old file's answers."""
    report = write_upgrade(saved / "divided.h5", tmp_path / "new.h5").proof.report
    assert report.verdict == "PASS", report.failed
    assert report.versions["old file"] == report.versions["new file"]


@pytest.mark.keras
def test_settings_that_float32_rounds_are_the_same_in_float64(saved, tmp_path):
    """Keras rounds gelu's constant, a ReLU's limits and a Normalization's mean to float32 although told float64."""
    report = write_upgrade(saved / "settings.keras", tmp_path / "new.h5").proof.report
    assert report.verdict == "PASS", report.failed
    assert max(layer.relative_error for layer in report.layers) < 1e-13


@pytest.mark.keras
def test_a_slope_that_float32_does_not_round_is_noticed(saved, tmp_path, monkeypatch):
    """TensorFlow's leaky_relu rounds its slope; with the file's own number, the new layers compute another function."""
    own = LayerReader.emit

    def exact(reader, layer, op, shape, attributes=None, *more, **named):
        attributes = {"negative_slope": layer.config["negative_slope"]} if op == "leaky_relu" else attributes
        return own(reader, layer, op, shape, attributes, *more, **named)

    slopes = [n.attributes for n in read_keras_graph(read_keras_file(saved / "settings.keras")).graph.nodes]
    assert {"negative_slope": float(np.float32(0.1))} in slopes
    monkeypatch.setattr(LayerReader, "emit", exact)
    with pytest.raises(UpgradeDiffers, match="layers_float64 at leaky_re_lu"):
        write_upgrade(saved / "settings.keras", tmp_path / "new.h5")


@pytest.mark.keras
def test_what_timm_does_not_have_becomes_a_classifier(saved):
    classifier = read_keras_classifier(saved / "many_0.keras", ImportSettings(["a", "b", "c"], input_range="raw"))
    with np.load(saved / "many_0.npz") as given, torch.inference_mode():
        photos = torch.from_numpy(given["images"].transpose(0, 3, 1, 2)) / 255
        assert np.abs(classifier.network(photos).softmax(1).numpy() - given["answer"]).max() < 1e-4
    assert [name for name, _ in classifier.network.head.named_parameters()]
    assert "graph" in classifier.network.architecture


# Files without Keras --------------------------------------------------------------------------------------------------


def dense_model(activation="softmax", units=2, class_name="Dense", **more) -> dict:
    layers = [
        {"class_name": "InputLayer", "config": {"name": "photo", "batch_input_shape": [None, 8, 8, 3]}},
        {"class_name": "GlobalAveragePooling2D", "config": {"name": "pool"}},
        {"class_name": class_name, "config": {"name": "last", "units": units, "activation": activation, **more}},
    ]
    return {"class_name": "Sequential", "config": {"name": "model", "layers": layers}}


def write(path: Path, config: dict | None, units: int = 2) -> Path:
    with h5py.File(path, "w") as file:
        group = file if config is None else file.create_group("model_weights")
        if config is not None:
            file.attrs["model_config"] = json.dumps(config).encode()
        group.attrs["layer_names"] = np.array([b"last"])
        group.attrs["keras_version"] = b"2.12.0"
        last = group.create_group("last")
        last.attrs["weight_names"] = np.array([b"last/kernel:0", b"last/bias:0"])
        rng = np.random.default_rng(0)
        last["last/kernel:0"] = rng.normal(0, 3, (3, units)).astype(np.float32)
        last["last/bias:0"] = rng.normal(0, 1, units).astype(np.float32)
    return path


def settings(**more) -> ImportSettings:
    return ImportSettings(["no", "yes"], input_range="unit", **more)


@pytest.mark.parametrize(("activation", "output"), [("sigmoid", None), ("linear", "logits")])
def test_one_output_is_two_classes_with_the_same_sigmoid(tmp_path, activation, output):
    file = write(tmp_path / "m.h5", dense_model(activation, 1), 1)
    classifier = read_keras_classifier(file, settings(output=output))
    photos = torch.rand((4, 3, 8, 8), dtype=torch.float64)
    with torch.inference_mode():
        ours = classifier.network.double()(photos).softmax(1).numpy()
        theirs = graph_network(read_keras_graph(read_keras_file(file)).graph).double()(photos).numpy()
    assert np.abs(ours - probabilities_of(theirs, classifier.output)).max() < 1e-12
    assert np.ptp(ours) > 0.01


def test_zip_and_its_labels_are_read(tmp_path):
    whole = write(tmp_path / "keras_model.h5", dense_model())
    with zipfile.ZipFile(tmp_path / "converted_keras.zip", "w") as archive:
        archive.write(whole, "converted_keras/keras_model.h5")
        archive.writestr("converted_keras/labels.txt", "0 no\n1 yes\n")
        archive.writestr("__MACOSX/labels.txt", "no text")
    expected = read_keras_graph(read_keras_file(whole)).graph.tensors
    read = read_keras_graph(read_keras_file(tmp_path / "converted_keras.zip")).graph.tensors
    assert all(np.array_equal(array, expected[name]) for name, array in read.items())
    assert packed_labels(tmp_path / "converted_keras.zip") == "0 no\n1 yes\n"
    assert packed_labels(whole) is None
    command = ("import", tmp_path / "converted_keras.zip", tmp_path / "o.ckpt", "--input_range=unit", "--check=false")
    assert lightning(*command) == 0
    assert read_hyper_parameters(tmp_path / "o.ckpt")["class_names"] == ["no", "yes"]
    assert lightning(*command, "--class_names=a,b") == 0
    assert read_hyper_parameters(tmp_path / "o.ckpt")["class_names"] == ["a", "b"]


def test_weights_alone_and_their_architecture_are_a_whole_file(tmp_path):
    whole, weights = write(tmp_path / "whole.h5", dense_model()), write(tmp_path / "weights.h5", None)
    expected = read_keras_graph(read_keras_file(whole)).graph
    (tmp_path / "model.json").write_text(json.dumps(dense_model()))
    architecture = given_architecture(str(tmp_path / "model.json"))
    graph = read_keras_graph(read_keras_file(whole_file(weights, architecture, tmp_path))).graph
    assert graph.nodes == expected.nodes
    assert all(np.array_equal(array, expected.tensors[name]) for name, array in graph.tensors.items())
    with pytest.raises(BadInput, match=r"weights alone.*--architecture"):
        read_keras_file(weights)
    with pytest.raises(BadInput, match="holds its own architecture"):
        whole_file(whole, architecture, tmp_path)
    (tmp_path / "other.json").write_text(json.dumps(dense_model(units=3)))
    other = whole_file(weights, given_architecture(str(tmp_path / "other.json")), tmp_path)
    with pytest.raises(BadInput, match="weights do not fit the architecture"):
        read_keras_graph(read_keras_file(other))
    for text, said in (
        ("nowhere.json", "to_json"),
        ("MobileNetV2,alpha=thin", "alpha=thin"),
        ("VGG16,weights=x", "weights"),
    ):
        with pytest.raises(BadInput, match=said):
            given_architecture(text)


@pytest.mark.keras
def test_network_of_keras_applications_is_known_by_name():
    """Keras is asked, which knows its own networks."""
    architecture = given_architecture("MobileNetV2,alpha=0.35,size=64x32,classes=3")
    layers = {layer["name"]: layer["config"] for layer in architecture["config"]["layers"]}
    assert (layers["Conv1"]["filters"], layers["predictions"]["units"]) == (16, 3)
    first = next(iter(layers.values()))
    assert (first.get("batch_shape") or first["batch_input_shape"])[1:] == [64, 32, 3]
    for text, said in (("AlexNet", "no AlexNet, it has"), ("MobileNetV2,minimalistic=true", "does not build")):
        with pytest.raises(BadInput, match=said):
            given_architecture(text)


def test_archive_that_is_none_and_a_saved_model_are_called_so(tmp_path):
    (tmp_path / "half.keras").write_bytes(b"PK\x03\x04 a part of an archive")
    with pytest.raises(BadInput, match="no zip as such an archive is"):
        read_keras_file(tmp_path / "half.keras")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "saved_model.pb").write_bytes(b"")
    with pytest.raises(BadInput, match=r"a SavedModel.*save\('WHOLE.h5'\)"):
        read_keras_file(tmp_path / "saved")


def archive_of(path: Path, root: str, second: str) -> Path:
    """A `.keras` archive with two dense layers, the second's weights under another name of its group."""
    config = dense_model()
    hidden = {"class_name": "Dense", "config": {"name": "hidden", "units": 3, "activation": "relu"}}
    config["config"]["layers"].insert(2, hidden)
    with h5py.File(path.with_suffix(".weights"), "w") as file:
        for name, units, value in (("dense", 3, 0.1), (second, 2, 0.2)):
            group = file.create_group(f"{root}/{name}/vars")
            group["0"], group["1"] = np.full((3, units), value, np.float32), np.zeros(units, np.float32)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", json.dumps(config))
        archive.writestr("metadata.json", json.dumps({"keras_version": "2.12.0"}))
        archive.write(path.with_suffix(".weights"), "model.weights.h5")
    return path


@pytest.mark.parametrize(
    ("root", "second", "wrong"),
    [("_layer_checkpoint_dependencies", "dense_2", "dense_1"), ("layers", "dense_1", "dense_2")],
)
def test_archive_of_either_keras_counts_its_layers(tmp_path, root, second, wrong):
    """Keras 2 counts a layer with weights twice."""
    graph = read_keras_graph(read_keras_file(archive_of(tmp_path / "m.keras", root, second))).graph
    assert [float(graph.tensors[f"{name}/kernel"][0, 0]) for name in ("hidden", "last")] == [
        pytest.approx(0.1), pytest.approx(0.2),
    ]  # fmt: skip
    with pytest.raises(BadInput, match="last: expected kernel"):
        read_keras_graph(read_keras_file(archive_of(tmp_path / "other.keras", root, wrong)))


# Pieces of x: as Keras 2 describes them, and as Keras 3.
DOTS, DOTS3 = {"class_name": "__ellipsis__"}, {"class_name": "__ellipsis__", "config": {}}


def part(start=None, stop=None, step=None, of_keras_3=False) -> dict:
    plain = {"start": start, "stop": stop, "step": step}
    return {"class_name": "__slice__", "config": plain} if of_keras_3 else plain


@pytest.mark.parametrize("keras_3", [False, True])
@pytest.mark.parametrize(
    ("items", "picked"),
    [
        ([DOTS, (None, None, -1)], [2, 1, 0]),
        ([DOTS3, 2], 2),
        ([DOTS, -1], 2),
        ([*[(None, None, None)] * 3, (None, None, -1)], [2, 1, 0]),
        ([DOTS, (1, 3, None)], [1, 2]),
        ([DOTS, (None, None, 2)], [0, 2]),
        # the photo is turned, and not its colours
        ([DOTS, (None, None, -1), (None, None, None)], None),
        ([(None, None, None), (None, None, -1)], None),
        ([(None, None, None), (1, None, None), (1, None, None)], None),
        ([DOTS, 3], None),
        ([0], None),
        ([DOTS, (3, 3, None)], None),
        ([DOTS, "channels"], None),
    ],
    ids=str,
)
def test_piece_of_a_photo_is_its_channels_or_refused(items, picked, keras_3):
    given = [part(*each, of_keras_3=keras_3) if isinstance(each, tuple) else each for each in items]
    found = picked_channels(given, 3)
    assert (list(found) if isinstance(found, range) else found) == picked


@pytest.mark.parametrize(
    ("steps", "shown"),
    [
        ([(1 / 127.5, -1.0)], "raw"),
        ([(2.0, -1.0)], "unit"),
        ([(1 / 58, -2.1)], "raw"),
        ([(1 / 0.226, -2.0)], "unit"),
        ([(255.0, 0.0), "turned", (1.0, -110.0)], "unit"),
        (["turned", (1.0, -110.0)], "raw"),
        (["turned"], None),
        ([], None),
        ([(0.0, 1.0)], None),
    ],
    ids=str,
)
def test_preprocessing_shows_the_range_of_pixels(steps, shown):
    nodes = [Node("photo", "input", (), (3, 8, 8))]
    for number, step in enumerate(steps):
        before = nodes[-1].name
        if step == "turned":
            for index in (2, 1, 0):
                attributes = {"start": index, "stop": index + 1}
                nodes.append(Node(f"{number}_{index}", "slice_channels", (before,), (1, 8, 8), attributes))
            nodes.append(Node(str(number), "concatenate", tuple(each.name for each in nodes[-3:]), (3, 8, 8)))
        else:
            attributes = {"scale": [step[0]] * 3, "offset": [step[1]] * 3}
            nodes.append(Node(str(number), "affine", (before,), (3, 8, 8), attributes))
    nodes.append(Node("pool", "global_average_pool", (nodes[-1].name,), (3,), {"keep_dimensions": False}))
    assert likely_range(Graph(tuple(nodes), {})) == shown


def test_channels_are_followed_in_their_order():
    affine = {"scale": [1.0, 2.0, 3.0], "offset": [0.0, 0.0, 5.0]}
    nodes = [
        Node("photo", "input", (), (3, 8, 8)),
        Node("first", "affine", ("photo",), (3, 8, 8), affine),
        *(Node(f"c{i}", "slice_channels", ("first",), (1, 8, 8), {"start": i, "stop": i + 1}) for i in range(3)),
        Node("turned", "concatenate", ("c2", "c1", "c0"), (3, 8, 8)),
        Node("last", "affine", ("turned",), (3, 8, 8), {"scale": [10.0, 1.0, 1.0], "offset": [1.0, 0.0, 0.0]}),
    ]
    scale, offset = first_affine(Graph(tuple(nodes), {}))
    assert (scale.tolist(), offset.tolist()) == ([30.0, 2.0, 1.0], [51.0, 0.0, 0.0])


def nested(path: Path, owners: list[str], parts: int = 1) -> Path:
    """A Sequential of a nested model and a Dense; `owners`: the names in the file of the nested model's layers."""
    photo, group = {"name": "photo", "batch_input_shape": [None, 8, 8, 3]}, "base"
    names = ["Conv/BatchNorm", "expanded_conv/depthwise/BatchNorm"]
    inner = [{"class_name": "InputLayer", "name": "photo", "config": photo, "inbound_nodes": []}]
    for before, name in zip(("photo", names[0]), names, strict=True):
        inbound = [[[before, 0, 0, {}]]]
        inner.append({"class_name": "BatchNormalization", "name": name, "config": {"name": name, "axis": [3]},
                      "inbound_nodes": inbound})  # fmt: skip
    base = {"name": group, "layers": inner, "input_layers": [["photo", 0, 0]], "output_layers": [[names[1], 0, 0]]}
    layers = [
        {"class_name": "Model", "config": base},
        {"class_name": "GlobalAveragePooling2D", "config": {"name": "p"}},
    ]
    config = {"class_name": "Sequential", "config": {"name": "model", "layers": layers}}
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps(config).encode()
        weights = file.create_group("model_weights").create_group(group)
        file["model_weights"].attrs["layer_names"] = [group.encode()]
        listed = []
        for role in ("gamma", "beta", "moving_mean", "moving_variance"):
            for owner in owners:
                listed.append(f"{owner}/{role}:0")
                weights[listed[-1]] = rng.uniform(0.5, 1.5, 3).astype(np.float32)
        for place, part in enumerate(np.array_split(np.array([name.encode() for name in listed]), parts)):
            weights.attrs["weight_names" if parts == 1 else f"weight_names{place}"] = part
    return path


@pytest.mark.parametrize(
    ("owners", "parts"),
    [
        (["base/Conv/BatchNorm", "base/expanded_conv/depthwise/BatchNorm"], 1),  # MobileNetV3's names
        (["Conv/BatchNorm_1", "expanded_conv/depthwise/BatchNorm_1"], 1),  # made twice, in TensorFlow 1
        (["base/Conv/BatchNorm", "base/expanded_conv/depthwise/BatchNorm"], 3),  # too many names for one attribute
    ],
)
def test_arrays_of_a_nested_model_are_found_by_name(tmp_path, owners, parts):
    file = nested(tmp_path / "m.h5", owners, parts)
    tensors = read_keras_graph(read_keras_file(file)).graph.tensors
    with h5py.File(file) as opened:
        for key, owner in zip(("Conv/BatchNorm", "expanded_conv/depthwise/BatchNorm"), owners, strict=True):
            for role in ("gamma", "moving_variance"):
                stored = opened[f"model_weights/base/{owner}/{role}:0"][()]
                assert np.array_equal(tensors[f"base/{key}/{role}"], stored)
    with pytest.raises(BadInput, match="belongs to no layer"):
        read_keras_graph(read_keras_file(nested(tmp_path / "other.h5", [owners[0], "base/elsewhere"], parts)))


@pytest.mark.parametrize(("frozen", "owners"), [(False, ["conv", "conv_1"]), (True, ["conv_1", "conv"])])
def test_arrays_without_their_models_names_are_found_by_their_place(frozen, owners):
    """Keras 2.2 on TensorFlow 1: a layer in a model, and one of the same name in a model inside that."""
    layers = {
        "/".join(path): FlatLayer(path, "Conv2D", {"trainable": trainable}, ())
        for path, trainable in ((("mid", "inner", "conv"), not frozen), (("mid", "conv"), True))
    }
    names = [f"{owner}/{role}:0" for owner in owners for role in ("kernel", "bias")]
    arrays = [np.full(1, number, np.float32) for number in range(4)]
    file = KerasFile({}, None, {}, {"mid": arrays}, {"mid": names}, {})
    found = weights_by_layer(file, layers)
    # Keras stores first what can be trained
    first, second = ("mid/conv", "mid/inner/conv") if frozen else ("mid/inner/conv", "mid/conv")
    assert {key: [float(each[0]) for each in found[key].values()] for key in layers} == {first: [0, 1], second: [2, 3]}
    with pytest.raises(BadInput, match="belongs to no layer"):
        weights_by_layer(replace(file, weights={"mid": arrays[:2]}, weight_names={"mid": names[:2]}), layers)


@pytest.mark.parametrize(("version", "said"), [("2.2.4", 1), ("2.12.0", 0), ("2.2.4-tf", 0)])
def test_enlarging_by_corners_is_said(tmp_path, version, said):
    config = dense_model()
    enlarging = {"class_name": "UpSampling2D", "config": {"name": "up", "interpolation": "bilinear"}}
    config["config"]["layers"].insert(1, enlarging)
    file = read_keras_file(write(tmp_path / "m.h5", config))
    notes = read_keras_graph(replace(file, marks={"keras_version": version})).notes
    assert len([note for note in notes if note.startswith("up: ") and "corners" in note]) == said


def called_twice(class_name: str, weights: list[np.ndarray]) -> KerasFile:
    """A model that calls its one layer on its own output."""
    layer = {"class_name": class_name, "name": "again", "config": {"name": "again"}}
    layers = [
        {"class_name": "InputLayer", "config": {"name": "photo", "batch_input_shape": [None, 4, 4, 3]}},
        {**layer, "inbound_nodes": [[["photo", 0, 0, {}]], [["again", 0, 0, {}]]]},
    ]
    ends = {"input_layers": [["photo", 0, 0]], "output_layers": [["again", 1, 0]]}
    config = {"class_name": "Model", "config": {"name": "model", "layers": layers, **ends}}
    names = [f"again/{role}:0" for role in ("gamma", "beta", "moving_mean", "moving_variance")[: len(weights)]]
    return KerasFile(config, None, {}, {"again": weights}, {"again": names}, {})


def test_only_a_layer_without_weights_may_be_called_twice():
    graph = read_keras_graph(called_twice("MaxPooling2D", [])).graph
    assert [(node.op, node.shape) for node in graph.nodes[1:]] == [("max_pool", (3, 2, 2)), ("max_pool", (3, 1, 1))]
    with pytest.raises(BadInput, match=r"again: .* got 2 calls: .* shared"):
        read_keras_graph(called_twice("BatchNormalization", [np.ones(3, np.float32)] * 4))


def always_in_training(keras_3: bool) -> dict:
    """A Dropout that the model calls with training=True, as each Keras notes it."""
    history = ["photo", 0, 0]
    tensor = {"class_name": "__keras_tensor__", "config": {"keras_history": history}}
    call = {"args": [tensor], "kwargs": {"training": True}} if keras_3 else [[*history, {"training": True}]]
    layers = [
        {"class_name": "InputLayer", "name": "photo", "config": {"name": "photo"}, "inbound_nodes": []},
        {"class_name": "Dropout", "name": "drop", "config": {"name": "drop", "rate": 0.5}, "inbound_nodes": [call]},
    ]
    ends = {"input_layers": [history], "output_layers": [["drop", 0, 0]]}
    return {"class_name": "Functional", "config": {"name": "model", "layers": layers, **ends}}


def test_called_with_training_is_chance_in_keras_2_alone():
    """Keras 3's predict overrules it, and it notes it by itself for each layer that changes photos."""
    layers, _ = flatten(always_in_training(keras_3=True))
    assert list(layers) == ["photo", "drop"]
    with pytest.raises(BadInput, match=r"drop: .*training=True"):
        flatten(always_in_training(keras_3=False))


def test_more_names_than_an_attribute_holds_are_split(tmp_path):
    few, many = (names_attributes("layer_names", [f"{place:0100d}" for place in range(count)]) for count in (5, 2000))
    assert list(few) == ["layer_names"]
    assert list(many)[:2] == ["layer_names0", "layer_names1"]
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file.attrs.update(many)
    assert [name for part in many.values() for name in part] == [f"{place:0100d}".encode() for place in range(2000)]


def test_shape_of_a_sequential_that_states_it_beside_its_layers(tmp_path):
    config = dense_model()
    shape = config["config"]["layers"].pop(0)["config"]["batch_input_shape"]
    config["config"]["build_input_shape"] = shape
    graph = read_keras_graph(read_keras_file(write(tmp_path / "m.h5", config))).graph
    assert graph.nodes[0].shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("config", "given", "said"),
    [
        (dense_model(class_name="Lambda"), {}, "last: .* got Lambda, code"),
        (dense_model(class_name="MyOwn"), {}, "last: .* not Keras's own"),
        (dense_model(class_name="LSTM"), {}, "last: .* not read here"),
        (dense_model("linear"), {}, "--output logits"),
        (dense_model("softmax"), {"output": "logits"}, "the file's own, softmax"),
        (dense_model("sigmoid"), {}, "exclude each other"),
        (dense_model("Custom>mine"), {}, "last: expected an activation of Keras's own"),
    ],
    ids=str,
)
def test_what_cannot_be_read_is_named(tmp_path, config, given, said):
    with pytest.raises(BadInput, match=said):
        read_keras_classifier(write(tmp_path / "m.h5", config), settings(**given))

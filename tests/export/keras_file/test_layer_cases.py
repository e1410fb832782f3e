"""Layers and settings that a classifier may have, many in one network: read, upgraded, imported as Keras has them."""

import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from export import upgrade_keras
from export.graph.network import graph_network
from export.graph.nodes import Graph
from export.import_keras import ImportDiffers, write_import
from export.keras_file.architecture import KerasGraph, read_keras_graph
from export.keras_file.flat_layers import FlatLayer
from export.keras_file.keras_layer import KerasLayer
from export.keras_file.layer_readers import read_layers
from export.keras_file.read import read_keras_file
from export.keras_to_torch import ImportSettings, read_keras_classifier
from export.upgrade_keras import UpgradeDiffers, write_upgrade
from export.worker import keras_process
from export.worker.keras_worker import bilinear_matrix
from models.bad_input import BadInput
from models.graph_network import functions
from tests.conftest import OTHER_KERAS

# Each becomes one network of all of its cases.
NETWORKS = {
    "norms": (
        "group_norm group_norm_each group_norm_plain group_norm_rows layer_norm_map layer_norm_places layer_norm_rows "
        "layer_norm_rms rms_norm unit_norm unit_norm_rows batch_norm_rows batch_norm_renorm softmax_rows softmax_places"
    ),
    "places": (
        "concatenate_rows concatenate_columns permute_2 upsampling_bilinear resizing resizing_cropped resizing_padded "
        "center_crop_larger random_crop_same transposed_odd depthwise_dilated grouped dilated repeat "
        "normalization_invert resizing_bicubic upsampling_bicubic"
    ),
    "values": (
        "leaky_steep relu_of_all relu_steep prelu_rows convolution_layer_inside dot_tokens dot_last dot cosine "
        "activation_sparse_plus activation_squareplus activation_log_softmax activation_tanh_shrink "
        "activation_hard_shrink activation_log_sigmoid spectral"
    ),
    "rows": (
        "tokens_pooled tokens_largest tokens_convolved tokens_causal tokens_max_pooled tokens_average_pooled "
        "tokens_cropped tokens_upsampled tokens_normalised time_distributed vector_turned"
    ),
    "applications": "convnext convnext_nested inception_resnet",
    "attention": (
        "heads heads_crossed heads_dropped heads_nested heads_grouped heads_of_map attention attention_scaled "
        "attention_joined attention_additive attention_additive_plain einsum einsum_apart einsum_together einsum_dots "
        "transformer"
    ),
    "operations": (
        "op_square op_absolute op_clip op_sum op_mean_rows op_mean_channels op_max_channels op_concatenate "
        "op_transpose op_expand op_maximum op_minimum op_quotient op_softmax op_normalise op_pad op_leaky op_cut "
        "op_split op_sqrt op_einsum"
    ),
    "computed": ("op_rsqrt op_log op_var op_std op_split_sizes op_swapped op_repeated op_tiled op_grey op_heads"),
}
REFUSED = (
    "resizing_lanczos masking transposed_dilated activation_sparsemax op_pooling "
    "heads_causal heads_masked heads_scores heads_of_columns attention_causal einsum_rows"
)


@pytest.fixture(scope="module", params=[pytest.param(None, id="here"), OTHER_KERAS])
def saved(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cases")
    script = Path(__file__).with_name("layer_cases.py")
    for name, cases in {**NETWORKS, "refused": REFUSED}.items():
        together = [] if name == "refused" else ["--together", "99"]
        command = [request.param or keras_process.sys.executable, script, folder / name, *together, *cases.split()]
        done = subprocess.run(command, env=keras_process._environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        assert name == "refused" or "could not save" not in done.stdout, done.stdout
    return folder


@pytest.fixture
def here(saved, request) -> Path:
    if "keras2" in request.node.name:
        pytest.skip("its Keras is not this environment's")
    return saved


def file_of(folder: Path, name: str, ending: str = "*") -> Path:
    files = [each for each in (folder / name).glob(f"*.{ending}") if each.suffix != ".npz"]
    return sorted(files)[-1]  # .keras where there is one: what Keras 3 writes as .h5 it may not read


def difference(graph: Graph, file: Path) -> float:
    with np.load(file.with_suffix(".npz")) as given:
        photos = torch.from_numpy(given["images"].transpose(0, 3, 1, 2)).double()
        assert given["answer"].std() > 0.01
        with torch.inference_mode():
            return float(np.abs(graph_network(graph).double()(photos).numpy() - given["answer"]).max())


def read(file: Path) -> KerasGraph:
    return read_keras_graph(read_keras_file(file))


@pytest.mark.keras
@pytest.mark.parametrize("name", NETWORKS)
def test_layers_compute_what_keras_computed(saved, name):
    for file in sorted({file_of(saved, name), file_of(saved, name, "h5")}):
        assert difference(read(file).graph, file) < 1e-5, file.name


CONTROLS = [
    ("norms", "group_norm", {"groups": 1}),
    ("norms", "group_norm", {"epsilon": 0.1}),
    ("norms", "divide_by_rms", {"centred": False}),
    ("norms", "transpose", {"axes": (0, 1, 2)}),
    ("places", "join", {"axis": 1}),
    ("places", "resize", {"interpolation": "nearest"}),
    ("places", "map_places", {"rows": tuple(map(tuple, bilinear_matrix(12, 7)))}),
    ("places", "crop", {"cropping": (1, 1, 0, 0)}),
    ("places", "pad", {"padding": (1, 0, 0, 1)}),
    ("values", "matmul", {"last": False}),
    ("values", "cut", {"start": 1}),
    ("values", "threshold", {"threshold": 0.3}),
    ("values", "hard_shrink", {"threshold": 0.4}),
    ("rows", "average_pool", {"count_padding": True}),
    ("rows", "pad", {"padding": (0, 2, 0, 0)}),
    ("applications", "affine", {"scale": [0.21] * 6}),
    ("attention", "affine", {"scale": [0.4]}),
    ("attention", "layer_norm", {"epsilon": 0.1}),
    ("attention", "add_array", {"order": (1, 0)}),
    ("operations", "clip", {"high": 0.4}),
    ("operations", "cut", {"start": 0, "stop": 3}),
    ("computed", "power", {"exponent": 0.5}),
    ("computed", "root_of_squares", {"epsilon": 0.1}),
    ("computed", "cut", {"start": 1, "stop": 4}),
    ("operations", "mean", {"axes": (1,)}),
    ("operations", "sum", {"axes": (0,)}),
    ("operations", "cut", {"step": 1}),
    ("operations", "unit_norm", {"least": 10.0}),
]


@pytest.mark.keras
@pytest.mark.parametrize(("name", "op", "change"), CONTROLS)
def test_another_setting_would_be_noticed(here, name, op, change):
    file = file_of(here, name)
    graph = read(file).graph
    noticed = []
    for node in graph.nodes:
        if node.op == op:
            other = replace(node, attributes={**node.attributes, **change})
            nodes = tuple(other if each is node else each for each in graph.nodes)
            try:
                noticed.append(difference(Graph(nodes, graph.tensors), file) > 1e-5)
            except (RuntimeError, ValueError):  # the shapes do not fit any more
                noticed.append(True)
    assert any(noticed)


@pytest.mark.keras
def test_heads_in_another_order_or_one_weight_off_would_be_noticed(here):
    file = file_of(here, "attention")
    graph = read(file).graph
    for part in ("query", "key", "value"):
        (name,) = (each for each in graph.tensors if each == f"multi_head_attention/{part}_dense/kernel")
        kernel = graph.tensors[name]
        turned = kernel.reshape(3, 4, -1).swapaxes(0, 1).reshape(kernel.shape)  # as if sizes came before heads
        one_off = kernel.copy()
        one_off[0, 0] += 0.1
        for other in (turned, one_off):
            assert difference(Graph(graph.nodes, {**graph.tensors, name: other}), file) > 1e-5, part


def test_somebody_elses_class_of_a_name_in_keras_applications_is_refused():
    """Only under the name and with the settings that ConvNeXt's code gives them are they Keras's."""
    own = {"init_values": 0.1, "projection_dim": 6}
    for name, kind, config in (
        ("scale", "LayerScale", own),
        ("block_layer_scale", "LayerScale", {**own, "squared": True}),
        ("drop", "StochasticDepth", {"drop_path_rate": 0.1}),
        ("block_stochastic_depth", "StochasticDepth", {"survival_probability": 0.9}),
    ):
        photo = FlatLayer(("photo",), "InputLayer", {"batch_input_shape": [None, 8, 8, 6]}, ())
        layer = FlatLayer((name,), kind, config, ("photo",))
        weights = {"photo": {}, name: {"gamma": np.ones(6, np.float32)}}
        with pytest.raises(BadInput, match=f"{kind}, not Keras's own"):
            read_layers({"photo": photo, name: layer}, weights, None, 2)


@pytest.mark.keras
@pytest.mark.parametrize("name", NETWORKS)
def test_upgrade_is_proved_layer_by_layer(here, tmp_path, name):
    report = write_upgrade(file_of(here, name), tmp_path / "new.h5").proof.report
    assert report.verdict == "PASS", report.failed
    # what has no name that one could ask for, such as an operation, is seen in the layer of its own behind it
    behind = {key for key in read(file_of(here, name)).layers if key.startswith("of_")}
    assert len(behind) > 2
    assert behind <= {layer.name for layer in report.layers}


FAULTS = [
    ("norms", "LayerNormalization", {"epsilon": 0.0011}),
    ("places", "Resizing", {"interpolation": "nearest"}),
    ("places", "UpSampling2D", {"interpolation": "nearest"}),
    ("values", "Dot", {"axes": [1, 1]}),
]


@pytest.mark.keras
@pytest.mark.parametrize(("name", "kind", "change"), FAULTS)
def test_a_fault_in_the_new_file_is_found(here, tmp_path, monkeypatch, name, kind, change):
    own = upgrade_keras.upgraded_layers

    def faulty(layer: KerasLayer) -> KerasLayer:
        return replace(layer, config={**layer.config, **change}) if layer.class_name == kind else layer

    def with_a_fault(*given, **options):
        translated = own(*given, **options)
        return replace(translated, layers=[faulty(each) for each in translated.layers])

    monkeypatch.setattr(upgrade_keras, "upgraded_layers", with_a_fault)
    with pytest.raises((UpgradeDiffers, BadInput)) as differs:
        write_upgrade(file_of(here, name), tmp_path / "new.h5")
    assert "layers_float64" in str(differs.value) or kind == "Dot"
    assert not (tmp_path / "new.h5").exists()


@pytest.mark.keras
@pytest.mark.parametrize("name", ["applications", "attention"])
def test_import_of_layers_of_several_parts_is_proved(here, tmp_path, name):
    classifier = read_keras_classifier(file_of(here, name), ImportSettings(["a", "b", "c"], input_range="raw"))
    assert write_import(classifier, tmp_path / "o.ckpt").verdict == "PASS"


@pytest.mark.keras
def test_import_of_layers_that_resize_is_proved(here, tmp_path, monkeypatch):
    """TensorFlow resizes in float32, whatever it is given: the proof has the layer computed in float64."""
    classifier = read_keras_classifier(file_of(here, "places"), ImportSettings(["a", "b", "c"], input_range="raw"))
    report = write_import(classifier, tmp_path / "o.ckpt")
    assert report.verdict == "PASS"
    monkeypatch.setitem(functions.FUNCTIONS, "resize", with_another_centre)
    with pytest.raises(ImportDiffers, match="layers_float64"):
        write_import(classifier, tmp_path / "o.ckpt")


def with_another_centre(node, value):
    """The control: as if the corners of the pixels were resized, not their centres."""
    size = tuple(node["shape"][1:])
    return torch.nn.functional.interpolate(value, size, mode="bilinear", align_corners=True)


@pytest.mark.keras
def test_what_is_not_read_is_named_with_its_layer(here):
    """Each is Keras's own, and none is called somebody's."""
    for file in sorted((here / "refused").glob("*.keras")):
        with pytest.raises(BadInput, match=r"^[a-z0-9_]+: expected ") as refused:
            read(file)
        assert "author" not in str(refused.value), file.name


@pytest.mark.parametrize(("size", "result"), [(12, 7), (7, 12), (5, 5), (3, 9), (9, 1)])
def test_bilinear_matrix_is_torchs_resizing(size, result):
    value = torch.from_numpy(np.random.default_rng(0).random((1, 1, size, 1)))
    expected = torch.nn.functional.interpolate(value, (result, 1), mode="bilinear", align_corners=False)
    assert np.abs(bilinear_matrix(size, result) @ value[0, 0].numpy() - expected[0, 0].numpy()).max() < 1e-15

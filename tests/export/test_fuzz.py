"""Files are somebody's: with flipped bytes they are refused, or the difference is noticed; nothing crashes or hangs.

SHELFTWIN_FUZZ=5000 makes that many flips of each kind; SHELFTWIN_FUZZ_SEED another choice of them.
"""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from export.graph.nodes import Graph, Node
from export.keras_file.golden import Golden, golden_images
from export.keras_file.layers import keras_layers
from export.keras_file.read import read_keras_h5
from export.keras_file.write import training_config, write_keras_h5
from export.keras_to_torch import read_keras_classifier
from export.proof.comparison import Pair, read_comparison
from export.proof.report import Check
from export.torch_to_keras import write_twin
from export.worker.keras_worker import Refused, check_layers, verify_and_say
from models.bad_input import BadInput
from tests.conftest import ROOT, random_classifier, save_checkpoint
from tests.export import fuzz_reading

COUNT = int(os.environ.get("SHELFTWIN_FUZZ", "0"))
SEED = int(os.environ.get("SHELFTWIN_FUZZ_SEED", "0"))
SECONDS_EACH = 10.0  # far more than a flip takes; a hang is longer


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> tuple[Path, Path]:
    return write_pair(tmp_path_factory.mktemp("pair"), "mobilenetv2_short")


def write_pair(folder: Path, backbone: str) -> tuple[Path, Path]:
    network = random_classifier(backbone=backbone, hidden=(), pad_type="same", bn_eps=1e-3, mean=0.5, std=0.5)
    checkpoint = save_checkpoint(folder / "best.ckpt", network, (32, 32))
    return write_twin(checkpoint, folder / "model.h5").path, checkpoint


def outcomes(kind: str, original: Path, partner: Path, count: int) -> Counter[str]:
    """Read `count` flipped files in a process of its own; fails, naming the flip, where that crashes or hangs."""
    script = Path(__file__).with_name("fuzz_reading.py")
    command = [sys.executable, str(script), kind, str(original), str(partner), str(SEED), str(count)]
    root = str(ROOT)
    environment = {**os.environ, "PYTHONPATH": root, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=120 + SECONDS_EACH * count, check=False
        )
    except subprocess.TimeoutExpired as hang:
        pytest.fail(f"reading hangs: {(hang.stdout or b'')[-300:]!r}")
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert done.returncode == 0, f"reading crashed ({done.returncode}) after {lines[-1:]}: {done.stderr[-1500:]}"
    ended = [line for line in lines if "outcome" in line]
    assert len(ended) == count
    faults = [line for line in ended if line["outcome"].startswith(("fault", "unnoticed"))]
    assert not faults, faults[:3]
    return Counter(line["outcome"] for line in ended)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """A Keras file of one convolution, BatchNorm and dense layer, as the writer writes it."""
    generator = np.random.default_rng(0)

    def array(*shape: int) -> np.ndarray:
        return generator.normal(size=shape).astype(np.float32)

    statistics = {role: f"bn.{role}" for role in ("gamma", "beta", "moving_mean", "moving_variance")}
    convolution = {"strides": (2, 2), "padding": (0, 1, 0, 1), "dilation": (1, 1), "groups": 1}
    nodes = (
        Node("image", "input", (), (3, 8, 8)),
        Node("conv", "conv2d", ("image",), (4, 4, 4), convolution, {"kernel": "conv.kernel"}),
        Node("bn", "batch_norm", ("conv",), (4, 4, 4), {"epsilon": 1e-3, "momentum": 0.9}, statistics),
        Node("pool", "global_average_pool", ("bn",), (4,), {"keep_dimensions": False}),
        Node("dense", "dense", ("pool",), (2,), {}, {"kernel": "dense.kernel", "bias": "dense.bias"}),
        Node("probabilities", "softmax", ("dense",), (2,)),
    )
    tensors = {"conv.kernel": array(4, 3, 3, 3), "dense.kernel": array(2, 4), "dense.bias": array(2)}
    tensors |= {name: array(4) for name in statistics.values()}
    path = tmp_path_factory.mktemp("small") / "small.h5"
    golden = Golden(golden_images((8, 8)), array(3, 2))
    details = {"class_names": ["sofa", "tv"], "input_range": "unit"}
    layers = keras_layers(Graph(nodes, tensors))
    write_keras_h5(path, layers, model_name="m", details=details, training=training_config(1e-3), golden=golden)
    return path


def test_many_flips_of_a_small_h5_are_refused_noticed_or_nothing(small):
    counted = outcomes("small", small, small, COUNT or 300)
    assert min(counted["refused"], counted["noticed: contents"], counted["noticed: weights"], counted["nothing"]) > 0


def test_flipped_h5_is_refused_or_noticed(pair):
    counted = outcomes("h5", *pair, COUNT or 40)
    # the flips do reach what they should: structure, weights and texts
    assert counted["refused"]
    assert counted["noticed: weights"]
    assert counted["noticed: contents"] or counted["noticed: labels"]


def test_flipped_h5_is_imported_as_it_is_or_refused(tmp_path):
    counted = outcomes("import", *write_pair(tmp_path, "mobilenetv2_035"), COUNT or 20)
    assert counted["refused"]
    assert counted["noticed: weights"]


def test_flipped_checkpoint_is_refused_or_noticed(pair):
    counted = outcomes("ckpt", *reversed(pair), COUNT or 40)
    assert counted["refused"]
    assert counted["noticed: weights"]
    assert counted["noticed: contents"] or counted["noticed: labels"]


@pytest.mark.slow
@pytest.mark.keras
def test_flipped_h5_harms_no_keras_process(pair):
    counted = outcomes("worker", *pair, min(COUNT, 400) or 8)
    assert counted["refused"]


# That the judges are no rubber stamps: what nothing notices any more must be unnoticed ------------------------------


def edited(path: Path, folder: Path, change) -> Path:
    copy = Path(shutil.copy(path, folder))
    with h5py.File(copy, "r+") as file:
        change(file)
    return copy


def learn_faster(file: h5py.File) -> None:
    file.attrs["training_config"] = file.attrs["training_config"].replace("0.001", "0.002")


def one_bit(file: h5py.File) -> None:
    kernel = next(each for name, each in arrays_of(file) if name.endswith("kernel:0"))
    numbers = kernel[()]
    numbers.view(np.uint32).flat[0] ^= 1
    kernel[...] = numbers


def arrays_of(file: h5py.File) -> list:
    found = []
    file["model_weights"].visititems(lambda name, each: found.append((name, each)) if hasattr(each, "dtype") else None)
    return found


@pytest.mark.parametrize(
    ("change", "noticed", "check"),
    [(learn_faster, "contents", "contents_check"), (one_bit, "weights", "loaded_weights_check")],
)
def test_change_of_a_small_h5_without_its_check_is_unnoticed(small, tmp_path, monkeypatch, change, noticed, check):
    changed = edited(small, tmp_path, change)
    assert fuzz_reading.judge_small(small, small)(small) == "nothing"
    assert fuzz_reading.judge_small(small, small)(changed) == f"noticed: {noticed}"
    monkeypatch.setattr(f"export.worker.keras_worker.{check}", lambda *given: (True, ""))
    assert fuzz_reading.judge_small(small, small)(changed) == "unnoticed"


def test_change_of_a_checkpoint_without_its_check_is_unnoticed(pair, tmp_path, monkeypatch):
    h5, checkpoint = pair
    content = torch.load(checkpoint, weights_only=True)
    content["hyper_parameters"]["learning_rate"] = 0.002
    torch.save(content, tmp_path / "a.ckpt")
    judge = fuzz_reading.judge_checkpoint(checkpoint, h5)
    assert judge(checkpoint) == "nothing"
    assert judge(tmp_path / "a.ckpt") == "noticed: contents"
    passed = Check("contents", True, 0, 0, "", "")
    monkeypatch.setattr("export.proof.contents.check_contents", lambda comparison: passed)
    assert judge(tmp_path / "a.ckpt") == "unnoticed: learning_rate"


def other_epsilon(file: h5py.File) -> None:
    content = json.loads(file.attrs["model_config"])
    layer = next(each["config"] for each in content["config"]["layers"] if each["name"] == "bn_Conv1")
    layer["epsilon"] = 0.01
    file.attrs["model_config"] = json.dumps(content).encode()


def test_import_of_another_network_than_the_file_holds_is_unnoticed(pair, tmp_path, monkeypatch):
    judge = fuzz_reading.judge_import(*pair)
    assert judge(pair[0]) == "nothing"
    assert judge(edited(pair[0], tmp_path, one_bit)) == "noticed: weights"
    changed = edited(pair[0], tmp_path, other_epsilon)
    with pytest.raises(BadInput, match="one epsilon"):
        judge(changed)
    monkeypatch.setattr("export.keras_to_torch._epsilon", lambda body: 1e-3)
    monkeypatch.setattr("export.keras_to_torch._NOT_COMPARED", ("momentum", "keep_dimensions", "epsilon"))
    assert judge(changed) == "unnoticed: epsilon 0.01, not 0.001"
    with monkeypatch.context() as patched:  # a network of other numbers than the file's
        patched.setattr("export.keras_to_torch.TimmClassifier.load_state_dict", lambda self, state: None)
        assert judge(pair[0]) == "unnoticed: an array"


def test_change_that_verify_does_not_name_is_unnoticed(small, tmp_path, monkeypatch):
    said = {"lines": ["pass  weights: as written"]}
    monkeypatch.setattr("export.worker.keras_worker.find_keras", lambda: None)
    monkeypatch.setattr("export.worker.keras_worker.load", lambda keras, path: None)
    monkeypatch.setattr("export.worker.keras_worker.verify", lambda *given: said)
    judge, changed = fuzz_reading.judge_worker(small, small), edited(small, tmp_path, one_bit)
    assert (judge(small), judge(changed)) == ("nothing", "unnoticed")
    said["lines"] += ["FAIL  probabilities: another one"]
    assert judge(changed) == "noticed: probabilities"


# What no random flip would make -------------------------------------------------------------------------------------


@pytest.fixture
def twin(pair, tmp_path) -> Path:
    path = tmp_path / "model.h5"
    path.write_bytes(pair[0].read_bytes())
    return path


KERNEL = "model_weights/Conv1/Conv1/kernel:0"


def replace_kernel(path: Path, make) -> None:
    with h5py.File(path, "r+") as file:
        del file[KERNEL]
        make(file)


MADE = {
    "a claimed terabyte": (
        lambda file: file.create_dataset(KERNEL, shape=(1 << 38,), dtype="f4", chunks=(1 << 20,)), "claims",
    ),
    "a compressed gigabyte": (
        lambda file: file.create_dataset(
            KERNEL, data=np.zeros(1 << 26, np.float32), chunks=(1 << 22,), compression="gzip"), "claims",
    ),
    "an external link": (lambda file: file.__setitem__(KERNEL, h5py.ExternalLink("other.h5", "/x")), "link"),
    "a soft link": (lambda file: file.__setitem__(KERNEL, h5py.SoftLink("/model_weights")), "link"),
    "a second hard link": (
        lambda file: file.__setitem__(KERNEL, file["model_weights/bn_Conv1/bn_Conv1/gamma:0"]), "another place",
    ),
    "a circle": (lambda file: file.__setitem__(KERNEL, file["model_weights"]), "another place"),
    "numbers in another file": (
        lambda file: file.create_dataset(KERNEL, shape=(16,), dtype="f4", external=[("other.bin", 0, 64)]),
        "another file",
    ),
    "a virtual array": (
        lambda file: file.create_virtual_dataset(KERNEL, virtual_layout()), "another file",
    ),
    "text for numbers": (lambda file: file.create_dataset(KERNEL, data="text"), "no array of numbers"),
}  # fmt: skip


def virtual_layout() -> h5py.VirtualLayout:
    layout = h5py.VirtualLayout(shape=(4,), dtype="f4")
    layout[:] = h5py.VirtualSource("other.h5", "x", shape=(4,))
    return layout


@pytest.mark.parametrize("name", MADE)
def test_file_that_claims_or_points_beyond_itself_is_refused(twin, name):
    make, said = MADE[name]
    replace_kernel(twin, make)
    with pytest.raises(BadInput, match=said):
        read_keras_h5(twin)
    with pytest.raises(BadInput):
        read_keras_classifier(twin)


def test_weights_without_an_architecture_are_named(twin, tmp_path):
    with h5py.File(twin) as whole, h5py.File(tmp_path / "weights.h5", "w") as alone:
        for name, each in whole["model_weights"].items():
            alone.copy(each, name)
        alone.attrs.update(whole["model_weights"].attrs)
    with pytest.raises(BadInput, match="weights alone"):
        read_keras_h5(tmp_path / "weights.h5")


def test_unlisted_array_is_refused(twin):
    with h5py.File(twin, "r+") as file:
        file["model_weights/Conv1/more"] = np.zeros(3, np.float32)
    with pytest.raises(BadInput, match="Conv1/more"):
        read_keras_h5(twin)


@pytest.mark.parametrize(
    "text", [b"[]", b"{", b'{"class_name": "Functional"}', b"[" * 100000, b'"x"', b"\xff"], ids=range(6)
)
def test_architecture_that_is_none_is_refused(twin, text):
    with h5py.File(twin, "r+") as file:
        file.attrs["model_config"] = np.void(text) if text == b"\xff" else text
    with pytest.raises(BadInput):
        read_keras_classifier(twin)


def in_architecture(change):
    def make(content: dict) -> None:
        change(content["config"]["layers"])

    return "model_config", make


LAMBDA = {"module": "keras.layers", "class_name": "Lambda", "config": {"function": {"class_name": "__lambda__"}}}
REFUSED_CODE = {
    "a Lambda as an activation": in_architecture(lambda layers: layers[2]["config"].update(activation=LAMBDA)),
    "a Lambda as an initialiser": in_architecture(lambda layers: layers[2]["config"].update(kernel_initializer=LAMBDA)),
    "a foreign module": in_architecture(lambda layers: layers[2].update(module="this")),
    "a foreign registered name": in_architecture(lambda layers: layers[2].update(registered_name="mine>Conv2D")),
    "a Lambda as the loss": ("training_config", lambda content: content.update(loss=LAMBDA)),
}


@pytest.mark.parametrize("name", REFUSED_CODE)
def test_whatever_could_run_code_is_refused_before_keras_sees_it(twin, name):
    attribute, change = REFUSED_CODE[name]
    check_layers(str(twin))
    change_attribute(twin, attribute, change)
    with pytest.raises(Refused, match="could run code"):
        check_layers(str(twin))


def test_thresholds_that_keras_would_list_first_are_refused(twin):
    def measure_area(content: dict, thresholds: float) -> None:
        content["metrics"] = [{"class_name": "AUC", "config": {"num_thresholds": thresholds}}]

    change_attribute(twin, "training_config", lambda content: measure_area(content, 200))
    check_layers(str(twin))
    change_attribute(twin, "training_config", lambda content: measure_area(content, 1e9))
    with pytest.raises(Refused, match=r"1e\+09 thresholds"):
        check_layers(str(twin))


def change_attribute(path: Path, attribute: str, change) -> None:
    with h5py.File(path, "r+") as file:
        content = json.loads(file.attrs[attribute])
        change(content)
        file.attrs[attribute] = json.dumps(content).encode()


def of_model(**changes):
    return lambda content: content["config"].update(changes)


BROKEN_ARCHITECTURES = {
    "no model": lambda content: content.update(config=[]),
    "a layer that is text": in_architecture(lambda layers: layers.__setitem__(0, "x"))[1],
    "the last layer is text": in_architecture(lambda layers: layers.__setitem__(-1, "x"))[1],
    "a configuration that is a list": in_architecture(lambda layers: layers[0].update(config=[]))[1],
    "a configuration that is nothing": in_architecture(lambda layers: layers[3].update(config=None))[1],
    "a layer without a name": in_architecture(lambda layers: layers[3]["config"].pop("name"))[1],
    "no layers": of_model(layers=[]),
    "two outputs": of_model(output_layers=[["probabilities", 0, 0], ["image", 0, 0]]),
    "no input": of_model(input_layers=None),
}


@pytest.mark.parametrize("name", BROKEN_ARCHITECTURES)
def test_architecture_of_another_shape_is_refused_by_parity(pair, twin, name):
    change_attribute(twin, "model_config", BROKEN_ARCHITECTURES[name])
    with pytest.raises(BadInput):
        read_comparison(Pair(pair[1], twin))


def golden_of_long_texts(group) -> None:
    del group["inputs"]
    group.create_dataset("inputs", shape=(1500,), dtype="S100000")


def golden_elsewhere(group) -> None:
    del group["inputs"]
    group.create_dataset("inputs", shape=(3, 2, 2, 3), dtype="u1", external=[("other.bin", 0, 36)])


@pytest.mark.parametrize("change", [golden_of_long_texts, golden_elsewhere])
def test_golden_images_are_checked_before_they_are_read(twin, change, capsys):
    with h5py.File(twin, "r+") as file:
        change(file["shelftwin_golden"])
    assert verify_and_say(str(twin)) == 2  # without a Keras having been started
    assert "keras" not in sys.modules
    assert "FAIL: not checked" in capsys.readouterr().out

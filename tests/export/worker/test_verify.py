"""`keras_worker.py verify MODEL.h5`: a copy of the worker and of the file, a Keras, and nothing else of ours.

One Keras process judges all files, whole and edited: starting one costs ten seconds.
"""

import json
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from export.keras_file.golden import golden_images
from export.proof.parity import Pair, check_parity
from export.torch_to_keras import write_twin
from export.worker import keras_worker
from export.worker.keras_process import KerasStream, run_keras
from models.bad_input import BadInput
from tests.conftest import random_classifier, save_checkpoint

WORKER = Path(keras_worker.__file__)
DRIVER = """
import sys
import keras_worker
for path in sys.argv[1:]:
    print("#", path)
    print("exit", keras_worker.verify_and_say(path))
"""
KERAS_SAVES = "import sys, keras; keras.models.load_model(sys.argv[1]).save(sys.argv[2])"


def edit_array(h5: Path, name: str, change) -> None:
    with h5py.File(h5, "r+") as file:
        file[name][...] = change(file[name][()])


def edit_json(h5: Path, where: str, attribute: str, change) -> None:
    with h5py.File(h5, "r+") as file:
        content = json.loads(file[where].attrs[attribute])
        change(content)
        file[where].attrs[attribute] = json.dumps(content).encode()


def one_ulp(h5: Path) -> None:
    def change(array):
        array.flat[0] = np.nextafter(array.flat[0], np.float32(np.inf))
        return array

    edit_array(h5, "model_weights/block_5_expand/block_5_expand/kernel:0", change)


def epsilon(h5: Path) -> None:
    edit_layer(h5, "block_4_expand_BN", epsilon=0.1)


def digests_anew(h5: Path) -> None:
    """What somebody would do who wants the edited file to look whole."""
    actual = keras_worker.read_golden(str(h5)).actual
    edit_json(h5, keras_worker.GOLDEN_GROUP, "sha256", lambda digests: digests.update(actual))


def golden_outputs(h5: Path) -> None:
    edit_array(h5, "shelftwin_golden/outputs", lambda array: array + np.float32(1e-6))


def far_golden_outputs(h5: Path) -> None:
    edit_array(h5, "shelftwin_golden/outputs", lambda array: array[::-1])
    digests_anew(h5)


def not_a_number(h5: Path) -> None:
    edit_array(h5, "shelftwin_golden/outputs", lambda array: array * np.float32("nan"))
    digests_anew(h5)


def epsilon_and_digests(h5: Path) -> None:
    epsilon(h5)
    digests_anew(h5)


def class_order(h5: Path) -> None:
    edit_json(h5, "/", "shelftwin", lambda details: details["class_names"].reverse())


def lambda_layer(h5: Path) -> None:
    with h5py.File(h5, "r+") as file:
        file.attrs["model_config"] = file.attrs["model_config"].replace('"ReLU"', '"Lambda"')


def many_units(h5: Path) -> None:
    """Eight gigabytes, of which the file has nothing."""
    edit_layer(h5, "predictions", units=2_000_000_000)


def edit_layer(h5: Path, name: str, **changes) -> None:
    def change(config):
        next(each for each in config["config"]["layers"] if each["name"] == name)["config"].update(changes)

    edit_json(h5, "/", "model_config", change)


# (what is changed, exit code, what its output must say)
CONTROLS = {
    "one weight off by one ulp": (one_ulp, 1, "FAIL  weights: changed in 1 of 106 layers, first in block_5_expand"),
    "epsilon": (epsilon, 1, "FAIL  contents: changed: model_config"),
    "epsilon, with a new digest": (epsilon_and_digests, 1, "FAIL  probabilities: largest difference"),
    "golden outputs, a little": (golden_outputs, 1, "FAIL  contents: changed: outputs"),
    "golden outputs, with a new digest": (far_golden_outputs, 1, "FAIL  probabilities: largest difference"),
    "golden outputs not a number": (not_a_number, 1, "FAIL  probabilities: largest difference nan"),
    "class order": (class_order, 1, "FAIL  contents: changed: shelftwin"),
    "a Dense of many units": (many_units, 2, "FAIL: not checked: {path}: layer predictions asks for weights of shape"),
    "Conv2D of many filters": (
        lambda h5: edit_layer(h5, "Conv1", filters=2_000_000_000),
        2,
        "FAIL: not checked: {path}: layer Conv1 asks for weights of shape [3, 3, 3, 2000000000]",
    ),
    "Lambda layer": (lambda_layer, 2, "FAIL: not checked: {path} holds layers that are refused"),
}


@pytest.fixture(scope="module")
def verdicts(small_checkpoint, tmp_path_factory) -> dict[str, tuple[Path, list[str]]]:
    """What verify says of each file: name -> (path, lines, the last of them `exit CODE`)."""
    folder = tmp_path_factory.mktemp("elsewhere")
    shutil.copy(WORKER, folder)
    paths = {"whole": write_twin(small_checkpoint, folder / "whole.h5").path}
    paths["raw"] = write_twin(small_checkpoint, folder / "raw.h5", "raw").path
    for number, (name, (change, _, _)) in enumerate(CONTROLS.items()):
        paths[name] = Path(shutil.copy(paths["whole"], folder / f"{number}.h5"))
        change(paths[name])
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, *map(str, paths.values())],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    said = {part.splitlines()[0]: part.splitlines()[1:] for part in done.stdout.split("# ")[1:]}
    return {name: (path, said[str(path)]) for name, path in paths.items()}


@pytest.mark.keras
@pytest.mark.parametrize("name", ["whole", "raw"])
def test_whole_file_passes(verdicts, name):
    _, lines = verdicts[name]
    assert lines[-2:] == ["PASS", "exit 0"]
    assert [line.split(":")[0] for line in lines[1:-2]] == ["pass  contents", "pass  weights", "pass  probabilities"]


@pytest.mark.keras
@pytest.mark.parametrize("name", CONTROLS)
def test_edited_file_fails(verdicts, name):
    path, lines = verdicts[name]
    _, code, says = CONTROLS[name]
    assert lines[-1] == f"exit {code}"
    assert lines[-2].startswith("FAIL")
    assert any(line.startswith(says.format(path=path)) for line in lines), lines


@pytest.mark.keras
def test_what_keras_saved_again_has_nothing_to_verify_and_parity_says_why(small_checkpoint, tmp_path):
    twin = write_twin(small_checkpoint, tmp_path / "m.h5").path
    again = tmp_path / "again.h5"
    subprocess.run([sys.executable, "-c", KERAS_SAVES, twin, again], capture_output=True, check=True)
    assert keras_worker.verify_and_say(str(again)) == 2
    report = check_parity(Pair(small_checkpoint, again))
    assert [(check.name, check.first_divergence) for check in report.failed] == [("labels", "imported_from")]
    assert "saved again by Keras" in report.last_line()


# What needs no Keras process ------------------------------------------------------------------------------------------


def test_what_is_no_such_file_is_no_pass(small_checkpoint, tmp_path, capsys):
    (tmp_path / "text.h5").write_text("no hdf5")
    twin = write_twin(small_checkpoint, tmp_path / "m.h5").path
    with h5py.File(twin, "r+") as file:
        del file["shelftwin_golden/outputs"]
    for path, says in (("nowhere.h5", "is no file"), ("text.h5", "not a Keras .h5"), ("m.h5", "cannot be read")):
        assert keras_worker.verify_and_say(str(tmp_path / path)) == 2
        last = capsys.readouterr().out.splitlines()[-1]
        assert last.startswith("FAIL: not checked: ")
        assert says in last


@pytest.mark.parametrize("digests", [[], "x", {}, {"layers": []}], ids=str)
def test_digests_of_another_shape_are_refused_without_a_keras(small_checkpoint, tmp_path, capsys, digests):
    twin = write_twin(small_checkpoint, tmp_path / "m.h5").path
    with h5py.File(twin, "r+") as file:
        file["shelftwin_golden"].attrs["sha256"] = json.dumps(digests)
    assert keras_worker.verify_and_say(str(twin)) == 2
    said = capsys.readouterr()
    assert said.out.startswith("FAIL: not checked: ")
    assert "no digests of its layers" in said.out
    assert "Traceback" not in said.err


def test_sizes_are_checked_before_anything_is_allocated(small_checkpoint, tmp_path):
    twin = write_twin(small_checkpoint, tmp_path / "m.h5").path
    with h5py.File(twin, "r+") as file:
        del file["shelftwin_golden/inputs"]
        file["shelftwin_golden"].create_dataset("inputs", (1 << 20, 1 << 10, 1 << 10, 3), "u1", chunks=(1, 64, 64, 3))
    with pytest.raises(keras_worker.Refused, match="more than"):
        keras_worker.read_golden(str(twin))


def function(name: str, module: str = "keras.utils") -> dict[str, object]:
    return {"class_name": "function", "module": module, "config": name, "registered_name": name}


def activation(value: object):
    return lambda h5: edit_layer(h5, "predictions", activation=value)


def training(**changes: object):
    return lambda h5: edit_json(h5, "/", "training_config", lambda config: config.update(changes))


def metric(fn: object) -> dict[str, object]:
    return {"class_name": "MeanMetricWrapper", "config": {"name": "m", "dtype": "float32", "fn": fn}}


UNKNOWN_FUNCTIONS = {
    "an activation, in Keras 3's words": activation(function("get_file")),
    "an activation, by its name": activation("get_file"),
    "an initialiser": lambda h5: edit_layer(h5, "predictions", kernel_initializer=function("get_file")),
    "a regulariser": lambda h5: edit_layer(h5, "predictions", kernel_regularizer=function("get_file")),
    "a constraint": lambda h5: edit_layer(h5, "predictions", bias_constraint=function("get_file")),
    "a loss": training(loss=function("get_file")),
    "a loss, by its name": training(loss="get_file"),
    "a loss of one output": training(loss={"predictions": "get_file"}),
    "a metric, by its name": training(metrics=[["accuracy", "get_file"]]),
    "a weighted metric": training(weighted_metrics=["get_file"]),
    "the function of a metric": training(metrics=[[metric("get_file")]]),
    "the same, in Keras 3's words": training(metrics=[metric(function("get_file", "builtins"))]),
}


@pytest.fixture(scope="module")
def whole(small_checkpoint, tmp_path_factory) -> Path:
    return write_twin(small_checkpoint, tmp_path_factory.mktemp("whole") / "m.h5").path


@pytest.mark.parametrize("change", UNKNOWN_FUNCTIONS.values(), ids=UNKNOWN_FUNCTIONS)
def test_functions_of_keras_that_are_no_activations_are_refused(whole, tmp_path, change):
    twin = Path(shutil.copy(whole, tmp_path))
    keras_worker.check_layers(str(twin))
    change(twin)
    with pytest.raises(keras_worker.Refused, match=r"could run code: get_file \(layers, or functions"):
        keras_worker.check_layers(str(twin))


@pytest.mark.parametrize(
    "change",
    [
        *(activation(each) for each in ("relu6", "swish", function("softmax", "builtins"), None)),
        training(loss={"predictions": "categorical_crossentropy"}, metrics=["accuracy", [metric("binary_accuracy")]]),
        training(loss=function("mean_squared_error", "builtins"), metrics=["AUC", "acc"], weighted_metrics=None),
    ],
)
def test_functions_that_classifiers_have_are_not(whole, tmp_path, change):
    twin = Path(shutil.copy(whole, tmp_path))
    change(twin)
    keras_worker.check_layers(str(twin))


def layers_of_a_keras() -> SimpleNamespace:
    class Layer:
        name = "dense"

        def add_weight(self, name=None, shape=None, dtype=None):
            return shape

    return SimpleNamespace(layers=SimpleNamespace(Layer=Layer))


def test_layers_may_ask_for_what_the_file_has_and_for_little_more(small_checkpoint, tmp_path):
    twin = write_twin(small_checkpoint, tmp_path / "m.h5")
    keras, held = layers_of_a_keras(), keras_worker.numbers_in(str(twin.path))
    assert twin.parameters < held  # the golden images are in it, too
    layer, own = keras.layers.Layer(), keras.layers.Layer.add_weight
    with keras_worker.no_more_weights(keras, str(twin.path)):
        assert layer.add_weight("kernel", (twin.parameters,)) == (twin.parameters,)
        assert layer.add_weight(shape=[3, 4]) == [3, 4]
        assert layer.add_weight("count") is None
        layer.add_weight("kernel", shape=(held - twin.parameters, 1))
        with pytest.raises(keras_worker.Refused, match="layer dense asks for weights of shape"):  # all together
            layer.add_weight("kernel", shape=(keras_worker.SPARE_NUMBERS,))
    assert keras.layers.Layer.add_weight is own


def test_refusal_is_one_whatever_keras_makes_of_it(small_checkpoint, tmp_path):
    twin, keras = write_twin(small_checkpoint, tmp_path / "m.h5").path, layers_of_a_keras()

    def build():
        try:
            keras.layers.Layer().add_weight("kernel", (1 << 40,))
        except keras_worker.Refused as refused:
            raise RuntimeError("as Keras 2 tells it") from refused

    with pytest.raises(keras_worker.Refused, match="asks for weights"), keras_worker.no_more_weights(keras, str(twin)):
        build()
    with pytest.raises(ValueError, match="own"), keras_worker.no_more_weights(keras, str(twin)):
        raise ValueError("Keras's own")
    assert keras.layers.Layer().add_weight("kernel", (1 << 40,)) == (1 << 40,)


def test_golden_images_are_the_same_everywhere_and_use_the_corner():
    images = golden_images((61, 40))
    assert images.shape == (3, 61, 40, 3)
    assert keras_worker.array_digest(images[0]) == "454c231624348e9a4fd596b0e6a9fd7540293c1fd6ecafa3a1bf4204b61598ab"
    assert images[2, -1, -1].any()
    assert not images[2, :40].any()


def test_foreign_network_in_a_file_that_says_nothing_of_itself_may_be_saved_again(tmp_path):
    checkpoint = save_checkpoint(tmp_path / "r.ckpt", random_classifier(backbone="resnet18"), (64, 64))
    twin = write_twin(checkpoint, tmp_path / "r.h5").path
    with h5py.File(twin, "r+") as file:
        del file.attrs["shelftwin"]
    report = check_parity(Pair(checkpoint, twin))
    assert report.verdict == "FAIL"
    assert "saved again by Keras" in report.last_line()
    with h5py.File(twin, "r+") as file:  # where it cannot even be read, it is the refusal that must say it
        file.attrs["model_config"] = file.attrs["model_config"].replace('"ReLU"', '"Mystery"')
    with pytest.raises(BadInput, match="saved again by Keras"):
        check_parity(Pair(checkpoint, twin))


# Wrong interpreters --------------------------------------------------------------------------------------------------


def bare_python(folder: Path, packages: tuple[str, ...] = ()) -> Path:
    """An interpreter that has these packages of ours and no others."""
    (folder / "packages").mkdir()
    for package in packages:
        site = Path(import_module(package).__file__).parents[1]
        for each in (site / package, site / f"{package}.libs"):
            if each.exists():
                (folder / "packages" / each.name).symlink_to(each)
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{folder / "packages"}" exec {sys.executable} -S "$@"\n')
    python.chmod(0o755)
    return python


@pytest.mark.parametrize(("packages", "missing"), [((), "numpy"), (("numpy",), "h5py"), (("numpy", "h5py"), "Keras")])
def test_interpreter_without_packages_is_not_checked_and_no_crash(small_checkpoint, tmp_path, packages, missing):
    twin = write_twin(small_checkpoint, tmp_path / "m.h5").path
    python = bare_python(tmp_path, packages)
    done = subprocess.run([python, WORKER, "verify", twin], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == ""
    last = done.stdout.splitlines()[-1]
    assert last.startswith("FAIL: not checked: ")
    assert f"has no {missing}" in last
    with pytest.raises(BadInput, match=f"has no {missing}.*--keras-python"):
        run_keras([(twin, [])], python=python)
    with pytest.raises(BadInput, match=f"has no {missing}.*--keras-python"):
        KerasStream(twin, python)


@pytest.mark.parametrize("arguments", [["verify"], [], ["verify", "a.h5", "b.h5"]])
def test_wrong_usage_is_no_mismatch(arguments):
    done = subprocess.run([sys.executable, WORKER, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "keras_worker.py verify MODEL.h5" in done.stderr

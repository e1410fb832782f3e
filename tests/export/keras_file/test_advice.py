"""Each refusal's advice was followed in a real Keras, and kept the answers."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from export.graph.network import graph_network
from export.import_keras import write_import
from export.keras_file.architecture import read_keras_graph
from export.keras_file.read import read_keras_file
from export.keras_to_torch import ImportSettings, read_keras_classifier
from export.proof import import_proof
from export.worker import keras_process
from models.bad_input import BadInput
from tests.conftest import OTHER_KERAS, OTHER_PYTHON

GENERATIONS = [pytest.param(None, id="here"), OTHER_KERAS]
ADVICE = {
    "lambda": r"got Lambda, code.*model\.load_weights\(OLD\) and model\.save\(NEW\)",
    "own_layer": r"got OwnScale, not Keras's own.*model\.load_weights\(OLD\) and model\.save\(NEW\)",
    "shared": r"a layer of its own, and the copies the same weights",
    "two_outputs": r"keras\.Model\(model\.inputs\[0\], model\.outputs\[NUMBER\]\)",
    "channels_first": r"set_image_data_format\('channels_last'\) first, and axis=-1 where it says axis=1",
    "float64": r"build it in float32, model\.load_weights\(OLD\), model\.save\(NEW\)",
    "subclassed": r"keras\.Model\(photo, model\.call\(photo\)\)",
}


@pytest.fixture(scope="module", params=GENERATIONS)
def folder(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("refused")
    script = Path(__file__).with_name("refused_files.py")
    command = [request.param or keras_process.sys.executable, str(script), str(folder)]
    done = subprocess.run(command, env=keras_process._environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def answers(path: Path, images: np.ndarray) -> np.ndarray:
    network = graph_network(read_keras_graph(read_keras_file(path)).graph).double()
    with torch.inference_mode():
        return network(torch.from_numpy(images.transpose(0, 3, 1, 2)).double()).numpy()


@pytest.mark.keras
def test_advice_was_followed_and_keeps_the_answers(folder):
    seen = set()
    for mended in sorted(folder.glob("*_new.h5")):
        name = mended.name.removesuffix("_new.h5")
        (refused,) = (each for each in folder.glob(f"{name}.*") if each.suffix in (".h5", ".keras"))
        case = name.removesuffix("_h5").removesuffix("_keras")
        with pytest.raises(BadInput, match=ADVICE[case]):
            read_keras_graph(read_keras_file(refused))
        with np.load(refused.with_suffix(".npz")) as kept:
            assert np.abs(answers(mended, kept["images"]) - kept["answer"]).max() < 1e-5, name
            assert np.ptp(kept["answer"]) > 0.01
        seen.add(case)
    assert ADVICE.keys() - {"subclassed"} <= seen


@pytest.mark.keras
def test_file_that_keras_itself_does_not_load_is_proved(folder, tmp_path):
    """Keras 3's bare operations in a `.h5`: it reads what it wrote from a `.keras` alone."""
    if not (folder / "bare.h5").exists():
        pytest.skip("Keras 2 loads its own")
    images = np.random.default_rng(0).random((2, 16, 16, 3), np.float32) * 255
    for name in ("bare.h5", "whole.keras"):
        read = read_keras_classifier(folder / name, ImportSettings(["a", "b", "c"]))
        assert write_import(read, tmp_path / "o.ckpt").verdict == "PASS"
        assert np.array_equal(answers(read.path, images), answers(folder / "whole.keras", images))


@pytest.mark.keras
def test_half_precision_is_compared_in_float32(folder, tmp_path, monkeypatch, request):
    """Its own answers are other ones, by float16's rounding, and the report says by how much."""
    python = Path(OTHER_PYTHON) if "keras2" in request.node.name else None
    classifier = read_keras_classifier(folder / "half.h5", ImportSettings(["a", "b", "c"]))
    assert len(classifier.source.half_precision) == 4
    report = write_import(classifier, tmp_path / "o.ckpt", keras_python=python)
    (check,) = (each for each in report.checks if each.name == "probabilities_synthetic")
    assert check.figure < 1e-5
    assert "its own half precision moves its answers here by up to 0.0" in check.detail
    monkeypatch.setattr(import_proof, "_tasks", as_it_is(import_proof._tasks))
    with pytest.raises(Exception, match="probabilities_synthetic"):
        write_import(classifier, tmp_path / "o.ckpt", keras_python=python)


def as_it_is(tasks):
    """Every task without a type: the control, in which Keras computes in half precision."""

    def changed(*given):
        return [{**each, "task": "predict"} if each["task"] == "predict_exact" else each for each in tasks(*given)]

    return changed

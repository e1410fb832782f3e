"""Second opinions: independent converters agree with torch, and each notices a weight that was changed."""

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from export.checkpoint import read_checkpoint
from export.proof import parity
from export.proof.image_sets import ImageSet
from export.proof.page import meaning_of, render_page
from export.proof.parity import Pair, check_pairs
from export.proof.second_opinions import OPINIONS, Opinion, opinion_checks, second_opinion, write_torch_onnx
from export.torch_answers import torch_probabilities
from export.torch_to_keras import write_twin
from export.worker import own_environment
from export.worker.environments import ONNX2TF, VERSION
from lightning_module.commands import cli
from models.bad_input import BadInput
from tests.conftest import random_classifier, save_checkpoint

SIZE = (64, 48)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    # SAME padding is what converters get wrong
    network = random_classifier(backbone="mobilenetv2_035", pad_type="same", mean=(0.3, 0.4, 0.5), std=0.25)
    return save_checkpoint(tmp_path_factory.mktemp("opinions") / "best.ckpt", network, SIZE)


def photos() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (3, *SIZE, 3), dtype=np.uint8)


@pytest.mark.keras
def test_tf2onnx_agrees_and_notices_a_changed_weight(checkpoint, tmp_path):
    whole = write_twin(checkpoint, tmp_path / "raw.h5", "raw").path
    changed = write_twin(checkpoint, tmp_path / "changed.h5").path
    with h5py.File(changed, "r+") as file:
        file["model_weights/predictions/predictions/bias:0"][0] += 0.05
    right, wrong = check_pairs([Pair(checkpoint, h5, photos()) for h5 in (whole, changed)], opinions=["tf2onnx"])
    assert right.verdict == "PASS", right.failed
    added = ["probabilities_synthetic_tf2onnx", "probabilities_photos_tf2onnx", "top1_photos_tf2onnx"]
    assert [check.name for check in right.checks][-3:] == added
    assert {"tf2onnx", "onnxruntime", "keras"} <= right.versions["tf2onnx"].keys()
    for photo in right.photos:
        np.testing.assert_allclose(photo.opinions["tf2onnx"], photo.torch, atol=1e-5)
    assert np.abs(np.subtract(wrong.photos[0].opinions["tf2onnx"], wrong.photos[0].torch)).max() > 1e-3
    assert {images: list(names) for images, names in right.converters.items()} == {
        images: ["Keras", "tf2onnx"] for images in ("synthetic", "photos")
    }
    # a column in the table of converters, and one of each photo
    assert render_page([right]).count("<th>tf2onnx</th>") == 1 + len(right.photos)
    assert all(meaning_of(check.name) for check in right.checks)
    failed = [check.name for check in wrong.failed]
    assert {"weights", "probabilities_synthetic_tf2onnx", "probabilities_photos_tf2onnx"} <= set(failed)


@pytest.mark.keras
@pytest.mark.slow
def test_onnx2tf_agrees_and_notices_a_changed_weight(checkpoint, tmp_path):
    try:
        ONNX2TF.python()
    except BadInput as error:
        pytest.skip(str(error))
    source = read_checkpoint(checkpoint)
    sets = [ImageSet("photos", photos(), ["a", "b", "c"])]
    expected = [torch_probabilities(source.network, sets[0].batches())]
    opinion = second_opinion("onnx2tf", source, tmp_path / "not needed.h5", "raw", sets)
    checks = opinion_checks(opinion, sets, expected)
    assert [check.name for check in checks] == ["probabilities_photos_onnx2tf", "top1_photos_onnx2tf"]
    assert all(check.passed for check in checks), checks
    assert opinion.versions["onnx2tf"] == VERSION

    with torch.no_grad():
        source.network.backbone.blocks[2][0].conv_pw.weight[0, 0] += 0.5
    changed = second_opinion("onnx2tf", source, tmp_path / "not needed.h5", "raw", sets)
    assert not opinion_checks(changed, sets, expected)[0].passed


# What needs no Keras process ------------------------------------------------------------------------------------------


def test_onnx_export_leaves_the_network_as_it_was(checkpoint, tmp_path):
    source = read_checkpoint(checkpoint)
    batches = list(ImageSet("photos", photos(), ["a", "b", "c"]).batches())
    before = torch_probabilities(source.network, batches)
    write_torch_onnx(source, tmp_path / "model.onnx")
    assert not source.network.training
    assert np.array_equal(before, torch_probabilities(source.network, batches))


def test_an_opinion_that_differs_fails_by_its_own_threshold(monkeypatch):
    sets = [ImageSet("photos", photos(), ["a", "b", "c"])]
    expected = np.full((3, 4), 0.25, np.float32)
    given = expected.copy()
    given[1] += [3e-5, -3e-5, 0, 0]
    for threshold, passed in ((1e-5, False), (1e-4, True)):
        monkeypatch.setitem(OPINIONS, "tf2onnx", replace(OPINIONS["tf2onnx"], threshold=threshold))
        check = opinion_checks(Opinion("tf2onnx", {}, [given], 1.0), sets, [expected])[0]
        assert (check.passed, check.threshold) == (passed, threshold)
        assert check.first_divergence == (None if passed else "b")


def lightning(*arguments) -> int:
    try:
        cli.main([str(argument) for argument in arguments])
    except SystemExit as leaving:
        return int(leaving.code or 0)
    return 0


def test_command_names_the_roads(checkpoint, tmp_path, monkeypatch, capsys):
    asked = []

    def check(pair: Pair, keras_python: Path | None, progress: Callable[[str], None], opinions: list[str]) -> None:
        asked.append(opinions)
        progress("planted: it goes on")
        raise BadInput("enough")

    monkeypatch.setattr(parity, "check_parity", check)
    for text in ("all", "onnx2tf, tf2onnx", ""):
        assert lightning("parity", checkpoint, tmp_path / "m.h5", f"--second-opinions={text}") == 2
    assert asked == [["tf2onnx", "onnx2tf"], ["onnx2tf", "tf2onnx"], []]
    said = capsys.readouterr()
    assert "planted: it goes on ..." in said.err
    assert "planted" not in said.out
    assert lightning("parity", checkpoint, tmp_path / "m.h5", "--second_opinions=onnx") == 2
    assert "received 'onnx'" in capsys.readouterr().err


@pytest.fixture
def empty_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def make_interpreter(folder: Path, requirements: tuple[str, ...] = ()) -> str:
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").touch()
    return ""


def test_environment_is_made_once_however_many_ask(empty_cache, monkeypatch):
    made = []

    def make(folder: Path, requirements: tuple[str, ...]) -> str:
        made.append(folder)
        return make_interpreter(folder)

    monkeypatch.setattr(own_environment, "_make", make)
    asking = [threading.Thread(target=ONNX2TF.python) for _ in range(4)]
    for each in asking:
        each.start()
    for each in asking:
        each.join()
    assert made == [ONNX2TF.folder]
    assert made[0].is_relative_to(empty_cache)


def test_making_of_the_environment_is_told_before_it_begins(checkpoint, empty_cache, monkeypatch):
    told = []

    def make(folder: Path, requirements: tuple[str, ...]) -> str:
        raise BadInput(f"told by then: {told}")

    monkeypatch.setattr(own_environment, "_make", make)
    source = read_checkpoint(checkpoint)
    with pytest.raises(BadInput, match=r"told by then: \['making the environment of onnx2tf in"):
        second_opinion("onnx2tf", source, empty_cache / "not needed.h5", "unit", [], told.append)


def test_nothing_is_told_of_an_environment_that_is_there(empty_cache, monkeypatch):
    told: list[str] = []
    monkeypatch.setattr(own_environment, "_make", make_interpreter)
    ONNX2TF.python()
    ONNX2TF.python(told.append)
    assert not told


def test_environment_that_was_broken_off_is_made_anew(empty_cache, monkeypatch):
    folder = ONNX2TF.folder
    make_interpreter(folder)
    (folder / "left").touch()
    commands = []

    def run(command: list) -> str:
        commands.append(command)
        if "venv" in command:
            make_interpreter(folder)
        return ""

    monkeypatch.setattr(own_environment, "_run", run)
    assert ONNX2TF.python() == folder / "bin" / "python"
    assert not (folder / "left").exists()
    assert set(ONNX2TF.requirements) <= set(commands[-1])


def test_environment_that_cannot_be_made_is_bad_input_and_leaves_nothing_to_trust(empty_cache, monkeypatch):
    commands = []

    def run(command: list) -> str:
        commands.append(command)
        return "no route to the index"

    monkeypatch.setattr(own_environment, "_run", run)
    for _ in range(2):
        with pytest.raises(BadInput, match=r"no route to the index.*XDG_CACHE_HOME"):
            ONNX2TF.python()
    assert len(commands) == 4  # uv and pip, twice


def test_a_folder_that_cannot_be_made_is_bad_input(empty_cache):
    (empty_cache / "shelftwin").write_text("a file")
    with pytest.raises(BadInput, match="expected to make an environment"):
        ONNX2TF.python()

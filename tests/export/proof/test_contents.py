"""Whatever else is changed in a twin is noticed, whether or not it changes what the network computes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from export.proof.checks import check_labels
from export.proof.comparison import Pair, read_comparison
from export.proof.contents import check_contents
from export.torch_to_keras import write_twin
from export.worker.keras_worker import array_digest
from tests.conftest import random_classifier, save_checkpoint


@pytest.mark.parametrize(
    ("input_range", "folded", "trainable"), [("unit", False, "head"), ("raw", False, "all"), ("unit", True, "head")]
)
def test_file_as_it_was_written_passes(tmp_path, input_range, folded, trainable):
    network = random_classifier(backbone="mobilenetv2_035", hidden=(8,), dropout=0.1, mean=(0.3, 0.4, 0.5), std=0.7)
    checkpoint = save_checkpoint(tmp_path / "a.ckpt", network, (32, 32), trainable=trainable)
    twin = write_twin(checkpoint, tmp_path / "a.h5", input_range, folded).path
    check = check_contents(read_comparison(Pair(checkpoint, twin)))
    assert check.passed, check


@pytest.fixture(scope="module")
def written(small_checkpoint, tmp_path_factory) -> Path:
    """The twin as it was written; what changes it, copies it first."""
    return write_twin(small_checkpoint, tmp_path_factory.mktemp("written") / "a.h5").path


def test_file_of_an_older_version_passes_without_the_facts_that_came_since(small_checkpoint, written, tmp_path):
    def change(fact: str, value: str | None = None) -> Path:
        twin = Path(shutil.copy(written, tmp_path))
        with h5py.File(twin, "r+") as file:
            attribute("shelftwin", lambda details: details.update({fact: value}) if value else details.pop(fact))(file)
            write_digests_anew(file)
        return twin

    for fact in ("background", "deep_grey", "formats"):
        pair = read_comparison(Pair(small_checkpoint, change(fact)))
        assert check_contents(pair).passed, fact
        assert check_labels(pair.source, pair.twin.details).passed, fact
    for fact, other in (("background", "#ffffff"), ("deep_grey", "scale"), ("formats", "web"), ("interpolation", None)):
        check = check_contents(read_comparison(Pair(small_checkpoint, change(fact, other))))
        assert check.first_divergence == f"shelftwin/{fact}"


def attribute(name: str, change: Callable[[dict], None]) -> Callable[[h5py.File], None]:
    def apply(file: h5py.File) -> None:
        content = json.loads(file.attrs[name])
        change(content)
        file.attrs[name] = json.dumps(content).encode()

    return apply


def golden_output(file: h5py.File) -> None:
    file["shelftwin_golden/outputs"][0, 0] += 1e-3


CHANGES = {
    "model_config": attribute(
        "model_config", lambda config: config["config"]["layers"][3]["config"].update(trainable=True)),
    "training_config": attribute(
        "training_config", lambda config: config["optimizer_config"]["config"].update(learning_rate=1.0)),
    "shelftwin/backbone": attribute("shelftwin", lambda details: details.update(backbone="another")),
    "shelftwin/more": attribute("shelftwin", lambda details: details.update(more=1)),
    "digest of shelftwin": attribute("shelftwin", lambda details: details.update(shelftwin_version="9")),
    "digest of outputs": golden_output,
    "golden images": lambda file: file.__delitem__("shelftwin_golden"),
    "marks": lambda file: file.attrs.__setitem__("keras_version", b"1.0.0"),
}  # fmt: skip


@pytest.mark.parametrize("part", CHANGES)
def test_change_is_noticed_and_named(small_checkpoint, written, tmp_path, part):
    twin = Path(shutil.copy(written, tmp_path))
    with h5py.File(twin, "r+") as file:
        CHANGES[part](file)
    check = check_contents(read_comparison(Pair(small_checkpoint, twin)))
    assert not check.passed
    differing = {part, "marks"} if part == "golden images" else {part}
    assert check.first_divergence in differing
    assert check.first_divergence in check.detail
    assert np.isfinite(check.figure)


# Changed by somebody who computes the digests anew ------------------------------------------------------------


def replaced(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[h5py.File], None]:
    def apply(file: h5py.File) -> None:
        array = change(file[f"shelftwin_golden/{name}"][()])
        del file[f"shelftwin_golden/{name}"]
        file[f"shelftwin_golden/{name}"] = array

    return apply


def both(first: Callable[[h5py.File], None], second: Callable[[h5py.File], None]) -> Callable[[h5py.File], None]:
    def apply(file: h5py.File) -> None:
        first(file)
        second(file)

    return apply


def write_digests_anew(file: h5py.File) -> None:
    group = file["shelftwin_golden"]
    digests = json.loads(group.attrs["sha256"])
    for name in ("model_config", "training_config", "shelftwin"):
        text = file.attrs[name]
        digests[name] = array_digest(np.frombuffer(text.encode() if isinstance(text, str) else text, np.uint8))
    digests |= {name: array_digest(group[name][()]) for name in ("inputs", "outputs")}
    group.attrs["sha256"] = json.dumps(digests).encode()


def twice(file: h5py.File) -> None:
    text = file.attrs["shelftwin"]
    file.attrs["shelftwin"] = text.replace("{", '{"input_range": "raw", ', 1).encode()


def restored(**storage: Any) -> Callable[[h5py.File], None]:
    """The same numbers, stored in another way."""

    def apply(file: h5py.File) -> None:
        group = file["model_weights/Conv1/Conv1"]
        array = group["kernel:0"][()]
        del group["kernel:0"]
        group.create_dataset("kernel:0", **{"data": array, **storage})

    return apply


TOP_LEVEL = "model_weights/top_level_model_weights"
COVERED = {
    "classes reversed": (replaced("outputs", lambda array: array[:, ::-1]), "golden outputs"),
    "an answer off by 2e-5": (replaced("outputs", lambda array: array + np.float32(2e-5)), "golden outputs"),
    "answers that are no numbers": (replaced("outputs", lambda array: array * np.float32(np.nan)), "golden outputs"),
    "answers in float64": (replaced("outputs", lambda array: array.astype(np.float64)), "golden images"),
    "black images": (replaced("inputs", np.zeros_like), "golden inputs"),
    "images in another type": (replaced("inputs", lambda array: array.astype(np.int16)), "golden images"),
    "images and answers of another network": (
        both(
            replaced("inputs", lambda array: array[:1, :2, :2]),
            replaced("outputs", lambda array: np.ones((1, 9), np.float32)),
        ),
        "golden inputs",
    ),
    "a version that is no text": (
        attribute("shelftwin", lambda details: details.update(shelftwin_version={"x": 1})),
        "shelftwin/shelftwin_version",
    ),
    "a further array": (
        lambda file: file["shelftwin_golden"].create_dataset("more", data=np.zeros(3)), "dataset shelftwin_golden/more",
    ),
    "a further attribute": (
        lambda file: file["model_weights/Conv1"].attrs.__setitem__("more", 1), "attribute more of /model_weights/Conv1",
    ),
    "an attribute of an array": (
        lambda file: file["model_weights/Conv1/Conv1/kernel:0"].attrs.__setitem__("more", 1),
        "attribute more of /model_weights/Conv1/Conv1/kernel:0",
    ),
    "a key that is there twice": (twice, "text"),
    "a text with other spaces": (
        lambda file: file.attrs.__setitem__("training_config", file.attrs["training_config"] + " "), "text",
    ),
    "weights that are compressed": (
        restored(compression="gzip"), "storage of arrays",
    ),
    "weights behind a filter": (restored(fletcher32=True), "storage of arrays"),
    "weights that may grow": (restored(maxshape=(None, None, None, None)), "storage of arrays"),
    "a further group": (lambda file: file.create_group(TOP_LEVEL), f"group {TOP_LEVEL}"),
}  # fmt: skip


@pytest.mark.parametrize("name", COVERED)
def test_change_with_new_digests_is_noticed_and_named(small_checkpoint, written, tmp_path, name):
    change, named = COVERED[name]
    twin = Path(shutil.copy(written, tmp_path))
    with h5py.File(twin, "r+") as file:
        change(file)
        write_digests_anew(file)
    check = check_contents(read_comparison(Pair(small_checkpoint, twin)))
    assert not check.passed
    assert check.first_divergence == named, check


@pytest.mark.parametrize("near", [0.0, 2e-6])
def test_answers_as_another_machine_rounds_them_pass(small_checkpoint, written, tmp_path, near):
    twin = Path(shutil.copy(written, tmp_path))
    with h5py.File(twin, "r+") as file:
        replaced("outputs", lambda array: array + np.float32(near))(file)
        write_digests_anew(file)
    check = check_contents(read_comparison(Pair(small_checkpoint, twin)))
    assert check.passed, check


def test_another_group_is_noticed(small_checkpoint, written, tmp_path):
    twin = Path(shutil.copy(written, tmp_path))
    with h5py.File(twin, "r+") as file:
        file.create_group("optimizer_weights")
    assert check_contents(read_comparison(Pair(small_checkpoint, twin))).first_divergence == "marks"


@pytest.mark.parametrize(("where", "before", "after"), [("before", b"x" * 512, b""), ("after", b"", b"PK\5\6")])
def test_bytes_outside_of_the_hdf5_file_are_noticed(small_checkpoint, written, tmp_path, where, before, after):
    twin = tmp_path / "a.h5"
    twin.write_bytes(before + written.read_bytes() + after)
    check = check_contents(read_comparison(Pair(small_checkpoint, twin)))
    assert not check.passed
    assert check.first_divergence == f"bytes {where} the HDF5 file"

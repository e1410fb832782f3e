"""Whatever else is changed in a twin is noticed, whether or not it changes what the network computes."""

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import random_classifier, save_checkpoint

from export.case import Pair, read_case
from export.contents import check_contents
from export.hand_over import write_twin


@pytest.mark.parametrize(
    ("input_range", "folded", "trainable"), [("unit", False, "head"), ("raw", False, "all"), ("unit", True, "head")]
)
def test_file_as_it_was_written_passes(tmp_path, input_range, folded, trainable):
    network = random_classifier(backbone="mobilenetv2_035", hidden=(8,), dropout=0.1, mean=(0.3, 0.4, 0.5), std=0.7)
    checkpoint = save_checkpoint(tmp_path / "a.ckpt", network, (32, 32), trainable=trainable)
    twin = write_twin(checkpoint, tmp_path / "a.h5", input_range, folded).path
    rung = check_contents(read_case(Pair(checkpoint, twin)))
    assert rung.passed, rung


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
def test_change_is_noticed_and_named(small_checkpoint, tmp_path, part):
    twin = write_twin(small_checkpoint, tmp_path / "a.h5").path
    with h5py.File(twin, "r+") as file:
        CHANGES[part](file)
    rung = check_contents(read_case(Pair(small_checkpoint, twin)))
    assert not rung.passed
    differing = {part, "marks"} if part == "golden images" else {part}
    assert rung.first_divergence in differing
    assert np.isfinite(rung.figure)


def test_another_group_is_noticed(small_checkpoint, tmp_path: Path):
    twin = write_twin(small_checkpoint, tmp_path / "a.h5").path
    with h5py.File(twin, "r+") as file:
        file.create_group("optimizer_weights")
    assert check_contents(read_case(Pair(small_checkpoint, twin))).first_divergence == "marks"

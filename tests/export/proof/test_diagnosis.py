"""The likely cause of a failure, of Kerases that are planted: none is started.

What a real Keras shows is in `test_parity.py`.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image

from datamodule.photo_store import load_photo
from export.proof.comparison import Comparison, Pair, read_comparison
from export.proof.diagnosis.cause import likely_cause
from export.proof.keras_side import KerasSide, LoadedFiles
from export.proof.probe_images import write_probe_files
from export.proof.report import Check, Report
from export.proof.torch_side import torch_layers
from export.torch_to_keras import write_twin
from export.worker.keras_worker import array_digest, pillow_versions
from tests.conftest import photos_of, random_classifier, save_checkpoint

SIZE = (64, 48)


@pytest.fixture(scope="module")
def comparison(tmp_path_factory) -> Comparison:
    folder = tmp_path_factory.mktemp("comparison")
    network = random_classifier(backbone="mobilenetv2_035", mean=(0.3, 0.4, 0.5), std=(0.2, 0.3, 0.4))
    checkpoint = save_checkpoint(folder / "best.ckpt", network, SIZE)
    twin = write_twin(checkpoint, folder / "m.h5").path
    return read_comparison(Pair(checkpoint, twin, photos_of(SIZE), load_photo=load_photo))


@pytest.fixture(scope="module")
def torch_gave(comparison) -> dict[str, np.ndarray]:
    return torch_layers(comparison.source.network, comparison.graph, comparison.exact_images)


def failing(check: str, first: str) -> Report:
    return Report({}, {}, [Check(check, False, 1, 0, "", "", first)])


def keras_side(**gave) -> KerasSide:
    return KerasSide(**{"versions": {}, "weights": {}, "layers": {}, "probabilities": [], "exact": np.zeros(0), **gave})


# What Keras's first layer makes of an image in [0, 1], with the file's scale and offset -> what must be said
NORMALISATIONS = {
    "missing": (lambda image, scale, offset: image, "it does nothing (preprocessing is missing)"),
    "of 0 to 255": (lambda image, scale, offset: image / 255 * scale + offset, "it takes 0 to 255, not 0 to 1"),
    "of 0 to 1": (
        lambda image, scale, offset: image * 255 * scale + offset, "it takes 0 to 1 where the file says 0 to 255",
    ),
    "to -1 to 1": (
        lambda image, scale, offset: image * 2 - 1,
        "it gives -1 to 1 (preprocessing of keras.applications.mobilenet_v2)",
    ),
    "without offset": (lambda image, scale, offset: image * scale, "it adds no offset"),
    "BGR": (lambda image, scale, offset: image * scale[::-1] + offset[::-1], "its channels are in reverse order"),
}  # fmt: skip


@pytest.mark.parametrize("name", NORMALISATIONS)
def test_wrong_normalisation_is_named(comparison, torch_gave, name):
    compute, said = NORMALISATIONS[name]
    stated = comparison.graph.node("normalise").attributes
    image = compute(comparison.exact_images, np.array(stated["scale"]), np.array(stated["offset"]))
    cause = likely_cause(
        comparison, failing("layers_float64", "normalise"), torch_gave, keras_side(layers={"normalise": image})
    )
    assert cause is not None
    assert cause.startswith(f"normalise: {said}")


def test_normalisation_that_no_known_fault_explains_has_no_likely_cause(comparison, torch_gave):
    gave = keras_side(layers={"normalise": torch_gave["normalise"] * 1.001})
    assert likely_cause(comparison, failing("layers_float64", "normalise"), torch_gave, gave) is None


# Photos from file -----------------------------------------------------------------------------------------------------


OURS = {"pillow": "13.0.0", "libjpeg-turbo": "3.2.0"}
# Keras's versions -> who resizes, who decodes, and how to have the same Pillow
OTHERS = {
    "another Pillow": (
        {"pillow": "12.3.0", "libjpeg-turbo": "3.1.4"},
        "by Pillow 12.3.0 there and Pillow 13.0.0 here",
        "by Pillow 12.3.0 with libjpeg-turbo 3.1.4 there and Pillow 13.0.0 with libjpeg-turbo 3.2.0 here",
        "install pillow==13.0.0 there",
    ),
    "another libjpeg": (
        {"pillow": "13.0.0", "libjpeg": "9.5"},
        "though both sides have Pillow 13.0.0: one of them is built otherwise",
        "by Pillow 13.0.0 with libjpeg 9.5 there and Pillow 13.0.0 with libjpeg-turbo 3.2.0 here",
        "install the wheel of pillow==13.0.0 there",
    ),
    "another build": (
        OURS,
        "though both sides have Pillow 13.0.0: one of them is built otherwise",
        "though both sides have Pillow 13.0.0 with libjpeg-turbo 3.2.0: one of them is built otherwise",
        "install the wheel of pillow==13.0.0 there",
    ),
    "one that does not say its libjpeg": (
        {"pillow": "7.2.0"},
        "by Pillow 7.2.0 there and Pillow 13.0.0 here",
        "by Pillow 7.2.0 there and Pillow 13.0.0 with libjpeg-turbo 3.2.0 here",
        "install pillow==13.0.0 there",
    ),
}
PASSED = Check("weights", True, 0, 0, "", "")


@pytest.fixture(autouse=True)
def our_pillow(monkeypatch):
    monkeypatch.setattr("export.proof.diagnosis.cause.pillow_versions", lambda: OURS)


def with_files(comparison: Comparison, folder: Path, interpolation: str = "bilinear") -> tuple[Comparison, KerasSide]:
    """The probe files, loaded by both sides alike."""
    files = write_probe_files(folder)
    pixels = np.stack([load_photo(file, SIZE, interpolation) for file in files])
    loaded = LoadedFiles(files, pixels, pixels.copy(), np.zeros((len(files), 4), np.float32), {}, {})
    source = replace(comparison.source, interpolation=interpolation)
    return replace(comparison, source=source), keras_side(versions=OTHERS["another Pillow"][0], loaded=loaded)


def change(side: KerasSide, name: str, decoded: bool = False) -> None:
    """Let Keras's pixels of a file be others: since it is resized, or decoded, otherwise."""
    index = [file.name for file in side.loaded.files].index(name)
    side.loaded.pixels[index, 10, 10] ^= 1
    with Image.open(side.loaded.files[index]) as photo:
        whole = np.array(photo.convert("RGB"))
    whole[0, 0] ^= decoded
    side.loaded.decoded[index] = (*whole.shape[:2], array_digest(whole))


def failing_files(comparison: Comparison, side: KerasSide, *more: Check, labels: int = 0) -> Report:
    """What the checks of files say of it, and further checks."""
    checks = [PASSED, Check("file_pixels", False, 1, 0, "", "", "tall.png"), *more]
    return Report({}, {}, [*checks, Check("file_labels", not labels, labels, 0, "", "")])


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("decoded", [False, True])
def test_another_pillow_is_told_from_another_network(comparison, tmp_path, name, decoded):
    versions, resizing, decoding, remedy = OTHERS[name]
    comparison, side = with_files(comparison, tmp_path)
    side = replace(side, versions=versions)
    change(side, "grey.jpg", decoded)
    change(side, "tall.png")
    cause = likely_cause(comparison, failing_files(comparison, side), {}, side)
    figures = "(2 of 9, by up to 1 of 255 in 0.033% of their pixels; other labels: 0)"
    if decoded:  # then no interpolation helps
        assert cause == f"The network is the same; photos are decoded differently {decoding} {figures}: {remedy}."
    else:
        nearest = "or train with --data.interpolation nearest"
        assert cause == (
            f"The network is the same; photos are resized differently {resizing} {figures}: {remedy}, {nearest}."
        )


def test_network_trained_with_nearest_is_not_told_to_be(comparison, tmp_path):
    comparison, side = with_files(comparison, tmp_path, "nearest")
    change(side, "tall.png")
    cause = likely_cause(comparison, failing_files(comparison, side, labels=2), {}, side)
    assert "resized differently" in cause
    assert "other labels: 2)" in cause
    assert cause.endswith("install pillow==13.0.0 there.")


def test_pillow_is_not_blamed_for_what_it_has_not_done(comparison, tmp_path):
    comparison, side = with_files(comparison, tmp_path)
    change(side, "tall.png")
    training = Check("training_steps", False, 1, 0, "", "", "dense/kernel")
    cause = likely_cause(comparison, failing_files(comparison, side, training), {}, side)
    assert cause.startswith("Photos are resized differently by")  # and no word on the network
    weights = replace(PASSED, passed=False)
    report = failing_files(comparison, side)
    report.checks[0] = weights
    assert "Pillow" not in (likely_cause(comparison, report, {}, side) or "")
    report = Report({}, {}, [Check("file_labels", False, 1, 0, "", "", "tall.png")])
    assert likely_cause(comparison, report, {}, with_files(comparison, tmp_path)[1]) is None


@pytest.mark.parametrize("interpolation", ["nearest", "bicubic", "lanczos"])
def test_photos_resized_in_another_way_name_it(comparison, tmp_path, interpolation):
    comparison, side = with_files(comparison, tmp_path)
    for index, file in enumerate(side.loaded.files):
        change(side, file.name)
        side.loaded.pixels[index] = load_photo(file, SIZE, interpolation)
    cause = likely_cause(comparison, failing_files(comparison, side), {}, side)
    assert cause == f"Keras resizes with {interpolation}, the network was trained with bilinear."


def test_photos_that_an_older_pillow_cannot_read_name_it(comparison, tmp_path):
    comparison, side = with_files(comparison, tmp_path)
    side.loaded.unreadable[0] = "cannot identify image file"
    cause = likely_cause(comparison, failing_files(comparison, side), {}, side)
    assert cause == (
        "The network is the same; photos cannot be read by Pillow 12.3.0 there: install pillow==13.0.0 there, as here."
    )
    assert likely_cause(comparison, failing_files(comparison, side), {}, replace(side, versions=OURS)) is None


def test_pillow_says_its_versions_and_an_old_one_what_it_can(monkeypatch):
    found = pillow_versions()
    assert found["pillow"] == PIL.__version__
    assert len(found) == 2
    monkeypatch.delattr("PIL.features.version_feature")
    assert pillow_versions() == {"pillow": PIL.__version__}
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert pillow_versions() == {}

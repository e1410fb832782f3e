"""The likely cause of a failure, of Kerases that are planted: none is started.

What a real Keras shows is in `test_parity.py`.
"""

from pathlib import Path

import numpy as np
import pytest

from datamodule.photo_store import load_photo
from export.proof.comparison import Comparison, Pair, read_comparison
from export.proof.diagnosis import likely_cause
from export.proof.keras_side import KerasSide, LoadedFiles
from export.proof.probe_images import write_probe_files
from export.proof.report import Check, Report
from export.proof.torch_side import torch_layers
from export.torch_to_keras import write_twin
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


def loaded_by(files: list[Path], interpolation: str, unreadable: dict[int, str]) -> KerasSide:
    pixels = np.stack([load_photo(file, SIZE, interpolation) for file in files])
    return keras_side(loaded=LoadedFiles(files, pixels, np.zeros((len(files), 4), np.float32), unreadable))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
def test_photos_resized_in_another_way_name_it(comparison, tmp_path, interpolation):
    # what cannot be read, and is zeros, says nothing of how it is resized
    gave = loaded_by(write_probe_files(tmp_path), interpolation, {0: "no reader"})
    gave.loaded.pixels[0] = 0
    cause = likely_cause(comparison, failing("file_to_label", "palette.png"), {}, gave)
    assert cause == f"Keras resizes with {interpolation}, the network was trained with nearest."


def test_photo_decoded_to_other_pixels_is_named(comparison, tmp_path):
    gave = loaded_by(write_probe_files(tmp_path), "nearest", {})
    assert (
        likely_cause(comparison, failing("file_to_label", "plain.jpg"), {}, gave) is None
    )  # another label on same pixels
    gave.loaded.pixels[4, 10, 10] ^= 1
    cause = likely_cause(comparison, failing("file_to_label", "grey.jpg"), {}, gave)
    assert cause == "Keras decodes grey.jpg to other pixels; another version of Pillow may."

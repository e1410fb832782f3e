"""The ladder against a real Keras: twins pass, and every planted difference fails on the check that should catch it.

One Keras process does all the work of this file: starting one costs ten seconds. Twins of other networks:
`test_parity_backbones.py`.
"""

import copy
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import PIL
import pytest
import torch

from datamodule.photo_store import load_photo
from export.proof.checks import check_layers, check_probabilities, check_top1
from export.proof.comparison import EXACT_IMAGES, read_comparison
from export.proof.image_sets import ImageSet
from export.proof.page import meaning_of, render_page
from export.proof.parity import Pair, check_pairs, check_parity
from export.proof.report import Check, Report, write_json
from export.proof.torch_side import torch_layers
from export.torch_to_keras import write_twin
from export.worker.keras_process import KerasFailed, run_keras
from models.bad_input import BadInput
from tests.conftest import lightning, photos_of, random_classifier, save_checkpoint
from tests.datamodule.odd_photos import draw_odd_photos

pytestmark = pytest.mark.keras

# Negative controls ----------------------------------------------------------------------------------------------------

# Read by their content on our side; the tests of the data module look at them.
KERAS_CANNOT_READ: set[str] = set()


def change_array(path: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    def apply(h5: Path) -> None:
        with h5py.File(h5, "r+") as file:
            dataset = file["model_weights"][path]
            dataset[...] = change(dataset[()])

    return apply


def one_ulp(array: np.ndarray) -> np.ndarray:
    changed = array.copy()
    changed.flat[0] = np.nextafter(changed.flat[0], np.float32(np.inf))
    return changed


def change_layers(change: Callable[[dict[str, dict]], None]) -> Callable[[Path], None]:
    def apply(h5: Path) -> None:
        with h5py.File(h5, "r+") as file:
            config = json.loads(file.attrs["model_config"])
            change({layer["name"]: layer["config"] for layer in config["config"]["layers"]})
            file.attrs["model_config"] = json.dumps(config).encode()

    return apply


def shift_padding(layers: dict[str, dict]) -> None:
    layers["Conv1_pad"]["padding"] = [[0, 2], [0, 2]]


def flip_to_same(layers: dict[str, dict]) -> None:
    layers["Conv1_pad"]["padding"] = [[0, 0], [0, 0]]
    layers["Conv1"]["padding"] = "same"


def change_json(attribute: str, change: Callable[[dict], None]) -> Callable[[Path], None]:
    def apply(h5: Path) -> None:
        with h5py.File(h5, "r+") as file:
            content = json.loads(file.attrs[attribute])
            change(content)
            file.attrs[attribute] = json.dumps(content).encode()

    return apply


def statistics_of_another_layer(h5: Path) -> None:
    with h5py.File(h5, "r+") as file:
        weights = file["model_weights"]
        for name in ("moving_mean:0", "moving_variance:0"):
            other = weights[f"block_1_expand_BN/block_1_expand_BN/{name}"][()]
            weights[f"block_1_depthwise_BN/block_1_depthwise_BN/{name}"][...] = other


def swap_channels(layers: dict[str, dict]) -> None:
    for key in ("scale", "offset"):
        layers["normalise"][key] = layers["normalise"][key][::-1]


# What is changed in the `.h5`: by what, the check that must catch it first, what it must name, and the likely cause
# that the report must give.
CONTROLS = {
    "one weight off by one ulp": (
        change_array("block_5_expand/block_5_expand/kernel:0", one_ulp),
        "weights", "block_5_expand/kernel", "1 of 1536 numbers",
    ),
    "a moving mean of another sign": (
        change_array("block_2_project_BN/block_2_project_BN/moving_mean:0", np.negative),
        "weights", "block_2_project_BN/moving_mean", "8 of 8 numbers",
    ),
    "BatchNorm statistics of another layer": (
        statistics_of_another_layer,
        "weights", "block_1_depthwise_BN/moving_mean", "holds what belongs to block_1_expand_BN/moving_mean",
    ),
    "depthwise kernel transposed": (
        change_array("block_3_depthwise/block_3_depthwise/depthwise_kernel:0", lambda a: a.transpose(1, 0, 2, 3)),
        "weights", "block_3_depthwise/depthwise_kernel", "rows and columns exchanged",
    ),
    "padding shifted": (change_layers(shift_padding), "layers_float64", "Conv1", "padded by 0 above"),
    "padding flipped to SAME": (change_layers(flip_to_same), "layers_float64", "Conv1", "TensorFlow's SAME"),
    "epsilon 1e-3 for 1e-5": (
        change_layers(lambda layers: layers["block_4_expand_BN"].update(epsilon=1e-3)),
        "layers_float64", "block_4_expand_BN", "its epsilon is 0.001, not 1e-05",
    ),
    "another ceiling than ReLU6's": (
        change_layers(lambda layers: layers["block_1_expand_relu"].update(max_value=1.0)),
        "layers_float64", "block_1_expand_relu", "its ceiling is 1.0, not 6.0",
    ),
    "channels swapped": (change_layers(swap_channels), "layers_float64", "normalise", "BGR for RGB"),
    "class order permuted": (
        change_json("shelftwin", lambda details: details["class_names"].reverse()),
        "labels", "class_names", "another order",
    ),
    "resized with another interpolation": (
        change_json("shelftwin", lambda details: details.update(interpolation="bilinear")),
        "labels", "interpolation", "resized with bilinear, the network was trained with nearest",
    ),
    "another learning rate": (
        change_json("training_config", lambda it: it["optimizer_config"]["config"].update(learning_rate=2e-3)),
        "training_steps", "dense/kernel", "training configuration",
    ),
    "Adam's epsilon in torch's place": (
        change_json("training_config", lambda it: it["optimizer_config"]["config"].update(epsilon=1e-7 * 0.001**0.5)),
        "training_steps", "dense/kernel", "training configuration",
    ),
}  # fmt: skip


def fold_with_one_ulp(h5: Path) -> None:
    write_twin(h5.with_name("best.ckpt"), h5, fuse_batchnorm=True)
    change_array("block_5_expand/block_5_expand/kernel:0", one_ulp)(h5)


CONTROLS["folded, one weight off by one ulp"] = (fold_with_one_ulp, "weights", "block_5_expand/kernel", "1 of 1536")


TUNED = {"batch_norm": "frozen", "backbone_factor": 0.3}


@pytest.fixture(scope="module")
def control_reports(tmp_path_factory) -> dict[str, Report]:
    folder = tmp_path_factory.mktemp("controls")
    network = random_classifier(backbone="mobilenetv2_short", mean=(0.3, 0.4, 0.5), std=(0.2, 0.3, 0.4))
    checkpoint = save_checkpoint(folder / "best.ckpt", network, (64, 64))
    twin = write_twin(checkpoint, folder / "unchanged.h5").path
    odd = [path for name, path in draw_odd_photos(folder / "odd").items() if name not in KERAS_CANNOT_READ]

    def pair_with(h5: Path) -> Pair:
        return Pair(checkpoint, h5, photos_of((64, 64)), photo_files=odd, load_photo=load_photo)

    folded = write_twin(checkpoint, folder / "folded.h5", fuse_batchnorm=True).path
    first = copy.deepcopy(network)
    with torch.no_grad():
        network.head.predictions.bias[0] += 60
    certain = save_checkpoint(folder / "certain.ckpt", network, (64, 64))
    certain_twin = write_twin(certain, folder / "certain.h5").path
    tuned = save_checkpoint(folder / "tuned.ckpt", first, (64, 64), trainable="all", schedule=TUNED)
    pairs = [pair_with(twin), pair_with(folded), Pair(certain, certain_twin, photos_of((64, 64)))]
    for name, fuse in (("tuned", False), ("tuned and folded", True), ("tuned, another learning rate", False)):
        tuned_twin = write_twin(tuned, folder / f"{name}.h5", fuse_batchnorm=fuse).path
        pairs.append(Pair(tuned, tuned_twin, photos_of((64, 64))))
    change_json("training_config", lambda it: it["optimizer_config"]["config"].update(learning_rate=2e-3))(tuned_twin)
    slow = save_checkpoint(folder / "slow.ckpt", first, (64, 64), trainable="all", learning_rate=1e-6, schedule=TUNED)
    for name in ("slow", "slow, another learning rate"):
        slow_twin = write_twin(slow, folder / f"{name}.h5").path
        pairs.append(Pair(slow, slow_twin, photos_of((64, 64))))
    change_json("training_config", lambda it: it["optimizer_config"]["config"].update(learning_rate=3.3e-7))(slow_twin)
    for number, (change, *_) in enumerate(CONTROLS.values()):
        changed = Path(shutil.copy(twin, folder / f"{number}.h5"))
        change(changed)
        pairs.append(pair_with(changed))
    names = ["unchanged", "folded", "certain", "tuned", "tuned and folded", "tuned, another learning rate"]
    names += ["slow", "slow, another learning rate"]
    return dict(zip([*names, *CONTROLS], check_pairs(pairs), strict=True))


@pytest.mark.parametrize("name", ["unchanged", "folded"])
def test_the_unchanged_file_passes(control_reports, name):
    assert control_reports[name].verdict == "PASS", control_reports[name].failed
    assert [check.name for check in control_reports[name].checks][-4:] == [
        "file_pixels",
        "file_labels",
        "training_steps",
        "contents",
    ]


def test_network_that_is_trained_as_a_whole_goes_on_in_keras(control_reports):
    report = control_reports["tuned"]
    assert report.verdict == "PASS", report.failed
    (check,) = [check for check in report.checks if check.name == "training_steps"]
    assert "in 1 step" in check.detail
    assert int(check.detail.split()[0]) > 20  # the convolutions', too
    folded = control_reports["tuned and folded"]
    assert folded.verdict == "PASS", folded.failed
    assert list(folded.skipped) == ["training_steps"]
    wrong = control_reports["tuned, another learning rate"]
    assert {check.name for check in wrong.failed} == {"training_steps", "contents"}
    assert "training configuration" in (wrong.likely_cause or "")


def test_steps_shorter_than_what_passes_otherwise_are_compared_all_the_same(control_reports):
    report = control_reports["slow"]
    assert report.verdict == "PASS", report.failed
    (check,) = [check for check in report.checks if check.name == "training_steps"]
    assert int(check.detail.split()[0]) > 20
    assert check.threshold == pytest.approx(3e-9)
    assert {check.name for check in control_reports["slow, another learning rate"].failed} == {
        "training_steps",
        "contents",
    }


def test_network_that_is_certain_of_everything_passes_and_is_not_trained(control_reports):
    """Keras cuts probabilities at 1e-7, so its gradient is nothing where torch's is something."""
    report = control_reports["certain"]
    assert report.verdict == "PASS", report.failed
    assert list(report.skipped) == ["training_steps"]
    assert "1 skipped" in report.last_line()


def test_network_that_is_certain_of_a_photo_learns_from_another_image(small_checkpoint, tmp_path, monkeypatch):
    given = np.full((2 + 8, 4), 0.25, np.float32)
    given[0] = (1 - 3e-6, 1e-6, 1e-6, 1e-6)  # the first photo
    given[1] = (0.9, 0.1, 0, 0)
    monkeypatch.setattr("export.proof.comparison.torch_probabilities", lambda network, batches: given)
    comparison = read_comparison(
        Pair(small_checkpoint, write_twin(small_checkpoint, tmp_path / "m.h5").path, photos_of((48, 40)))
    )
    assert np.array_equal(comparison.training_steps.images, [comparison.exact_images[1], comparison.sets[0].images[0]])
    assert comparison.training_steps.targets.argmax(axis=1).tolist() == [0, 0]
    given[1:] = given[0]
    del comparison.__dict__["training_steps"]
    assert "certain of every image" in comparison.training_steps


@pytest.mark.parametrize("name", CONTROLS)
def test_planted_difference_is_caught_and_named(control_reports, name):
    _, check_name, named, cause = CONTROLS[name]
    report = control_reports[name]
    assert report.verdict == "FAIL"
    caught = next(check for check in report.checks if check.name == check_name)
    assert not caught.passed
    assert named in (caught.first_divergence or "")
    assert report.failed[0].name == check_name
    assert cause in (report.likely_cause or "")
    assert f"parity FAIL: {check_name} at " in report.last_line()
    assert cause in report.last_line()


def test_photos_are_loaded_as_the_file_says(control_reports):
    """So another interpolation is not only read off the labels, but seen in the pixels."""
    failed = {check.name: check for check in control_reports["resized with another interpolation"].failed}
    assert failed["file_pixels"].first_divergence == "plain.jpg"


def test_report_is_written_as_json_with_figures_and_thresholds(control_reports, tmp_path):
    both = [control_reports["unchanged"], control_reports["epsilon 1e-3 for 1e-5"]]
    write_json(both[:1], tmp_path / "parity.json")
    content = json.loads((tmp_path / "parity.json").read_text())
    assert (content["schema"], content["verdict"]) == (2, "PASS")
    (report,) = content["reports"]
    assert {"name", "passed", "figure", "threshold"} <= report["rungs"][0].keys()
    assert report["versions"]["keras"]["keras"]
    assert report["versions"]["torch"]["torch"] == torch.__version__.split("+")[0]
    for side in ("torch", "keras"):
        assert report["versions"][side]["pillow"] == PIL.__version__
        assert {"libjpeg", "libjpeg-turbo"} & report["versions"][side].keys()
    assert len(report["photos"]) == 3
    assert report["skipped"] == {}
    write_json(both, tmp_path / "parity.json")
    assert json.loads((tmp_path / "parity.json").read_text())["verdict"] == "FAIL"
    assert [path.name for path in tmp_path.iterdir()] == ["parity.json"]


def test_page_shows_verdict_layers_photos_and_cause_and_needs_nothing_else(control_reports):
    good = render_page([control_reports["unchanged"]])
    assert "Twins: PASS" in good
    assert good.count("<circle") == len(control_reports["unchanged"].layers)
    assert good.count("data:image/jpeg") == 3
    bad = render_page([control_reports["unchanged"], control_reports["epsilon 1e-3 for 1e-5"]])
    assert "Twins: FAIL" in bad
    assert "its epsilon is 0.001" in bad
    assert 'class="bad"' in bad
    assert 'class="bad"' not in good
    assert "http" not in good
    assert all(meaning_of(check.name) for check in control_reports["unchanged"].checks)


# What needs no Keras process --------------------------------------------------------------------------------------


def images_of(count: int) -> ImageSet:
    return ImageSet("photos", np.zeros((count, 2, 2, 3), np.uint8), [f"photo {number}" for number in range(count)])


def test_not_a_number_agrees_with_nothing():
    same = np.full((2, 4), 0.25, np.float32)
    broken = same.copy()
    broken[1] = np.nan
    check = check_probabilities(images_of(2), same, broken)
    assert (check.passed, check.first_divergence) == (False, "photo 1")
    both = check_probabilities(images_of(2), broken, broken)
    assert not both.passed


def test_a_negative_difference_counts_as_much_as_a_positive_one():
    low, high = np.full((1, 2), 0.4, np.float32), np.full((1, 2), 0.6, np.float32)
    assert not check_probabilities(images_of(1), low, high).passed
    assert not check_probabilities(images_of(1), high, low).passed


def test_one_label_of_many_fails_top1():
    torch_gave = np.eye(4, dtype=np.float32)
    keras_gave = torch_gave[[0, 1, 3, 3]]
    check = check_top1(images_of(4), torch_gave, keras_gave)
    assert (check.passed, check.figure, check.first_divergence) == (False, 0.75, "photo 2")


def test_nothing_checked_is_no_pass():
    assert Report({}, {}).verdict == "FAIL"
    assert Report({}, {}, [Check("a", True, 0, 0, "", ""), Check("b", False, 1, 0, "", "")]).verdict == "FAIL"


def test_file_that_is_the_twin_of_another_size_is_refused(small_checkpoint, tmp_path):
    other = save_checkpoint(tmp_path / "o.ckpt", random_classifier(backbone="mobilenetv2_short"), (64, 64))
    twin = write_twin(other, tmp_path / "o.h5")
    with pytest.raises(BadInput, match="twin of another checkpoint"):
        check_parity(Pair(small_checkpoint, twin.path))


def test_photos_of_another_size_are_refused(small_checkpoint, tmp_path):
    twin = write_twin(small_checkpoint, tmp_path / "m.h5")
    with pytest.raises(BadInput, match="expected photos as uint8"):
        check_parity(Pair(small_checkpoint, twin.path, photos_of((64, 64))))


def test_without_photos_every_layer_still_sees_the_order_of_channels(tmp_path):
    """Where all channels are normalised alike, nothing but a colour tells them from each other."""
    network = random_classifier(backbone="mobilenetv2_short", mean=0.5, std=0.5)
    checkpoint = save_checkpoint(tmp_path / "a.ckpt", network, (48, 48))
    comparison = read_comparison(Pair(checkpoint, write_twin(checkpoint, tmp_path / "a.h5").path))

    def check(images: np.ndarray) -> Check:
        """Of a Keras side that takes BGR for RGB."""
        rgb, bgr = (torch_layers(network, comparison.graph, each) for each in (images, images[..., ::-1].copy()))
        return check_layers(comparison.graph, rgb, bgr)[0]

    assert len(comparison.exact_images) == EXACT_IMAGES
    assert not check(comparison.exact_images).passed
    assert check(comparison.exact_images).first_divergence == "normalise"
    # the control: images that would not see it
    assert check(comparison.sets[0].exact(EXACT_IMAGES)).passed


def interpreter(folder: Path, script: str) -> Path:
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_interpreter_that_is_missing_crashes_or_hangs_is_reported(tmp_path):
    with pytest.raises(BadInput, match="does not exist"):
        run_keras([], python=tmp_path / "python")
    with pytest.raises(KerasFailed, match="SIGKILL"):
        run_keras([], python=interpreter(tmp_path, "kill -9 $$"))
    with pytest.raises(KerasFailed, match="longer than its limit"):
        run_keras([], python=interpreter(tmp_path, "exec sleep 30"), time_limit=0.5)


# Run by Python before anything else: a Pillow that calls itself another and resizes tall photos by one otherwise.
ANOTHER_PILLOW = """
import PIL
from PIL import Image
resize = Image.Image.resize
def resized(photo, *arguments, **more):
    result = resize(photo, *arguments, **more)
    return result.point(lambda value: min(value + 1, 255)) if photo.height > photo.width else result
Image.Image.resize, PIL.__version__ = resized, "12.3.0"
"""


@pytest.mark.keras
def test_another_pillow_fails_the_pixels_and_is_told_from_another_network(tmp_path, capsys):
    network = random_classifier(backbone="mobilenetv2_short")
    checkpoint = save_checkpoint(tmp_path / "best.ckpt", network, (48, 40), interpolation="bilinear")
    twin = write_twin(checkpoint, tmp_path / "m.h5").path
    (tmp_path / "stub").mkdir()
    (tmp_path / "stub" / "sitecustomize.py").write_text(ANOTHER_PILLOW)
    python = interpreter(tmp_path, f'PYTHONPATH="{tmp_path / "stub"}" exec "{sys.executable}" "$@"')
    photos, report, page = tmp_path / "photos", tmp_path / "parity.json", tmp_path / "parity.html"
    photos.mkdir()
    for name, (width, height) in {"tall": (60, 120), "wide": (120, 60)}.items():
        pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(photos / f"{name}.png")
    given = ["--photos", photos, "--keras_python", python, "--json", report, "--html", page]
    assert lightning("parity", checkpoint, twin, *given) == 1
    (result,) = json.loads(report.read_text())["reports"]
    failed = {check["name"]: check for check in result["rungs"] if not check["passed"]}
    assert failed.keys() == {"file_pixels"}
    assert failed["file_pixels"]["figure"] == 2  # of probe photos and ours, the tall ones
    assert failed["file_pixels"]["first_divergence"] == "tall.png"
    assert re.search(r"for 2, by up to 1 of 255 in (100|9\d)% of their pixels", failed["file_pixels"]["detail"])
    (labels,) = [check for check in result["rungs"] if check["name"] == "file_labels"]
    assert "for 11 of 11 photos" in labels["detail"]
    assert float(re.search(r"difference of a probability (\S+), for tall.png", labels["detail"])[1]) > 1e-5
    assert (result["versions"]["torch"]["pillow"], result["versions"]["keras"]["pillow"]) == (PIL.__version__, "12.3.0")
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith(
        "parity FAIL: file_pixels at tall.png. The network is the same; photos are resized differently by Pillow "
        f"12.3.0 there and Pillow {PIL.__version__} here (2 of 11, by up to 1 of 255"
    )
    assert said.endswith(
        f"other labels: 0): install pillow=={PIL.__version__} there, or train with --data.interpolation nearest."
    )
    assert "The network is the same; photos are resized differently" in page.read_text()
    assert "pillow 12.3.0" in page.read_text()


@pytest.mark.keras
def test_layer_that_claims_more_than_the_file_has_is_refused_before_it_is_built(small_checkpoint, tmp_path):
    twin = write_twin(small_checkpoint, tmp_path / "m.h5").path
    with h5py.File(twin, "r+") as file:
        file.attrs["model_config"] = re.sub(r'"units": 4\b', '"units": 2000000000', file.attrs["model_config"])
    with pytest.raises(BadInput, match=r"layer predictions asks for weights of shape .*2000000000"):
        check_parity(Pair(small_checkpoint, twin))


def test_lambda_layer_is_refused_before_keras_sees_it(small_checkpoint, tmp_path):
    twin = write_twin(small_checkpoint, tmp_path / "m.h5").path
    with h5py.File(twin, "r+") as file:
        file.attrs["model_config"] = file.attrs["model_config"].replace('"ReLU"', '"Lambda"')
    with pytest.raises(BadInput, match="refused because they could run code: Lambda"):
        check_parity(Pair(small_checkpoint, twin))


WITHOUT_WEBP = """
import PIL.features, PIL.WebPImagePlugin
check = PIL.features.check
PIL.features.check = lambda name: name != "webp" and check(name)
PIL.WebPImagePlugin.SUPPORTED = False
"""


@pytest.mark.keras
def test_webp_is_left_out_where_the_consumers_pillow_lacks_it(tmp_path):
    network = random_classifier(backbone="mobilenetv2_short")
    checkpoint = save_checkpoint(tmp_path / "best.ckpt", network, (48, 40))
    twin = write_twin(checkpoint, tmp_path / "m.h5").path
    (tmp_path / "stub").mkdir()
    (tmp_path / "stub" / "sitecustomize.py").write_text(WITHOUT_WEBP)
    python = interpreter(tmp_path, f'PYTHONPATH="{tmp_path / "stub"}" exec "{sys.executable}" "$@"')
    photos, report = tmp_path / "photos", tmp_path / "parity.json"
    photos.mkdir()
    for name in ("a.webp", "b.png"):
        PIL.Image.new("RGB", (60, 50), "navy").save(photos / name)
    given = ["--photos", photos, "--keras_python", python, "--json", report]
    assert lightning("parity", checkpoint, twin, *given) == 0
    (result,) = json.loads(report.read_text())["reports"]
    details = {check["name"]: check["detail"] for check in result["rungs"]}
    for name in ("file_pixels", "file_labels"):
        assert details[name].endswith("; not compared: 1 WebP, which Keras's Pillow there was built without")

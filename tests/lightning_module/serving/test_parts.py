"""The parts of the service by themselves: batches, explanations, files that belong together."""

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from export.worker.keras_process import KerasFailed
from lightning_module.evaluation.labelling import Labelling
from lightning_module.serving import served_twin
from lightning_module.serving.explanation import CELLS, PhotoFacts, Said, covered, explain, saliency
from lightning_module.serving.limits import Refused, Room
from lightning_module.serving.model_facts import Confusion, model_facts
from lightning_module.serving.served_files import find_files, make_labellers
from lightning_module.serving.served_twin import ServedTwin, TwinDown
from models.bad_input import BadInput
from tests.conftest import CLASS_NAMES, ROOT, lightning, random_classifier, save_checkpoint
from tests.lightning_module.serving.conftest import COUNTS, Told

UPRIGHT = PhotoFacts(64, 64, 1, False)


def photo(label: int) -> np.ndarray:
    return np.full((4, 4, 3), label, np.uint8)


def started(twin: ServedTwin) -> ServedTwin:
    twin.start()
    twin.labeller.sizes.clear()
    return twin


def test_a_twin_computes_what_waits_and_answers_each_its_own():
    begin = threading.Event()
    began = threading.Event()

    def before(photos):
        began.set()
        begin.wait(10)

    begin.set()
    twin = started(ServedTwin(Told(before), batch_size=4))
    begin.clear()
    began.clear()
    first = twin.submit(photo(0), 1)
    assert began.wait(10)
    futures = [twin.submit(photo(each % 4), 1 + each % 3) for each in range(9)]
    begin.set()
    assert [int(each.result(10).classes[0]) for each in futures] == [each % 4 for each in range(9)]
    assert [len(each.result().classes) for each in futures] == [1 + each % 3 for each in range(9)]
    assert first.result().classes.tolist() == [0]
    assert twin.labeller.sizes == [1, 4, 4, 1]
    twin.close()
    assert twin.labeller.entered == 0


def test_a_twin_waits_for_others_only_while_they_are_coming():
    coming = [True]
    twin = started(ServedTwin(Told(), batch_size=2, patience=0.5, others_coming=lambda: coming[0]))
    with ThreadPoolExecutor(1) as pool:
        first = twin.submit(photo(0), 1)
        time.sleep(0.05)
        second = pool.submit(twin.submit, photo(1), 1).result()
        assert [int(each.result(10).classes[0]) for each in (first, second)] == [0, 1]
    assert twin.labeller.sizes == [2]
    coming[0] = False
    began = time.monotonic()
    twin.submit(photo(0), 1).result(10)
    assert time.monotonic() - began < 0.4
    twin.close()


def test_whoever_leaves_while_waiting_is_not_computed():
    begin, began = threading.Event(), threading.Event()
    begin.set()

    def before(photos):
        began.set()
        begin.wait(10)

    twin = started(ServedTwin(Told(before), batch_size=4))
    begin.clear()
    began.clear()
    first = twin.submit(photo(0), 1)
    assert began.wait(10)
    left, last = (twin.submit(photo(each), 1) for each in (1, 2))
    cancelled = left.cancel()
    begin.set()
    assert [int(each.result(10).classes[0]) for each in (first, last)] == [0, 2]
    assert cancelled
    assert twin.labeller.sizes == [1, 1]
    twin.close()


def test_a_twin_that_crashes_refuses_and_starts_again():
    crash = []

    def before(photos):
        if crash:
            raise KerasFailed(crash.pop())

    twin = started(ServedTwin(Told(before), batch_size=2))
    crash.append("it was killed\nand more")
    with pytest.raises(TwinDown, match=r"it was killed$"):
        twin.submit(photo(0), 1).result(10)
    until = time.monotonic() + 10
    while twin.down is not None and time.monotonic() < until:
        time.sleep(0.01)
    assert twin.submit(photo(3), 1).result(10).classes.tolist() == [3]
    twin.close()


def test_a_twin_that_hangs_is_said_to(monkeypatch):
    monkeypatch.setattr(served_twin, "LONGEST_BATCH", 0.1)
    begin = threading.Event()
    begin.set()
    twin = started(ServedTwin(Told(lambda photos: begin.wait(10))))
    assert twin.stuck() is None
    begin.clear()
    future = twin.submit(photo(0), 1)
    until = time.monotonic() + 10
    while twin.stuck() is None and time.monotonic() < until:
        time.sleep(0.02)
    assert "one batch" in twin.stuck()
    begin.set()
    future.result(10)
    twin.close()
    assert twin.stuck() is None


def test_a_fault_is_told_to_whoever_asked_and_the_next_is_answered():
    faults = []

    def before(photos):
        if faults:
            raise ValueError(faults.pop())

    twin = started(ServedTwin(Told(before)))
    faults.append("planted")
    with pytest.raises(ValueError, match="planted"):
        twin.submit(photo(0), 1).result(10)
    assert twin.submit(photo(2), 1).result(10).classes.tolist() == [2]
    twin.close()


def test_what_is_waiting_at_the_end_is_answered():
    twin = started(ServedTwin(Told(lambda photos: time.sleep(0.02)), batch_size=1))
    futures = [twin.submit(photo(each), 1) for each in range(4)]
    twin.close()
    assert [int(each.result(0).classes[0]) for each in futures] == [0, 1, 2, 3]


def test_room_is_given_back():
    room = Room(10, "bytes")
    with room.held() as share:
        share.grow(6)
        share.grow(4)
        with pytest.raises(Refused, match="10 of 10 bytes"), room.held() as other:
            other.grow(1)
        assert room.taken == 10
    assert room.taken == 0


def looks_at(rows: slice, columns: slice):
    """A network that says class 1 the surer, the brighter one part is."""

    def probabilities(photos: np.ndarray) -> np.ndarray:
        light = photos[:, rows, columns].mean(axis=(1, 2, 3)) / 255
        first = 0.1 + 0.8 * light
        rest = (1 - first) / 3
        return np.stack([rest, first, rest, rest], axis=1).astype(np.float32)

    return probabilities


@pytest.mark.parametrize(("row", "column"), [(0, 0), (3, 6), (7, 7)])
def test_the_map_is_brightest_where_the_network_looks(row, column):
    pixels = np.zeros((64, 80, 3), np.uint8)
    part = slice(8 * row, 8 * row + 8), slice(10 * column, 10 * column + 10)
    pixels[part] = 255
    network = looks_at(*part)
    explained = explain(pixels, UPRIGHT, Said(1, 0.9), network, CLASS_NAMES, True)
    cells = np.array(explained["saliency"])
    assert cells.shape == (CELLS, CELLS)
    assert np.unravel_index(cells.argmax(), cells.shape) == (row, column)
    assert cells.max() == 1
    assert cells[np.abs(np.arange(CELLS) - row) > 1].max(initial=0) == 0
    assert explained["covered"]["probability"] < 0.2


def test_a_photo_on_which_nothing_matters_has_an_empty_map():
    """Rounding, which depends on a photo's place in its batch, is not what the network looks at."""
    noise = np.random.default_rng(0)

    def probabilities(photos: np.ndarray) -> np.ndarray:
        first = 0.7 + noise.uniform(-1e-6, 1e-6, len(photos))
        return np.stack([first, *[(1 - first) / 3] * 3], axis=1).astype(np.float32)

    explained = explain(np.full((48, 40, 3), 9, np.uint8), UPRIGHT, Said(0, 0.7), probabilities, CLASS_NAMES, True)
    assert np.max(explained["saliency"]) == 0
    assert explained["covered"]["probability"] == explained["probability"]


def test_covering_is_seen_to_cover():
    pixels = np.random.default_rng(0).integers(0, 256, (48, 40, 3), np.uint8)
    copies = covered(pixels)
    assert copies.shape == (49, 48, 40, 3)
    changed = (copies != pixels).any(axis=3)
    assert changed.any(axis=0).all()  # every pixel is covered by some
    assert changed.mean(axis=(1, 2)) == pytest.approx(np.full(49, 1 / 16), abs=0.01)
    assert saliency(0.9, np.full(49, 0.9)).max() == 0
    assert saliency(0.9, np.full(49, 0.95)).max() == 0  # what speaks against the label is not looked at
    one = np.full(49, 0.9)
    one[0] = 0.5
    assert saliency(0.9, one).argmax() == 0


def always(*probabilities: float):
    return lambda photos: np.tile(np.array(probabilities, np.float32), (len(photos), 1))


REASONS = {
    "close_second": (always(0.5, 0.45, 0.03, 0.02), UPRIGHT, 0),
    "many_classes": (always(0.4, 0.3, 0.2, 0.1), UPRIGHT, 0),
    "confused_in_validation": (always(0.1, 0.05, 0.8, 0.05), UPRIGHT, 2),
    "enlarged": (always(0.97, 0.01, 0.01, 0.01), PhotoFacts(30, 30, 1, False), 0),
    "stretched": (always(0.97, 0.01, 0.01, 0.01), PhotoFacts(640, 200, 1, False), 0),
    "sideways": (always(0.97, 0.01, 0.01, 0.01), PhotoFacts(64, 64, 6, False), 0),
    "transparent": (always(0.97, 0.01, 0.01, 0.01), PhotoFacts(64, 64, 1, True), 0),
}


@pytest.mark.parametrize("code", [*REASONS, None])
def test_each_reason_is_found_where_it_is_so(code):
    """And no other; without a reason, none is found."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    network, facts, best = REASONS.get(code, (always(0.97, 0.01, 0.01, 0.01), UPRIGHT, 0))
    said = Said(best, float(network(pixels[None])[0, best]))
    explained = explain(pixels, facts, said, network, CLASS_NAMES, True, None, Confusion("validation", COUNTS))
    assert [each["code"] for each in explained["reasons"]] == ([code] if code else [])
    assert explained["unsure"] == (said.probability < 0.8)
    if code == "confused_in_validation":
        assert (
            explained["reasons"][0] | {"label": "tshirt", "other": "tv", "count": 5, "photos": 15}
            == (explained["reasons"][0])
        )


def test_what_covering_and_turning_change():
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:, :24] = 200

    def left_is_light(photos):
        light = photos[:, :, :24].mean(axis=(1, 2, 3), dtype=float)
        first = np.where(light > 150, 0.6, 0.01)
        return np.stack([first, 0.97 - first + 0.01, *[np.full(len(photos), 0.01)] * 2], axis=1).astype(np.float32)

    explained = explain(pixels, UPRIGHT, Said(0, 0.6), left_is_light, CLASS_NAMES, True)
    codes = [each["code"] for each in explained["reasons"]]
    assert {"mirrored", "turned_left", "turned_round", "turned_right"} <= {*codes}
    assert all(each["label"] == "sofa" for each in explained["reasons"] if each["code"].startswith("turned"))


def test_files_are_found(run, tmp_path):
    best, h5 = run / "best.ckpt", run / "model.h5"
    assert find_files([run], None) == find_files([h5, best], None) == ([best], h5)
    assert find_files([run], "torch") == ([best], None)
    assert find_files([run], "keras") == find_files([h5], None) == ([], h5)
    assert find_files([best], None) == ([best], None)
    (tmp_path / "model.onnx").write_bytes(b"any")
    for files, twin, said in (
        ([tmp_path], None, "neither best.ckpt nor model.h5"),
        ([best, best], None, "one checkpoint and one .h5"),
        ([best, h5, h5], None, "one checkpoint and one .h5"),
        ([best], "both", "--twin both"),
        ([h5], "torch", "--twin torch"),
        ([best], "keras", "--twin keras"),
        ([tmp_path / "none"], None, "none"),
        ([tmp_path / "model.onnx"], None, "which is onnx"),
    ):
        with pytest.raises(BadInput, match=said):
            find_files(files, twin)


def test_an_h5_that_is_none_is_not_called_a_checkpoint(tmp_path):
    damaged = tmp_path / "model.h5"
    damaged.write_text("some text")
    with pytest.raises(BadInput, match=r"expected a Keras \.h5, as its name says"):
        make_labellers(find_files([damaged], None))


def test_twins_belong_together(run, tmp_path):
    other = random_classifier(seed=1, backbone="mobilenetv2_short", hidden=(16,), mean=0.5, std=0.5)
    stranger = save_checkpoint(tmp_path / "best.ckpt", other, (48, 40))
    with pytest.raises(BadInput, match="another checkpoint"):
        make_labellers(find_files([stranger, run / "model.h5"], None))


def test_the_calibrated_checkpoint_is_taken_where_the_h5_is_its(run, tmp_path):
    import shutil

    folder = tmp_path / "RUN"
    shutil.copytree(run, folder)
    (folder / "best.ckpt").rename(folder / "calibrated.ckpt")
    other = random_classifier(seed=1, backbone="mobilenetv2_short", hidden=(16,), mean=0.5, std=0.5)
    save_checkpoint(folder / "best.ckpt", other, (48, 40))
    files = find_files([folder], None)
    facts = model_facts(files, make_labellers(files, "cpu"), Labelling())
    assert facts.content["twins"]["torch"]["file"] == "calibrated.ckpt"


def test_figures_of_another_checkpoint_are_not_shown(run, tmp_path):
    import shutil

    folder = tmp_path / "RUN"
    shutil.copytree(run, folder)
    files = find_files([folder], "torch")
    assert model_facts(files, make_labellers(files, "cpu"), Labelling()).content["accuracy"]["value"] == 0.825
    metrics = folder / "metrics.json"
    metrics.write_text(metrics.read_text().replace(facts_digest(metrics), "0" * 64))
    facts = model_facts(files, make_labellers(files, "cpu"), Labelling())
    assert facts.content["accuracy"] is facts.confusion is None
    assert facts.content["parity"]["verdict"] == "PASS"
    for broken in ("", "[1]", "{"):
        metrics.write_text(broken)
        assert model_facts(files, make_labellers(files, "cpu"), Labelling()).content["accuracy"] is None


def facts_digest(metrics: Path) -> str:
    import json

    return json.loads(metrics.read_text())["final"]["checkpoint_sha256"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--port", "70000"], "--host and --port"),
        (["--host", "no.such.host.invalid"], "--host and --port"),
        (["--batch_size", "0"], "--batch_size"),
        (["--max_megapixels", "65"], "at most 64"),
        (["--min_probability", "2"], "--min_probability"),
        (["--labels", "labels.json", "--twin", "torch"], "--labels"),
        (["--twin", "onnx"], "--twin"),
        (["--top", "5"], "--top"),
    ],
)
def test_what_cannot_be_served_is_bad_input(run, options, said, capsys):
    assert lightning("serve", run, *options) == 2
    assert said in capsys.readouterr().err


def test_a_missing_package_is_named(run, monkeypatch, capsys):
    from lightning_module.commands import serve

    find = serve.importlib.util.find_spec
    monkeypatch.setattr(serve.importlib.util, "find_spec", lambda name: None if name == "uvicorn" else find(name))
    assert lightning("serve", run) == 2
    assert "-m pip install uvicorn" in capsys.readouterr().err


def test_a_keras_file_is_served_without_torch():
    code = (
        "import sys\nfrom lightning_module.commands import serve\nfrom lightning_module.serving import app, server\n"
        "print(*sorted({'torch', 'timm', 'lightning', 'keras', 'tensorflow', 'matplotlib'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""

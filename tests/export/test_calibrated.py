import json
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodule.demo_photos import draw_catalogue
from export.calibrated import write_calibrated
from export.checkpoint import read_checkpoint
from export.fitted_temperature import fitted_temperature
from export.keras_file.read import read_keras_h5
from export.proof.report import Check, Report
from export.torch_to_keras import write_twin
from lightning_module.evaluation.labellers import KerasFileLabeller
from models.bad_input import BadInput
from models.digests import file_digest
from tests.conftest import lightning

TEMPERATURE = 2.5
CHECK = Check("for the test", True, 0.0, 0.0, "faults", "none")


@pytest.fixture
def run(small_checkpoint, tmp_path) -> Path:
    """A run's folder with a checkpoint, and the figures of its evaluation."""
    (tmp_path / "best.ckpt").write_bytes(small_checkpoint.read_bytes())
    figures = {
        "temperature": TEMPERATURE,
        "temperature_mistakes": 9,
        "checkpoint_sha256": file_digest(tmp_path / "best.ckpt"),
    }
    (tmp_path / "metrics.json").write_text(json.dumps({"final": figures}))
    return tmp_path


def images(count: int = 6) -> torch.Tensor:
    return torch.rand(count, 3, 48, 40, generator=torch.Generator().manual_seed(0))


def test_calibrated_logits_are_the_logits_divided_and_labels_stay(run):
    write_calibrated(run / "best.ckpt", run / "calibrated.ckpt", TEMPERATURE)
    before, after = (read_checkpoint(run / name) for name in ("best.ckpt", "calibrated.ckpt"))
    with torch.no_grad():
        logits, divided = before.network(images()), after.network(images())
    torch.testing.assert_close(divided, logits / TEMPERATURE, rtol=1e-5, atol=1e-6)
    assert torch.equal(divided.argmax(dim=1), logits.argmax(dim=1))
    assert (divided.softmax(dim=1).amax(dim=1) < logits.softmax(dim=1).amax(dim=1)).all()


def test_only_the_last_layer_differs_and_the_original_is_named(run):
    write_calibrated(run / "best.ckpt", run / "calibrated.ckpt", TEMPERATURE)
    before, after = (
        torch.load(run / name, weights_only=True) for name in ("best.ckpt", "calibrated.ckpt")
    )  # fmt: skip
    note = after.pop("shelftwin_temperature")
    assert note == {"temperature": TEMPERATURE, "of_sha256": file_digest(run / "best.ckpt")}
    states = before.pop("state_dict"), after.pop("state_dict")
    assert before == after
    different = {name for name, tensor in states[0].items() if not torch.equal(tensor, states[1][name])}
    assert different == {"network.head.predictions.weight", "network.head.predictions.bias"}


def test_what_cannot_be_calibrated_is_refused(run):
    checkpoint, out = run / "best.ckpt", run / "calibrated.ckpt"
    for temperature in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(BadInput, match="above zero"):
            write_calibrated(checkpoint, out, temperature)
    with pytest.raises(BadInput, match="the original"):
        write_calibrated(checkpoint, checkpoint, 2.0)
    assert not out.exists()
    write_calibrated(checkpoint, out, 2.0)
    with pytest.raises(BadInput, match="has a temperature in it already"):
        write_calibrated(out, run / "again.ckpt", 2.0)


def test_fitted_temperature_is_the_runs_own_or_none(run):
    assert fitted_temperature(run / "best.ckpt") == (TEMPERATURE, 9)
    write_calibrated(run / "best.ckpt", run / "other.ckpt", 2.0)
    with pytest.raises(BadInput, match="of another checkpoint"):
        fitted_temperature(run / "other.ckpt")
    (run / "metrics.json").write_text("{}")
    with pytest.raises(BadInput, match="received none"):
        fitted_temperature(run / "best.ckpt")


def test_export_says_what_it_exports_and_refuses_what_it_cannot_have(run, capsys):
    assert lightning("export", run / "best.ckpt", run / "twin.h5", "--temperature", "fitted") == 0
    said = capsys.readouterr().out
    assert f"{run / 'twin_calibrated.ckpt'}: logits divided by 2.5000" in said
    assert lightning("export", run / "best.ckpt", run / "twin.h5", "--temperature=0") == 2
    assert lightning("export", run / "best.ckpt", run / "twin.h5", "--temperature=warm") == 2
    assert "says little" not in said
    metrics = json.loads((run / "metrics.json").read_text())
    metrics["final"]["temperature_mistakes"] = 4
    (run / "metrics.json").write_text(json.dumps(metrics))
    assert lightning("export", run / "best.ckpt", run / "twin.h5", "--temperature", "fitted") == 0
    assert (
        "The fitted temperature is 2.500: of the validation photos 4 are wrong, so it says little"
        in capsys.readouterr().out
    )
    (run / "metrics.json").unlink()
    assert lightning("export", run / "best.ckpt", run / "twin.h5", "--temperature", "fitted") == 2
    assert "give a number" in capsys.readouterr().err


@pytest.mark.parametrize("temperature", ["none", "fitted"])
def test_fit_hands_over_the_checkpoint_that_it_proves(tmp_path, monkeypatch, temperature):
    pairs = []
    monkeypatch.setattr(
        "export.proof.parity.check_parity", lambda pair, *_: pairs.append(pair) or Report({}, {}, [CHECK])
    )
    monkeypatch.setattr("export.proof.page.write_page", lambda *_: None)
    draw_catalogue(tmp_path / "photos", per_class=8, seed=0)
    run = tmp_path / "run"
    settings = [
        "--model.backbone=mobilenetv2_short", "--model.pretrained=false", "--model.hidden=[8]", "--data.image_size=32",
        "--data.validation_split=0.25", f"--data.root={tmp_path / 'photos'}", f"--trainer.default_root_dir={run}",
        "--trainer.accelerator=cpu", "--trainer.max_epochs=1",
    ]  # fmt: skip
    assert lightning("fit", *settings, f"--hand_over.temperature={temperature}") == 0
    source = run / ("calibrated.ckpt" if temperature == "fitted" else "best.ckpt")
    assert (pairs[0].checkpoint, pairs[0].h5) == (source, run / "model.h5")
    assert read_keras_h5(run / "model.h5").details["checkpoint_sha256"] == file_digest(source)
    assert (run / "calibrated.ckpt").is_file() == (temperature == "fitted")
    best = read_checkpoint(run / "best.ckpt").network.head.predictions.weight
    divisor = fitted_temperature(run / "best.ckpt").temperature if temperature == "fitted" else 1.0
    handed_over = read_checkpoint(source).network.head.predictions.weight
    torch.testing.assert_close(handed_over * divisor, best, rtol=1e-6, atol=0)


@pytest.mark.keras
@pytest.mark.slow
def test_both_twins_carry_the_temperature_and_the_proof_tells_them_from_the_original(run, capsys):
    best, plain, twin = run / "best.ckpt", run / "plain.h5", run / "twin.h5"
    write_twin(best, plain)
    assert lightning("export", best, twin, "--temperature", TEMPERATURE) == 0
    assert lightning("parity", run / "twin_calibrated.ckpt", twin) == 0
    assert capsys.readouterr().out.strip().splitlines()[-1].startswith("parity PASS")
    # the negative control: the twin of the calibrated checkpoint is not the best checkpoint's
    assert lightning("parity", best, twin, "--json", run / "parity.json") == 1
    checks = json.loads((run / "parity.json").read_text())["reports"][0]["rungs"]
    failed = {check["name"] for check in checks if not check["passed"]}
    assert {"labels", "weights", "probabilities_synthetic"} <= failed
    assert "top1_synthetic" not in failed
    photos = np.random.default_rng(0).integers(0, 256, (5, 48, 40, 3), dtype=np.uint8)
    with KerasFileLabeller(plain) as before, KerasFileLabeller(twin) as after:
        probabilities, divided = before.exact(photos), after.exact(photos)
    expected = probabilities ** (1 / TEMPERATURE)
    np.testing.assert_allclose(divided, expected / expected.sum(axis=1, keepdims=True), rtol=1e-6)
    assert (divided.argmax(axis=1) == probabilities.argmax(axis=1)).all()

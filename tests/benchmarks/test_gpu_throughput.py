"""The GPU benchmark runs, here on a CPU and on what is drawn, and what it times is what `lightning fit` does."""

import argparse
import json
import os
import subprocess
import sys

import pytest
import torch
import yaml

from datamodule.demo_photos import draw_catalogue
from tests.conftest import ROOT, load_script

SCRIPT = ROOT / "benchmarks" / "training" / "gpu_throughput.py"


@pytest.mark.slow
def test_last_line():
    settings = (
        "--device cpu --photos 40 --image_size 32 --train_size 24 --batch_size 8 --rounds 1 --workers 0 "
        "--backbone mobilenetv2_035"
    )
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *settings.split()], capture_output=True, text=True, timeout=300,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    summary = json.loads(done.stdout.strip().splitlines()[-1])
    for mode in ("head", "all"):
        figures = summary[mode]
        assert all(figure > 0 for figure in figures.values())
        assert set(figures) >= {"step", "epoch", "timm", "arithmetic_limit", "bandwidth_limit"}
        for limit in ("arithmetic_limit", "bandwidth_limit"):
            assert figures[f"step_over_{limit}"] == pytest.approx(figures["step"] / figures[limit], rel=0.02)
    # the fit's own journal: an epoch to warm up and one timed, of `all` after the head's own, of the recipes' many
    lines = [line.split(" |")[0] for line in done.stdout.splitlines() if line.startswith("epoch ")]
    head, whole = (
        yaml.safe_load((ROOT / "configs" / name).read_text())["trainer"]["max_epochs"]
        for name in ("mobilenetv2.yaml", "finetune.yaml")
    )
    assert lines == [f"epoch {n}/{head}" for n in (1, 2)] + [f"epoch {n}/{whole}" for n in (1, 2, 3)]


def test_way_back_costs_twice_the_way_there(monkeypatch):
    script = load_script(SCRIPT)
    monkeypatch.setattr(script, "matrix_speed", lambda device: 1e9)  # measured, it is another every time
    monkeypatch.setattr(script, "copy_speed", lambda device: 1e9)
    module = script.ProductClassifier(["a", "b"], [32, 32], backbone="mobilenetv2_035", pretrained=False)
    head, whole = (script.limits(module, 8, torch.device("cpu"), mode) for mode in ("head", "all"))
    for limit in ("arithmetic_limit", "bandwidth_limit"):
        assert head[limit] == pytest.approx(3 * whole[limit])


@pytest.mark.parametrize(("mode", "more"), [("head", set()), ("all", {"EmaOfWeights"})])
def test_epoch_is_that_of_a_fit(tmp_path, mode, more):
    draw_catalogue(tmp_path / "photos", per_class=5, seed=0)
    arguments = argparse.Namespace(
        root=tmp_path / "photos", image_size=32, train_size=24, batch_size=None, backbone="mobilenetv2_035",
        compile="auto", device="cpu", rounds=1,
    )  # fmt: skip
    benchmark = torch.backends.cudnn.benchmark
    try:
        fit = load_script(SCRIPT).prepare_fit(arguments, mode, tmp_path / "run")
    finally:
        torch.backends.cudnn.benchmark = benchmark
    assert (fit.trainer.precision, fit.datamodule.batch_size, fit.model.trainable) == ("bf16-mixed", 128, mode)
    assert {type(callback).__name__ for callback in fit.trainer.callbacks} >= {"BatchSeed", "LastCheckpoint", *more}
    assert fit.trainer.gradient_clip_val == (1.0 if more else None)
    assert fit.datamodule.augmentation is not None


def test_held_steps_are_training_steps():
    """As many as are asked for, each with metrics, backward pass and optimiser."""
    script = load_script(SCRIPT)
    module = script.ProductClassifier(["a", "b"], [32, 32], backbone="mobilenetv2_035", pretrained=False)
    optimizer = module.configure_optimizers()
    trainer = script.L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.optimizers = [optimizer]
    batch = torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 0, 1])
    before = module.network.head.predictions.weight.detach().clone()
    assert script.held_steps(trainer, module, batch, 3) == 12
    assert optimizer.param_groups[0]["iterations"] == 3
    assert module.mean_losses["train/"].photos == 12
    assert not torch.equal(module.network.head.predictions.weight, before)

"""What `make gpu` judges: each check passes and fails where it should. The commands themselves were tried by hand."""

import argparse
import csv
import json
import subprocess
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT, load_script

script = load_script(ROOT / "benchmarks" / "training" / "gpu_check.py")


@pytest.fixture
def checks(tmp_path):
    arguments = argparse.Namespace(root=tmp_path, weights=None, device="cuda", quick=False)
    return script.Checks(arguments, tmp_path)


def test_other_weights_fail():
    weights = {"a": torch.ones(2), "b": torch.zeros(2)}
    assert script._same(weights, dict(weights)) == "2 tensors are the same, bit for bit"
    with pytest.raises(script.Failed, match="1 of 2 tensors differ, such as b"):
        script._same(weights, weights | {"b": torch.full((2,), 1e-9)})


@pytest.mark.parametrize(
    ("label", "probability", "fails"), [("tv", 0.75001, False), ("tv", 0.7502, True), ("sofa", 0.75, True)]
)
def test_rows_of_both_devices_are_compared(checks, monkeypatch, label, probability, fails):
    def predicted(*options):
        (out,) = (option.removeprefix("--out=") for option in options if option.startswith("--out="))
        on_cpu = "--device=cpu" in options
        rows = [{"file": "a.jpg", "label": "tv" if on_cpu else label, "probability": 0.75 if on_cpu else probability}]
        with Path(out).open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)

    monkeypatch.setattr(checks, "lightning", predicted)
    monkeypatch.setattr(checks, "fit", lambda *_: None)
    if fails:
        with pytest.raises(script.Failed):
            checks.predict()
    else:
        assert checks.predict().startswith("1 photos, 0 labels differ")


@pytest.mark.parametrize(("of_step", "of_timm", "fails"), [(0.96, 2.1, False), (0.94, 2.1, True), (0.96, 1.9, True)])
def test_slow_epochs_fail(checks, monkeypatch, of_step, of_timm, fails):
    ratios = {"epoch_over_step": of_step, "epoch_over_timm": of_timm}
    printed = json.dumps({"device": "a card", "head": ratios, "all": ratios})
    monkeypatch.setattr(script.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, printed))
    if fails:
        with pytest.raises(script.Failed, match="head: 0"):
            checks.throughput()
    else:
        assert checks.throughput().startswith("a card: head: 0.96 of the step, 2.1 times timm")

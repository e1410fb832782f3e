"""The GPU benchmark runs, here on a CPU and on what is drawn."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu_throughput.py"


@pytest.mark.slow
def test_last_line():
    settings = (
        "--device cpu --photos 40 --image_size 32 --batch_size 8 --rounds 1 --workers 0 --backbone mobilenetv2_035"
    )
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *settings.split()], capture_output=True, text=True, timeout=300,
        env=os.environ | {"PYTHONPATH": str(SCRIPT.parents[1])}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    summary = json.loads(done.stdout.strip().splitlines()[-1])
    for mode in ("head", "all"):
        assert all(figure > 0 for figure in summary[mode].values())
        assert set(summary[mode]) >= {"step", "epoch", "timm", "arithmetic_limit", "bandwidth_limit"}
    # the way back through the network costs twice the way there
    assert summary["head"]["arithmetic_limit"] > 1.5 * summary["all"]["arithmetic_limit"]

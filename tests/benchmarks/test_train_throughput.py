"""The throughput benchmark: its arithmetic, and that it runs on what is drawn."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, load_script
from tests.datamodule.keras_generator import needs_keras

SCRIPT = ROOT / "benchmarks" / "training" / "train_throughput.py"


@pytest.fixture(scope="module")
def benchmark():
    return load_script(SCRIPT)


def epoch(seconds: float, accuracy: float = 0.0) -> dict:
    return {"seconds": seconds, "photos": 100, "accuracy": accuracy}


def test_rate_is_the_median_epochs(benchmark):
    assert benchmark.rate([epoch(1), epoch(2), epoch(100)]) == 50


def test_seconds_to_an_accuracy(benchmark):
    started, epochs = {"seconds": 3.0}, [epoch(10, 0.5), epoch(8, 0.96), epoch(8, 0.99)]
    assert benchmark.seconds_to(0.95, started, epochs) == 21.0
    assert benchmark.seconds_to(0.995, started, epochs) is None


def test_photos_are_linked_or_drawn(benchmark, tmp_path):
    assert benchmark.gather_photos(None, 3, tmp_path / "drawn") == 12
    assert benchmark.gather_photos(tmp_path / "drawn", 2, tmp_path / "linked") == 8
    assert (tmp_path / "linked" / "sofa").is_dir()


@pytest.mark.slow
class TestRun:
    pytestmark = needs_keras

    def test_last_line(self):
        settings = ["--drawn", "--per_class=10", "--image_size=64", "--batch_size=8", "--rounds=1", "--max_epochs=2"]
        environment = {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, str(SCRIPT), *settings], capture_output=True, text=True, timeout=300,
            env=environment | {"PATH": "/usr/bin:/bin", "HOME": str(Path.home())}, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        summary = json.loads(done.stdout.strip().splitlines()[-1])
        assert summary["ours_over_keras"] > 0
        assert summary["loader_and_augmentation_share"] > 0
        assert summary["loader_share"] > 0
        for side in ("ours", "keras"):
            assert summary[side]["images_per_second"] > 0
            assert summary[side]["peak_memory_mb"] > 100
        assert summary["photos"] == 40

"""SIGKILL at any moment of a fit: the same command with --resume ends with the weights of a run left in peace."""

import random
from pathlib import Path

import pytest
import torch

from datamodule.demo_photos import draw_catalogue
from tests.conftest import ROOT, load_script

script = load_script(ROOT / "benchmarks" / "training" / "kill_and_resume.py")
pytestmark = pytest.mark.slow
KILLS = 5
QUICK = "import tests.quick_fits\n"


@pytest.fixture(scope="module")
def arguments(tmp_path_factory) -> list[str]:
    root = tmp_path_factory.mktemp("catalogue") / "photos"
    draw_catalogue(root, per_class=12, seed=0)
    return [*script.SETTINGS, "--model.backbone=mobilenetv2_short", f"--data.root={root}"]


@pytest.fixture(scope="module")
def peace(arguments, tmp_path_factory) -> Path:
    """A run that nobody killed, by the command itself."""
    run = tmp_path_factory.mktemp("peace") / "run"
    log = run.with_suffix(".log")
    code = script.Fits(forks=False).run([*arguments, f"--trainer.default_root_dir={run}"], log, QUICK)
    assert code == 0, log.read_text()
    return run


@pytest.fixture(scope="module")
def forks():
    """Fits in processes that need not import anything: each would take seven seconds for it."""
    fits = script.Fits(forks=True)
    yield fits
    fits.close()


def test_killed_and_resumed_until_finished(arguments, peace, forks, tmp_path):
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"random seed {seed}")
    counts = script.kill_until_finished(
        forks, arguments, tmp_path / "run", random.Random(seed), longest=2.0, kills=KILLS, patch=QUICK
    )
    print(counts)
    assert counts["kills"]
    assert script.differences_of_runs(peace, tmp_path / "run") == []


@pytest.mark.parametrize("part", script.CONTROLS)
def test_without_one_of_its_parts_the_run_comes_out_otherwise(arguments, peace, forks, tmp_path, part):
    rng = random.Random(0)
    for attempt in range(6):  # a kill may happen to hit where the part is not needed
        run = tmp_path / f"run{attempt}"
        script.kill_until_finished(
            forks, arguments, run, rng, longest=2.0, kills=3, patch=QUICK + script.CONTROLS[part]
        )
        if script.differences_of_runs(peace, run):
            return
    pytest.fail(f"left out {part}, and it made no difference")


# torch.save writes some of its content, then the process is gone.
KILLED_WHILE_WRITING = """
import os, signal, torch
save, left = torch.save, [{write}]
def half(content, file):
    left[0] -= 1
    if left[0]:
        return save(content, file)
    file.write(b"half of it")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
torch.save = half
"""


@pytest.mark.parametrize("write", [1, 8, 17])
def test_killed_while_a_checkpoint_is_being_written(arguments, peace, forks, tmp_path, write):
    run, log = tmp_path / "run", tmp_path / "log"
    arguments = [*arguments, f"--trainer.default_root_dir={run}"]
    assert forks.run(arguments, log, QUICK + KILLED_WHILE_WRITING.format(write=write)) == -9, log.read_text()
    (half,) = run.glob(".*.ckpt.*.tmp")
    assert half.read_bytes() == b"half of it"
    if write > 1:
        torch.load(run / "last.ckpt", weights_only=True)
    assert forks.run([*arguments, "--resume"], log, QUICK) == 0, log.read_text()
    assert script.differences_of_runs(peace, run) == []
    assert not list(run.glob(".*"))

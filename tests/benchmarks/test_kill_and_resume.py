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


def resumed(arguments: list[str], run: Path) -> list[str]:
    return [*arguments, f"--trainer.default_root_dir={run}", "--resume"]


def killed_while_writing(forks, arguments: list[str], run: Path, write: int) -> None:
    """A fit that dies in its `write`-th checkpoint, the first is 1."""
    log = run.with_suffix(".log")
    patch = QUICK + KILLED_WHILE_WRITING.format(write=write)
    assert forks.run(resumed(arguments, run), log, patch) == -9, log.read_text()


@pytest.mark.parametrize("part", script.CONTROLS)
def test_without_one_of_its_parts_the_run_comes_out_otherwise(arguments, peace, forks, tmp_path, part):
    # Each part is needed somewhere, not everywhere. Kills by the clock hit that place by luck, these always do.
    for write in (3, 8, 13, 18, 23):
        run = tmp_path / f"run{write}"
        killed_while_writing(forks, arguments, run, write)
        code = forks.run(resumed(arguments, run), run.with_suffix(".log"), QUICK + script.CONTROLS[part])
        assert code == 0, run.with_suffix(".log").read_text()
        if script.differences_of_runs(peace, run):
            return
    pytest.fail(f"left out {part}, and it made no difference")


@pytest.mark.parametrize("write", [1, 8, 17])
def test_killed_while_a_checkpoint_is_being_written(arguments, peace, forks, tmp_path, write):
    run = tmp_path / "run"
    killed_while_writing(forks, arguments, run, write)
    (half,) = run.glob(".*.ckpt.*.tmp")
    assert half.read_bytes() == b"half of it"
    if write > 1:
        torch.load(run / "last.ckpt", weights_only=True)
    log = run.with_suffix(".log")
    assert forks.run(resumed(arguments, run), log, QUICK) == 0, log.read_text()
    assert script.differences_of_runs(peace, run) == []
    assert not list(run.glob(".*"))

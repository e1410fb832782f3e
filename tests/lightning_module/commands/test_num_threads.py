"""Every command takes --num_threads, and what it needs to label one photo is no more than torch and timm."""

import os
import subprocess
import sys

import pytest
from PIL import Image

from lightning_module.commands import cli
from lightning_module.commands.cli import COMMANDS
from lightning_module.commands.lightning_cli import training
from models import cores
from tests.conftest import ROOT, lightning, random_classifier, save_checkpoint

FUNCTIONS = {
    "predict": ["model", "photos"],
    "export": ["ckpt", "out"],
    "parity": ["ckpt", "h5"],
    "import": ["h5", "out"],
    "upgrade": ["old.h5", "new.h5"],
    "audit": ["root"],
    "serve": ["RUN"],
    "publish": ["run", "owner/name"],
}
"""Command that is a function -> values for what it must have."""


@pytest.fixture
def numbers(monkeypatch) -> list[int | None]:
    """What the commands choose; nothing is set in this process."""
    chosen: list[int | None] = []
    for module in (cli, training):
        monkeypatch.setattr(module, "use_threads", lambda threads, share=True: chosen.append(threads))
    return chosen


@pytest.mark.parametrize("command", FUNCTIONS)
def test_commands_that_are_functions(command, numbers, tmp_path, capsys):
    places = [str(tmp_path / "none" / each) for each in FUNCTIONS[command]]
    assert lightning(command, *places, "--num-threads", 3) == cli.EXIT_BAD_INPUT
    assert lightning(command, *places) == cli.EXIT_BAD_INPUT  # there are no such files, which is looked at afterwards
    assert numbers == [3, None]
    capsys.readouterr()
    assert lightning(command, *places, "--num_threads", 0) == cli.EXIT_BAD_INPUT
    assert "num_threads" in capsys.readouterr().err
    assert numbers == [3, None]


def test_no_command_is_forgotten():
    assert {*FUNCTIONS, "fit", "validate", "test"} == {*COMMANDS}


def test_training(numbers, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert lightning("fit", "--data.root", tmp_path / "none", "--num_threads", 3) == cli.EXIT_BAD_INPUT
    assert numbers == [3]


def test_one_photo_needs_neither_lightning_nor_the_compiler(tmp_path):
    """And torch computes with the number that was asked for."""
    checkpoint = save_checkpoint(tmp_path / "best.ckpt", random_classifier(backbone="mobilenetv2_035"), (48, 40))
    Image.new("RGB", (60, 50), "red").save(tmp_path / "photo.png")
    code = (
        "import sys\nfrom lightning_module.commands.cli import main\nmain(sys.argv[1:])\nimport torch\n"
        "heavy = {'torch._dynamo', 'lightning', 'torchmetrics', 'matplotlib', 'sympy', 'pandas', 'tensorboard'}\n"
        "print(torch.get_num_threads(), *sorted(heavy & sys.modules.keys()))"
    )
    environment = {name: value for name, value in os.environ.items() if name not in cores.THREAD_VARIABLES}
    command = [sys.executable, "-c", code, "predict", checkpoint, tmp_path / "photo.png", "--num_threads=1"]
    done = subprocess.run(
        [*command, "--out", tmp_path / "p.csv"], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "1"

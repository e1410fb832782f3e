"""The floors of the house, as `pyproject.toml` states them for import-linter: who may import whom."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

ROOMS = ("lightning_module", "datamodule", "export", "models")

FORBIDDEN = {
    "datamodule/up.py": ("import export.checkpoint", "datamodule.up -> export.checkpoint"),
    "models/up.py": ("def later():\n    import datamodule.split", "models.up -> datamodule.split"),
    "export/graph/up.py": ("from export.proof import parity", "export.graph.up -> export.proof.parity"),
    "export/keras_file/up.py": ("import export.torch_to_keras", "export.keras_file.up -> export.torch_to_keras"),
    "lightning_module/up.py": ("import tensorflow", "lightning_module.up -> tensorflow"),
    "export/proof/up.py": ("def later():\n    import keras", "export.proof.up -> keras"),
}
"""File -> what stands in it, and what must be named."""


def lint_imports(folder: Path) -> tuple[int, str]:
    command = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run(
        [sys.executable, "-c", command, "--no-cache"], cwd=folder, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def house(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("house")
    for room in ROOMS:
        shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def test_imports_go_down(house):
    code, said = lint_imports(house)
    assert code == 0, said


def test_forbidden_imports_are_named(house):
    try:
        for name, (source, _) in FORBIDDEN.items():
            (house / name).write_text(source + "\n")
        code, said = lint_imports(house)
    finally:
        for name in FORBIDDEN:
            (house / name).unlink(missing_ok=True)
    assert code == 1
    assert [named for _, named in FORBIDDEN.values() if named not in said] == []


def test_no_room_is_crowded():
    """At most sixteen files behind a door, and none that carries its room's name."""
    doors = [
        folder for room in (*ROOMS, "tests", "benchmarks", "configs", "docs") for folder in folders_of(ROOT / room)
    ]
    assert len(doors) > 15
    crowded = {str(door): len(files_of(door)) for door in doors if len(files_of(door)) > 16}
    named = [str(file) for door in doors for file in files_of(door) if file.stem == door.name]
    assert (crowded, named) == ({}, [])


def folders_of(room: Path) -> list[Path]:
    return [each for each in (room, *room.rglob("*")) if each.is_dir() and each.name != "__pycache__"]


def files_of(folder: Path) -> list[Path]:
    return [each for each in folder.iterdir() if each.is_file() and each.name != "__init__.py"]


def test_every_room_says_what_it_is_for():
    """In its `__init__.py`: three lines or so, as its docstring."""
    rooms = [folder for room in ROOMS for folder in folders_of(ROOT / room)]
    texts = {room: (room / "__init__.py").read_text() for room in rooms}
    assert [str(room) for room, text in texts.items() if not text.startswith('"""') or text.count("\n") < 3] == []

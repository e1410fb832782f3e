"""The wheel is whole: what is installed from it trains and proves, far from any checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT, load_script
from tests.test_layers import ROOMS

SHIPPED = (*ROOMS, "configs")
PYTHONS = os.environ.get("SHELFTWIN_WHEEL_PYTHONS", "").split()
"""Versions to install everything for, such as "3.11 3.12 3.13": `make wheel-check` does, which wants a registry."""

DEMO = ("fit", "--config", "demo", "--trainer.max_epochs", "1")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    source, out = tmp_path_factory.mktemp("source") / "shelftwin", tmp_path_factory.mktemp("dist")
    for room in SHIPPED:
        shutil.copytree(ROOT / room, source / room, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", out, source]
    subprocess.run(build, check=True)
    (built,) = out.glob("*.whl")
    return built


def files_of(rooms: tuple[str, ...]) -> set[str]:
    """All files of the repository's rooms, but what Python and tools leave there."""
    found = (path.relative_to(ROOT) for room in rooms for path in (ROOT / room).rglob("*") if path.is_file())
    return {path.as_posix() for path in found if "__pycache__" not in path.parts}


def test_the_wheel_has_every_file_and_no_other(wheel):
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert packed == files_of(SHIPPED)
    assert {"configs/demo.yaml", "export/worker/keras_worker.py", "export/proof/page.html"} <= packed


def run_demo(command: list[str], folder: Path, **environment: str) -> str:
    """`lightning fit --config demo` in an empty folder; all that it said."""
    done = subprocess.run(
        [*command, *DEMO], cwd=folder, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.keras
def test_what_is_installed_trains_and_proves(wheel, tmp_path):
    site, empty = tmp_path / "site", tmp_path / "empty"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site, wheel], check=True
    )
    (empty / "models").mkdir(parents=True)  # somebody's own, of a common name
    (empty / "models" / "__init__.py").write_text("raise RuntimeError('not ours')")
    where = "import lightning_module; print(lightning_module.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", where], cwd=empty, env=os.environ | {"PYTHONPATH": str(site)}, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert Path(found.stdout.strip()).is_relative_to(site)
    said = run_demo([sys.executable, "-m", "lightning_module"], empty, PYTHONPATH=str(site))
    assert "parity PASS: 11 of 11 checks" in said
    assert (empty / "runs" / "demo" / "model.h5").is_file()


@pytest.mark.slow
@pytest.mark.keras
@pytest.mark.parametrize("version", PYTHONS or [pytest.param("", marks=pytest.mark.skip(reason="make wheel-check"))])
def test_it_installs_and_runs_on(version, wheel, tmp_path):
    """With all that it needs, in an environment of its own."""
    compat = load_script(ROOT / "benchmarks" / "compat.py")
    interpreter = compat.find_interpreter(version)
    if interpreter is None:
        pytest.skip(f"Python {version} is not installed")
    uv, python = compat.find_uv(), tmp_path / "environment" / "bin" / "python"
    make = [uv, "venv", "--quiet", "--python"] if uv else [interpreter, "-m", "venv"]
    subprocess.run([*make, *([interpreter] if uv else []), tmp_path / "environment"], check=True)
    install = [uv, "pip", "install", "--python", python] if uv else [python, "-m", "pip", "install"]
    subprocess.run([*install, "--quiet", "-c", ROOT / "constraints.txt", wheel], check=True)
    (tmp_path / "empty").mkdir()
    said = run_demo([str(python.with_name("lightning"))], tmp_path / "empty", PYTHONPATH="")
    assert "parity PASS: 11 of 11 checks" in said

"""The isolated environment for onnx2tf: made once, in the user's cache, when its second opinion is first asked for.

onnx2tf declares none of its dependencies, and some of them (tf-keras, ai-edge-litert, onnxsim) should not be in the
environment that trains. So it gets its own, in which every package that computes is pinned.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from models.bad_input import BadInput

VERSION = "1.28.8"
REQUIREMENTS = (
    f"onnx2tf=={VERSION}",
    "tensorflow==2.21.0",
    "tf-keras==2.21.0",
    "onnx==1.23.2",
    "onnx-graphsurgeon==0.6.1",
    "onnxruntime==1.32.0",
    "onnxsim==0.8.1",
    "sng4onnx==2.0.1",
    "ai-edge-litert==2.3.0",
    "psutil==7.2.2",
    "h5py==3.14.0",
    "numpy==2.4.6",
)
TIME_LIMIT = 1800.0
"""Seconds for each command; long, because TensorFlow is 600 MB."""
# Written last: an environment with this file is complete.
_READY = "shelftwin-ready"


def environment_folder() -> Path:
    """Where the environment is; with other pins or another Python it is another folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    made_of = "\n".join((platform.python_version(), *REQUIREMENTS))
    return cache / "shelftwin" / f"onnx2tf-{VERSION}-{hashlib.sha256(made_of.encode()).hexdigest()[:8]}"


def onnx2tf_python(progress: Callable[[str], None] = lambda text: None) -> Path:
    """The interpreter that has onnx2tf; its environment is made if it does not exist.

    If several processes ask at once, one makes it and the others wait. An incomplete environment is made again.

    Args:
        progress: called with a message if the environment is being made, here or by another process, as that may take
            minutes.

    Raises:
        BadInput: it cannot be made, because network, disk space or permissions are missing.
    """
    folder = environment_folder()
    python = folder / "bin" / "python"
    if _is_whole(folder, python):
        return python
    progress(f"making the environment of onnx2tf in {folder}; this happens once, and takes minutes if it downloads")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{folder.name}.lock")):
            if not _is_whole(folder, python):
                _make(folder, python)
                (folder / _READY).touch()
    except OSError as error:
        raise _cannot(folder, error.strerror or str(error)) from error
    return python


def _is_whole(folder: Path, python: Path) -> bool:
    # the second check, because its base interpreter may have been removed since
    return (folder / _READY).is_file() and python.exists()


def _make(folder: Path, python: Path) -> None:
    """Try uv, which is fast, then the standard library's venv with pip, which is always there."""
    own = sys.executable
    ways: tuple[tuple[list[str | Path], list[str | Path]], ...] = (
        ([own, "-m", "uv", "venv", "--python", own, folder], [own, "-m", "uv", "pip", "install", "--python", python]),
        ([own, "-m", "venv", folder], [python, "-m", "pip", "install"]),
    )
    complaint = ""
    for make, install in ways:
        shutil.rmtree(folder, ignore_errors=True)
        complaint = _run(make) or _run([*install, *REQUIREMENTS])
        if not complaint:
            return
    raise _cannot(folder, complaint)


def _run(command: list[str | Path]) -> str:
    """Run a command; returns the last line of its output if it failed, otherwise ''."""
    own = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    try:
        done = subprocess.run(
            command, env=own, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIME_LIMIT, check=False
        )
    except subprocess.TimeoutExpired:
        return f"it took longer than {TIME_LIMIT:.0f} s"
    words = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()
    return words[-1] if done.returncode else ""


def _cannot(folder: Path, why: str) -> BadInput:
    return BadInput(
        f"expected to make an environment for onnx2tf in {folder}, got: {why}. It needs a package index and 3 GB of "
        "disk once; set XDG_CACHE_HOME for another place, or leave onnx2tf out of --second_opinions."
    )

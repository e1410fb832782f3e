"""Environments of our own: each made once, in the user's cache, when what is in it is first asked for.

They have packages that should not be in the environment that trains: another TensorFlow, an old Keras. Every package
that computes is pinned.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from models.bad_input import BadInput

TIME_LIMIT = 1800.0
"""Seconds for each command; long, because TensorFlow is 600 MB."""
# Written last: an environment with this file is complete.
_READY = "shelftwin-ready"


@dataclass(frozen=True)
class OwnEnvironment:
    """An environment of our own.

    Attributes:
        name: of its folder.
        what: what it is for, in messages.
        requirements: pinned packages.
        way_out: what to do where it cannot be made.
    """

    name: str
    what: str
    requirements: tuple[str, ...]
    way_out: str

    @property
    def folder(self) -> Path:
        """Where it is; with other pins or another Python it is another folder."""
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        made_of = "\n".join((platform.python_version(), *self.requirements))
        return cache / "shelftwin" / f"{self.name}-{hashlib.sha256(made_of.encode()).hexdigest()[:8]}"

    @property
    def is_whole(self) -> bool:
        """Whether it has been made, completely."""
        # the second check, because its base interpreter may have been removed since
        return (self.folder / _READY).is_file() and _python_in(self.folder).exists()

    def python(self, progress: Callable[[str], None] = lambda text: None) -> Path:
        """The environment's interpreter; the environment is made if it does not exist.

        If several processes ask at once, one makes it and the others wait. An incomplete environment is made again.

        Args:
            progress: called with a message if the environment is being made, here or by another process, as that may
                take minutes.

        Raises:
            BadInput: it cannot be made, because network, disk space or permissions are missing.
        """
        folder = self.folder
        if self.is_whole:
            return _python_in(folder)
        progress(
            f"making the environment of {self.what} in {folder}; this happens once, and takes minutes if it downloads"
        )
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(folder.with_name(f"{folder.name}.lock")):
                if not self.is_whole:
                    complaint = _make(folder, self.requirements)
                    if complaint:
                        raise self._cannot(complaint)
                    (folder / _READY).touch()
        except OSError as error:
            raise self._cannot(error.strerror or str(error)) from error
        return _python_in(folder)

    def _cannot(self, why: str) -> BadInput:
        return BadInput(
            f"expected to make an environment for {self.what} in {self.folder}, got: {why}. It needs a package index "
            f"and 3 GB of disk once; set XDG_CACHE_HOME for another place, or {self.way_out}."
        )


def _python_in(folder: Path) -> Path:
    return folder / "bin" / "python"


def _make(folder: Path, requirements: tuple[str, ...]) -> str:
    """Try uv, which is fast, then the standard library's venv with pip, which is always there.

    Returns:
        Why it could not be made; empty if it was.
    """
    own, python = sys.executable, _python_in(folder)
    # compiled, as pip does it by itself: where Python writes no .pyc, every start would compile TensorFlow for 5 s
    ways: tuple[tuple[list[str | Path], list[str | Path]], ...] = (
        (
            [own, "-m", "uv", "venv", "--python", own, folder],
            [own, "-m", "uv", "pip", "install", "--compile-bytecode", "--python", python],
        ),
        ([own, "-m", "venv", folder], [python, "-m", "pip", "install"]),
    )
    complaint = ""
    for make, install in ways:
        shutil.rmtree(folder, ignore_errors=True)
        complaint = _run(make) or _run([*install, *requirements])
        if not complaint:
            return ""
    return complaint


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

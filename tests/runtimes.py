"""The environments of those who have no torch: each runtime alone, made once in the user's cache.

    python -m tests.runtimes    # makes all of them; `.ci/run` does it in the background

The test of docs/service/deploy.md runs that page's code in them, and skips with a reason where one is missing.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from export.worker.own_environment import OwnEnvironment
from models.bad_input import BadInput

_SEE = ("numpy==2.4.6", "pillow==13.0.0")
PYTHONS = {
    "onnxruntime": OwnEnvironment("onnxruntime", "ONNX Runtime", ("onnxruntime==1.32.0", *_SEE), "do without"),
    "litert": OwnEnvironment("litert", "LiteRT", ("ai-edge-litert==2.3.0", *_SEE), "do without"),
    "openvino": OwnEnvironment("openvino", "OpenVINO", ("openvino==2026.4.1", *_SEE), "do without"),
    # the newest of its dependencies do not fit: docs/service/deploy.md says which
    "tensorflowjs": OwnEnvironment(
        "tensorflowjs",
        "TensorFlow.js's converter",
        ("tensorflowjs==4.22.0", "ydf==0.11.0", "setuptools<80"),
        "do without",
    ),
}


@dataclass(frozen=True)
class NodePackages:
    """A folder with `node_modules`.

    Attributes:
        name: of its folder.
        packages: pinned.
    """

    name: str
    packages: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """Beside the environments of Python; with other pins it is another folder."""
        digest = hashlib.sha256("\n".join(self.packages).encode()).hexdigest()[:8]
        return PYTHONS["onnxruntime"].folder.with_name(f"{self.name}-{digest}")

    @property
    def is_whole(self) -> bool:
        """Whether it has been made, completely."""
        return (self.folder / "ready").is_file()

    def make(self) -> None:
        """Install the packages, without their scripts, which download what the processor does not need.

        Raises:
            BadInput: there is no npm, or it fails.
        """
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self.folder}.lock"):
            if self.is_whole:
                return
            if shutil.which("npm") is None:
                raise BadInput("expected npm for the packages of Node, found none. Install it, or do without.")
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir()
            (self.folder / "package.json").write_text(json.dumps({"private": True}))
            command = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", *self.packages]
            done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, timeout=1800, check=False)
            if done.returncode:
                raise BadInput(f"expected npm to install {', '.join(self.packages)}, got: {done.stderr[-500:]}")
            (self.folder / "ready").touch()


NODES = {
    "onnxruntime-node": NodePackages("onnxruntime-node", ("onnxruntime-node@1.30.0", "sharp@0.35.5")),
    "tfjs": NodePackages("tfjs", ("@tensorflow/tfjs@4.22.0",)),
}


def make_all() -> int:
    """Make what is missing; return how many could not be made, which is said."""

    def make(each: OwnEnvironment | NodePackages) -> str:
        try:
            each.make() if isinstance(each, NodePackages) else each.python()
        except BadInput as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(2) as pool:  # they wait for the network
        complaints = [text for text in pool.map(make, (*NODES.values(), *PYTHONS.values())) if text]
    print(*complaints, sep="\n", end="\n" * bool(complaints), file=sys.stderr)
    return len(complaints)


if __name__ == "__main__":
    sys.exit(bool(make_all()))

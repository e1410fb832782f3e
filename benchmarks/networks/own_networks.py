"""Networks as people write them: each goes through the real commands, under each Keras that is named.

    python benchmarks/networks/own_networks.py                             # tests/export/own_networks.py, our own Keras
    python benchmarks/networks/own_networks.py --networks FILE --keras_python PY --keras_python PY2
    python benchmarks/networks/own_networks.py --only "einsum" --fresh        # some names, done anew

For each: its state dict is saved, `lightning export` writes the `.h5`, and `lightning parity` proves it under each
Keras. Results are kept in the cache folder, one line of JSON for each network, so that the next call does what is
missing; a network whose code or options changed is done anew with --fresh. Exit code 1 if one is not proved.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
# What --model names: it takes a network out of the list of a file.
FACTORY = """
import importlib.util
specification = importlib.util.spec_from_file_location("own_networks", {file!r})
own_networks = importlib.util.module_from_spec(specification)
specification.loader.exec_module(own_networks)

def build():
    return own_networks.NETWORKS[{name!r}][0]()
"""


def networks_of(file: Path) -> dict[str, tuple[Any, tuple[int, int, int], str]]:
    """The list of a file: name -> (what builds it, (channels, height, width), what its forward gives)."""
    specification = importlib.util.spec_from_file_location("own_networks", file)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    networks: dict[str, tuple[Any, tuple[int, int, int], str]] = module.NETWORKS
    return networks


def shaken(network: nn.Module) -> nn.Module:
    """In eval mode, with a random value for every weight that starts as a constant: no part is trivially right."""
    with torch.no_grad():
        for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif tensor.is_floating_point() and tensor.numel() and bool((tensor == tensor.flatten()[0]).all()):
                tensor.add_(torch.randn_like(tensor) * 0.1)
    return network.eval()


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command of `lightning` as a user does."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-m", "lightning_module", *command]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def said(process: subprocess.CompletedProcess[str]) -> str:
    """The line that matters of a command: its verdict, or its error."""
    lines = [line for line in (process.stdout + process.stderr).splitlines() if line.strip()]
    telling = [line for line in lines if line.startswith(("parity ", "lightning: "))]
    return (telling or lines or [""])[-1][:600]


def prove(name: str, file: Path, own: tuple[Any, tuple[int, int, int], str], pythons: list[Path]) -> dict[str, str]:
    """Export one network and prove it; interpreter -> what the command said last."""
    build, (_, height, width), output = own
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory(prefix="own-") as folder:
        factory, weights, h5 = (Path(folder) / each for each in ("own_factory.py", "net.pth", "net.h5"))
        factory.write_text(FACTORY.format(file=str(file.resolve()), name=name))
        torch.save(shaken(build()).state_dict(), weights)
        options = ["--model", f"{factory}:build", "--image_size", f"{height},{width}", "--mean", "none"]
        options += ["--output", output]
        exported = run(["export", str(weights), str(h5), *options])
        if exported.returncode:
            return {"export": said(exported)}
        results = {}
        for python in pythons:
            chosen = ["--keras_python", str(python)] if python != Path(sys.executable) else []
            results[str(python)] = said(run(["parity", str(weights), str(h5), *options, *chosen]))
    return results


def store() -> Path:
    """The file of results."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "shelftwin" / "families" / "own_networks.json"


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=Path, default=ROOT / "tests" / "export" / "own_networks.py", metavar="FILE")
    parser.add_argument("--keras_python", type=Path, action="append", metavar="PY", help="default: our own")
    parser.add_argument("--only", nargs="+", metavar="NAME")
    parser.add_argument("--fresh", action="store_true", help="forget earlier results, of --only if given")
    arguments = parser.parse_args()
    pythons = [Path(shutil.which(each) or each) for each in arguments.keras_python or [Path(sys.executable)]]
    file, place = arguments.networks.resolve(), store()
    place.parent.mkdir(parents=True, exist_ok=True)
    kept: dict[str, dict[str, str]] = json.loads(place.read_text()) if place.is_file() else {}
    failed = 0
    for name, own in networks_of(file).items():
        if arguments.only and name not in arguments.only:
            continue
        key = f"{file}:{name}"
        known = {} if arguments.fresh else kept.get(key, {})
        missing = [python for python in pythons if not known.get(str(python), "").startswith("parity PASS")]
        if missing:
            known = {**known, **prove(name, file, own, missing)}
            if any(str(python) in known for python in missing):
                known.pop("export", None)
            kept[key] = known
            place.write_text(json.dumps(kept, indent=1))
        for python in pythons:
            verdict = known.get(str(python), known.get("export", ""))
            failed += not verdict.startswith("parity PASS")
            print(f"{name} | {python.parent.parent.name} | {verdict}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

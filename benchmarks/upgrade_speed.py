"""What `lightning upgrade` costs, in parts.

    python benchmarks/upgrade_speed.py OLD.h5 [--rounds 3] [--keras_python PY]

Prints the rows of docs/from_keras.md. Processor seconds, of all cores, are what other work on the machine changes
least; seconds by the clock are those of a machine as busy as it is. Both Kerases run at the same time where there is
memory for two.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

from export.proof import upgrade_proof
from export.upgrade_keras import write_upgrade

REPO = Path(__file__).resolve().parents[1]


def command_seconds(arguments: list[str]) -> tuple[float, float]:
    """Run the command as it is installed; seconds by the clock and of the processor, its Kerases included."""
    before, start = os.times(), time.perf_counter()
    command = [sys.executable, "-m", "lightning_module", *arguments]
    subprocess.run(command, cwd=REPO, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - start, spent


def parts_of(old: Path, new: Path, keras_python: Path | None) -> dict[str, dict[str, float]]:
    """Processor seconds in this process, and of each Keras what its worker counted."""
    parts: dict[str, dict[str, float]] = {}
    own, lock = upgrade_proof.run_worker, threading.Lock()

    def counting(script: Path, request: dict[str, Any], **options: Any) -> dict[str, Any]:
        reply = own(script, request, **options)
        with lock:
            side = "new" if request["jobs"][0]["compile"] else "old"
            parts[f"the {side} file's Keras"] = reply["processor_seconds"]
        return reply

    start = time.process_time()
    with patch.object(upgrade_proof, "run_worker", counting):
        write_upgrade(old, new, keras_python=keras_python)
    return {"this process": {"reading, writing, comparing": time.process_time() - start}, **parts}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keras_python", type=Path)
    options = parser.parse_args()
    own = ["--keras_python", str(options.keras_python)] if options.keras_python else []
    with tempfile.TemporaryDirectory(prefix="shelftwin-") as folder:
        new = str(Path(folder, "new.h5"))
        whole = [command_seconds(["upgrade", str(options.old), new, *own]) for _ in range(options.rounds)]
        start = [command_seconds(["upgrade", "--help"]) for _ in range(options.rounds)]
        parts = parts_of(options.old, Path(new), options.keras_python)
    print("| part | processor s | by the clock |\n|---|---|---|")
    for name, seconds in (("the whole command", whole), ("of which its start", start)):
        clock, spent = (median(each) for each in zip(*seconds, strict=True))
        print(f"| {name} | {spent:.1f} | {clock:.1f} |")
    for where, spent_there in parts.items():
        for what, each in spent_there.items():
            print(f"| {where}: {what} | {each:.1f} | |")
    print(f"load of the machine: {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")


if __name__ == "__main__":
    main()

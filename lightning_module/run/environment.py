"""`environment.json` in the run's folder: software, hardware and data of a run, so that it can be repeated."""

import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer

from lightning_module.run.run_folder import RunFolder, read_environment, write_json
from models.digests import file_digest

SCHEMA = 1
ALIKE = ("python", "platform", "device", "processes", "threads", "packages", "git")
"""What should stay the same when a run is resumed, so that its result is the same as without an interruption."""


def describe_environment(trainer: Trainer, settings: dict[str, Any], weights: Path | None) -> dict[str, Any]:
    """Collect everything besides the settings that is needed to repeat a run with the same result.

    Args:
        trainer: with its data module set up.
        settings: as in config.yaml.
        weights: file of the pretrained weights, if one was given.
    """
    describe_sets = getattr(getattr(trainer, "datamodule", None), "describe_sets", dict)
    return {
        "schema": SCHEMA,
        "command": shlex.join(["lightning", *sys.argv[1:]]),
        "folder": str(Path.cwd()),
        "started": now(),
        "resumed": [],
        "finished": None,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": device_name(trainer),
        "processes": trainer.world_size,
        "threads": torch.get_num_threads(),
        "packages": dict(installed_packages()),
        "git": git_state(Path(__file__).parent),
        "seeds": {"seed_everything": settings.get("seed_everything"), "data.seed": settings["data"].get("seed")},
        "weights": None if weights is None else _describe_weights(weights),
        "data": describe_sets(),
    }


@cache
def installed_packages() -> tuple[tuple[str, str], ...]:
    """(name, version) of all that is installed, sorted; read once, as there are hundreds of files."""
    known = ((each.metadata["Name"], each.metadata["Version"]) for each in distributions())
    return tuple(sorted((name.lower(), version) for name, version in known if name))


def _describe_weights(file: Path) -> dict[str, str | None]:
    """Return the file and its digest; no digest if the file is gone, as it may be when a run is resumed."""
    return {"file": str(file), "sha256": file_digest(file) if file.is_file() else None}


def now() -> str:
    """Return date and time, in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def device_name(trainer: Trainer) -> str:
    """Return the name of the processor or GPU that computes."""
    device = trainer.strategy.root_device
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def git_state(folder: Path) -> dict[str, Any] | None:
    """Return the commit of the code in `folder`, and whether files have changed since; None if it is no checkout."""

    def ask(*question: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *question], capture_output=True, text=True, check=True, timeout=30
        ).stdout.strip()

    try:
        return {"commit": ask("rev-parse", "HEAD"), "dirty": bool(ask("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None


def note_resumption(run: RunFolder, environment: dict[str, Any], place: str) -> list[str]:
    """Record that a run was resumed, and return what has changed since it began.

    Args:
        run: the run's folder.
        environment: what `describe_environment` returns now.
        place: what the run continues from.
    """
    before = read_environment(run) or environment
    changed: dict[str, Any] = {}
    for name in ALIKE:
        then, today = before.get(name), environment[name]
        if name == "packages" and isinstance(then, dict):
            changed |= {
                package: today.get(package)
                for package in sorted({*then, *today})
                if then.get(package) != today.get(package)
            }
        elif then != today:
            changed[name] = today
    resumption = {"at": now(), "from": place, **({"changed": changed} if changed else {})}
    write_json(run.environment, before | {"resumed": [*before.get("resumed", []), resumption], "finished": None})
    return list(changed)


def note_finish(run: RunFolder, exit_code: int, verdict: str | None) -> None:
    """Record that a run has finished, and how."""
    content = read_environment(run)
    if content:
        write_json(run.environment, content | {"finished": {"at": now(), "exit_code": exit_code, "parity": verdict}})

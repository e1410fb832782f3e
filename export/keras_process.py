"""Starts `keras_worker.py` under an interpreter that has a Keras, and reads its reply.

Keras never runs in our own process: TensorFlow imported beside torch crashes it, and the Keras that matters is often
another team's, under another interpreter.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from models.bad_input import BadInput

_WORKER = Path(__file__).with_name("keras_worker.py")
# What a worker may inherit that would change what it computes or where it runs.
_NOT_INHERITED = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP")
# What can be done about each kind of refusal.
_REMEDIES = {
    "keras": "Give an interpreter that has one with --keras-python.",
    "model": "Export it again, or save it again in the Keras that it comes from.",
    "package": "Install it there.",
}

GPU_VARIABLE = "SHELFTWIN_KERAS_GPU"
"""Environment variable: the GPUs that Keras may use, as CUDA_VISIBLE_DEVICES names them."""


class KerasFailed(RuntimeError):
    """The worker crashed, ran out of time, or failed in a way that is neither the model's nor the caller's fault."""


def run_keras(
    jobs: list[tuple[Path, list[dict[str, Any]]]], *, python: Path | None = None, time_limit: float = 900.0
) -> dict[str, Any]:
    """Load Keras models in a process of its own and do tasks with each.

    Args:
        jobs: for each model its `.h5` and its tasks (see `keras_worker.TASKS`); paths in tasks must be absolute.
        python: interpreter that has a Keras; None: the one that runs us.
        time_limit: seconds after which the worker is ended.

    Returns:
        The worker's reply: ``versions``, and ``results``: for each job a list, one for each task.

    Raises:
        BadInput: when the interpreter has no Keras, or its Keras cannot load a model.
        KerasFailed: when the worker crashed or ran out of time.
    """
    request = {"jobs": [{"model": str(h5.resolve()), "tasks": tasks} for h5, tasks in jobs]}
    return run_worker(_WORKER, request, python=python, time_limit=time_limit)


def run_worker(
    script: Path, request: dict[str, Any], *, python: Path | None = None, time_limit: float = 900.0
) -> dict[str, Any]:
    """Hand a request to a script that works as `keras_worker.py` does, in a process of its own; otherwise `run_keras`.

    Args:
        script: takes the paths of request and reply.
        request: plain JSON types.
        python: interpreter that has what the script needs; None: the one that runs us.
        time_limit: seconds after which it is ended.
    """
    interpreter = Path(python or sys.executable)
    with tempfile.TemporaryDirectory(prefix="shelftwin-") as folder:
        asked, reply = Path(folder) / "request.json", Path(folder) / "reply.json"
        asked.write_text(json.dumps(request))
        command = [str(interpreter), str(script), str(asked), str(reply)]
        try:
            done = subprocess.run(
                command, env=_environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True,
                errors="replace", timeout=time_limit, check=False,
            )  # fmt: skip
        except FileNotFoundError as error:
            raise BadInput(
                f"expected a Python interpreter with Keras, got {interpreter}, which does not exist. Check the path."
            ) from error
        except (PermissionError, OSError) as error:
            raise BadInput(
                f"expected a Python interpreter with Keras, got {interpreter}: {error.strerror}. Name another."
            ) from error
        except subprocess.TimeoutExpired as error:
            raise KerasFailed(
                f"the Keras process ran longer than its limit of {time_limit:.0f} s and was ended."
            ) from error
        if not reply.is_file():
            raise KerasFailed(f"the Keras process ended without a reply ({_ending(done)}).\n{_last_lines(done.stderr)}")
        try:
            answer = json.loads(reply.read_text())
        except ValueError as error:
            raise KerasFailed(f"the Keras process ended while it wrote its reply ({_ending(done)}).") from error
    if "error" not in answer:
        return answer
    if answer["kind"] == "fault":
        raise KerasFailed(f"the Keras process failed:\n{answer['error']}")
    raise BadInput(f"{answer['error']}. {_REMEDIES[answer['kind']]}")


def _environment() -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
    # No GPU unless asked: the proof must not compete with training for it, nor depend on its rounding.
    return {**inherited, "CUDA_VISIBLE_DEVICES": os.environ.get(GPU_VARIABLE, "-1"), "TF_CPP_MIN_LOG_LEVEL": "3"}


def _ending(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode < 0:
        return f"killed by signal {signal.Signals(-done.returncode).name}"
    return f"exit code {done.returncode}"


def _last_lines(text: str, count: int = 15) -> str:
    return "\n".join(text.strip().splitlines()[-count:])

"""Starts `keras_worker.py` under an interpreter that has a Keras, and reads its reply.

Keras never runs in our own process: importing TensorFlow beside torch crashes it, and the Keras that matters often
belongs to another team and another interpreter.
"""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from models.bad_input import BadInput

if TYPE_CHECKING:
    import numpy as np

KERAS_WORKER = Path(__file__).with_name("keras_worker.py")
# Not inherited by a worker, because they would change what it computes or where it runs.
_NOT_INHERITED = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP")
# What the user can do about each kind of refusal.
_REMEDIES = {
    "keras": "Give an interpreter that has one with --keras-python.",
    "model": "Name an interpreter that has the Keras that it comes from with --keras-python, or export it again.",
    "package": "Install it there.",
    "format": "Make it again with `lightning export`.",
    "architecture": "Give --architecture one that it has, or a FILE.json with what model.to_json() says.",
}

GPU_VARIABLE = "SHELFTWIN_KERAS_GPU"
"""Environment variable: the GPUs that Keras may use, as CUDA_VISIBLE_DEVICES names them."""


class KerasFailed(RuntimeError):
    """The worker crashed, ran out of time, or failed in a way that is neither the model's nor the caller's fault."""


def run_keras(
    jobs: list[tuple[Path, list[dict[str, Any]]]],
    *,
    python: Path | None = None,
    time_limit: float = 900.0,
    legacy: bool = False,
) -> dict[str, Any]:
    """Load Keras models in a process of its own and do tasks with each.

    Args:
        jobs: for each model its `.h5` and its tasks (see `keras_worker.TASKS`); paths in tasks must be absolute.
        python: interpreter that has a Keras; None: the one that is running this.
        time_limit: seconds after which the worker is stopped.
        legacy: let TensorFlow's own switch put tf_keras before Keras 3, where the interpreter has both.

    Returns:
        The worker's reply: ``versions``, and ``results``, which has for each job a list with a result for each task.

    Raises:
        BadInput: the interpreter has no Keras, or its Keras cannot load a model.
        KerasFailed: the worker crashed or ran out of time.
    """
    request = {"jobs": [{"model": str(h5.resolve()), "tasks": tasks} for h5, tasks in jobs]}
    return run_worker(KERAS_WORKER, request, python=python, time_limit=time_limit, legacy=legacy)


def run_worker(
    script: Path,
    request: dict[str, Any],
    *,
    python: Path | None = None,
    time_limit: float = 900.0,
    legacy: bool = False,
) -> dict[str, Any]:
    """Send a request to a script with the interface of `keras_worker.py`, in a process of its own; see `run_keras`.

    Args:
        script: takes the paths of request and reply as arguments.
        request: plain JSON types.
        python: interpreter that has what the script needs; None: the one that is running this.
        time_limit: seconds after which the script is stopped.
        legacy: let TensorFlow's own switch put tf_keras before Keras 3, where the interpreter has both.
    """
    interpreter = Path(python or sys.executable)
    with tempfile.TemporaryDirectory(prefix="shelftwin-") as folder:
        asked, reply = Path(folder) / "request.json", Path(folder) / "reply.json"
        asked.write_text(json.dumps(request))
        command = [str(interpreter), str(script), str(asked), str(reply)]
        try:
            done = subprocess.run(
                command, env=_environment(legacy), stdin=subprocess.DEVNULL, capture_output=True, text=True,
                errors="replace", timeout=time_limit, check=False,
            )  # fmt: skip
        except OSError as error:
            raise _no_interpreter(interpreter, error) from error
        except subprocess.TimeoutExpired as error:
            raise KerasFailed(
                f"the Keras process ran longer than its limit of {time_limit:.0f} s and was ended."
            ) from error
        if not reply.is_file():
            ending = _ending(done.returncode)
            raise KerasFailed(f"the Keras process ended without a reply ({ending}).\n{_last_lines(done.stderr)}")
        try:
            answer = json.loads(reply.read_text())
        except ValueError as error:
            ending = _ending(done.returncode)
            raise KerasFailed(f"the Keras process ended while it wrote its reply ({ending}).") from error
    return _without_error(answer)


class KerasStream:
    """A Keras process that has loaded one model and does tasks with it on demand; a context manager.

    Args:
        h5: the model.
        python: interpreter that has a Keras; None: the one that is running this.
        time_limit: seconds for loading.
        worker: the script and its arguments before the model.

    Attributes:
        input_shape: NHWC as Keras reports it, with None for sizes that may vary; None if there are several inputs.
        output_shape: the same for the output.
        is_quantised: whether the model's outputs are integers, as they are in some other formats.

    Raises:
        BadInput: the interpreter has no Keras, or its Keras cannot load the model.
        KerasFailed: the process crashed or ran out of time.
    """

    def __init__(
        self,
        h5: Path,
        python: Path | None = None,
        time_limit: float = 600.0,
        worker: Sequence[str | Path] = (KERAS_WORKER, "stream"),
    ) -> None:
        interpreter = Path(python or sys.executable)
        # A file, not a pipe: a pipe that nobody reads would fill up and block the process.
        self._said = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            self._process = subprocess.Popen(
                [str(interpreter), *map(str, worker), str(h5.resolve())], env=_environment(),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said,
            )  # fmt: skip
        except OSError as error:
            self._said.close()
            raise _no_interpreter(interpreter, error) from error
        try:
            loaded = self._reply(time_limit)
        except BaseException:
            self.close()
            raise
        self.input_shape: list[int | None] | None = loaded["input_shape"]
        self.output_shape: list[int | None] | None = loaded["output_shape"]
        self.is_quantised: bool = loaded.get("is_quantised", False)

    def __enter__(self) -> KerasStream:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        with suppress(BrokenPipeError):  # what it has not read any more
            self._process.communicate()
        self._said.close()

    def ask(self, task: dict[str, Any], time_limit: float) -> dict[str, Any]:
        """Have a task done (see `keras_worker.TASKS`) and return its result.

        Args:
            task: the paths in it must be absolute.
            time_limit: seconds after which the process is stopped.

        Raises:
            KerasFailed: the process crashed or ran out of time.
        """
        return self._reply(time_limit, json.dumps(task).encode() + b"\n")

    def compute(self, task: dict[str, Any], images: np.ndarray, time_limit: float) -> np.ndarray:
        """Have a task done with images that are in no file, and return what it computes, which is in no file either.

        Args:
            task: as for `ask`, without ``inputs`` and ``outputs``.
            images: (N, H, W, 3).
            time_limit: as for `ask`.

        Raises:
            KerasFailed: the process crashed or ran out of time.
        """
        import numpy as np  # `lightning --help` needs none

        content = io.BytesIO()
        np.save(content, images)
        line = json.dumps({**task, "inputs_bytes": content.tell()}).encode() + b"\n"
        reply = self._reply(time_limit, line, content.getbuffer())
        return np.asarray(np.load(io.BytesIO(base64.b64decode(reply["outputs_base64"])), allow_pickle=False))

    def _reply(self, time_limit: float, *asked: bytes | memoryview) -> dict[str, Any]:
        ran_out = threading.Event()

        def end() -> None:
            ran_out.set()
            self._process.kill()

        timer = threading.Timer(time_limit, end)
        timer.start()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            with suppress(OSError):  # the process has ended; reading its reply reports that
                for part in asked:
                    self._process.stdin.write(part)
                self._process.stdin.flush()
            line = self._process.stdout.readline()
        finally:
            timer.cancel()
        if line.endswith(b"\n"):
            return _without_error(json.loads(line))
        if ran_out.is_set():
            raise KerasFailed(f"the Keras process ran longer than its limit of {time_limit:.0f} s and was ended.")
        self._process.wait()
        self._said.seek(0)
        said, ending = self._said.read().decode(errors="replace"), _ending(self._process.returncode)
        raise KerasFailed(f"the Keras process ended without a reply ({ending}).\n{_last_lines(said)}")


def _no_interpreter(interpreter: Path, error: OSError) -> BadInput:
    if isinstance(error, FileNotFoundError):
        return BadInput(
            f"expected a Python interpreter with Keras, got {interpreter}, which does not exist. Check the path."
        )
    return BadInput(f"expected a Python interpreter with Keras, got {interpreter}: {error.strerror}. Name another.")


def _without_error(answer: dict[str, Any]) -> dict[str, Any]:
    if "error" not in answer:
        return answer
    if answer["kind"] == "fault":
        raise KerasFailed(f"the Keras process failed:\n{answer['error']}")
    raise BadInput(f"{answer['error']}. {_REMEDIES[answer['kind']]}")


def _environment(legacy: bool = False) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
    # No GPU unless asked for: the proof must not compete with training for it, nor depend on how it rounds.
    if legacy:
        inherited["TF_USE_LEGACY_KERAS"] = "1"
    return {**inherited, "CUDA_VISIBLE_DEVICES": os.environ.get(GPU_VARIABLE, "-1"), "TF_CPP_MIN_LOG_LEVEL": "3"}


def _ending(code: int) -> str:
    if code < 0:
        return f"killed by signal {signal.Signals(-code).name}"
    return f"exit code {code}"


def _last_lines(text: str, count: int = 15) -> str:
    return "\n".join(text.strip().splitlines()[-count:])

"""Asks `keras_generator_reference.py`, which runs in one process of its own for the whole test session."""

import atexit
import functools
import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).with_name("keras_generator_reference.py")

needs_keras = [
    pytest.mark.keras,
    pytest.mark.skipif(importlib.util.find_spec("keras") is None, reason="Keras is not installed"),
]
needs_keras_transform = [
    *needs_keras,
    pytest.mark.skipif(
        importlib.util.find_spec("scipy") is None, reason="SciPy is not installed; Keras needs it to transform photos"
    ),
]


@functools.cache
def keras_process() -> subprocess.Popen:
    """Start Keras, which takes seconds; once."""
    process = subprocess.Popen([sys.executable, SCRIPT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(process.kill)
    return process


def ask_keras(task: str, **arguments) -> dict[str, np.ndarray]:
    """Have one task of the reference script done; returns its arrays by name."""
    process = keras_process()
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder, "answer.npz")
        process.stdin.write(json.dumps({"task": task, "answer": str(answer), **arguments}) + "\n")
        process.stdin.flush()
        reply = process.stdout.readline()
        assert reply, f"the Keras process ended with {process.wait(10)}; its stderr is above"
        assert json.loads(reply) == "done", json.loads(reply)
        with np.load(answer) as arrays:
            return dict(arrays)

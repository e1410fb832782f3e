"""Sends tasks to `format_worker.py` and reads what the formats' own runtimes computed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from export.worker.keras_process import run_worker

FORMAT_WORKER = Path(__file__).with_name("format_worker.py")


def run_formats(tasks: list[dict[str, Any]], images: int, python: Path | None = None) -> dict[str, Any]:
    """Do tasks (see `format_worker.TASKS`) in a process of its own.

    Args:
        tasks: in order; the paths in them must be absolute.
        images: how many images the tasks run through a network; this sets the time limit.
        python: interpreter with TensorFlow and the formats' packages; None: the one that is running this.

    Returns:
        The worker's reply: ``versions``, and ``results``, one for each task.

    Raises:
        BadInput: the worker's Keras cannot load a `.h5`.
        KerasFailed: the process crashed or ran out of time.
    """
    return run_worker(FORMAT_WORKER, {"tasks": tasks}, python=python, time_limit=900 + 5 * images)


def prediction_tasks(
    name: str, path: Path, saved: Sequence[dict[str, Any]], folder: Path, **changes: Any
) -> list[dict[str, Any]]:
    """A `predict` task for each set of images.

    Args:
        name: the format, a key of `format_worker.RUNNERS`.
        path: the model.
        saved: what `ImageSet.save` returned for each set.
        folder: where the outputs go.
        changes: further entries for the tasks, or other values, such as another ``batch_size``.
    """
    common = {"task": "predict", "format": name, "path": str(path)}
    return [
        {**common, **inputs, "outputs": str(folder / f"{name}_{number}.npy"), **changes}
        for number, inputs in enumerate(saved)
    ]


def read_outputs(task: dict[str, Any]) -> np.ndarray:
    """The result of a `predict` task: probabilities, float32, (N, C)."""
    return np.load(task["outputs"], allow_pickle=False)

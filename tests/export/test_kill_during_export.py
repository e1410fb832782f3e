"""SIGKILL at any moment of an export: the file there is whole, the old one or the new one."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from export.keras_file.read import KerasFile, read_keras_h5
from export.torch_to_keras import write_twin
from tests.conftest import ROOT, random_classifier, save_checkpoint

KILLS = 30
# Others are aimed at the writing itself, which is a small part of an export.
AIMED_KILLS = 8
# Imports once, then exports in forks, which are killed: starting Python anew each time would take minutes. One thread,
# because others do not survive a fork.
EXPORTER = """
import os, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from export.torch_to_keras import write_twin
out = Path(sys.argv[1])
write_twin(Path(sys.argv[2]), out.with_name("warm.h5"))
print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if not child:
        write_twin(Path(line.strip()), out)
        os._exit(0)
    print(child, flush=True)
    os.waitpid(child, 0)
    print("ended", flush=True)
"""


@pytest.fixture(scope="module")
def exporter(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    checkpoints = [
        save_checkpoint(folder / f"{seed}.ckpt", random_classifier(seed, backbone="mobilenetv2_035"), (64, 64))
        for seed in (0, 1)
    ]
    out = folder / "model.h5"
    write_twin(checkpoints[0], out)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", EXPORTER, str(out), str(checkpoints[0])],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    yield process, checkpoints, out
    process.kill()
    process.wait()


def start(process: subprocess.Popen, checkpoint: Path) -> int:
    process.stdin.write(f"{checkpoint}\n")
    process.stdin.flush()
    return int(process.stdout.readline())


def same(left: KerasFile, right: KerasFile) -> bool:
    arrays = zip(left.weights.values(), right.weights.values(), strict=True)
    return (left.config, left.details) == (right.config, right.details) and all(
        np.array_equal(a, b) for ours, theirs in arrays for a, b in zip(ours, theirs, strict=True)
    )


@pytest.fixture(scope="module")
def whole(exporter) -> list[KerasFile]:
    """What each checkpoint's file holds."""
    _, checkpoints, out = exporter
    paths = [out.with_name(f"whole{number}.h5") for number in range(len(checkpoints))]
    for checkpoint, path in zip(checkpoints, paths, strict=True):
        write_twin(checkpoint, path)
    return [read_keras_h5(path) for path in paths]


def half_written(out: Path) -> list[Path]:
    return list(out.parent.glob(f".{out.name}.*"))


def test_a_killed_export_leaves_a_whole_file(exporter, whole):
    process, checkpoints, out = exporter
    begin = time.perf_counter()
    start(process, checkpoints[1])
    assert process.stdout.readline() == "ended\n"
    whole_export = time.perf_counter() - begin
    assert same(read_keras_h5(out), whole[1])
    chance = random.Random(0)
    unfinished, found = 0, []
    for number in range(KILLS):
        child = start(process, checkpoints[number % 2])
        time.sleep(chance.uniform(0, 1.1 * whole_export))
        with suppress(ProcessLookupError):  # it was faster
            os.kill(child, signal.SIGKILL)
        assert process.stdout.readline() == "ended\n"
        there = read_keras_h5(out)
        found.append([index for index, each in enumerate(whole) if same(there, each)])
        unfinished += len(found[-1]) == 1 and found[-1][0] != number % 2
    assert all(len(each) == 1 for each in found)
    # The control: it was really killed on the way, more than once.
    assert unfinished >= 3


def test_an_export_killed_while_it_writes_leaves_the_old_file_and_the_next_one_removes_the_rest(exporter, whole):
    process, checkpoints, out = exporter
    write_twin(checkpoints[0], out)
    start(process, checkpoints[0])
    writing = time_of_writing(out)
    assert process.stdout.readline() == "ended\n"
    chance = random.Random(1)
    in_writing = 0
    for number in range(AIMED_KILLS):
        child = start(process, checkpoints[1])
        wait_for(lambda: half_written(out))
        # half of them at once, the others at any moment of it, up to the rename
        time.sleep(chance.uniform(0, 0.9 * writing) if number % 2 else 0)
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        assert process.stdout.readline() == "ended\n"
        killed_in_writing = bool(half_written(out))
        in_writing += killed_in_writing
        expected = [whole[0]] if killed_in_writing else whole  # it may have been faster
        there = read_keras_h5(out)
        assert any(same(there, each) for each in expected)
        write_twin(checkpoints[0], out)
        assert not half_written(out)
    # The control: what was killed had begun to write and had not ended.
    assert in_writing >= AIMED_KILLS // 4


def wait_for(what: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.0005)


def time_of_writing(out: Path) -> float:
    """Seconds from the temporary file's appearance to its renaming, of the export that has been started."""
    wait_for(lambda: half_written(out))
    begin = time.perf_counter()
    wait_for(lambda: not half_written(out))
    return time.perf_counter() - begin

"""Two processes train the network that one trains with their batches put together, and one of them writes."""

import json
import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from datamodule.demo_photos import draw_catalogue
from tests.conftest import ROOT, load_script

kill_and_resume = load_script(ROOT / "benchmarks" / "training" / "kill_and_resume.py")
pytestmark = pytest.mark.slow
SETTINGS = [
    "--model.backbone=mobilenetv2_short", "--model.pretrained=false", "--model.hidden=[8]", "--data.image_size=32",
    "--data.validation_split=0.19", "--data.augmentation.rotation_range=20", "--data.augmentation.horizontal_flip=true",
    "--trainer.accelerator=cpu", "--num_threads=1",
]  # fmt: skip
FINE_TUNING = [
    "--model.trainable=all", "--model.schedule.head_epochs=1", "--model.schedule.batch_norm=frozen",
    "--model.schedule.cosine=true", "--trainer.gradient_clip_val=1",
    "--trainer.callbacks+=lightning_module.fine_tuning.EmaOfWeights",
]  # fmt: skip
TWO = ["--trainer.devices=2", "--trainer.strategy=ddp"]
ONE_ON_EACH = ["--trainer.devices=1", "--trainer.strategy=ddp", "--trainer.num_nodes=2"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """So many that neither sets nor steps divide by two."""
    root = tmp_path_factory.mktemp("catalogue") / "photos"
    draw_catalogue(root, per_class=12, seed=0)
    for photo in (*(root / "tv").glob("*11.jpg"), *(root / "sofa").glob("*1[01].jpg")):
        photo.unlink()
    return root


@pytest.fixture(scope="module")
def start(photos, command_python, tmp_path_factory):
    """Start a fit into a folder, in one process or more."""
    cache = tmp_path_factory.mktemp("cache")
    environment = os.environ | {
        "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(cache),
    }  # fmt: skip

    def start(
        run: Path, *more: str, epochs: int = 2, launcher: list[str] | None = None, log: Path | None = None, **own: str
    ) -> subprocess.Popen:
        arguments = [*SETTINGS, f"--data.root={photos}", f"--trainer.default_root_dir={run}", *more]
        command = [command_python, *(launcher or []), "-m", "lightning_module", "fit", *arguments]
        with (log or run.with_suffix(".log")).open("w") as file:
            return subprocess.Popen(
                [*command, f"--trainer.max_epochs={epochs}"], stdout=file, stderr=file, env=environment | own
            )

    start.cache = cache
    return start


def finish(run: Path, process: subprocess.Popen) -> Path:
    assert process.wait() == 0, run.with_suffix(".log").read_text()
    return run


@pytest.fixture(scope="module")
def alone(start, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("alone") / "run"
    return finish(run, start(run, "--data.batch_size=8", "--hand_over.enabled=false"))


def largest_difference(left: Path, right: Path) -> float:
    states = [torch.load(run / "last.ckpt", weights_only=True)["state_dict"] for run in (left, right)]
    return max(float((states[0][name].double() - states[1][name].double()).abs().max()) for name in states[0])


def check_same_figures(left: Path, right: Path) -> None:
    contents = [json.loads((run / "metrics.json").read_text()) for run in (left, right)]
    for ours, theirs in zip(*(content["epochs"] for content in contents), strict=True):
        for name in set(ours) - {"seconds", "train_seconds", "images_per_second"}:
            assert ours[name] == pytest.approx(theirs[name], abs=1e-5), name
    matrices = [content["final"]["confusion_matrix"] for content in contents]
    assert matrices[0] == matrices[1]
    assert contents[0]["final"]["photos"] == contents[1]["final"]["photos"] == 7


@pytest.mark.keras
def test_two_processes_started_by_lightning_train_what_one_trains_and_hand_over_once(start, alone, tmp_path):
    run = tmp_path / "run"
    finish(run, start(run, "--data.batch_size=4", *TWO, "--hand_over.max_photos=3"))
    assert largest_difference(alone, run) < 1e-5
    check_same_figures(alone, run)
    assert [path.name for path in tmp_path.rglob("*.h5")] == ["model.h5"]
    assert json.loads((run / "parity.json").read_text())["verdict"] == "PASS"
    assert run.with_suffix(".log").read_text().count("parity PASS") == 1
    environment = json.loads((run / "environment.json").read_text())
    assert environment["processes"] == 2
    assert environment["data"] == json.loads((alone / "environment.json").read_text())["data"]
    # decoded once for both
    (pixels,) = start.cache.rglob("pixels")
    assert pixels.stat().st_size == 45 * 32 * 32 * 3


def test_other_batches_train_something_else(start, alone, tmp_path):
    run = tmp_path / "run"
    finish(run, start(run, "--data.batch_size=4", "--hand_over.enabled=false"))
    assert largest_difference(alone, run) > 1e-5


def test_fine_tuning_by_two_processes_survives_sigterm(start, tmp_path):
    peace, run = tmp_path / "peace", tmp_path / "run"
    finish(peace, start(peace, "--data.batch_size=8", "--hand_over.enabled=false", *FINE_TUNING, epochs=5))
    more = ["--data.batch_size=4", *TWO, "--hand_over.enabled=false", *FINE_TUNING]
    process, log = start(run, *more, epochs=5), run.with_suffix(".log")
    while "epoch 2/5" not in log.read_text():
        assert process.poll() is None, log.read_text()
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 143, log.read_text()
    assert len(re.findall(r"lightning: SIGTERM: \S*last.ckpt is of", log.read_text())) == 1
    finish(run, start(run, *more, "--resume", epochs=5))
    assert "Going on with the run" in log.read_text()
    # Clipped and adaptive steps amplify what adding in another order rounds off.
    assert largest_difference(peace, run) < 1e-5
    check_same_figures(peace, run)


# Two machines, as far as one can stand for two: each with processes and a cache of its own ----------------------------


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def check_decoded_once_on_each(caches: list[Path]) -> None:
    for cache in caches:
        (pixels,) = cache.rglob("pixels")
        assert pixels.stat().st_size == 45 * 32 * 32 * 3


def test_two_machines_of_torchrun_train_what_one_process_trains(start, alone, tmp_path):
    run, endpoint = tmp_path / "run", f"127.0.0.1:{free_port()}"
    launcher = [
        "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=2", "--rdzv_backend=c10d",
        f"--rdzv_endpoint={endpoint}", "--rdzv_id=shelftwin", "--local_addr=127.0.0.1",
    ]  # fmt: skip
    more = ["--data.batch_size=2", *TWO, "--trainer.num_nodes=2", "--hand_over.enabled=false"]
    caches, logs = ([tmp_path / f"{what}{node}" for node in (0, 1)] for what in ("cache", "log"))
    machines = [
        start(run, *more, launcher=launcher, log=log, XDG_CACHE_HOME=str(cache))
        for cache, log in zip(caches, logs, strict=True)
    ]
    assert [machine.wait() for machine in machines] == [0, 0], "".join(log.read_text() for log in logs)
    assert largest_difference(alone, run) < 1e-5
    check_same_figures(alone, run)
    assert json.loads((run / "environment.json").read_text())["processes"] == 4
    check_decoded_once_on_each(caches)


@pytest.mark.keras
def test_two_machines_of_slurm_are_queued_again_and_hand_over_once(start, alone, tmp_path):
    """What SLURM does, done by hand: a process for each task, its signal to all of them, the same job once more."""
    run, asked = tmp_path / "run", tmp_path / "asked"
    (tmp_path / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {asked}\n')
    (tmp_path / "scontrol").chmod(0o755)
    caches, logs = ([tmp_path / f"{what}{node}" for node in (0, 1)] for what in ("cache", "log"))
    more = [
        "--data.batch_size=4", *ONE_ON_EACH, "--hand_over.max_photos=3",
        # an epoch of a few milliseconds is over before a signal is sent
        "--trainer.callbacks+=test_distributed.Slowly", "--last_checkpoint.minutes=5",
    ]  # fmt: skip

    def tasks(**own: str) -> list[subprocess.Popen]:
        job = {
            "SLURM_JOB_ID": "77", "SLURM_JOB_NAME": "fit", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1",
            "SLURM_NNODES": "2", "SLURM_NODELIST": "localhost", "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()), "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(ROOT)]),
        }  # fmt: skip
        return [
            start(
                run, *more, log=logs[node], XDG_CACHE_HOME=str(caches[node]), SLURM_PROCID=str(node),
                SLURM_LOCALID="0", SLURM_NODEID=str(node), **job, **own,
            )
            for node in (0, 1)
        ]  # fmt: skip

    first = tasks()
    while "epoch 1/2" not in logs[0].read_text():
        assert first[0].poll() is None, logs[0].read_text()
        time.sleep(0.02)
    for task in first:
        task.send_signal(signal.SIGUSR1)
    assert [task.wait() for task in first] == [128 + signal.SIGUSR1] * 2, logs[0].read_text()
    assert asked.read_text() == "requeue 77\n"
    assert len(re.findall(r"lightning: SIGUSR1: \S*last.ckpt is of", logs[0].read_text())) == 1

    again = tasks(SLURM_RESTART_COUNT="1")
    assert [task.wait() for task in again] == [0] * 2, logs[0].read_text()
    assert "Going on with the run" in logs[0].read_text()
    assert largest_difference(alone, run) < 1e-5
    check_same_figures(alone, run)
    assert [path.name for path in tmp_path.rglob("*.h5")] == ["model.h5"]


class Slowly(Callback):
    """Gives a signal the time to come within an epoch."""

    def on_train_batch_end(self, *_: object) -> None:
        time.sleep(0.5)

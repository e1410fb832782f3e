"""Labelling on Ray: the files of the local engine, whoever is killed. Two raylets on this machine are two machines."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch
from PIL import Image

from export.torch_to_keras import write_twin
from export.worker import keras_process
from lightning_module.fleet.ray_engine import Node, Workers, workers_for
from tests.conftest import ROOT, lightning, random_classifier, save_checkpoint
from tests.lightning_module.fleet.test_data_set import files_of, random_checkpoint, rows_of

PHOTOS, PARTS = 48, 16
SECONDS = 300
"""Far more than a run needs, however busy the machine is."""
OPTIONS = ("--photos_per_part=3", "--batch_size=2")


@pytest.mark.parametrize(
    ("nodes", "asked", "on_gpus", "expected"),
    [
        ([Node(2)], None, True, Workers(1, 2, 0)),
        ([Node(2)], 2, True, Workers(2, 1, 0)),
        ([Node(1), Node(1)], None, True, Workers(2, 1, 0)),
        ([Node(0), Node(64), Node(64)], None, True, Workers(16, 8, 0)),  # a head that computes nothing
        ([Node(4), Node(64)], None, True, Workers(17, 4, 0)),
        ([Node(16), Node(16)], 3, True, Workers(3, 8, 0)),
        ([Node(1)], 4, True, Workers(4, 1, 0)),  # three wait for machines
        ([], None, True, Workers(1, 1, 0)),
        ([Node(16, 1), Node(32, 4)], None, True, Workers(5, 8, 1)),
        ([Node(16, 2)], 1, True, Workers(1, 8, 1)),
        ([Node(16, 1)], 2, True, Workers(2, 8, 0.5)),
        ([Node(16, 1)], None, False, Workers(2, 8, 0)),
    ],
)
def test_workers_find_room(nodes, asked, on_gpus, expected):
    assert workers_for(nodes, asked, on_gpus) == expected


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    random_checkpoint(folder / "best.ckpt", 0)
    write_twin(folder / "best.ckpt", folder / "model.h5")
    (folder / "shop").mkdir()
    for number in range(6):  # large enough for a kill to find a part unfinished
        Image.effect_noise((900, 900 + number), 60).convert("RGB").save(folder / "shop" / f"{number:02d}.jpg")
    for number in range(6, PHOTOS - 1):
        os.link(folder / "shop" / f"{number % 6:02d}.jpg", folder / "shop" / f"{number:02d}.jpg")
    (folder / "shop" / "broken.jpg").write_bytes(b"\xff\xd8\xff, but no more")
    return folder


@pytest.fixture(scope="module")
def cluster(made) -> Iterator["object"]:
    """Two machines with one CPU each."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    from lightning_module.fleet.ray_engine import import_ray

    import_ray()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))  # of the workers
        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        nodes.add_node(num_cpus=1)
        yield nodes
        nodes.shutdown()


@pytest.fixture(scope="module")
def in_peace(made, tmp_path_factory) -> dict[str, bytes]:
    """The files of the local engine."""
    out = tmp_path_factory.mktemp("peace") / "labels"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made)
        assert lightning("predict", "best.ckpt", "shop", "--device=cpu", "--out", out, *OPTIONS) == 0
    return files_of(out)


def on(cluster: object, *arguments: object, model: str = "best.ckpt") -> list[str]:
    ours = ["predict", model, "shop", *OPTIONS, "--engine=ray", f"--ray_address={cluster.address}", *arguments]
    return [str(each) for each in ours]


def started(arguments: list[str]) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "lightning_module", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def wait_for(running: subprocess.Popen, moment: Callable[[], object]) -> None:
    until = time.monotonic() + SECONDS
    while running.poll() is None and not moment():
        assert time.monotonic() < until
        time.sleep(0.005)


def parts_of(out: str) -> int:
    return len(list(Path(out).glob("part-*")))


def workers_of(cluster: object) -> list[psutil.Process]:
    """Their processes."""
    raylets = [psutil.Process(node.all_processes["raylet"][0].process.pid) for node in cluster.list_all_nodes()]
    children = [child for raylet in raylets for child in raylet.children(recursive=True)]
    return [child for child in children if "PartWorker" in name_of(child)]


def name_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has ended
        return ""


@pytest.mark.slow
def test_two_machines_share_the_work_and_write_the_files_of_one(cluster, there, in_peace, capsys):
    assert lightning(*on(cluster, "--out=labels")) == 0
    assert files_of(Path("labels")) == in_peace
    said = capsys.readouterr().out
    assert ": 2 machines, 2 workers with 1 CPU each\n" in said
    shares = re.search("parts by machine: (.*)", said)[1].split(", ")
    assert len(shares) == 2
    assert sum(int(share.split()[-1]) for share in shares) == PARTS
    assert f"{PHOTOS - 1} photos labelled: labels, {PARTS} files" in said


@pytest.mark.slow
def test_killed_workers_and_a_killed_machine_change_nothing(cluster, there, in_peace):
    third = cluster.add_node(num_cpus=1)
    running = started(on(cluster, "--out=labels", "--num_workers=3"))
    killed = 0
    for moment in (2, 5):
        wait_for(running, lambda moment=moment: parts_of("labels") >= moment and workers_of(cluster))
        for worker in workers_of(cluster)[:1]:
            worker.kill()
            killed += 1
    wait_for(running, lambda: parts_of("labels") >= 7)
    assert running.poll() is None
    cluster.remove_node(third, allow_graceful=False)
    said, _ = running.communicate(timeout=SECONDS)
    assert running.returncode == 0, said
    print(f"kills: {killed} workers and a raylet")
    assert killed == 2
    assert files_of(Path("labels")) == in_peace


@pytest.mark.slow
def test_a_killed_driver_goes_on_with_either_engine(cluster, there, in_peace):
    kills = 0
    for moment in (1, 6):
        running = started(on(cluster, "--out=labels", "--resume"))
        wait_for(running, lambda moment=moment: parts_of("labels") >= moment)
        running.kill()
        running.communicate()
        kills += running.returncode == -signal.SIGKILL
    print(f"kills: {kills} of the command on Ray")
    assert kills == 2
    assert 0 < parts_of("labels") < PARTS
    arguments = ["predict", "best.ckpt", "shop", *OPTIONS, "--out=labels", "--resume", "--device=cpu"]
    assert lightning(*arguments) == 0
    assert files_of(Path("labels")) == in_peace
    assert len(rows_of(Path("labels"))) == PHOTOS


@pytest.mark.slow
@pytest.mark.keras
def test_keras_in_a_process_of_each_worker(cluster, there, in_peace, monkeypatch):
    """Started again where it is killed. But for the model's digest, the rows are those of its twin."""
    keras_python = ["--keras_python", keras_process.sys.executable]
    running = started(on(cluster, "--out=labels", "--num_workers=1", *keras_python, model="model.h5"))
    wait_for(running, lambda: parts_of("labels") >= 2)
    (worker,) = workers_of(cluster)
    keras = [each for each in worker.children(recursive=True) if "keras_worker" in name_of(each)]
    keras[0].kill()
    print("kills: 1 Keras process of a worker")
    said, _ = running.communicate(timeout=SECONDS)
    assert running.returncode == 0, said
    assert lightning("predict", "model.h5", "shop", *OPTIONS, "--out=local") == 0
    assert files_of(Path("labels")) == files_of(Path("local"))
    Path("peace").mkdir()
    for name, content in in_peace.items():
        Path("peace", name).write_bytes(content)
    ours, theirs = rows_of(Path("labels")), rows_of(Path("peace"))
    assert {row.pop("model_sha256") for row in ours} & {row.pop("model_sha256") for row in theirs} == set()
    assert ours == theirs


@pytest.mark.slow
def test_what_a_worker_cannot_use_is_our_message(cluster, there, capsys):
    network = random_classifier(backbone="mobilenetv2_035", hidden=())
    with torch.no_grad():
        network.head.predictions.bias.fill_(float("nan"))
    save_checkpoint(there / "nan.ckpt", network, (32, 32))
    assert lightning(*on(cluster, "--out=labels", model="nan.ckpt")) == 2
    said = capsys.readouterr().err
    assert "lightning: expected probabilities of 4 classes" in said
    assert "Traceback" not in said
    assert lightning(*on(cluster, "--out=other", "--device=cuda")) == 2
    assert "expected a cluster with GPUs" in capsys.readouterr().err


@pytest.mark.slow
def test_a_cluster_that_is_not_there_is_a_message(there, capsys):
    pytest.importorskip("ray")
    assert lightning("predict", "best.ckpt", "shop", "--out=l", "--engine=ray", "--ray_address=no address") == 2
    assert "--ray_address: expected a Ray cluster that can be reached" in capsys.readouterr().err

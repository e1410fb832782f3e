"""A run with both twins, and the service of it in a thread of this process: its Keras process is a fork."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import numpy as np
import pytest
import torch

from datamodule.demo_photos import draw_catalogue
from export.torch_to_keras import write_twin
from lightning_module.evaluation.labelling import Labelling
from models.digests import file_digest
from tests.conftest import CLASS_NAMES, random_classifier, save_checkpoint

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")

from lightning_module.serving.answers import Answers
from lightning_module.serving.app import make_app
from lightning_module.serving.counters import Counters
from lightning_module.serving.limits import Limits
from lightning_module.serving.model_facts import model_facts
from lightning_module.serving.served_files import find_files, make_labellers
from lightning_module.serving.server import Server, address_of, listen

DEFAULTS, LABELLING = Limits(), Labelling()
COUNTS = [[8, 2, 0, 0], [0, 10, 0, 0], [0, 0, 10, 0], [0, 0, 5, 5]]
"""A confusion matrix, by true and predicted class: of 15 photos called tshirt, 5 were tv."""


class Service(NamedTuple):
    """What a test needs of a running service."""

    client: httpx.Client
    answers: Answers
    server: Server
    url: str


def write_facts(run: Path) -> None:
    """What `lightning fit` writes beside the twins, as far as the service reads it."""
    digest, h5 = file_digest(run / "best.ckpt"), file_digest(run / "model.h5")
    final = {
        "set": "val", "photos": 40, "accuracy": 0.825, "accuracy_interval": [0.68, 0.91], "temperature": 1.5,
        "temperature_mistakes": 7, "confusion_matrix": {"counts": COUNTS}, "checkpoint_sha256": digest,
    }  # fmt: skip
    (run / "metrics.json").write_text(json.dumps({"final": final}))
    report = {
        "checkpoint": {"sha256": digest}, "model": {"sha256": h5}, "rungs": [{"passed": True}, {"passed": True}],
    }  # fmt: skip
    (run / "parity.json").write_text(json.dumps({"verdict": "PASS", "reports": [report]}))


@pytest.fixture(scope="session")
def run(tmp_path_factory) -> Path:
    """A small network for 48 x 40 pixels, which is sure of some photos, and its twin."""
    folder = tmp_path_factory.mktemp("served") / "RUN"
    folder.mkdir()
    network = random_classifier(backbone="mobilenetv2_short", hidden=(16,), mean=0.5, std=0.5)
    with torch.no_grad():
        network.head.predictions.weight.mul_(5)
    checkpoint = save_checkpoint(folder / "best.ckpt", network, (48, 40))
    write_twin(checkpoint, folder / "model.h5")
    write_facts(folder)
    assert len(CLASS_NAMES) == len(COUNTS)
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> list[Path]:
    root = tmp_path_factory.mktemp("shop") / "photos"
    draw_catalogue(root, per_class=4, seed=0)
    return sorted(root.rglob("*.jpg"))


@contextmanager
def serving(
    *files: Path,
    twin=None,
    limits: Limits = DEFAULTS,
    labelling: Labelling = LABELLING,
    batch_size: int = 2,  # Keras makes a graph for each size
    port: int = 0,
) -> Iterator[Service]:
    found = find_files(files, twin)
    labellers = make_labellers(found, "cpu")
    facts = model_facts(found, labellers, labelling)
    with ExitStack() as stack:
        taken = stack.enter_context(listen("127.0.0.1", port))
        answers = stack.enter_context(Answers(labellers, labelling, facts, limits, batch_size, Counters()))
        server = Server(make_app(answers, facts.content["name"]), limits, notice_seconds=0.0)
        ready = threading.Event()
        server.on_ready = ready.set
        thread = threading.Thread(target=server.run, args=([taken],))
        url = address_of(taken)
        thread.start()
        assert ready.wait(30)
        stack.callback(thread.join, 30)
        stack.callback(setattr, server, "force_exit", True)
        stack.callback(setattr, server, "should_exit", True)
        client = stack.enter_context(httpx.Client(base_url=url, timeout=120))
        yield Service(client, answers, server, url)


@pytest.fixture(scope="module")
def service(run) -> Iterator[Service]:
    """With both twins."""
    with serving(run) as running:
        yield running


@pytest.fixture(scope="module")
def torch_alone(run) -> Iterator[Service]:
    with serving(run, twin="torch") as running:
        yield running


def form(*files: Path | tuple[str, bytes]) -> list:
    """A form's files, as httpx takes them."""
    named = [(each.name, each.read_bytes()) if isinstance(each, Path) else each for each in files]
    return [("photos", each) for each in named]


class Told:
    """A labeller that is told what to say: a photo's first pixel is its class, of `CLASS_NAMES`."""

    class_names = CLASS_NAMES
    image_size = (4, 4)
    interpolation = "nearest"
    checkpoint_digest = "0" * 64

    def __init__(self, before: Callable[[np.ndarray], None] = lambda photos: None) -> None:
        from models.choices import AS_KERAS

        self.loading, self.before, self.entered, self.sizes = AS_KERAS, before, 0, []

    def __enter__(self):
        self.entered += 1
        return self

    def __exit__(self, *_):
        self.entered -= 1

    def probabilities(self, photos: np.ndarray) -> np.ndarray:
        self.before(photos)
        self.sizes.append(len(photos))
        return self.exact(photos).astype(np.float32)

    def exact(self, photos: np.ndarray) -> np.ndarray:
        said = np.full((len(photos), len(CLASS_NAMES)), 0.07)
        said[np.arange(len(photos)), photos[:, 0, 0, 0]] = 0.79
        return said

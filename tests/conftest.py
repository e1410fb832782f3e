"""What several test files need: checkpoints of random networks, without training one."""

import importlib.util
import os
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from datamodule.photo_store import memory_size
from export.worker import keras_process
from lightning_module.commands import cli
from models.timm_mobilenetv2 import TimmClassifier
from tests import quick_fits
from tests.forks import KERAS, OURS, Forks

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
"""Photos and weights that are in no repository."""
CLASS_NAMES = ["jeans", "sofa", "tshirt", "tv"]
OTHER_PYTHON = os.environ.get("SHELFTWIN_KERAS2_PYTHON") or None
OTHER_KERAS = pytest.param(
    OTHER_PYTHON,
    id="keras2",
    marks=pytest.mark.skipif(OTHER_PYTHON is None, reason="SHELFTWIN_KERAS2_PYTHON names no other Keras"),
)
"""An interpreter with a Keras 2, beside the Keras 3 of this environment."""

if "PYTEST_XDIST_WORKER" in os.environ:
    # One of several processes on the same cores: more threads than cores wait for each other many times over.
    torch.set_num_threads(1)
    for name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
        os.environ.setdefault(name, "1")  # for the processes that tests start
# or a command in this process, which takes what is free, would change the threads between two fits that are compared
os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))


quick_fits.draw(really=True)  # until `_plots` says otherwise: test files import the functions themselves
GIB_PER_WORKER, MOST_WORKERS = 3, 2
"""Memory that a worker of `pytest -n auto` needs, with the Keras or training process that it starts; and how many
workers 8 GB have room for."""


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two workers where there are cores and memory for them; `-n 4` or xdist's environment variable asks for more."""
    if asked := os.environ.get("PYTEST_XDIST_AUTO_NUM_WORKERS"):
        return int(asked)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min(cores, MOST_WORKERS, memory_size() / 2**30 / GIB_PER_WORKER)))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files whose tests take long, or the last of them would run alone at the end."""
    long: Counter[Path] = Counter(
        item.path for item in items if item.get_closest_marker("slow") or item.get_closest_marker("keras")
    )
    items.sort(key=lambda item: -long[item.path])  # a stable sort: each file's tests stay together and in order


def lightning(*arguments: Any) -> int:
    """Run the command in this process; return its exit code."""
    try:
        cli.main([str(argument) for argument in arguments])
    except SystemExit as leaving:
        return int(leaving.code or 0)
    return 0


def load_script(path: Path) -> ModuleType:
    """Import a script that is in no package, such as a benchmark."""
    specification = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(specification)
    sys.modules[path.stem] = module  # dataclasses look their module up
    specification.loader.exec_module(module)
    return module


def random_classifier(seed: int = 0, **settings: Any) -> TimmClassifier:
    """A network with random weights, random BatchNorm statistics and biases: no part is trivially right."""
    torch.manual_seed(seed)
    network = TimmClassifier(len(CLASS_NAMES), **settings).eval()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(module.weight, 0.7, 1.3)
                torch.nn.init.normal_(module.bias, 0.0, 0.2)
                torch.nn.init.normal_(module.running_mean, 0.0, 0.2)
                torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            elif isinstance(module, torch.nn.Linear):
                torch.nn.init.normal_(module.bias, 0.0, 0.1)
        for parameter in network.parameters():
            flat = parameter.flatten()
            if len(flat) > 1 and bool((flat == flat[0]).all()):  # LayerNorm's, ConvNeXt's scale of 1e-6 for each block
                parameter.add_(torch.randn_like(parameter) * 0.1)
        # A deep random network amplifies float32 rounding: torch's own float32 and float64 logits differ by up to 1e-4.
        # Smaller logits keep that below the ladder's 1e-5 on probabilities; planted differences stay far above it.
        network.head.predictions.weight.mul_(0.2)
    return network


def photos_of(image_size: tuple[int, int], count: int = 3) -> np.ndarray:
    """Noise, uint8 (N, H, W, 3)."""
    return np.random.default_rng(1).integers(0, 256, (count, *image_size, 3), dtype=np.uint8)


def save_checkpoint(path: Path, network: TimmClassifier, image_size: tuple[int, int], /, **changes: Any) -> Path:
    """Write what Lightning would write of a ProductClassifier holding this network."""
    hyper_parameters = {
        **network.architecture,
        "class_names": CLASS_NAMES,
        "image_size": list(image_size),
        "interpolation": "nearest",
        "trainable": "head",
        "learning_rate": 1e-3,
        **changes,
    }
    state = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({"state_dict": state, "hyper_parameters": hyper_parameters}, path)
    return path


def flip_in_archive(path: Path, member: str, place: float = 0.5) -> None:
    """Flip one bit in a member of a checkpoint's archive, as a failing disk may.

    Args:
        path: of the checkpoint; is changed.
        member: end of its name, such as ``data/3``.
        place: share of the member before the bit.
    """
    with zipfile.ZipFile(path) as archive:
        (info,) = (each for each in archive.infolist() if each.filename.endswith(f"/{member}"))
        content = archive.read(info)
    data = bytearray(path.read_bytes())
    assert data.count(content) == 1
    data[data.index(content) + int(place * len(content))] ^= 4
    path.write_bytes(data)


@pytest.fixture(scope="session", autouse=True)
def keras_forks() -> Iterator[None]:
    """Keras's processes are forks of one that has imported TensorFlow; `--keras_python` starts real ones as ever."""
    if not hasattr(os, "pidfd_open"):  # of Linux
        yield
        return
    forks = Forks(KERAS, keras_process._environment())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keras_process, "sys", forks)  # it reads `sys.executable` alone
        yield
    forks.close()


@pytest.fixture(scope="session")
def command_python() -> Iterator[str]:
    """An interpreter for the command that has imported torch, and knows `mobilenetv2_short`."""
    if not hasattr(os, "pidfd_open"):
        pytest.skip("needs Linux")
    forks = Forks(OURS, os.environ | {"PYTHONPATH": str(ROOT)})
    yield forks.executable
    forks.close()


@pytest.fixture(scope="module", autouse=True)
def _plots(request: pytest.FixtureRequest) -> Iterator[None]:
    """Reports have no plots, but in files that say LOOKS_AT_PLOTS."""
    quick_fits.draw(really=getattr(request.module, "LOOKS_AT_PLOTS", False))
    yield
    quick_fits.draw(really=True)


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A narrow MobileNetV2 for 48x40 images, with one hidden layer and dropout."""
    network = random_classifier(backbone="mobilenetv2_035", hidden=(16,), dropout=0.25, mean=0.4, std=(0.3, 0.4, 0.5))
    return save_checkpoint(tmp_path_factory.mktemp("small") / "best.ckpt", network, (48, 40))

"""A small network as somebody else would write it, and its weights as other tools write them."""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

SIZE = (16, 12)
CODE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes=5, channels=3, ending=None):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(channels, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(6, num_classes)
        self.ending = ending

    def forward(self, x):
        x = self.fc(self.pool(self.features(x)))
        return x if self.ending is None else getattr(torch, self.ending)(x, *([1] * (self.ending != "sigmoid")))

def make(**settings):
    return Net(**settings)

def fixed():
    return Net(3)

number = 3
"""
"""Goes into a file of its own in the tests of `--model`; below it is run here."""
_NAMES: dict = {"__name__": "net"}
exec(compile(CODE, "net.py", "exec"), _NAMES)
Net = _NAMES["Net"]


def random_net(seed: int = 0, **settings) -> nn.Module:
    """With random BatchNorm statistics, too: no part is trivially right."""
    torch.manual_seed(seed)
    network = Net(**settings).eval()
    norm = network.features[1]
    with torch.no_grad():
        for tensor, low, high in (
            (norm.weight, 0.7, 1.3),
            (norm.running_var, 0.5, 1.5),
            (norm.running_mean, -0.2, 0.2),
        ):
            tensor.uniform_(low, high)
    return network


def state_of(network: nn.Module, before: str = "") -> dict[str, torch.Tensor]:
    return {before + name: tensor.clone() for name, tensor in network.state_dict().items()}


def doubled(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights that are not the network's, to be told from them."""
    return {name: tensor * 2 for name, tensor in state.items()}


def halved(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def _torch_save(content: Callable[[nn.Module], object]) -> Callable[[nn.Module, Path], None]:
    return lambda network, path: torch.save(content(network), path)


KINDS: dict[str, tuple[str, Callable[[nn.Module, Path], None]]] = {
    "bare": ("a.pth", _torch_save(state_of)),
    "older than torch's archives": (
        "a.pth",
        lambda network, path: torch.save(state_of(network), path, _use_new_zipfile_serialization=False),
    ),
    "safetensors": ("a.safetensors", lambda network, path: save_file(state_of(network), path)),
    "safetensors by another name": ("a.bin", lambda network, path: save_file(state_of(network), path)),
    "DataParallel": ("a.pth", _torch_save(lambda network: {"state_dict": state_of(network, "module.")})),
    "DataParallel inside": (
        "a.pth",
        _torch_save(lambda n: {name.replace("features.", "features.module."): t for name, t in state_of(n).items()}),
    ),
    "compiled in DataParallel in a LightningModule": (
        "a.ckpt",
        _torch_save(
            lambda n: {
                "state_dict": {**state_of(n, "model.module._orig_mod."), "loss.weight": torch.ones(5)},
                "hyper_parameters": {"lr": 0.1},
                "pytorch-lightning_version": "2.6.0",
            }
        ),
    ),
    "torchvision's references": (
        "a.pth",
        _torch_save(
            lambda n: {
                "model": state_of(n),
                "model_ema": {**doubled(state_of(n, "module.")), "n_averaged": torch.tensor(3)},
                "args": argparse.Namespace(model="resnet50"),
                "epoch": 3,
            }
        ),
    ),
    "an attribute's own name": ("a.ckpt", _torch_save(lambda n: {"state_dict": state_of(n, "my.own_net.")})),
    "PyTorch's tutorial": ("a.tar", _torch_save(lambda n: {"epoch": 1, "model_state_dict": state_of(n), "loss": 0.1})),
    "nested twice": ("a.pt", _torch_save(lambda n: {"state_dict": {"model": state_of(n)}})),
    "under keys of somebody's own": (
        "a.pt",
        _torch_save(
            lambda n: {
                "models": {"net": state_of(n)},
                "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}},
                "best": np.ones(2),
                "folder": Path("runs"),
            }
        ),
    ),
    "beside numbers": ("a.pt", _torch_save(lambda n: {**state_of(n, "module."), "epoch": 3})),
    "half precision": ("a.pt", _torch_save(lambda n: halved(state_of(n)))),
    "without counters": (
        "a.pt", _torch_save(lambda n: {k: t for k, t in state_of(n).items() if not k.endswith("num_batches_tracked")})
    ),
}  # fmt: skip
"""Name -> file's name, and what writes the network's weights there."""

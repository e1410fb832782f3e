"""Read a Lightning checkpoint of this project without Lightning: the network and the facts a twin must carry."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from models.bad_input import BadInput
from models.timm_mobilenetv2 import ARCHITECTURE, TimmClassifier
from models.whole_file import replacing

_PREFIX = "network."  # ProductClassifier.network
# Key of what `lightning import` notes; Lightning leaves it alone.
_IMPORTED = "shelftwin_import"
# Pixels of a side, or width of a dense layer, beyond which a checkpoint is not believed.
_MOST = 1 << 16


@dataclass(frozen=True)
class Checkpoint:
    """A trained network and what it was trained to see.

    Attributes:
        path: of the checkpoint file.
        digest: SHA-256 of that file, hexadecimal.
        network: in eval mode, on the CPU, float32.
        class_names: in the order of the network's outputs.
        image_size: (height, width) in pixels.
        interpolation: Pillow's filter for resizing, by Keras's name.
        backbone: timm's name of it.
        trainable: ``head`` if the backbone was frozen, ``all`` if not.
        learning_rate: of Adam, at the start of training; where all was trained, the backbone's.
        batch_norm: ``frozen`` if BatchNorm stays as it is in further training, ``train`` if not.
        imported_from: where it was made by ``lightning import``, SHA-256 of the Keras file; else None.
        imported_range: what that file takes: ``unit``, ``raw`` or ``tf``.
    """

    path: Path
    digest: str
    network: TimmClassifier
    class_names: tuple[str, ...]
    image_size: tuple[int, int]
    interpolation: str
    backbone: str
    trainable: str
    learning_rate: float
    batch_norm: str = "train"
    imported_from: str | None = None
    imported_range: str | None = None


def read_checkpoint(path: Path) -> Checkpoint:
    """Rebuild the network from a checkpoint's hyper-parameters and load its weights; nothing is unpickled.

    Raises:
        BadInput: if the file is missing, is no checkpoint, is of another model, or its weights do not fit.
    """
    path = Path(path)
    content = read_content(path)
    settings = _hyper_parameters(path, content)
    try:
        network = TimmClassifier(len(settings["class_names"]), **{name: settings[name] for name in ARCHITECTURE})
    except BadInput as error:
        raise BadInput(f"{path}: expected settings that a network can be built from. {error}") from error
    except (TypeError, ValueError, RuntimeError, AttributeError, KeyError) as error:  # whatever timm makes of them
        raise BadInput(
            f"{path}: expected settings that a network can be built from, got some that raise {type(error).__name__}: "
            f"{str(error)[:200]}. The file is damaged or was edited."
        ) from error
    _load(path, network, content["state_dict"])
    height, width = settings["image_size"]
    batch_norm, backbone_factor = _schedule(path, settings)
    imported = content.get(_IMPORTED)
    imported = imported if isinstance(imported, dict) else {}
    return Checkpoint(
        path=path,
        digest=file_digest(path),
        network=network.eval(),
        class_names=tuple(settings["class_names"]),
        image_size=(height, width),
        interpolation=settings["interpolation"],
        backbone=settings["backbone"],
        trainable=settings["trainable"],
        learning_rate=settings["learning_rate"] * (backbone_factor if settings["trainable"] == "all" else 1),
        batch_norm=batch_norm,
        imported_from=imported.get("sha256"),
        imported_range=imported.get("input_range"),
    )


def write_checkpoint(path: Path, network: TimmClassifier, facts: dict[str, Any], imported: dict[str, str]) -> None:
    """Write what Lightning would have written of a ProductClassifier that holds this network, before its first epoch.

    `fit --ckpt_path` goes on from it with a fresh Adam.

    Args:
        path: where to; an older file is replaced only by a whole one.
        network: whose weights are written.
        facts: `_FACTS`, besides the network's own architecture.
        imported: ``sha256`` and ``input_range`` of the Keras file that it came from.

    Raises:
        BadInput: when it cannot be written there.
    """
    content = {
        "epoch": 0,
        "global_step": 0,
        "pytorch-lightning_version": version("lightning"),
        "state_dict": {f"{_PREFIX}{name}": tensor for name, tensor in network.state_dict().items()},
        "callbacks": {},
        "optimizer_states": [],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": {**facts, "pretrained": False, "weights": None, **network.architecture},
        _IMPORTED: imported,
    }
    with replacing(path) as temporary:
        torch.save(content, temporary)


def read_hyper_parameters(path: Path) -> dict[str, Any]:
    """The settings that a checkpoint carries, as plain types.

    Raises:
        BadInput: if the file is missing, is no checkpoint, or is of another model.
    """
    path = Path(path)
    return _hyper_parameters(path, read_content(path))


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_content(path: Path) -> dict[str, Any]:
    """All that a checkpoint's file holds; nothing is unpickled.

    Raises:
        BadInput: if the file is missing, is no checkpoint, or is of another model.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise BadInput(f"expected a checkpoint file, got {path}, which {what}. `lightning fit` writes RUN/best.ckpt.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or foreign file makes the reader raise
        # not torch's own message: it recommends to unpickle the file after all
        raise BadInput(
            f"expected a checkpoint written by `lightning fit`, got {path}, which cannot be read as one "
            f"({type(error).__name__}). Give RUN/best.ckpt."
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise BadInput(f"expected a Lightning checkpoint, got {path}, which is of another model: it has no state_dict.")
    return content


# What a checkpoint must say besides ARCHITECTURE, and what tells that it does.
_FACTS: dict[str, Callable[[Any], bool]] = {
    "class_names": lambda value: _is_list(value, str) and len(value) >= 2,
    "image_size": lambda value: _is_list(value, int) and len(value) == 2 and 0 < min(value) <= max(value) <= _MOST,
    # before anything of that size is allocated
    "hidden": lambda value: _is_list(value, int) and all(0 < width <= _MOST for width in value),
    "interpolation": lambda value: isinstance(value, str),
    "backbone": lambda value: isinstance(value, str),
    "trainable": lambda value: isinstance(value, str),
    "learning_rate": lambda value: isinstance(value, float),
}


def _is_list(value: Any, kind: type) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(each, kind) for each in value)


def _hyper_parameters(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    found = content.get("hyper_parameters")
    found = found if isinstance(found, dict) else {}
    missing = sorted({*ARCHITECTURE, *_FACTS} - found.keys())
    wrong = sorted(name for name, fits in _FACTS.items() if name in found and not fits(found[name]))
    if missing or wrong:
        said = [f"lack {', '.join(missing)}"] * bool(missing) + [f"have no usable {', '.join(wrong)}"] * bool(wrong)
        raise BadInput(
            f"expected a checkpoint of this project's ProductClassifier, got {path}, which is of another model: its "
            f"hyper-parameters {' and '.join(said)}. Train one with `lightning fit`."
        )
    return found


def _schedule(path: Path, settings: dict[str, Any]) -> tuple[str, float]:
    """BatchNorm's policy, and the backbone's learning rate as a share of the head's; older checkpoints have none."""
    given = settings.get("schedule")
    given = given if isinstance(given, dict) else {}
    batch_norm, factor = given.get("batch_norm", "train"), given.get("backbone_factor", 1.0)
    if batch_norm not in ("train", "frozen") or type(factor) not in (int, float) or not 0 < factor < math.inf:
        raise BadInput(
            f"{path}: expected a schedule with batch_norm train or frozen and a backbone_factor above 0, got "
            f"{batch_norm!r} and {factor!r}. The file is damaged or was edited."
        )
    return batch_norm, float(factor)


def _load(path: Path, network: TimmClassifier, state: Mapping[str, Any]) -> None:
    own = {
        name.removeprefix(_PREFIX): tensor
        for name, tensor in state.items()
        if isinstance(tensor, torch.Tensor) and str(name).startswith(_PREFIX)
    }
    expected = network.state_dict()
    wrong = [f"{name} is missing" for name in expected if name not in own]
    wrong += [f"{name} is unknown" for name in own if name not in expected]
    wrong += [
        f"{name} is {tuple(own[name].shape)}, not {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in own and own[name].shape != tensor.shape
    ]
    if wrong:
        raise BadInput(
            f"{path}: expected the weights of the network that its hyper-parameters describe, got {len(wrong)} that "
            f"do not fit: {'; '.join(wrong[:3])}{' ...' if len(wrong) > 3 else ''}. "
            "The file is of another model or was edited."
        )
    network.load_state_dict(own)

"""Read a Lightning checkpoint of this project without Lightning: the network and the facts a twin must carry."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from models.bad_input import BadInput
from models.timm_mobilenetv2 import ARCHITECTURE, TimmClassifier

_PREFIX = "network."  # ProductClassifier.network


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
        learning_rate: of Adam, at the start of training.
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


def read_checkpoint(path: Path) -> Checkpoint:
    """Rebuild the network from a checkpoint's hyper-parameters and load its weights; nothing is unpickled.

    Raises:
        BadInput: if the file is missing, is no checkpoint, is of another model, or its weights do not fit.
    """
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"expected a checkpoint, got {path}, which does not exist. `lightning fit` writes best.ckpt.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, OSError, EOFError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadInput(
            f"expected a checkpoint written by `lightning fit`, got {path}, which cannot be read as one ({reason})."
        ) from error
    hyper_parameters = _hyper_parameters(path, content)
    network = TimmClassifier(
        num_classes=len(hyper_parameters["class_names"]), **{name: hyper_parameters[name] for name in ARCHITECTURE}
    )
    _load(path, network, content["state_dict"])
    height, width = hyper_parameters["image_size"]
    return Checkpoint(
        path=path,
        digest=file_digest(path),
        network=network.eval(),
        class_names=tuple(hyper_parameters["class_names"]),
        image_size=(int(height), int(width)),
        interpolation=str(hyper_parameters["interpolation"]),
        backbone=str(hyper_parameters["backbone"]),
        trainable=str(hyper_parameters["trainable"]),
        learning_rate=float(hyper_parameters["learning_rate"]),
    )


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hyper_parameters(path: Path, content: Any) -> Mapping[str, Any]:
    wanted = {*ARCHITECTURE, "class_names", "image_size", "interpolation", "trainable", "learning_rate"}
    found = content.get("hyper_parameters") if isinstance(content, Mapping) else None
    missing = sorted(wanted - set(found or ()))
    if missing or "state_dict" not in content:
        raise BadInput(
            f"expected a checkpoint of this project's ProductClassifier, got {path}, which is of another model: its "
            f"hyper-parameters lack {', '.join(missing) or 'a state_dict'}. Train one with `lightning fit`."
        )
    assert found is not None
    return found


def _load(path: Path, network: TimmClassifier, state: Mapping[str, torch.Tensor]) -> None:
    own = {name.removeprefix(_PREFIX): tensor for name, tensor in state.items() if name.startswith(_PREFIX)}
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

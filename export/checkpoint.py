"""Read this project's Lightning checkpoints without Lightning: the network, and the facts that its twin must carry."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch

from models.atomic_write import replacing
from models.bad_input import BadInput
from models.choices import (
    AS_KERAS,
    BATCH_NORM_POLICIES,
    INTERPOLATIONS,
    MOST_PIXELS,
    TRAINABLE,
    Formats,
    Loading,
    stated_formats,
)
from models.classifier import Classifier, gives_of
from models.digests import file_digest
from models.graph_network import build_classifier
from models.state_dicts import Unfilled, check_undamaged, is_dense, misfits, rounded
from models.timm_mobilenetv2 import ARCHITECTURE, Normalise, TimmClassifier

T = TypeVar("T")

_PREFIX = "network."  # ProductClassifier.network
# Key under which `lightning import` records where a checkpoint came from; Lightning ignores it.
_IMPORTED = "shelftwin_import"
# A checkpoint that claims more hidden layers than this is not believed.
_MOST_LAYERS = 100


class NotOurs(BadInput):
    """The file is none that `lightning fit` or `lightning import` wrote, which says nothing against it."""


@dataclass(frozen=True)
class Checkpoint:
    """A trained network and what it was trained to see.

    Attributes:
        path: the checkpoint file.
        digest: SHA-256 of that file, hexadecimal; of a network that is in no file, of its weights.
        network: in eval mode, on the CPU, float32.
        class_names: in the order of the network's outputs.
        image_size: (height, width) in pixels.
        interpolation: Pillow's filter for resizing, by Keras's name.
        backbone: its name in timm, or what the network is called.
        trainable: ``head`` if the backbone was frozen, ``all`` if not.
        learning_rate: Adam's, at the start of training; if everything was trained, the backbone's.
        batch_norm: ``frozen`` if further training leaves BatchNorm unchanged, ``train`` if not.
        imported_from: SHA-256 of the Keras file if ``lightning import`` made the checkpoint, otherwise None.
        imported_range: the input range of that file: ``unit``, ``raw`` or ``tf``.
        imported_output: what that file gives: ``softmax``, ``sigmoid`` or ``logits``.
        loading: how a photo's colours become RGB.
        formats: which files were photos in training.
        notes: for the owner: what was found, taken and left out when the file was read.
    """

    path: Path
    digest: str
    network: Classifier
    class_names: tuple[str, ...]
    image_size: tuple[int, int]
    interpolation: str
    backbone: str
    trainable: str
    learning_rate: float
    batch_norm: str = "train"
    imported_from: str | None = None
    imported_range: str | None = None
    imported_output: str | None = None
    loading: Loading = AS_KERAS
    formats: Formats = "keras"
    notes: tuple[str, ...] = ()

    @property
    def foreign(self) -> bool:
        """Whether it was trained elsewhere: then the network is all that is known."""
        return True

    @property
    def gives(self) -> str:
        """What its Keras file gives: ``softmax`` or ``sigmoid``."""
        return gives_of(self.network.output, len(self.class_names))

    @property
    def model_name(self) -> str:
        """The Keras model's name."""
        return re.sub(r"[^0-9A-Za-z_]+", "_", self.backbone.rpartition(":")[2]) if self.foreign else self.backbone


@dataclass(frozen=True)
class OwnCheckpoint(Checkpoint):
    """A checkpoint of this project, which says all that itself."""

    network: TimmClassifier

    @property
    def foreign(self) -> bool:
        """No: it is ours."""
        return False


def as_checkpoint(given: Path | Checkpoint) -> Checkpoint:
    """A checkpoint of this project that is in a file, or one that has been read already, from wherever it came."""
    return given if isinstance(given, Checkpoint) else read_checkpoint(given)


def read_checkpoint(path: Path) -> OwnCheckpoint:
    """Rebuild the network from a checkpoint's hyper-parameters and load its weights, without unpickling anything.

    Raises:
        BadInput: if the file is missing, is not a checkpoint, holds another model, or its weights do not fit.
    """
    path = Path(path)
    content = read_content(path)
    settings = _hyper_parameters(path, content)
    state = _tensors(path, content["state_dict"])
    with Unfilled():  # every weight is loaded
        with torch.device("meta"):  # the settings may claim a network of any size: allocate nothing
            network = _network(path, settings)
            _check_tensors(path, network, state)
        if not _takes_as_its_own(network, state):
            network = _network(path, settings)
            network.load_state_dict(state)
    height, width = settings["image_size"]
    batch_norm, backbone_factor = _schedule(path, settings)
    imported = content.get(_IMPORTED)
    imported = imported if isinstance(imported, dict) else {}
    return OwnCheckpoint(
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
        imported_from=_text(imported.get("sha256")),
        imported_range=_text(imported.get("input_range")),
        imported_output=_text(imported.get("output")),
        loading=_stated(path, Loading.stated, settings),
        formats=_stated(path, stated_formats, settings),
    )


def write_checkpoint(path: Path, network: TimmClassifier, facts: dict[str, Any], imported: dict[str, str]) -> None:
    """Write what Lightning would have written for a ProductClassifier with this network, before its first epoch.

    `fit --ckpt_path` continues from it with a fresh Adam.

    Args:
        path: where to write it; an existing file is replaced only by a complete one.
        network: the network whose weights are written.
        facts: the entries of `_FACTS`; the network's own architecture is added.
        imported: ``sha256``, ``input_range`` and ``output`` of the Keras file that the network came from.

    Raises:
        BadInput: if the file cannot be written.
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
        BadInput: if the file is missing, is not a checkpoint, or holds another model.
    """
    path = Path(path)
    return _hyper_parameters(path, read_content(path))


def read_content(path: Path) -> dict[str, Any]:
    """Everything in a checkpoint file, read without unpickling.

    Raises:
        BadInput: if the file is missing, is not a checkpoint, or holds another model.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise BadInput(f"expected a checkpoint file, got {path}, which {what}. `lightning fit` writes RUN/best.ckpt.")
    check_undamaged(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or foreign file can make the reader raise anything
        # torch's own message is left out: it recommends unpickling the file after all
        raise NotOurs(
            f"expected a checkpoint written by `lightning fit`, got {path}, which cannot be read as one "
            f"({type(error).__name__}). Give RUN/best.ckpt."
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise NotOurs(f"expected a Lightning checkpoint, got {path}, which is of another model: it has no state_dict.")
    return content


# What a checkpoint must state besides ARCHITECTURE: name -> (what is expected, a test of whether the value is that).
_FACTS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "class_names": ("two names or more", lambda value: _is_list(value, str) and len(value) >= 2),
    "image_size": (
        f"height and width in pixels, at most {MOST_PIXELS // 10**6} megapixels",
        lambda value: _is_list(value, int) and len(value) == 2 and min(value) > 0 and math.prod(value) <= MOST_PIXELS,
    ),
    "hidden": (
        f"at most {_MOST_LAYERS} widths above zero",
        lambda value: _is_list(value, int) and len(value) <= _MOST_LAYERS and all(width > 0 for width in value),
    ),
    "interpolation": (f"one of {', '.join(INTERPOLATIONS)}", lambda value: value in INTERPOLATIONS),
    "backbone": ("a name", lambda value: isinstance(value, str)),
    "trainable": (f"one of {', '.join(TRAINABLE)}", lambda value: value in TRAINABLE),
    "learning_rate": ("a number above zero", lambda value: isinstance(value, float) and 0 < value < math.inf),
}


def _is_list(value: Any, kind: type) -> bool:
    return isinstance(value, list | tuple) and all(type(each) is kind for each in value)  # a bool is an int, too


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _hyper_parameters(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    found = content.get("hyper_parameters")
    found = found if isinstance(found, dict) else {}
    missing = sorted({*ARCHITECTURE, *_FACTS} - found.keys())
    wrong = [
        f"{name} (expected {expected}, got {repr(found[name])[:80]})"
        for name, (expected, fits) in sorted(_FACTS.items())
        if name in found and not fits(found[name])
    ]
    if missing or wrong:
        said = [f"lack {', '.join(missing)}"] * bool(missing) + [f"have no usable {', '.join(wrong)}"] * bool(wrong)
        kind = BadInput if {*_FACTS} <= found.keys() else NotOurs
        raise kind(
            f"expected a checkpoint of this project's ProductClassifier, got {path}, which is of another model or was "
            f"edited: its hyper-parameters {' and '.join(said)}. Train one with `lightning fit`."
        )
    return found


def _schedule(path: Path, settings: dict[str, Any]) -> tuple[str, float]:
    """BatchNorm's policy, and the backbone's learning rate as a share of the head's; old checkpoints state neither."""
    given = settings.get("schedule")
    given = given if isinstance(given, dict) else {}
    batch_norm, factor = given.get("batch_norm", "train"), given.get("backbone_factor", 1.0)
    if batch_norm not in BATCH_NORM_POLICIES or type(factor) not in (int, float) or not 0 < factor < math.inf:
        raise BadInput(
            f"{path}: expected a schedule with batch_norm {' or '.join(BATCH_NORM_POLICIES)} and a backbone_factor "
            f"above 0, got {batch_norm!r} and {factor!r}. The file is damaged or was edited."
        )
    return batch_norm, float(factor)


def _stated(path: Path, read: Callable[[dict[str, Any]], T], settings: dict[str, Any]) -> T:
    """What the settings say of how photos are loaded; old checkpoints do not state it."""
    try:
        return read(settings)
    except ValueError as error:
        raise BadInput(
            f"{path}: expected settings that photos can be loaded with, got {error}. The file is damaged or was edited."
        ) from error


def _network(path: Path, settings: dict[str, Any]) -> TimmClassifier:
    try:
        architecture = {name: settings[name] for name in ARCHITECTURE}
        return build_classifier(len(settings["class_names"]), settings.get("graph"), **architecture)
    except BadInput as error:
        raise BadInput(f"{path}: expected settings that a network can be built from. {error}") from error
    except (TypeError, ValueError, RuntimeError, AttributeError, KeyError, OverflowError) as error:
        raise BadInput(  # timm can raise anything for such settings
            f"{path}: expected settings that a network can be built from, got some that raise {type(error).__name__}: "
            f"{str(error)[:200]}. The file is damaged or was edited."
        ) from error


def _tensors(path: Path, state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The network's tensors from a state dict. Each must be dense and fully stored, not only claim to be large."""
    own = {
        name.removeprefix(_PREFIX): tensor
        for name, tensor in state.items()
        if isinstance(tensor, torch.Tensor) and str(name).startswith(_PREFIX)
    }
    wrong = [name for name, tensor in own.items() if not is_dense(tensor)]
    if wrong:
        raise BadInput(
            f"{path}: expected plain dense tensors, got {len(wrong)} that are sparse, quantised, without numbers or "
            f"views that repeat them: {', '.join(wrong[:3])}. Save the weights that the network was trained with: "
            "`lightning fit` does."
        )
    return own


def _takes_as_its_own(network: TimmClassifier, state: dict[str, torch.Tensor]) -> bool:
    """Give a network that has no memory yet the file's tensors; False if it needs others, or others' types.

    So most networks are built once.
    """
    expected = network.state_dict()
    if any(tensor.dtype != expected[name].dtype or not tensor.is_contiguous() for name, tensor in state.items()):
        return False
    network.load_state_dict(state, assign=True)
    network.normalise = Normalise(network.mean, network.std)  # computed from the settings
    return not any(tensor.is_meta for tensor in (*network.parameters(), *network.buffers()))


def _check_tensors(path: Path, network: TimmClassifier, own: Mapping[str, torch.Tensor]) -> None:
    """Refuse weights of another network, and weights that it could hold only after rounding."""
    expected = network.state_dict()
    wrong = misfits(expected, own)
    if wrong:
        raise BadInput(
            f"{path}: expected the weights of the network that its hyper-parameters describe, got {len(wrong)} that "
            f"do not fit: {'; '.join(wrong[:3])}{' ...' if len(wrong) > 3 else ''}. "
            "The file is of another model or was edited."
        )
    # two weights may share one array only if they also do in the network itself
    needed = sum(each.numel() for each in set(network.state_dict(keep_vars=True).values()))
    storages = {
        each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() // each.element_size()
        for each in own.values()
    }
    if needed > sum(storages.values()):
        raise BadInput(
            f"{path}: expected the {needed} numbers of the network that its hyper-parameters describe, got "
            f"{sum(storages.values())}, some of them under several names. The file was edited."
        )
    inexact = rounded(expected, own)
    if inexact:
        raise BadInput(
            f"{path}: expected weights that float32 holds exactly, since the twin has float32, got {len(inexact)} that "
            f"it does not: {', '.join(inexact[:3])}{' ...' if len(inexact) > 3 else ''}. Train with "
            "--trainer.precision 32-true, or convert the weights and measure the network anew."
        )

"""Somebody's weights and the network that they belong to -> a `Checkpoint`, which leaves like one of ours."""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from export.checkpoint import Checkpoint, NotOurs, read_checkpoint
from export.foreign_notes import network_notes, numbers_text, weights_notes
from export.graph.record import NotTraced
from models.bad_input import BadInput, some_of
from models.choices import MOST_PIXELS, OUTPUTS
from models.foreign.checkpoint_file import ForeignFile, read_foreign_file
from models.foreign.fitting import Fitted, check_fit, classes_in, find_own
from models.foreign.networks import Data, Factory, ForeignClassifier, arguments_in, find_factory, rows_of
from models.foreign.settings import ForeignSettings, Numbers
from models.state_dicts import copied, rounded

# Adam's own rate in Keras: how the network was trained is not known.
LEARNING_RATE = 1e-3
# How photos are resized, where nobody says it: torchvision's and timm's usual.
_INTERPOLATION = "bilinear"


def read_any_checkpoint(path: Path, settings: ForeignSettings) -> Checkpoint:
    """Read a checkpoint of this project, which needs no settings, or somebody else's.

    Raises:
        BadInput: as `read_checkpoint` and `read_foreign_checkpoint` raise it, or a checkpoint of ours has settings.
    """
    if settings == ForeignSettings():
        try:
            return read_checkpoint(path)
        except NotOurs:  # then the other reader says what is wrong
            pass
    return read_foreign_checkpoint(path, settings)


def read_foreign_checkpoint(path: Path, settings: ForeignSettings) -> Checkpoint:
    """Build a network, load somebody's weights into it, and say what was found and what was left.

    Args:
        path: see `read_foreign_file`.
        settings: what the caller states; what timm's train.py wrote into the file fills in for what is not given.

    Raises:
        BadInput: the file cannot be used, the network is not known, the weights are not exactly its own, or something
            is neither stated nor known.
    """
    file = read_foreign_file(path, settings.use_ema)
    name = settings.model or file.stated.get("model")
    if not isinstance(name, str):
        raise BadInput(
            f"expected the network that the weights in {path} belong to: they do not say it. Name it with --model: "
            "timm's name, such as resnet18, or package.module:factory, such as torchvision.models:resnet18 or "
            "net.py:Net."
        )
    factory = find_factory(name)
    network, fitted, arguments = _loaded(factory, file, settings)
    data = factory.data_of(network, file.stated)
    size = settings.image_size or data.image_size
    if size is None:
        raise BadInput(
            f"--image_size: expected the size that {name} was trained at, received none, and nobody says it. Give one "
            "number of pixels, or h,w: --image_size 224"
        )
    channels, count = _channels_and_count(network, name, size)
    mean, std = _normalisation(settings, data, name, channels)
    checkpoint = Checkpoint(
        path=path,
        digest=file.digest,
        network=ForeignClassifier(network, name, settings.output, mean, std, channels, arguments).eval(),
        class_names=_class_names(settings.class_names, count, settings.output),
        image_size=size,
        interpolation=settings.interpolation or data.interpolation or _INTERPOLATION,
        backbone=name,
        trainable="all",
        learning_rate=LEARNING_RATE,
    )
    notes = [*weights_notes(file, fitted), *network_notes(checkpoint, settings, data)]
    return replace(checkpoint, notes=tuple(notes))


def checkpoint_of_module(
    network: nn.Module,
    image_size: tuple[int, int],
    class_names: Sequence[str] | None = None,
    output: str = "logits",
    mean: Numbers | None = None,
    std: Numbers | None = None,
    channels: int = 3,
) -> Checkpoint:
    """A network that is in memory, as if it had been read from a file; of the network itself nothing is changed.

    Args:
        network: takes float32 (B, channels, H, W), gives (B, C).
        image_size: (height, width) in pixels.
        class_names: C names; None: numbers.
        output: what it gives, one of `OUTPUTS`.
        mean: subtracted from pixels of 0 to 1 before the network, one number or one for each channel; None: nothing is.
        std: divides what is left; None: nothing does.
        channels: of the images.

    Raises:
        BadInput: it does not run on such images, does not give (B, C), or the settings do not fit it.
    """
    name = type(network).__name__
    if output not in OUTPUTS:
        raise BadInput(
            f"output: expected one of {', '.join(OUTPUTS)}, received {output!r}. Say what the network gives."
        )
    own = copied(network).cpu().eval()
    inexact = rounded({key: tensor.float() for key, tensor in _numbers(own).items()}, _numbers(own))
    if inexact:
        raise BadInput(
            f"expected weights that float32 holds exactly, since the Keras file has float32, got {len(inexact)} in "
            f"{name} that it does not: {some_of(inexact, 3)}. Give network.float(), and measure it anew."
        )
    own = own.float()
    _, count = _channels_and_count(own, name, image_size, (channels,))
    settings = ForeignSettings(mean=() if mean is None else mean, std=() if std is None else std)
    pair = _normalisation(settings, Data(), name, channels)
    return Checkpoint(
        path=Path(name),
        digest=_digest_of(own),
        network=ForeignClassifier(own, name, output, *pair, channels).eval(),
        class_names=_class_names(class_names, count, output),
        image_size=image_size,
        interpolation=_INTERPOLATION,
        backbone=name,
        trainable="all",
        learning_rate=LEARNING_RATE,
    )


def _loaded(factory: Factory, file: ForeignFile, settings: ForeignSettings) -> tuple[nn.Module, Fitted, dict[str, Any]]:
    """The network with the file's weights, its tensors in the file, and what it was built with."""
    stated = file.stated
    arguments = {**arguments_in(stated), **factory.size_arguments(settings.image_size, stated), **settings.model_args}
    if settings.num_classes is not None and not factory.takes_num_classes:
        raise BadInput(
            f"--num_classes: expected with a function that takes num_classes, received {settings.num_classes} with "
            f"{factory.name}, which does not. Leave it out; what it takes is given by --model_args."
        )
    count = settings.num_classes or stated.get("num_classes")
    if count is not None and factory.takes_num_classes:
        arguments["num_classes"] = count
    network = factory.network(arguments)
    fitted = find_own(file.path, file.tensors, network.state_dict(), settings.prefix)
    rows = classes_in(fitted.tensors, network.state_dict())
    if count is None and rows and factory.takes_num_classes:
        arguments["num_classes"] = rows
        network = factory.network(arguments)
    check_fit(file.path, fitted, network.state_dict(), factory.name)
    state = OrderedDict(fitted.tensors)
    # a file without the modules' versions is not of an older one: all shapes fit
    state._metadata = network.state_dict()._metadata  # type: ignore[attr-defined]
    network.load_state_dict(state, strict=False)  # counters may be missing
    return network.float().eval(), fitted, arguments


def _channels_and_count(
    network: nn.Module, name: str, size: tuple[int, int], channels: Sequence[int] = (3, 1, 4)
) -> tuple[int, int]:
    """How many channels the network takes, the first of those given with which it runs; how many numbers it gives."""
    if min(size) < 1 or math.prod(size) > MOST_PIXELS:
        raise BadInput(
            f"image_size: expected height and width of at most {MOST_PIXELS // 10**6} megapixels together, received "
            f"{size}. Give the size that {name} was trained at."
        )
    failed: list[Exception] = []
    for each in channels:
        try:
            with torch.inference_mode():
                answers = rows_of(network(torch.zeros(2, each, *size)), 2)
        except Exception as error:  # of somebody else's code
            failed.append(error)
            continue
        if not isinstance(answers, Tensor) or answers.dim() != 2 or len(answers) != 2:
            given = tuple(answers.shape) if isinstance(answers, Tensor) else type(answers).__name__
            raise BadInput(
                f"expected a network that gives one tensor, (images, classes), got {name}, which gives {given} for 2 "
                f"images. Give a module whose forward returns that tensor alone.{_one_of(answers)}"
            )
        return each, answers.shape[1]
    raise NotTraced(network, size, failed[0]) from failed[0]


def _one_of(answers: Any) -> str:
    """How to get one tensor of several, for people; empty if they are not several."""
    several = dict(enumerate(answers)) if isinstance(answers, list | tuple) else answers
    if not isinstance(several, Mapping):
        return ""
    keys = [repr(key) for key, value in several.items() if isinstance(value, Tensor)]
    return (
        f" It gives {some_of(keys, 5)}: in a file of yours, `class One(Net)` with `def forward(self, images): return "
        f"super().forward(images)[{keys[0]}]` does, and its weights have the names of Net's."
        if keys
        else ""
    )


def _normalisation(
    settings: ForeignSettings, data: Data, name: str, channels: int
) -> tuple[Numbers | None, Numbers | None]:
    """Mean and standard deviation for each channel; both None if pixels go in as they are."""
    mean = data.mean if settings.mean is None else settings.mean
    std = data.std if settings.std is None else settings.std
    if (mean == () and std in ((), data.std)) or (std == () and mean in ((), data.mean)):
        return None, None
    wanted = "one number or one for each channel, for pixels of 0 to 1"
    if not mean or not std or (len(mean) not in (1, channels)) or len(std) not in (1, channels):
        received = f"mean {numbers_text(mean)} and std {numbers_text(std)}"
        raise BadInput(
            f"--mean and --std: expected what the pixels that {name} was trained on were normalised with, {wanted}, "
            f"{channels} here, received {received}. Give for example --mean 0.5 --std 0.5, or --mean none if the "
            "network takes pixels of 0 to 1 as they are."
        )
    mean, std = (value * channels if len(value) == 1 else value for value in (tuple(mean), tuple(std)))
    if not all(map(math.isfinite, (*mean, *std))) or min(std) <= 0:
        raise BadInput(
            f"--mean and --std: expected finite numbers, std above zero, received {numbers_text(mean)} and "
            f"{numbers_text(std)}. Std divides the pixels."
        )
    return mean, std


def _class_names(names: Sequence[str] | None, count: int, output: str) -> tuple[str, ...]:
    if output in ("softmax", "log_softmax") and count == 1:
        raise BadInput(f"output {output}: expected two numbers or more, got a network that gives one: it is always 1.")
    if names is None:
        return tuple(map(str, range(count))) if count > 1 else ("1",)
    if len(names) != count or len(set(names)) != count:
        raise BadInput(
            f"--class_names: expected {count} different names, as many as the network gives numbers, received "
            f"{len(names)}: {some_of(list(names), 5)}. Give them in the order of its outputs."
        )
    return tuple(names)


def _numbers(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in network.state_dict().items() if tensor.is_floating_point()}


def _digest_of(network: nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of the weights."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        array = tensor.detach().contiguous()
        digest.update(f"{name} {array.dtype} {tuple(array.shape)}".encode())
        digest.update(array.view(-1).view(torch.uint8).numpy().tobytes() if array.numel() else b"")
    return digest.hexdigest()

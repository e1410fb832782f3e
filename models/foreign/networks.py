"""A network by its name: timm's, or a factory in any package or file; and what is known of the images it takes."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import timm
from timm.data import resolve_data_config
from torch import Tensor, nn

from models.bad_input import BadInput
from models.choices import INTERPOLATIONS
from models.classifier import Classifier
from models.foreign.settings import Numbers
from models.state_dicts import Unfilled
from models.timm_mobilenetv2 import Normalise

TORCHVISION = "torchvision.models"


class ForeignClassifier(Classifier):
    """A network that was trained elsewhere, and the normalisation that its images had.

    Args:
        network: takes normalised images, gives `output`.
        name: what it is called.
        output: what it gives, one of `models.choices.OUTPUTS`.
        mean: per channel, for pixels of 0 to 1; None: it takes the pixels as they are.
        std: per channel, above zero; None with `mean`.
        channels: of the images.
        model_args: what it was built with.
    """

    trunk: ClassVar[str] = "network."

    def __init__(
        self,
        network: nn.Module,
        name: str,
        output: str = "logits",
        mean: Numbers | None = None,
        std: Numbers | None = None,
        channels: int = 3,
        model_args: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.backbone_name, self.output, self.channels = name, output, channels
        self.mean, self.std, self.model_args = mean, std, dict(model_args or {})
        self.normalise = None if mean is None or std is None else Normalise(mean, std)
        self.network = network

    @property
    def architecture(self) -> dict[str, Any]:
        """Name, arguments and normalisation, in plain Python types."""
        return {
            "model": self.backbone_name,
            "model_args": {name: str(value) for name, value in sorted(self.model_args.items())},
            "output": self.output,
            "channels": self.channels,
            "mean": None if self.mean is None else list(self.mean),
            "std": None if self.std is None else list(self.std),
        }

    def forward(self, images: Tensor) -> Tensor:
        """Compute what the network gives, (B, C), of images, float32 (B, channels, H, W) with values 0 to 1."""
        return rows_of(self.network(images if self.normalise is None else self.normalise(images)), len(images))


def rows_of(answers: Any, images: int) -> Any:
    """What a network gives as (B, C), where it gives (B,), as after a squeeze, or (B, C, 1, 1); others as they are."""
    if not isinstance(answers, Tensor) or answers.dim() == 2:
        return answers
    one_number = answers.dim() < 2 and answers.numel() == images
    one_place = answers.dim() > 2 and answers.shape[2:].numel() == 1
    return answers.reshape(images, -1) if one_number or one_place else answers


@dataclass(frozen=True)
class Data:
    """What a network's source says of its images.

    Attributes:
        said_by: who says it, for people; empty if nobody does.
        image_size: (height, width).
        mean: per channel, for pixels of 0 to 1.
        std: per channel.
        interpolation: by Keras's name.
    """

    said_by: str = ""
    image_size: tuple[int, int] | None = None
    mean: Numbers | None = None
    std: Numbers | None = None
    interpolation: str | None = None


@dataclass(frozen=True)
class Factory:
    """What builds a network.

    Attributes:
        name: as the caller gave it.
        build: takes arguments by name, gives a module.
        own: whether it is timm's or torchvision's: then the weights need not be drawn before they are loaded.
        data_of: the network, and what a file of timm's train.py states -> what is known of its images.
        fixed_size: (height, width) that it is built for, if it must be told another; None: it takes any.
    """

    name: str
    build: Callable[..., nn.Module]
    own: bool = False
    data_of: Callable[[nn.Module, Mapping[str, Any]], Data] = field(default=lambda network, stated: Data())
    fixed_size: tuple[int, int] | None = None

    @property
    def takes_num_classes(self) -> bool:
        """Whether it can be told how many classes there are."""
        try:
            parameters = inspect.signature(self.build).parameters
        except (TypeError, ValueError):
            return True
        return "num_classes" in parameters or any(each.kind is each.VAR_KEYWORD for each in parameters.values())

    def size_arguments(self, size: tuple[int, int] | None, stated: Mapping[str, Any]) -> dict[str, Any]:
        """What it must be told where its images have another size than it is built for."""
        told = stated.get("img_size") or (stated.get("input_size") or ())[-2:]
        told = (told, told) if isinstance(told, int) else tuple(told)
        size = size or (told if len(told) == 2 else None)
        return {"img_size": size} if self.fixed_size and size and size != self.fixed_size else {}

    def network(self, arguments: Mapping[str, Any]) -> nn.Module:
        """Build the network, in eval mode.

        Raises:
            BadInput: the factory raises, or gives something else.
        """
        shown = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        try:
            with Unfilled() if self.own else nullcontext():
                network = self.build(**arguments)
        except Exception as error:  # of somebody else's code
            raise BadInput(
                f"--model: expected a network from {self.name}({shown}), got {type(error).__name__}: "
                f"{str(error)[:300]}. Give what it needs with --model_args name=value,..."
            ) from error
        if not isinstance(network, nn.Module):
            raise BadInput(
                f"--model: expected a torch.nn.Module from {self.name}({shown}), got {type(network).__name__}. Name a "
                "function or class that gives the network."
            )
        return network.eval()


def find_factory(name: str) -> Factory:
    """Find what builds a network.

    Args:
        name: timm's name, ``package.module:factory``, or ``file.py:factory``; the working directory is looked in, too.

    Raises:
        BadInput: there is no such name, or its module cannot be imported.
    """
    place, colon, attribute = name.partition(":")
    if not colon:
        return _of_timm(name)
    module = _imported(name, place)
    build: Any = module
    for part in attribute.split("."):
        if not hasattr(build, part):
            near = get_close_matches(part, [each for each in dir(build) if not each.startswith("_")], n=5)
            raise BadInput(
                f"--model: expected a function or class {attribute!r} in {place}, which has none. "
                f"Near matches: {', '.join(near) or 'none'}."
            )
        build = getattr(build, part)
    if not callable(build):
        raise BadInput(f"--model: expected a function or class, got {name}, a {type(build).__name__}. Name another.")
    if place.startswith(TORCHVISION):
        return Factory(name, build, True, lambda network, stated: _torchvision_data(build))
    return Factory(name, build)


def _of_timm(name: str) -> Factory:
    if not timm.is_model(name):
        near = get_close_matches(name, timm.list_models(), n=5, cutoff=0.5)
        torchvisions = f" torchvision's are called {TORCHVISION}:{name}." if _is_torchvisions(name) else ""
        raise BadInput(
            f"--model: expected timm's name of a network, or package.module:factory, got {name!r}, which timm "
            f"{timm.__version__} does not know. Near matches: {', '.join(near) or 'none'}.{torchvisions}"
        )
    known = timm.get_pretrained_cfg(name)
    fixed = known.input_size[1:] if known is not None and known.fixed_input_size else None
    return Factory(name, _timm_builder(name), True, _timm_data, fixed)


def _timm_builder(name: str) -> Callable[..., nn.Module]:
    def build(**arguments: Any) -> nn.Module:
        return timm.create_model(name, pretrained=False, **arguments)

    return build


def _timm_data(network: nn.Module, stated: Mapping[str, Any]) -> Data:
    found = resolve_data_config(dict(stated), model=network)
    interpolation = found["interpolation"] if found["interpolation"] in INTERPOLATIONS else None
    height, width = found["input_size"][1:]
    by = "the checkpoint's args and timm's pretrained_cfg" if stated else "timm's pretrained_cfg"
    return Data(by, (height, width), tuple(found["mean"]), tuple(found["std"]), interpolation)


def _is_torchvisions(name: str) -> bool:
    import torchvision

    return name in torchvision.models.list_models()


def _torchvision_data(build: Any) -> Data:
    """ImageNet's transforms, as torchvision keeps them with its own weights of that network."""
    import torchvision

    try:
        transforms = torchvision.models.get_model_weights(build).DEFAULT.transforms()
        size, interpolation = transforms.crop_size[-1], transforms.interpolation.value
        mean, std = tuple(transforms.mean), tuple(transforms.std)
    except (ValueError, AttributeError, KeyError):  # no classifier, or no weights of its own
        return Data()
    interpolation = interpolation if interpolation in INTERPOLATIONS else None
    return Data("torchvision's transforms for its ImageNet weights", (size, size), mean, std, interpolation)


def _imported(name: str, place: str) -> ModuleType:
    """Import a module, from the working directory as well, or a file."""
    folder = str(Path(place).resolve().parent if place.endswith(".py") else Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        return importlib.import_module(Path(place).stem if place.endswith(".py") else place)
    except Exception as error:  # of somebody else's code
        missing = isinstance(error, ModuleNotFoundError) and place.startswith(str(error.name))
        there = (
            f"is not installed, nor in {folder}" if missing else f"raises {type(error).__name__}: {str(error)[:200]}"
        )
        raise BadInput(
            f"--model: expected package.module:factory, got {name}, whose module {there}. Give it from the folder that "
            "its code is in, or install it."
        ) from error


def arguments_in(stated: Mapping[str, Any]) -> dict[str, Any]:
    """What timm's train.py was told of the network itself, from its own arguments."""
    known: Iterable[tuple[str, str]] = (("in_chans", "in_chans"), ("gp", "global_pool"), ("bn_eps", "bn_eps"))
    found = {argument: stated[own] for own, argument in known if stated.get(own) is not None}
    if stated.get("input_size"):  # channels, height, width
        found = {"in_chans": stated["input_size"][0], **found}
    further = stated.get("model_kwargs")
    return {**found, **(further if isinstance(further, dict) else {})}

"""Weights from a file: whether they are what was written, plain arrays, and those of the network they are for."""

import copy
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from models.bad_input import BadInput

ANOTHER_OF_THE_RUN = (
    "Give another checkpoint of the run (best.ckpt, last.ckpt, or one in its folder previous), or train again, without "
    "--resume."
)

_ARCHIVE = b"PK\x03\x04"
"""The first bytes of a zip archive, as torch's are."""


def check_undamaged(path: Path, remedy: str = ANOTHER_OF_THE_RUN) -> None:
    """Compare a checkpoint with its own checksums: torch writes them, but does not look at them when it reads.

    A file that is not one of torch's archives is left to whoever reads it; but one that only begins as an archive was
    cut off, and so was an empty one.

    Args:
        path: the file.
        remedy: what to do about a damaged one.

    Raises:
        BadInput: the file is no longer what was written.
    """
    if not zipfile.is_zipfile(path):
        damage = _cut_off(path)
    else:
        try:
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
            damage = f"the checksum of {damaged} does not match" if damaged else ""
        except Exception as error:  # damage can make the reader raise anything
            damage = f"its table of contents cannot be read ({type(error).__name__})"
    if damage:
        raise BadInput(f"expected a checkpoint as it was written, got {path}, which is damaged: {damage}. {remedy}")


def _cut_off(path: Path) -> str:
    """How a file that is no whole archive was cut off, in words; empty if it is something else."""
    try:
        with path.open("rb") as file:
            start = file.read(len(_ARCHIVE))
    except OSError:
        return ""  # whoever reads it says so
    if not start:
        return "it is empty"
    return "it ends before its table of contents, which is the last part" if start == _ARCHIVE else ""


def is_dense(tensor: Tensor) -> bool:
    """Whether a tensor is a plain array that is fully stored, and does not only claim to be large."""
    plain = tensor.layout is torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    # with a stride of 0, a tensor of any size could be a single stored number
    return plain and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def misfits(expected: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """What is wrong with tensors as those of a network, one text for each: missing, unknown, of another shape.

    Args:
        expected: the network's state dict.
        own: what is to be loaded into it.
    """
    wrong = [f"{name} is missing" for name in expected if name not in own]
    wrong += [f"{name} is unknown" for name in own if name not in expected]
    return wrong + [
        f"{name} is {tuple(own[name].shape)}, not {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in own and own[name].shape != tensor.shape
    ]


def rounded(expected: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """The tensors that the network could hold only after rounding, with their types."""
    return [
        f"{name} ({own[name].dtype})"
        for name, tensor in expected.items()
        if name in own and not _holds(tensor.dtype, own[name])
    ]


def _holds(kind: torch.dtype, tensor: Tensor) -> bool:
    """Whether every value of a tensor can be held as `kind` without rounding; NaN counts as equal to itself."""
    if tensor.dtype == kind or (kind == torch.float32 and tensor.dtype in (torch.float16, torch.bfloat16)):
        return True
    if kind != torch.float32 or tensor.dtype != torch.float64:
        return False
    return bool(((tensor.float().double() == tensor) | tensor.isnan()).all())


class Unfilled(TorchFunctionMode):
    """Gives a new network's weights no random numbers, which take longer to draw than all else.

    What `torch.nn.init` would fill is left as it is; what is drawn directly gets the middle of a normal distribution,
    or the lower end of a uniform one: `trunc_normal_` draws until every number is within its bounds. On the meta device
    there is nothing to fill, and `normal_` would import torch's compiler to find that out.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else given["tensor"]
        number = {"normal_": "mean", "uniform_": "from"}.get(getattr(func, "__name__", ""))
        if number is None:
            return func(*args, **given)
        return args[0] if args[0].is_meta else args[0].fill_(args[1] if len(args) > 1 else given.get(number, 0.0))


def copied(network: nn.Module) -> nn.Module:
    """A copy of a network that is in training, too.

    `copy.deepcopy` refuses tensors that were computed from others, such as the weight that `torch.nn.utils.weight_norm`
    keeps until the next forward pass computes it again.
    """
    computed = [each for module in network.modules() for each in vars(module).values() if isinstance(each, Tensor)]
    return copy.deepcopy(network, {id(each): each.detach().clone() for each in computed if not each.is_leaf})

"""A file with somebody's weights -> tensors by name. Nothing in it is run: no pickled code, no TorchScript."""

from __future__ import annotations

import argparse
import pickle
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np
import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor

from models.bad_input import BadInput, some_of
from models.digests import file_digest
from models.state_dicts import check_undamaged, is_dense


class Nesting(NamedTuple):
    """Where the weights are in a checkpoint that is a dictionary.

    Attributes:
        weights: key of the state dict.
        averaged: key of the averaged one, which some trainers write beside it.
        known_from: who writes it so.
    """

    weights: str
    averaged: str
    known_from: str


FORMATS = (
    Nesting("state_dict", "state_dict_ema", "Lightning, timm's train.py"),
    Nesting("model", "model_ema", "torchvision's references, DeiT"),
    Nesting("model_state_dict", "model_ema_state_dict", "PyTorch's tutorial"),
    Nesting("net", "net_ema", ""),
    Nesting("network", "network_ema", ""),
    Nesting("weights", "weights_ema", ""),
    Nesting("params", "params_ema", "BasicSR"),
    Nesting("module", "module_ema", "DeepSpeed"),
)
"""A state dict may be in any of these, and these in each other; a file may also be a bare state dict.

Of what is kept in another way all tensors are read, by the keys that lead to them: the network is found among them as
under any other prefix.
"""

_SCALAR: Any = np.float64(0).__reduce__()[0]
# Plain data that trainers keep beside the weights. Their reconstruction runs nothing but their own constructors.
_ARRAY: Any = np.zeros(0).__reduce__()[0]
_HARMLESS: list[Any] = [
    argparse.Namespace, np.dtype, np.ndarray, *(type(np.dtype(kind)) for kind in "fdilqb"),
    (_SCALAR, "numpy._core.multiarray.scalar"), (_SCALAR, "numpy.core.multiarray.scalar"),
    (_ARRAY, "numpy._core.multiarray._reconstruct"), (_ARRAY, "numpy.core.multiarray._reconstruct"),
    *((PurePath, f"{module}.{kind}Path") for module in ("pathlib", "pathlib._local") for kind in ("Posix", "Windows")),
]  # fmt: skip
_COPY_AGAIN = "Copy or download it again."
_SCRIPT = "torch.jit.load({path!r}, map_location='cpu')"
_PICKLE = "torch.load({path!r}, map_location='cpu', weights_only=False)"


@dataclass(frozen=True)
class ForeignFile:
    """What is in somebody's file.

    Attributes:
        path: the file.
        digest: SHA-256 of it, hexadecimal.
        kind: what it is, for people.
        tensors: all of one state dict, by the names that they have there.
        averaged: whether there are averaged weights besides, which were not taken.
        stated: settings that it carries, as timm's train.py writes its arguments.
    """

    path: Path
    digest: str
    kind: str
    tensors: dict[str, Tensor]
    averaged: bool = False
    stated: dict[str, Any] = field(default_factory=dict)


def read_foreign_file(path: Path, use_ema: bool = False) -> ForeignFile:
    """Read the weights of a file by what it is, not by its name.

    Args:
        path: a `.safetensors`, or what ``torch.save`` wrote of tensors and plain data: a state dict, alone or in one of
            `FORMATS`; not a checkpoint of this project.
        use_ema: take the averaged weights.

    Raises:
        BadInput: there is no such file, it is damaged, or it is something else; a module that was pickled whole and
            TorchScript are refused with the lines that turn them into a state dict.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise BadInput(f"expected a file with a network's weights, got {path}, which {what}. Check the path.")
    safe = _read_safetensors(path)
    if safe is not None:
        if use_ema:
            raise _no_average(path, "a safetensors file, which has one set of weights")
        return ForeignFile(path, file_digest(path), "a safetensors file", _checked(path, safe))
    content = _read_pickled(path)
    if _is_of_this_project(content):
        raise BadInput(
            f"expected no --model and the like with a checkpoint of this project, got {path}, which says all that "
            "itself. Leave them out."
        )
    kind, state, averaged = _state_dict(path, content, use_ema)
    # timm's train.py writes `arch` as well; of other trainers' arguments nobody knows what they mean
    arguments = content.get("args") if isinstance(content, dict) and "arch" in content else None
    stated = vars(arguments) if isinstance(arguments, argparse.Namespace) else {}
    return ForeignFile(path, file_digest(path), kind, _checked(path, state), averaged, dict(stated))


def is_ours(path: Path) -> bool:
    """Whether a file is a checkpoint of this project; what cannot be read is none."""
    if not path.is_file():
        return False
    try:
        content = _read_pickled(path)
    except BadInput:
        return False
    return _is_of_this_project(content)


def _is_of_this_project(content: Any) -> bool:
    settings = content.get("hyper_parameters") if isinstance(content, dict) else None
    return isinstance(settings, dict) and {"class_names", "backbone", "hidden", "image_size"} <= settings.keys()


def _read_safetensors(path: Path) -> dict[str, Tensor] | None:
    """The tensors of a safetensors file; None if it is none: its length and then `{` come first."""
    with path.open("rb") as file:
        start = file.read(9)
    if start[8:9] != b"{" and path.suffix.lower() != ".safetensors":
        return None
    try:
        return load_file(str(path))
    except (safetensors.SafetensorError, OSError, ValueError, KeyError) as error:
        raise BadInput(
            f"expected a .safetensors file as it was written, got {path}, which cannot be read "
            f"({type(error).__name__}: {str(error)[:120]}). {_COPY_AGAIN}"
        ) from error


def _read_pickled(path: Path) -> Any:
    check_undamaged(path, _COPY_AGAIN)
    if _is_torchscript(path):
        raise BadInput(
            f"expected weights, got {path}, which is TorchScript: a program. Take the weights out of it, if you trust "
            f"who made it, with\n{_lines(path, _SCRIPT)}"
        )
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _not_plain(path, error) from error
    except Exception as error:  # a damaged or foreign file can make the reader raise anything
        # torch's own message is left out: it recommends unpickling the file after all
        raise _unreadable(path, error) from error


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    return any(name.endswith("/constants.pkl") for name in names) and any("/code/" in name for name in names)


def _unreadable(path: Path, error: Exception) -> BadInput:
    if path.read_bytes()[:4] == b"\x89HDF":
        return BadInput(
            f"expected a file with a torch network's weights, got {path}, which is a Keras file. `lightning import "
            "MODEL.h5 OUT.ckpt` makes a checkpoint of it."
        )
    return BadInput(
        f"expected a file with a network's weights (.pth, .pt, .ckpt or .safetensors), got {path}, which cannot be "
        f"read as one ({type(error).__name__}). {_COPY_AGAIN}"
    )


def _not_plain(path: Path, error: Exception) -> BadInput:
    """What to say of a file with more in it than tensors and plain data."""
    try:
        classes = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # older than torch's archives, or no pickle: then the error names the first
        classes = re.findall(r"GLOBAL ([\w.]+)", str(error))
    known = {each[1] if isinstance(each, tuple) else f"{each.__module__}.{each.__qualname__}" for each in _HARMLESS}
    foreign = sorted(name for name in classes if name not in known)
    if not foreign:
        return _unreadable(path, error)
    if any(name.startswith("torch.nn.modules.") for name in foreign):
        return BadInput(
            f"expected weights, got {path}, which is a module that was pickled whole ({some_of(foreign, 3)}): reading "
            "it runs code. Where its classes can be imported, and if you trust who made it, take the weights out of it "
            f"with\n{_lines(path, _PICKLE)}"
        )
    return BadInput(
        f"expected weights and plain data, got {path}, which holds objects besides ({some_of(foreign, 3)}): reading "
        "them runs code. Where their classes can be imported, and if you trust who made it, take the weights out of it "
        f"with\n{_lines(path, _PICKLE, whole=False)}"
    )


def _lines(path: Path, loading: str, whole: bool = True) -> str:
    """The two lines of Python that write a file's weights as a state dict beside it."""
    loaded, new = loading.format(path=str(path)), repr(str(path.with_name(f"{path.stem}_state_dict.pth")))
    if whole:
        lines = "import torch", f"torch.save({loaded}.state_dict(), {new})"
    else:
        weights = "loaded['state_dict'] if isinstance(loaded, dict) else loaded.state_dict()"
        lines = f"import torch; loaded = {loaded}", f"torch.save({weights}, {new})"
    return f"    {lines[0]}\n    {lines[1]}\nand give that file."


def _state_dict(path: Path, content: Any, use_ema: bool) -> tuple[str, dict[str, Tensor], bool]:
    """What the file is, its state dict, and whether averaged weights were left."""
    keys: list[str] = []
    averaged = False
    while not _is_state_dict(content):
        found = None
        if isinstance(content, dict):
            averaged = averaged or any(isinstance(content.get(each.averaged), dict) for each in FORMATS)
            wanted = [each.averaged for each in FORMATS] if use_ema and averaged and not _taken(keys) else []
            wanted += [] if wanted else [each.weights for each in FORMATS]
            found = next((key for key in wanted if isinstance(content.get(key), dict) and content[key]), None)
        if found is None and (within := dict(_within(content))) and not use_ema:
            return f"tensors under {', '.join({name.partition('.')[0]: 0 for name in within})[:200]}", within, averaged
        if found is None:
            held = f"{', '.join(map(str, content))[:200]}" if isinstance(content, dict) else type(content).__name__
            at = f" under {'/'.join(keys)}" if keys else ""
            raise BadInput(
                f"expected a state dict, alone or under {', '.join(each.weights for each in FORMATS)}, got {path}, "
                f"which has{at}: {held}. Write its state dict alone: torch.save(STATE_DICT, 'state_dict.pth')."
            )
        keys.append(found)
        content = content[found]
    if use_ema and not _taken(keys):
        raise _no_average(path, f"one with {', '.join(keys) or 'a bare state dict'}")
    kind = f"a state dict under {'/'.join(keys)}" if keys else "a state dict"
    return kind, dict(content), averaged and not use_ema


def _within(content: Any, before: str = "") -> Iterator[tuple[str, Tensor]]:
    """All tensors of nested dictionaries, by their keys with dots between."""
    for key, value in content.items() if isinstance(content, dict) else ():
        if isinstance(value, Tensor):
            yield f"{before}{key}", value
        else:
            yield from _within(value, f"{before}{key}.")


def _taken(keys: list[str]) -> bool:
    return any(each.averaged in keys for each in FORMATS)


def _no_average(path: Path, has: str) -> BadInput:
    return BadInput(
        f"--use_ema: expected averaged weights under {', '.join(each.averaged for each in FORMATS[:3])} or the like, "
        f"got {path}, {has}. Leave it out."
    )


def _is_state_dict(content: Any) -> bool:
    return isinstance(content, dict) and bool(content) and all(isinstance(each, Tensor) for each in content.values())


def _checked(path: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    wrong = [str(name) for name, tensor in tensors.items() if not is_dense(tensor)]
    if wrong:
        raise BadInput(
            f"{path}: expected plain dense tensors, got {len(wrong)} that are sparse, quantised, without numbers or "
            f"views that repeat them: {some_of(wrong, 3)}. Save the weights that the network was trained with."
        )
    return {str(name): tensor for name, tensor in tensors.items()}

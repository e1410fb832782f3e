"""Which of a file's tensors are a network's own: under whatever prefix they lie, and whether none is missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from models.bad_input import BadInput, some_of
from models.state_dicts import misfits, rounded

# What DataParallel and torch.compile put into the names of what they wrap, at any depth.
WRAPPERS = ("module", "_orig_mod")
# Tensors that have no part in what a network computes: they may be missing, and may be there besides.
COUNTERS = ("num_batches_tracked", "n_averaged")


@dataclass(frozen=True)
class Fitted:
    """A network's own tensors in a file.

    Attributes:
        tensors: by the network's names; what is missing, unknown or of another shape is still in it.
        prefix: what their names begin with in the file.
        wrappers: names of `WRAPPERS` that were taken out of them.
        outside: the file's tensors that do not lie under the prefix.
    """

    tensors: dict[str, Tensor]
    prefix: str = ""
    wrappers: tuple[str, ...] = ()
    outside: tuple[str, ...] = ()


def find_own(
    path: Path, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], prefix: str | None = None
) -> Fitted:
    """Find the one prefix under which the network's names lie, and the tensors there.

    A module that all of the network's names begin with may be missing in the file: somebody has put the network that
    was trained into another, such as ``nn.Sequential(Net(), nn.Sigmoid())``.

    Args:
        path: the file, for messages.
        tensors: all of it.
        expected: the network's state dict.
        prefix: the prefix, if the caller knows it.

    Raises:
        BadInput: nothing fits, or the names lie under several prefixes.
    """
    names, wrappers = _unwrapped(list(tensors), expected)
    by_name = dict(zip(names, tensors.values(), strict=True))
    needed = {name for name in expected if not is_counter(name)}
    counts = Counter(
        name.removesuffix(own) for name in names for own in _endings(name) if own in needed
    )  # prefix -> how many of the network's names lie under it
    outermost = {name.partition(".")[0] + "." for name in needed}
    if not counts and len(outermost) == 1 and all("." in name for name in needed):
        (outer,) = outermost
        names_inside = {name.removeprefix(outer): tensor for name, tensor in expected.items()}
        inside = find_own(path, tensors, names_inside, prefix)
        return replace(inside, tensors={outer + name: tensor for name, tensor in inside.tensors.items()})
    if prefix is None:
        whole = [each for each, count in counts.items() if count == len(needed)]
        if len(whole) > 1:
            raise BadInput(
                f"expected the network's tensors once, got {path} with them under {len(whole)} prefixes: "
                f"{some_of([repr(each) for each in whole])}. Name one: --prefix {whole[0] or whole[1]}"
            )
        prefix = whole[0] if whole else max(counts, key=lambda each: (counts[each], -len(each)), default="")
    elif prefix and not prefix.endswith("."):
        prefix += "."
    if counts[prefix] == 0:
        under = f" under {prefix!r}" if prefix else ""
        raise BadInput(
            f"expected tensors of the network{under}, such as {some_of(sorted(needed), 3)}, got {path}, "
            f"whose names are others: {some_of(list(tensors), 3)}. Is --model the network that was trained?"
        )
    own = {name.removeprefix(prefix): tensor for name, tensor in by_name.items() if name.startswith(prefix)}
    counters = [name for name in own if is_counter(name) and name not in expected]
    outside = [name for name in names if not name.startswith(prefix)] + counters
    return Fitted({name: own[name] for name in own if name not in counters}, prefix, wrappers, tuple(outside))


def is_counter(name: str) -> bool:
    """Whether a tensor only counts, as BatchNorm's batches."""
    return name.rpartition(".")[2] in COUNTERS


def _unwrapped(names: list[str], expected: Mapping[str, Tensor]) -> tuple[list[str], tuple[str, ...]]:
    """The names without those of `WRAPPERS`, unless the network's own names have them or two would become one."""
    own = {part for name in expected for part in name.split(".")}
    wrappers = tuple(each for each in WRAPPERS if each not in own and any(each in name.split(".") for name in names))
    plain = [".".join(part for part in name.split(".") if part not in wrappers) for name in names]
    return (plain, wrappers) if len(set(plain)) == len(names) else (names, ())


def _endings(name: str) -> list[str]:
    """The name, and what is left of it after each of its dots."""
    parts = name.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]


def classes_in(own: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> int | None:
    """How many classes the file's classifier has, if that is all in which it differs from the network built.

    Args:
        own: the network's tensors in the file.
        expected: the state dict of a network with another number of classes.
    """
    other = [
        (tuple(own[name].shape), tuple(tensor.shape))
        for name, tensor in expected.items()
        if name in own and own[name].shape != tensor.shape
    ]
    counts = {(there[:1], here[:1]) for there, here in other}
    same_rest = all(there and here and there[1:] == here[1:] for there, here in other)
    return counts.pop()[0][0] if len(counts) == 1 and same_rest else None


def check_fit(path: Path, fitted: Fitted, expected: Mapping[str, Tensor], model: str) -> None:
    """Refuse weights that are not exactly the network's.

    Raises:
        BadInput: a tensor is missing, foreign, of another shape, or would have to be rounded; it is named.
    """
    whole = {**{name: tensor for name, tensor in expected.items() if is_counter(name)}, **fitted.tensors}
    wrong = misfits(expected, whole)
    if wrong:
        under = f" under {fitted.prefix!r}" if fitted.prefix else ""
        raise BadInput(
            f"expected the {len(expected)} tensors of {model}, got {path}, where {len(wrong)}{under} do not fit: "
            f"{'; '.join(wrong[:3])}{' ...' if len(wrong) > 3 else ''}. Name the network that was trained: its "
            "--model, --num_classes and --model_args."
        )
    inexact = rounded(expected, fitted.tensors)
    if inexact:
        raise BadInput(
            f"{path}: expected weights that float32 holds exactly, since the Keras file has float32, got "
            f"{len(inexact)} that it does not: {some_of(inexact, 3)}. Convert them and measure the network anew: "
            "torch.save({name: tensor.float() for name, tensor in state_dict.items()}, 'state_dict.pth')."
        )

"""The configurations on a command line: what they set, and the foreign code that they name, which is told before."""

import re
import warnings
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

OPTIONS = ("--config", "-c")
"""Options that a configuration follows."""

KNOWN = frozenset(
    {"datamodule", "export", "lightning_module", "models"}
    | {"lightning", "lightning_fabric", "pytorch_lightning", "timm", "torch", "torchmetrics", "torchvision"}
)
"""Packages that a configuration may name without a word: this project's and those that it is made with."""

_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")


def warn_of_foreign_code(arguments: Sequence[str]) -> None:
    """Warn where a configuration on the command line names a class or a function outside of `KNOWN`."""
    for given, content in _configurations(arguments):
        if foreign := sorted(set(_foreign(content))):
            warnings.warn(
                f"{given} names code outside of this project, torch, timm and lightning, which is now run: "
                f"{', '.join(foreign)}. Use a configuration of somebody else only if you trust its author.",
                stacklevel=1,
            )


def that_set(name: str, arguments: Sequence[str]) -> list[str]:
    """Return the configurations on the command line that have a setting, such as ``model.hidden``."""
    found = []
    for given, content in _configurations(arguments):
        for part in name.split("."):
            content = content.get(part) if isinstance(content, dict) and part in content else _MISSING
        if content is not _MISSING:
            found.append(given)
    return found


_MISSING = object()


def _configurations(arguments: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Each configuration's name, or text, and what is in it."""
    for before, each in zip(("", *arguments), arguments, strict=False):
        option, equals, value = each.partition("=")
        if given := each if before in OPTIONS else value if equals and option in OPTIONS else "":
            yield given, _content(given, Path())


def _content(given: str, folder: Path, within: frozenset[Path] = frozenset()) -> Any:
    """What is in a YAML file, or in YAML given as text; None where neither can be read, which the parser will say.

    Args:
        given: name or text.
        folder: where the name is looked for.
        within: the files that named it.
    """
    file = (folder / given).resolve()
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8") if file.is_file() else given)
        return _with_files(content, file.parent, within | {file})
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return None


def _with_files(value: Any, folder: Path, within: frozenset[Path]) -> Any:
    """Put the content of a YAML file in the place of its name, as the parser does."""
    if isinstance(value, dict):
        return {key: _with_files(each, folder, within) for key, each in value.items()}
    if isinstance(value, list):
        return [_with_files(each, folder, within) for each in value]
    if isinstance(value, str) and value.endswith((".yaml", ".yml", ".json")):
        file = (folder / value).resolve()
        if file.is_file() and file not in within:
            return _content(value, folder, within)
    return value


def _foreign(value: Any, key: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for name, each in value.items():
            yield from _foreign(each, str(name))
    elif isinstance(value, list):
        for each in value:
            yield from _foreign(each, key)
    elif isinstance(value, str) and _DOTTED.fullmatch(value):
        package = value.partition(".")[0]
        # Wherever a class or a function is expected, its name alone is enough. Then it could be a file's name as well,
        # so it counts where Python has such a package.
        if package not in KNOWN and (key == "class_path" or _is_package(package)):
            yield value


def _is_package(name: str) -> bool:
    try:
        spec = find_spec(name)
    except (ImportError, ValueError):  # ValueError: of `__main__`, which was not imported
        return False
    return spec is not None and spec.origin is not None  # None: a folder, such as one of photos

"""Options that several commands share: photos, labels, paths of reports, lists separated by commas."""

import os
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_module.commands.cli import parse_for, underscored
from models.bad_input import BadInput, some_lines_of

if TYPE_CHECKING:
    import numpy as np

H5_ENDINGS = (".h5", ".hdf5")
_FLAGS = ("--fuse_batchnorm",)
"""Options that need no value."""


def pixels_of(files: list[Path], image_size: tuple[int, int], interpolation: str) -> "np.ndarray":
    """Return the pixels of all photos, uint8 (N, H, W, 3).

    Raises:
        BadInput: some photos cannot be read.
    """
    from datamodule.photo_store import PhotoStore

    store = PhotoStore(image_size, interpolation)
    bad = store.add(files)
    if bad:
        raise BadInput(
            f"--photos: expected readable photos, received {len(bad)} of {len(files)} that are not:\n"
            f"{some_lines_of(bad)}\nMend or remove them."
        )
    return store.photos_of(files)


def read_labels(path: Path) -> dict[str, Any]:
    """Return the content of a labels.json, with at least `class_names`; a plain list of names is accepted, too.

    So is a text file with a name in each line, as Teachable Machine writes it: `0 cardboard`.

    Raises:
        BadInput: the file cannot be read, or has no class names.
    """
    from json import loads

    try:
        text = path.read_text(encoding="utf-8")
        content = loads(text) if path.suffix.lower() != ".txt" else names_in_lines(text)
    except (OSError, ValueError) as error:
        raise BadInput(
            f"--labels: expected a labels.json, received {path}, which cannot be read: {error}. Check the file."
        ) from error
    names = content.get("class_names") if isinstance(content, dict) else content
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise BadInput(
            f"--labels: expected class_names in {path}, a list of names, received {str(names)[:80]}. Give the "
            "labels.json of a run, or --class_names."
        )
    return {**content, "class_names": names} if isinstance(content, dict) else {"class_names": names}


def names_in_lines(text: str) -> list[str]:
    """The names in lines; a number before each is left out if it is the line's own, counted from 0."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    numbered = [line.partition(" ") for line in lines]
    if all(number == str(place) and name.strip() for place, (number, _, name) in enumerate(numbered)):
        return [name.strip() for _, _, name in numbered]
    return lines


def list_photo_files(folder: Path) -> list[Path]:
    """Return the photos in a folder, at any depth, sorted.

    Raises:
        BadInput: there is no such folder, or it has no photos.
    """
    from datamodule.layout import what_else, without_junk
    from datamodule.split import list_photos

    if not folder.is_dir():
        raise BadInput(f"--photos: expected a folder, received {folder}, which is not one. Check the path.")
    files = without_junk(list_photos(folder), folder, Counter())
    if not files:
        raise BadInput(
            f"--photos: expected photos (.jpg, .png, .bmp, .ppm, .tif) in {folder}, received none{what_else(folder)}. "
            "Name the folder that has them, or convert photos with other endings."
        )
    return files


def chosen(option: str, text: str, known: Iterable[str]) -> list[str]:
    """Return the names in a list separated by commas, each once; `all` means all known names, an empty text none.

    Raises:
        BadInput: a name is not known.
    """
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    known = list(known)
    if names == ["all"]:
        return known
    unknown = [name for name in names if name not in known]
    if unknown:
        raise BadInput(f"{option}: expected some of {', '.join(known)}, or all, received {unknown[0]!r}. Name those.")
    return names


def parse_options(name: str, function: Callable, argv: list[str], repeatable: Iterable[str] = ()) -> dict[str, Any]:
    """Parse a function's arguments; options in `repeatable` may be given several times."""
    spelled = [underscored(each) for each in argv[1:]]  # --keras-python is accepted for --keras_python
    given: list[str] = []
    for each in spelled:
        if given and given[-1] in _FLAGS:  # a flag's value is optional
            given[-1] += f"={each}" if each in ("true", "false") else "=true"
            if each in ("true", "false"):
                continue
        option, equals, value = each.partition("=")
        given.append(f"{option}+{equals}{value}" if option in repeatable else each)
    if given and given[-1] in _FLAGS:
        given[-1] += "=true"
    return parse_for(function, name, given)


def check_report_place(option: str, place: Path, *inputs: Path) -> None:
    """Refuse a path for a report that cannot be written or is an input file, before anything expensive is done.

    Raises:
        BadInput: the folder is missing or cannot be written to, or the file is one of the inputs.
    """
    if place.exists() and any(given.exists() and place.samefile(given) for given in inputs):
        raise BadInput(f"{option}: expected a place for the report, received {place}, which is an input. Name another.")
    if not place.parent.is_dir() or not os.access(place.parent, os.W_OK) or place.is_dir():
        raise BadInput(f"{option}: expected a file in a folder that can be written, received {place}. Name another.")

"""Options that several commands share: photos, labels, paths of reports, lists separated by commas."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_module.commands.cli import EXIT_CODES, parse_for, underscored
from models.bad_input import BadInput, some_lines_of
from models.choices import AS_KERAS, Interpolation, Loading, Output
from models.foreign.settings import ForeignSettings

if TYPE_CHECKING:
    import numpy as np

_FLAGS = ("--fuse_batchnorm", "--use_ema", "--dry_run", "--private")
"""Options that need no value."""


def pixels_of(
    files: list[Path], image_size: tuple[int, int], interpolation: str, loading: Loading = AS_KERAS
) -> "np.ndarray":
    """Return the pixels of all photos, uint8 (N, H, W, 3).

    Raises:
        BadInput: some photos cannot be read.
    """
    from datamodule.photo_store import PhotoStore

    store = PhotoStore(image_size, interpolation, loading=loading)
    bad = store.add(files)
    if bad:
        raise BadInput(
            f"--photos: expected readable photos, received {len(bad)} of {len(files)} that are not:\n"
            f"{some_lines_of(bad)}\nMend or remove them."
        )
    return store.photos_of(files)


def read_labels(path: Path, option: str = "--labels") -> dict[str, Any]:
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
            f"{option}: expected a labels.json, received {path}, which cannot be read: {error}. Check the file."
        ) from error
    names = content.get("class_names") if isinstance(content, dict) else content
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise BadInput(
            f"{option}: expected class_names in {path}, a list of names, received {str(names)[:80]}. Give the "
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
    """Return the photos in a folder, at any depth, sorted; or those that a table names, each once.

    Raises:
        BadInput: there is no such folder or table, it has no photos, or the table names some that are not there.
    """
    from datamodule.sources.table_file import is_table

    if folder.is_file() and is_table(folder):
        return _photos_of_table(folder)
    from datamodule.layout import what_else, without_junk
    from datamodule.sources.addresses import is_mangled_address
    from datamodule.split import list_photos

    if is_mangled_address(folder):
        raise BadInput(
            f"--photos: expected a folder or a table on this machine, received the address {folder}. Copy the photos "
            "to a folder first."
        )
    if not folder.is_dir():
        raise BadInput(f"--photos: expected a folder or a table, received {folder}, which is neither. Check the path.")
    files = without_junk(list_photos(folder, "web"), folder, Counter())
    if not files:
        raise BadInput(
            f"--photos: expected photos (.jpg, .png, .webp, .tif, ...) in {folder}, received none"
            f"{what_else(folder, 'web')}. Name the folder that has them, or convert photos with other endings."
        )
    return files


def _photos_of_table(file: Path) -> list[Path]:
    from datamodule.sources.photo_table import each_photo_of

    found = list(each_photo_of(file, formats="web"))
    if missing := [f"{name!r}: {why}" for name, why in found if why]:
        raise BadInput(
            f"--photos: expected photos that are there in {file}, received {len(missing)} that are not:\n"
            f"{some_lines_of(missing)}\nMend the table."
        )
    return [Path(path) for path in dict.fromkeys(path for path, _ in found)]


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


def parse_options(
    name: str,
    function: Callable,
    argv: list[str],
    repeatable: Iterable[str] = (),
    group: type | None = None,
    exit_codes: str = EXIT_CODES,
) -> dict[str, Any]:
    """Parse a function's arguments; options in `repeatable` may be given several times; the rest as in `parse_for`."""
    given = with_flags([underscored(each) for each in argv[1:]], _FLAGS)  # --keras-python is --keras_python
    for place, each in enumerate(given):
        option, equals, value = each.partition("=")
        if option in repeatable:
            given[place] = f"{option}+{equals}{value}"
    return parse_for(function, name, given, exit_codes, group=group)


def with_flags(arguments: Iterable[str], flags: Sequence[str]) -> list[str]:
    """Return arguments in which options that need no value have one."""
    given: list[str] = []
    for each in arguments:
        if given and given[-1] in flags and each in ("true", "false"):
            given[-1] += f"={each}"
            continue
        if given and given[-1] in flags:
            given[-1] += "=true"
        given.append(each)
    if given and given[-1] in flags:
        given[-1] += "=true"
    return given


def check_report_place(option: str, place: Path, *inputs: Path) -> None:
    """Refuse a path for a report that cannot be written or is an input file, before anything expensive is done.

    Raises:
        BadInput: the folder is missing or cannot be written to, or the file is one of the inputs.
    """
    if place.exists() and any(given.exists() and place.samefile(given) for given in inputs):
        raise BadInput(f"{option}: expected a place for the report, received {place}, which is an input. Name another.")
    is_other = place.exists() and not place.is_file()  # a folder, or a device such as /dev/null
    if not place.parent.is_dir() or not os.access(place.parent, os.W_OK) or is_other:
        raise BadInput(f"{option}: expected a file in a folder that can be written, received {place}. Name another.")


@dataclass(frozen=True)
class ForeignOptions:
    """If it was trained elsewhere.

    Args:
        model: the network: timm's name, or package.module:factory, such as torchvision.models:resnet18 or net.py:Net.
        num_classes: how many numbers it gives; else as many as its last layer in the file.
        class_names: their names, a,b,... in order, or a file with them.
        image_size: pixels, one number or h,w; else that of timm's or torchvision's own weights.
        mean: subtracted from pixels of 0 to 1, one number or one for each channel; `none` if nothing is; else theirs.
        std: divides what is left; else theirs.
        output: what the network gives; logits if left out.
        use_ema: take the averaged weights.
        prefix: what its tensors' names begin with, if they are in the file more than once.
        model_args: what it was built with, such as pad_type=same,bn_eps=0.001.
        interpolation: how photos are resized.
    """

    model: str | None = None
    num_classes: int | None = None
    class_names: str | None = None
    image_size: str | None = None
    mean: str | None = None
    std: str | None = None
    output: Output | None = None
    use_ema: bool = False
    prefix: str | None = None
    model_args: str | None = None
    interpolation: Interpolation | None = None

    def settings(self) -> ForeignSettings:
        """The options, read.

        Raises:
            BadInput: one of them is not what it should be.
        """
        names: Sequence[str] | None = None
        if self.class_names is not None:
            file = Path(self.class_names)
            names = (
                read_labels(file, "--class_names")["class_names"]
                if file.suffix.lower() in (".json", ".txt")
                else [name.strip() for name in self.class_names.split(",")]
            )
        if self.num_classes is not None and self.num_classes < 1:
            raise BadInput(f"--num_classes: expected at least 1, received {self.num_classes}. Leave it out.")
        mean, std = _numbers("--mean", self.mean), _numbers("--std", self.std)
        if () in (mean, std):
            mean = std = ()
        return ForeignSettings(
            self.model, self.num_classes, names, height_and_width(self.image_size), mean, std, self.output or "logits",
            self.use_ema, self.prefix, _arguments(self.model_args), self.interpolation,
        )  # fmt: skip


def given_options(options: ForeignOptions) -> list[str]:
    """The options that differ from their defaults, as they are written on the command line."""
    given = {each.name: getattr(options, each.name) for each in fields(options)}
    told = {each.name: given[each.name] for each in fields(options) if given[each.name] != each.default}
    return [text for name, value in told.items() for text in (f"--{name}", str(value).replace("True", "true"))]


def height_and_width(text: str | None) -> tuple[int, int] | None:
    """(height, width) of one number of pixels, or `h,w`.

    Raises:
        BadInput: the text is neither.
    """
    if text is None:
        return None
    parts = text.strip("[]() ").split(",")
    if len(parts) not in (1, 2) or not all(part.strip().isdigit() and int(part) for part in parts):
        raise BadInput(f"--image_size: expected one number of pixels or h,w, received {text!r}. Give --image_size 224.")
    sides = [int(part) for part in parts]
    return sides[0], sides[-1]


def _numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    if text is None or text.strip().lower() == "none":
        return None if text is None else ()
    try:
        return tuple(float(part) for part in text.strip("[]() ").split(","))
    except ValueError as error:
        raise BadInput(
            f"{option}: expected one number, or one for each channel, or none, received {text!r}. Give for example "
            f"{option} 0.5 or {option} 0.485,0.456,0.406."
        ) from error


def _arguments(text: str | None) -> dict[str, Any]:
    """Arguments as name=value,... or as JSON; a value is a number, true, false or null, or else text."""
    from json import loads

    if text is None:
        return {}
    try:
        if text.lstrip().startswith("{"):
            return dict(loads(text))
        pairs = [part.partition("=") for part in text.split(",")]
        if not all(name.strip().isidentifier() and equals for name, equals, _ in pairs):
            raise ValueError("a part is no name=value")
        return {name.strip(): _value(value.strip()) for name, _, value in pairs}
    except (ValueError, TypeError) as error:
        raise BadInput(
            f"--model_args: expected name=value,... or JSON, received {text!r} ({error}). Give for example "
            "--model_args pad_type=same,bn_eps=0.001."
        ) from error


def _value(text: str) -> Any:
    from json import loads

    try:
        return loads({"True": "true", "False": "false", "None": "null"}.get(text, text))
    except ValueError:
        return text

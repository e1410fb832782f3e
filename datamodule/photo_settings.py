"""Settings of the data as people write them: a size, a colour, an address; and the bar that shows progress."""

from collections.abc import Callable, Iterable
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only
from PIL import ImageColor
from rich.progress import track

from datamodule.layout import innermost
from datamodule.sources.addresses import fetch, is_address
from models.bad_input import BadInput
from models.choices import DeepGrey, Loading


def parse_image_size(image_size: int | list[int] | tuple[int, int] | str) -> tuple[int, int]:
    """Read one number, [h, w] or "h,w" as (height, width).

    Raises:
        BadInput: it is none of these.
    """
    try:
        parts = [int(part) for part in image_size.split(",")] if isinstance(image_size, str) else image_size
        sides = [parts] if isinstance(parts, int) else [int(part) for part in parts]
        if len(sides) == 1:
            sides *= 2
        height, width = sides
        if min(height, width) < 1:
            raise ValueError
    except (TypeError, ValueError):
        raise BadInput(
            f"image_size: expected one number of pixels, or height and width as [h, w] or h,w; received {image_size!r}."
        ) from None
    return height, width


def parse_loading(background: str | None, deep_grey: DeepGrey) -> Loading:
    """Read the name or the number of a colour.

    Raises:
        BadInput: there is no such colour.
    """
    if background is None:
        return Loading(None, deep_grey)
    try:
        red, green, blue = ImageColor.getrgb(background)[:3]
    except ValueError:
        raise BadInput(
            f"background: expected a colour such as white or '#f0f0f0'; received {background[:40]!r}. Name another."
        ) from None
    return Loading(f"#{red:02x}{green:02x}{blue:02x}", deep_grey)


def fetched(setting: str, place: str | None, cache: Path) -> str | None:
    """Return where the photos or the table of an address are on this machine; any other path as it is.

    Raises:
        BadInput: it is an address that cannot be read.
    """
    if place is None or not is_address(str(place)):  # from Python it may be a Path, which is never one
        return place
    here = fetch(setting, place, cache / "addresses", show_progress(f"fetching {place}"))
    # archives often have one folder around all
    return str(innermost(here) if setting.endswith("root") else here)


def show_progress(description: str) -> Callable[[Iterable, int], Iterable]:
    """Make a progress bar that shows where there is something to wait for; on the first process only."""

    def show(results: Iterable, total: int) -> Iterable:
        if total > 200 and getattr(rank_zero_only, "rank", 0) == 0:
            return track(results, description=description, total=total, transient=True)
        return results

    return show

"""Load photos with Pillow 9 to 13 and compare the pixels with our own Pillow's; writes a table into docs/compat.md.

    python benchmarks/pillow_versions.py

Each Pillow gets a small environment of its own in the cache folder, made as by compat.py, whose `--clean` removes it.
Photos are decoded by each Pillow; each then resizes the same pixels, so that the two can be told apart. Exit code 2 if
packages are unavailable.
"""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from compat import (
    PAGE,
    PHOTOS,
    PILLOW_END,
    PILLOW_START,
    CannotInstall,
    Environment,
    find_interpreter,
    make_environment,
    with_pillow_table,
)
from PIL import Image

from datamodule.photo_store import open_photo
from export.worker.keras_worker import pillow_versions
from models.choices import INTERPOLATIONS

VERSIONS = ("9.5.0", "10.4.0", "11.3.0", "12.3.0", "13.0.0")
"""The last of each major version, or the newest; all have wheels for this Python."""
PYTHON = "3.11"
SIZE = (244, 244)
# Width and height of drawn photos. Pillow 13 resizes by another order of rows and columns where a photo is tall.
SHAPES = ((400, 400), (600, 400), (400, 520), (400, 711), (60, 900), (900, 60), (100, 130), (1500, 2000))

# Run by each Pillow. It needs no more than Pillow and numpy.
LOAD = """
import json, sys
import numpy as np
import PIL
from PIL import Image, features
asked = json.load(open(sys.argv[1]))
arrays = {}
for number, file in enumerate(asked["files"]):
    with Image.open(file, formats=None) as photo:
        arrays["decoded %d" % number] = np.asarray(photo.convert("RGB"))
for number, file in enumerate(asked["pixels"]):
    photo = Image.fromarray(np.load(file))
    for name in asked["interpolations"]:
        resized = photo.resize(tuple(asked["size"]), getattr(Image.Resampling, name.upper()))
        arrays["%s %d" % (name, number)] = np.asarray(resized)
np.savez(asked["outputs"], **arrays)
print(json.dumps([PIL.__version__, features.version_feature("libjpeg_turbo") or features.version("jpg")]))
"""


def draw_photos(folder: Path) -> list[Path]:
    """Draw photos of all `SHAPES`: gradients with noise, each as JPEG of three kinds, as PNG and as WebP."""
    files = []
    for width, height in SHAPES:
        down, across = np.mgrid[0 : 1 : complex(height), 0 : 1 : complex(width)]
        noise = np.random.default_rng(width + height).integers(0, 60, (height, width, 3))
        photo = Image.fromarray((np.stack([down, across, 1 - down * across], axis=-1) * 195 + noise).astype(np.uint8))
        kinds: dict[str, dict[str, Any]] = {
            "420.jpg": {"subsampling": 2}, "444.jpg": {"subsampling": 0}, "progressive.jpg": {"progressive": True},
            "photo.png": {}, "photo.webp": {"quality": 80},
        }  # fmt: skip
        for name, options in kinds.items():
            files.append(folder / f"{width}x{height}-{name}")
            photo.save(files[-1], **options)
    return files


def load(python: Path, asked: dict[str, Any], folder: Path) -> tuple[list[str], dict[str, np.ndarray]]:
    """Let one interpreter decode and resize; returns Pillow's and libjpeg's versions, and name -> uint8 (H, W, 3)."""
    request, outputs = folder / "request.json", folder / f"{python.parents[1].name}.npz"
    request.write_text(json.dumps({**asked, "outputs": str(outputs)}))
    done = subprocess.run([str(python), "-c", LOAD, str(request)], capture_output=True, text=True, check=True)
    with np.load(outputs, allow_pickle=False) as arrays:
        return json.loads(done.stdout), dict(arrays)


def cell(ours: list[np.ndarray], theirs: list[np.ndarray]) -> str:
    """The largest difference, the share of pixels that differ and the number of photos; a 0 if all are equal."""
    apart = [np.abs(left.astype(np.int16) - right).max(axis=-1) for left, right in zip(ours, theirs, strict=True)]
    largest, photos = max(int(each.max()) for each in apart), sum(bool(each.any()) for each in apart)
    share = sum(int((each > 0).sum()) for each in apart) / sum(each.size for each in apart)
    return f"{largest} ({float(f'{100 * share:.2g}'):g}%, {photos} of {len(apart)})" if largest else "0"


def table(columns: dict[str, dict[str, str]], described: str, date: str) -> str:
    """The table and what it means.

    Args:
        columns: heading -> row -> cell.
        described: which photos.
        date: of today.
    """
    own = pillow_versions()
    rows = ["decoding JPEG", "decoding PNG", "decoding WebP", *(f"resizing, {each}" for each in INTERPOLATIONS)]
    lines = [f"| {row} | {' | '.join(column[row] for column in columns.values())} |" for row in rows]
    jpeg = " ".join(next(item for item in own.items() if item[0].startswith("libjpeg")))
    return f"""## Which Pillow gives the same pixels

Written by `python benchmarks/pillow_versions.py`. {described}, loaded by each
Pillow and compared with Pillow {own["pillow"]} with {jpeg}, {date}. Resized to {SIZE[1]}x{SIZE[0]}
from the same decoded pixels.

| | {" | ".join(columns)} |
|---|{"---|" * len(columns)}
{chr(10).join(lines)}

0: every pixel is the same. Otherwise the largest difference of 255, and in brackets the share of pixels that differ and
the number of photos that have such pixels. The networks are the same either way: it is the photos that are not. What
`lightning parity` says of it is in [twin.md](twin.md).
"""


def main() -> int:
    """Compare all versions and write the table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        drawn = draw_photos(folder)
        real = sorted(PHOTOS.glob("*/*.jpg")) if PHOTOS.is_dir() else []
        files, pixels = [*drawn, *real], []
        for number, file in enumerate(each for each in files if not each.name.endswith(("444.jpg", "progressive.jpg"))):
            pixels.append(folder / f"{number}.npy")
            with open_photo(file) as photo:
                np.save(pixels[-1], np.asarray(photo.convert("RGB")))
        asked = {
            "files": [str(file) for file in files],
            "pixels": [str(file) for file in pixels],
            "interpolations": INTERPOLATIONS,
            "size": SIZE[::-1],
        }
        _, ours = load(Path(sys.executable), asked, folder)
        columns: dict[str, dict[str, str]] = {}
        for version in VERSIONS:
            interpreter = find_interpreter(PYTHON)
            if interpreter is None:
                print(f"expected Python {PYTHON}, found none. Install it.", file=sys.stderr)
                return 2
            try:
                python = make_environment(
                    Environment(f"pillow-{version}", PYTHON, (f"pillow=={version}",)), interpreter
                )
            except CannotInstall as error:
                print(error, file=sys.stderr)
                return 2
            (pillow, jpeg), theirs = load(python, asked, folder)

            def compared(names: list[str], theirs: dict[str, np.ndarray] = theirs) -> str:
                return cell([ours[each] for each in names], [theirs[each] for each in names])

            column = {
                f"decoding {kind}": compared([f"decoded {i}" for i, file in enumerate(files) if file.suffix == ending])
                for kind, ending in (("JPEG", ".jpg"), ("PNG", ".png"), ("WebP", ".webp"))
            }
            for each in INTERPOLATIONS:
                column[f"resizing, {each}"] = compared([f"{each} {number}" for number in range(len(pixels))])
            columns[f"{pillow}, libjpeg-turbo {jpeg}"] = column
            print(pillow, jpeg, column, flush=True)
    described = f"{len(drawn)} drawn photos of {len(SHAPES)} shapes" + (f" and {len(real)} of clothes" if real else "")
    text = table(columns, described, datetime.date.today().isoformat())
    PAGE.write_text(with_pillow_table(PAGE.read_text(), f"{PILLOW_START}\n{text}{PILLOW_END}\n"))
    return 0


if __name__ == "__main__":
    sys.exit(main())

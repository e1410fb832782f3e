"""Draw the pictures in docs/data.md: a batch from Keras and one from the data module.

    python benchmarks/draw_batches.py [--out docs/images]

Both sides get the same photos (from the drawn catalogue) and the same parameters. Keras runs in a process of its own.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from PIL import Image, ImageDraw

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY))

from datamodule.augment import Augmentation, FillMode  # noqa: E402
from datamodule.demo_photos import DEMO_CLASSES, draw_photo  # noqa: E402
from tests.datamodule.keras_generator import ask_keras  # noqa: E402 - the tests' own reference

SIDE = 96
COLUMNS = 8
MARGIN = 76  # for the names of the rows
RECIPE: dict[str, Any] = {
    "rotation_range": 20.0,
    "width_shift_range": 0.2,
    "height_shift_range": 0.2,
    "shear_range": 0.2,
    "zoom_range": 0.2,
    "horizontal_flip": True,
}
COLOUR: dict[str, Any] = {"brightness_range": [0.5, 1.5], "channel_shift_range": 60.0}


def both_sides(photos: np.ndarray, settings: dict[str, Any], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Augment photos, uint8 (B, H, W, 3), with the same parameters in Keras and in ours: float32, 0..255."""
    augmentation = Augmentation(**settings)
    parameters = augmentation.draw_parameters(torch.Generator().manual_seed(seed), len(photos), *photos.shape[1:3])
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder, "photos.npy"), photos)
        keras = ask_keras(
            "transform",
            photos=str(Path(folder, "photos.npy")),
            parameters={name: value.tolist() for name, value in vars(parameters).items() if value is not None},
            settings={name: settings[name] for name in ("fill_mode", "cval") if name in settings},
        )["images"]
    return keras, augmentation.apply(torch.from_numpy(photos), parameters).numpy()


def draw_rows(rows: dict[str, np.ndarray], path: Path) -> None:
    """Draw one row of photos for each name, (B, H, W, 3), 0..255, as a small PNG."""
    sheet = Image.new("RGB", (MARGIN + COLUMNS * (SIDE + 2), len(rows) * (SIDE + 2)), "white")
    pen = ImageDraw.Draw(sheet)
    for row, (name, photos) in enumerate(rows.items()):
        pen.text((4, row * (SIDE + 2) + SIDE // 2 - 6), name, fill="black")
        for column, photo in enumerate(photos):
            tile = Image.fromarray(photo.round().clip(0, 255).astype(np.uint8))
            sheet.paste(tile, (MARGIN + column * (SIDE + 2), row * (SIDE + 2)))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path} {path.stat().st_size / 1024:.0f} KiB")


def main() -> None:
    """Draw both pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=REPOSITORY / "docs" / "images")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    drawn = [
        np.asarray(draw_photo(DEMO_CLASSES[number % 4], np.random.default_rng([7, number]), SIDE))
        for number in range(COLUMNS)
    ]
    photos = np.stack(drawn)

    keras, ours = both_sides(photos, RECIPE, seed=1)
    keras_colour, our_colour = both_sides(photos, RECIPE | COLOUR, seed=2)
    rows = {
        "photo": photos,
        "Keras": keras,
        "ours": ours,
        "difference\nx 1000": np.abs(keras - ours) * 1000,
        "Keras,\nwith colour": keras_colour,
        "ours,\nwith colour": our_colour,
    }
    draw_rows(rows, arguments.out / "batch.png")

    rows = {}
    for fill_mode in get_args(FillMode):
        # stronger than in the recipe, so that there is something to fill
        settings = RECIPE | {"zoom_range": [1.6, 2.2], "rotation_range": 40.0, "fill_mode": fill_mode, "cval": 128.0}
        keras, ours = both_sides(photos[: COLUMNS // 2], settings, seed=3)
        rows[f"{fill_mode}:\nKeras | ours"] = np.concatenate([keras, ours])
    draw_rows(rows, arguments.out / "fill_modes.png")


if __name__ == "__main__":
    main()

"""Measure how far the data module is from Keras's own generator; prints the table in docs/data.md.

    python benchmarks/mirror_differences.py [--photos PHOTOS] [--per_class 10]

PHOTOS has one folder per class; without it the demo catalogue is drawn. Keras and SciPy must be installed; Keras runs
in a process of its own. The last line is one JSON object with the largest difference of each part.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY))

from datamodule.augment import Augmentation, FillMode  # noqa: E402
from datamodule.demo_photos import draw_catalogue  # noqa: E402
from datamodule.photo_store import load_photo  # noqa: E402
from datamodule.split import find_class_names, keras_split, list_classes  # noqa: E402
from models.choices import INTERPOLATIONS  # noqa: E402
from tests.datamodule.keras_generator import ask_keras  # noqa: E402 - the tests' own reference, so that both measure the same

SIZE = (244, 244)
RECIPE: dict[str, Any] = {
    "rotation_range": 20.0,
    "width_shift_range": 0.2,
    "height_shift_range": 0.2,
    "shear_range": 0.2,
    "zoom_range": 0.2,
    "horizontal_flip": True,
}
STRONG: dict[str, Any] = {
    "rotation_range": 40.0,
    "width_shift_range": 0.3,
    "height_shift_range": 0.2,
    "shear_range": 25.0,
    "zoom_range": 0.4,
    "horizontal_flip": True,
    "vertical_flip": True,
}
AUGMENTATIONS: dict[str, dict[str, Any]] = {
    "the recipe (`nearest`)": RECIPE,
    **{f"strong, `{fill_mode}`": STRONG | {"fill_mode": fill_mode, "cval": 99.0} for fill_mode in get_args(FillMode)},
    "strong, `interpolation_order: 0`": STRONG | {"interpolation_order": 0},
    "strong, channel shift 60": STRONG | {"channel_shift_range": 60.0},
    "strong, brightness 0.4 to 1.7": STRONG | {"brightness_range": [0.4, 1.7]},
}
DRAWS = 100_000


def compare_split(root: Path) -> Iterator[tuple[str, str, str, float]]:
    """Rows (what, compared, found, worst): how many files are not where they are in Keras's lists."""
    names = find_class_names(root)
    keras = ask_keras("split", root=str(root), validation_split=0.2)
    sets = dict(zip(("training", "validation"), keras_split(list_classes(root, names), 0.2), strict=True))
    for name, ours in sets.items():
        files = [str(file.relative_to(root)) for file in ours.files]
        theirs = keras[f"{name}_files"].tolist()
        wrong = sum(a != b for a, b in zip(files, theirs, strict=False)) + abs(len(files) - len(theirs))
        wrong += sum(a != b for a, b in zip(ours.labels, keras[f"{name}_labels"].tolist(), strict=False))
        yield f"split, {name}", f"{len(theirs)} files in order, and labels", f"{wrong} differ", wrong


def compare_pixels(files: list[Path]) -> Iterator[tuple[str, str, str, float]]:
    """Rows: the largest difference between our pixels and `load_img`'s, in 1/255."""
    for interpolation in INTERPOLATIONS:
        keras = ask_keras("load", paths=[str(file) for file in files], image_size=SIZE, interpolation=interpolation)
        worst = max(
            float(np.abs(load_photo(file, SIZE, interpolation) - keras[str(row)]).max())
            for row, file in enumerate(files)
        )
        yield f"pixels, `{interpolation}`", f"{len(files)} photos", f"worst {worst / 255:.1e}", worst / 255


def compare_augmentation(photos: torch.Tensor) -> Iterator[tuple[str, str, str, float]]:
    """Rows: the largest difference for the same parameters, as a share of the range 0..255."""
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder, "photos.npy"), photos.numpy())
        for name, settings in AUGMENTATIONS.items():
            augmentation = Augmentation(**settings)
            parameters = augmentation.draw_parameters(torch.Generator().manual_seed(0), len(photos), *SIZE)
            keras = ask_keras(
                "transform",
                photos=str(Path(folder, "photos.npy")),
                parameters={name: value.tolist() for name, value in vars(parameters).items() if value is not None},
                settings={
                    key: settings[key] for key in ("fill_mode", "cval", "interpolation_order") if key in settings
                },
            )["images"]
            difference = np.abs(augmentation.apply(photos, parameters).numpy() - keras) / 255
            far = float(np.mean(difference > 1e-4))
            found = f"worst {difference.max():.1e}; beyond 1e-4: {far:.1e} of all"
            yield f"augmentation, {name}", f"{len(photos)} photos", found, float(difference.max())


def compare_draws() -> Iterator[tuple[str, str, str, float]]:
    """One row: the largest Kolmogorov-Smirnov distance of a parameter's distribution from Keras's."""
    settings = STRONG | {"brightness_range": [0.4, 1.7], "channel_shift_range": 60.0}
    keras = ask_keras("draw", settings=settings, image_shape=[*SIZE, 3], count=DRAWS, seed=0)
    ours = Augmentation(**settings).draw_parameters(torch.Generator().manual_seed(0), DRAWS, *SIZE)
    distances = {}
    for name, theirs in keras.items():
        drawn = getattr(ours, name).double().numpy()
        values = np.concatenate([drawn, theirs])
        shares = [np.searchsorted(np.sort(sample), values, side="right") / DRAWS for sample in (drawn, theirs)]
        distances[name] = float(np.abs(shares[0] - shares[1]).max())
    name, worst = max(distances.items(), key=lambda pair: pair[1])
    # two samples of the same distribution exceed this distance once in 10,000 times
    limit = 2.23 * np.sqrt(2 / DRAWS)
    found = f"worst distance {worst:.4f} (`{name}`); chance alone gives up to {limit:.4f}"
    yield "drawn parameters", f"{len(distances)} parameters, {DRAWS:,} draws each", found, worst


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--photos", type=Path, help="folder with one folder of photos per class")
    parser.add_argument("--per_class", type=int, default=10, help="photos of each class whose pixels are compared")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        root = arguments.photos
        if root is None:
            root = Path(folder, "photos")
            draw_catalogue(root)
        files = [file for files in list_classes(root, find_class_names(root)) for file in files[: arguments.per_class]]
        photos = torch.from_numpy(np.stack([load_photo(file, SIZE) for file in files]))
        rows = [*compare_split(root), *compare_pixels(files), *compare_augmentation(photos), *compare_draws()]
    print("| what | compared | found |\n|---|---|---|")
    for what, compared, found, _ in rows:
        print(f"| {what} | {compared} | {found} |")
    print(json.dumps({what: worst for what, _, _, worst in rows}))


if __name__ == "__main__":
    main()

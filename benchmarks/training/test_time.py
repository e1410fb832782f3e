"""What a trained network gains from larger photos and from their mirror images when it is used: no training.

    python benchmarks/training/test_time.py CHECKPOINT [CHECKPOINT ...] [--photos FOLDER] [--sizes 1 1.15 1.3]

Prints accuracy and loss on labelled photos, one folder for each class, at the checkpoint's own size and at larger ones:
of each photo as it is, and of the mean of its probabilities and its mirror image's, which costs twice the time. Several
checkpoints, such as of several seeds, have rows of their own.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from datamodule.photo_store import load_photo
from export.checkpoint import Checkpoint, read_checkpoint
from models.classifier import Classifier

CLOTHING = Path(__file__).resolve().parents[3] / "shared" / "data" / "clothing" / "validation"
BATCH = 32


def main() -> None:
    """Measure the checkpoints and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--photos", type=Path, default=CLOTHING)
    parser.add_argument("--sizes", type=float, nargs="+", default=[1, 1.15, 1.3], help="multiples of the own size")
    arguments = parser.parse_args()
    print(
        "| checkpoint | pixels | accuracy | loss | accuracy with mirror | loss with mirror |\n|---|---|---|---|---|---|"
    )
    for path in arguments.checkpoints:
        checkpoint = read_checkpoint(path)
        checkpoint.network.to(memory_format=torch.channels_last)
        for factor in arguments.sizes:
            size = (round(checkpoint.image_size[0] * factor), round(checkpoint.image_size[1] * factor))
            figures = measure(checkpoint, arguments.photos, size)
            print(f"| {path.stem} | {size[0]} x {size[1]} | " + " | ".join(f"{each:.4f}" for each in figures) + " |")


def measure(checkpoint: Checkpoint, photos: Path, size: tuple[int, int]) -> list[float]:
    """Return accuracy and loss at a size, and both with mirror images."""
    files = [(file, name) for name in checkpoint.class_names for file in sorted((photos / name).iterdir())]
    labels = np.array([checkpoint.class_names.index(name) for _, name in files])
    plain, mirrored = [], []
    for start in range(0, len(files), BATCH):
        loaded = [
            load_photo(file, size, checkpoint.interpolation, checkpoint.loading)
            for file, _ in files[start : start + BATCH]
        ]
        images = torch.from_numpy(np.stack(loaded)).permute(0, 3, 1, 2).float() / 255
        plain.append(probabilities(checkpoint.network, images))
        mirrored.append(probabilities(checkpoint.network, images.flip(-1)))
    alone = np.concatenate(plain)
    return [*figures_of(alone, labels), *figures_of((alone + np.concatenate(mirrored)) / 2, labels)]


@torch.inference_mode()
def probabilities(network: Classifier, images: torch.Tensor) -> np.ndarray:
    """The network's probabilities, shape (B, C), of images (B, 3, H, W), 0 to 1."""
    return network(images).softmax(dim=1).double().numpy()


def figures_of(probabilities: np.ndarray, labels: np.ndarray) -> Sequence[float]:
    """Accuracy, and the mean of -log(probability of the right class)."""
    right = probabilities[np.arange(len(labels)), labels]
    return float((probabilities.argmax(axis=1) == labels).mean()), float(-np.log(right).mean())


if __name__ == "__main__":
    main()

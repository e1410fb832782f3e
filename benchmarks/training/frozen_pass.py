"""The frozen backbone's fast pass: how much faster each of its steps makes it, and whether accuracy stays the same.

    python benchmarks/training/frozen_pass.py          # about 3 minutes on 2 cores

Three questions, on real photos: how many images per second, how far the features are from the network's own, and how
accurate heads become if they are trained on the fast features but judged on the network's own. The last line is one
JSON object.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from train_throughput import AUGMENTATION, CLOTHING, WEIGHTS, gather_photos

from datamodule.augment import Augmentation
from datamodule.product_photos import PhotoBatch, ProductPhotos
from models.frozen_backbone import FrozenBackbone, fold_batchnorm, relative_error, resolve_precision, turn_around
from models.pretrained import load_pretrained
from models.timm_mobilenetv2 import TimmClassifier


def read_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, default=CLOTHING if CLOTHING.is_dir() else None)
    parser.add_argument("--weights", type=Path, default=WEIGHTS if WEIGHTS.is_file() else None)
    parser.add_argument("--per_class", type=int, default=100, help="photos of each class; a quarter is validation")
    parser.add_argument("--image_size", type=int, default=244, help="pixels")
    parser.add_argument("--batch_size", type=int, default=32, help="photos")
    parser.add_argument("--draws", type=int, default=2, help="augmented versions of each training photo")
    parser.add_argument("--seeds", type=int, default=10, help="heads trained on each kind of features")
    parser.add_argument("--compile", action="store_true", help="time the compiled pass as well (half a minute more)")
    return parser.parse_args()


def images_per_second(features: Callable[[Tensor], Tensor], images: Tensor, repeats: int = 4) -> float:
    """Median throughput of a few passes, after one to warm up."""
    seconds = []
    with torch.no_grad():
        for repeat in range(repeats + 1):
            start = time.perf_counter()
            features(images)
            if images.device.type == "cuda":
                torch.cuda.synchronize()
            if repeat:
                seconds.append(time.perf_counter() - start)
    return len(images) / statistics.median(seconds)


def passes(network: TimmClassifier, compiled: bool) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return the ways to compute the features, each with one step more than the one before."""
    ways: dict[str, Callable[[Tensor], Tensor]] = {"network, channels-last": network.features}
    folded = fold_batchnorm(network.backbone).to(memory_format=torch.channels_last)
    ways["BatchNorm folded"] = lambda images: folded(network.normalise(images))
    turned = fold_batchnorm(network.backbone)
    if turn_around(turned):
        turned.to(memory_format=torch.channels_last)
        ways["and padding joined"] = lambda images: turned(network.normalise(images).flip(2, 3))
    ways["and activations joined, in parts: float32"] = FrozenBackbone(network, "float32", "never").features
    ways["the same in bfloat16"] = FrozenBackbone(network, "bfloat16", "never").features
    if compiled:
        ways["float32, compiled"] = FrozenBackbone(network, "float32", "always").features
        ways["bfloat16, compiled"] = FrozenBackbone(network, "bfloat16", "always").features
    return ways


def train_head(network: TimmClassifier, features: Tensor, labels: Tensor, seed: int) -> nn.Module:
    """Train the recipe's head with Adam, 30 epochs of batches of 32, as `lightning fit` does."""
    torch.manual_seed(seed)
    head = TimmClassifier(int(labels.max()) + 1, network.backbone_name, network.hidden).head.to(features.device)
    optimiser = torch.optim.Adam(head.parameters(), lr=1e-3, eps=1e-7)
    for _ in range(30):
        for rows in torch.randperm(len(labels)).to(labels.device).split(32):
            loss = nn.functional.cross_entropy(head(features[rows]), labels[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return head


def compare_accuracy(
    network: TimmClassifier, photos: ProductPhotos, arguments: argparse.Namespace, device: torch.device
) -> dict[str, Any]:
    """Train heads on the network's features and on the fast ones; judge all of them on the network's own."""
    photos.setup("fit")
    fast = FrozenBackbone(network, compile="never")
    training: dict[str, list[Tensor]] = {"network": [], "fast": []}
    labels = []
    generator = torch.Generator().manual_seed(0)
    for _ in range(arguments.draws):
        for batch in photos.train_dataloader():
            # As in training, but with a generator of our own: the module's parameters depend on the trainer's epoch.
            assert photos.augmentation is not None
            parameters = photos.augmentation.draw_parameters(generator, len(batch.labels), *photos.image_size)
            images = photos.augmentation.apply(batch.photos.to(device), parameters).mul_(1 / 255).permute(0, 3, 1, 2)
            with torch.no_grad():
                training["network"].append(network.features(images))
            training["fast"].append(fast.features(images))
            labels.append(batch.labels.to(device))
    held_out, held_out_labels = [], []
    for batch in photos.val_dataloader()[0]:
        images, truth = photos.on_after_batch_transfer(PhotoBatch(*(p.to(device) for p in batch[:3]), "val"), 0)
        with torch.no_grad():
            held_out.append(network.features(images))
        held_out_labels.append(truth)
    truth = torch.cat(held_out_labels)
    accuracies: dict[str, list[float]] = {name: [] for name in training}
    for seed in range(arguments.seeds):
        for name, features in training.items():
            head = train_head(network, torch.cat(features), torch.cat(labels), seed)
            with torch.no_grad():
                predicted = head(torch.cat(held_out)).argmax(1)
            accuracies[name].append((predicted == truth).float().mean().item())
    differences = [fast - slow for fast, slow in zip(accuracies["fast"], accuracies["network"], strict=True)]
    return {
        "features_relative_error": relative_error(torch.cat(training["fast"]), torch.cat(training["network"])),
        "precision": str(resolve_precision("auto", device)).removeprefix("torch."),
        "training_photos": sum(len(part) for part in labels),
        "validation_photos": len(truth),
        "accuracy_network": statistics.mean(accuracies["network"]),
        "accuracy_fast": statistics.mean(accuracies["fast"]),
        "accuracy_sd_between_seeds": statistics.stdev(accuracies["network"]),
        "accuracy_difference": statistics.mean(differences),
        "accuracy_difference_standard_error": statistics.stdev(differences) / len(differences) ** 0.5,
    }


def main() -> None:
    """Measure and report."""
    arguments = read_arguments()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "photos"
        gather_photos(arguments.photos, arguments.per_class, root)
        photos = ProductPhotos(
            str(root), image_size=arguments.image_size, batch_size=arguments.batch_size, validation_split=0.25,
            augmentation=Augmentation(**AUGMENTATION),
        )  # fmt: skip
        network = TimmClassifier(len(photos.class_names), pad_type="same", bn_eps=1e-3, mean=0.5, std=0.5).eval()
        if arguments.weights is not None:
            load_pretrained(network, str(arguments.weights))
        network.requires_grad_(False).to(device, memory_format=torch.channels_last)
        accuracy = compare_accuracy(network, photos, arguments, device)
        images = torch.rand(arguments.batch_size, 3, *photos.image_size, device=device)
        speeds = {name: images_per_second(way, images) for name, way in passes(network, arguments.compile).items()}
    print(f"| forward pass, batch {arguments.batch_size}, {arguments.image_size} pixels | images/s |\n|---|---|")
    for name, speed in speeds.items():
        print(f"| {name} | {speed:.0f} |")
    print(
        f"\n{accuracy['precision']} features differ by {accuracy['features_relative_error']:.1e} of their norm.\n"
        f"Accuracy on {accuracy['validation_photos']} photos, mean of {arguments.seeds} heads: "
        f"{accuracy['accuracy_network']:.4f} trained on the network's features, {accuracy['accuracy_fast']:.4f} on "
        f"the fast ones; paired difference {accuracy['accuracy_difference']:+.4f} "
        f"(standard error {accuracy['accuracy_difference_standard_error']:.4f})."
    )
    print(json.dumps({"images_per_second": {name: round(speed, 1) for name, speed in speeds.items()}, **accuracy}))


if __name__ == "__main__":
    main()

"""Training throughput on a GPU: our step, our whole epoch, timm's own loop, and what the hardware allows.

    python benchmarks/gpu_throughput.py                                  # drawn photos, mobilenetv2_100 at 244
    python benchmarks/gpu_throughput.py --device cpu --image_size 64 --batch_size 8 --photos 64    # does it run

For a frozen backbone and for fine-tuning everything, in turn and in one process:

- step: our training step again and again on one batch that lies on the device;
- epoch: a whole epoch of `ProductPhotos` (its store warm), augmentation on the device;
- timm: the loop of timm's `train.py`: its loader, its transforms and its workers from the same files, same network,
  size, batch and precision;
- limits: this step's arithmetic at the speed of a large matrix product on this device, and its memory traffic (what
  every layer reads and writes, twice again for the way back) at the speed of a large copy.

The last line is one JSON object. Without a GPU the figures say nothing about one: the script only shows that it runs.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import ImageDataset, create_loader
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from datamodule.augment import Augmentation
from datamodule.demo_photos import draw_catalogue
from datamodule.product_photos import ProductPhotos
from lightning_module.classifier import ProductClassifier

MATRIX = {"cuda": 8192, "cpu": 1024}
COPY_BYTES = {"cuda": 1 << 31, "cpu": 1 << 27}
AUGMENTATION = Augmentation(
    rotation_range=20.0, width_shift_range=0.2, height_shift_range=0.2, shear_range=0.2, zoom_range=0.2,
    horizontal_flip=True,
)  # fmt: skip
"""The customer's recipe."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="one folder per class; drawn photos where it is left out")
    parser.add_argument("--photos", type=int, default=8192, help="how many to draw")
    parser.add_argument("--backbone", default="mobilenetv2_100")
    parser.add_argument("--image_size", type=int, default=244, help="pixels")
    parser.add_argument("--batch_size", type=int, default=256, help="photos")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="of timm's loader")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each, after one to warm up")
    parser.add_argument("--compile", action="store_true", help="torch.compile on both sides")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{name}, {arguments.backbone}, {arguments.image_size} pixels, batches of {arguments.batch_size}, bfloat16")
    with tempfile.TemporaryDirectory() as folder:
        root = arguments.root or Path(folder) / "photos"
        if arguments.root is None:
            draw_catalogue(root, per_class=arguments.photos // 4, seed=0)
        summary = {
            "device": name,
            "batch_size": arguments.batch_size,
            **{mode: measure(arguments, device, root, mode) for mode in ("head", "all")},
        }
    print(json.dumps(summary))


def measure(arguments: argparse.Namespace, device: torch.device, root: Path, mode: str) -> dict[str, float]:
    """Images a second of each way for one mode, as a row per way and a dictionary."""
    photos = ProductPhotos(
        str(root), image_size=arguments.image_size, batch_size=arguments.batch_size, validation_split=0.1,
        split="stratified", augmentation=AUGMENTATION,
    )  # fmt: skip
    photos.setup("fit")
    step = training_step(arguments, device, len(photos.class_names), mode)
    loader = photos.train_dataloader()
    batch = next(iter(photos_on(loader, photos, device)))
    repeats = max(1, len(photos.train_files) // arguments.batch_size)
    ways: dict[str, Callable[[], int]] = {
        "step": lambda: sum(step(*batch) for _ in range(repeats)),
        "epoch": lambda: sum(step(*each) for each in photos_on(loader, photos, device)),
        "timm": timm_epoch(arguments, device, root, len(photos.class_names), mode),
    }
    rates: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(arguments.rounds + 1):
        for way, run in ways.items():
            synchronise(device)
            start = time.perf_counter()
            count = run()
            synchronise(device)
            if turn:
                rates[way].append(count / (time.perf_counter() - start))
    figures = {way: round(sorted(each)[len(each) // 2], 1) for way, each in rates.items()}
    figures |= limits(arguments, device, len(photos.class_names), mode)
    figures["epoch_over_step"] = round(figures["epoch"] / figures["step"], 3)
    figures["epoch_over_timm"] = round(figures["epoch"] / figures["timm"], 2)
    print(f"\ntrained: {mode}\n\n| | images/s |\n|---|---|")
    for way, rate in figures.items():
        print(f"| {way.replace('_', ' ')} | {rate} |")
    return figures


def photos_on(loader: Iterable, photos: ProductPhotos, device: torch.device) -> Iterable[tuple[Tensor, Tensor]]:
    """Batches as Lightning hands them to a step: moved as uint8, augmented and scaled on the device."""
    for batch in loader:
        moved = type(batch)(batch.photos.to(device, non_blocking=True), batch.labels.to(device), *batch[2:])
        yield photos.on_after_batch_transfer(moved, 0)


def training_step(
    arguments: argparse.Namespace, device: torch.device, classes: int, mode: str
) -> Callable[[Tensor, Tensor], int]:
    """Our step: ProductClassifier's forward pass while fitting, cross-entropy, backward pass, its own optimiser."""
    module = ProductClassifier(
        [str(each) for each in range(classes)], (arguments.image_size,) * 2, backbone=arguments.backbone,
        pretrained=False, trainable=mode, compile="always" if arguments.compile else "never",
    ).to(device)  # fmt: skip
    optimizer = module.configure_optimizers()

    def step(images: Tensor, labels: Tensor) -> int:
        # A frozen backbone has its own bfloat16 pass; what is trained is trained under autocast.
        with autocast(device, mode == "all"):
            logits = module.logits_while_fitting(images, exact=False)
            loss = nn.functional.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return len(labels)

    return step


def timm_epoch(
    arguments: argparse.Namespace, device: torch.device, root: Path, classes: int, mode: str
) -> Callable[[], int]:
    """The loop of timm's train.py: prefetching loader, default augmentation, autocast, AdamW, channels-last."""
    network = timm.create_model(arguments.backbone, num_classes=classes).to(device, memory_format=torch.channels_last)
    if mode == "head":
        network.requires_grad_(False)
        network.get_classifier().requires_grad_(True)
    network.train(mode == "all")
    forward = torch.compile(network) if arguments.compile else network
    optimizer = torch.optim.AdamW([weight for weight in network.parameters() if weight.requires_grad], 1e-3)
    loader = create_loader(
        ImageDataset(str(root)), (3, arguments.image_size, arguments.image_size), arguments.batch_size,
        is_training=True, use_prefetcher=device.type == "cuda", num_workers=arguments.workers, device=device,
        persistent_workers=arguments.workers > 0,
    )  # fmt: skip

    def epoch() -> int:
        count = 0
        for images, labels in loader:
            images, labels = images.to(device, memory_format=torch.channels_last), labels.to(device)
            with autocast(device, True):
                loss = nn.functional.cross_entropy(forward(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            count += len(labels)
        return count

    return epoch


def limits(arguments: argparse.Namespace, device: torch.device, classes: int, mode: str) -> dict[str, float]:
    """Images a second that arithmetic and memory would allow, each by itself."""
    network: Any = timm.create_model(arguments.backbone, num_classes=classes).to(device).to(torch.bfloat16)
    images = torch.rand(8, 3, arguments.image_size, arguments.image_size, device=device, dtype=torch.bfloat16)
    traffic = 0

    def count(layer: nn.Module, given: tuple, result: Tensor) -> None:
        nonlocal traffic
        weights = sum(weight.numel() * weight.element_size() for weight in layer.parameters(recurse=False))
        passed = sum(each.numel() * each.element_size() for each in (*given, result) if isinstance(each, Tensor))
        traffic += passed / len(images) + weights / arguments.batch_size

    hooks = [layer.register_forward_hook(count) for layer in network.modules() if not list(layer.children())]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(images)
    for hook in hooks:
        hook.remove()
    passes = 3 if mode == "all" else 1  # backward: gradients of what came in, and of the weights
    operations = counter.get_total_flops() / len(images) * passes
    return {
        "arithmetic_limit": round(matrix_speed(device) / operations, 1),
        "bandwidth_limit": round(copy_speed(device) / (traffic * passes), 1),
    }


def matrix_speed(device: torch.device) -> float:
    """Operations a second of a large bfloat16 matrix product."""
    side = MATRIX[device.type]
    matrix = torch.rand(side, side, device=device, dtype=torch.bfloat16)
    return 2 * side**3 / fastest(lambda: matrix @ matrix, device)


def copy_speed(device: torch.device) -> float:
    """Bytes a second of a large copy, read and written."""
    source = torch.empty(COPY_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / fastest(lambda: target.copy_(source), device)


def fastest(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds of the fastest of ten."""
    seconds = []
    for _ in range(10):
        synchronise(device)
        start = time.perf_counter()
        work()
        synchronise(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def autocast(device: torch.device, enabled: bool) -> AbstractContextManager:
    """bfloat16 where that is safe."""
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def synchronise(device: torch.device) -> None:
    """Wait for what was launched."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()

"""Training throughput on a GPU: whole epochs of `lightning fit`, the bare step, timm's own loop, and the limits.

    python benchmarks/training/gpu_throughput.py                                # drawn photos, the recipes as they are
    python benchmarks/training/gpu_throughput.py --device cpu --image_size 64 --train_size 48 --batch_size 8 --photos 80

For `head` (configs/mobilenetv2.yaml) and `all` (configs/finetune.yaml), each overlaid with configs/gpu.yaml, these are
measured in turn in one process:

- epoch: the training part of an epoch of `Trainer.fit` with everything that these configurations include: store,
  loader, augmentation, metrics, seeds, schedule, weight averaging, checkpoints. The photos are already decoded. `all`
  is timed after the epochs that train only the head;
- step: the same training step (forward, backward, clipping, optimiser), repeated on one augmented batch on the device.
  This leaves out the loader, the augmentation, Lightning's loop and the callbacks;
- timm: the loop of timm's `train.py`: its loader, transforms and workers on the same files, with the same network,
  batch size, precision, and photo size in the step;
- limits: the step's arithmetic at the speed of a large matrix product on this device, and its memory traffic at the
  speed of a large copy. The traffic is what every layer reads and writes, plus twice that for the backward pass.
  Compiled code keeps some of it in registers, so it may be faster than this second limit.

The last line is one JSON object. Without a GPU the figures say nothing about one; the run only shows that the script
works.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest import mock

import lightning as L
import timm
import torch
from lightning.pytorch.callbacks import Callback
from timm.data import ImageDataset, create_loader
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from datamodule.demo_photos import draw_catalogue
from datamodule.product_photos import ProductPhotos
from lightning_module.classifier import ProductClassifier
from lightning_module.commands.lightning_cli.training import TrainingCLI

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
RECIPES = {"head": "mobilenetv2.yaml", "all": "finetune.yaml"}
MATRIX = {"cuda": 8192, "cpu": 1024}
COPY_BYTES = {"cuda": 1 << 31, "cpu": 1 << 27}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="one folder per class; drawn photos where it is left out")
    parser.add_argument("--photos", type=int, default=8192, help="how many to draw")
    parser.add_argument("--backbone", help="the recipes' own where it is left out")
    parser.add_argument("--image_size", type=int, help="pixels; the recipes' own where it is left out")
    parser.add_argument("--train_size", type=int, help="pixels in the steps of `all`; the recipe's own likewise")
    parser.add_argument("--batch_size", type=int, help="photos; gpu.yaml's where it is left out")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="of timm's loader")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each, after one to warm up")
    parser.add_argument("--compile", choices=("auto", "never", "always"), default="auto",
                        help="as --model.compile; `always` compiles timm's network, too")  # fmt: skip
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    with tempfile.TemporaryDirectory() as folder:
        if arguments.root is None:
            arguments.root = Path(folder) / "photos"
            draw_catalogue(arguments.root, per_class=arguments.photos // 4, seed=0)
        figures = {mode: measure(arguments, mode, Path(folder) / mode) for mode in RECIPES}
    print(json.dumps({"device": name, **figures}))


def measure(arguments: argparse.Namespace, mode: str, run: Path) -> dict[str, float]:
    """Fit and measure everything in turn meanwhile. Prints a row for each way; returns the images per second."""
    fit = prepare_fit(arguments, mode, run)
    turns = Turns(arguments, mode)
    fit.trainer.callbacks.append(turns)  # added last, so that its clock includes the other callbacks
    fit.trainer.fit(fit.model, fit.datamodule)
    height, width = fit.model.train_shape
    rates = {way: sorted(each)[len(each) // 2] for way, each in turns.rates.items()}
    rates |= limits(fit.model, fit.datamodule.batch_size, turns.device, mode)
    ratios = {
        f"{way}_over_{of}": float(f"{rates[way] / rates[of]:.3g}")
        for way, of in (
            ("epoch", "step"), ("epoch", "timm"), ("step", "arithmetic_limit"), ("step", "bandwidth_limit"),
        )
    }  # fmt: skip
    print(
        f"\ntrained: {mode} ({RECIPES[mode]} and gpu.yaml), {fit.model.hparams['backbone']}, {height} x {width} pixels "
        f"in a step, batches of {fit.datamodule.batch_size}, {fit.trainer.precision}, {turns.device}\n\n"
        "| | images/s |\n|---|---|"
    )
    for way, rate in rates.items():
        print(f"| {way.replace('_', ' ')} | {rate:.1f} |")
    print("\n| | ratio |\n|---|---|")
    for name, ratio in ratios.items():
        print(f"| {name.replace('_over_', ' / ').replace('_', ' ')} | {ratio} |")
    return {way: round(rate, 1) for way, rate in rates.items()} | ratios


def prepare_fit(arguments: argparse.Namespace, mode: str, run: Path) -> TrainingCLI:
    """Do everything that `lightning fit --config RECIPE --config gpu.yaml` does before the training itself."""

    class Prepared(TrainingCLI):
        def _run_subcommand(self, subcommand: str) -> None:
            """Do not run anything."""

    given = {
        "--data.root": arguments.root,
        "--data.image_size": arguments.image_size,
        "--data.batch_size": arguments.batch_size,
        "--data.epoch_photos": "null",  # each photo once, as in timm's epochs; this does not affect the rates
        "--model.backbone": arguments.backbone,
        "--model.pretrained": "false",
        "--model.compile": arguments.compile,
        "--model.train_size": arguments.train_size if mode == "all" else None,
        "--trainer.accelerator": "gpu" if arguments.device == "cuda" else "cpu",
        "--trainer.default_root_dir": run,
        "--trainer.enable_progress_bar": "false",
        "--early_stopping.patience": 1000,
        "--hand_over.enabled": "false",
    }
    recipe = [f"--config={CONFIGS / name}" for name in (RECIPES[mode], "gpu.yaml")]
    fit = Prepared(
        ProductClassifier, ProductPhotos, seed_everything_default=0, auto_configure_optimizers=False,
        load_from_checkpoint_support=False, trainer_defaults={"enable_model_summary": False},
        args=["fit", *recipe, *(f"{name}={value}" for name, value in given.items() if value is not None)],
    )  # fmt: skip
    # Keep the recipe's number of epochs, on which its schedule and `compile: auto` depend; `Turns` stops earlier.
    fit.trainer.fit_loop.max_epochs = max(fit.trainer.max_epochs or 0, last_epoch(fit.model, arguments.rounds) + 1)
    return fit


def last_epoch(module: ProductClassifier, rounds: int) -> int:
    """Number of the last epoch to measure: after the head's own epochs, and one to warm up."""
    return module.schedule.head_epochs + rounds


class Turns(Callback):
    """Times each epoch of a fit, and after each epoch the other ways, so that all run under the same conditions.

    Args:
        arguments: the command line's.
        mode: `head` or `all`.

    Attributes:
        rates: for each way, images per second in each round.
    """

    def __init__(self, arguments: argparse.Namespace, mode: str) -> None:
        self.arguments, self.mode = arguments, mode
        self.device = torch.device("cpu")
        self.rates: dict[str, list[float]] = {"epoch": [], "step": [], "timm": []}
        self.held: tuple[Tensor, Tensor] | None = None
        self.timm: Callable[[], int] | None = None
        self._start = self._seconds = 0.0
        self._images = 0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remember the device of the fit."""
        self.device = trainer.strategy.root_device

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        synchronise(self.device)
        self._start, self._images = time.perf_counter(), 0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count photos; stop the clock after the last batch, before anything else is measured."""
        self._images += len(batch[1])
        if self.held is None:
            self.held = batch[0].clone(), batch[1].clone()
        if batch_idx + 1 == trainer.num_training_batches:
            synchronise(self.device)
            self._seconds = time.perf_counter() - self._start

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Run as many steps in the other ways, and keep the rates unless this is the warm-up."""
        if pl_module.trainable == "all" and pl_module.backbone_is_frozen:
            return
        rates = {"epoch": self._images / self._seconds}
        if self.timm is None:
            self.timm = timm_epoch(self.arguments, pl_module, trainer.datamodule.batch_size, self.device, self.mode)
        pl_module.train()
        steps = trainer.num_training_batches
        for way, run in (("step", lambda: held_steps(trainer, pl_module, self.held, steps)), ("timm", self.timm)):
            synchronise(self.device)
            start = time.perf_counter()
            images = run()
            synchronise(self.device)
            rates[way] = images / (time.perf_counter() - start)
        if trainer.current_epoch > pl_module.schedule.head_epochs:
            for way, rate in rates.items():
                self.rates[way].append(rate)
        trainer.should_stop = trainer.current_epoch >= last_epoch(pl_module, self.arguments.rounds)


def held_steps(trainer: L.Trainer, module: ProductClassifier, batch: tuple[Tensor, Tensor], steps: int) -> int:
    """Repeat the step on one batch with a fit's module and optimiser, but without its loop. Return the photo count."""
    (optimizer,) = trainer.optimizers

    def closure() -> Tensor:
        with trainer.precision_plugin.train_step_context():
            loss = module.training_step(batch, 0)
        optimizer.zero_grad()
        loss.backward()
        if trainer.gradient_clip_val:
            nn.utils.clip_grad_norm_(module.parameters(), trainer.gradient_clip_val)
        return loss

    # logging needs Lightning's loop; the metrics are still computed in the step
    with mock.patch.object(module, "log"), mock.patch.object(module, "log_dict"):
        for _ in range(steps):
            optimizer.step(closure)
    return steps * len(batch[1])


def timm_epoch(
    arguments: argparse.Namespace, module: ProductClassifier, batch_size: int, device: torch.device, mode: str
) -> Callable[[], int]:
    """The loop of timm's train.py: prefetching loader, default augmentation, autocast, AdamW, channels-last."""
    network = backbone_of(module).to(device, memory_format=torch.channels_last)
    if mode == "head":
        network.requires_grad_(False)
        network.get_classifier().requires_grad_(True)
    network.train(mode == "all")
    forward = torch.compile(network) if arguments.compile == "always" else network
    optimizer = torch.optim.AdamW([weight for weight in network.parameters() if weight.requires_grad], 1e-3)
    loader = create_loader(
        ImageDataset(str(arguments.root)), (3, *module.train_shape), batch_size,
        is_training=True, use_prefetcher=device.type == "cuda", num_workers=arguments.workers, device=device,
        persistent_workers=arguments.workers > 0,
    )  # fmt: skip

    def epoch() -> int:
        count = 0
        for images, labels in loader:
            images, labels = images.to(device, memory_format=torch.channels_last), labels.to(device)
            with autocast(device):
                loss = nn.functional.cross_entropy(forward(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            count += len(labels)
        return count

    return epoch


def backbone_of(module: ProductClassifier) -> Any:
    """The same network, built by timm."""
    return timm.create_model(module.hparams["backbone"], num_classes=len(module.class_names))


def limits(module: ProductClassifier, batch_size: int, device: torch.device, mode: str) -> dict[str, float]:
    """Images per second that arithmetic alone and memory traffic alone would allow."""
    network = backbone_of(module).to(device).to(torch.bfloat16)
    images = torch.rand(8, 3, *module.train_shape, device=device, dtype=torch.bfloat16)
    traffic = 0

    def count(layer: nn.Module, given: tuple, result: Tensor) -> None:
        nonlocal traffic
        weights = sum(weight.numel() * weight.element_size() for weight in layer.parameters(recurse=False))
        passed = sum(each.numel() * each.element_size() for each in (*given, result) if isinstance(each, Tensor))
        traffic += passed / len(images) + weights / batch_size

    hooks = [layer.register_forward_hook(count) for layer in network.modules() if not list(layer.children())]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(images)
    for hook in hooks:
        hook.remove()
    passes = 3 if mode == "all" else 1  # the backward pass computes gradients of the inputs and of the weights
    operations = counter.get_total_flops() / len(images) * passes
    return {
        "arithmetic_limit": matrix_speed(device) / operations,
        "bandwidth_limit": copy_speed(device) / (traffic * passes),
    }


def matrix_speed(device: torch.device) -> float:
    """Operations per second of a large bfloat16 matrix product."""
    side = MATRIX[device.type]
    matrix = torch.rand(side, side, device=device, dtype=torch.bfloat16)
    return 2 * side**3 / fastest(lambda: matrix @ matrix, device)


def copy_speed(device: torch.device) -> float:
    """Bytes per second of a large copy; both reading and writing count."""
    source = torch.empty(COPY_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / fastest(lambda: target.copy_(source), device)


def fastest(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds of the fastest of ten runs."""
    seconds = []
    for _ in range(10):
        synchronise(device)
        start = time.perf_counter()
        work()
        synchronise(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def autocast(device: torch.device) -> AbstractContextManager:
    """Autocast to bfloat16 where that is safe."""
    return torch.autocast(device.type, torch.bfloat16)


def synchronise(device: torch.device) -> None:
    """Wait until the device has finished everything that was launched."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()

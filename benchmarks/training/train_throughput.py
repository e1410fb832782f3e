"""Training throughput: an old Keras pipeline against this project's, in turn on the same photos.

    python benchmarks/training/train_throughput.py                       # about 6 minutes on 2 cores
    python benchmarks/training/train_throughput.py --trainable all --batch_size 256 --precision bf16-mixed

Each side runs in a process of its own (TensorFlow and torch cannot share one) and trains one epoch whenever it is told
to, so that both run under the same conditions. Photos, size, batch, augmentation, weights, head and optimiser are the
same. The last line is one JSON object.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from datamodule.demo_photos import draw_catalogue

REPO = Path(__file__).resolve().parents[2]
SHARED = REPO.parent / "shared"
CLOTHING = SHARED / "data" / "clothing" / "train"
WEIGHTS = SHARED / "weights" / "mobilenetv2_100.in1k_tf_same.safetensors"
CLASSES = ("pants", "t-shirt", "shoes", "dress")
"""From the clothing photos: as few classes as a small catalogue has."""

AUGMENTATION = {
    "rotation_range": 20.0,
    "width_shift_range": 0.2,
    "height_shift_range": 0.2,
    "shear_range": 0.2,
    "zoom_range": 0.2,
    "horizontal_flip": True,
    "fill_mode": "nearest",
}
"""The Keras recipe (configs/mobilenetv2.yaml)."""


def read_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, default=CLOTHING if CLOTHING.is_dir() else None,
                        help="one folder per class; by default four classes of the shared clothing photos, or a "
                        "drawn catalogue where those are missing")  # fmt: skip
    parser.add_argument("--weights", type=Path, default=WEIGHTS if WEIGHTS.is_file() else None,
                        help="of mobilenetv2_100, in timm naming; random where missing")  # fmt: skip
    parser.add_argument("--per_class", type=int, default=120, help="photos of each class, at most")
    parser.add_argument("--image_size", type=int, default=244, help="pixels")
    parser.add_argument("--batch_size", type=int, default=32, help="photos")
    parser.add_argument("--trainable", choices=("head", "all"), default="head")
    parser.add_argument("--learning_rate", type=float, default=1e-3, help="of Adam")
    parser.add_argument("--compile", choices=("auto", "never", "always"), default="auto", help="as --model.compile")
    parser.add_argument("--precision", default="32-true", help="of our Trainer, for --trainable all")
    parser.add_argument("--rounds", type=int, default=2, help="timed epochs of each side, after one to warm up")
    parser.add_argument("--max_epochs", type=int, default=6, help="within which to reach 95%% training accuracy")
    parser.add_argument("--drawn", action="store_true", help="drawn photos and random weights, as without the shared")
    parser.add_argument("--skip_keras", action="store_true", help="measure our side only")
    arguments = parser.parse_args()
    if arguments.drawn:
        arguments.photos = arguments.weights = None
    return arguments


def gather_photos(source: Path | None, per_class: int, root: Path) -> int:
    """Link `per_class` photos of each class into `root`, or draw them if there is no source. Return their number."""
    if source is None:
        draw_catalogue(root, per_class)
        return len(list(root.glob("*/*.jpg")))
    folders = sorted(folder for folder in source.iterdir() if folder.is_dir())
    if set(CLASSES) <= {folder.name for folder in folders}:
        folders = [folder for folder in folders if folder.name in CLASSES]
    for folder in folders:
        (root / folder.name).mkdir(parents=True)
        for photo in sorted(folder.iterdir())[:per_class]:
            (root / folder.name / photo.name).symlink_to(photo.resolve())
    return len(list(root.glob("*/*")))


def side_settings(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Settings for both pipelines; `folder` contains the photos and receives the untrained `.h5`."""
    return {
        "root": str(folder / "photos"),
        "weights": None if arguments.weights is None else str(arguments.weights),
        "h5": str(folder / "untrained.h5"),
        "augmentation": AUGMENTATION,
        **{name: getattr(arguments, name) for name in ("image_size", "batch_size", "trainable", "learning_rate")},
        **{name: getattr(arguments, name) for name in ("compile", "precision")},
    }


class Side:
    """One of the two pipelines: a process that trains one epoch each time it is told to.

    Args:
        script: its file name, beside this file.
        settings: what the script needs, passed as JSON on its command line.
    """

    def __init__(self, script: str, settings: dict[str, Any]) -> None:
        self.script = script
        environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(REPO)}
        self.process = subprocess.Popen(
            [sys.executable, str(REPO / "benchmarks" / "training" / script), json.dumps(settings)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        self.started = self.receive()
        self.process.send_signal(signal.SIGSTOP)

    def receive(self) -> dict[str, Any]:
        """Wait for the next answer, which is a line of JSON; other lines are passed on."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
            print(f"  [{self.script}] {line}", end="", file=sys.stderr)
        raise SystemExit(f"{self.script} ended with exit code {self.process.wait()}; its messages are above.")

    def ask(self, command: str) -> dict[str, Any]:
        """Have one thing done: `epoch`, `held`, `ready` or `stop`. Between calls the process is suspended."""
        assert self.process.stdin is not None
        self.process.send_signal(signal.SIGCONT)
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        answer = self.receive()
        # Anything it did unasked, such as reading ahead, would slow down the other side and give this one an advantage.
        self.process.send_signal(signal.SIGSTOP)
        return answer

    def close(self) -> None:
        """Kill the process, whatever it is doing."""
        self.process.kill()
        self.process.wait()


def rate(epochs: list[dict[str, Any]]) -> float:
    """Photos per second in the median epoch."""
    return statistics.median(epoch["photos"] / epoch["seconds"] for epoch in epochs)


def seconds_to(goal: float, started: dict[str, Any], epochs: list[dict[str, Any]]) -> float | None:
    """Seconds from first reading the photos to the end of the first epoch with that training accuracy."""
    seconds = started["seconds"]
    for epoch in epochs:
        seconds += epoch["seconds"]
        if epoch["accuracy"] >= goal:
            return round(seconds, 1)
    return None


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run both sides in turn and return their results."""
    root = folder / "photos"
    count = gather_photos(arguments.photos, arguments.per_class, root)
    settings = side_settings(arguments, folder)
    print(f"{count} photos in {len(list(root.iterdir()))} classes, {arguments.image_size} pixels, batches of "
          f"{arguments.batch_size}, trainable {arguments.trainable}, weights "
          f"{arguments.weights.name if arguments.weights else 'random'}", flush=True)  # fmt: skip
    sides = {"ours": Side("lightning_pipeline.py", settings)}  # first: it writes the .h5 that Keras trains
    try:
        if not arguments.skip_keras:
            sides["keras"] = Side("keras_pipeline.py", settings)
        epochs: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
        for number in range(max(arguments.max_epochs, arguments.rounds + 1)):
            for name in ("keras", "ours"):
                done = number > arguments.rounds and seconds_to(0.95, sides[name].started, epochs[name]) is not None
                if name in sides and not done:
                    epochs[name].append(sides[name].ask("epoch"))
                    print(f"  epoch {number} {name:5}: {rate(epochs[name][-1:]):7.1f} images/s, training accuracy "
                          f"{epochs[name][-1]['accuracy']:.3f}", flush=True)  # fmt: skip
        if "keras" in sides:
            ends = {"keras": sides["keras"].ask("stop")}
            sides["keras"].close()
        else:
            ends = {}
        shares: dict[str, list[dict[str, Any]]] = {"epoch": [], "held": [], "ready": []}
        for number in range(arguments.rounds + 1):
            for kind, measured in shares.items():
                epoch = sides["ours"].ask(kind)
                if number:  # the first of each kind is the warm-up
                    measured.append(epoch)
        ends["ours"] = sides["ours"].ask("stop")
    finally:
        for side in sides.values():
            side.close()
    return {"sides": sides, "epochs": epochs, "ends": ends, "shares": shares, "photos": count}


def report(arguments: argparse.Namespace, measured: dict[str, Any]) -> dict[str, Any]:
    """Print the table and return what the last line contains."""
    warm = {name: epochs[1 : arguments.rounds + 1] for name, epochs in measured["epochs"].items()}
    result: dict[str, Any] = {
        name: {
            "images_per_second": round(rate(warm[name]), 2),
            "seconds_to_95": seconds_to(0.95, side.started, measured["epochs"][name]),
            "epochs": len(measured["epochs"][name]),
            "accuracy": round(measured["epochs"][name][-1]["accuracy"], 4),
            "peak_memory_mb": round(measured["ends"][name]["peak_memory_mb"]),
            "device": side.started["device"],
        }
        for name, side in measured["sides"].items()
    }
    rates = {kind: rate(epochs) for kind, epochs in measured["shares"].items()}
    summary = {
        "ours_over_keras": None,
        "loader_share": round(rates["epoch"] / rates["held"], 4),
        "loader_and_augmentation_share": round(rates["epoch"] / rates["ready"], 4),
        **result,
        "step_images_per_second": {kind: round(value, 2) for kind, value in rates.items()},
        **{
            name: getattr(arguments, name) for name in ("trainable", "batch_size", "image_size", "compile", "precision")
        },
        "photos": measured["photos"],
        "weights": arguments.weights.name if arguments.weights else None,
        "cores": os.cpu_count(),
    }
    if "keras" in result:
        ratio = result["ours"]["images_per_second"] / result["keras"]["images_per_second"]
        summary["ours_over_keras"] = round(ratio, 2)
    print("\n| | images/s of an epoch | seconds to 95% training accuracy | peak memory |\n|---|---|---|---|")
    for name, row in result.items():
        reached = row["seconds_to_95"] or f"not in {row['epochs']} epochs ({row['accuracy']:.3f})"
        print(f"| {name} | {row['images_per_second']} | {reached} | {row['peak_memory_mb']} MB |")
    if summary["ours_over_keras"]:
        print(f"\nours / keras: {summary['ours_over_keras']}")
    print(
        f"loader's share: {summary['loader_share']} (epoch {rates['epoch']:.1f} images/s; the same steps on one batch "
        f"as the loader yields it {rates['held']:.1f})\n"
        f"loader's and augmentation's share: {summary['loader_and_augmentation_share']} (the same steps on one batch "
        f"that is augmented already {rates['ready']:.1f})"
    )
    return summary


def main() -> None:
    """Measure and report."""
    arguments = read_arguments()
    folder = Path(tempfile.mkdtemp(prefix="throughput-"))
    try:
        print(json.dumps(report(arguments, measure(arguments, folder))))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()

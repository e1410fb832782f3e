"""What the command costs as it is installed: its start, busy cores, the memory allocator, checksums of stored photos.

    python benchmarks/command_start.py                     # 3 minutes on 2 cores, with drawn photos
    python benchmarks/command_start.py --photos FOLDER     # with these in the photo store

It prints the rows of docs/speed.md. Starts, training steps and checksums are in processor seconds, which other work on
the machine changes least; labelling beside a busy core is in seconds by the clock, because waiting is what it is about.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from unittest.mock import patch

import torch

from datamodule import pixel_file
from datamodule.demo_photos import draw_catalogue
from datamodule.photo_store import PhotoStore
from datamodule.split import list_photos
from export.checkpoint import write_checkpoint
from models.cores import THREAD_VARIABLES
from models.state_dicts import check_undamaged
from models.timm_mobilenetv2 import TimmClassifier

REPO = Path(__file__).resolve().parents[1]
ROUNDS = 3
PIXELS = 244
GNU_DEFAULT = "300000"
"""How often GNU's OpenMP looks before it sleeps, by its manual; setting it also turns the command's own setting off."""
FACTS = {
    "class_names": ["jeans", "sofa", "tshirt", "tv"], "image_size": [PIXELS, PIXELS], "interpolation": "nearest",
    "trainable": "head", "learning_rate": 1e-3,
}  # fmt: skip
STEPS = """
import sys, time
from lightning_module.commands.allocator import keep_freed_memory
if sys.argv[1] == "ours":
    assert keep_freed_memory(), "this system has another allocator, or the environment sets it"
import torch
from models.timm_mobilenetv2 import TimmClassifier
torch.manual_seed(0)
network = TimmClassifier(4).train().to(memory_format=torch.channels_last)
optimizer = torch.optim.Adam(network.parameters(), 1e-4)
photos, labels = torch.rand(16, 3, 244, 244), torch.arange(16) % 4
losses = []
for step in range(6):
    if step == 1:
        start = time.process_time()
    loss = torch.nn.functional.cross_entropy(network(photos), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
print((time.process_time() - start) / 5, *losses)
"""


def environment_with(**variables: str) -> dict[str, str]:
    """Return the environment without anybody's choice of threads, and with these variables."""
    return {name: value for name, value in os.environ.items() if name not in THREAD_VARIABLES} | variables


def run(*arguments: str | Path, **variables: str) -> tuple[float, float, str]:
    """Run Python in a process; return its seconds by the clock, of the processor, and what it printed."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command, environment = [sys.executable, *map(str, arguments)], environment_with(**variables)
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, check=True)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def compare_starts(predict: list[str | Path]) -> None:
    """Print the processor seconds of labelling one photo beside those of importing torch, in turn."""
    torch_only, one_photo = [], []
    for _ in range(ROUNDS):
        torch_only.append(run("-c", "import torch")[1])
        one_photo.append(run(*predict)[1])
    alone, ours = median(torch_only), median(one_photo)
    print("| from the shell | processor seconds | of `import torch` |\n|---|---|---|")
    print(f"| `import torch` alone | {alone:.2f} | 1.00 |")
    print(f"| `lightning predict` with one photo | {ours:.2f} | {ours / alone:.2f} |")
    start = time.process_time()
    check_undamaged(Path(predict[predict.index("predict") + 1]))
    checked = time.process_time() - start
    print(f"| of which: is the checkpoint damaged? | {checked:.2f} | {checked / alone:.2f} |")


def compare_threads(predict: list[str | Path], photos: int) -> None:
    """Print the seconds of labelling photos, alone and with one core that is busy all the time."""
    cores = str(os.cpu_count())
    ways: dict[str, dict[str, str]] = {
        "as installed": {},
        "one thread": {"OMP_NUM_THREADS": "1"},
        "all threads, as torch alone has it": {"OMP_NUM_THREADS": cores, "GOMP_SPINCOUNT": GNU_DEFAULT},
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for busy in (False, True):
        with ExitStack() as stack:
            if busy:
                other = stack.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
                stack.callback(other.kill)
                time.sleep(1)
            for way, variables in ways.items():
                seconds[way].append(run(*predict, **variables)[0])
    print(f"\n| {photos} photos, {cores} cores | seconds | beside a busy core |\n|---|---|---|")
    for way, (alone, beside) in seconds.items():
        print(f"| {way} | {alone:.1f} | {beside:.1f} |")


def compare_allocators() -> None:
    """Print the time of fine-tuning steps with glibc's default and with the command's setting, and compare losses."""
    seconds: dict[str, list[float]] = {"default": [], "ours": []}
    losses = set()
    for _ in range(2):
        for way, found in seconds.items():
            step, *lost = run("-c", STEPS, way, OMP_NUM_THREADS="1")[2].split()
            found.append(float(step))
            losses.add(tuple(lost))
    default, ours = (min(found) for found in seconds.values())
    print("\n| fine-tuning, 16 photos, one thread | processor seconds a step |\n|---|---|")
    print(f"| glibc's default | {default:.2f} |\n| as installed | {ours:.2f} |\n")
    same = "the same to the last digit" if len(losses) == 1 else f"DIFFERENT: {losses}"
    print(f"glibc's default / as installed: {default / ours:.2f}; the losses are {same}.")


def compare_checksums(files: list[Path], folder: Path) -> None:
    """Print what reading all stored photos costs a process that begins, with and without their checksums."""

    def read() -> float:
        start = time.process_time()
        store = PhotoStore((PIXELS, PIXELS), ram_share=0.0, folder=folder)
        store.add(files)
        for first in range(0, len(files), 32):
            store.photos_of([file for file in files[first : first + 32] if file in store])
        return time.process_time() - start

    decoded = read()
    warm, bare = [], []
    for _ in range(ROUNDS):
        warm.append(read())
        with patch.object(pixel_file.PixelFile, "__getitem__", _unchecked):
            bare.append(read())
    print(f"\n| {len(files)} photos of {PIXELS} x {PIXELS}, read once | processor seconds |\n|---|---|")
    print(f"| decoded and written, the first start | {decoded:.2f} |")
    print(f"| from the file, a later start | {min(warm):.2f} |\n| the same, not checked | {min(bare):.2f} |")


def _unchecked(file: pixel_file.PixelFile, digest: bytes) -> object:
    file._checked.add(file._rows[digest][0])
    return _CHECKED(file, digest)


_CHECKED = pixel_file.PixelFile.__getitem__


def main() -> None:
    """Compare everything, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="for the photo store; drawn ones by default")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        drawn = folder / "photos"
        draw_catalogue(drawn, per_class=50)
        network = TimmClassifier(4).eval()
        facts = FACTS | {"schedule": {"batch_norm": "train", "backbone_factor": 1.0}}
        write_checkpoint(folder / "best.ckpt", network, facts, {})
        predict: list[str | Path] = ["-m", "lightning_module", "predict", folder / "best.ckpt"]
        files = list_photos(drawn)
        end: list[str | Path] = ["--out", folder / "predictions.csv", "--device", "cpu"]
        print(f"torch {torch.__version__}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n")
        compare_starts([*predict, files[0], *end])
        compare_threads([*predict, drawn, *end], len(files))
        compare_allocators()
        compare_checksums(list_photos(arguments.photos) if arguments.photos else files, folder / "store")


if __name__ == "__main__":
    main()

"""How long the export takes: ours beside onnx2tf's for the same checkpoint, and the whole ladder of proof.

    python benchmarks/export_speed.py                    # 3 minutes on 2 cores
    python benchmarks/export_speed.py --checkpoint RUN/best.ckpt --photos FOLDER

Our seconds are measured in a fresh process, starting when torch and timm are imported. The seconds of onnx2tf are
torch's ONNX export and the conversion, including its imports but not the making of its environment. Our figures are
medians of several processes. On a machine that is also doing other things, the processor seconds tell what a quiet one
would take. The last line is one JSON object.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

from compat import export_model

REPO = Path(__file__).resolve().parents[1]
PROCESSES = 5
OURS = """
import sys, time
import torch, timm
clocks = time.perf_counter, time.process_time
starts = [clock() for clock in clocks]
from pathlib import Path
from export.torch_to_keras import write_twin
for _ in range(2):
    write_twin(Path(sys.argv[1]), Path(sys.argv[2]))
    print(*[clock() - start for clock, start in zip(clocks, starts)])
    starts = [clock() for clock in clocks]
"""


class Seconds(NamedTuple):
    """How long something took.

    Attributes:
        wall: by the clock.
        processor: summed over all cores.
    """

    wall: float
    processor: float


def time_ours(checkpoint: Path, h5: Path) -> tuple[Seconds, Seconds]:
    """Time the first and the second export in a process."""
    command = [sys.executable, "-c", OURS, str(checkpoint), str(h5)]
    first, again = [], []
    for _ in range(PROCESSES):
        done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True)
        for times, line in zip((first, again), done.stdout.splitlines(), strict=True):
            times.append([float(each) for each in line.split()])
    one, two = ([median(each) for each in zip(*times, strict=True)] for times in (first, again))
    return Seconds(*one), Seconds(*two)


def time_onnx2tf(checkpoint: Path) -> float:
    """Seconds that onnx2tf takes from the checkpoint to its SavedModel."""
    from export.checkpoint import read_checkpoint
    from export.proof.second_opinions import OPINIONS
    from export.worker.environments import ONNX2TF
    from export.worker.format_process import run_formats

    python, source = ONNX2TF.python(), read_checkpoint(checkpoint)
    with tempfile.TemporaryDirectory(prefix="onnx2tf-") as folder:
        start = time.perf_counter()
        tasks, *_ = OPINIONS["onnx2tf"].prepare(source, Path(), Path(folder))
        reply = run_formats(tasks, 0, python)
        seconds = time.perf_counter() - start
    failed = [result["failed"] for result in reply["results"] if "failed" in result]
    if failed:
        raise SystemExit(f"onnx2tf: {failed[0]}")
    return seconds


def time_ladder(checkpoint: Path, h5: Path, photos: Path | None) -> tuple[float, int]:
    """Seconds that `lightning parity` takes, and the number of photos."""
    from datamodule.photo_store import PhotoStore, load_photo
    from datamodule.split import list_photos
    from export.checkpoint import read_checkpoint
    from export.proof.parity import Pair, check_parity

    source, files = read_checkpoint(checkpoint), list_photos(photos) if photos else []
    start = time.perf_counter()
    store = PhotoStore(source.image_size, source.interpolation)
    store.add(files)
    pixels = store.photos_of(files) if files else None
    report = check_parity(Pair(checkpoint, h5, pixels, [str(file) for file in files], files, load_photo))
    print(report.last_line())
    return time.perf_counter() - start, len(files)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="without it: mobilenetv2_100 at 244 pixels")
    parser.add_argument("--photos", type=Path, help="folder with photos for the ladder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="export-speed-") as name:
        folder = Path(name)
        checkpoint = arguments.checkpoint or export_model(folder, small=False).checkpoint
        first, again = time_ours(checkpoint, folder / "ours.h5")
        onnx2tf = time_onnx2tf(checkpoint)
        ladder, photos = time_ladder(checkpoint, folder / "ours.h5", arguments.photos)
    ours = {"ours": first, "ours_again": again}
    described = ("first of a process", "once more")
    print("\n| from the checkpoint to | seconds | of the processor |\n|---|---|---|")
    for what, seconds in zip(described, ours.values(), strict=True):
        print(f"| our `.h5`, {what} | {seconds.wall:.2f} | {seconds.processor:.2f} |")
    print(
        f"| onnx2tf's SavedModel | {onnx2tf:.1f} | |\n| the verdict of the ladder, {photos} photos | {ladder:.0f} | |"
    )
    figures = {name: seconds.wall for name, seconds in ours.items()} | {"onnx2tf": onnx2tf, "ladder": ladder}
    figures |= {f"{name}_processor": seconds.processor for name, seconds in ours.items()}
    print(json.dumps({name: round(value, 2) for name, value in figures.items()} | {"ladder_photos": photos}))


if __name__ == "__main__":
    main()

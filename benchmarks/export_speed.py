"""How long the hand-over takes: our export beside onnx2tf's of the same checkpoint, and the whole ladder of proof.

    python benchmarks/export_speed.py                    # 3 minutes on 2 cores
    python benchmarks/export_speed.py --checkpoint RUN/best.ckpt --photos FOLDER

Our seconds count from when torch is imported, in a fresh process; those of onnx2tf are torch's ONNX export and the
conversion, its imports included (the making of its environment is not). The last line is one JSON object.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from compat import export_model

REPO = Path(__file__).resolve().parents[1]
OURS = """
import sys, time
import torch, timm
start = time.perf_counter()
from pathlib import Path
from export.hand_over import write_twin
for _ in range(2):
    write_twin(Path(sys.argv[1]), Path(sys.argv[2]))
    print(time.perf_counter() - start)
    start = time.perf_counter()
"""


def time_ours(checkpoint: Path, h5: Path) -> tuple[float, float]:
    """Seconds of the first export of a process, and of the second."""
    command = [sys.executable, "-c", OURS, str(checkpoint), str(h5)]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True)
    first, second = map(float, done.stdout.split())
    return first, second


def time_onnx2tf(checkpoint: Path) -> float:
    """Seconds from the checkpoint to onnx2tf's SavedModel."""
    from export.checkpoint import read_checkpoint
    from export.format_process import run_formats
    from export.onnx2tf_environment import onnx2tf_python
    from export.second_opinions import OPINIONS

    python, source = onnx2tf_python(), read_checkpoint(checkpoint)
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
    """Seconds of `lightning parity`, and on how many photos."""
    from datamodule.photo_store import PhotoStore, load_photo
    from datamodule.split import list_photos
    from export.checkpoint import read_checkpoint
    from export.parity import Pair, check_parity

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
        first, second = time_ours(checkpoint, folder / "ours.h5")
        onnx2tf = time_onnx2tf(checkpoint)
        ladder, photos = time_ladder(checkpoint, folder / "ours.h5", arguments.photos)
    print("\n| from the checkpoint to | seconds |\n|---|---|")
    print(f"| our `.h5`, first of a process | {first:.2f} |\n| our `.h5`, once more | {second:.2f} |")
    print(f"| onnx2tf's SavedModel | {onnx2tf:.1f} |\n| the verdict of the ladder, {photos} photos | {ladder:.0f} |")
    figures = {"ours": first, "ours_again": second, "onnx2tf": onnx2tf, "ladder": ladder}
    print(json.dumps({name: round(value, 2) for name, value in figures.items()} | {"ladder_photos": photos}))


if __name__ == "__main__":
    main()

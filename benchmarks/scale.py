"""How the cost grows with the number of photos: seconds and memory for 1,000, 10,000 and 100,000 photos.

    python benchmarks/scale.py

A few drawn photos are copied under many names. Some bytes after the end of the image, which no decoder reads, make each
copy a different file. Decoded photos go to the mapped file, as they do if there is too little memory. Each measurement
is made in a process of its own.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

SIZE = 64
BASES = 50
"""Drawn photos for each class."""


def write_catalogue(root: Path, photos: int) -> None:
    """Fill a folder with that many photos in four classes; no two files are the same."""
    from datamodule.demo_photos import draw_catalogue

    with tempfile.TemporaryDirectory() as name:
        bases = Path(name) / "bases"
        draw_catalogue(bases, per_class=BASES, seed=0, size=SIZE)
        for folder in sorted(each for each in bases.iterdir() if each.is_dir()):
            target = root / folder.name
            target.mkdir(parents=True)
            contents = [photo.read_bytes() for photo in sorted(folder.glob("*.jpg"))]
            for number in range(photos // 4):
                content = contents[number % len(contents)]
                (target / f"{number:07d}.jpg").write_bytes(content + number.to_bytes(4, "big"))


class PeakMemory:
    """Watches how much memory of its own this process has. Mapped files do not count, as the system can drop them."""

    def __init__(self) -> None:
        self.peak = self.now = own_memory()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            self.peak = max(self.peak, own_memory())

    def stop(self) -> float:
        """Return the largest value so far, in MB."""
        self._done.set()
        self._thread.join()
        return max(self.peak, own_memory())


def own_memory() -> float:
    """Resident anonymous memory in MB (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


def measure(root: Path, store: Path) -> dict[str, float]:
    """List and decode the photos (or find them decoded) and go through one epoch, in this process."""
    import torch

    from datamodule.augment import Augmentation
    from datamodule.product_photos import ProductPhotos

    torch.set_num_threads(1)
    data = ProductPhotos(
        str(root),
        image_size=SIZE,
        validation_split=0.2,
        store_ram_share=0.0,
        store_dir=str(store),
        augmentation=Augmentation(rotation_range=20, width_shift_range=0.2, zoom_range=0.2, horizontal_flip=True),
    )
    memory = PeakMemory()
    begin = memory.now
    started = time.perf_counter()
    data.setup("fit")
    ready = time.perf_counter()
    photos = 0
    for batch in data.train_dataloader():
        images, labels = data.on_after_batch_transfer(batch, 0)
        photos += len(labels)
    ended = time.perf_counter()
    assert photos == len(data.train_files)
    assert images.shape[1:] == (3, SIZE, SIZE)
    everything = photos + len(data.val_files)
    return {
        "setup_ms": (ready - started) / everything * 1000,
        "epoch_ms": (ended - ready) / photos * 1000,
        "start_mb": begin,
        "peak_mb": memory.stop(),
    }


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--photos", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--of", nargs=2, type=Path, help=argparse.SUPPRESS)  # the measuring process: photos and store
    given = parser.parse_args()
    if given.of:
        print(json.dumps(measure(*given.of)))
        return
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    print("| photos | decode, ms a photo | found decoded, ms a photo | epoch, ms a photo | most memory decoding, MB "
          "| most memory where found decoded, MB | of that before photos, MB | mapped file, MB |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as name:
        for photos in given.photos:
            root, store = Path(name) / f"photos{photos}", Path(name) / f"store{photos}"
            write_catalogue(root, photos)
            command = [sys.executable, __file__, "--of", str(root), str(store)]
            first, again = (
                json.loads(subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout)
                for _ in range(2)
            )
            mapped = sum(each.stat().st_size for each in store.rglob("pixels")) / 1e6
            print(
                f"| {photos:,} | {first['setup_ms']:.2f} | {again['setup_ms']:.3f} | {again['epoch_ms']:.2f} "
                f"| {first['peak_mb']:.0f} | {again['peak_mb']:.0f} | {again['start_mb']:.0f} | {mapped:,.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()

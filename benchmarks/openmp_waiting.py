"""How long OpenMP's threads should wait awake for more work: images/s of our training epochs by GOMP_SPINCOUNT.

    python benchmarks/openmp_waiting.py      # about 3 minutes on 2 cores

Takes the photos, weights and settings of `train_throughput.py`, and its arguments.
"""

import os
import tempfile
from pathlib import Path

from train_throughput import Side, gather_photos, rate, read_arguments, side_settings

SETTINGS: dict[str, dict[str, str]] = {
    "asleep at once": {"OMP_WAIT_POLICY": "passive"},
    "2,000 looks": {"GOMP_SPINCOUNT": "2000"},
    "20,000 looks": {"GOMP_SPINCOUNT": "20000"},
    "200,000 looks": {"GOMP_SPINCOUNT": "200000"},
    "OpenMP's default": {},
}


def main() -> None:
    """Measure each setting in a process of its own."""
    arguments = read_arguments()
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    with tempfile.TemporaryDirectory(prefix="openmp-") as folder:
        gather_photos(arguments.photos, arguments.per_class, Path(folder) / "photos")
        settings = side_settings(arguments, Path(folder))
        print("| waiting | images/s of an epoch (median; lowest, highest) |\n|---|---|")
        for name, waiting in SETTINGS.items():
            side = Side("lightning_pipeline.py", settings, clean | waiting)
            side.ask("epoch")  # warms up
            epochs = [side.ask("epoch") for _ in range(arguments.rounds + 2)]
            rates = sorted(rate([each]) for each in epochs)
            print(f"| {name} | {rate(epochs):.0f} ({rates[0]:.0f}, {rates[-1]:.0f}) |", flush=True)
            side.close()


if __name__ == "__main__":
    main()

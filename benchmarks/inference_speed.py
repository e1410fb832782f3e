"""Latency in Keras: our `.h5`, the same with folded BatchNorms, and `keras.applications.MobileNetV2` with our head.

    python benchmarks/inference_speed.py      # 2 minutes on 2 cores

All three run in turn in one process on the same images, with `predict_on_batch`, after a warm-up. The ratio to
keras.applications is the median of the ratios of all turns. The last line is one JSON object.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]
# Runs in a process of its own, because torch and TensorFlow cannot share one.
EXPORT = """
import sys
from pathlib import Path
sys.path.insert(0, "benchmarks")
from compat import export_model
from export.torch_to_keras import write_twin
made = export_model(Path(sys.argv[1]), small=False)
write_twin(made.checkpoint, Path(sys.argv[1]) / "folded.h5", fuse_batchnorm=True)
print(made.described)
"""
OURS, FOLDED, THEIRS = "ours", "ours, --fuse_batchnorm", "keras.applications"


def build_theirs(keras: Any, ours: Any) -> Any:
    """Build keras.applications' MobileNetV2 of width 1.0 with our head."""
    _, height, width, _ = ours.input_shape
    image = keras.Input((height, width, 3))
    base = keras.applications.MobileNetV2((height, width, 3), include_top=False, weights=None, pooling="avg")
    scaled = keras.layers.Rescaling(2.0, -1.0)(image)
    hidden = keras.layers.Dense(128, "relu")(base(scaled, training=False))
    return keras.Model(image, keras.layers.Dense(ours.output_shape[-1], "softmax")(hidden))


def latency(model: Any, images: Any, calls: int) -> float:
    """Median milliseconds per call."""
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        model.predict_on_batch(images)
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 32])
    arguments = parser.parse_args()
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    with tempfile.TemporaryDirectory(prefix="inference-") as folder:
        done = subprocess.run([sys.executable, "-c", EXPORT, folder], cwd=REPO, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        print(done.stdout.strip())
        import keras
        import numpy as np

        paths = {OURS: "model.h5", FOLDED: "folded.h5"}
        models = {name: keras.models.load_model(Path(folder) / path, compile=False) for name, path in paths.items()}
    models[THEIRS] = build_theirs(keras, models[OURS])
    shape = models[OURS].input_shape[1:]
    result: dict[str, Any] = {}
    print("| batch | model | ms per call | of keras.applications |\n|---|---|---|---|")
    for batch in arguments.batch_sizes:
        images = np.random.default_rng(0).random((batch, *shape), np.float32)
        calls = max(3, 30 // batch)
        turns: dict[str, list[float]] = {name: [] for name in models}
        for turn in range(arguments.turns + 1):
            for name, model in models.items():
                milliseconds = latency(model, images, calls)
                if turn:  # the first is the warm-up
                    turns[name].append(milliseconds)
        for name, times in turns.items():
            ratio = statistics.median(own / other for own, other in zip(times, turns[THEIRS], strict=True))
            print(f"| {batch} | {name} | {statistics.median(times):.1f} | {ratio:.2f} |")
            result[f"{name}, batch {batch}"] = round(ratio, 3)
    print(json.dumps(result))


if __name__ == "__main__":
    main()

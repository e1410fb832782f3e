"""Labelling many photos: the cost of a photo as they grow in number, here and on Ray; and beside Keras and timm.

    python benchmarks/predict_scale.py                      # 1,000, 10,000 and 100,000 photos of 64 x 64
    python benchmarks/predict_scale.py --photos 1000 --nodes
    python benchmarks/predict_scale.py --side_by_side 2000  # 244 x 244, from JPEG of 500 x 500

The first runs the real command: the local engine, and Ray with one and two workers on this machine. Memory is that of
all its processes together, of their own (shared and mapped pages are left out). The files of all engines are compared.
`--nodes` has two raylets on this machine share the work, as two machines would.

The second labels the same photos in turn with our local engine, with Keras's `model.predict` over
`image_dataset_from_directory`, and with a loop as in timm's `inference.py`; each in a process of its own, from the
listing to the last label, without imports, loading and the first batch. Our labels are those of float64.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPO), str(REPO / "benchmarks")]
ENGINES = {
    "local": ["--engine", "local"],
    "ray, 1 worker": ["--engine", "ray", "--num_workers", "1"],
    "ray, 2 workers": ["--engine", "ray", "--num_workers", "2"],
}
BATCH = 32
# Threads wait asleep in all of them, as in ours, or those of timm's loop would hinder its own workers.
ENVIRONMENT = os.environ | {"PYTHONPATH": str(REPO), "TF_CPP_MIN_LOG_LEVEL": "3", "OMP_WAIT_POLICY": "passive"}


def write_model(folder: Path, backbone: str, size: int, photos: Path) -> Path:
    """Write a checkpoint and its twin, with pretrained weights where they are at hand.

    Args:
        folder: where to.
        backbone: its name in timm.
        size: of the photos that it takes, in pixels.
        photos: folders of classes, on which the head is fitted.
    """
    import torch
    from compat import SHARED

    from datamodule.demo_photos import DEMO_CLASSES
    from export.torch_to_keras import write_twin
    from models.pretrained import load_pretrained
    from models.timm_mobilenetv2 import TimmClassifier

    torch.manual_seed(0)
    weights = SHARED / "weights" / f"{backbone}.in1k_tf_same.safetensors"
    pretrained = weights.is_file()
    expected: dict[str, Any] = {"pad_type": "same", "bn_eps": 1e-3, "mean": 0.5, "std": 0.5} if pretrained else {}
    network = TimmClassifier(len(DEMO_CLASSES), backbone=backbone, **expected).eval()
    if pretrained:
        load_pretrained(network, weights)
    fit_head(network, photos, size)
    kind = "pretrained" if pretrained else "random"
    print(f"{backbone} at {size} pixels, {kind} weights, its head fitted", flush=True)
    facts = {"class_names": sorted(DEMO_CLASSES), "image_size": [size, size], "interpolation": "nearest"}
    hyper_parameters = {**network.architecture, **facts, "trainable": "head", "learning_rate": 1e-3}
    state = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({"state_dict": state, "hyper_parameters": hyper_parameters}, folder / "best.ckpt")
    write_twin(folder / "best.ckpt", folder / "model.h5")
    return folder / "best.ckpt"


def fit_head(network: Any, photos: Path, size: int) -> None:
    """Fit the head on a few photos of each class, so that the network is as sure as trained ones are."""
    import numpy as np
    import torch

    from datamodule.photo_store import load_photo

    files = [file for folder in sorted(photos.iterdir()) if folder.is_dir() for file in sorted(folder.iterdir())[:50]]
    names = sorted({file.parent.name for file in files})
    labels = torch.tensor([names.index(file.parent.name) for file in files])
    pixels = torch.from_numpy(np.stack([load_photo(file, (size, size)) for file in files])).permute(0, 3, 1, 2)
    with torch.no_grad():
        features = torch.cat([network.features(part.float() / 255) for part in pixels.split(BATCH)])
    optimizer = torch.optim.Adam(network.head.parameters(), 1e-2)
    for _ in range(300):
        loss = torch.nn.functional.cross_entropy(network.head(features), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def measured(command: list[str], folder: Path) -> tuple[float, float, str]:
    """Run a command; return its seconds, the most memory of all its processes in MB, and what it printed."""
    import psutil

    started = time.perf_counter()
    running = subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    tree, most = psutil.Process(running.pid), 0.0
    while running.poll() is None:
        most = max(most, own_memory(tree))
        time.sleep(0.2)
    assert running.stdout is not None
    said = running.stdout.read()
    if running.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {running.returncode}\n{said}")
    return time.perf_counter() - started, most, said


def own_memory(process: Any) -> float:
    """Anonymous resident memory of a process and all that it has started, in MB (Linux)."""
    import psutil

    total = 0
    try:
        for each in (process, *process.children(recursive=True)):
            try:
                total += int(Path(f"/proc/{each.pid}/status").read_text().split("RssAnon:")[1].split()[0])
            except (OSError, IndexError):  # it has ended
                continue
    except psutil.Error:
        return 0.0
    return total / 1024


def files_of(out: Path) -> dict[str, bytes]:
    """Content of a data set's files."""
    return {each.name: each.read_bytes() for each in out.glob("part-*.parquet")}


def grow(photos: list[int], with_nodes: bool, engines: list[str]) -> None:
    """Measure the command for growing numbers of photos, and print a table."""
    from scale import SIZE, write_catalogue

    with tempfile.TemporaryDirectory(prefix="predict-") as name:
        folder = Path(name)
        for count in photos:
            write_catalogue(folder / f"photos{count}", count)
        checkpoint = write_model(folder, "mobilenetv2_035", SIZE, folder / f"photos{photos[0]}")
        print("| photos | engine | s in all | ms a photo | most memory, MB | files as those of the first |")
        print("|---|---|---|---|---|---|", flush=True)
        for count in photos:
            command = [sys.executable, "-m", "lightning_module", "predict", str(checkpoint), f"photos{count}"]
            reference: dict[str, bytes] = {}
            for engine in engines:
                out = folder / "out"
                seconds, memory, _ = measured([*command, "--device", "cpu", "--out", "out", *ENGINES[engine]], folder)
                reference = reference or files_of(out)
                same = "equal" if files_of(out) == reference else "DIFFERENT"
                print(
                    f"| {count:,} | {engine} | {seconds:.1f} | {seconds / count * 1000:.2f} | {memory:.0f} | {same} |",
                    flush=True,
                )
                subprocess.run(["rm", "-r", str(out)], check=True)
            if with_nodes:
                share(command, folder, reference)


def share(command: list[str], folder: Path, reference: dict[str, bytes]) -> None:
    """Label the same photos with two raylets, one CPU each, and print how many parts each has done."""
    from lightning_module.fleet.ray_engine import import_ray

    import_ray()
    from ray.cluster_utils import Cluster

    os.environ["PYTHONPATH"] = str(REPO)  # of the workers
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    nodes.add_node(num_cpus=1)
    try:
        options = ["--out", "out", "--engine", "ray", "--ray_address", nodes.address, "--photos_per_part", "100"]
        seconds, _, said = measured([*command, *options], folder)
    finally:
        nodes.shutdown()
    print("\n".join(f"{line} ({seconds:.1f} s)" for line in said.splitlines() if "machine" in line))
    assert sum(map(len, reference.values()))


def ours(folder: Path) -> dict[str, str]:
    """Label with the local engine."""
    from functools import partial

    from datamodule.sources.photo_arguments import PhotoArguments
    from lightning_module.commands.predict import _labeller
    from lightning_module.evaluation.labelling import Labelling
    from lightning_module.fleet.data_set import DataSet
    from lightning_module.fleet.labelling_run import Engines, label_into
    from models.cores import wait_asleep

    wait_asleep()
    checkpoint = folder / "best.ckpt"
    labeller = _labeller(checkpoint, "cpu", None, None)
    import numpy as np

    labeller.exact(np.zeros((1, *labeller.image_size, 3), np.uint8))
    labeller.probabilities(np.zeros((BATCH, *labeller.image_size, 3), np.uint8))
    make = partial(_labeller, keras_python=None, labels=None)
    out = folder / f"out{os.getpid()}"

    def label() -> dict[str, str]:
        from pyarrow import dataset

        given = PhotoArguments([str(folder / "photos")])
        label_into(
            DataSet(out, False), given, checkpoint, None, labeller, Labelling(), Engines(), make, "cpu", BATCH,
            lambda *_: None,
        )  # fmt: skip
        table = dataset.dataset(out).to_table(columns=["file", "label"]).to_pylist()
        return {row["file"]: row["label"] for row in table}

    return timed(label)


def keras(folder: Path) -> dict[str, str]:
    """Label with Keras's own pipeline."""
    import keras
    import numpy as np

    model = keras.models.load_model(folder / "model.h5", compile=False)
    size = model.input_shape[1:3]
    model.predict(np.zeros((BATCH, *size, 3), np.float32), verbose=0)

    def label() -> dict[str, str]:
        photos = keras.utils.image_dataset_from_directory(
            folder / "photos", image_size=size, batch_size=BATCH, shuffle=False, interpolation="nearest",
            verbose=False,
        )  # fmt: skip
        scaled = photos.map(lambda images, _: images / 255)
        found = model.predict(scaled, verbose=0).argmax(axis=1)
        return {file: photos.class_names[index] for file, index in zip(photos.file_paths, found, strict=True)}

    return timed(label)


def timm(folder: Path) -> dict[str, str]:
    """Label with a loop as in timm's `inference.py`: its loader and workers, and the same network as it is."""
    import numpy as np
    import torch
    from timm.data import ImageDataset, create_loader

    from export.checkpoint import read_checkpoint

    checkpoint = read_checkpoint(folder / "best.ckpt")
    network = checkpoint.network
    size = checkpoint.image_size
    with torch.inference_mode():
        network(torch.zeros(BATCH, 3, *size))

    def label() -> dict[str, str]:
        data = ImageDataset(str(folder / "photos"))
        loader = create_loader(
            data, (3, *size), BATCH, interpolation=checkpoint.interpolation, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0),
            num_workers=2, crop_pct=1.0, device=torch.device("cpu"),
        )  # fmt: skip
        found = []
        with torch.inference_mode():
            for images, _ in loader:
                found.append(network(images).softmax(dim=1).topk(1)[1].numpy())
        names = [str(folder / "photos" / name) for name in data.filenames()]
        return dict(zip(names, [checkpoint.class_names[each] for each in np.concatenate(found)[:, 0]], strict=True))

    return timed(label)


def timed(label: Callable[[], dict[str, str]]) -> dict[str, str]:
    """Time a function and print the seconds as JSON."""
    started = time.perf_counter()
    found = label()
    print(json.dumps({"seconds": time.perf_counter() - started, "photos": len(found)}))
    return found


SIDES: dict[str, Callable[[Path], dict[str, str]]] = {"ours": ours, "keras": keras, "timm": timm}


def beside(count: int, turns: int, size: int, photo_size: int) -> None:
    """Measure the three side by side, and print a table and the ratio."""
    from datamodule.demo_photos import draw_catalogue

    with tempfile.TemporaryDirectory(prefix="predict-") as name:
        folder = Path(name)
        draw_catalogue(folder / "photos", per_class=count // 4, seed=0, size=photo_size)
        write_model(folder, "mobilenetv2_100", size, folder / "photos")
        rates: dict[str, list[float]] = {side: [] for side in SIDES}
        for turn in range(turns):
            for side in SIDES:
                command = [sys.executable, __file__, "--side", side, "--folder", str(folder)]
                done = subprocess.run(command, env=ENVIRONMENT, check=True, stdout=subprocess.PIPE, text=True)
                told = json.loads(done.stdout.splitlines()[-1])
                assert told["photos"] == count, told
                rates[side].append(count / told["seconds"])
                print(f"turn {turn + 1}, {side}: {rates[side][-1]:.1f} photos/s", file=sys.stderr, flush=True)
    print("| | photos a second | in turn |\n|---|---|---|")
    middle = {side: statistics.median(each) for side, each in rates.items()}
    for side, each in rates.items():
        print(f"| {side} | {middle[side]:.1f} | {', '.join(f'{rate:.1f}' for rate in each)} |")
    better = [max(theirs) for theirs in zip(rates["keras"], rates["timm"], strict=True)]
    ratio = statistics.median(own / other for own, other in zip(rates["ours"], better, strict=True))
    print(
        json.dumps({"ours_to_the_better": round(ratio, 3), **{side: round(rate, 1) for side, rate in middle.items()}})
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=[*ENGINES])
    parser.add_argument("--nodes", action="store_true", help="two raylets share the work")
    parser.add_argument("--side_by_side", type=int, metavar="PHOTOS", help="beside Keras and timm")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--image_size", type=int, default=244)
    parser.add_argument("--photo_size", type=int, default=500)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)  # the measuring process
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        SIDES[given.side](given.folder)
    elif given.side_by_side:
        beside(given.side_by_side, given.turns, given.image_size, given.photo_size)
    else:
        grow(given.photos, given.nodes, given.engines)


if __name__ == "__main__":
    main()

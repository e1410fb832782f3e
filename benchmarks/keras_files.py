"""Keras files as people have them, read here and compared with what their own Keras gave; prints a table.

    PYTHON benchmarks/keras_files.py FOLDER [FOLDER ...]

Each folder holds files of one Keras (its name is the folder's) and for each a CASE.npz with `images` and `answer`.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from export.graph.network import graph_network
from export.keras_file.architecture import read_keras_graph
from export.keras_file.read import read_keras_file
from models.bad_input import BadInput

# Probabilities may differ by this much, or by as many times what float32's rounding does to this network here.
TOLERANCE = 1e-5
ROUNDING = 8


def compare(path: Path) -> tuple[str, float | None, float | None, float]:
    """Read one file and compute what its own Keras computed.

    Returns:
        Verdict, largest difference in float32, the same in float64 (of numbers up to 1), and seconds.
    """
    start = time.perf_counter()
    with np.load(path.with_suffix(".npz"), allow_pickle=False) as given:
        images, answer = given["images"], given["answer"]
    try:
        source = read_keras_graph(read_keras_file(path), (images.shape[1], images.shape[2]))
    except BadInput as error:
        return f"refused: {error}", None, None, time.perf_counter() - start
    network = graph_network(source.graph)
    photos = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    with torch.inference_mode():
        ours = network(photos).numpy()
        exact = network.double()(photos.double()).numpy()
    scale = max(1.0, float(np.abs(answer).max()))  # logits are larger than probabilities
    difference, rounding = (float(np.abs(each - answer).max()) / scale for each in (ours, exact))
    half = "; ".join(note for note in source.notes if "precision" in note)
    verdict = "same" if min(difference, rounding) <= TOLERANCE else "half precision" if half else "DIFFERS"
    return verdict, difference, rounding, time.perf_counter() - start


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    print("| case | Keras | verdict | largest difference | in float64 | seconds |\n|---|---|---|---|---|---|")
    for folder in parser.parse_args().folders:
        for path in sorted(each for each in folder.iterdir() if each.suffix in (".h5", ".hdf5", ".keras")):
            verdict, difference, exact, seconds = compare(path)
            shown = " | ".join("" if each is None else f"{each:.1e}" for each in (difference, exact))
            print(f"| {path.name} | {folder.name} | {verdict} | {shown} | {seconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()

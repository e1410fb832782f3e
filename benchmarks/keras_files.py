"""Old Keras files, each upgraded as `lightning upgrade` does it and compared with what its own Keras gave.

    PYTHON benchmarks/keras_files.py FOLDER [FOLDER ...] [--rows ROWS.jsonl] [--write docs/from_keras.md] [--read_only]

Each folder holds files of one Keras (its name is the folder's) and for each a CASE.npz with `images` and the `answer`
that its own Keras gave for them. Prints a table, and puts it between the marks in a page, where rows of other files
stay and those of the same are replaced. With `--rows` each row is
kept as soon as it is known, and a file whose row is there is not done again: the whole takes hours.

Keras's processes are forks of one that has imported TensorFlow: the seconds are without that import. With `--read_only`
no Keras is started: the file is read as `upgrade` reads it, and what was read is computed in torch.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from export.graph.network import graph_network
from export.keras_file.architecture import KerasGraph, read_keras_graph
from export.keras_file.read import read_keras_file
from export.proof import upgrade_proof
from export.proof.report import Check
from export.proof.rounding import allowed_difference
from export.upgrade_keras import UpgradeDiffers, write_upgrade
from export.worker import keras_process
from export.worker.environments import TF_KERAS
from models.bad_input import BadInput
from models.digests import file_digest
from tests.forks import KERAS, Forks

BEGIN, END = "<!-- benchmarks/keras_files.py writes this table -->\n", "<!-- end of the table -->\n"
HEAD = "| file | Keras | by | verdict | largest difference | allowed | seconds |\n|---|---|---|---|---|---|---|\n"


@dataclass(frozen=True)
class Outcome:
    """What became of one file: figures are of numbers up to 1; None where there are none."""

    verdict: str
    seconds: float
    difference: float | None = None
    allowed: float | None = None

    def row(self, path: Path, by: str) -> str:
        """One line of the table; `by` is upgrade, proof included, or reading alone."""
        figures = " | ".join("" if each is None else f"{each:.1e}" for each in (self.difference, self.allowed))
        return f"| {path.name} | {path.parent.name} | {by} | {self.verdict} | {figures} | {self.seconds:.1f} |\n"


def given_and_answered(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The images that the file's own Keras was given, (N, H, W, C), and its answers."""
    with np.load(path.with_suffix(".npz"), allow_pickle=False) as given:
        return given["images"], given["answer"]


def read_graph(path: Path, images: np.ndarray) -> KerasGraph:
    """The file's graph; where it leaves the size open, of the images'."""
    size = (images.shape[1], images.shape[2]) if images.ndim == 4 else None
    return read_keras_graph(read_keras_file(path), size)


def refused(error: BadInput, start: float) -> Outcome:
    """Of a file that is not read: the first sentence that says why."""
    return Outcome(f"refused: {str(error).partition('. ')[0].replace('|', '/')}", time.perf_counter() - start)


def read(path: Path) -> Outcome:
    """Read one file and compute in torch what was read."""
    start = time.perf_counter()
    images, answer = given_and_answered(path)
    try:
        source = read_graph(path, images)
    except BadInput as error:
        return refused(error, start)
    network = graph_network(source.graph)
    photos = torch.from_numpy(np.ascontiguousarray(np.moveaxis(images, -1, 1)))
    with torch.inference_mode():
        ours = network(photos).numpy()
        exact = network.double()(photos.double()).numpy()
    half = any("half precision" in note for note in source.notes)
    # no Keras has shown the layers to be the same; if they are not, the answers are far off
    layers = Check("layers_float64", True, 0, 0, "", "")
    return outcome(layers, (answer, ours, exact), half, time.perf_counter() - start)


def outcome(layers: Check, answers: tuple[np.ndarray, np.ndarray, np.ndarray], half: bool, seconds: float) -> Outcome:
    """From the answers of the old file, ours, and ours in float64."""
    difference, allowed = compared(layers, *answers)
    good = "same" if difference <= allowed else "half precision" if half else "DIFFERS"
    return Outcome(good, seconds, difference, None if half else allowed)


def upgrade(path: Path) -> Outcome:
    """Upgrade one file, with the proof, and ask this environment's Keras for the new file's answers."""
    start = time.perf_counter()
    images, answer = given_and_answered(path)
    with tempfile.TemporaryDirectory(prefix="shelftwin-") as name:
        new = Path(name, "new.h5")
        try:
            upgraded = write_upgrade(path, new)
        except BadInput as error:
            return refused(error, start)
        except UpgradeDiffers as differs:
            return Outcome(f"DIFFERS: {differs}", time.perf_counter() - start)
        except keras_process.KerasFailed as failed:
            return Outcome(f"Keras failed: {str(failed).splitlines()[-1][:200]}", time.perf_counter() - start)
        seconds = time.perf_counter() - start
        ours = answers_of(new, images)
        exact = exact_answers(new, images)
    layers = next(check for check in upgraded.proof.report.checks if check.name == "layers_float64")
    half = any("half precision" in note for note in upgraded.notes)
    return outcome(layers, (answer, ours, exact), half, seconds)


def answers_of(h5: Path, images: np.ndarray) -> np.ndarray:
    """The file's answers in this environment's Keras, in float32."""
    given, got = (str(h5.with_name(name)) for name in ("images.npy", "answers.npy"))
    np.save(given, images)
    keras_process.run_keras([(h5, [{"task": "predict", "inputs": given, "scale": 1.0, "outputs": got}])])
    return np.asarray(np.load(got, allow_pickle=False))


def exact_answers(h5: Path, images: np.ndarray) -> np.ndarray:
    """What the file computes, in float64: torch's, since all layers were compared with Keras's."""
    source = read_graph(h5, images)
    photos = torch.from_numpy(np.ascontiguousarray(np.moveaxis(images, -1, 1)))
    with torch.inference_mode():
        return np.asarray(graph_network(source.graph).double()(photos.double()).numpy())


def compared(layers: Check, old: np.ndarray, new: np.ndarray, exact: np.ndarray) -> tuple[float, float]:
    """Largest difference, and what is allowed, both of numbers up to 1."""
    scale = max(1.0, float(np.abs(old).max()))  # logits are larger than probabilities
    allowed = allowed_difference(layers, {"old": (old, exact), "new": (new, exact)}, scale)
    return float(np.abs(old - new).max()) / scale, allowed.threshold / scale


@contextmanager
def forked_kerases() -> Iterator[None]:
    """This environment's Keras and `tf_keras` import TensorFlow once each."""
    own = Forks(KERAS, keras_process._environment())
    legacy = Forks(KERAS, keras_process._environment(legacy=True), TF_KERAS.python(print))
    tf_keras = type("Forked", (), {"is_whole": True, "python": lambda self, progress=None: Path(legacy.executable)})()
    try:
        with patch.object(keras_process, "sys", own), patch.object(upgrade_proof, "TF_KERAS", tf_keras):
            yield
    finally:
        own.close()
        legacy.close()


def kept_rows(rows: Path | None) -> dict[tuple[str, str], Outcome]:
    """Outcomes of earlier runs: folder and name of a file, with its digest -> what became of it."""
    if rows is None or not rows.exists():
        return {}
    lines = map(json.loads, rows.read_text().splitlines())
    return {(each["file"], each["sha256"]): Outcome(**each["outcome"]) for each in lines}


def files_in(folder: Path) -> list[Path]:
    """The Keras files that have their answers beside them."""
    known = (".h5", ".hdf5", ".keras")
    return sorted(each for each in folder.iterdir() if each.suffix in known and each.with_suffix(".npz").is_file())


def write_table(page: Path, rows: str) -> None:
    """Put rows between the marks of a page, in the place of those of the same files."""
    before, begin, rest = page.read_text().partition(BEGIN)
    table, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"expected the lines {BEGIN!r} and {END!r} in {page}")
    lines = [*table.removeprefix(HEAD).splitlines(True), *rows.splitlines(True)]
    by_file = {tuple(line.split(" | ")[:2]): line for line in lines}
    page.write_text(before + begin + HEAD + "".join(by_file.values()) + end + after)


def main() -> None:
    """Print the table, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--write", type=Path, help="a page with the marks of the table")
    parser.add_argument("--rows", type=Path, help="keeps the rows of files that are done")
    parser.add_argument("--read_only", action="store_true", help="start no Keras")
    options = parser.parse_args()
    print(HEAD, end="")
    torch.set_num_threads(1)  # the networks are small, and Keras computes beside them
    table, known = "", kept_rows(options.rows)
    with nullcontext() if options.read_only else forked_kerases():
        for path in (path for folder in options.folders for path in files_in(folder)):
            key = f"{path.parent.name}/{path.name}", file_digest(path)
            if key not in known:
                known[key] = (read if options.read_only else upgrade)(path)
                if options.rows:
                    with options.rows.open("a") as rows:
                        rows.write(json.dumps({"file": key[0], "sha256": key[1], "outcome": asdict(known[key])}) + "\n")
            row = known[key].row(path, "reading" if options.read_only else "upgrade")
            print(row, end="", flush=True)
            table += row
    if options.write:
        write_table(options.write, table)


if __name__ == "__main__":
    main()

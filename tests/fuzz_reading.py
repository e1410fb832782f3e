"""Reads files with flipped bytes and says what became of each; run in a process of its own, which may crash or hang.

    python fuzz_reading.py small|h5|import|ckpt|worker FILE CHECKPOINT SEED COUNT

Prints one line of JSON before each flip (where it is) and one after it (what it led to): ``refused``, ``noticed`` (by
the named rung), ``same`` (all that is in the file is what it was), or ``unnoticed`` and ``fault``, which must not be.
"""

import json
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np


def flips(path: Path, seed: int, count: int) -> Iterator[tuple[dict, bytes]]:
    """Copies with one to three bits or bytes changed; half of the places outside of the arrays, where they do most."""
    content = path.read_bytes()
    generator = np.random.default_rng(seed)
    structure = np.ones(len(content), bool)
    if path.suffix == ".h5":
        with h5py.File(path) as file:
            file.visititems(lambda name, item: _leave_out(structure, item))
    elif path.suffix == ".ckpt":
        structure[4096:-65536] = False  # pickle in front, directory at the end
    places = np.flatnonzero(structure)
    for number in range(count):
        changed = bytearray(content)
        at = generator.choice(places if number % 2 else len(content), size=generator.integers(1, 4))
        for place in at:
            changed[place] ^= int(generator.choice([1 << generator.integers(8), generator.integers(1, 256)]))
        yield {"number": number, "at": at.tolist()}, bytes(changed)


def _leave_out(structure: np.ndarray, item: h5py.HLObject) -> None:
    if isinstance(item, h5py.Dataset) and (start := item.id.get_offset()) is not None:
        structure[start : start + item.id.get_storage_size()] = False


def judge_h5(original: Path, checkpoint: Path) -> Callable[[Path], str]:
    """As the parity command judges, without Keras: what Keras holds is taken for what is in the file."""
    from export.case import Pair, read_case
    from export.contents import check_contents
    from export.keras_h5 import read_keras_h5
    from export.rungs import check_labels, check_weights

    pair = Pair(checkpoint, original)
    case = read_case(pair)
    whole = case.twin

    def judge(path: Path) -> str:
        twin = read_keras_h5(path)
        if twin.details.get("input_range") != case.input_range:
            return "noticed: input_range"
        changed = replace(case, pair=replace(pair, h5=path), twin=twin)
        loaded = {f"{name}/{index}": each for name, arrays in twin.weights.items() for index, each in enumerate(arrays)}
        rungs = [
            check_labels(case.source, twin.details),
            check_weights(case.graph, twin, loaded),
            check_contents(changed),
        ]
        for rung in rungs:
            if not rung.passed:
                return f"noticed: {rung.name}"
        return "same" if equal(whole, twin) else "unnoticed"

    return judge


def judge_small(original: Path, checkpoint: Path) -> Callable[[Path], str]:
    """Reading alone, of a file so small that most flips hit its structure: thousands in the time of a few others."""
    from export.keras_h5 import read_keras_h5
    from export.keras_worker import Refused, read_golden

    whole = read_keras_h5(original)

    def judge(path: Path) -> str:
        twin = read_keras_h5(path)
        try:
            golden = read_golden(str(path))
        except Refused:
            return "refused"
        stated = {part: golden.stored.get(part) for part in golden.actual}
        return "same" if equal(whole, twin) and stated == golden.actual else "noticed: it differs"

    return judge


def equal(left: Any, right: Any) -> bool:
    """Whether two files hold the same, to the last bit."""
    fields = ("config", "training_config", "details", "weight_names", "marks")
    return (
        all(repr(getattr(left, name)) == repr(getattr(right, name)) for name in fields)
        and left.weights.keys() == right.weights.keys()
        and all(
            a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
            for name in left.weights
            for a, b in zip(left.weights[name], right.weights[name], strict=True)
        )
    )


def judge_checkpoint(original: Path, checkpoint: Path) -> Callable[[Path], str]:
    """A checkpoint is told by its digest, which the `.h5` names: what is asked here is that reading it is safe."""
    from export.checkpoint import file_digest, read_checkpoint

    digest = file_digest(original)

    def judge(path: Path) -> str:
        return "noticed: labels" if read_checkpoint(path).digest != digest else "unnoticed"

    return judge


def judge_import(original: Path, checkpoint: Path) -> Callable[[Path], str]:
    """What `lightning import` reads before Keras is asked: refused, or a network for Keras to judge."""
    from export.from_keras import read_keras_classifier

    def judge(path: Path) -> str:
        read_keras_classifier(path)
        return "noticed: for Keras to judge"

    return judge


def judge_worker(original: Path, checkpoint: Path) -> Callable[[Path], str]:
    """A real Keras behind the worker's checks: refused, or loaded."""
    from export import keras_worker

    keras = keras_worker.find_keras()

    def judge(path: Path) -> str:
        try:
            model = keras_worker.load(keras, str(path))
        except keras_worker.Refused:
            return "refused"
        model.predict_on_batch(np.zeros((1, *model.input_shape[1:]), np.float32))
        return "noticed: for the rungs to judge"

    return judge


JUDGES = {
    "small": judge_small,
    "h5": judge_h5,
    "ckpt": judge_checkpoint,
    "import": judge_import,
    "worker": judge_worker,
}


def main(kind: str, original: Path, checkpoint: Path, seed: int, count: int) -> None:
    from models.bad_input import BadInput

    judge = JUDGES[kind](original, checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"flipped{original.suffix}"
        for flip, content in flips(original, seed, count):
            print(json.dumps(flip), flush=True)
            path.write_bytes(content)
            try:
                outcome = judge(path)
            except BadInput:
                outcome = "refused"
            except Exception:
                outcome = f"fault: {traceback.format_exc()[-1500:]}"
            print(json.dumps({**flip, "outcome": outcome}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))

"""Reads files with flipped bytes and says what became of each; run in a process of its own, which may crash or hang.

    python fuzz_reading.py small|h5|import|ckpt|worker FILE PARTNER SEED COUNT

PARTNER is the checkpoint of a `.h5`, and the `.h5` of a checkpoint. Prints one line of JSON before each flip (where it
is) and one after it (what it led to): ``refused``, ``noticed`` (by what is named), ``nothing`` (what the file means is
what it was), or ``unnoticed`` and ``fault``, which must not be.
"""

import io
import json
import sys
import tempfile
import traceback
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np


def flips(path: Path, seed: int, count: int) -> Iterator[tuple[dict, bytes]]:
    """Copies with one to three bits or bytes changed; half of the places outside of the arrays, where they do most.

    In a checkpoint that half is inside its parts, packed anew with check sums that fit, and half of those in its facts.
    """
    content = path.read_bytes()
    generator = np.random.default_rng(seed)
    structure = np.ones(len(content), bool)
    if path.suffix == ".h5":
        with h5py.File(path) as file:
            file.visititems(lambda name, item: _leave_out(structure, item))
    places = np.flatnonzero(structure)
    for number in range(count):
        if path.suffix == ".ckpt" and number % 2:
            where, changed = _flipped_within(content, generator, ".pkl" if number % 4 == 1 else "")
        else:
            where, changed = _flipped(content, places if number % 2 else np.arange(len(content)), generator)
        yield {"number": number, "at": where}, changed


def _flipped(content: bytes, places: np.ndarray, generator: np.random.Generator) -> tuple[list, bytes]:
    changed = bytearray(content)
    at = generator.choice(places, size=generator.integers(1, 4))
    for place in at:
        changed[place] ^= int(generator.choice([1 << generator.integers(8), generator.integers(1, 256)]))
    return at.tolist(), bytes(changed)


def _flipped_within(content: bytes, generator: np.random.Generator, suffix: str) -> tuple[list, bytes]:
    """A checkpoint in which one of its parts, of those whose name ends so, is changed and packed anew."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as before, zipfile.ZipFile(buffer, "w") as after:
        parts = {name: before.read(name) for name in before.namelist()}
        name = str(generator.choice([name for name in parts if name.endswith(suffix) and parts[name]]))
        facts = max(parts[name].find(b"hyper_parameters"), 0)
        at, parts[name] = _flipped(parts[name], np.arange(facts, len(parts[name])), generator)
        for part, text in parts.items():
            after.writestr(part, text)
    return [name, *at], buffer.getvalue()


def _leave_out(structure: np.ndarray, item: h5py.HLObject) -> None:
    if isinstance(item, h5py.Dataset) and (start := item.id.get_offset()) is not None:
        structure[start : start + item.id.get_storage_size()] = False


def judge_h5(original: Path, partner: Path) -> Callable[[Path], str]:
    """As the parity command judges, without Keras: what Keras holds is taken for what is in the file."""
    from export.keras_file.read import read_keras_h5
    from export.proof.checks import check_labels, check_weights
    from export.proof.comparison import Pair, read_comparison
    from export.proof.contents import check_contents
    from tests import short_mobilenetv2  # noqa: F401 - timm gets to know it

    pair = Pair(partner, original)
    comparison = read_comparison(pair)
    whole = comparison.twin

    def judge(path: Path) -> str:
        twin = read_keras_h5(path)
        if twin.details.get("input_range") != comparison.input_range:
            return "noticed: input_range"
        changed = replace(comparison, pair=replace(pair, h5=path), twin=twin)
        checks = [
            check_labels(comparison.source, twin.details),
            check_weights(comparison.graph, twin, loaded_of(twin)),
            check_contents(changed),
        ]
        for check in checks:
            if not check.passed:
                return f"noticed: {check.name}"
        return "nothing" if equal(whole, twin) else "unnoticed"

    return judge


def judge_small(original: Path, partner: Path) -> Callable[[Path], str]:
    """As `verify` judges, by the file's own digests, of a file so small that most flips hit its structure."""
    from export.keras_file.read import read_keras_h5
    from export.worker.keras_worker import contents_check, loaded_weights_check, read_golden

    whole, whole_golden = read_keras_h5(original), read_golden(str(original))

    def judge(path: Path) -> str:
        twin, golden = read_keras_h5(path), read_golden(str(path))
        checks = {"contents": contents_check(golden), "weights": loaded_weights_check(golden, as_if_loaded(twin))}
        for name, (passed, _) in checks.items():
            if not passed:
                return f"noticed: {name}"
        same_golden = all(
            same_array(getattr(golden, name), getattr(whole_golden, name)) for name in ("inputs", "outputs")
        )
        return unless_equal(whole, twin) if same_golden else "unnoticed: golden images"

    return judge


def as_if_loaded(twin: Any) -> Any:
    """A model that holds what is in the file."""
    layers = [
        SimpleNamespace(name=name, get_weights=lambda arrays=arrays: arrays) for name, arrays in twin.weights.items()
    ]
    return SimpleNamespace(layers=layers)


# What is in a file besides: Keras's version and backend, and names of groups, arrays and layers without any. No digest
# is of them; parity compares them.
NO_MEANING = ("weight_names", "marks")
MEANING = ("config", "training_config", "details")


def unless_equal(whole: Any, twin: Any) -> str:
    """What became of a file in which nothing was noticed."""
    if not equal(whole, twin, MEANING):
        return "unnoticed"
    return "nothing" if equal(whole, twin, NO_MEANING) else "nothing: names and versions alone, which parity compares"


def equal(left: Any, right: Any, fields: Iterable[str] = (*MEANING, *NO_MEANING)) -> bool:
    """Whether two files hold the same, to the last bit."""
    mine, others = ({name: each for name, each in file.weights.items() if each} for file in (left, right))
    return (
        all(repr(getattr(left, name)) == repr(getattr(right, name)) for name in fields)
        and mine.keys() == others.keys()
        and all(
            len(mine[name]) == len(others[name]) and all(map(same_array, mine[name], others[name])) for name in mine
        )
    )


def same_array(left: np.ndarray, right: np.ndarray) -> bool:
    return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()


def judge_checkpoint(original: Path, partner: Path) -> Callable[[Path], str]:
    """As the parity command judges, without Keras, and all that it computes in torch; but for the checkpoint's digest.

    That is another one for every flip, which says nothing of whether what a checkpoint means would be noticed.
    """
    from export.proof import checks as compare
    from export.proof import contents
    from export.proof.comparison import Pair, read_comparison
    from tests import short_mobilenetv2  # noqa: F401 - timm gets to know it

    whole = read_comparison(Pair(original, partner))
    loaded = loaded_of(whole.twin)

    def judge(path: Path) -> str:
        comparison = read_comparison(Pair(path, partner))
        comparison = replace(comparison, source=replace(comparison.source, digest=whole.source.digest))
        comparison.training_steps  # noqa: B018  computed when it is asked for
        made = [
            compare.check_labels(comparison.source, comparison.twin.details),
            compare.check_weights(comparison.graph, comparison.twin, loaded),
            contents.check_contents(comparison),
        ]
        for check in made:
            if not check.passed:
                return f"noticed: {check.name}"
        different = changed(facts_of(whole.source), facts_of(comparison.source))
        return f"unnoticed: {different}" if different else "nothing"

    return judge


def loaded_of(twin: Any) -> dict[str, np.ndarray]:
    """What Keras would say it has loaded, taken from the file."""
    return {f"{name}/{index}": each for name, arrays in twin.weights.items() for index, each in enumerate(arrays)}


def facts_of(source: Any) -> dict[str, Any]:
    """All that a checkpoint or an imported classifier says, weights included."""
    names = ("class_names", "image_size", "interpolation", "trainable", "learning_rate", "input_range", "imported_from")
    return {
        **{name: getattr(source, name, None) for name in names},
        **source.network.architecture,
        **{name: tensor.numpy().tobytes() for name, tensor in source.network.state_dict().items()},
    }


def changed(before: dict[str, Any], after: dict[str, Any]) -> str | None:
    """Name of the first fact that is another one."""
    return next((name for name in before if repr(before[name]) != repr(after[name])), None)


def judge_import(original: Path, partner: Path) -> Callable[[Path], str]:
    """What `lightning import` reads before Keras is asked: refused, or the very network that is in the file.

    Its numbers must be the file's, and so must the architecture that would be written for it.
    """
    from export.keras_file.layers import keras_layers
    from export.keras_file.write import model_config
    from export.keras_to_torch import read_keras_classifier

    whole = read_keras_classifier(original)

    def judge(path: Path) -> str:
        read = read_keras_classifier(path)
        if numbers_of(read.file) != numbers_in(read.network):
            return "unnoticed: an array"
        layers = keras_layers(read.graph, read.input_range)
        said = config_difference(read.file.config, model_config(layers, read.network.backbone_name, frozenset()))
        if said:
            return said
        different = changed(facts_of(whole), facts_of(read))
        if different:
            return f"noticed: {different if different in facts_named(whole) else 'weights'}"
        return "nothing" if equal(whole.file, read.file) else "nothing: what import does not read"

    return judge


def facts_named(source: Any) -> set[str]:
    return facts_of(source).keys() - source.network.state_dict().keys()


def numbers_of(file: Any) -> list[bytes]:
    """The numbers of each array, sorted: whatever its layout."""
    return sorted(np.sort(each, axis=None).tobytes() for arrays in file.weights.values() for each in arrays)


def numbers_in(network: Any) -> list[bytes]:
    tensors = [each.numpy() for each in network.state_dict().values() if each.is_floating_point()]
    return sorted(np.sort(each, axis=None).tobytes() for each in tensors)


# Settings in an architecture that are no part of the function, or are read into a fact of their own.
NOT_THE_FUNCTION = ("momentum", "trainable", "keras_version", "backend")


def config_difference(found: Any, wanted: Any, key: str = "") -> str:
    """What an imported file's architecture has otherwise than the network's own; empty where all is alike.

    Names may differ. A setting under a name that Keras does not have is refused by every Keras, and has none but
    Keras's own default here.
    """
    if isinstance(found, dict) and isinstance(wanted, dict):
        if found.keys() != wanted.keys():
            return "noticed: setting that Keras will refuse"
        parts = [config_difference(found[each], wanted[each], each) for each in found if each not in NOT_THE_FUNCTION]
        return next((each for each in parts if each), "")
    if isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        parts = [config_difference(*each, key) for each in zip(found, wanted, strict=True)]
        return next((each for each in parts if each), "")
    if repr(found) == repr(wanted) or key == "name":
        return ""
    return f"unnoticed: {key} {found!r}, not {wanted!r}"


def judge_worker(original: Path, partner: Path) -> Callable[[Path], str]:
    """A real Keras, and what `verify` says of the file: refused, noticed, or all that has a meaning is what it was."""
    from export.keras_file.read import read_keras_h5
    from export.worker import keras_worker

    keras, whole = keras_worker.find_keras(), read_keras_h5(original)

    def judge(path: Path) -> str:
        said = keras_worker.verify(keras, keras_worker.load(keras, str(path)), {"model": str(path)})
        failed = [line.split()[1].rstrip(":") for line in said["lines"] if line.startswith("FAIL")]
        return f"noticed: {failed[0]}" if failed else unless_equal(whole, read_keras_h5(path))

    return judge


JUDGES = {
    "small": judge_small,
    "h5": judge_h5,
    "ckpt": judge_checkpoint,
    "import": judge_import,
    "worker": judge_worker,
}


def main(kind: str, original: Path, partner: Path, seed: int, count: int) -> None:
    from export.worker.keras_worker import Refused
    from models.bad_input import BadInput

    judge = JUDGES[kind](original, partner)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"flipped{original.suffix}"
        for flip, content in flips(original, seed, count):
            print(json.dumps(flip), flush=True)
            path.write_bytes(content)
            try:
                outcome = judge(path)
            except (BadInput, Refused):
                outcome = "refused"
            except Exception:
                outcome = f"fault: {traceback.format_exc()[-1500:]}"
            print(json.dumps({**flip, "outcome": outcome}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))

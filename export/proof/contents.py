"""The check of everything else in a twin: architecture, training configuration, facts and digests, word for word."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any

import h5py
import numpy as np

from export.checkpoint import Checkpoint
from export.keras_file.golden import golden_images
from export.keras_file.keras_layer import KerasLayer
from export.keras_file.layers import keras_layers
from export.keras_file.read import DETAILS_ATTRIBUTE, OWN_MARKS, KerasFile, names_attributes
from export.keras_file.write import model_config, training_config
from export.proof.checks import PROBABILITY_THRESHOLD, same_bits, with_unstated
from export.proof.comparison import Comparison
from export.proof.image_sets import ImageSet
from export.proof.report import Check
from export.torch_answers import torch_probabilities
from export.torch_to_keras import frozen_layers, twin_details
from export.worker.keras_worker import (
    DIGESTED_ATTRIBUTES,
    GOLDEN_GROUP,
    UNREADABLE,
    GoldenData,
    Refused,
    array_digest,
    read_golden,
)

# All attributes that `write_keras_h5` writes: those of the file, of its groups, and of each layer's group.
_ATTRIBUTES = {
    "": ("model_config", "training_config", DETAILS_ATTRIBUTE, "keras_version", "backend"),
    "model_weights": ("keras_version", "backend"),
    GOLDEN_GROUP: ("sha256",),
}
_LAYER_ATTRIBUTES = ("weight_names",)
_GOLDEN_ARRAYS = ("inputs", "outputs")


def check_contents(comparison: Comparison) -> Check:
    """Compare everything else in the file with what would be written for this checkpoint today.

    Architecture, training configuration and facts must be equal, word for word. The golden images must be those that
    are always drawn, with the checkpoint's probabilities for them. The digests must fit, and there must be no further
    group, array or attribute, no second way to read a text, and nothing before or after the HDF5 file. So if a file
    passes, nothing in it was changed since it was written, whether or not the change would affect the function; but for
    `shelftwin_version`, whose right value nobody knows: only its digest is compared.
    """
    source, graph, twin = comparison.source, comparison.graph, comparison.twin
    layers = keras_layers(graph, comparison.input_range, comparison.separate)
    # not compared here: `check_labels` compares the checkpoint's digest, and the version may be an older one
    own = ("checkpoint_sha256", "shelftwin_version")
    stated = with_unstated(twin.details, source)
    parts: dict[str, tuple[object, object]] = {
        "model_config": (twin.config, model_config(layers, source.model_name, frozen_layers(source, graph))),
        "training_config": (twin.training_config, training_config(source.learning_rate, source.gives)),
        "layer order": (list(twin.weights), [layer.name for layer in layers]),
        "weight names": (
            twin.weight_names,
            {layer.name: [f"{layer.name}/{name}:0" for name, _, _ in layer.weights] for layer in layers},
        ),
        "marks": (twin.marks, OWN_MARKS),
        **_facts_of(stated, twin_details(source, comparison.input_range, comparison.folded), own),
        "shelftwin/shelftwin_version": (type(twin.details.get("shelftwin_version")).__name__, "str"),
        **_golden_of(comparison.h5, twin, source),
        **_names_of(comparison.h5, layers),
        **_storage_of(comparison.h5),
    }
    different = [name for name, (found, wanted) in parts.items() if _plain(found) != _plain(wanted)]
    detail = f"{len(parts)} parts of the file are what would be written today, and have the digests it states"
    if different:
        detail = f"of {len(parts)} parts of the file, not what would be written today: {', '.join(different[:5])}"
    first = different[0] if different else None
    return Check("contents", not different, len(different), 0, "parts differ", detail, first)


def _facts_of(
    found: dict[str, Any], wanted: dict[str, Any], exempt: tuple[str, ...]
) -> dict[str, tuple[object, object]]:
    names = sorted({*found, *wanted} - set(exempt))
    missing = "(none)"
    return {f"shelftwin/{name}": (found.get(name, missing), wanted.get(name, missing)) for name in names}


def _golden_of(h5: Path, twin: KerasFile, source: Checkpoint) -> dict[str, tuple[object, object]]:
    """The golden images, torch's answers to them, and the digests, each as (found, expected)."""
    try:
        golden = read_golden(str(h5))
    except Refused as refused:
        return {"golden images": (str(refused), None)}
    images = golden_images(source.image_size, source.network.channels)
    expected = torch_probabilities(source.network, ImageSet("golden", images, ()).batches())
    return {
        **_digests_of(golden, twin),
        "golden inputs": (same_bits(golden.inputs, images), True),
        "golden outputs": (_same_probabilities(golden.outputs, expected), True),
    }


def _same_probabilities(found: np.ndarray, expected: np.ndarray) -> bool:
    """Same type and shape, and no difference above the threshold for probabilities; NaN is close to nothing."""
    if found.dtype != expected.dtype or found.shape != expected.shape:
        return False
    return bool((np.abs(found.astype(np.float64) - expected) <= PROBABILITY_THRESHOLD).all())


def _digests_of(golden: GoldenData, twin: KerasFile) -> dict[str, tuple[object, object]]:
    if not isinstance(golden.stored, dict):
        return {"digests": (golden.stored, "a JSON object")}
    layers = {name: array_digest(*arrays) for name, arrays in twin.weights.items() if arrays}
    actual: dict[str, object] = {**golden.actual, "layers": layers}
    parts = sorted({*golden.stored, *actual})
    return {f"digest of {part}": (golden.stored.get(part), actual.get(part)) for part in parts}


def _names_of(h5: Path, layers: list[KerasLayer]) -> dict[str, tuple[object, object]]:
    """Each group, array and attribute that should not be there or is missing."""
    try:
        found = _names_in(h5)
    except UNREADABLE as error:
        return {"names": (str(error), None)}
    wanted = _written_names(layers)
    return {"names": (None, None)} | {name: (name in found, name in wanted) for name in sorted(found ^ wanted)}


def _names_in(h5: Path) -> set[str]:
    names: set[str] = set()

    def add(name: str, item: h5py.HLObject) -> None:
        names.update(f"attribute {key} of /{name}" for key in item.attrs)
        if name:
            names.add(f"{type(item).__name__.lower()} {name}")

    with h5py.File(h5, "r") as file:
        add("", file)
        file.visititems(add)
    return names


def _written_names(layers: list[KerasLayer]) -> set[str]:
    of_layers = {f"model_weights/{layer.name}": layer for layer in layers}
    arrays = {f"{GOLDEN_GROUP}/{name}" for name in _GOLDEN_ARRAYS}
    arrays |= {f"{group}/{layer.name}/{name}:0" for group, layer in of_layers.items() for name, _, _ in layer.weights}
    # h5py makes a group of each step of a path
    groups = {str(parent) for path in (*arrays, *of_layers) for parent in PurePosixPath(path).parents} - {"."}
    attributes = {**_ATTRIBUTES, **dict.fromkeys(of_layers, _LAYER_ATTRIBUTES)}
    listed = names_attributes("layer_names", [layer.name for layer in layers])
    attributes["model_weights"] = (*attributes["model_weights"], *listed)
    return (
        {f"dataset {path}" for path in arrays}
        | {f"group {path}" for path in (groups | of_layers.keys())}
        | {f"attribute {name} of /{path}" for path, names in attributes.items() for name in names}
    )


def _storage_of(h5: Path) -> dict[str, tuple[object, object]]:
    """How texts and arrays are stored, and where the HDF5 file begins and ends, each as (found, expected).

    Texts are as `json.dumps` writes them: of a key that is there twice, other readers may take the other value.
    """
    try:
        with h5py.File(h5, "r") as file:
            texts = {name: file.attrs[name] for name in DIGESTED_ATTRIBUTES}
            texts["sha256"] = file[GOLDEN_GROUP].attrs["sha256"]
            arrays: dict[str, h5py.Dataset] = {}
            file.visititems(lambda name, item: arrays.update({name: item}) if isinstance(item, h5py.Dataset) else None)
            odd = [name for name, each in arrays.items() if _storage(each) != _WRITTEN_STORAGE.get(name, _PLAIN)]
            rewritten = [name for name, text in texts.items() if _text(text) != json.dumps(json.loads(_text(text)))]
            begin = file.userblock_size
    except UNREADABLE as error:
        return {"storage": (str(error), None)}
    return {
        "text": (rewritten, []),
        "storage of arrays": (odd, []),
        "bytes before the HDF5 file": (begin, 0),
        "bytes after the HDF5 file": (h5.stat().st_size - _end_of(h5.read_bytes()[begin : begin + 64]), 0),
    }


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _storage(array: h5py.Dataset) -> tuple[object, ...]:
    filters = array.id.get_create_plist()
    used = tuple(filters.get_filter(number)[0] for number in range(filters.get_nfilters()))
    return array.dtype.str, array.maxshape == array.shape, used


_PLAIN = ("<f4", True, ())
_WRITTEN_STORAGE = {f"{GOLDEN_GROUP}/inputs": ("|u1", True, (h5py.h5z.FILTER_DEFLATE,))}


def _end_of(superblock: bytes) -> int:
    """Where the file says that it ends, from the HDF5 file format's superblock of version 0 to 3."""
    place = {0: 40, 1: 44, 2: 28, 3: 28}[superblock[8]]
    return int.from_bytes(superblock[place : place + 8], "little")


def _plain(value: object) -> str:
    """The value as JSON with sorted keys, so that a tuple equals a list and NaN equals itself."""
    return json.dumps(value, sort_keys=True)

"""The rung that compares the rest of a twin: architecture, training configuration, facts, digests, word for word."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from export.case import Case
from export.hand_over import frozen_layers, twin_details
from export.keras_h5 import OWN_MARKS, KerasFile, keras_layers, model_config, training_config
from export.keras_worker import Refused, array_digest, read_golden
from export.report import Rung


def check_contents(case: Case) -> Rung:
    """Everything else in the file against what would be written for this checkpoint today.

    Architecture, training configuration and facts must be equal, word for word, and the golden images and digests must
    fit them: so nothing in a file that passes was changed since it was written, whether or not it changes the function.
    """
    source, graph, twin = case.source, case.graph, case.twin
    layers = keras_layers(graph, case.input_range)
    # whether the checkpoint is the file's origin is for the labels; a newer version may read an older file
    own = ("checkpoint_sha256", "shelftwin_version")
    parts: dict[str, tuple[object, object]] = {
        "model_config": (twin.config, model_config(layers, source.backbone, frozen_layers(source, graph))),
        "training_config": (twin.training_config, training_config(source.learning_rate)),
        "layer order": (list(twin.weights), [layer.name for layer in layers]),
        "weight names": (
            twin.weight_names,
            {layer.name: [f"{layer.name}/{name}:0" for name, _, _ in layer.weights] for layer in layers},
        ),
        "marks": (twin.marks, OWN_MARKS),
        **_facts_of(twin.details, twin_details(source, case.input_range, case.folded), own),
        **_digests_of(case.h5, twin),
    }
    different = [name for name, (found, wanted) in parts.items() if _plain(found) != _plain(wanted)]
    detail = f"{len(parts)} parts of the file are what would be written today, and have the digests it states"
    first = different[0] if different else None
    return Rung("contents", not different, len(different), 0, "parts differ", detail, first)


def _facts_of(
    found: dict[str, Any], wanted: dict[str, Any], exempt: tuple[str, ...]
) -> dict[str, tuple[object, object]]:
    names = sorted({*found, *wanted} - set(exempt))
    missing = "(none)"
    return {f"shelftwin/{name}": (found.get(name, missing), wanted.get(name, missing)) for name in names}


def _digests_of(h5: Path, twin: KerasFile) -> dict[str, tuple[object, object]]:
    try:
        golden = read_golden(str(h5))
    except Refused as refused:
        return {"golden images": (str(refused), None)}
    if not isinstance(golden.stored, dict):
        return {"digests": (golden.stored, "a JSON object")}
    layers = {name: array_digest(*arrays) for name, arrays in twin.weights.items() if arrays}
    actual: dict[str, object] = {**golden.actual, "layers": layers}
    return {f"digest of {part}": (golden.stored.get(part), actual.get(part)) for part in {*golden.stored, *actual}}


def _plain(value: object) -> str:
    """As JSON, keys sorted: a tuple is a list, and NaN equals itself."""
    return json.dumps(value, sort_keys=True)

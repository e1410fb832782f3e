"""The proof as one self-contained page: verdict, figures, checks, every layer's error, the worst photos, versions."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from PIL import Image

from export.proof.checks import LAYER_THRESHOLD
from export.proof.report import Check, LayerError, PhotoDifference, Report, verdict_of
from models.atomic_write import write_text
from models.page_style import render_template

MEANINGS = {
    "labels": "Does the file name the right classes in the right order, the photo size, and this training as origin?",
    "weights": "Is every number that was learnt in the file, and none of them changed?",
    "layers_float64": "Does every step on the way from photo to answer give the same, not just the last one?",
    "probabilities_synthetic": "Are the probabilities the same even for extreme pictures, such as black or pure noise?",
    "top1_synthetic": "Do these extreme pictures get the same label?",
    "probabilities_photos": "Are the probabilities the same for your own photos?",
    "top1_photos": "Does each of your photos get the same label?",
    "file_pixels": "Do both see the same picture when each opens a photo itself, however it was saved?",
    "file_labels": "Does a photo get the same label when each opens it itself?",
    "training_steps": "Can the Keras team train the file further, with the same result as here?",
    "contents": "Is all else in the file as it was written, with nothing added, lost or changed?",
}
"""Check -> the question that it answers, for somebody who has to rely on the file and writes no programs."""
WITNESSES = {
    "tf2onnx": "Another program, onnxruntime, computes the file without any Keras.",
    "onnx2tf": "Another converter, onnx2tf, makes a network of the checkpoint without any of our code.",
}
"""Second opinion -> what it is, in a sentence before the question."""

# Of the plot, in pixels; errors from 1e-18, where zeros are drawn, to 1e2.
_WIDTH, _HEIGHT, _MARGIN = 960, 260, 46
_LOWEST, _HIGHEST = -18, 2
_THUMBNAIL = 160
_LABELS = 3


def write_page(reports: Sequence[Report], path: Path, not_checked: Mapping[str, str] = MappingProxyType({})) -> None:
    """Write the page, whole or not at all.

    Args:
        reports: one for each Keras that judged.
        path: of the `.html`.
        not_checked: interpreter whose Keras was to judge -> why it did not.

    Raises:
        BadInput: when the file cannot be written there.
    """
    write_text(Path(path), render_page(reports, not_checked))


def render_page(reports: Sequence[Report], not_checked: Mapping[str, str] = MappingProxyType({})) -> str:
    """The page as HTML, everything in it: it loads nothing from anywhere."""
    judged = [
        {
            "report": report,
            "figures": _figures(report.checks),
            "dots": _dots(report.layers),
            "photos": [_shown(photo, report.class_names) for photo in report.photos],
        }
        for report in reports
    ]
    return render_template(
        "export.proof", "page.html", verdict=verdict_of(reports, not_checked), judged=judged, not_checked=not_checked,
        grid=_grid(), width=_WIDTH, height=_HEIGHT, margin=_MARGIN, threshold=LAYER_THRESHOLD,
        threshold_y=_y(LAYER_THRESHOLD), meaning_of=meaning_of,
    )  # fmt: skip


def meaning_of(check: str) -> str:
    """The question that a check answers, in plain words; empty for a check that has none.

    Args:
        check: its name, with that of the second opinion behind it where it is one's.
    """
    name, _, witness = check.rpartition("_")
    return f"{WITNESSES[witness]} {MEANINGS[name]}" if witness in WITNESSES else MEANINGS.get(check, "")


def _figures(checks: Sequence[Check]) -> list[tuple[str, str, str]]:
    """What somebody who reads no further should have seen: a heading, a figure, and how to take it."""
    passed = sum(check.passed for check in checks)
    figures = [("checks passed", f"{passed} of {len(checks)}", "one that fails is enough for FAIL")]
    if apart := [check for check in checks if check.name.startswith("probabilities_")]:
        largest = max(apart, key=lambda check: check.figure)
        figures.append(
            ("largest difference of a probability", f"{largest.figure:.1g}", f"up to {largest.threshold:g} is rounding")
        )
    if labels := [check for check in checks if check.name.startswith("top1_")]:
        fewest = min(labels, key=lambda check: (check.figure, "photos" not in check.name))
        figures.append(("same label", f"{math.floor(1000 * fewest.figure) / 10:g}%", fewest.detail))
    return figures


def _y(error: float) -> float:
    """Height of an error in the plot, on a logarithmic scale."""
    exponent = _HIGHEST if not math.isfinite(error) else math.log10(max(error, 10.0**_LOWEST))
    share = (min(exponent, _HIGHEST) - _LOWEST) / (_HIGHEST - _LOWEST)
    return round(_HEIGHT - _MARGIN / 2 - share * (_HEIGHT - _MARGIN), 1)


def _grid() -> list[tuple[str, float]]:
    return [(f"1e{exponent}", _y(10.0**exponent)) for exponent in range(_LOWEST, _HIGHEST + 1, 4)]


def _dots(layers: Sequence[LayerError]) -> list[dict[str, Any]]:
    step = (_WIDTH - 2 * _MARGIN) / max(len(layers) - 1, 1)
    return [
        {
            "x": round(_MARGIN + index * step, 1),
            "y": _y(layer.relative_error),
            "bad": not layer.relative_error <= LAYER_THRESHOLD,
            "text": f"{layer.name} ({layer.op}): {layer.relative_error:.2g}",
        }
        for index, layer in enumerate(layers)
    ]


def _shown(photo: PhotoDifference, class_names: Sequence[str]) -> dict[str, Any]:
    """The photo small, and its likeliest classes on both sides and by other converters."""
    likeliest = np.argsort(-np.asarray(photo.torch), kind="stable")[:_LABELS]
    return {
        "name": photo.name,
        "difference": photo.difference,
        "image": _data_uri(photo.pixels),
        "sides": ["torch", "Keras", *photo.opinions],
        "rows": [
            (class_names[index], [gave[index] for gave in (photo.torch, photo.keras, *photo.opinions.values())])
            for index in likeliest
        ],
    }


def _data_uri(pixels: np.ndarray) -> str:
    small = Image.fromarray(pixels)
    small.thumbnail((_THUMBNAIL, _THUMBNAIL))
    content = io.BytesIO()
    small.save(content, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()

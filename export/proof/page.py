"""The proof as one self-contained page: verdict, versions, checks, the error of every layer, the worst photos."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, select_autoescape
from PIL import Image

from export.proof.checks import LAYER_THRESHOLD
from export.proof.report import LayerError, PhotoDifference, Report, verdict_of
from models.atomic_write import write_text

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
    environment = Environment(loader=PackageLoader("export.proof", "."), autoescape=select_autoescape())
    judged = [
        {
            "report": report,
            "dots": _dots(report.layers),
            "photos": [_shown(photo, report.class_names) for photo in report.photos],
        }
        for report in reports
    ]
    return environment.get_template("page.html").render(
        verdict=verdict_of(reports, not_checked), judged=judged, not_checked=not_checked, grid=_grid(), width=_WIDTH,
        height=_HEIGHT, margin=_MARGIN, threshold=LAYER_THRESHOLD, threshold_y=_y(LAYER_THRESHOLD),
    )  # fmt: skip


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
    """The photo small, and its likeliest classes on both sides and by other roads."""
    likeliest = np.argsort(-np.asarray(photo.torch), kind="stable")[:_LABELS]
    return {
        "name": photo.name,
        "difference": photo.difference,
        "image": _data_uri(photo.pixels),
        "roads": ["torch", "Keras", *photo.opinions],
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

"""What a model does to the pixels before its first layer with weights, and what range of pixels that shows."""

from __future__ import annotations

import numpy as np

from export.graph.nodes import Graph

# A mean above this, in the input's own units, is none of pixels from 0 to 1.
_MEAN_OF_RAW = 2.0
# Networks expect inputs whose standard deviation is about 1. So a model that divides by 100 or more takes 0 to 255,
# and one that multiplies by 255 takes 0 to 1.
_RAW = (0.5 / 255, 20 / 255)
_UNIT = ((0.5, 20.0), (127.0, 256.0))


def first_affine(graph: Graph) -> tuple[np.ndarray, np.ndarray] | None:
    """Scale and offset, float64, one for each channel, of all that is affine before anything else; None if nothing is.

    Channels may be chosen in between, as in caffe's ``x[..., ::-1]``: what is returned is in the order after that.
    """
    value_of = {graph.nodes[0].name: (np.ones(graph.nodes[0].shape[0]), np.zeros(graph.nodes[0].shape[0]))}
    found = None
    for node in graph.nodes[1:]:
        if any(name not in value_of for name in node.inputs):
            break
        values = [value_of[name] for name in node.inputs]
        if node.op == "affine":
            own = [np.asarray(node.attributes[name], np.float64) for name in ("scale", "offset")]
            found = values[0][0] * own[0], values[0][1] * own[0] + own[1]
            value_of[node.name] = found
        elif node.op == "slice_channels":
            part = slice(node.attributes["start"], node.attributes["stop"])
            value_of[node.name] = values[0][0][part], values[0][1][part]
        elif node.op == "concatenate":
            scales, offsets = zip(*values, strict=True)
            value_of[node.name] = np.concatenate(scales), np.concatenate(offsets)
            found = value_of[node.name] if found is not None else None
        elif node.op == "resize":
            value_of[node.name] = values[0]
        else:
            break
    return found


def likely_range(graph: Graph) -> str | None:
    """``raw`` (0 to 255) or ``unit`` (0 to 1), if the model's own preprocessing shows which it takes."""
    found = first_affine(graph)
    if found is None or not found[0].all():
        return None
    scale, mean = float(np.abs(found[0]).max()), float((-found[1] / found[0]).max())
    if mean > _MEAN_OF_RAW or _RAW[0] <= scale <= _RAW[1]:
        return "raw"
    return "unit" if any(low <= scale <= high for low, high in _UNIT) else None

"""All operations that are recorded as simpler ones, from the files of this room."""

from __future__ import annotations

from export.graph.simpler import axes, numbers, order, products, windows
from export.graph.simpler.products import Simpler

__all__ = ["ALWAYS", "BY_CONSTANTS", "BY_WEIGHTS", "KNOWN", "OF_IMAGES", "TAKEN_APART"]

ALWAYS: dict[str, Simpler] = {**products.ALWAYS, **order.ALWAYS}
"""Of weights as well as of what is computed from images."""

OF_IMAGES: dict[str, Simpler] = {
    **products.OF_IMAGES,
    **order.OF_IMAGES,
    **windows.OF_IMAGES,
    **axes.OF_IMAGES,
    **numbers.OF_IMAGES,
}
"""Of what is computed from images alone."""

BY_WEIGHTS: dict[str, Simpler] = {**products.BY_WEIGHTS, **order.BY_CONSTANTS}
"""Of one computed value and one weight, whose argument's name comes first."""

BY_CONSTANTS = products.BY_CONSTANTS | order.BY_CONSTANTS.keys()
"""Those of them that take a constant as well; one to divide by is exact as it is."""

TAKEN_APART = frozenset(
    f"aten.{name}" for name in ("einsum", "narrow", "tensordot", "inner", "outer", "tile", "cosine_similarity", "lstm",
                                "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell",
                                "rnn_relu_cell", "fliplr", "flipud", "diff")
)  # fmt: skip
"""Torch itself says what they consist of."""

KNOWN = frozenset({*OF_IMAGES, *BY_WEIGHTS, *TAKEN_APART})

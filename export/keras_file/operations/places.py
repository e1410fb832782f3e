"""Fixed numbers by which places or channels are joined: Dense layers that Keras does not train."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from math import lcm

import numpy as np

from export.graph.nodes import Graph, Node
from export.keras_file.keras_layer import Emit, KerasLayer, permute, zero_padding

# The largest denominator that the numbers of a matrix may have in common.
_LARGEST_DENOMINATOR = 1 << 20
_ROUNDING = 1e-13


def fixed_dense(name: str, matrix: Sequence[Sequence[float]], inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    """Layers that multiply the last axis by a fixed matrix, (result, size), as exactly as float64 has it.

    Kernels are float32 in the file. So fractions such as thirds are written as whole numbers, and what they are thirds
    of comes after; where that is not possible, as two kernels of which one holds what the other has rounded off.
    """
    exact = np.array(matrix, np.float64).T  # Keras's kernels are (in, out)
    whole = _common_denominator(exact)
    if whole is not None and whole != 1 and not _is_single(exact):
        yield _fixed(f"{name}_sum", np.rint(exact * whole), inputs)
        yield KerasLayer("Rescaling", name, {"scale": 1.0 / whole, "offset": 0.0}, (f"{name}_sum",))
    elif _is_single(exact):
        yield _fixed(name, exact, inputs)
    else:
        rounded = exact.astype(np.float32).astype(np.float64)
        yield _fixed(f"{name}_rounded", rounded, inputs)
        yield _fixed(f"{name}_rest", exact - rounded, inputs)
        yield KerasLayer("Add", name, {}, (f"{name}_rounded", f"{name}_rest"))


def _fixed(name: str, kernel: np.ndarray, inputs: tuple[str, ...]) -> KerasLayer:
    config = {"units": kernel.shape[1], "activation": "linear", "use_bias": False}
    return KerasLayer("Dense", name, config, inputs, (("kernel", "", kernel.astype(np.float32)),), fixed=True)


def _is_single(exact: np.ndarray) -> bool:
    return bool((exact.astype(np.float32).astype(np.float64) == exact).all())


def _common_denominator(exact: np.ndarray) -> int | None:
    """The smallest whole number that makes all of them whole, up to float64's rounding; None if it is too large."""
    common = 1
    for number in np.unique(exact):
        common = lcm(common, Fraction(float(number)).limit_denominator(4096).denominator)
        if common > _LARGEST_DENOMINATOR:
            return None
    scaled = exact * common
    return common if bool((np.abs(scaled - np.rint(scaled)) <= _ROUNDING * common).all()) else None


def map_places(node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    """Dense joins numbers along the last axis, so rows and columns take turns there. Keras's maps are (H, W, C)."""
    rows, columns = node.attributes["rows"], node.attributes["columns"]
    name = node.name
    if rows and columns:
        yield permute(f"{name}_rows_last", (3, 2, 1), inputs)  # (C, W, H)
        yield from fixed_dense(f"{name}_rows", rows, (f"{name}_rows_last",))
        yield permute(f"{name}_columns_last", (1, 3, 2), (f"{name}_rows",))  # (C, H', W)
        yield from fixed_dense(f"{name}_columns", columns, (f"{name}_columns_last",))
        yield permute(name, (2, 3, 1), (f"{name}_columns",))
        return
    turn = (3, 2, 1) if rows else (1, 3, 2)  # each is its own opposite
    yield permute(f"{name}_turned", turn, inputs)
    yield from fixed_dense(f"{name}_joined", rows or columns, (f"{name}_turned",))
    yield permute(name, turn, (f"{name}_joined",))


def _map_channels(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    yield from fixed_dense(node.name, node.attributes["matrix"], inputs)


def _channel_max(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    channels = graph.node(node.inputs[0]).shape[0]
    config = {"pool_size": [1, channels], "strides": [1, channels], "padding": "valid"}
    yield permute(f"{node.name}_turned", (1, 3, 2), inputs)  # (H, C, W)
    yield KerasLayer("MaxPooling2D", f"{node.name}_largest", config, (f"{node.name}_turned",))
    yield permute(node.name, (1, 3, 2), (f"{node.name}_largest",))


def _pad_constant(graph: Graph, node: Node, inputs: tuple[str, ...]) -> Iterator[KerasLayer]:
    """Zeros, where the value is what zero stands for."""
    value, padded = node.attributes["value"], f"{node.name}_zeros"
    yield KerasLayer("Rescaling", f"{node.name}_lowered", {"scale": 1.0, "offset": -value}, inputs)
    yield zero_padding(padded, node.attributes["padding"], (f"{node.name}_lowered",))
    yield KerasLayer("Rescaling", node.name, {"scale": 1.0, "offset": value}, (padded,))


LAYERS: dict[str, Emit] = {
    "map_places": lambda graph, node, inputs: map_places(node, inputs),
    "map_channels": _map_channels,
    "channel_max": _channel_max,
    "pad_constant": _pad_constant,
}

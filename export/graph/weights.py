"""What a network computes from its weights alone: once, when it is exported, for all images.

Keras's layers take the outputs of layers, not weights. So a kernel that the forward pass standardises is standardised
here, and the file holds the result.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from export.graph.record import Recording


def computed_weight(recording: Recording, operation: fx.Node) -> tuple[Tensor, tuple[str, ...]]:
    """Compute an operation on weights in float64.

    Not in the network's own float32, in which sums differ by their order, so by processor and number of threads.

    Args:
        recording: with the weights.
        operation: none of the images is part of its result.

    Returns:
        The result in float64, and the names of the tensors that it is computed from, in order.
    """
    sources: dict[str, None] = {}
    known: dict[fx.Node, Any] = {}

    def value(node: fx.Node) -> Any:
        if node not in known:
            known[node] = _exact(_of_node(node))
        return known[node]

    def _of_node(node: fx.Node) -> Any:
        if "constant" in node.meta:
            return node.meta["constant"]
        if node.op == "get_attr":
            sources[str(node.target)] = None
            return recording.state[str(node.target)].detach()
        if not callable(node.target):
            raise ValueError(f"{node.op} is no operation on weights")
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), value)
        args, kwargs = fx.node.map_aggregate((args, kwargs), _no_narrow_type)
        return node.target(*args, **kwargs)

    with torch.no_grad():
        result = value(operation)
    return result, tuple(sources)


def _exact(value: Any) -> Any:
    """Tensors of floating-point numbers in float64, each its own memory: operations in place change no other's."""
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() and value.dtype != torch.float64 else value.clone()
    return type(value)(_exact(each) for each in value) if isinstance(value, list | tuple) else value


def _no_narrow_type(value: Any) -> Any:
    """A network may ask for float32 by name."""
    return torch.float64 if value in (torch.float32, torch.float16, torch.bfloat16) else value

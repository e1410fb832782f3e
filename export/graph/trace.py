"""Recorded operations -> neutral graph. What counts is what a network computes, not its class.

All the knowledge is in `operations`: one short function for each ATen operation. Operations that only reshape, or that
do nothing in inference, become aliases of their input. An explicit padding in front of a convolution becomes part of
it.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
from torch import fx

from export.graph.nodes import Graph, Node
from export.graph.operations import activation, arithmetic, convolution, normalisation, pooling, shape
from export.graph.record import Recording, module_path, view_of_changed_value
from export.graph.tracer import (
    Converter,
    LayerNames,
    NoKerasCounterpart,
    Tracer,
    arguments,
    name_of,
    of_weights,
    shape_of,
)
from models.bad_input import BadInput

# ATen operation -> converter. An in-place variant (trailing underscore) is looked up without its underscore: in the
# recording all later readers of the changed value already read the operation's result.
CONVERTERS: dict[str, Converter] = {
    **convolution.CONVERTERS,
    **normalisation.CONVERTERS,
    **activation.CONVERTERS,
    **arithmetic.CONVERTERS,
    **pooling.CONVERTERS,
    **shape.CONVERTERS,
}


def trace_graph(recording: Recording, layer_names: LayerNames | None = None) -> Graph:
    """Turn a recorded forward pass into the neutral graph, with a softmax as its last node.

    Args:
        recording: from `record`.
        layer_names: module paths -> layer names; a layer that it does not name is named by its module path.

    Raises:
        NoKerasCounterpart: Keras's built-in layers do not have an operation, or a weight of the network is not used
            exactly once.
    """
    tracer = Tracer(recording, layer_names)
    for node in recording.graph.nodes:
        if node.op == "placeholder":
            tracer.append(Node("image", "input", (), shape_of(node)), node.name)
        elif node.op == "get_attr" and "constant" not in node.meta:
            tracer.tensor_of[node.name] = str(node.target)
        elif node.op == "call_function":
            _convert(tracer, node)
        elif node.op == "output":
            (logits,) = node.all_input_nodes
            last = tracer.nodes[tracer.node_of[logits.name]]
            tracer.append(softmax_after(last), "")
    tensors = {
        name: array.detach().cpu().numpy()
        for name, array in recording.state.items()
        if not name.endswith("num_batches_tracked")  # a counter that only training uses
    }
    nodes = tuple(tracer.nodes.values())
    _check_use(nodes, tensors)
    return Graph(nodes, tensors)


def softmax_after(logits: Node) -> Node:
    """The last node: inside the Dense that gives the logits, so that ``model.layers[-2]`` gives the features."""
    inside = logits.name if logits.op == "dense" else ""
    return Node("probabilities", "softmax", (logits.name,), logits.shape, inside=inside)


def unknown_operations(recording: Recording) -> list[str]:
    """Names of the recorded operations that have no converter, such as ``aten.fft_rfft2``."""
    operations = [node for node in recording.graph.nodes if node.op == "call_function"]
    return sorted({name_of(each) for each in operations if not _converter(each)})


def _convert(tracer: Tracer, operation: fx.Node) -> None:
    converter = _converter(operation)
    if operation.target is view_of_changed_value:
        why = "two values share memory, and one is read after the other was changed in place"
        raise NoKerasCounterpart(name_of(operation.args[0]), module_path(operation), why)  # type: ignore[arg-type]
    if converter is None:
        raise NoKerasCounterpart(name_of(operation), module_path(operation))
    if not operation.meta["computed"] and converter not in shape.SAME_WEIGHT:
        raise of_weights(operation)
    if (
        operation.meta["computed"]
        and operation.meta["shape"][:1] != (tracer.batch,)
        and "results" not in operation.meta
    ):
        why = f"of shape {operation.meta['shape']}, which is not that of one value for each image"
        raise NoKerasCounterpart(name_of(operation), module_path(operation), why)
    try:
        converter(tracer, operation, arguments(operation))
    except BadInput:
        raise
    except Exception as error:  # an overload, or a shape, that the converter does not expect
        why = f"in this form ({type(error).__name__}: {error})"
        raise NoKerasCounterpart(name_of(operation), module_path(operation), why) from error


def _converter(operation: fx.Node) -> Converter | None:
    """The converter of an operation; one without a row that gave its input back, as ``x.float()`` does, is no more."""
    known = CONVERTERS.get(name_of(operation).rstrip("_"))
    return known or (shape.same_value if operation.meta.get("unchanged") else None)


def _check_use(nodes: tuple[Node, ...], tensors: dict[str, np.ndarray]) -> None:
    """Every tensor must be used exactly once: Keras trains and compares each array in the one layer that has it."""
    used = Counter(tensor for node in nodes for tensor in node.weights.values())
    for tensor in tensors:
        if used[tensor] != 1:
            why = "is used in more than one place" if used[tensor] else "has no part in what is computed"
            module, _, name = tensor.rpartition(".")
            raise NoKerasCounterpart(f"weight {name}", module, f"it {why}")

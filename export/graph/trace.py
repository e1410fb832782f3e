"""Recorded operations -> neutral graph. What counts is what a network computes, not its class.

All the knowledge is in `operations`: one short function for each ATen operation. Operations that only reshape, or that
do nothing in inference, become aliases of their input. An explicit padding in front of a convolution becomes part of
it.
"""

from __future__ import annotations

from torch import Tensor, fx

from export.graph.nodes import Graph, Node
from export.graph.operations import (
    activation,
    arithmetic,
    convolution,
    normalisation,
    places,
    pooling,
    shape,
    tokens,
)
from export.graph.record import Recording, module_path, view_of_changed_value
from export.graph.tracer import (
    Converter,
    LayerNames,
    NoKerasCounterpart,
    Tracer,
    arguments,
    name_of,
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
    **places.CONVERTERS,
    **shape.CONVERTERS,
}
# These know values of any layout; they leave to the others what is a map or a vector.
CONVERTERS |= tokens.converters(CONVERTERS)


def trace_graph(recording: Recording, layer_names: LayerNames | None = None) -> Graph:
    """Turn a recorded forward pass into the neutral graph, with a softmax as its last node.

    Args:
        recording: from `record`.
        layer_names: module paths -> layer names; a layer that it does not name is named by its module path.

    Raises:
        NoKerasCounterpart: Keras's built-in layers do not have an operation, or a weight of the network is not used.
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
            tracer.append(Node("probabilities", "softmax", (last.name,), last.shape), "")
    nodes = _read_by_others(tuple(tracer.nodes.values()))
    used = {tensor for node in nodes for tensor in node.weights.values()}
    computed = {name: origin for name, origin in tracer.computed.items() if name in used}
    _check_use(recording.state, used | {source for origin in computed.values() for source in origin.sources})
    return Graph(nodes, {name: tracer.tensor(name) for name in (*recording.state, *computed) if name in used}, computed)


def unknown_operations(recording: Recording) -> list[str]:
    """Names of the recorded operations that have no converter, such as ``aten.fft_rfft2``."""
    operations = [node for node in recording.graph.nodes if node.op == "call_function" and node.meta["computed"]]
    return sorted({name_of(each) for each in operations if not _converter(each)})


def _convert(tracer: Tracer, operation: fx.Node) -> None:
    converter = _converter(operation)
    if operation.target is view_of_changed_value:
        why = "two values share memory, and one is read after the other was changed in place"
        raise NoKerasCounterpart(name_of(operation.args[0]), module_path(operation), why)  # type: ignore[arg-type]
    if not operation.meta["computed"]:
        _of_weights(tracer, operation)
        return
    if converter is None:
        raise NoKerasCounterpart(name_of(operation), module_path(operation))
    if (
        operation.meta["computed"]
        and operation.meta["shape"][:1] != (tracer.batch,)
        and "results" not in operation.meta
        and name_of(operation).rstrip("_") not in tokens.ANY_LAYOUT
        and not any(value.name in tracer.layout_of for value in operation.all_input_nodes)
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


def _of_weights(tracer: Tracer, operation: fx.Node) -> None:
    """A weight seen in another shape is that weight; anything else is computed when a layer has it as its weight."""
    source = operation.args[0] if operation.args else None
    seen = name_of(operation) in shape.SAME_NUMBERS or operation.meta.get("unchanged")
    if seen and isinstance(source, fx.Node) and source.name in tracer.tensor_of:
        tracer.tensor_of[operation.name] = tracer.tensor_of[source.name]
    else:
        tracer.of_weights[operation.name] = operation


def _converter(operation: fx.Node) -> Converter | None:
    """The converter of an operation; one without a row that gave its input back, as ``x.float()`` does, is no more."""
    known = CONVERTERS.get(name_of(operation).rstrip("_"))
    return known or (shape.same_value if operation.meta.get("unchanged") else None)


def _read_by_others(nodes: tuple[Node, ...]) -> tuple[Node, ...]:
    """The nodes that the last one depends on: of some operations a part is all that is needed."""
    needed = {nodes[0].name, nodes[-1].name}
    for node in reversed(nodes):
        if node.name in needed:
            needed.update(node.inputs)
    return tuple(node for node in nodes if node.name in needed)


def _check_use(state: dict[str, Tensor], used: set[str]) -> None:
    """Every tensor must have a part in what is computed: otherwise something would be missing in Keras."""
    in_use = {id(state[name]) for name in used if name in state}  # one that two modules share has two names
    for name, tensor in state.items():
        # a counter that only training uses
        if id(tensor) not in in_use and not name.endswith("num_batches_tracked"):
            module, _, short = name.rpartition(".")
            raise NoKerasCounterpart(f"weight {short}", module, "it has no part in what is computed")

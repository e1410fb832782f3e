"""Recorded operations -> neutral graph. What counts is what a network computes, not its class.

All the knowledge is in `operations`: one short function for each ATen operation. Operations that only reshape, or that
do nothing in inference, become aliases of their input. An explicit padding in front of a convolution becomes part of
it.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from export.graph.layouts import Layout
from export.graph.nodes import Computed, Graph, Node
from export.graph.operations import (
    activation,
    arithmetic,
    convolution,
    normalisation,
    places,
    pooling,
    powers,
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
    shown_path,
)
from models.bad_input import BadInput
from models.classifier import gives_of

# ATen operation -> converter. An in-place variant (trailing underscore) is looked up without its underscore: in the
# recording all later readers of the changed value already read the operation's result.
CONVERTERS: dict[str, Converter] = {
    **convolution.CONVERTERS,
    **normalisation.CONVERTERS,
    **activation.CONVERTERS,
    **arithmetic.CONVERTERS,
    **powers.CONVERTERS,
    **pooling.CONVERTERS,
    **places.CONVERTERS,
    **shape.CONVERTERS,
}
# These know values of any layout; they leave to the others what is a map or a vector.
CONVERTERS |= tokens.converters(CONVERTERS)


# What a network may end in, so that it does not give logits: ATen operation -> the name of what it gives.
_ENDINGS = {
    "aten.softmax": "softmax",
    "aten._softmax": "softmax",
    "aten.log_softmax": "log_softmax",
    "aten._log_softmax": "log_softmax",
    "aten.sigmoid": "sigmoid",
}


def trace_graph(
    recording: Recording, layer_names: LayerNames | None = None, output: str = "logits", whole: bool = True
) -> Graph:
    """Turn a recorded forward pass into the neutral graph, with probabilities as its last node.

    The last node is a softmax in place of the network's own softmax or log_softmax, or after its logits; a sigmoid
    stays one, and a single logit gets one.

    Args:
        recording: from `record`.
        layer_names: module paths -> layer names; a layer that it does not name is named by its module path.
        output: what the network gives, one of `models.choices.OUTPUTS`.
        whole: whether every weight must have a part in what is computed; otherwise the graph says which have none.

    Raises:
        NoKerasCounterpart: Keras's built-in layers do not have an operation, or a weight of the network is not used.
        BadInput: the network does not end in what it is said to give.
    """
    tracer = Tracer(recording, layer_names)
    ending = _stated_ending(recording, output)
    for node in recording.graph.nodes:
        if node.op == "placeholder":
            tracer.append(Node("image", "input", (), shape_of(node)), node.name)
        elif node.op == "get_attr" and "constant" not in node.meta:
            tracer.tensor_of[node.name] = str(node.target)
        elif ending is not None and node is ending:  # the last node stands for it
            tracer.alias(node, node.all_input_nodes[0])
        elif node.op == "call_function":
            _convert(tracer, node)
        elif node.op == "output":
            (answers,) = node.all_input_nodes
            if tracer.layout(answers) != Layout((0,)):
                raise NoKerasCounterpart(name_of(answers), module_path(answers), "its answers have images elsewhere")
            last = tracer.nodes[tracer.node_of[answers.name]]
            tracer.append(last_node(last, output, module_path(ending) if ending else ""), "")
    nodes = _read_by_others(tuple(tracer.nodes.values()))
    used = {tensor for node in nodes for tensor in node.weights.values()}
    computed = {name: origin for name, origin in tracer.computed.items() if name in used}
    unused = _unused(recording.state, used | {source for origin in computed.values() for source in origin.sources})
    if unused and whole:  # something would be missing in Keras
        module, _, short = unused[0].rpartition(".")
        raise NoKerasCounterpart(f"weight {short}", module, "it has no part in what is computed")
    tensors = {name: tracer.tensor(name) for name in (*recording.state, *computed) if name in used}
    return Graph(nodes, tensors, computed, unused, _untrained(recording.state, computed, used))


def _stated_ending(recording: Recording, output: str) -> fx.Node | None:
    """The operation that makes the network's answers what it is said to give; None where they are logits.

    Raises:
        BadInput: the network ends in something else.
    """
    (last,) = next(node for node in recording.graph.nodes if node.op == "output").all_input_nodes
    while _is_same_value(last) and len(last.users) == 1:
        last = last.all_input_nodes[0]
    found = _ENDINGS.get(name_of(last)) if last.op == "call_function" and len(last.users) == 1 else None
    shape = last.meta["shape"]
    if found in ("softmax", "log_softmax") and arguments(last)["dim"] % len(shape) != 1:
        found = None
    where = f" in module {shown_path(module_path(last))!r}"
    if shape[1:2] in ((), (1,)) and "softmax" in (found or output):
        raise BadInput(
            f"expected two numbers or more before a softmax, got one{where}: its softmax is always 1. If the network "
            "gives the logit of a yes or no, leave its softmax out and state logits."
        )
    if (found or "logits") != output:
        ends = f"ends in a {found}{where}" if found else f"ends in {name_of(last)}{where}"
        raise BadInput(
            f"expected a network that gives {output}, got one that {ends}. State what it gives: "
            f'--output {found or "logits"} (in Python output="{found or "logits"}").'
        )
    return last if found else None


def _is_same_value(operation: fx.Node) -> bool:
    """Whether an operation gives its input back, or the same numbers in another shape."""
    if operation.op != "call_function":
        return False
    if name_of(operation) in shape.SAME_NUMBERS:
        return True
    return bool(operation.meta.get("unchanged")) or CONVERTERS.get(name_of(operation)) is shape.same_value


def last_node(answers: Node, output: str = "logits", source: str = "") -> Node:
    """The graph's last node, which gives probabilities; in one Keras layer with the Dense that gives the answers.

    So ``model.layers[-2]`` gives the features in every Keras.

    Args:
        answers: what the network gives, but for its own softmax or sigmoid.
        output: what it is said to give, one of `models.choices.OUTPUTS`.
        source: module of the network's own softmax or sigmoid.
    """
    sigmoid = gives_of(output, answers.shape[0]) == "sigmoid"
    op, attributes = ("activation", {"function": "sigmoid"}) if sigmoid else ("softmax", {})
    inside = answers.name if answers.op == "dense" else ""
    return Node("probabilities", op, (answers.name,), answers.shape, attributes, {}, source, inside=inside)


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
        random = torch.Tag.nondeterministic_seeded in getattr(operation.target, "tags", ())
        why = "random numbers, in inference as well: let forward take them in training alone, `if self.training`"
        raise NoKerasCounterpart(name_of(operation), module_path(operation), why if random else "")
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


def _untrained(state: dict[str, Tensor], computed: dict[str, Computed], used: set[str]) -> frozenset[str]:
    """Buffers, and what is computed from nothing else."""
    buffers = {name for name, tensor in state.items() if not isinstance(tensor, nn.Parameter)}
    of_buffers = {name for name, origin in computed.items() if buffers.issuperset(origin.sources)}
    return frozenset((buffers & used) | of_buffers)


def _unused(state: dict[str, Tensor], used: set[str]) -> tuple[str, ...]:
    """Names of tensors that have no part in what is computed, but for counters that only training uses."""
    in_use = {id(state[name]) for name in used if name in state}  # one that two modules share has two names
    return tuple(
        name for name, tensor in state.items() if id(tensor) not in in_use and not name.endswith("num_batches_tracked")
    )

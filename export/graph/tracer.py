"""What the converters of recorded operations work with: which node, tensor or constant each recorded value is."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from torch import fx

from export.graph.layer_names import plain_layer_name
from export.graph.nodes import Computed, Node
from export.graph.record import Recording, module_path, operation_name
from export.graph.weights import computed_weight
from models.bad_input import BadInput

LayerNames = Callable[[Iterable[str]], dict[str, str]]


class NoKerasCounterpart(BadInput):
    """The network computes something that has no counterpart among the built-in Keras layers."""

    def __init__(self, operation: str, module_path: str, why: str = "") -> None:
        self.reason = f"{operation}{': ' + why if why else ''}"
        super().__init__(
            f"{operation} in module {module_path or '(root)'!r} has no counterpart here among Keras's built-in layers"
            f"{': ' + why if why else ''}. What can be converted is listed in export/graph/operations; for other "
            "networks torch.onnx.export followed by onnx2tf gives a SavedModel or TFLite file, without the proof."
        )


class Tracer:
    """Knows for each recorded value which node, tensor or constant it is; converters add their nodes to it."""

    def __init__(self, recording: Recording, layer_names: LayerNames | None) -> None:
        self.recording = recording
        operations = [node for node in recording.graph.nodes if node.op == "call_function"]
        paths = sorted({module_path(operation) for operation in operations})
        self.layer_names = layer_names(paths) if layer_names else {}
        self.nodes: dict[str, Node] = {}
        self.node_of: dict[str, str] = {}  # recorded name -> node name
        self.channels_last: set[str] = set()  # recorded names of values that torch has permuted to (H, W, C)
        self.tensor_of: dict[str, str] = {}  # recorded name -> name in the state dict, or of a computed one
        self.of_weights: dict[str, fx.Node] = {}  # recorded names of operations on weights alone
        self.computed: dict[str, Computed] = {}
        self.computed_tensors: dict[str, np.ndarray] = {}
        self._used: set[str] = set()
        # Recorded names of means of squares over the channels, and of their roots, which become part of what reads
        # them -> what is squared, and the attributes of an ``inverse_rms``.
        self.mean_squares: dict[str, tuple[fx.Node, dict[str, Any]]] = {}
        self.roots: dict[str, tuple[fx.Node, dict[str, Any]]] = {}
        (self.batch,) = (node.meta["shape"][0] for node in recording.graph.nodes if node.op == "placeholder")

    def emit(
        self,
        operation: fx.Node,
        op: str,
        inputs: Iterable[fx.Node],
        attributes: dict[str, Any] | None = None,
        weights: dict[str, fx.Node | None] | None = None,
        shape: tuple[int, ...] | None = None,
    ) -> None:
        """Add a node named by the operation's module, which `operation` then stands for.

        Args:
            operation: the recorded operation.
            op: key of `OPERATIONS`; `attributes` are what it must state.
            inputs: recorded values that the node reads.
            attributes: by name.
            weights: role -> recorded weight; None where the operation has none.
            shape: (C, H, W) or (C,); the operation's own where it is not given.

        Raises:
            NoKerasCounterpart: an input is a weight or constant, a weight depends on the image, or the layouts are
                mixed.
        """
        inputs = list(inputs)
        if not all(isinstance(value, fx.Node) and value.name in self.node_of for value in inputs):
            raise of_weights(operation)
        names = {role: self.weight_name(value) for role, value in (weights or {}).items() if value is not None}
        for role, name in names.items():
            if name is None:
                raise NoKerasCounterpart(name_of(operation), module_path(operation), f"its {role} is not a weight")
        layouts = {value.name in self.channels_last for value in inputs if len(shape_of(value)) == 3}
        if len(layouts) > 1:
            raise NoKerasCounterpart(name_of(operation), module_path(operation), "of two layouts at once")
        channels_last = layouts == {True}
        path = module_path(operation)
        node = Node(
            name=self._unique(self.layer_names.get(path) or plain_layer_name(path)),
            op=op,
            inputs=tuple(self.input_name(value) for value in inputs),
            shape=shape or channels_first(shape_of(operation), channels_last and len(shape_of(operation)) == 3),
            attributes=attributes or {},
            weights={role: self._for_one_node(name) for role, name in names.items() if name},
            source=path,
            trace_name=operation.name,
            trace_channels_last=channels_last,
        )
        self.append(node, operation.name)
        if channels_last:
            self.channels_last.add(operation.name)

    def alias(self, operation: fx.Node, of: fx.Node, channels_last: bool | None = None) -> None:
        """Make `operation` the same value as `of`, in the same layout unless `channels_last` is given."""
        self.node_of[operation.name] = self.input_name(of)
        if of.name in self.channels_last if channels_last is None else channels_last:
            self.channels_last.add(operation.name)

    def is_channels_last(self, value: fx.Node) -> bool:
        """Whether torch holds a value as (H, W, C)."""
        return value.name in self.channels_last

    def input_name(self, value: fx.Node) -> str:
        """Name of the node that a recorded value stands for."""
        return self.node_of[value.name]

    def replace_last(self, operation: fx.Node, node: Node) -> None:
        """Put `node` in the place of the last node, which has the same name."""
        self.nodes[node.name] = node
        self.node_of[operation.name] = node.name

    def weight_name(self, value: Any) -> str | None:
        """Name of the tensor of weights, trained or computed from such, that a traced value stands for; None for others.

        What is computed from weights is computed here, when something asks for it.
        """
        if not isinstance(value, fx.Node):
            return None
        if value.name in self.of_weights and value.name not in self.tensor_of:
            tensor, sources = computed_weight(self.recording, self.of_weights[value.name])
            name = self._add_computed(tensor.float().cpu().numpy(), Computed(sources, value.name))
            self.tensor_of[value.name] = name
        return self.tensor_of.get(value.name)

    def is_weight(self, value: Any) -> bool:
        """Whether `weight_name` would give a name; nothing is computed."""
        return isinstance(value, fx.Node) and (value.name in self.tensor_of or value.name in self.of_weights)

    def add_epsilon(self, operation: fx.Node, value: fx.Node, epsilon: float) -> None:
        """Note that `operation` is a mean of squares and a number."""
        source, attributes = self.mean_squares[value.name]
        self.mean_squares[operation.name] = (source, {**attributes, "epsilon": attributes["epsilon"] + epsilon})

    def tensor(self, name: str) -> np.ndarray:
        """The array of a `weight_name`."""
        if name in self.computed_tensors:
            return self.computed_tensors[name]
        return self.recording.state[name].detach().cpu().numpy()

    def _for_one_node(self, name: str) -> str:
        """The name of a tensor; for each node after the first that uses it, that of a copy."""
        if name in self._used:
            sources = self.computed[name].sources if name in self.computed else (name,)
            trace_name = self.computed[name].trace_name if name in self.computed else ""
            name = self._add_computed(self.tensor(name), Computed(sources, trace_name))
        self._used.add(name)
        return name

    def _add_computed(self, array: np.ndarray, origin: Computed) -> str:
        start = f"{origin.sources[0]}.{'computed' if origin.trace_name else 'again'}"
        name, number = start, 1
        while name in self.computed:
            name, number = f"{start}_{number}", number + 1
        self.computed[name], self.computed_tensors[name] = origin, array
        return name

    def constant(self, value: Any) -> np.ndarray | None:
        """The constant that a value stands for (a tensor outside the state dict, or number); None if it is computed."""
        if isinstance(value, int | float):
            return np.asarray(value, dtype=np.float64)  # each side rounds a number to its own precision
        constant = value.meta.get("constant") if isinstance(value, fx.Node) else None
        return None if constant is None else constant.detach().cpu().numpy()

    def append(self, node: Node, trace_name: str) -> None:
        """Add a node, which the recorded value of that name stands for."""
        self.nodes[node.name] = node
        self.node_of[trace_name] = node.name

    def _unique(self, name: str) -> str:
        candidate, number = name, 0
        while candidate in self.nodes:
            number += 1
            candidate = f"{name}_{number}"
        return candidate


def of_weights(operation: fx.Node) -> NoKerasCounterpart:
    """Keras's layers take the outputs of layers, not weights or constants."""
    return NoKerasCounterpart(name_of(operation), module_path(operation), "of a weight or a constant")


def name_of(operation: fx.Node) -> str:
    """Name of a recorded operation, such as ``aten.conv2d``."""
    return operation_name(operation.target)


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Shape of a recorded value without the batch, in torch's own order."""
    return node.meta["shape"][1:]


def channels_first(shape: tuple[int, ...], channels_last: bool) -> tuple[int, ...]:
    """(H, W, C) as (C, H, W) where torch holds it so."""
    return (shape[-1], *shape[:-1]) if channels_last else shape


def arguments(operation: fx.Node) -> dict[str, Any]:
    """All arguments of an ATen call by name; those not given have the schema's default."""
    if is_part(operation):
        return {"several": operation.args[0], "index": operation.args[1]}
    schema = operation.target._schema.arguments  # type: ignore[union-attr]
    given = dict(zip((argument.name for argument in schema), operation.args, strict=False)) | operation.kwargs
    return {argument.name: given.get(argument.name, argument.default_value) for argument in schema}


def pair(value: Any) -> tuple[int, int]:
    """One number, or two, as (rows, columns)."""
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    return (values[0], values[0]) if len(values) == 1 else (values[0], values[1])


def is_part(operation: fx.Node) -> bool:
    """Whether it takes one result of an operation that has several."""
    return operation.target is operator.getitem


# Adds the nodes of one recorded operation to the tracer, given the operation's arguments by name.
Converter = Callable[[Tracer, fx.Node, dict[str, Any]], None]

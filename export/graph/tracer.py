"""What the converters of recorded operations work with: which node, tensor or constant each recorded value is."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import fx

from export.graph.layer_names import plain_layer_name
from export.graph.layouts import MAP, Layout
from export.graph.nodes import Computed, Node
from export.graph.record import Recording, module_path, operation_name
from export.graph.weights import computed_weight
from models.bad_input import BadInput

LayerNames = Callable[[Iterable[str]], dict[str, str]]

# They do the same to each number, wherever it is.
ELEMENTWISE = frozenset(
    """
    relu leaky_relu elu threshold activation hard_sigmoid hard_swish mish dropout add subtract multiply divide average
    maximum minimum clip gelu_tanh softplus log_sigmoid absolute cube hard_shrink soft_shrink positive power
    logarithm
    """.split()  # noqa: SIM905
)
# In torch the channels of what they are given are dimension 1, whatever it was before.
CHANNELS_FIRST = frozenset(
    """
    conv2d conv2d_transpose batch_norm prelu pad max_pool average_pool upsample upsample_bilinear resize map_places
    pad_constant group_norm map_norm
    """.split()  # noqa: SIM905
)


@dataclass(frozen=True)
class SumOfSquares:
    """A value that is `factor * sum(of ** 2) + epsilon`.

    Attributes:
        of: what is squared.
        dims: over which of its dimensions.
        keepdim: whether they are kept, as 1.
        factor: above 0.
        epsilon: not negative.
    """

    of: fx.Node
    dims: tuple[int, ...]
    keepdim: bool
    factor: float = 1.0
    epsilon: float = 0.0


class NoKerasCounterpart(BadInput):
    """The network computes something that has no counterpart among the built-in Keras layers."""

    def __init__(self, operation: str, module_path: str, why: str = "") -> None:
        self.reason = f"{operation}{': ' + why if why else ''}"
        super().__init__(
            f"{operation} in module {shown_path(module_path)!r} has no counterpart here among Keras's built-in layers"
            f"{': ' + why if why else ''}. What can be converted is listed in export/graph/operations; for other "
            "networks torch.onnx.export followed by onnx2tf gives a SavedModel or TFLite file, without the proof."
        )


def shown_path(module_path: str) -> str:
    """A module's path for people.

    Where a network from elsewhere is wrapped (`models.foreign.networks.ForeignClassifier`), its owner knows its own
    paths alone.
    """
    return ("" if module_path == "network" else module_path.removeprefix("network.")) or "(root)"


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
        self.layout_of: dict[str, Layout] = {}  # recorded names of all values that are neither maps nor vectors
        self._moved: dict[tuple[str, tuple[int, ...]], str] = {}  # node, axes -> the node that has them in that order
        self.tensor_of: dict[str, str] = {}  # recorded name -> name in the state dict, or of a computed one
        self.of_weights: dict[str, fx.Node] = {}  # recorded names of operations on weights alone
        self.computed: dict[str, Computed] = {}
        self.computed_tensors: dict[str, np.ndarray] = {}
        self._used: set[str] = set()
        # Recorded names of means of squares over the channels, and of their roots, which become part of what reads
        # them -> what is squared, and the attributes of an ``inverse_rms``.
        self.mean_squares: dict[str, tuple[fx.Node, dict[str, Any]]] = {}
        # Recorded names of the lengths of vectors -> the vectors, along which axis, and the least that they may be.
        self.norms: dict[str, tuple[fx.Node, int, float]] = {}
        # Recorded names of values that torch has repeated for those that they are joined with -> what was repeated.
        self.repeated: dict[str, fx.Node] = {}
        self.roots: dict[str, tuple[fx.Node, dict[str, Any]]] = {}
        # Recorded names of sums of squares over any axes, of which a root may be taken.
        self.squares: dict[str, SumOfSquares] = {}
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
        inputs = [self.repeated.get(value.name, value) if isinstance(value, fx.Node) else value for value in inputs]
        if not all(isinstance(value, fx.Node) and value.name in self.node_of for value in inputs):
            raise of_weights(operation)
        names = {
            role: self.weight_name(value, role == "kernel")
            for role, value in (weights or {}).items()
            if value is not None
        }
        for role, name in names.items():
            if name is None:
                raise NoKerasCounterpart(name_of(operation), module_path(operation), f"its {role} is not a weight")
        layouts = {value.name in self.channels_last for value in inputs if len(shape_of(value)) == 3}
        held = {name: weight for name, weight in names.items() if weight}
        elsewhere = any(value.name in self.layout_of for value in inputs)
        if op in ELEMENTWISE and (elsewhere or len(layouts) > 1):
            self._emit_elementwise(operation, op, inputs, attributes or {}, held)
            return
        read, channels_last = tuple(self.input_name(value) for value in inputs), layouts == {True}
        if elsewhere or (op in CHANNELS_FIRST and True in layouts):
            if any(self.layout(value) not in (MAP, replace(MAP, order=self.layout(value).order)) for value in inputs):
                raise NoKerasCounterpart(name_of(operation), module_path(operation), "of what is no map")
            read, channels_last = tuple(self.in_order(value, MAP.order) for value in inputs), False
        elif len(layouts) > 1:
            raise NoKerasCounterpart(name_of(operation), module_path(operation), "of two layouts at once")
        path = module_path(operation)
        node = Node(
            name=self._unique(self.layer_names.get(path) or plain_layer_name(path)),
            op=op,
            inputs=read,
            shape=shape or channels_first(shape_of(operation), channels_last and len(shape_of(operation)) == 3),
            attributes=attributes or {},
            weights={role: self._for_one_node(name) for role, name in held.items()},
            source=path,
            trace_name=operation.name,
            trace_channels_last=channels_last,
        )
        self.append(node, operation.name)
        if channels_last:
            self.channels_last.add(operation.name)

    def _emit_elementwise(
        self,
        operation: fx.Node,
        op: str,
        inputs: list[fx.Node],
        attributes: dict[str, Any],
        weights: dict[str, str],
    ) -> None:
        """All values in the layout of the first; an axis of size 1 stands for all."""
        layout = self.layout(inputs[0])
        for value in inputs:
            own = self.layout(value)
            if replace(own, order=layout.order) != layout or len(own.order) != len(layout.order):
                why = "of values of another number of axes, or with the images elsewhere"
                raise NoKerasCounterpart(name_of(operation), module_path(operation), why)
        read = [self.in_order(value, layout.order) for value in inputs]
        self.add(operation, op, read, layout, attributes, weights)

    def add(
        self,
        operation: fx.Node,
        op: str,
        inputs: Iterable[str],
        layout: Layout,
        attributes: dict[str, Any] | None = None,
        weights: dict[str, str] | None = None,
        value: fx.Node | None = None,
    ) -> str:
        """Add a node for a value of any layout; `operation` then stands for it.

        Args:
            operation: the recorded operation.
            op: key of `OPERATIONS`; `attributes` are what it must state.
            inputs: names of nodes.
            layout: how torch holds the value that the node computes.
            attributes: by name.
            weights: role -> name of the tensor.
            value: the recorded value, if it is not that of `operation`, which then does not stand for the node.

        Returns:
            The node's name.
        """
        path, recorded = module_path(operation), value or operation
        of_image = layout.of_image(recorded.meta["shape"])
        node = Node(
            name=self._unique(self.layer_names.get(path) or plain_layer_name(path)),
            op=op,
            inputs=tuple(inputs),
            shape=channels_first(layout.in_keras(of_image) or (1,), True),
            attributes=attributes or {},
            weights={role: self._for_one_node(name) for role, name in (weights or {}).items()},
            source=path,
            trace_name=recorded.name,
            trace_layout=layout,
        )
        self.nodes[node.name] = node
        if value is None:
            self.place(operation, node.name, layout)
        return node.name

    def place(self, operation: fx.Node, node: str, layout: Layout) -> None:
        """Make `operation` stand for a node's value in that layout."""
        self.node_of[operation.name] = node
        rank = len(layout.order)
        if rank == 3 and layout == Layout((0, 1, 2)):
            self.channels_last.add(operation.name)
        elif layout not in (MAP, Layout((0,))):
            self.layout_of[operation.name] = layout

    def layout(self, value: fx.Node) -> Layout:
        """How torch holds a value."""
        rank = len(shape_of(value))
        usual = MAP if rank == 3 and value.name not in self.channels_last else Layout(tuple(range(rank)))
        return self.layout_of.get(value.name, usual)

    def image_shape(self, value: fx.Node) -> tuple[int, ...]:
        """Shape of one image's value in torch's order; windows that torch merges with the batch are an axis."""
        return self.layout(value).of_image(value.meta["shape"])

    def in_order(self, value: fx.Node, order: tuple[int, ...]) -> str:
        """Name of the node that has a value in that order, see `Layout`; a Permute is added where it is needed."""
        layout, name = self.layout(value), self.input_name(value)
        if layout.order == order or len(set(order)) < 2:
            return name
        axes = tuple(layout.order[order.index(place)] for place in range(len(order)))
        before = self.nodes[name]
        if before.op == "transpose":  # two permutations are one
            axes, name = tuple(before.attributes["axes"][axis] for axis in axes), before.inputs[0]
        if axes == tuple(range(len(axes))):
            return name
        if (name, axes) not in self._moved:
            moved = replace(layout, order=order)
            self._moved[name, axes] = self.add(value, "transpose", [name], moved, {"axes": axes}, value=value)
        return self._moved[name, axes]

    def as_map(self, value: Any) -> None:
        """Bring a map that torch has moved, as in a pixel shuffle, into the order of all maps; others stay."""
        if not isinstance(value, fx.Node) or value.name not in self.node_of:
            return
        layout = self.layout(value)
        if len(layout.order) == 3 and replace(layout, order=MAP.order) == MAP:
            self.node_of[value.name] = self.in_order(value, MAP.order)
            self.layout_of.pop(value.name, None)
            self.channels_last.discard(value.name)

    def alias(self, operation: fx.Node, of: fx.Node, channels_last: bool | None = None) -> None:
        """Make `operation` the same value as `of`, in the same layout unless `channels_last` is given."""
        self.node_of[operation.name] = self.input_name(of)
        if of.name in self.layout_of:
            self.layout_of[operation.name] = self.layout_of[of.name]
        elif of.name in self.channels_last if channels_last is None else channels_last:
            self.channels_last.add(operation.name)

    def is_channels_last(self, value: fx.Node) -> bool:
        """Whether torch holds a value as (H, W, C)."""
        return value.name in self.channels_last

    def input_name(self, value: fx.Node) -> str:
        """Name of the node that a recorded value stands for."""
        return self.node_of[value.name]

    def replace_last(self, operation: fx.Node, node: Node, value: fx.Node) -> None:
        """Put `node` in the place of that of `value`, which has the same name and layout."""
        self.nodes[node.name] = node
        self.alias(operation, value)

    def weight_name(self, value: Any, in_its_shape: bool = False) -> str | None:
        """Name of the tensor of weights, trained or computed from such, that a value stands for; None for others.

        What is computed from weights is computed here, when something asks for it. With `in_its_shape`, so is a weight
        that the network sees in another shape than it has, and a constant counts as computed, from nothing.
        """
        if not isinstance(value, fx.Node):
            return None
        if "constant" in value.meta and value.name not in self.tensor_of and in_its_shape:
            array = value.meta["constant"].detach().float().cpu().numpy()
            self.tensor_of[value.name] = self._add_computed(array, Computed(()))
        seen = self.tensor_of.get(value.name)
        own = value.name not in self.of_weights  # not computed, and so not in its own shape already
        if in_its_shape and seen and own and self.tensor(seen).shape != value.meta["shape"]:
            del self.tensor_of[value.name]
            self.of_weights[value.name] = value
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
        start = f"{origin.sources[0]}.{'computed' if origin.trace_name else 'again'}" if origin.sources else "constant"
        name, number = start, 1
        while name in self.computed or name in self.recording.state:
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


def is_part(operation: fx.Node) -> bool:
    """Whether it takes one result of an operation that has several."""
    return operation.target is operator.getitem


# Adds the nodes of one recorded operation to the tracer, given the operation's arguments by name.
Converter = Callable[[Tracer, fx.Node, dict[str, Any]], None]

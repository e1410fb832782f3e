"""torch module -> neutral graph, through `torch.export`: by what the network computes, not by which network it is.

`CONVERTERS` is the whole knowledge: one short function for each ATen operation. Operations that only reshape or that
do nothing in inference become aliases of their input; an explicit padding in front of a convolution becomes part of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from export.graph import Graph, Node
from export.layer_names import plain_layer_name
from models.bad_input import BadInput

LayerNames = Callable[[Iterable[str]], dict[str, str]]


class NoKerasCounterpart(BadInput):
    """The network computes something that has no counterpart among the built-in Keras layers."""

    def __init__(self, operation: str, module_path: str, why: str = "") -> None:
        super().__init__(
            f"{operation} in module {module_path or '(root)'!r} has no counterpart here among Keras's built-in layers"
            f"{': ' + why if why else ''}. What can be converted is listed in export/trace.py; for other networks "
            "torch.onnx.export followed by onnx2tf gives a SavedModel or TFLite file, without the proof."
        )


def export_program(network: nn.Module, image_size: tuple[int, int]) -> ExportedProgram:
    """Trace a network in inference mode.

    Args:
        network: takes float (B, 3, H, W) and gives (B, C); is put into eval mode.
        image_size: (height, width) in pixels.

    Returns:
        The exported program for a batch of two (one would be specialised away by torch).
    """
    # The graph keeps the batch apart, so a fixed batch loses nothing and spares the symbolic shapes.
    parameter = next(network.parameters())
    photos = torch.zeros((2, 3, *image_size), dtype=parameter.dtype, device=parameter.device)
    return torch.export.export(network.eval(), (photos,))


def trace_graph(program: ExportedProgram, layer_names: LayerNames | None = None) -> Graph:
    """Turn an exported program into the neutral graph, with a softmax as its last node.

    Args:
        program: from `export_program`.
        layer_names: module paths -> layer names, for those it has a name for; others are named by their path.

    Raises:
        NoKerasCounterpart: for an operation that Keras's built-in layers do not have.
        ValueError: when a parameter of the network is used never or more than once.
    """
    return _Tracer(program, layer_names).graph()


def module_path(operation: fx.Node) -> str:
    """Path of the module in whose forward an operation of the traced program ran; empty for the root."""
    stack = operation.meta.get("nn_module_stack") or {}
    return str(list(stack.values())[-1][0]) if stack else ""


class _Tracer:
    """Walks the program once; knows which traced value is which node, tensor or constant."""

    def __init__(self, program: ExportedProgram, layer_names: LayerNames | None) -> None:
        self.program = program
        self.operations = [node for node in program.graph.nodes if node.op == "call_function"]
        paths = sorted({module_path(operation) for operation in self.operations})
        self.layer_names = layer_names(paths) if layer_names else {}
        self.nodes: dict[str, Node] = {}
        self.node_of: dict[str, str] = {}  # traced name -> node name
        signature = program.graph_signature
        self.tensor_of = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        self.constant_of = dict(signature.inputs_to_lifted_tensor_constants)

    def graph(self) -> Graph:
        for node in self.program.graph.nodes:
            if node.op == "placeholder" and node.name in self.program.graph_signature.user_inputs:
                self._append(Node("image", "input", (), _shape(node)), node.name)
            elif node.op == "call_function":
                self._convert(node)
            elif node.op == "output":
                (logits,) = node.args[0]
                last = self.nodes[self.node_of[logits.name]]
                self._append(Node("probabilities", "softmax", (last.name,), last.shape), "")
        tensors = {
            name: array.detach().cpu().numpy()
            for name, array in self.program.state_dict.items()
            if not name.endswith("num_batches_tracked")  # a counter for training; no part of the function
        }
        return Graph(tuple(self.nodes.values()), tensors)

    def _convert(self, operation: fx.Node) -> None:
        name = _operation_name(operation)
        converter = CONVERTERS.get(name.rstrip("_"))
        if converter is None:
            raise NoKerasCounterpart(name, module_path(operation))
        converter(self, operation, _arguments(operation))

    # What the converters call -------------------------------------------------------------------------------------

    def emit(
        self,
        operation: fx.Node,
        op: str,
        inputs: Iterable[fx.Node],
        attributes: dict[str, Any] | None = None,
        weights: dict[str, fx.Node | None] | None = None,
        shape: tuple[int, ...] | None = None,
    ) -> None:
        path = module_path(operation)
        node = Node(
            name=self._unique(self.layer_names.get(path) or plain_layer_name(path)),
            op=op,
            inputs=tuple(self.input_name(value) for value in inputs),
            shape=shape or _shape(operation),
            attributes=attributes or {},
            weights={role: self.tensor_of[value.name] for role, value in (weights or {}).items() if value is not None},
            source=path,
            trace_name=operation.name,
        )
        self._append(node, operation.name)

    def alias(self, operation: fx.Node, of: fx.Node) -> None:
        self.node_of[operation.name] = self.input_name(of)

    def input_name(self, value: fx.Node) -> str:
        return self.node_of[value.name]

    def replace_last(self, operation: fx.Node, node: Node) -> None:
        """Put `node` in the place of the last node of the same name."""
        self.nodes[node.name] = node
        self.node_of[operation.name] = node.name

    def constant(self, value: Any) -> np.ndarray | None:
        """Value of a constant (buffer outside the state dict, or a number); None for a computed value."""
        if isinstance(value, int | float):
            return np.asarray(value, dtype=np.float32)
        if not isinstance(value, fx.Node):
            return None
        name = self.constant_of.get(value.name) or self.tensor_of.get(value.name)
        if name is None or name in self.program.state_dict:
            return None
        constant = self.program.constants[name]
        return constant.detach().cpu().numpy() if isinstance(constant, Tensor) else None

    def _append(self, node: Node, trace_name: str) -> None:
        self.nodes[node.name] = node
        self.node_of[trace_name] = node.name

    def _unique(self, name: str) -> str:
        candidate, number = name, 0
        while candidate in self.nodes:
            number += 1
            candidate = f"{name}_{number}"
        return candidate


def _operation_name(operation: fx.Node) -> str:
    """``aten.add_`` for ``aten.add_.Tensor``."""
    return ".".join(str(operation.target).split(".")[:2])


def _shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(int(size) for size in node.meta["val"].shape[1:])


def _arguments(operation: fx.Node) -> dict[str, Any]:
    """All arguments of an ATen call by name, those left out with the schema's defaults."""
    schema = operation.target._schema.arguments  # type: ignore[union-attr]
    given = dict(zip((argument.name for argument in schema), operation.args, strict=False)) | operation.kwargs
    return {argument.name: given.get(argument.name, argument.default_value) for argument in schema}


def _pair(value: Any) -> tuple[int, int]:
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    return (values[0], values[0]) if len(values) == 1 else (values[0], values[1])


def _conv2d(tracer: _Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    rows, columns = _pair(given["padding"])
    padding = [rows, rows, columns, columns]
    source = given["input"]
    # timm's pad_type="same" and every explicit zero padding: part of the convolution, as TensorFlow's SAME is.
    if source.op == "call_function" and _operation_name(source) == "aten.pad" and len(source.users) == 1:
        before = _zero_padding(source)
        padding = [own + extra for own, extra in zip(padding, before, strict=True)]
        source = source.args[0]
    tracer.emit(
        operation,
        "conv2d",
        [source],
        {
            "strides": _pair(given["stride"]),
            "padding": tuple(padding),
            "dilation": _pair(given["dilation"]),
            "groups": int(given["groups"]),
        },
        {"kernel": given["weight"], "bias": given["bias"]},
    )


def _zero_padding(operation: fx.Node) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) of an `aten.pad`, whose own order is left, right, top, bottom."""
    given = _arguments(operation)
    left, right, top, bottom = (*given["pad"], 0, 0, 0, 0)[:4]
    if given["mode"] != "constant" or given["value"] not in (None, 0, 0.0) or min(given["pad"]) < 0:
        raise NoKerasCounterpart("aten.pad", module_path(operation), "only padding with zeros")
    return top, bottom, left, right


def _pad(tracer: _Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    # Nothing to emit: `_conv2d` takes it up. Any other reader is not offered yet.
    readers = {_operation_name(user) for user in operation.users}
    if readers != {"aten.conv2d"} or len(operation.users) != 1:
        raise NoKerasCounterpart("aten.pad", module_path(operation), f"read by {sorted(readers)}")


def _batch_norm(tracer: _Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    tracer.emit(
        operation,
        "batch_norm",
        [given["input"]],
        # torch's momentum is the weight of the new value, Keras's that of the old one
        {"epsilon": float(given["eps"]), "momentum": 1.0 - float(given["momentum"])},
        {
            "gamma": given["weight"],
            "beta": given["bias"],
            "moving_mean": given["running_mean"],
            "moving_variance": given["running_var"],
        },
    )


def _hardtanh(tracer: _Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    if float(given["min_val"]) != 0.0:
        raise NoKerasCounterpart("aten.hardtanh", module_path(operation), f"lower bound {given['min_val']}, not 0")
    tracer.emit(operation, "relu", [given["self"]], {"max_value": float(given["max_val"])})


def _relu(tracer: _Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    tracer.emit(operation, "relu", [given["self"]], {"max_value": None})


def _relu6(tracer: _Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    tracer.emit(operation, "relu", [given["self"]], {"max_value": 6.0})


def _add(tracer: _Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    if given["alpha"] != 1:
        raise NoKerasCounterpart("aten.add", module_path(operation), f"alpha {given['alpha']}")
    constant = tracer.constant(given["other"])
    if constant is None:
        tracer.emit(operation, "add", [given["self"], given["other"]])
        return
    offset = _per_channel(operation, constant)
    before = tracer.nodes[tracer.input_name(given["self"])]
    # x * scale, then + offset, in the same module: one affine node, which is what a Keras Rescaling computes.
    if (
        before.op == "affine"
        and before.source == module_path(operation)
        and not any(before.attributes["offset"])
        and len(given["self"].users) == 1
    ):
        attributes = {"scale": before.attributes["scale"], "offset": offset}
        fused = Node(before.name, "affine", before.inputs, before.shape, attributes, {}, before.source, operation.name)
        tracer.replace_last(operation, fused)
        return
    tracer.emit(operation, "affine", [given["self"]], {"scale": (1.0,) * len(offset), "offset": offset})


def _multiply(tracer: _Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    constant = tracer.constant(given["other"])
    if constant is None:
        raise NoKerasCounterpart("aten.mul", module_path(operation), "only by a constant for each channel")
    scale = _per_channel(operation, constant)
    tracer.emit(operation, "affine", [given["self"]], {"scale": scale, "offset": (0.0,) * len(scale)})


def _per_channel(operation: fx.Node, constant: np.ndarray) -> tuple[float, ...]:
    """A constant of shape (1, C, 1, 1), (C, 1, 1) or () as C floats, each the float32's exact value."""
    channels = _shape(operation)[0]
    shape = (1,) * (4 - constant.ndim) + constant.shape
    if shape not in ((1, channels, 1, 1), (1, 1, 1, 1)):
        raise NoKerasCounterpart(str(operation.target), module_path(operation), f"constant of shape {constant.shape}")
    return tuple(float(value) for value in np.broadcast_to(constant.reshape(-1), (channels,)))


def _adaptive_average_pool(tracer: _Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    if tuple(given["output_size"]) != (1, 1):
        raise NoKerasCounterpart("aten.adaptive_avg_pool2d", module_path(operation), f"to {given['output_size']}")
    tracer.emit(operation, "global_average_pool", [given["self"]], shape=_shape(operation)[:1])


def _flatten(tracer: _Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    before = tracer.nodes[tracer.input_name(given["self"])]
    if len(before.shape) != 1:
        # CHW and HWC flatten into different orders; without pooling first it would permute the dense weights
        raise NoKerasCounterpart("aten.flatten", module_path(operation), f"of unpooled shape {before.shape}")
    tracer.alias(operation, given["self"])


def _dropout(tracer: _Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    if given["p"]:
        tracer.emit(operation, "dropout", [given["input"]], {"rate": float(given["p"])})
    else:
        tracer.alias(operation, given["input"])


def _linear(tracer: _Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    if len(_shape(operation)) != 1:
        raise NoKerasCounterpart("aten.linear", module_path(operation), f"on shape {_shape(operation)}")
    tracer.emit(operation, "dense", [given["input"]], {}, {"kernel": given["weight"], "bias": given["bias"]})


# ATen operation -> converter. An in-place variant (trailing underscore) is looked up without its underscore:
# torch.export has made every later reader of the changed value read the operation's result.
CONVERTERS: dict[str, Callable[[_Tracer, fx.Node, dict[str, Any]], None]] = {
    "aten.conv2d": _conv2d,
    "aten.pad": _pad,
    "aten.batch_norm": _batch_norm,
    "aten.hardtanh": _hardtanh,
    "aten.relu": _relu,
    "aten.relu6": _relu6,
    "aten.add": _add,
    "aten.mul": _multiply,
    "aten.adaptive_avg_pool2d": _adaptive_average_pool,
    "aten.flatten": _flatten,
    "aten.dropout": _dropout,
    "aten.linear": _linear,
}

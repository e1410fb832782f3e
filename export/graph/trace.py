"""Recorded operations -> neutral graph. What counts is what a network computes, not its class.

All the knowledge is in `CONVERTERS`: one short function for each ATen operation. Operations that only reshape, or that
do nothing in inference, become aliases of their input. An explicit padding in front of a convolution becomes part of
it.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from torch import fx

from export.graph.layer_names import plain_layer_name
from export.graph.nodes import Graph, Node
from export.graph.record import Recording, module_path, operation_name, view_of_changed_value
from models.bad_input import BadInput

LayerNames = Callable[[Iterable[str]], dict[str, str]]


class NoKerasCounterpart(BadInput):
    """The network computes something that has no counterpart among the built-in Keras layers."""

    def __init__(self, operation: str, module_path: str, why: str = "") -> None:
        self.reason = f"{operation}{': ' + why if why else ''}"
        super().__init__(
            f"{operation} in module {module_path or '(root)'!r} has no counterpart here among Keras's built-in layers"
            f"{': ' + why if why else ''}. What can be converted is listed in export/graph/trace.py; for other "
            "networks torch.onnx.export followed by onnx2tf gives a SavedModel or TFLite file, without the proof."
        )


def trace_graph(recording: Recording, layer_names: LayerNames | None = None) -> Graph:
    """Turn a recorded forward pass into the neutral graph, with a softmax as its last node.

    Args:
        recording: from `record`.
        layer_names: module paths -> layer names; a layer that it does not name is named by its module path.

    Raises:
        NoKerasCounterpart: Keras's built-in layers do not have an operation, or a weight of the network is not used
            exactly once.
    """
    return _Tracer(recording, layer_names).graph()


def unknown_operations(recording: Recording) -> list[str]:
    """Names of the recorded operations that have no converter, such as ``aten.fft_rfft2``."""
    operations = [node for node in recording.graph.nodes if node.op == "call_function"]
    return sorted({operation_name(each.target) for each in operations if not _converter(each)})


class _Tracer:
    """Walks through the recording once; knows for each value which node, tensor or constant it is."""

    def __init__(self, recording: Recording, layer_names: LayerNames | None) -> None:
        self.recording = recording
        operations = [node for node in recording.graph.nodes if node.op == "call_function"]
        paths = sorted({module_path(operation) for operation in operations})
        self.layer_names = layer_names(paths) if layer_names else {}
        self.nodes: dict[str, Node] = {}
        self.node_of: dict[str, str] = {}  # recorded name -> node name
        self.channels_last: set[str] = set()  # recorded names of values that torch has permuted to (H, W, C)
        self.tensor_of: dict[str, str] = {}  # recorded name -> name in the state dict

    def graph(self) -> Graph:
        for node in self.recording.graph.nodes:
            if node.op == "placeholder":
                self.batch = node.meta["shape"][0]
                self._append(Node("image", "input", (), _shape(node)), node.name)
            elif node.op == "get_attr" and "constant" not in node.meta:
                self.tensor_of[node.name] = str(node.target)
            elif node.op == "call_function":
                self._convert(node)
            elif node.op == "output":
                (logits,) = node.all_input_nodes
                last = self.nodes[self.node_of[logits.name]]
                self._append(Node("probabilities", "softmax", (last.name,), last.shape), "")
        tensors = {
            name: array.detach().cpu().numpy()
            for name, array in self.recording.state.items()
            if not name.endswith("num_batches_tracked")  # a counter that only training uses
        }
        self._check_use(tensors)
        return Graph(tuple(self.nodes.values()), tensors)

    def _check_use(self, tensors: Iterable[str]) -> None:
        """Every tensor must be used exactly once: Keras trains and compares each array in the one layer that has it."""
        used = Counter(tensor for node in self.nodes.values() for tensor in node.weights.values())
        for tensor in tensors:
            if used[tensor] != 1:
                why = "is used in more than one place" if used[tensor] else "has no part in what is computed"
                module, _, name = tensor.rpartition(".")
                raise NoKerasCounterpart(f"weight {name}", module, f"it {why}")

    def _convert(self, operation: fx.Node) -> None:
        converter = _converter(operation)
        if operation.target is view_of_changed_value:
            why = "two values share memory, and one is read after the other was changed in place"
            raise NoKerasCounterpart(_operation_name(operation.args[0]), module_path(operation), why)  # type: ignore[arg-type]
        if converter is None:
            raise NoKerasCounterpart(_operation_name(operation), module_path(operation))
        if not operation.meta["computed"] and converter not in (_view, _same_value):
            raise _of_weights(operation)  # but a weight seen in another shape is still that weight
        if (
            operation.meta["computed"]
            and operation.meta["shape"][:1] != (self.batch,)
            and "results" not in operation.meta
        ):
            why = f"of shape {operation.meta['shape']}, which is not that of one value for each image"
            raise NoKerasCounterpart(_operation_name(operation), module_path(operation), why)
        try:
            converter(self, operation, _arguments(operation))
        except BadInput:
            raise
        except Exception as error:  # an overload, or a shape, that the converter does not expect
            why = f"in this form ({type(error).__name__}: {error})"
            raise NoKerasCounterpart(_operation_name(operation), module_path(operation), why) from error

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
        inputs = list(inputs)
        if not all(isinstance(value, fx.Node) and value.name in self.node_of for value in inputs):
            raise _of_weights(operation)
        for role, value in (weights or {}).items():
            if value is not None and value.name not in self.tensor_of:
                raise NoKerasCounterpart(
                    _operation_name(operation), module_path(operation), f"its {role} is not a weight"
                )
        layouts = {value.name in self.channels_last for value in inputs if len(_shape(value)) == 3}
        if len(layouts) > 1:
            raise NoKerasCounterpart(_operation_name(operation), module_path(operation), "of two layouts at once")
        channels_last = layouts == {True}
        path = module_path(operation)
        node = Node(
            name=self._unique(self.layer_names.get(path) or plain_layer_name(path)),
            op=op,
            inputs=tuple(self.input_name(value) for value in inputs),
            shape=shape or _channels_first(_shape(operation), channels_last and len(_shape(operation)) == 3),
            attributes=attributes or {},
            weights={role: self.tensor_of[value.name] for role, value in (weights or {}).items() if value is not None},
            source=path,
            trace_name=operation.name,
            trace_channels_last=channels_last,
        )
        self._append(node, operation.name)

        if channels_last:
            self.channels_last.add(operation.name)

    def alias(self, operation: fx.Node, of: fx.Node, channels_last: bool | None = None) -> None:
        """Make `operation` the same value as `of`, in the same layout unless `channels_last` is given."""
        self.node_of[operation.name] = self.input_name(of)
        if of.name in self.channels_last if channels_last is None else channels_last:
            self.channels_last.add(operation.name)

    def input_name(self, value: fx.Node) -> str:
        return self.node_of[value.name]

    def replace_last(self, operation: fx.Node, node: Node) -> None:
        """Put `node` in the place of the last node, which has the same name."""
        self.nodes[node.name] = node
        self.node_of[operation.name] = node.name

    def weight_name(self, value: Any) -> str | None:
        """Name of the trained tensor that a traced value stands for; None for everything else."""
        return self.tensor_of.get(value.name) if isinstance(value, fx.Node) else None

    def constant(self, value: Any) -> np.ndarray | None:
        """The constant that a value stands for (a tensor outside the state dict, or number); None if it is computed."""
        if isinstance(value, int | float):
            return np.asarray(value, dtype=np.float64)  # each side rounds a number to its own precision
        constant = value.meta.get("constant") if isinstance(value, fx.Node) else None
        return None if constant is None else constant.detach().cpu().numpy()

    def _append(self, node: Node, trace_name: str) -> None:
        self.nodes[node.name] = node
        self.node_of[trace_name] = node.name

    def _unique(self, name: str) -> str:
        candidate, number = name, 0
        while candidate in self.nodes:
            number += 1
            candidate = f"{name}_{number}"
        return candidate


def _of_weights(operation: fx.Node) -> NoKerasCounterpart:
    """Keras's layers take the outputs of layers, not weights or constants."""
    return NoKerasCounterpart(_operation_name(operation), module_path(operation), "of a weight or a constant")


def _operation_name(operation: fx.Node) -> str:
    return operation_name(operation.target)


def _shape(node: fx.Node) -> tuple[int, ...]:
    return node.meta["shape"][1:]


def _channels_first(shape: tuple[int, ...], channels_last: bool) -> tuple[int, ...]:
    return (shape[-1], *shape[:-1]) if channels_last else shape


def _arguments(operation: fx.Node) -> dict[str, Any]:
    """All arguments of an ATen call by name; those not given have the schema's default."""
    if _is_part(operation):
        return {"several": operation.args[0], "index": operation.args[1]}
    schema = operation.target._schema.arguments  # type: ignore[union-attr]
    given = dict(zip((argument.name for argument in schema), operation.args, strict=False)) | operation.kwargs
    return {argument.name: given.get(argument.name, argument.default_value) for argument in schema}


def _pair(value: Any) -> tuple[int, int]:
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    return (values[0], values[0]) if len(values) == 1 else (values[0], values[1])


def _conv2d(tracer: _Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    padding = _conv_padding(given)
    source = given["input"]
    # timm's pad_type="same" and any other explicit zero padding become part of the convolution, like TensorFlow's SAME
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


def _conv_padding(given: dict[str, Any]) -> list[int]:
    """Top, bottom, left, right of a convolution; ``same`` and ``valid`` as numbers (torch's same allows no stride)."""
    if given["padding"] == "valid":
        return [0, 0, 0, 0]
    if given["padding"] == "same":
        kernel, dilation = _shape(given["weight"])[-2:], _pair(given["dilation"])
        totals = [dilation[axis] * (kernel[axis] - 1) for axis in (0, 1)]
        return [part for total in totals for part in (total // 2, total - total // 2)]
    rows, columns = _pair(given["padding"])
    return [rows, rows, columns, columns]


def _zero_padding(operation: fx.Node) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) of an `aten.pad`, whose own order is left, right, top, bottom."""
    given = _arguments(operation)
    left, right, top, bottom = (*given["pad"], 0, 0, 0, 0)[:4]
    if given["mode"] != "constant" or given["value"] not in (None, 0, 0.0) or min(given["pad"]) < 0:
        raise NoKerasCounterpart("aten.pad", module_path(operation), "only padding with zeros")
    return top, bottom, left, right


def _pad(tracer: _Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    readers = [_operation_name(user) for user in operation.users]
    if readers != ["aten.conv2d"]:  # a convolution that is its only reader includes it, see `_conv2d`
        tracer.emit(operation, "pad", [given["self"]], {"padding": _zero_padding(operation)})


def _batch_norm(tracer: _Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    if given["training"]:
        raise NoKerasCounterpart("aten.batch_norm", module_path(operation), "by the statistics of the batch")
    tracer.emit(
        operation,
        "batch_norm",
        [given["input"]],
        # torch's momentum is the weight of the new value, Keras's momentum is that of the old one
        {"epsilon": float(given["eps"]), "momentum": 1.0 - float(given["momentum"])},
        {
            "gamma": given["weight"],
            "beta": given["bias"],
            "moving_mean": given["running_mean"],
            "moving_variance": given["running_var"],
        },
    )


def _layer_norm(tracer: _Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    source = given["input"]
    over_channels = len(given["normalized_shape"]) == 1 and (
        source.name in tracer.channels_last or len(_shape(source)) == 1
    )
    if not over_channels:
        raise NoKerasCounterpart("aten.layer_norm", module_path(operation), "only over the channels")
    weights = {"gamma": given["weight"], "beta": given["bias"]}
    tracer.emit(operation, "layer_norm", [source], {"epsilon": float(given["eps"])}, weights)


def _hardtanh(tracer: _Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    if float(given["min_val"]) != 0.0:
        raise NoKerasCounterpart("aten.hardtanh", module_path(operation), f"lower bound {given['min_val']}, not 0")
    tracer.emit(operation, "relu", [given["self"]], {"max_value": float(given["max_val"])})


def _leaky_relu(tracer: _Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    slope = float(given["negative_slope"])
    if not 0 <= slope <= 1:
        raise NoKerasCounterpart("aten.leaky_relu", module_path(operation), f"negative slope {slope}")
    tracer.emit(operation, "leaky_relu", [given["self"]], {"negative_slope": slope})


def _upsample(tracer: _Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    before, after = _shape(given["input"])[-2:], _shape(operation)[-2:]
    if any(large % small for small, large in zip(before, after, strict=True)):
        raise NoKerasCounterpart(_operation_name(operation), module_path(operation), f"from {before} to {after}")
    factors = (after[0] // before[0], after[1] // before[1])
    tracer.emit(operation, "upsample", [given["input"]], {"factors": factors})


def _several(tracer: _Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    """Split the channels. Each part that is used becomes a node where it is taken, see `_part`."""
    source = given["self"]
    channels = 3 if operation_layout(tracer, source) else 1
    if len(_shape(source)) != 3 or given["dim"] % 4 != channels:
        raise NoKerasCounterpart(
            _operation_name(operation), module_path(operation), f"along dimension {given['dim']}, not channels"
        )


def _part(tracer: _Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    several, index = given["several"], given["index"]
    if several.name in tracer.node_of:  # a node has one output: the first, as in a pooling with its places
        if index:
            raise NoKerasCounterpart(_operation_name(several), module_path(several), "more than its first result")
        tracer.alias(operation, several)
        return
    source, sizes = several.args[0], several.meta["results"]
    channels = 3 if operation_layout(tracer, source) else 1
    start = sum(size[channels] for size in sizes[:index])
    _take_channels(tracer, operation, source, start, start + sizes[index][channels])


def _slice(tracer: _Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    source, dim = given["self"], given["dim"] % (len(_shape(given["self"])) + 1)
    if _shape(operation) == _shape(source):
        tracer.alias(operation, source)
        return
    if len(_shape(source)) != 3 or dim != (3 if operation_layout(tracer, source) else 1) or given["step"] != 1:
        raise NoKerasCounterpart("aten.slice", module_path(operation), f"along dimension {given['dim']}, not channels")
    channels = _shape(source)[dim - 1]
    start, stop, _ = slice(given["start"], given["end"]).indices(channels)
    _take_channels(tracer, operation, source, start, stop)


def _take_channels(tracer: _Tracer, operation: fx.Node, source: fx.Node, start: int, stop: int) -> None:
    tracer.emit(operation, "slice_channels", [source], {"start": start, "stop": stop})


def _subtract(tracer: _Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    if given["alpha"] != 1 or tracer.constant(given["other"]) is not None or tracer.constant(given["self"]) is not None:
        raise NoKerasCounterpart("aten.sub", module_path(operation), "of constants")
    tracer.emit(operation, "subtract", [given["self"], given["other"]])


def _simple(op: str, **attributes: Any) -> Converter:
    """Converter of an operation with one input and fixed attributes."""

    def convert(tracer: _Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
        tracer.emit(operation, op, [operation.args[0]], attributes)  # type: ignore[list-item]

    return convert


def _gelu(tracer: _Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    if given["approximate"] != "none":
        raise NoKerasCounterpart("aten.gelu", module_path(operation), f"approximated by {given['approximate']}")
    tracer.emit(operation, "activation", [given["self"]], {"function": "gelu"})


def _add(tracer: _Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    if given["alpha"] != 1:
        raise NoKerasCounterpart("aten.add", module_path(operation), f"alpha {given['alpha']}")
    value, other = given["self"], given["other"]
    if tracer.constant(value) is not None:
        value, other = other, value
    constant = tracer.constant(other)
    if constant is None:
        tracer.emit(operation, "add", [value, other])
        return
    offset = _per_channel(operation, constant)
    before = tracer.nodes[tracer.input_name(value)]
    # x * scale followed by + offset in the same module becomes one affine node, as a Keras Rescaling computes it.
    if (
        before.op == "affine"
        and before.source == module_path(operation)
        and not any(before.attributes["offset"])
        and len(value.users) == 1
    ):
        attributes = {"scale": before.attributes["scale"], "offset": offset}
        fused = Node(before.name, "affine", before.inputs, before.shape, attributes, {}, before.source, operation.name)
        tracer.replace_last(operation, fused)
        return
    tracer.emit(operation, "affine", [value], {"scale": (1.0,) * len(offset), "offset": offset})


def _multiply(tracer: _Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    value, other = given["self"], given["other"]
    if tracer.weight_name(value) is not None or tracer.constant(value) is not None:
        value, other = other, value
    weight = tracer.weight_name(other)
    constant = tracer.constant(other)
    if weight is not None:
        channels = _channels_first(_shape(operation), operation_layout(tracer, value))[0]
        size = tracer.recording.state[weight].numel()
        if size != channels:
            raise NoKerasCounterpart(
                "aten.mul", module_path(operation), f"by a weight of {size} for {channels} channels"
            )
        tracer.emit(operation, "channel_scale", [value], {}, {"scale": other})
    elif constant is not None:
        scale = _per_channel(operation, constant)
        tracer.emit(operation, "affine", [value], {"scale": scale, "offset": (0.0,) * len(scale)})
    else:
        tracer.emit(operation, "multiply", [value, other])


def operation_layout(tracer: _Tracer, value: fx.Node) -> bool:
    """Whether torch holds a value as (H, W, C)."""
    return value.name in tracer.channels_last


def _per_channel(operation: fx.Node, constant: np.ndarray) -> tuple[float, ...]:
    """A constant of shape (1, C, 1, 1), (C, 1, 1) or () as C floats, without rounding."""
    channels = _shape(operation)[0]
    shape = (1,) * (4 - constant.ndim) + constant.shape
    if shape not in ((1, channels, 1, 1), (1, 1, 1, 1)):
        raise NoKerasCounterpart(str(operation.target), module_path(operation), f"constant of shape {constant.shape}")
    return tuple(float(value) for value in np.broadcast_to(constant.reshape(-1), (channels,)))


def _adaptive_pool(op: str) -> Converter:
    def convert(tracer: _Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
        size, places = tuple(given["output_size"]), _shape(given["self"])[-2:]
        if size == (1, 1):
            _global_pool(tracer, operation, op)
        elif size == places:  # each place is pooled alone, as in a VGG at its own size
            tracer.alias(operation, given["self"])
        else:
            why = f"from {list(places)} to {list(size)}"
            raise NoKerasCounterpart(_operation_name(operation), module_path(operation), why)

    return convert


def _mean(tracer: _Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    source = given["self"]
    places = (1, 2) if operation_layout(tracer, source) else (2, 3)
    if sorted(axis % 4 for axis in given["dim"] or ()) != list(places) or len(_shape(source)) != 3:
        raise NoKerasCounterpart("aten.mean", module_path(operation), f"over dimensions {given['dim']}")
    _global_pool(tracer, operation, "global_average_pool")


def _global_pool(tracer: _Tracer, operation: fx.Node, op: str) -> None:
    """Keep the two dimensions of size 1 only where something other than a flatten reads them."""
    readers = [reader for user in operation.users for reader in (user.users if _is_part(user) else (user,))]
    keep = len(_shape(operation)) == 3 and any(_operation_name(reader) != "aten.flatten" for reader in readers)
    source = operation.args[0]
    shape = _channels_first(_shape(operation), operation_layout(tracer, source))  # type: ignore[arg-type]
    tracer.emit(operation, op, [source], {"keep_dimensions": keep}, shape=shape if keep else shape[:1])  # type: ignore[list-item]


def _is_part(operation: fx.Node) -> bool:
    return operation.target is operator.getitem


def _max_pool(tracer: _Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    if _pair(given["dilation"]) != (1, 1):
        raise NoKerasCounterpart("aten.max_pool2d", module_path(operation), f"with dilation {given['dilation']}")
    tracer.emit(operation, "max_pool", [given["self"]], _window(operation, given))


def _average_pool(tracer: _Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    if given["divisor_override"] is not None:
        raise NoKerasCounterpart("aten.avg_pool2d", module_path(operation), "with a divisor of its own")
    window = _window(operation, given)
    tracer.emit(
        operation, "average_pool", [given["self"]], {**window, "count_padding": bool(given["count_include_pad"])}
    )


def _window(operation: fx.Node, given: dict[str, Any]) -> dict[str, Any]:
    """Kernel, strides and padding of a pooling; with `ceil_mode`, the end is padded for the window that sticks out."""
    kernel, strides = _pair(given["kernel_size"]), _pair(given["stride"] or given["kernel_size"])
    rows, columns = _pair(given["padding"])
    padding = [rows, rows, columns, columns]
    if given["ceil_mode"]:
        size, result = _shape(given["self"])[-2:], _shape(operation)[-2:]
        for axis in (0, 1):
            covered = (result[axis] - 1) * strides[axis] + kernel[axis]
            padding[2 * axis + 1] = max(covered - size[axis] - padding[2 * axis], 0)
    return {"kernel": kernel, "strides": strides, "padding": tuple(padding)}


def _concatenate(tracer: _Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    values = list(given["tensors"])
    if len(values) == 1:  # as in the first layer of a DenseNet's block; Keras's Concatenate needs two or more
        tracer.alias(operation, values[0])
        return
    channels = len(_shape(operation)) if operation_layout(tracer, values[0]) else 1
    if given["dim"] % (len(_shape(operation)) + 1) != channels:
        raise NoKerasCounterpart("aten.cat", module_path(operation), f"along dimension {given['dim']}, not channels")
    tracer.emit(operation, "concatenate", values)


def _permute(tracer: _Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    source, dims = given["self"], [axis % 4 for axis in given["dims"]]
    was_last = operation_layout(tracer, source)
    if (dims, was_last) == ([0, 2, 3, 1], False):
        tracer.alias(operation, source, channels_last=True)
    elif (dims, was_last) == ([0, 3, 1, 2], True):
        tracer.alias(operation, source, channels_last=False)
    else:
        raise NoKerasCounterpart("aten.permute", module_path(operation), f"to {given['dims']}")


def _same_value(tracer: _Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    source = operation.args[0]
    assert isinstance(source, fx.Node)
    if tracer.weight_name(source) is not None:
        tracer.tensor_of[operation.name] = tracer.tensor_of[source.name]
    else:
        tracer.alias(operation, source)


def _view(tracer: _Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    """A weight seen in another shape is the same weight; a pooled value may lose its dimensions of size 1."""
    if operation.meta["computed"]:
        _flatten(tracer, operation, {"self": operation.args[0]})
    else:
        _same_value(tracer, operation, given)


def _flatten(tracer: _Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    before = tracer.nodes[tracer.input_name(given["self"])]
    if _shape(operation) != before.shape[:1] or before.shape[1:] not in ((), (1, 1)):
        # CHW and HWC flatten in different orders, so without pooling first the dense weights would have to be permuted
        raise NoKerasCounterpart(
            _operation_name(operation), module_path(operation), f"of unpooled shape {before.shape}"
        )
    if len(before.shape) == 1:
        tracer.alias(operation, given["self"], channels_last=False)
    else:
        tracer.emit(operation, "flatten", [given["self"]])
        tracer.channels_last.discard(operation.name)


def _dropout(tracer: _Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    source = operation.args[0]  # `input`, or `self` of the one in place
    if given["train"]:
        raise NoKerasCounterpart(_operation_name(operation), module_path(operation), "that is on in inference, too")
    if given["p"]:
        tracer.emit(operation, "dropout", [source], {"rate": float(given["p"])})  # type: ignore[list-item]
    else:
        tracer.alias(operation, source)  # type: ignore[arg-type]


def _linear(tracer: _Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    source = given["input"]
    if len(_shape(source)) != 1 and not operation_layout(tracer, source):
        raise NoKerasCounterpart("aten.linear", module_path(operation), f"on shape {_shape(source)}, not on channels")
    tracer.emit(operation, "dense", [source], {}, {"kernel": given["weight"], "bias": given["bias"]})


Converter = Callable[[_Tracer, fx.Node, dict[str, Any]], None]
# ATen operation -> converter. An in-place variant (trailing underscore) is looked up without its underscore: in the
# recording all later readers of the changed value already read the operation's result.
CONVERTERS: dict[str, Converter] = {
    "aten.conv2d": _conv2d,
    "aten.pad": _pad,
    "aten.batch_norm": _batch_norm,
    "aten.layer_norm": _layer_norm,
    "aten.hardtanh": _hardtanh,
    "aten.relu": _simple("relu", max_value=None),
    "aten.relu6": _simple("relu", max_value=6.0),
    "aten.silu": _simple("activation", function="silu"),
    "aten.sigmoid": _simple("activation", function="sigmoid"),
    "aten.tanh": _simple("activation", function="tanh"),
    "aten.gelu": _gelu,
    "aten.leaky_relu": _leaky_relu,
    "aten.mish": _simple("mish"),
    "aten.upsample_nearest2d": _upsample,
    "aten.split": _several,
    "aten.split_with_sizes": _several,
    "aten.chunk": _several,
    "getitem": _part,
    "aten.slice": _slice,
    "aten.sub": _subtract,
    "aten.hardswish": _simple("hard_swish"),
    "aten.hardsigmoid": _simple("hard_sigmoid"),
    "aten.add": _add,
    "aten.mul": _multiply,
    "aten.cat": _concatenate,
    "aten.mean": _mean,
    "aten.max_pool2d": _max_pool,
    "aten.avg_pool2d": _average_pool,
    "aten.adaptive_avg_pool2d": _adaptive_pool("global_average_pool"),
    "aten.adaptive_max_pool2d": _adaptive_pool("global_max_pool"),
    "aten.permute": _permute,
    "aten.flatten": _flatten,
    "aten.view": _view,
    "aten.reshape": _view,
    "aten.alias": _same_value,
    "aten.detach": _same_value,
    "aten.contiguous": _same_value,
    "aten.clone": _same_value,
    "aten.dropout": _dropout,
    "aten.linear": _linear,
}


def _converter(operation: fx.Node) -> Converter | None:
    """The converter of an operation; one without a row that gave its input back, as ``x.float()`` does, is no more."""
    known = CONVERTERS.get(_operation_name(operation).rstrip("_"))
    return known or (_same_value if operation.meta.get("unchanged") else None)

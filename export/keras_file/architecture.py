"""Keras architecture -> neutral graph: the opposite direction of `layers.py`, for files saved by any Keras 2 or 3.

A model may contain other models as layers (`keras.applications` as a base), may be Functional or Sequential, and may
name its layers freely. The result is one flat graph in which everything is explicit: SAME becomes numbers of pixels,
and an activation inside a Dense becomes a node. Nothing is run, and code in the file is not looked at: a layer class
that is not in `_READERS` is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from export.graph.nodes import Graph, Node
from export.keras_file.layers import same_padding
from export.keras_file.read import KerasFile
from export.worker.keras_worker import AUGMENTATION
from models.bad_input import BadInput

# Advice for a file that contradicts itself, and for a model that has no counterpart here.
DAMAGED = "The file is damaged or was edited: save or export it again."
REBUILD = (
    "Rebuild the model as keras.applications.MobileNetV2 with pooling and dense layers, "
    "set_weights(old.get_weights()), and save that."
)

# Layers that leave their input unchanged when a photo is classified.
WITHOUT_EFFECT = ("Dropout", "Flatten", "Reshape", *AUGMENTATION)

_MODELS = ("Functional", "Model", "Sequential")
# No classifier that we know has more layers than this; a file that claims more is not read.
_MOST_LAYERS = 5000
_DEEPEST_NESTING = 8


@dataclass(frozen=True)
class FlatLayer:
    """A layer, taken out of the models that contain it.

    Attributes:
        path: the names of the models that contain it (except the outermost, the file's own), then its own name.
        class_name: Keras's.
        config: its constructor's arguments.
        inputs: keys of the layers that it reads.
    """

    path: tuple[str, ...]
    class_name: str
    config: dict[str, Any]
    inputs: tuple[str, ...]

    @property
    def key(self) -> str:
        """The path as one string, unique in the file."""
        return "/".join(self.path)


@dataclass(frozen=True)
class KerasGraph:
    """What a Keras file computes.

    Attributes:
        graph: neutral graph, NCHW like every graph; nodes are named by layer key, tensors by ``KEY/role``.
        layers: by key, in the order of computation.
        rates: the rate of each Dropout, by its key.
        augmentation: keys of the layers that change photos in training and do nothing when a photo is classified.
        outputs: layer key -> the node that computes its output.
        fed_by: path of a nested model -> key of the layer whose output it is fed, None if it is fed the images; in
            the order of computation.
    """

    graph: Graph
    layers: dict[str, FlatLayer]
    rates: dict[str, float]
    augmentation: list[str]
    outputs: dict[str, str]
    fed_by: dict[tuple[str, ...], str | None] = field(default_factory=dict)


def read_keras_graph(file: KerasFile, image_size: tuple[int, int] | None = None) -> KerasGraph:
    """Translate a file's architecture and weights.

    Args:
        file: from `read_keras_h5`.
        image_size: (height, width) to use if the file leaves it open; None: the file must state it.

    Raises:
        BadInput: a layer or setting has no counterpart here, the weights do not belong to the layers, or the input has
            another shape. The message names the layer.
    """
    try:
        layers, fed_by = _flatten(file.config)
        return _Reader(layers, _weights_by_layer(file, layers), image_size, fed_by).read()
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, RecursionError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(
            f"expected the architecture of a Keras model, got one that cannot be read ({type(error).__name__}: "
            f"{str(error)[:120]}). {DAMAGED}"
        ) from error


# Flattening -----------------------------------------------------------------------------------------------------------


def _flatten(model: dict[str, Any]) -> tuple[dict[str, FlatLayer], dict[tuple[str, ...], str | None]]:
    """All layers by key, in the order of computation, and what each nested model is fed."""
    if model["class_name"] not in _MODELS:
        raise _refused(("model",), model["class_name"])
    flattener = _Flattener()
    flattener.add_model(model["config"], (), None, model["class_name"])
    return flattener.layers, flattener.fed_by


class _Flattener:
    def __init__(self) -> None:
        self.layers: dict[str, FlatLayer] = {}
        self.fed_by: dict[tuple[str, ...], str | None] = {}

    def add_model(self, config: dict[str, Any], path: tuple[str, ...], fed: str | None, class_name: str) -> str:
        """Add a model's layers and return the key of its output; `fed` is the key of its input, None if outermost."""
        if len(path) > _DEEPEST_NESTING or len(config["layers"]) + len(self.layers) > _MOST_LAYERS:
            raise BadInput(
                f"{'/'.join(path)}: expected a classifier, got models nested or layers too many to be one. {REBUILD}"
            )
        given = config["layers"]
        names = [_name(layer) for layer in given]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise BadInput(f"expected each layer's name once in a model, got {', '.join(repeated)} twice. {DAMAGED}")
        if class_name == "Sequential":
            reads = {name: names[max(index - 1, 0) : index] for index, name in enumerate(names)}
            first, last = names[0], names[-1]
        else:
            reads = {name: _inbound(layer, name) for name, layer in zip(names, given, strict=True)}
            first, last = _only(config["input_layers"], "input"), _only(config["output_layers"], "output")
        unknown = sorted({name for inputs in reads.values() for name in inputs} - set(names))
        if unknown or first not in names or last not in names:
            raise BadInput(
                f"expected layers that read layers of the same model, got {', '.join(unknown) or first}. {DAMAGED}"
            )
        output: dict[str, str] = {}  # layer name -> key of what computes its output
        order = _ordered(reads, last)
        for name in order:
            layer = given[names.index(name)]
            kind, inputs = layer["class_name"], [output[each] for each in reads[name]]
            output[name] = self._add(layer, kind, (*path, name), inputs, fed if name == first else None)
        unread = [name for name in names if name not in order]
        if unread:
            raise BadInput(
                f"expected every layer on the way from the input to the predictions, got {unread[0]!r} aside of it. "
                "Save the model without it."
            )
        return output[last]

    def _add(self, layer: dict[str, Any], kind: str, path: tuple[str, ...], inputs: list[str], fed: str | None) -> str:
        key = "/".join(path)
        if kind in _MODELS:
            inside = inputs[0] if inputs else fed
            if len(inputs) > 1:
                raise BadInput(f"{key}: expected a nested model with one input, got {len(inputs)}. {REBUILD}")
            self.fed_by[path] = inside
            return self.add_model(layer["config"], path, inside, kind)
        if kind == "InputLayer" and fed is not None:
            return fed  # the input of a nested model is whatever it is called with
        if not inputs and fed is not None:
            inputs = [fed]  # a nested Sequential without an InputLayer
        self.layers[key] = FlatLayer(path, kind, layer["config"], tuple(inputs))
        return key


def _name(layer: dict[str, Any]) -> str:
    name = layer.get("name") or layer["config"]["name"]
    if not isinstance(name, str):
        raise BadInput(f"expected layers with names, got {str(name)[:40]!r}. {DAMAGED}")
    return name


def _only(ends: Any, what: str) -> str:
    """The single name in ``[["x", 0, 0]]`` (Keras 2) or ``["x", 0, 0]`` (Keras 3)."""
    if isinstance(ends, list) and len(ends) == 1 and isinstance(ends[0], list):
        ends = ends[0]
    if not (isinstance(ends, list) and len(ends) == 3 and isinstance(ends[0], str)):
        raise BadInput(
            f"expected a model with one {what}, got {str(ends)[:80]}: only classifiers of one photo fit here. "
            "Save keras.Model(model.inputs[0], model.outputs[0])."
        )
    return ends[0]


def _inbound(layer: dict[str, Any], name: str) -> list[str]:
    """Names of the layers that a layer reads; Keras 2 and Keras 3 store them differently."""
    calls = layer.get("inbound_nodes") or []
    if len(calls) > 1:
        raise BadInput(
            f"{name}: expected a layer that is called once, got {len(calls)} calls: its weights are shared. {REBUILD}"
        )
    if not calls:
        return []
    call = calls[0]
    if isinstance(call, dict):
        read, options = _histories(call["args"]), [call.get("kwargs") or {}]
    else:
        each_input = call if call and isinstance(call[0], list) else [call]
        read, options = [each[0] for each in each_input], [option for each in each_input for option in each[3:]]
    if any(option.get("training") is True for option in options):
        raise BadInput(
            f"{name}: expected a layer that predicts when a photo is classified, got one called with training=True: "
            f"what it gives is left to chance, or to the other photos of the batch. {REBUILD}"
        )
    return read


def _histories(argument: Any) -> list[str]:
    if isinstance(argument, dict) and argument.get("class_name") == "__keras_tensor__":
        return [argument["config"]["keras_history"][0]]
    return [name for each in argument for name in _histories(each)] if isinstance(argument, list) else []


def _ordered(reads: dict[str, list[str]], last: str) -> list[str]:
    """Names of the layers that the last one depends on, each after those that it reads."""
    done: dict[str, None] = {}
    open_: set[str] = set()
    stack = [last]
    while stack:
        name = stack[-1]
        waiting = [each for each in reads[name] if each not in done]
        if name in done or not waiting:
            done[name] = None
            open_.discard(name)
            stack.pop()
        elif name in open_:
            raise BadInput(f"{name}: expected layers in one direction, got a circle. {DAMAGED}")
        else:
            open_.add(name)
            stack.extend(waiting)
    return list(done)


# Weights --------------------------------------------------------------------------------------------------------------


def _weights_by_layer(file: KerasFile, layers: dict[str, FlatLayer]) -> dict[str, dict[str, np.ndarray]]:
    """Layer key -> role -> array. A nested model's weights are all in one group; their names tell which is whose.

    Keras loads by order and this code by name; if the two ever differed, the comparison with Keras would show it.
    """
    found: dict[str, dict[str, np.ndarray]] = {key: {} for key in layers}
    for group, arrays in file.weights.items():
        for weight, array in zip(file.weight_names[group], arrays, strict=True):
            parts = weight.partition(":")[0].split("/")
            key = group if group in layers else _nested_key(layers, group, parts)
            role = {"depthwise_kernel": "kernel"}.get(parts[-1], parts[-1])
            if key is None or role in found[key]:
                what = "belongs to no layer of the architecture" if key is None else "is there twice"
                raise BadInput(
                    f"{group}/{weight}: expected each array to belong to one layer, got one that {what}. {DAMAGED}"
                )
            found[key][role] = array
    return found


def _nested_key(layers: dict[str, FlatLayer], group: str, parts: list[str]) -> str | None:
    inside = [
        key
        for key, layer in layers.items()
        if layer.path[0] == group and len(parts) > 1 and layer.path[-1] == parts[-2]
    ]
    return inside[0] if len(inside) == 1 else None


# Layers to nodes ------------------------------------------------------------------------------------------------------


def _refused(path: tuple[str, ...], class_name: str, why: str = "") -> BadInput:
    name = "/".join(path)
    if class_name in ("Lambda", "TFOpLambda", "SlicingOpLambda") or class_name in _OPERATIONS:
        why = why or (
            "code, or a bare operation such as preprocess_input leaves behind. Rebuild the model with a "
            "Rescaling(1 / 127.5, offset=-1) layer in its place, set_weights(old.get_weights()), and save that"
        )
    return BadInput(
        f"{name}: expected a layer of a MobileNetV2 classifier, got {class_name}{': ' if why else ''}{why}. "
        f"Layers that are read: {', '.join(sorted(_READERS))}.{'' if why else f' {REBUILD}'}"
    )


# Keras 3's names for bare operations such as `x / 127.5`.
_OPERATIONS = ("TrueDivide", "Divide", "Subtract", "Multiply", "GetItem", "NotEqual")


class _Reader:
    """Emits the nodes, layer by layer, and keeps track of their shapes."""

    def __init__(
        self,
        layers: dict[str, FlatLayer],
        weights: dict[str, dict[str, np.ndarray]],
        image_size: tuple[int, int] | None,
        fed_by: dict[tuple[str, ...], str | None],
    ) -> None:
        self.layers, self.weights, self.image_size, self.fed_by = layers, weights, image_size, fed_by
        self.nodes: dict[str, Node] = {}
        self.node_of: dict[str, str] = {}  # layer key -> name of the node that is its output
        self.tensors: dict[str, np.ndarray] = {}
        self.rates: dict[str, float] = {}
        self.augmentation: list[str] = []

    def read(self) -> KerasGraph:
        for key, layer in self.layers.items():
            reader = _READERS.get(layer.class_name)
            if reader is None:
                raise _refused(layer.path, layer.class_name)
            _check_dtype(layer)
            reader(self, layer)
            if self.weights[key]:
                left = ", ".join(sorted(self.weights[key]))
                raise BadInput(f"{key}: expected weights that a {layer.class_name} has, got {left} besides. {DAMAGED}")
        graph = Graph(_fold_padding(self.nodes), self.tensors)
        return KerasGraph(graph, self.layers, self.rates, self.augmentation, self.node_of, self.fed_by)

    def before(self, layer: FlatLayer, count: int = 1) -> list[Node]:
        """The nodes that a layer reads; refused if there are not `count` of them."""
        if len(layer.inputs) != count:
            raise BadInput(
                f"{layer.key}: expected a {layer.class_name} of {count} inputs, got {len(layer.inputs)}. {REBUILD}"
            )
        return [self.nodes[self.node_of[key]] for key in layer.inputs]

    def emit(
        self,
        layer: FlatLayer,
        op: str,
        shape: tuple[int, ...],
        attributes: dict[str, Any] | None = None,
        weights: dict[str, np.ndarray] | None = None,
        inputs: list[Node] | None = None,
        suffix: str = "",
    ) -> Node:
        """Add a node; `weights` must be in torch's layout."""
        before = self.before(layer) if inputs is None else inputs
        name = layer.key + suffix
        for role, array in (weights or {}).items():
            self.tensors[f"{name}/{role}"] = np.ascontiguousarray(array)
        roles = {role: f"{name}/{role}" for role in weights or {}}
        node = Node(name, op, tuple(each.name for each in before), shape, attributes or {}, roles, source=layer.key)
        self.nodes[name], self.node_of[layer.key] = node, name
        return node

    def take(self, layer: FlatLayer, role: str, shape: tuple[int, ...]) -> np.ndarray:
        """Take one of the layer's arrays; each can be taken only once."""
        array = self.weights[layer.key].pop(role, None)
        if array is None:
            raise BadInput(f"{layer.key}: expected {role} of shape {shape}, got a file without it. {DAMAGED}")
        if array.shape != shape or array.dtype != np.float32:
            raise BadInput(
                f"{layer.key}/{role}: expected float32 {shape}, got {array.dtype} {array.shape}: the weights do not "
                "fit the architecture, or were saved in another precision. Save the model again, in float32."
            )
        return array


def _check_dtype(layer: FlatLayer) -> None:
    dtype = layer.config.get("dtype", "float32")
    if isinstance(dtype, dict):
        dtype = dtype["config"]["name"]
    if dtype not in ("float32", None):
        raise BadInput(f"{layer.key}: expected a layer that computes in float32, got {dtype}. Save it in float32.")


def _expect(layer: FlatLayer, **allowed: tuple[Any, ...]) -> None:
    """Refuse a setting with a value that is not allowed. The first allowed value is Keras's default."""
    for name, values in allowed.items():
        value = layer.config.get(name, values[0])
        value = tuple(value) if isinstance(value, list) else value
        if value not in values:
            shown = " or ".join(map(str, values))
            raise BadInput(f"{layer.key}: expected a {layer.class_name} with {name} {shown}, got {value}. {REBUILD}")


def _whole(value: Any, layer: FlatLayer, what: str, lowest: int = 1) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= 1 << 16:
        raise BadInput(
            f"{layer.key}: expected {what} as a whole number from {lowest}, got {str(value)[:40]}. {DAMAGED}"
        )
    return value


def _two(value: Any, layer: FlatLayer, what: str) -> tuple[int, int]:
    values = list(value) if isinstance(value, list | tuple) else [value, value]
    if len(values) != 2:
        raise BadInput(f"{layer.key}: expected {what} for height and width, got {str(value)[:40]}. {DAMAGED}")
    return _whole(values[0], layer, what), _whole(values[1], layer, what)


def _number(value: Any, layer: FlatLayer, what: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not np.isfinite(value):
        raise BadInput(f"{layer.key}: expected {what} as a finite number, got {str(value)[:40]}. {DAMAGED}")
    return float(value)


def _image(node: Node, layer: FlatLayer) -> tuple[int, int, int]:
    if len(node.shape) != 3:
        raise BadInput(f"{layer.key}: expected a {layer.class_name} on images, got it on shape {node.shape}. {REBUILD}")
    return node.shape[0], node.shape[1], node.shape[2]


def _input(reader: _Reader, layer: FlatLayer) -> None:
    if reader.nodes:
        raise BadInput(f"{layer.key}: expected a model with one input, got another. {REBUILD}")
    shape = layer.config.get("batch_input_shape") or layer.config.get("batch_shape")
    if not (isinstance(shape, list) and len(shape) == 4 and shape[3] == 3):
        raise BadInput(f"{layer.key}: expected an input of shape [None, height, width, 3], got {shape}. {REBUILD}")
    given = reader.image_size or (None, None)
    sides = [own if own is not None else size for own, size in zip(shape[1:3], given, strict=True)]
    if None in sides:
        raise BadInput(f"{layer.key}: expected a size, got an input of shape {shape}. Give it with --image_size H,W.")
    if reader.image_size and tuple(sides) != tuple(reader.image_size):
        raise BadInput(f"--image_size {reader.image_size}: expected the file's own {tuple(sides)}. Leave it out.")
    height, width = (_whole(side, layer, "the image's size") for side in sides)
    reader.emit(layer, "input", (3, height, width), inputs=[])


def _per_channel(value: Any, layer: FlatLayer, what: str) -> list[float]:
    values = np.asarray(value, np.float64).reshape(-1)
    if values.size not in (1, 3) or not np.isfinite(values).all():
        raise BadInput(f"{layer.key}: expected {what} as one finite number or three, got {str(value)[:80]}. {REBUILD}")
    return [float(each) for each in np.broadcast_to(values, 3)]


def _rescaling(reader: _Reader, layer: FlatLayer) -> None:
    (before,) = reader.before(layer)
    scale = _per_channel(layer.config["scale"], layer, "scale")
    offset = _per_channel(layer.config.get("offset", 0.0), layer, "offset")
    reader.emit(layer, "affine", before.shape, {"scale": scale, "offset": offset})


def _normalization(reader: _Reader, layer: FlatLayer) -> None:
    """Keras's Normalization: (x - mean) / max(sqrt(variance), 1e-7)."""
    (before,) = reader.before(layer)
    _expect(layer, axis=(-1, 3, (-1,), (3,)), invert=(False,))
    own = reader.weights[layer.key]
    if own:
        mean, variance = reader.take(layer, "mean", (3,)), reader.take(layer, "variance", (3,))
        own.pop("count", None)  # how many photos the layer was adapted to; the result does not depend on it
    else:
        mean, variance = layer.config["mean"], layer.config["variance"]
    means, variances = _per_channel(mean, layer, "mean"), _per_channel(variance, layer, "variance")
    scale = [1.0 / max(float(np.sqrt(max(each, 0.0))), 1e-7) for each in variances]
    offset = [-each * factor for each, factor in zip(means, scale, strict=True)]
    reader.emit(layer, "affine", before.shape, {"scale": scale, "offset": offset})


def _convolution(reader: _Reader, layer: FlatLayer) -> None:
    (before,) = reader.before(layer)
    channels, *size = _image(before, layer)
    _expect(layer, data_format=("channels_last", None), padding=("valid", "same"), depth_multiplier=(1,))
    kernel = _two(layer.config["kernel_size"], layer, "kernel_size")
    strides = _two(layer.config.get("strides", 1), layer, "strides")
    dilation = _two(layer.config.get("dilation_rate", 1), layer, "dilation_rate")
    padding = (0, 0, 0, 0)
    if layer.config.get("padding") == "same":
        sides = [same_padding(size[axis], kernel[axis], strides[axis], dilation[axis]) for axis in (0, 1)]
        padding = (*sides[0], *sides[1])
    if layer.class_name == "DepthwiseConv2D":
        filters, groups = channels, channels
        # Keras (kh, kw, C, 1) -> torch (C, 1, kh, kw)
        weights = {"kernel": reader.take(layer, "kernel", (*kernel, channels, 1)).transpose(2, 3, 0, 1)}
    else:
        filters = _whole(layer.config["filters"], layer, "filters")
        groups = _whole(layer.config.get("groups", 1), layer, "groups")
        # Keras (kh, kw, in, out) -> torch (out, in, kh, kw)
        weights = {"kernel": reader.take(layer, "kernel", (*kernel, channels // groups, filters)).transpose(3, 2, 0, 1)}
    if layer.config.get("use_bias", True):
        weights["bias"] = reader.take(layer, "bias", (filters,))
    result = [
        (size[axis] + padding[2 * axis] + padding[2 * axis + 1] - dilation[axis] * (kernel[axis] - 1) - 1)
        // strides[axis]
        + 1
        for axis in (0, 1)
    ]
    attributes = {"strides": strides, "padding": padding, "dilation": dilation, "groups": groups}
    node = reader.emit(layer, "conv2d", (filters, *result), attributes, weights)
    _activation_of(reader, layer, node)


def _zero_padding(reader: _Reader, layer: FlatLayer) -> None:
    (before,) = reader.before(layer)
    channels, height, width = _image(before, layer)
    _expect(layer, data_format=("channels_last", None))
    given = layer.config["padding"]
    given = given if isinstance(given, list) else [given, given]
    sides = [each if isinstance(each, list) else [each, each] for each in given]
    top, bottom, left, right = (_whole(each, layer, "padding", 0) for side in sides for each in side)
    shape = (channels, height + top + bottom, width + left + right)
    reader.emit(layer, "pad", shape, {"padding": (top, bottom, left, right)})


def _batch_norm(reader: _Reader, layer: FlatLayer) -> None:
    (before,) = reader.before(layer)
    channels = before.shape[0]
    _expect(layer, axis=(-1, 3, (3,), (-1,)), renorm=(False,))
    roles = ["gamma"] * bool(layer.config.get("scale", True)) + ["beta"] * bool(layer.config.get("center", True))
    weights = {role: reader.take(layer, role, (channels,)) for role in [*roles, "moving_mean", "moving_variance"]}
    epsilon = _number(layer.config.get("epsilon", 1e-3), layer, "epsilon")
    momentum = _number(layer.config.get("momentum", 0.99), layer, "momentum")
    reader.emit(layer, "batch_norm", before.shape, {"epsilon": epsilon, "momentum": momentum}, weights)


def _relu(reader: _Reader, layer: FlatLayer) -> None:
    (before,) = reader.before(layer)
    _expect(layer, negative_slope=(0, 0.0, None), threshold=(0, 0.0, None))
    ceiling = layer.config.get("max_value")
    ceiling = None if ceiling is None else _number(ceiling, layer, "max_value")
    reader.emit(layer, "relu", before.shape, {"max_value": ceiling})


def _activation(reader: _Reader, layer: FlatLayer) -> None:
    (before,) = reader.before(layer)
    _activation_of(reader, layer, before)


def _softmax(reader: _Reader, layer: FlatLayer) -> None:
    (before,) = reader.before(layer)
    _expect(layer, axis=(-1, (-1,)))
    reader.emit(layer, "softmax", before.shape)


# Keras's name of an activation -> the node for it
_FUNCTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "relu": ("relu", {"max_value": None}),
    "relu6": ("relu", {"max_value": 6.0}),
    "softmax": ("softmax", {}),
}


def _activation_of(reader: _Reader, layer: FlatLayer, node: Node) -> None:
    """Emit the activation that a layer has built in, as a node after the layer's own."""
    name = layer.config.get("activation") or "linear"
    if name == "linear":
        reader.node_of[layer.key] = node.name
        return
    if not isinstance(name, str) or name not in _FUNCTIONS:
        shown = name if isinstance(name, str) else str(name)[:80]
        raise BadInput(f"{layer.key}: expected activation linear, {', '.join(_FUNCTIONS)}, got {shown}. {REBUILD}")
    op, attributes = _FUNCTIONS[name]
    suffix = "" if node.name != layer.key else f"/{name}"
    reader.emit(layer, op, node.shape, attributes, inputs=[node], suffix=suffix)


def _add(reader: _Reader, layer: FlatLayer) -> None:
    left, right = reader.before(layer, 2)
    if left.shape != right.shape:
        raise BadInput(f"{layer.key}: expected to add equal shapes, got {left.shape} and {right.shape}. {REBUILD}")
    reader.emit(layer, "add", left.shape, inputs=[left, right])


def _global_average(reader: _Reader, layer: FlatLayer) -> None:
    (before,) = reader.before(layer)
    _expect(layer, data_format=("channels_last", None))
    channels, _, _ = _image(before, layer)
    keep = bool(layer.config.get("keepdims", False))
    shape = (channels, 1, 1) if keep else (channels,)
    reader.emit(layer, "global_average_pool", shape, {"keep_dimensions": keep})


def _flat(reader: _Reader, layer: FlatLayer) -> None:
    """Flatten and Reshape do nothing to pooled features; before the pooling they are not supported."""
    (before,) = reader.before(layer)
    if before.shape[1:] not in ((), (1, 1)) or before.op == "input":
        raise BadInput(
            f"{layer.key}: expected GlobalAveragePooling2D between the base and the dense layers, got "
            f"{layer.class_name} of unpooled shape {before.shape}: its dense layer weighs every place by itself, which "
            "has no counterpart here. Train a head on pooled features."
        )
    target = layer.config.get("target_shape")
    if target is not None and [each for each in target if each != 1] not in ([before.shape[0]], [-1]):
        raise BadInput(f"{layer.key}: expected a Reshape to {before.shape[:1]}, got {target}. {REBUILD}")
    reader.node_of[layer.key] = before.name
    if len(before.shape) == 3:
        reader.emit(layer, "flatten", before.shape[:1], inputs=[before])


def _dropout(reader: _Reader, layer: FlatLayer) -> None:
    (before,) = reader.before(layer)
    reader.rates[layer.key] = _number(layer.config["rate"], layer, "rate")
    reader.node_of[layer.key] = before.name  # does nothing when a photo is classified


def _augmentation(reader: _Reader, layer: FlatLayer) -> None:
    (before,) = reader.before(layer)
    reader.augmentation.append(layer.key)
    reader.node_of[layer.key] = before.name  # does nothing when a photo is classified


def _dense(reader: _Reader, layer: FlatLayer) -> None:
    (before,) = reader.before(layer)
    if len(before.shape) != 1:
        raise BadInput(
            f"{layer.key}: expected a Dense layer on pooled features, got it on shape {before.shape}. {REBUILD}"
        )
    units = _whole(layer.config["units"], layer, "units")
    # Keras (in, out) -> torch (out, in)
    weights = {"kernel": reader.take(layer, "kernel", (before.shape[0], units)).T}
    if layer.config.get("use_bias", True):
        weights["bias"] = reader.take(layer, "bias", (units,))
    node = reader.emit(layer, "dense", (units,), {}, weights)
    _activation_of(reader, layer, node)


_READERS: dict[str, Callable[[_Reader, FlatLayer], None]] = {
    "InputLayer": _input,
    "Rescaling": _rescaling,
    "Normalization": _normalization,
    "Conv2D": _convolution,
    "DepthwiseConv2D": _convolution,
    "ZeroPadding2D": _zero_padding,
    "BatchNormalization": _batch_norm,
    "ReLU": _relu,
    "Activation": _activation,
    "Softmax": _softmax,
    "Add": _add,
    "GlobalAveragePooling2D": _global_average,
    "Flatten": _flat,
    "Reshape": _flat,
    "Dropout": _dropout,
    **dict.fromkeys(AUGMENTATION, _augmentation),
    "Dense": _dense,
}


def _fold_padding(nodes: dict[str, Node]) -> tuple[Node, ...]:
    """Make a ZeroPadding2D part of the convolution if that is its only reader, as in a traced graph."""
    readers: dict[str, list[str]] = {}
    for node in nodes.values():
        for name in node.inputs:
            readers.setdefault(name, []).append(node.name)
    kept = dict(nodes)
    for node in nodes.values():
        if node.op != "conv2d" or nodes[node.inputs[0]].op != "pad" or len(readers[node.inputs[0]]) != 1:
            continue
        pad = kept.pop(node.inputs[0])
        own = node.attributes["padding"]
        padding = tuple(left + right for left, right in zip(own, pad.attributes["padding"], strict=True))
        kept[node.name] = replace(node, inputs=pad.inputs, attributes={**node.attributes, "padding": padding})
    return tuple(kept.values())

"""Each built-in Keras layer -> nodes of the neutral graph: one short function for each, in `READERS`.

Everything becomes explicit: SAME becomes numbers of pixels, an activation inside a Dense becomes a node of its own, and
so does the preprocessing that a model contains. Nothing is run, and code in the file is not looked at: a layer class
that is not in `READERS` is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from export.graph.nodes import Node
from export.keras_file.flat_layers import AS_IT_IS, DAMAGED, FlatLayer, Tensor, shared_weights
from export.keras_file.keras_layer import same_padding
from export.worker.keras_worker import AUGMENTATION
from models.bad_input import BadInput


class LayerReader:
    """Emits the nodes, layer by layer, and keeps track of their shapes.

    Args:
        layers: from `flatten`.
        weights: from `weights_by_layer`.
        image_size: (height, width) to use if the file leaves it open.
        generation: 2 or 3: which Keras saved the file; a few names mean something else in the other.
    """

    def __init__(
        self,
        layers: dict[str, FlatLayer],
        weights: dict[str, dict[str, np.ndarray]],
        image_size: tuple[int, int] | None,
        generation: int,
    ) -> None:
        self.layers, self.weights, self.image_size, self.generation = layers, weights, image_size, generation
        self.nodes: dict[str, Node] = {}
        self.node_of: dict[str, str] = {}  # layer key -> name of the node that is its output
        self.tensors: dict[str, np.ndarray] = {}
        self.rates: dict[str, float] = {}
        self.augmentation: list[str] = []
        self.without_effect: list[str] = []
        self.half_precision: list[str] = []
        self.without_channel: set[str] = set()  # nodes whose one channel Keras has no axis for

    def read(self) -> None:
        """Read all layers, each after those that it reads."""
        for key, layer in self.layers.items():
            reader = READERS.get(layer.class_name)
            if reader is None:
                raise _refused(layer)
            self._check_dtype(layer)
            if layer.class_name != "Stack" and any(self.node_of[each] in self.without_channel for each in layer.inputs):
                raise BadInput(
                    f"{key}: expected layers that read all channels, got one that reads x[..., i] alone. {AS_IT_IS}"
                )
            reader(self, layer)
            if self.weights.get(key):
                left = ", ".join(sorted(self.weights[key]))
                raise BadInput(f"{key}: expected weights that a {layer.class_name} has, got {left} besides. {DAMAGED}")

    def before(self, layer: FlatLayer, count: int = 1) -> list[Node]:
        """The nodes that a layer reads; refused if there are not `count` of them."""
        if len(layer.inputs) != count:
            raise BadInput(
                f"{layer.key}: expected a {layer.class_name} of {count} inputs, got {len(layer.inputs)}. {AS_IT_IS}"
            )
        return self.all_before(layer)

    def all_before(self, layer: FlatLayer) -> list[Node]:
        """The nodes that a layer reads, however many."""
        return [self.nodes[self.node_of[key]] for key in layer.inputs]

    def emit(
        self,
        layer: FlatLayer,
        op: str,
        shape: tuple[int, ...],
        attributes: dict[str, Any] | None = None,
        weights: dict[str, np.ndarray] | None = None,
        inputs: list[Node] | None = None,
    ) -> Node:
        """Add a node; `weights` must be in torch's layout.

        A layer's first node has the layer's name, further ones what they do behind it: ``KEY/relu``.
        """
        before = self.all_before(layer) if inputs is None else inputs
        name, number = layer.key, 1
        while name in self.nodes:
            name, number = f"{layer.key}/{op}{number if number > 1 else ''}", number + 1
        for role, array in (weights or {}).items():
            self.tensors[f"{name}/{role}"] = np.ascontiguousarray(array)
        roles = {role: f"{name}/{role}" for role in weights or {}}
        node = Node(name, op, tuple(each.name for each in before), shape, attributes or {}, roles, source=layer.key)
        self.nodes[name], self.node_of[layer.key] = node, name
        return node

    def take(self, layer: FlatLayer, role: str, shape: tuple[int, ...], place: int = 0) -> np.ndarray:
        """Take one of the layer's arrays; each can be taken only once.

        Args:
            layer: whose array it is.
            role: its name in a `.h5`.
            shape: expected, in Keras's layout.
            place: among the layer's arrays, by which a `.keras` archive knows it.
        """
        if layer.calls > 1:
            raise shared_weights(layer.key, layer.calls)
        own = self.weights[layer.key]
        array = own.pop(role if role in own else str(place), None)
        if array is None:
            raise BadInput(f"{layer.key}: expected {role} of shape {shape}, got a file without it. {DAMAGED}")
        if array.dtype in (np.float16, np.float64):  # a policy for all of Keras: float16, float64
            if not np.array_equal(array.astype(np.float32), array, equal_nan=True):
                raise BadInput(
                    f"{layer.key}/{role}: expected weights that float32 holds exactly, got {array.dtype}. With the "
                    "code that builds the model: build it in float32, model.load_weights(OLD), model.save(NEW); its "
                    "answers change by float32's rounding."
                )
            array = array.astype(np.float32)
        if array.shape != shape or array.dtype != np.float32:
            raise BadInput(
                f"{layer.key}/{role}: expected float32 {shape}, got {array.dtype} {array.shape}: the weights do not "
                "fit the architecture. Give the one that they belong to."
            )
        return array

    def same_as(self, layer: FlatLayer, node: Node) -> None:
        """The layer's output is that of a node that is there already."""
        self.node_of[layer.key] = node.name

    def _check_dtype(self, layer: FlatLayer) -> None:
        dtype = layer.config.get("dtype", "float32")
        if isinstance(dtype, dict):
            dtype = dtype["config"].get("name")
        if dtype in ("mixed_float16", "mixed_bfloat16", "float16", "bfloat16", "float64"):
            self.half_precision.append(layer.key)
        elif dtype not in ("float32", None) and layer.class_name != "InputLayer":
            raise BadInput(f"{layer.key}: expected a layer that computes in floating point, got {dtype}. {AS_IT_IS}")


# What to do with a layer that cannot be read, if there is Keras's own for what it does; it keeps the answers.
_WRITE_IT = (
    "If layers of Keras's own do the same, put them in its place in the code that builds the model "
    "({example}), then model.load_weights(OLD) and model.save(NEW): the answers stay."
)
_EXAMPLE = "for mobilenet_v2.preprocess_input: Rescaling(1 / 127.5, offset=-1)"


def _refused(layer: FlatLayer) -> BadInput:
    kind, remedy = layer.class_name, _WRITE_IT.format(example=_EXAMPLE)
    if kind == "Lambda":
        why = "code, which this project does not run"
    elif kind in KERAS_LAYERS_NOT_READ:
        why, remedy = "a layer that is not read here", AS_IT_IS
    else:
        why = "not Keras's own: what it computes is in its author's code, not in the file"
    return BadInput(f"{layer.key}: expected one of Keras's layers for photos, got {kind}, {why}. {remedy}")


# Keras's own, and not read: their message must not call them somebody's.
KERAS_LAYERS_NOT_READ = frozenset(
    """
    Attention AdditiveAttention AutoContrast Bidirectional CategoryEncoding Conv1D Conv1DTranspose Conv3D
    Conv3DTranspose ConvLSTM1D ConvLSTM2D ConvLSTM3D Cropping1D Cropping3D DepthwiseConv1D Discretization Dot Einsum
    EinsumDense Embedding GRU GlobalAveragePooling1D GlobalAveragePooling3D GlobalMaxPooling1D GlobalMaxPooling3D
    GroupNormalization GroupQueryAttention HashedCrossing Hashing IntegerLookup LSTM LocallyConnected1D
    LocallyConnected2D Masking MaxPooling1D MaxPooling3D AveragePooling1D AveragePooling3D MelSpectrogram
    MultiHeadAttention RMSNormalization RNN RandomCrop RandomHeight RandomWidth RepeatVector SeparableConv1D
    SimpleRNN SpectralNormalization StringLookup TextVectorization TimeDistributed UnitNormalization UpSampling1D
    UpSampling3D ZeroPadding1D ZeroPadding3D RandomElasticTransform Pipeline
    """.split()  # noqa: SIM905
)


def _expect(layer: FlatLayer, **allowed: tuple[Any, ...]) -> None:
    """Refuse a setting with a value that is not allowed. The first allowed value is Keras's default."""
    for name, values in allowed.items():
        value = layer.config.get(name, values[0])
        value = tuple(value) if isinstance(value, list) else value
        if value not in values:
            shown = " or ".join(map(str, values))
            raise BadInput(f"{layer.key}: expected a {layer.class_name} with {name} {shown}, got {value}. {AS_IT_IS}")


def _whole(value: Any, layer: FlatLayer, what: str, lowest: int = 1) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= 1 << 20:
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
    if isinstance(value, dict) and value.get("class_name") == "__numpy__":  # Keras 2.11 and later, of numpy scalars
        value = value["config"]["value"]
    if not isinstance(value, int | float) or isinstance(value, bool) or not np.isfinite(value):
        raise BadInput(f"{layer.key}: expected {what} as a finite number, got {str(value)[:40]}. {DAMAGED}")
    return float(value)


def _image(node: Node, layer: FlatLayer) -> tuple[int, int, int]:
    if len(node.shape) != 3:
        raise BadInput(
            f"{layer.key}: expected a {layer.class_name} on images, got it on shape {node.shape}. {AS_IT_IS}"
        )
    return node.shape[0], node.shape[1], node.shape[2]


def _only_map(reader: LayerReader, layer: FlatLayer) -> tuple[Node, int, tuple[int, int]]:
    """The one node that a layer of images reads, its channels, and its height and width."""
    (before,) = reader.before(layer)
    channels, height, width = _image(before, layer)
    _expect(layer, data_format=("channels_last", None))
    return before, channels, (height, width)


# Input and preprocessing ----------------------------------------------------------------------------------------------


def _input(reader: LayerReader, layer: FlatLayer) -> None:
    if reader.nodes:
        raise BadInput(f"{layer.key}: expected a model with one input, got another. {AS_IT_IS}")
    shape = layer.config.get("batch_input_shape") or layer.config.get("batch_shape")
    if not (isinstance(shape, list) and len(shape) == 4 and shape[3] in (1, 3, None)):
        raise BadInput(f"{layer.key}: expected an input of shape [None, height, width, 3], got {shape}. {AS_IT_IS}")
    given = reader.image_size or (None, None)
    sides = [own if own is not None else size for own, size in zip(shape[1:3], given, strict=True)]
    if None in sides:
        raise BadInput(f"{layer.key}: expected a size, got an input of shape {shape}. Give it with --image_size H,W.")
    if reader.image_size and tuple(sides) != tuple(reader.image_size):
        raise BadInput(f"--image_size {reader.image_size}: expected the file's own {tuple(sides)}. Leave it out.")
    height, width = (_whole(side, layer, "the image's size") for side in sides)
    reader.emit(layer, "input", (shape[3] or 3, height, width), inputs=[])


def _per_channel(value: Any, layer: FlatLayer, what: str, channels: int) -> list[float]:
    if isinstance(value, dict):
        value = value.get("config", {}).get("value", value)
    try:
        values = np.asarray(value, np.float64).reshape(-1)
    except (TypeError, ValueError):
        values = np.zeros(0)
    shape = np.shape(value)
    along_channels = not shape or shape[-1] == values.size  # not one for each row
    if values.size not in (1, channels) or not along_channels or not np.isfinite(values).all():
        raise BadInput(
            f"{layer.key}: expected {what} as one finite number or {channels}, one for each channel, got "
            f"{str(value)[:80]}. {AS_IT_IS}"
        )
    return [float(each) for each in np.broadcast_to(values, channels)]


def _affine(
    reader: LayerReader, layer: FlatLayer, before: Node, scale: Any = 1.0, offset: Any = 0.0, what: str = "numbers"
) -> Node:
    channels = before.shape[0]
    scale, offset = (_per_channel(each, layer, what, channels) for each in (scale, offset))
    return reader.emit(layer, "affine", before.shape, {"scale": scale, "offset": offset}, inputs=[before])


def _rescaling(reader: LayerReader, layer: FlatLayer) -> None:
    (before,) = reader.before(layer)
    _affine(reader, layer, before, layer.config["scale"], layer.config.get("offset", 0.0), "scale and offset")


def _normalization(reader: LayerReader, layer: FlatLayer) -> None:
    """Keras's Normalization: (x - mean) / max(sqrt(variance), 1e-7)."""
    (before,) = reader.before(layer)
    _expect(layer, axis=(-1, 3, (-1,), (3,), None, ()), invert=(False,))
    channels = before.shape[0]
    if reader.weights[layer.key]:
        shape = () if layer.config.get("axis", -1) in (None, []) else (channels,)
        mean, variance = reader.take(layer, "mean", shape, 0), reader.take(layer, "variance", shape, 1)
        for left in ("count", "2"):  # how many photos the layer was adapted to; the result does not depend on it
            reader.weights[layer.key].pop(left, None)
    else:
        mean, variance = layer.config["mean"], layer.config["variance"]
    means = _per_channel(mean, layer, "mean", channels)
    variances = _per_channel(variance, layer, "variance", channels)
    scale = [1.0 / max(float(np.sqrt(max(each, 0.0))), 1e-7) for each in variances]
    _affine(reader, layer, before, scale, [-each * factor for each, factor in zip(means, scale, strict=True)])


def _resizing(reader: LayerReader, layer: FlatLayer) -> None:
    before, channels, size = _only_map(reader, layer)
    _expect(layer, crop_to_aspect_ratio=(False,), pad_to_aspect_ratio=(False,), antialias=(False,))
    _expect(layer, interpolation=("bilinear", "nearest"))
    target = tuple(_whole(layer.config[side], layer, side) for side in ("height", "width"))
    if target == size:
        reader.same_as(layer, before)
        return
    interpolation = layer.config.get("interpolation", "bilinear")
    reader.emit(layer, "resize", (channels, *target), {"interpolation": interpolation})


# Bare operations, such as `x / 127.5` leaves behind -------------------------------------------------------------------

# Keras 2's name of a function, or Keras 3's of an operation -> what it does with two numbers.
_ARITHMETIC = {
    "math.truediv": "/",
    "math.divide": "/",
    "TrueDivide": "/",
    "Divide": "/",
    "math.subtract": "-",
    "Subtract": "-",
    "math.multiply": "*",
    "Multiply": "*",
    "math.add": "+",
    "__operators__.add": "+",
    "nn.bias_add": "+",
    "Add": "+",
    "math.negative": "neg",
    "Negative": "neg",
    "cast": "same",
    "Cast": "same",
    "identity": "same",
}
_OF_TENSORS = {"+": "add", "-": "subtract", "*": "multiply"}
# Options of such calls that change nothing.
_NO_OPERAND = ("name", "dtype", "data_format", "training", "mask")


def _operation(reader: LayerReader, layer: FlatLayer) -> None:
    """A bare operation: arithmetic with numbers becomes an affine node, with another layer's output that operation."""
    name = str(layer.config.get("function") or layer.class_name)
    options = {key: value for key, value in (layer.options or {}).items() if key not in _NO_OPERAND}
    operands = [*layer.arguments, *options.values()]
    if name == "concat":
        _bare_concatenation(reader, layer)
        return
    if name in _SLICES:
        _slice(reader, layer, operands)
        return
    if name in _OPERATIONS and len(layer.inputs) == 1:
        # Keras 3 has the settings of an operation in its configuration, Keras 2 in the call
        _OPERATIONS[name](reader, replace(layer, config={**layer.config, **(layer.options or {})}), operands[1:])
        return
    kind = _ARITHMETIC.get(name)
    if kind is None or not layer.inputs or len(operands) != (1 if kind in ("neg", "same") else 2):
        if name in _ELEMENTWISE and len(operands) == 1:
            _function(reader, layer, _ELEMENTWISE[name], reader.before(layer)[0])
            return
        if kind != "same" or len(layer.inputs) != 1:
            raise BadInput(
                f"{layer.key}: expected arithmetic with numbers or with another layer's output, got the operation "
                f"{name[:80]}, which is not read here. Use one of Keras's layers for it."
            )
    nodes = reader.all_before(layer)
    if len(nodes) == 2:
        if kind not in _OF_TENSORS:
            raise BadInput(
                f"{layer.key}: expected to divide by a number, got a division by another layer's output. {AS_IT_IS}"
            )
        _merged(reader, layer, _OF_TENSORS[kind], nodes)
        return
    (before,) = nodes
    if kind == "same":
        reader.same_as(layer, before)
        return
    if kind == "neg":
        _affine(reader, layer, before, -1.0)
        return
    constant_first = not isinstance(operands[0], Tensor)
    constant = np.asarray(
        _per_channel(operands[0] if constant_first else operands[1], layer, "a constant", before.shape[0])
    )
    if kind == "/" and (constant_first or not constant.all()):
        raise BadInput(
            f"{layer.key}: expected a division by a number other than 0, got {str(operands)[:80]}. {AS_IT_IS}"
        )
    if kind == "+":
        _affine(reader, layer, before, 1.0, constant)
    elif kind == "-":
        _affine(reader, layer, before, *((-1.0, constant) if constant_first else (1.0, -constant)))
    else:
        _affine(reader, layer, before, constant if kind == "*" else 1.0 / constant)


def _reduced(op: str) -> Callable[[LayerReader, FlatLayer, list[Any]], None]:
    """``reduce_mean(x, [1, 2])``, or the largest: over height and width."""

    def read(reader: LayerReader, layer: FlatLayer, operands: list[Any]) -> None:
        (before,) = reader.before(layer)
        axes = operands[0] if operands and isinstance(operands[0], list) else layer.config.get("axis")
        if not isinstance(axes, list) or sorted(axes) not in ([1, 2], [-3, -2]) or len(before.shape) != 3:
            raise BadInput(
                f"{layer.key}: expected a {op} over height and width, axes [1, 2], got axes {axes}. {AS_IT_IS}"
            )
        keep = bool(layer.config.get("keepdims", False))
        shape = (before.shape[0], 1, 1) if keep else (before.shape[0],)
        reader.emit(layer, op, shape, {"keep_dimensions": keep})

    return read


def _reshaped(reader: LayerReader, layer: FlatLayer, operands: list[Any]) -> None:
    """``reshape(x, [-1, H, W, C])``: the first side is the batch's."""
    target = next((each for each in (*operands, *map(layer.config.get, ("shape", "newshape"))) if each), None)
    if not isinstance(target, list) or target[0] not in (-1, None) or -1 in target[1:]:
        raise BadInput(
            f"{layer.key}: expected to reshape to [-1, ...], with each side but the batch's, got {target}. {AS_IT_IS}"
        )
    _reshape(reader, replace(layer, config={"target_shape": target[1:]}))


def _tf_resized(reader: LayerReader, layer: FlatLayer, operands: list[Any]) -> None:
    """``tf.image.resize(x, [H, W])``, which has half-pixel centres as the layer has."""
    height, width = _two(operands[0] if operands else layer.config.get("size"), layer, "size")
    for option in ("preserve_aspect_ratio", "antialias"):
        _expect(layer, **{option: (False,)})
    config = {"height": height, "width": width, "interpolation": layer.config.get("method", "bilinear")}
    _resizing(reader, replace(layer, config=config))


def _flipped(reader: LayerReader, layer: FlatLayer, operands: list[Any]) -> None:
    """``reverse(x, [-1])``, ``flip(x, -1)``: the channels in the opposite order."""
    (before,) = reader.before(layer)
    axis = operands[0] if operands else layer.config.get("axis")
    if axis not in (-1, 3, [-1], [3]) or len(before.shape) != 3:
        raise BadInput(
            f"{layer.key}: expected a flip of the channels, axis -1, got axis {axis}. Flip photos before they are "
            "given to the model."
        )
    _take_channels(reader, layer, before, range(before.shape[0])[::-1])


# Operations with settings -> their reader, given what the call has after the tensor.
_OPERATIONS: dict[str, Callable[[LayerReader, FlatLayer, list[Any]], None]] = {
    **dict.fromkeys(("math.reduce_mean", "Mean"), _reduced("global_average_pool")),
    **dict.fromkeys(("math.reduce_max", "Max"), _reduced("global_max_pool")),
    "reshape": _reshaped,
    "image.resize": _tf_resized,
    **dict.fromkeys(("reverse", "Flip"), _flipped),
}


_SLICES = ("__operators__.getitem", "GetItem")


def _slice(reader: LayerReader, layer: FlatLayer, operands: list[Any]) -> None:
    """``x[..., ::-1]``: red, green and blue in the order that caffe's networks take, see `imagenet_utils`.

    Keras 3 has ``stack([x[..., 2], x[..., 1], x[..., 0]], axis=-1)`` for it.
    """
    (before,) = reader.before(layer)
    channels, *size = _image(before, layer)
    given = operands[1] if len(operands) == 2 else None
    picked = _picked_channels(given if isinstance(given, list) else [given], channels)
    if picked is None:
        raise BadInput(
            f"{layer.key}: expected x[..., i], x[..., i:j] or x[..., ::-1], which choose channels, got another piece "
            f"of x: {str(given)[:120]}. What else is cut out of a photo, cut it before it is given to the model."
        )
    if isinstance(picked, int):
        node = reader.emit(layer, "slice_channels", (1, *size), {"start": picked, "stop": picked + 1})
        reader.without_channel.add(node.name)
        return
    _take_channels(reader, layer, before, picked)


def _take_channels(reader: LayerReader, layer: FlatLayer, before: Node, picked: range) -> None:
    size = before.shape[1:]
    if list(picked) == list(range(picked[0], picked[-1] + 1)):
        reader.emit(layer, "slice_channels", (len(picked), *size), {"start": picked[0], "stop": picked[-1] + 1})
        return
    parts = [
        reader.emit(layer, "slice_channels", (1, *size), {"start": index, "stop": index + 1}, inputs=[before])
        for index in picked
    ]
    reader.emit(layer, "concatenate", (len(picked), *size), inputs=parts)


def _picked_channels(items: list[Any], channels: int) -> int | range | None:
    """The channel or channels that ``x[items]`` takes of (N, H, W, C); None if it is anything else of x."""
    slices = [_slice_of(each) for each in items]
    if slices.count(...) == 1:
        place = slices.index(...)
        slices[place : place + 1] = [slice(None)] * (5 - len(slices))
    if len(slices) != 4 or any(each != slice(None) for each in slices[:3]):
        return None
    last = slices[3]
    if isinstance(last, int):
        return range(channels)[last] if -channels <= last < channels else None
    return (range(channels)[last] or None) if isinstance(last, slice) else None


def _slice_of(item: Any) -> Any:
    """An item of ``x[...]`` as Python has it; Keras 2 and Keras 3 describe it differently. None if it is none."""
    if item in ("...", "Ellipsis") or (isinstance(item, dict) and item.get("class_name") == "__ellipsis__"):
        return ...
    if isinstance(item, int) and not isinstance(item, bool):
        return item
    described = item.get("config", item) if isinstance(item, dict) else {}
    parts = [described.get(part) for part in ("start", "stop", "step")]
    if "step" not in described or any(part is not None and type(part) is not int for part in parts):
        return None
    return slice(parts[0], parts[1], None if parts[2] == 1 else parts[2])


def _stack(reader: LayerReader, layer: FlatLayer) -> None:
    """Single channels, put together again."""
    nodes = reader.all_before(layer)
    if layer.config.get("axis") != -1 or any(each.name not in reader.without_channel for each in nodes):
        raise BadInput(
            f"{layer.key}: expected to stack channels, x[..., i], on the last axis, got something else. {AS_IT_IS}"
        )
    _joined(reader, layer, nodes)


def _custom_scale(reader: LayerReader, layer: FlatLayer) -> None:
    """InceptionResNetV2's own layer in Keras 3: x + y * scale."""
    first, second = reader.before(layer, 2)
    scaled = _affine(reader, layer, second, _number(layer.config["scale"], layer, "scale"))
    reader.emit(layer, "add", first.shape, inputs=[first, scaled])


def _lambda(reader: LayerReader, layer: FlatLayer) -> None:
    """InceptionResNetV2 has, in Keras 2, the Lambda that `_custom_scale` is in Keras 3; every other one is refused.

    The code is not looked at. If it were another one under the same name and with the same argument, the proof would
    fail.
    """
    arguments = layer.config.get("arguments")
    known = re.fullmatch(r"block(35|17|8)_\d+", layer.path[-1]) and len(layer.inputs) == 2
    if not known or not isinstance(arguments, dict) or set(arguments) != {"scale"}:
        raise _refused(layer)
    _custom_scale(reader, replace(layer, config=arguments))


# Convolutions ---------------------------------------------------------------------------------------------------------


def _same_or_valid(
    layer: FlatLayer,
    size: tuple[int, int],
    kernel: tuple[int, int],
    strides: tuple[int, int],
    dilation: tuple[int, int],
) -> tuple[tuple[int, int, int, int], tuple[int, int]]:
    """Padding (top, bottom, left, right) in pixels, and the result's height and width."""
    _expect(layer, padding=("valid", "same"))
    sides = ((0, 0), (0, 0))
    if layer.config.get("padding") == "same":
        rows, columns = (same_padding(size[axis], kernel[axis], strides[axis], dilation[axis]) for axis in (0, 1))
        sides = (rows, columns)
    result = [
        (size[axis] + sum(sides[axis]) - dilation[axis] * (kernel[axis] - 1) - 1) // strides[axis] + 1
        for axis in (0, 1)
    ]
    if min(result) < 1:
        raise BadInput(
            f"{layer.key}: expected images of at least the size of its window {kernel}, got {size}. {AS_IT_IS}"
        )
    return (*sides[0], *sides[1]), (result[0], result[1])


def _convolution(reader: LayerReader, layer: FlatLayer) -> None:
    before, channels, size = _only_map(reader, layer)
    kernel = _two(layer.config["kernel_size"], layer, "kernel_size")
    strides = _two(layer.config.get("strides", 1), layer, "strides")
    dilation = _two(layer.config.get("dilation_rate", 1), layer, "dilation_rate")
    padding, result = _same_or_valid(layer, size, kernel, strides, dilation)
    attributes = {"strides": strides, "padding": padding, "dilation": dilation}
    biased = layer.config.get("use_bias", True)
    if layer.class_name in ("DepthwiseConv2D", "SeparableConv2D"):
        multiplier = _whole(layer.config.get("depth_multiplier", 1), layer, "depth_multiplier")
        role = "kernel" if layer.class_name == "DepthwiseConv2D" else "depthwise_kernel"
        array = reader.take(layer, role, (*kernel, channels, multiplier), 0)
        # Keras (kh, kw, C, multiplier) -> torch (C * multiplier, 1, kh, kw)
        weights = {"kernel": array.transpose(2, 3, 0, 1).reshape(channels * multiplier, 1, *kernel)}
        filters, groups = channels * multiplier, channels
        if layer.class_name == "SeparableConv2D":
            depthwise = reader.emit(
                layer, "conv2d", (filters, *result), {**attributes, "groups": groups}, weights, inputs=[before]
            )
            inner, filters = filters, _whole(layer.config["filters"], layer, "filters")
            array = reader.take(layer, "pointwise_kernel", (1, 1, inner, filters), 1)
            weights, before, groups = {"kernel": array.transpose(3, 2, 0, 1)}, depthwise, 1
            attributes = {"strides": (1, 1), "padding": (0, 0, 0, 0), "dilation": (1, 1)}
        if biased:
            weights["bias"] = reader.take(layer, "bias", (filters,), 1 if role == "kernel" else 2)
    else:
        filters = _whole(layer.config["filters"], layer, "filters")
        groups = _whole(layer.config.get("groups", 1), layer, "groups")
        # Keras (kh, kw, in, out) -> torch (out, in, kh, kw)
        array = reader.take(layer, "kernel", (*kernel, channels // groups, filters), 0)
        weights = {"kernel": array.transpose(3, 2, 0, 1)}
        if biased:
            weights["bias"] = reader.take(layer, "bias", (filters,), 1)
    node = reader.emit(layer, "conv2d", (filters, *result), {**attributes, "groups": groups}, weights, inputs=[before])
    _activation_of(reader, layer, node)


def _transposed_convolution(reader: LayerReader, layer: FlatLayer) -> None:
    _, channels, size = _only_map(reader, layer)
    kernel = _two(layer.config["kernel_size"], layer, "kernel_size")
    strides = _two(layer.config.get("strides", 1), layer, "strides")
    _expect(layer, padding=("valid", "same"), dilation_rate=(1, (1, 1)), groups=(1,))
    filters = _whole(layer.config["filters"], layer, "filters")
    same = layer.config.get("padding") == "same"
    added = layer.config.get("output_padding")
    crop, result = [], []
    for axis in (0, 1):
        whole = (size[axis] - 1) * strides[axis] + kernel[axis]
        wanted = size[axis] * strides[axis] + (0 if same else max(kernel[axis] - strides[axis], 0))
        if added is not None:  # mirrors `deconv_output_length` in `keras/src/utils/conv_utils.py` of Keras 2
            odd = added if isinstance(added, int) else added[axis]
            wanted = whole - (2 * (kernel[axis] // 2) if same else 0) + _whole(odd, layer, "output_padding", 0)
        first = max(whole - wanted, 0) // 2
        crop += [first, whole - wanted - first]
        result.append(wanted)
    # Keras (kh, kw, out, in) -> torch (in, out, kh, kw)
    weights = {"kernel": reader.take(layer, "kernel", (*kernel, filters, channels), 0).transpose(3, 2, 0, 1)}
    if layer.config.get("use_bias", True):
        weights["bias"] = reader.take(layer, "bias", (filters,), 1)
    if added is None:
        attributes = {"strides": strides, "crop": tuple(crop), "same": same}
        node = reader.emit(layer, "conv2d_transpose", (filters, *result), attributes, weights)
    else:  # the whole of it, of which a part is kept
        if min(crop) < 0:
            raise BadInput(
                f"{layer.key}: expected an output_padding within the result, got {added}, which adds zeros. {AS_IT_IS}"
            )
        sides = [result[axis] + crop[2 * axis] + crop[2 * axis + 1] for axis in (0, 1)]
        attributes = {"strides": strides, "crop": (0, 0, 0, 0), "same": False}
        node = reader.emit(layer, "conv2d_transpose", (filters, *sides), attributes, weights)
        node = reader.emit(layer, "crop", (filters, *result), {"cropping": tuple(crop)}, inputs=[node])
    _activation_of(reader, layer, node)


def _dense(reader: LayerReader, layer: FlatLayer) -> None:
    (before,) = reader.before(layer)
    units = _whole(layer.config["units"], layer, "units")
    # Keras (in, out) -> torch (out, in)
    weights = {"kernel": reader.take(layer, "kernel", (before.shape[0], units), 0).T}
    if layer.config.get("use_bias", True):
        weights["bias"] = reader.take(layer, "bias", (units,), 1)
    _activation_of(reader, layer, reader.emit(layer, "dense", (units, *before.shape[1:]), {}, weights))


def _batch_norm(reader: LayerReader, layer: FlatLayer) -> None:
    (before,) = reader.before(layer)
    channels, last = before.shape[0], len(before.shape)
    _expect(layer, axis=(-1, last, (last,), (-1,)), renorm=(False,))
    roles = ["gamma"] * bool(layer.config.get("scale", True)) + ["beta"] * bool(layer.config.get("center", True))
    roles += ["moving_mean", "moving_variance"]
    weights = {role: reader.take(layer, role, (channels,), place) for place, role in enumerate(roles)}
    epsilon = _number(layer.config.get("epsilon", 1e-3), layer, "epsilon")
    momentum = _number(layer.config.get("momentum", 0.99), layer, "momentum")
    reader.emit(layer, "batch_norm", before.shape, {"epsilon": epsilon, "momentum": momentum}, weights)


def _layer_norm(reader: LayerReader, layer: FlatLayer) -> None:
    (before,) = reader.before(layer)
    channels, last = before.shape[0], len(before.shape)
    _expect(layer, axis=(-1, last, (last,), (-1,)), rms_scaling=(False,))
    roles = ["gamma"] * bool(layer.config.get("scale", True)) + ["beta"] * bool(layer.config.get("center", True))
    weights = {role: reader.take(layer, role, (channels,), place) for place, role in enumerate(roles)}
    epsilon = _number(layer.config.get("epsilon", 1e-3), layer, "epsilon")
    reader.emit(layer, "layer_norm", before.shape, {"epsilon": epsilon}, weights)


# Activations ----------------------------------------------------------------------------------------------------------

# One step: an operation with its attributes, on the value before it.
_Step = tuple[str, dict[str, Any]]


def _clipped(scale: float, offset: float, ceiling: float, back: tuple[float, float] | None = None) -> tuple[_Step, ...]:
    """min(max(x * scale + offset, 0), ceiling), and affine again."""
    steps: list[_Step] = [("affine", {"scale": scale, "offset": offset}), ("relu", {"max_value": ceiling})]
    return (*steps, ("affine", {"scale": back[0], "offset": back[1]})) if back else tuple(steps)


def _named(function: str) -> tuple[_Step, ...]:
    return (("activation", {"function": function}),)


# Keras's name of an activation -> what it is made of. Those that differ between Keras 2 and 3 are in `_function`.
_FUNCTIONS: dict[str, tuple[_Step, ...]] = {
    "linear": (),
    "relu": (("relu", {"max_value": None}),),
    "relu6": (("relu", {"max_value": 6.0}),),
    "leaky_relu": (("leaky_relu", {"negative_slope": float(np.float32(0.2))}),),  # as in `_leaky`
    "softmax": (("softmax", {}),),
    "softmax_v2": (("softmax", {}),),  # tf.nn.softmax
    "swish": _named("silu"),
    **{name: _named(name) for name in ("silu", "sigmoid", "tanh", "gelu", "elu", "selu", "softplus", "softsign")},
    "celu": _named("elu"),
    "exponential": _named("exponential"),
    "mish": (("mish", {}),),
    "hard_silu": (("hard_swish", {}),),
    "hard_swish": (("hard_swish", {}),),
    "hard_tanh": _clipped(1.0, 1.0, 2.0, (1.0, -1.0)),
    "log_sigmoid": (
        ("affine", {"scale": -1.0, "offset": 0.0}),
        *_named("softplus"),
        ("affine", {"scale": -1.0, "offset": 0.0}),
    ),
}
# Keras 2's hard_sigmoid is max(0, min(1, x / 5 + 0.5)), Keras 3's max(0, min(1, x / 6 + 0.5)).
_HARD_SIGMOID = {2: _clipped(0.2, 0.5, 1.0), 3: (("hard_sigmoid", {}),)}
# A bare operation -> the activation that it is.
_ELEMENTWISE = {
    **{f"nn.{name}": name for name in ("relu", "relu6", "sigmoid", "softmax", "tanh", "elu", "selu", "gelu", "silu")},
    **{"math.sigmoid": "sigmoid", "math.tanh": "tanh", "nn.swish": "swish", "nn.softplus": "softplus"},
    **{"Relu": "relu", "Relu6": "relu6", "Sigmoid": "sigmoid", "Tanh": "tanh", "Silu": "silu", "Elu": "elu"},
}


def _function(reader: LayerReader, layer: FlatLayer, name: str, node: Node) -> None:
    """Emit an activation by Keras's name, after a node."""
    steps = _HARD_SIGMOID[reader.generation] if name == "hard_sigmoid" else _FUNCTIONS.get(name)
    if steps is None:
        known = ", ".join(sorted((*_FUNCTIONS, "hard_sigmoid")))
        raise BadInput(
            f"{layer.key}: expected an activation that every Keras has ({known}), got {name[:80]}. {AS_IT_IS}"
        )
    for op, attributes in steps:
        if op == "affine":
            node = _affine(reader, layer, node, attributes["scale"], attributes["offset"])
        else:
            node = reader.emit(layer, op, node.shape, attributes, inputs=[node])
    reader.same_as(layer, node)


def _activation_of(reader: LayerReader, layer: FlatLayer, node: Node) -> None:
    """Emit the activation that a layer has built in, as a node after the layer's own."""
    name = layer.config.get("activation") or "linear"
    if isinstance(name, dict):
        config = name.get("config")
        if isinstance(config, str):  # a function of Keras's, described as an object
            own = str(name.get("module") or "builtins").partition(".")[0] in ("builtins", "keras", "tf_keras")
            name = config if own and not name.get("registered_name", "").startswith("Custom>") else str(name)
        elif name.get("class_name") in _ACTIVATION_LAYERS:
            inner = replace(layer, class_name=name["class_name"], config=config or {})
            _ACTIVATION_LAYERS[name["class_name"]](reader, inner, node)
            return
    if not isinstance(name, str) or name.startswith("Custom>"):
        raise BadInput(
            f"{layer.key}: expected an activation of Keras's own, got {str(name)[:80]}: what it computes is in its "
            f"author's code, not in the file. {_WRITE_IT.format(example='Activation(NAME)')}"
        )
    _function(reader, layer, name, node)


def _relu(reader: LayerReader, layer: FlatLayer, node: Node) -> None:
    slope = _number(layer.config.get("negative_slope") or 0.0, layer, "negative_slope")
    threshold = _number(layer.config.get("threshold") or 0.0, layer, "threshold")
    ceiling = layer.config.get("max_value")
    ceiling = None if ceiling is None else _number(ceiling, layer, "max_value")
    if threshold:
        if slope or threshold < 0:
            raise BadInput(
                f"{layer.key}: expected a ReLU with a threshold above 0 and no slope, got another. {AS_IT_IS}"
            )
        node = reader.emit(layer, "threshold", node.shape, {"threshold": threshold}, inputs=[node])
        if ceiling is not None:
            node = reader.emit(layer, "relu", node.shape, {"max_value": ceiling}, inputs=[node])
    elif slope:
        node = _leaky(reader, layer, node, slope, exact=ceiling is not None)
        if ceiling is not None:  # min(x, c) = c - relu(c - x)
            turned = _affine(reader, layer, node, -1.0, ceiling)
            kept = reader.emit(layer, "relu", node.shape, {"max_value": None}, inputs=[turned])
            node = _affine(reader, layer, kept, -1.0, ceiling)
    else:
        node = reader.emit(layer, "relu", node.shape, {"max_value": ceiling}, inputs=[node])
    reader.same_as(layer, node)


def _leaky(reader: LayerReader, layer: FlatLayer, node: Node, slope: float, exact: bool = False) -> Node:
    if not 0 <= slope <= 1:
        raise BadInput(f"{layer.key}: expected a slope from 0 to 1, got {slope}. {AS_IT_IS}")
    if not exact:  # TensorFlow's leaky_relu takes the slope in float32, whatever the layer computes in
        slope = float(np.float32(slope))
    return reader.emit(layer, "leaky_relu", node.shape, {"negative_slope": slope}, inputs=[node])


def _leaky_relu(reader: LayerReader, layer: FlatLayer, node: Node) -> None:
    slope = layer.config.get("negative_slope", layer.config.get("alpha", 0.3))  # Keras 3's name, and Keras 2's
    _leaky(reader, layer, node, _number(slope, layer, "negative_slope"))


def _elu(reader: LayerReader, layer: FlatLayer, node: Node) -> None:
    if _number(layer.config.get("alpha", 1.0), layer, "alpha") == 1:
        _function(reader, layer, "elu", node)
        return
    reader.emit(layer, "elu", node.shape, {"alpha": _number(layer.config["alpha"], layer, "alpha")}, inputs=[node])


def _thresholded_relu(reader: LayerReader, layer: FlatLayer, node: Node) -> None:
    _relu(reader, replace(layer, config={"threshold": layer.config.get("theta", 1.0)}), node)


def _prelu(reader: LayerReader, layer: FlatLayer, node: Node) -> None:
    shared = layer.config.get("shared_axes") or []
    shape = [1 if axis + 1 in shared else side for axis, side in enumerate((*node.shape[1:], node.shape[0]))]
    alpha = reader.take(layer, "alpha", tuple(shape), 0)
    # Keras (H, W, C) -> torch (C, H, W)
    weights = {"alpha": np.moveaxis(alpha, -1, 0)}
    reader.emit(layer, "prelu", node.shape, {}, weights, inputs=[node])


def _softmax(reader: LayerReader, layer: FlatLayer, node: Node) -> None:
    _expect(layer, axis=(-1, (-1,), len(node.shape)))
    _function(reader, layer, "softmax", node)


_Activation = Callable[[LayerReader, FlatLayer, Node], None]
_ACTIVATION_LAYERS: dict[str, _Activation] = {
    "Activation": _activation_of,
    "ReLU": _relu,
    "LeakyReLU": _leaky_relu,
    "ELU": _elu,
    "PReLU": _prelu,
    "ThresholdedReLU": _thresholded_relu,
    "Softmax": _softmax,
}


def _of_one(activation: _Activation) -> Callable[[LayerReader, FlatLayer], None]:
    def read(reader: LayerReader, layer: FlatLayer) -> None:
        (before,) = reader.before(layer)
        activation(reader, layer, before)

    return read


# Pooling, size and shape ----------------------------------------------------------------------------------------------


def _pooling(op: str) -> Callable[[LayerReader, FlatLayer], None]:
    def read(reader: LayerReader, layer: FlatLayer) -> None:
        _, channels, size = _only_map(reader, layer)
        kernel = _two(layer.config.get("pool_size", 2), layer, "pool_size")
        strides = _two(layer.config.get("strides") or kernel, layer, "strides")
        padding, result = _same_or_valid(layer, size, kernel, strides, (1, 1))
        attributes: dict[str, Any] = {"kernel": kernel, "strides": strides, "padding": padding}
        if op == "average_pool":
            attributes["count_padding"] = False
        reader.emit(layer, op, (channels, *result), attributes)

    return read


def _global_pooling(op: str) -> Callable[[LayerReader, FlatLayer], None]:
    def read(reader: LayerReader, layer: FlatLayer) -> None:
        _, channels, _ = _only_map(reader, layer)
        keep = bool(layer.config.get("keepdims", False))
        reader.emit(layer, op, (channels, 1, 1) if keep else (channels,), {"keep_dimensions": keep})

    return read


def _four(value: Any, layer: FlatLayer, what: str) -> tuple[int, int, int, int]:
    given = value if isinstance(value, list | tuple) else [value, value]
    sides = [each if isinstance(each, list | tuple) else [each, each] for each in given]
    if len(sides) != 2 or any(len(side) != 2 for side in sides):
        raise BadInput(
            f"{layer.key}: expected {what} for both ends of height and width, got {str(value)[:60]}. {AS_IT_IS}"
        )
    top, bottom, left, right = (_whole(each, layer, what, 0) for side in sides for each in side)
    return top, bottom, left, right


def _zero_padding(reader: LayerReader, layer: FlatLayer) -> None:
    _, channels, (height, width) = _only_map(reader, layer)
    top, bottom, left, right = _four(layer.config["padding"], layer, "padding")
    shape = (channels, height + top + bottom, width + left + right)
    reader.emit(layer, "pad", shape, {"padding": (top, bottom, left, right)})


def _cropping(reader: LayerReader, layer: FlatLayer) -> None:
    _, channels, (height, width) = _only_map(reader, layer)
    top, bottom, left, right = _four(layer.config["cropping"], layer, "cropping")
    _crop(reader, layer, channels, (height, width), (top, bottom, left, right))


def _center_crop(reader: LayerReader, layer: FlatLayer) -> None:
    before, channels, size = _only_map(reader, layer)
    target = [_whole(layer.config[side], layer, side) for side in ("height", "width")]
    if target[0] > size[0] or target[1] > size[1]:
        raise BadInput(
            f"{layer.key}: expected images of at least {target}, got {size}: Keras would resize them. {AS_IT_IS}"
        )
    if tuple(target) == size:
        reader.same_as(layer, before)
        return
    ends = [
        end for own, wanted in zip(size, target, strict=True) for end in ((own - wanted) // 2, -(-(own - wanted) // 2))
    ]
    _crop(reader, layer, channels, size, (ends[0], ends[1], ends[2], ends[3]))


def _crop(
    reader: LayerReader, layer: FlatLayer, channels: int, size: tuple[int, int], ends: tuple[int, int, int, int]
) -> None:
    result = (size[0] - ends[0] - ends[1], size[1] - ends[2] - ends[3])
    if min(result) < 1:
        raise BadInput(f"{layer.key}: expected images larger than what is cut off {ends}, got {size}. {AS_IT_IS}")
    reader.emit(layer, "crop", (channels, *result), {"cropping": ends})


def _upsampling(reader: LayerReader, layer: FlatLayer) -> None:
    _, channels, (height, width) = _only_map(reader, layer)
    _expect(layer, interpolation=("nearest", "bilinear"))
    rows, columns = _two(layer.config.get("size", 2), layer, "size")
    op = "upsample" if layer.config.get("interpolation", "nearest") == "nearest" else "upsample_bilinear"
    reader.emit(layer, op, (channels, height * rows, width * columns), {"factors": (rows, columns)})


def _flatten_layer(reader: LayerReader, layer: FlatLayer) -> None:
    (before,) = reader.before(layer)
    _expect(layer, data_format=("channels_last", None))
    if len(before.shape) == 1:
        reader.same_as(layer, before)
    else:
        reader.emit(layer, "flatten", (int(np.prod(before.shape)),))


def _reshape(reader: LayerReader, layer: FlatLayer) -> None:
    (before,) = reader.before(layer)
    count = int(np.prod(before.shape))
    target = [_whole(each, layer, "target_shape", -1) for each in layer.config["target_shape"]]
    known = int(np.prod([each for each in target if each != -1]))
    target = [count // known if each == -1 else each for each in target]
    if int(np.prod(target)) != count:
        raise BadInput(f"{layer.key}: expected a Reshape of {count} numbers, got {target}. {AS_IT_IS}")
    shape = (target[-1], *target[:-1])
    if shape == before.shape:
        reader.same_as(layer, before)
    elif len(shape) == 1:
        reader.emit(layer, "flatten", shape)
    else:
        reader.emit(layer, "reshape" if len(shape) == 3 else "regroup", shape)


def _permute(reader: LayerReader, layer: FlatLayer) -> None:
    (before,) = reader.before(layer)
    own, dims = (*before.shape[1:], before.shape[0]), list(layer.config["dims"])
    if sorted(dims) != list(range(1, len(own) + 1)):
        raise BadInput(f"{layer.key}: expected dims 1 to {len(own)} in some order, got {dims}. {DAMAGED}")
    moved = [own[dim - 1] for dim in dims]
    reader.emit(layer, "transpose", (moved[-1], *moved[:-1]), {"axes": tuple(dim - 1 for dim in dims)})


# Several inputs -------------------------------------------------------------------------------------------------------


def _merged(reader: LayerReader, layer: FlatLayer, op: str, nodes: list[Node]) -> None:
    try:
        # as Keras: (C,) is (1, 1, C) beside (H, W, C)
        shapes = [(*each.shape[1:], each.shape[0]) for each in nodes]
        *size, channels = np.broadcast_shapes(*shapes)
    except ValueError:
        shapes = []
    if not shapes:
        raise BadInput(f"{layer.key}: expected to {op} equal shapes, got {[each.shape for each in nodes]}. {AS_IT_IS}")
    if size:
        nodes = [
            reader.emit(layer, "reshape", (each.shape[0], 1, 1), inputs=[each]) if len(each.shape) == 1 else each
            for each in nodes
        ]
    reader.emit(layer, op, (channels, *size), inputs=nodes)


def _merge(op: str) -> Callable[[LayerReader, FlatLayer], None]:
    def read(reader: LayerReader, layer: FlatLayer) -> None:
        if any(not isinstance(each, Tensor) for each in layer.arguments) or layer.class_name == "TFOpLambda":
            _operation(reader, layer)  # in Keras 3 `x + 3` is an Add as well, though not the layer
            return
        nodes = reader.all_before(layer)
        if len(nodes) < 2 or (op == "subtract" and len(nodes) != 2):
            raise BadInput(f"{layer.key}: expected a {layer.class_name} of two inputs, got {len(nodes)}. {AS_IT_IS}")
        _merged(reader, layer, op, nodes)

    return read


def _concatenate(reader: LayerReader, layer: FlatLayer) -> None:
    nodes = reader.all_before(layer)
    if len({each.shape[1:] for each in nodes}) != 1:
        raise BadInput(f"{layer.key}: expected to join equal sizes, got {[each.shape for each in nodes]}. {AS_IT_IS}")
    _expect(layer, axis=(-1, len(nodes[0].shape), (-1,)))
    if len(nodes) == 1:
        reader.same_as(layer, nodes[0])
        return
    _joined(reader, layer, nodes)


def _joined(reader: LayerReader, layer: FlatLayer, nodes: list[Node]) -> None:
    reader.emit(layer, "concatenate", (sum(each.shape[0] for each in nodes), *nodes[0].shape[1:]), inputs=nodes)


def _bare_concatenation(reader: LayerReader, layer: FlatLayer) -> None:
    """``tf.concat``: its axis is in the call, and Keras 2 notes it beside each of the tensors."""
    axis = next((each for each in (*layer.arguments, *(layer.options or {}).values()) if isinstance(each, int)), None)
    _concatenate(reader, replace(layer, config={"axis": axis}))


def _dropout(reader: LayerReader, layer: FlatLayer) -> None:
    (before,) = reader.before(layer)
    rate = _number(layer.config["rate"], layer, "rate")
    reader.rates[layer.key] = rate
    if layer.config.get("noise_shape") is None and 0 < rate < 1:
        reader.emit(layer, "dropout", before.shape, {"rate": rate})
    else:
        reader.same_as(layer, before)


def _augmentation(reader: LayerReader, layer: FlatLayer) -> None:
    (before,) = reader.before(layer)
    reader.augmentation.append(layer.key)
    reader.same_as(layer, before)  # does nothing when a photo is classified


def _no_effect(reader: LayerReader, layer: FlatLayer) -> None:
    (before,) = reader.before(layer)
    reader.without_effect.append(layer.key)
    reader.same_as(layer, before)


# Newer than the list that the worker lets through, and as harmless: they change photos in training alone.
_MORE_AUGMENTATION = (
    *("AugMix", "CutMix", "MixUp", "RandAugment", "RandomColorDegeneration", "RandomColorJitter", "RandomErasing"),
    *("RandomHeight", "RandomWidth"),  # Keras 2's
    *("RandomGaussianBlur", "RandomGrayscale", "RandomHue", "RandomInvert", "RandomPerspective"),
    *("RandomPosterization", "RandomSaturation", "RandomSharpness", "RandomShear", "Solarization"),
)
# In training they add noise, or a term to the loss; a classified photo passes unchanged.
REGULARISATION = (
    *("SpatialDropout2D", "SpatialDropout1D", "GaussianDropout", "GaussianNoise"),
    *("AlphaDropout", "ActivityRegularization", "Identity"),
)

READERS: dict[str, Callable[[LayerReader, FlatLayer], None]] = {
    "InputLayer": _input,
    "Rescaling": _rescaling,
    "Normalization": _normalization,
    "Resizing": _resizing,
    "CenterCrop": _center_crop,
    **dict.fromkeys(("TFOpLambda", "SlicingOpLambda", "Mean", "Max", "Flip"), _operation),
    **dict.fromkeys((*_SLICES, *_ARITHMETIC, *_ELEMENTWISE), _operation),
    "Stack": _stack,
    **dict.fromkeys(("CustomScaleLayer", "Custom>CustomScaleLayer"), _custom_scale),
    "Lambda": _lambda,
    "Conv2D": _convolution,
    "DepthwiseConv2D": _convolution,
    "SeparableConv2D": _convolution,
    "Conv2DTranspose": _transposed_convolution,
    "Dense": _dense,
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm,
    **{name: _of_one(activation) for name, activation in _ACTIVATION_LAYERS.items()},
    "MaxPooling2D": _pooling("max_pool"),
    "AveragePooling2D": _pooling("average_pool"),
    "GlobalAveragePooling2D": _global_pooling("global_average_pool"),
    "GlobalMaxPooling2D": _global_pooling("global_max_pool"),
    "ZeroPadding2D": _zero_padding,
    "Cropping2D": _cropping,
    "UpSampling2D": _upsampling,
    "Flatten": _flatten_layer,
    "Reshape": _reshape,
    "Permute": _permute,
    "Add": _merge("add"),
    "Subtract": _merge("subtract"),
    "Multiply": _merge("multiply"),
    "Average": _merge("average"),
    "Maximum": _merge("maximum"),
    "Minimum": _merge("minimum"),
    "Concatenate": _concatenate,
    "Dropout": _dropout,
    **dict.fromkeys((*AUGMENTATION, *_MORE_AUGMENTATION), _augmentation),
    **dict.fromkeys(REGULARISATION, _no_effect),
}
# Keras 3's operations without a layer; those of Keras 2 are TFOpLambda.
BARE_OPERATIONS = frozenset(
    name for name, reader in READERS.items() if reader is _operation and "OpLambda" not in name and "." not in name
) | {"Add", "Subtract", "Multiply"}

"""What all readers of layers work with: the nodes so far, the weights that are left, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import numpy as np

from export.graph.nodes import Node
from export.keras_file.flat_layers import AS_IT_IS, DAMAGED, FlatLayer, shared_weights
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
        self.renormed: list[str] = []  # keys of BatchNormalizations with renorm=True
        self.half_precision: list[str] = []
        self.without_channel: set[str] = set()  # nodes whose one channel Keras has no axis for

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
        part: str = "",
    ) -> Node:
        """Add a node; `weights` must be in torch's layout.

        A layer's first node has the layer's name, further ones what they do behind it: ``KEY/relu``. A `part` of what
        the layer computes leaves the name to one after it.
        """
        before = self.all_before(layer) if inputs is None else inputs
        others = (f"{layer.key}/{part or op}{number if number > 1 else ''}" for number in count(1))
        free = (name for name in others if name not in self.nodes)
        name = layer.key if not part and layer.key not in self.nodes else next(free)
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

    def check_dtype(self, layer: FlatLayer) -> None:
        """Note a layer that computes in half precision; refuse one that computes in whole numbers."""
        dtype = layer.config.get("dtype", "float32")
        if isinstance(dtype, dict):
            dtype = dtype["config"].get("name")
        if dtype in ("mixed_float16", "mixed_bfloat16", "float16", "bfloat16", "float64"):
            self.half_precision.append(layer.key)
        elif dtype not in ("float32", None) and layer.class_name != "InputLayer":
            raise BadInput(f"{layer.key}: expected a layer that computes in floating point, got {dtype}. {AS_IT_IS}")


# Emits the nodes of one layer.
Reader = Callable[["LayerReader", FlatLayer], None]
# What to do with a layer that cannot be read, if there is Keras's own for what it does; it keeps the answers.
WRITE_IT = (
    "If layers of Keras's own do the same, put them in its place in the code that builds the model "
    "({example}), then model.load_weights(OLD) and model.save(NEW): the answers stay."
)
_EXAMPLE = "for mobilenet_v2.preprocess_input: Rescaling(1 / 127.5, offset=-1)"


def refused(layer: FlatLayer) -> BadInput:
    """What is raised for a layer without a reader."""
    kind, remedy = layer.class_name, WRITE_IT.format(example=_EXAMPLE)
    if kind == "Lambda":
        why = "code, which this project does not run"
    elif kind in KERAS_OPERATIONS_NOT_READ:
        why = "an operation between layers that is not read here"
    elif kind in KERAS_LAYERS_NOT_READ:
        why, remedy = "a layer that is not read here", AS_IT_IS
    else:
        why = "not Keras's own: what it computes is in its author's code, not in the file"
    return BadInput(f"{layer.key}: expected one of Keras's layers for photos, got {kind}, {why}. {remedy}")


# Keras's own, and not read: their message must not call them somebody's.
KERAS_LAYERS_NOT_READ = frozenset(
    """
    AutoContrast Bidirectional CategoryEncoding Conv1DTranspose Conv3D
    Conv3DTranspose ConvLSTM1D ConvLSTM2D ConvLSTM3D Cropping3D Discretization Einsum
    Embedding Equalization GRU GlobalAveragePooling3D GlobalMaxPooling3D
    HashedCrossing Hashing IntegerLookup LSTM LocallyConnected1D
    LocallyConnected2D Masking MaxPooling3D AveragePooling3D MelSpectrogram
    RNN RandomCrop
    SimpleRNN StringLookup TextVectorization
    UpSampling3D ZeroPadding3D RandomElasticTransform Pipeline
    """.split()  # noqa: SIM905
)
# Keras 3's functions that stand between layers, `keras.ops.argmax` and the like.
KERAS_OPERATIONS_NOT_READ = frozenset(
    """
    Argmax Argmin AveragePool Conv DepthwiseConv SeparableConv Einsum Floor Greater Less LogSoftmax Logsumexp
    MaxPool Mod Moments OneHot Roll Round Sign Tensordot TopK Unstack Where
    """.split()  # noqa: SIM905
)

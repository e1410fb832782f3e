"""Keras classifier -> network of this project, for a team that has nothing but an old Keras file.

The file's architecture becomes a neutral graph (`architecture.py`). If it is a MobileNetV2, the settings that build the
same network in timm follow from it. Whether it *is* the same network is not taken on trust: the timm network is traced,
and its graph must equal the file's, operation by operation, with every padding, epsilon and shape. Any other network is
built from the graph itself (`models/graph_network.py`). Then the weights are copied, each array exactly once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch

from export.graph.layer_names import plain_layer_name
from export.graph.network import describe_nodes
from export.graph.nodes import Graph, Node
from export.keras_file.architecture import KerasGraph, read_keras_graph
from export.keras_file.flat_layers import DAMAGED
from export.keras_file.keras_layer import same_padding
from export.keras_file.preprocessing import likely_range
from export.keras_file.read import KerasFile, read_keras_file
from export.keras_file.readers.axes import keras_shape
from export.torch_to_keras import trace_network
from models.bad_input import BadInput
from models.choices import INTERPOLATIONS, MOST_PIXELS
from models.graph_network import INPUT, GraphClassifier, packed
from models.timm_mobilenetv2 import ARCHITECTURE, Normalise, TimmClassifier

# The input range of the Keras model -> (factor, shift) from values in [0, 1].
INPUT_RANGES = {"unit": (1.0, 0.0), "raw": (255.0, 0.0), "tf": (2.0, -1.0)}
_FAMILY = "mobilenetv2_*"
# What a Keras model gives.
OUTPUTS = ("softmax", "sigmoid", "logits")
# Adam's, if the file does not state it; this is Keras's own default.
_LEARNING_RATE = 1e-3


class NotTimms(BadInput):
    """The network is none that timm builds."""


@dataclass(frozen=True)
class ImportSettings:
    """What the caller states about the file; None means that the file's own value is used.

    Attributes:
        class_names: in the order of the outputs.
        image_size: (height, width) in pixels.
        interpolation: how photos are resized, by Keras's name.
        input_range: what the Keras model takes: ``unit`` [0, 1], ``raw`` 0..255, ``tf`` [-1, 1].
        output: what it gives: ``softmax``, ``sigmoid`` (one output) or ``logits``.
    """

    class_names: Sequence[str] | None = None
    image_size: tuple[int, int] | None = None
    interpolation: str | None = None
    input_range: str | None = None
    output: str | None = None


@dataclass(frozen=True)
class KerasClassifier:
    """A Keras classifier, read into a network of this project.

    Attributes:
        path: the `.h5`.
        file: its contents.
        network: with the file's weights, in eval mode; takes [0, 1], whatever the Keras model takes.
        graph: the network's neutral graph.
        source: the file's graph.
        layer_of: node of `graph` -> node of `source.graph`, except those of normalisation and dropout.
        tensor_of: tensor of `graph` -> tensor of `source.graph`; each tensor of either side occurs once.
        input_range: what the Keras model takes.
        output: what it gives, one of `OUTPUTS`.
        doubled: the node of a last Dense with one output, which is two classes here; None for any other network.
        class_names: in the order of the outputs.
        image_size: (height, width) in pixels.
        interpolation: how photos are resized.
        trainable: ``head`` if every layer of the base is frozen, else ``all``.
        learning_rate: Adam's.
        batch_norm: ``frozen`` if the base is trained but every BatchNorm in it is frozen, else ``train``.
        constants: scale and offset, float64 (3,), that the file's layers apply to [0, 1], before any rounding.
        notes: for the owner: what is in the file but cannot be kept here; none of it changes what is computed.
    """

    path: Path
    file: KerasFile
    network: TimmClassifier
    graph: Graph
    source: KerasGraph
    layer_of: dict[str, str]
    tensor_of: dict[str, str]
    input_range: str
    output: str
    doubled: str | None
    class_names: tuple[str, ...]
    image_size: tuple[int, int]
    interpolation: str
    trainable: str
    learning_rate: float
    batch_norm: str
    constants: tuple[np.ndarray, np.ndarray]
    notes: list[str] = field(default_factory=list)


def read_keras_classifier(path: Path, given: ImportSettings | None = None) -> KerasClassifier:
    """Read a Keras classifier of photos, made of Keras's own layers; saved by Keras 2, Keras 3 or us.

    Args:
        path: the `.h5`, `.keras` or zip.
        given: what the file does not state itself.

    Raises:
        BadInput: the file is damaged, is not such a classifier, or does not state enough.
            The message names layers and arrays.
    """
    given = given or ImportSettings()
    file = read_keras_file(path)
    if file.details.get("fused_batchnorm") is True:
        raise BadInput(
            f"expected a file with its BatchNorm layers, got {path}, into whose convolutions they were folded: what "
            "they were cannot be told from it. Give the file that `lightning export` writes without --fuse_batchnorm."
        )
    source, output, doubled = _as_classifier(read_keras_graph(file, given.image_size), given.output)
    nodes = source.graph.nodes
    if len(nodes[0].shape) != 3 or nodes[0].shape[0] != 3:
        raise BadInput(
            f"expected a model of colour photos, got one that takes {keras_shape(nodes[0])}: {path}. This project's "
            "photos are RGB; lightning upgrade makes a file of it for every Keras."
        )
    image_size = (nodes[0].shape[1], nodes[0].shape[2])
    if image_size[0] * image_size[1] > MOST_PIXELS:
        raise BadInput(
            f"expected photos of at most {MOST_PIXELS // 10**6} megapixels, got a model for {image_size[0]} x "
            f"{image_size[1]} pixels: {path}. Give its real size with --image_size, or save the model again with it."
        )
    preprocessing = _preprocessing(source.graph)
    input_range = _input_range(file, source.graph, given.input_range)
    constants = _constants(preprocessing, input_range)
    body = _body(source.graph, len(preprocessing))
    notes = [note for note in source.notes if not source.augmentation or note != source.notes[0]]
    if source.augmentation:
        notes.append(
            f"{', '.join(source.augmentation)}: left out, as such layers do nothing when a photo is classified; "
            "further training changes photos as --data.augmentation says."
        )
    network: TimmClassifier
    try:
        said: list[str] = []
        settings = _settings(file, source, body, constants, said)
        network = TimmClassifier(body[-1].shape[0], **settings).eval()
        _check_constants(network.normalise, constants)
        graph = trace_network(network, network.backbone_name, image_size)
        layer_of = _match(_body(graph, len(_preprocessing(graph))), body)
        tensor_of = _copy_weights(network, graph, source.graph, layer_of, file.details)
        trainable, batch_norm = _frozen(source, body, notes)
        notes += said
    except NotTimms:
        stated = file.details.get("architecture")
        if isinstance(stated, dict) and "graph" not in stated:
            raise  # a file of ours whose layers are not those that it describes
        network, layer_of, constants = _from_graph(source.graph, preprocessing, constants, input_range)
        graph = trace_network(network, network.backbone_name, image_size)
        tensor_of = _copy_weights(network, graph, source.graph, layer_of, file.details)
        own = [source.graph.node(layer_of[node["name"]]) for node in network.backbone.nodes]
        trainable, batch_norm = _frozen(source, own, notes)
    if doubled:
        notes.append(
            f"{source.graph.node(doubled).source}: its one output is two classes here, the first with logit 0: their "
            "softmax is exactly the file's sigmoid, and its value is the second class's."
        )
    return KerasClassifier(
        path=Path(path),
        file=file,
        network=network,
        graph=Graph(graph.nodes, {name: source.graph.tensors[other] for name, other in tensor_of.items()}),
        source=source,
        layer_of=layer_of,
        tensor_of=tensor_of,
        input_range=input_range,
        output=output,
        doubled=doubled,
        class_names=_class_names(file, given.class_names, body[-1].shape[0], bool(doubled)),
        image_size=image_size,
        interpolation=_interpolation(file, given.interpolation),
        trainable=trainable,
        learning_rate=_learning_rate(file, notes),
        batch_norm=batch_norm,
        constants=constants,
        notes=notes,
    )


# Output ---------------------------------------------------------------------------------------------------------------


def _as_classifier(source: KerasGraph, given: str | None) -> tuple[KerasGraph, str, str | None]:
    """The same with softmax over two classes or more at its end; what the file gives; and the node that was doubled.

    A single output z (its sigmoid) becomes two logits, 0 and z, whose softmax is the same: 1 - sigmoid(z), sigmoid(z).
    """
    graph, last = source.graph, source.graph.output
    if given is not None and given not in OUTPUTS:
        raise BadInput(f"--output: expected one of {', '.join(OUTPUTS)}, received {given!r}. Name one.")
    if len(last.shape) != 1:
        raise BadInput(
            f"{last.source}: expected a classifier, got a model that gives a map of shape {last.shape}. Only "
            "classifiers are imported."
        )
    own = {"softmax": "softmax", "activation": "sigmoid"}.get(last.op, "logits")
    if last.op == "activation" and last.attributes["function"] != "sigmoid":
        own = "logits"
    if given is not None and given != own:
        raise BadInput(
            f"--output {given}: expected the file's own, {own}: its last layer is {last.source} "
            f"({source.layers[last.source].class_name}). Leave it out, or give --output {own}."
        )
    if own == "logits" and given is None:
        raise BadInput(
            f"--output: expected to be told what this model gives, received nothing, and its last layer "
            f"{last.source} ({source.layers[last.source].class_name}) ends in neither softmax nor sigmoid. If it was "
            "trained with from_logits=True, give --output logits."
        )
    if last.shape[0] == 1 and own != "softmax":
        return (*_doubled(source, last, own),)
    if own == "sigmoid":
        raise BadInput(
            f"{last.source}: expected classes that exclude each other, got {last.shape[0]} sigmoids: each may be true "
            "by itself, which this project does not train. `lightning upgrade` writes the file for every Keras."
        )
    if last.shape[0] < 2:
        raise BadInput(
            f"{last.source}: expected two classes or more, got a softmax of one, which gives 1 for every photo. "
            "There is nothing to import: train it with a sigmoid."
        )
    if own == "softmax":
        return source, own, None
    probabilities = Node("probabilities", "softmax", (last.name,), last.shape)
    return replace(source, graph=Graph((*graph.nodes, probabilities), graph.tensors)), own, None


def _doubled(source: KerasGraph, last: Node, output: str) -> tuple[KerasGraph, str, str]:
    graph = source.graph
    dense = graph.node(last.inputs[0]) if output == "sigmoid" else last
    if dense.op != "dense":
        raise BadInput(
            f"{last.source}: expected a Dense before its one output, got {dense.op}. `lightning upgrade` writes "
            "the file for every Keras."
        )
    tensors = dict(graph.tensors)
    for name in dense.weights.values():
        tensors[name] = np.concatenate([np.zeros_like(tensors[name]), tensors[name]])
    two = replace(dense, shape=(2,))
    name = last.name if output == "sigmoid" else "probabilities"
    softmax = Node(name, "softmax", (dense.name,), (2,), source=last.source if output == "sigmoid" else "")
    kept = [node for node in graph.nodes if node is not dense and node is not last]
    return replace(source, graph=Graph((*kept, two, softmax), tensors)), output, dense.name


def probabilities_of(answers: np.ndarray, output: str) -> np.ndarray:
    """What this project's network gives where a Keras model gives `answers`, (N, C) or (N, 1)."""
    if output != "logits" and answers.shape[-1] > 1:
        return answers
    exact = answers.astype(np.float64)
    if answers.shape[-1] == 1:
        one = exact if output == "sigmoid" else 1 / (1 + np.exp(-exact))
        return np.concatenate([1 - one, one], axis=-1)
    powers = np.exp(exact - exact.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


# Preprocessing --------------------------------------------------------------------------------------------------------


def _preprocessing(graph: Graph) -> list[Node]:
    """The affine nodes right after the input."""
    found = []
    for node in graph.nodes[1:]:
        if node.op != "affine":
            break
        found.append(node)
    return found


def _input_range(file: KerasFile, graph: Graph, given: str | None) -> str:
    stated = _stated(file, "input_range", str)
    if given is not None and given not in INPUT_RANGES:
        raise BadInput(f"--input_range: expected one of {', '.join(INPUT_RANGES)}, received {given!r}. Name one.")
    if stated in ("unit", "raw"):
        if given not in (None, stated):
            raise BadInput(f"--input_range {given}: expected the file's own, {stated!r}. Leave it out.")
        return str(stated)
    if given is not None:
        return given
    shown = likely_range(graph)
    if shown is not None:
        return shown
    raise BadInput(
        "--input_range: expected to be told what this model takes, received nothing, and the file has no "
        "Rescaling that would show it. Give unit for pixels in [0, 1] (ImageDataGenerator(rescale=1/255)), raw for "
        "0..255, or tf for [-1, 1] (mobilenet_v2.preprocess_input)."
    )


def _constants(preprocessing: list[Node], input_range: str) -> tuple[np.ndarray, np.ndarray]:
    """Scale and offset, float64 (3,), from [0, 1] to what the first convolution takes."""
    factor, shift = INPUT_RANGES[input_range]
    scale, offset = np.full(3, factor), np.full(3, shift)
    for node in preprocessing:
        own = np.asarray(node.attributes["scale"], np.float64)
        scale, offset = scale * own, offset * own + np.asarray(node.attributes["offset"], np.float64)
    return scale, offset


def _check_constants(normalise: Normalise, constants: tuple[np.ndarray, np.ndarray]) -> None:
    """Refuse settings whose constants, as float32, differ from the file's."""
    built = normalise.scale.reshape(-1).numpy(), normalise.offset.reshape(-1).numpy()
    for name, own, wanted in zip(("scale", "offset"), built, constants, strict=True):
        # compare values, not bits: adding 0.0 or -0.0 makes no difference
        if not np.array_equal(own, wanted.astype(np.float32)):
            raise BadInput(
                f"expected normalisation with {name} {wanted.tolist()}, as the file's layers have it, got "
                f"{own.tolist()} from its own description. {DAMAGED}"
            )


def _shortest(accepts: Any, exact: float) -> float:
    """The shortest decimal number near `exact` that is accepted: 0.224, not 0.22400000691413885."""
    for digits in range(1, 18):
        number = float(f"{exact:.{digits}g}")
        if accepts(number):
            return number
    return exact


def _mean_and_std(constants: tuple[np.ndarray, np.ndarray]) -> tuple[list[float], list[float]]:
    """Mean and std from which `Normalise` computes exactly these constants, to the last bit of float32."""
    means, stds = [], []
    for scale, offset in zip(*(each.astype(np.float32) for each in constants), strict=True):
        if not scale > 0 or not np.isfinite(offset):
            raise NotTimms(f"expected a Rescaling by a number above zero, got {scale}.")
        std = _shortest(lambda std, scale=scale: std > 0 and np.float32(1.0 / std) == scale, 1.0 / float(scale))
        mean = _shortest(lambda mean, offset=offset, std=std: np.float32(-mean / std) == offset, -float(offset) * std)
        means.append(mean if mean else 0.0)
        stds.append(std)
    return means, stds


# Settings -------------------------------------------------------------------------------------------------------------


def _body(graph: Graph, preprocessing: int) -> list[Node]:
    """The nodes after input and preprocessing, in order, without those that have no effect in inference."""
    alias = {node.name: graph.nodes[0].name for node in graph.nodes[: preprocessing + 1]}
    body = []
    for node in graph.nodes[preprocessing + 1 :]:
        inputs = tuple(alias.get(name, name) for name in node.inputs)
        if node.op == "dropout" or (node.op == "flatten" and graph.node(node.inputs[0]).shape[1:] in ((), (1, 1))):
            alias[node.name] = inputs[0]
        elif node.op == "average_pool" and _is_global(graph, node):
            attributes = {"keep_dimensions": True}
            body.append(replace(node, op="global_average_pool", inputs=inputs, attributes=attributes))
        else:
            body.append(replace(node, inputs=inputs))
    return body


def _is_global(graph: Graph, node: Node) -> bool:
    """Whether a pooling's window is the whole map."""
    return tuple(node.attributes["kernel"]) == graph.node(node.inputs[0]).shape[1:] and node.shape[1:] == (1, 1)


# Networks that timm does not have -------------------------------------------------------------------------------------


def _from_graph(
    graph: Graph, preprocessing: list[Node], constants: tuple[np.ndarray, np.ndarray], input_range: str
) -> tuple[GraphClassifier, dict[str, str], tuple[np.ndarray, np.ndarray]]:
    """A network built from the graph, its nodes' counterparts in the graph, and the constants of its normalisation."""
    try:
        mean, std = _mean_and_std(constants)
    except NotTimms:  # such as a negative scale: the file's own layers stay, after the range is adapted
        preprocessing, constants = [], _constants([], input_range)
        mean, std = _mean_and_std(constants)
    names = _plain_names(graph.nodes[len(preprocessing) + 1 :])
    first = graph.nodes[len(preprocessing)].name
    plain = {first: INPUT, **names}
    # the softmax is the loss's and the exporter's
    body = [
        replace(
            node,
            name=plain[node.name],
            inputs=tuple(plain[name] for name in node.inputs),
            # an activation that was inside a layer is so again in the twin, and the layer gives what it gave
            inside=plain[node.inputs[0]] if node.source == graph.node(node.inputs[0]).source else "",
        )
        for node in graph.nodes[len(preprocessing) + 1 : -1]
    ]
    split = _head_begins(body)
    described = {
        part: describe_nodes(nodes, graph.tensors)
        for part, nodes in (("backbone", body[:split]), ("head", body[split:]))
    }
    network = GraphClassifier(graph.output.shape[0], packed(described), mean, std).eval()
    layer_of = {plain[name]: name for name in names}
    layer_of["probabilities"] = layer_of.pop(plain[graph.output.name])
    return network, layer_of, constants


def _plain_names(nodes: Sequence[Node]) -> dict[str, str]:
    """Node -> a name without slashes, the layer's own where no other has it; ``hidden_relu`` for what is behind it."""
    taken, names = {"image", INPUT, "probabilities"}, {}
    for node in nodes:
        own = node.source.rpartition("/")[2] + node.name.removeprefix(node.source)
        candidates = [plain_layer_name(own), plain_layer_name(node.name)]
        candidates += [f"{candidates[1]}_{number}" for number in range(1, len(nodes) + 4)]
        names[node.name] = next(name for name in candidates if name not in taken)
        taken.add(names[node.name])
    return names


def _head_begins(body: list[Node]) -> int:
    """Index of the first node after the pooled features: what follows is one dense layer after the other.

    A head without weights could not be trained: it begins at the last layer that has some.
    """
    readers: dict[str, int] = {}
    for name in (name for node in body for name in node.inputs):
        readers[name] = readers.get(name, 0) + 1
    begin = len(body)
    while begin > 1:
        node = body[begin - 1]
        in_line = node.inputs == (body[begin - 2].name,) and readers[node.inputs[0]] == 1
        pools = node.op in ("flatten", "global_average_pool", "global_max_pool")
        if not in_line or (any(each.weights for each in body[begin:]) and (len(node.shape) != 1 or pools)):
            break
        begin -= 1
    if not any(node.weights for node in body[begin:]):
        raise BadInput(
            "expected a classifier that ends in a layer with weights, got one whose last layers have none. `lightning "
            "upgrade` writes the file for every Keras."
        )
    return begin


def _settings(
    file: KerasFile,
    source: KerasGraph,
    body: list[Node],
    constants: tuple[np.ndarray, np.ndarray],
    notes: list[str],
) -> dict[str, Any]:
    """The values of `ARCHITECTURE` for the network in the file."""
    if body[-1].op != "softmax":
        raise NotTimms(
            f"expected a classifier that ends in softmax, got {body[-1].op} at {body[-1].source}. Save it with "
            "activation='softmax' in its last Dense layer, or with a Softmax layer after it."
        )
    dense = [node for node in body if node.op == "dense"]
    mean, std = _mean_and_std(constants)
    inferred = {
        "backbone": _backbone(source.graph, body),
        "hidden": [node.shape[0] for node in dense[:-1]],
        "dropout": _dropout(source, dense, notes),
        "pad_type": _pad_type(source.graph, body),
        "bn_eps": _epsilon(body),
        "mean": mean,
        "std": std,
    }
    stated = file.details.get("architecture")
    if not isinstance(stated, dict):
        return inferred
    # A file of ours states its architecture. That may distinguish settings that compute the same here (padding of odd
    # sizes, digits of the mean beyond float32). Settings that change the function are compared with the layers below.
    if set(stated) != set(ARCHITECTURE):
        raise NotTimms(
            f"expected the file to describe {', '.join(ARCHITECTURE)}, got {', '.join(map(str, stated))}. {DAMAGED}"
        )
    for name in ("backbone", "hidden", "bn_eps"):
        if stated[name] != inferred[name]:
            raise NotTimms(
                f"expected the file's description and its layers to agree, got {name} {str(stated[name])[:80]} and "
                f"{inferred[name]}. {DAMAGED}"
            )
    return dict(stated)


@cache
def _kernels_of(backbone: str) -> list[tuple[int, ...]]:
    """Shapes of all convolutions of a timm model, in the order of computation; nothing is allocated."""
    with torch.device("meta"):
        network = timm.create_model(backbone, pretrained=False, num_classes=0)
    return [tuple(module.weight.shape) for module in network.modules() if isinstance(module, torch.nn.Conv2d)]


def _backbone(graph: Graph, body: list[Node]) -> str:
    """The timm name of the MobileNetV2 with these channels."""
    kernels = [graph.tensors[node.weights["kernel"]].shape for node in body if node.op == "conv2d"]
    names = timm.list_models(_FAMILY)
    for name in names:
        if _kernels_of(name) == kernels:
            return name
    stem = kernels[0][0] if kernels else 0
    raise NotTimms(
        f"expected the channels of a MobileNetV2 that timm has ({', '.join(names)}), got {len(kernels)} convolutions, "
        f"the first with {stem} channels, the last with {kernels[-1][0] if kernels else 0}. Of keras.applications, "
        "alpha 0.35, 0.5, 0.75, 1.0 and 1.4 have a counterpart in timm; 1.3 has none."
    )


def _epsilon(body: list[Node]) -> float:
    epsilons = {node.attributes["epsilon"]: node.source for node in body if node.op == "batch_norm"}
    if len(epsilons) != 1:
        shown = ", ".join(f"{epsilon:g} at {name}" for epsilon, name in epsilons.items())
        raise NotTimms(f"expected one epsilon in all BatchNormalization layers, got {shown or 'no such layer'}.")
    return float(next(iter(epsilons)))


def _pad_type(graph: Graph, body: list[Node]) -> str:
    """``same`` if every convolution pads like TensorFlow's SAME at this size, "" if every one pads symmetrically."""
    shape = {node.name: node.shape for node in body} | {graph.nodes[0].name: graph.nodes[0].shape}
    fits = {"same": True, "": True}
    for node in body:
        if node.op != "conv2d":
            continue
        (_, height, width), kernel = shape[node.inputs[0]], graph.tensors[node.weights["kernel"]].shape[2:]
        strides, dilation, padding = (node.attributes[name] for name in ("strides", "dilation", "padding"))
        same = (
            *same_padding(height, kernel[0], strides[0], dilation[0]),
            *same_padding(width, kernel[1], strides[1], dilation[1]),
        )
        symmetric = tuple(half for size in kernel for half in (size // 2, size // 2))
        fits = {"same": fits["same"] and padding == same, "": fits[""] and padding == symmetric}
        if not any(fits.values()):
            raise NotTimms(
                f"{node.source}: expected the padding of TensorFlow's SAME {same} at {height}x{width} pixels, or "
                f"{symmetric} in every layer, got {padding} (top, bottom, left, right). timm has no such MobileNetV2."
            )
    return "same" if fits["same"] else ""


def _dropout(source: KerasGraph, dense: list[Node], notes: list[str]) -> float:
    """The rate after each hidden layer (without hidden layers, before the predictions), if the file has it there."""
    order = list(source.layers)
    places = [order.index(node.source) for node in dense]
    # for each Dropout, how many dense layers come before it
    found = {key: sum(order.index(key) > place for place in places) for key in source.rates}
    expected = list(range(1, len(dense))) if len(dense) > 1 else [0]
    rates = set(source.rates.values())
    if not found:
        return 0.0
    if sorted(found.values()) == expected and len(rates) == 1 and 0 <= min(rates) < 1:
        return rates.pop()
    fitting = {rate for key, rate in source.rates.items() if found[key] in expected and 0 <= rate < 1}
    rate = fitting.pop() if len(fitting) == 1 else 0.0
    shown = ", ".join(f"{key} ({each:g})" for key, each in source.rates.items())
    notes.append(
        f"Dropout {shown}: not where this project's head has it; further training takes {rate:g} after each hidden "
        "layer. What the network computes is not touched."
    )
    return rate


def _frozen(source: KerasGraph, body: list[Node], notes: list[str]) -> tuple[str, str]:
    """Which part of the base is frozen, as `trainable` and `batch_norm`."""
    base = [source.layers[node.source] for node in body if node.op in ("conv2d", "batch_norm")]
    norms = [source.layers[node.source] for node in body if node.op == "batch_norm"]
    frozen = [layer for layer in base if layer.config.get("trainable", True) is False]
    if len(frozen) == len(base):
        return "head", "train"
    if frozen and frozen == norms:
        return "all", "frozen"
    if frozen:
        notes.append(f"{len(frozen)} of {len(base)} layers of the base are frozen: further training takes all of them.")
    return "all", "train"


def _learning_rate(file: KerasFile, notes: list[str]) -> float:
    optimiser = (file.training_config or {}).get("optimizer_config")
    optimiser = optimiser if isinstance(optimiser, dict) else {}
    config = optimiser.get("config")
    rate = config.get("learning_rate") if isinstance(config, dict) else None
    if optimiser.get("class_name") in ("Adam", "Custom>Adam") and isinstance(rate, float) and 0 < rate < np.inf:
        # Keras holds the rate as float32 and saves that value: 0.0010000000474974513 was 0.001
        rounded = float(np.float32(rate)) == rate
        return _shortest(lambda short: np.float32(short) == np.float32(rate), rate) if rounded else rate
    if file.training_config:
        notes.append(f"Optimiser {optimiser.get('class_name')}: further training takes Adam at {_LEARNING_RATE:g}.")
    return _LEARNING_RATE


def _interpolation(file: KerasFile, given: str | None) -> str:
    name = file.details.get("interpolation", "nearest") if given is None else given
    if name not in INTERPOLATIONS:
        of = "the file's own interpolation" if given is None else "--interpolation or that of --labels"
        raise BadInput(f"{of}: expected one of {', '.join(INTERPOLATIONS)}, received {name!r}. Name one.")
    return str(name)


def names_stated(file: KerasFile, doubled: bool) -> list[Any] | None:
    """The class names that a file states; the one of a single output, which becomes two classes, is the second's."""
    names = _stated(file, "class_names", list)
    return [f"not {names[0]}", names[0]] if names and doubled and len(names) == 1 else names


def _class_names(file: KerasFile, given: Sequence[str] | None, count: int, doubled: bool) -> tuple[str, ...]:
    stated = names_stated(file, doubled)
    names = list(given) if given is not None else stated
    if names is None:
        raise BadInput(
            f"expected the names of the {count} classes, received none: a Keras file does not hold them. Give "
            "--class_names jeans,sofa,... in the order of the outputs (flow_from_directory's is sorted), "
            "--labels labels.json, or --photos_root with one folder per class."
        )
    if len(names) != count or len(set(names)) != count or not all(isinstance(name, str) and name for name in names):
        raise BadInput(
            f"expected {count} different class names, as many as the model has outputs, received {len(names)}: "
            f"{', '.join(map(str, names))[:200]}. Name each class once, in the order of the outputs."
        )
    return tuple(names)


def _stated(file: KerasFile, name: str, kind: type) -> Any:
    value = file.details.get(name)
    return value if isinstance(value, kind) else None


# Comparing the graphs -------------------------------------------------------------------------------------------------

# Not compared, because the function does not depend on them: momentum matters only in training, and a pooled value is
# the same whether it is flattened or not.
_NOT_COMPARED = ("momentum", "keep_dimensions")


def _match(ours: list[Node], theirs: list[Node]) -> dict[str, str]:
    """Node of ours -> node of theirs; both sides must compute the same in the same order.

    Raises:
        BadInput: at the first node that has no counterpart; the message uses the file's name for it.
    """
    start_ours, start_theirs = ours[0].inputs[0], theirs[0].inputs[0]
    found = {start_ours: start_theirs}
    waiting: dict[tuple[str, tuple[str, ...]], list[Node]] = {}
    for node in theirs:
        # the inputs are sorted, because a sum is the same in either order
        waiting.setdefault((node.op, tuple(sorted(node.inputs))), []).append(node)
    for node in ours:
        inputs = tuple(sorted(found[name] for name in node.inputs))
        candidates = waiting.get((node.op, inputs), [])
        if len(candidates) != 1:
            raise NotTimms(
                f"expected {_described(node)} after {' and '.join(inputs)}, got "
                f"{'several' if candidates else _what_follows(theirs, inputs)}. This is not the MobileNetV2 classifier "
                f"that timm builds with these channels."
            )
        other = candidates.pop()
        wanted, got = _facts(node), _facts(other)
        differing = [name for name in wanted if wanted[name] != got.get(name)] + sorted(got.keys() - wanted.keys())
        if differing:
            shown = "; ".join(f"{name} {got.get(name)}, not {wanted.get(name)}" for name in differing)
            raise NotTimms(f"{other.source}: expected {_described(node)} as timm builds it, got {shown}.")
        found[node.name] = other.name
    left = [node.source for nodes in waiting.values() for node in nodes]
    if left:
        raise NotTimms(f"expected only layers of a MobileNetV2 classifier, got {left[0]} besides.")
    return {name: other for name, other in found.items() if name != start_ours}


def _described(node: Node) -> str:
    return f"{node.op} ({node.source or node.name})"


def _what_follows(theirs: list[Node], inputs: tuple[str, ...]) -> str:
    following = [f"{node.op} ({node.source})" for node in theirs if set(node.inputs) & set(inputs)]
    return " and ".join(following) or "nothing"


def _facts(node: Node) -> dict[str, Any]:
    attributes = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in node.attributes.items()
        if name not in _NOT_COMPARED
    }
    size = tuple(side for side in node.shape[1:] if node.shape[1:] != (1, 1))  # (C, 1, 1) counts as (C,)
    return {**attributes, "channels": node.shape[0], "size": size, "weights": tuple(sorted(node.weights))}


# Weights --------------------------------------------------------------------------------------------------------------


def _copy_weights(
    network: TimmClassifier, graph: Graph, source: Graph, layer_of: dict[str, str], details: dict[str, Any]
) -> dict[str, str]:
    """Fill the network: every array of the file and every tensor of the network is used exactly once."""
    tensor_of = {
        tensor: source.node(layer_of[node.name]).weights[role]
        for node in graph.nodes
        if node.weights
        for role, tensor in node.weights.items()
    }
    unused = sorted(source.tensors.keys() - set(tensor_of.values()))
    if unused or len(set(tensor_of.values())) != len(tensor_of):
        raise NotTimms(f"expected every array to be used exactly once, got {', '.join(unused) or 'one used twice'}.")
    state = network.state_dict()
    counters = [name for name in state if name.endswith("num_batches_tracked")]
    missing = sorted(state.keys() - tensor_of.keys() - set(counters))
    if missing:
        raise NotTimms(f"expected an array for every tensor, got none for {', '.join(missing)}.")
    filled = dict(zip(counters, _counts(details, len(counters)), strict=True))
    for tensor, name in tensor_of.items():
        array = source.tensors[name]
        if array.shape != tuple(state[tensor].shape):
            raise NotTimms(f"{name}: expected shape {tuple(state[tensor].shape)}, got {array.shape} (torch's layout).")
        filled[tensor] = torch.from_numpy(array.copy())
    network.load_state_dict(filled)
    return tensor_of


def _counts(details: dict[str, Any], count: int) -> list[torch.Tensor]:
    """How many batches each BatchNorm has seen in training. Keras has no such counter, but our own files store it."""
    stated = details.get("batches_tracked", 0)
    numbers = stated if isinstance(stated, list) else [stated] * count
    if len(numbers) != count or not all(isinstance(each, int) and 0 <= each < 1 << 62 for each in numbers):
        raise BadInput(f"expected batches_tracked as {count} whole numbers, got {str(stated)[:80]}. {DAMAGED}")
    return [torch.tensor(each, dtype=torch.int64) for each in numbers]

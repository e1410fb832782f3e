"""A torch module built from a description of its operations: for networks that timm does not have.

The description is plain data, so that a checkpoint can hold it: a list of nodes as in `export.graph.nodes`, each with
``name``, ``op``, ``inputs``, ``shape``, ``attributes`` and ``weights`` (role -> shape). Operations with weights are
torch's own modules, so that training treats them as any other network's (`modules.py`); all others are functions
(`functions.py`).
"""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from models.bad_input import BadInput
from models.graph_network.functions import FUNCTIONS
from models.graph_network.modules import MODULES, TENSORS
from models.timm_mobilenetv2 import Normalise, TimmClassifier, three_floats

Description = Sequence[Mapping[str, Any]]


class GraphNetwork(nn.Module):
    """The operations of a description, one after the other.

    The weights are ordinary parameters and buffers under ``layers.NAME``, NAME being the node's with underscores for
    whatever a module's name may not have.

    Args:
        nodes: the description; each node reads nodes before it, or the network's input under the name `source`.
        source: name of the input.

    Raises:
        KeyError, TypeError, ValueError: the description is none that this class can build.
    """

    def __init__(self, nodes: Description, source: str) -> None:
        super().__init__()
        self.source = source
        self.nodes = [dict(node) for node in nodes]
        self.layers = nn.ModuleDict()
        self.module_of: dict[str, str] = {}  # node name -> key in `layers`
        shapes: dict[str, tuple[int, ...] | None] = {source: None}
        for node in self.nodes:
            missing = [name for name in node["inputs"] if name not in shapes]
            if missing or node["name"] in shapes:
                raise ValueError(f"node {node['name']!r} is named twice or reads {missing} before they are computed")
            if node["op"] in MODULES:
                self.module_of[node["name"]] = key = self._unique(node["name"])
                self.layers[key] = MODULES[node["op"]](node)
            elif node["op"] not in FUNCTIONS:
                raise ValueError(f"node {node['name']!r} has the unknown operation {node['op']!r}")
            shapes[node["name"]] = tuple(node["shape"])
        self.output = self.nodes[-1]["name"] if self.nodes else source

    def _unique(self, name: str) -> str:
        plain = re.sub(r"[^0-9A-Za-z_]+", "_", name) or "layer"
        key, number = plain, 0
        while key in self.layers or hasattr(self.layers, key):  # some names are methods of a ModuleDict
            number += 1
            key = f"{plain}_{number}"
        return key

    def tensor_name(self, node: str, role: str) -> str:
        """Name in the state dict of the tensor that a node has in a role (``kernel``, ``gamma``, ...)."""
        return f"layers.{self.module_of[node]}.{TENSORS[role]}"

    def forward(self, images: Tensor, record: dict[str, Tensor] | None = None) -> Tensor:
        """Compute the last node's output.

        Args:
            images: the input, (B, C, H, W) or (B, C).
            record: is filled with the output of every node, by name.
        """
        values = {self.source: images}
        last_reader = {name: node["name"] for node in self.nodes for name in node["inputs"]}
        for node in self.nodes:
            name, inputs = node["name"], [values[each] for each in node["inputs"]]
            if name in self.module_of:
                values[name] = self.layers[self.module_of[name]](*inputs)
            else:
                values[name] = FUNCTIONS[node["op"]](node, *inputs)
            if record is not None:
                record[name] = values[name]
            for each in node["inputs"]:  # what nothing reads any more need not be kept
                if last_reader[each] == name and each != self.source:
                    values.pop(each, None)
        return values[self.output]


# The whole classifier -------------------------------------------------------------------------------------------------

# A description that unpacks to more than this is none of a classifier's.
_MOST_TEXT = 64 << 20


def packed(description: dict[str, Any]) -> str:
    """A description as one line of text (JSON, compressed, base64), for hyper-parameters."""
    return base64.b64encode(zlib.compress(json.dumps(description).encode(), 9)).decode()


def unpacked(text: str) -> dict[str, Any]:
    """The opposite of `packed`.

    Raises:
        BadInput: the text is none, or too long.
    """
    try:
        unpacker = zlib.decompressobj()
        content = unpacker.decompress(base64.b64decode(text, validate=True), _MOST_TEXT)
        if unpacker.unconsumed_tail:
            raise ValueError("too long")
        description = json.loads(content)
        if not isinstance(description, dict) or set(description) != {"backbone", "head"}:
            raise ValueError("no description of backbone and head")
    except (ValueError, TypeError, zlib.error, RecursionError) as error:
        raise BadInput(
            f"--model.graph: expected what `lightning import` wrote, received something else ({error}). Leave it to "
            "--ckpt_path."
        ) from error
    return description


class GraphClassifier(TimmClassifier):
    """A classifier that came from a Keras file and has no counterpart in timm.

    It has the parts of a `TimmClassifier`, so that it trains, predicts and is exported like one: normalisation, a
    backbone up to the features, and a head.

    Args:
        num_classes: as many as the head gives logits.
        graph: from `packed`: a description for ``backbone`` (it reads ``image``) and one for ``head``.
        mean: per channel, for pixels of 0 to 1.
        std: per channel, for pixels of 0 to 1, above zero.

    Raises:
        BadInput: the description is none that can be built, or gives another number of logits.
    """

    def __init__(self, num_classes: int, graph: str, mean: Any, std: Any) -> None:
        nn.Module.__init__(self)
        self.num_classes, self.backbone_name, self.graph = num_classes, IMPORTED, graph
        # what the settings of a timm network would say; the description says it for each layer
        self.hidden, self.dropout, self.pad_type, self.bn_eps = (), 0.0, "", None
        self.mean, self.std = three_floats(mean, "mean"), three_floats(std, "std")
        if min(self.std) <= 0:
            raise BadInput(f"--model.std: expected numbers above zero, received {std!r}. It divides the pixels.")
        self.normalise = Normalise(self.mean, self.std)
        description = unpacked(graph)
        try:
            self.backbone: Any = GraphNetwork(description["backbone"], INPUT)
            self.head: Any = GraphNetwork(description["head"], self.backbone.output)
            shape = list(self.head.nodes[-1]["shape"])
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError, OverflowError) as error:
            raise BadInput(
                f"--model.graph: expected the description of a network, received one that raises "
                f"{type(error).__name__}: {str(error)[:200]}. Leave it to --ckpt_path."
            ) from error
        if shape != [num_classes]:
            raise BadInput(f"--model.graph: expected {num_classes} logits, received a network that gives {shape}.")

    @property
    def architecture(self) -> dict[str, Any]:
        """As `TimmClassifier.architecture`, and ``graph``."""
        return {**super().architecture, "graph": self.graph}


# Name of a backbone that is described by a graph, and of the graph's input.
IMPORTED = "imported"
INPUT = "normalise"


def build_classifier(num_classes: int, graph: str | None = None, **architecture: Any) -> TimmClassifier:
    """The classifier that settings describe: a `TimmClassifier`, or a `GraphClassifier` if there is a graph.

    Args:
        num_classes: at least 2.
        graph: from `packed`; only ``mean`` and ``std`` of the other settings count then.
        architecture: the settings of `TimmClassifier`.

    Raises:
        BadInput: as the two raise it.
    """
    if graph is None:
        return TimmClassifier(num_classes, **architecture)
    return GraphClassifier(num_classes, graph, architecture["mean"], architecture["std"])

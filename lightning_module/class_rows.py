"""The last layer when the classes change: its rows are matched by name, and kept, added or dropped."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from torch import nn

from export.checkpoint import read_checkpoint
from models.bad_input import BadInput, other_names, quoted, some_lines_of
from models.graph_network import GraphClassifier, packed, unpacked
from models.state_dicts import misfits
from models.timm_mobilenetv2 import TimmClassifier

Classes = Literal["match", "strict"]
"""What is done about a checkpoint of other classes than the photos have: match them by name, or refuse it."""

MOST_ROWS = 100
"""Lines of the table of classes."""

_OF_EACH_CHANNEL = {
    "activation", "average_pool", "dropout", "elu", "flatten", "global_average_pool", "global_max_pool", "hard_sigmoid",
    "hard_swish", "leaky_relu", "max_pool", "mish", "relu", "threshold",
}  # fmt: skip
"""Operations that may come after the layer whose rows are classes: each class stays by itself."""


@dataclass(frozen=True)
class ClassRows:
    """Which row of a checkpoint's last layer each class has.

    Attributes:
        source: the checkpoint.
        before: its classes, in the order of its outputs.
        after: the photos' classes, in the order of the outputs from now on.
    """

    source: Path
    before: tuple[str, ...]
    after: tuple[str, ...]

    @property
    def kept(self) -> list[tuple[int, int]]:
        """(row now, row in the checkpoint) of each class that both have."""
        rows = {name: row for row, name in enumerate(self.before)}
        return [(row, rows[name]) for row, name in enumerate(self.after) if name in rows]

    @property
    def differ(self) -> bool:
        """Whether anything has changed, the order too."""
        return self.before != self.after

    def __str__(self) -> str:
        """Return the table: changes first, a line for each class, `MOST_ROWS` at most."""
        then, now = ({name: row for row, name in enumerate(names)} for names in (self.before, self.after))
        rows = [(name, "-", str(now[name]), "added, with fresh weights") for name in self.after if name not in then]
        rows += [(name, str(then[name]), "-", "dropped") for name in self.before if name not in now]
        both = sorted((name for name in self.after if name in then), key=lambda name: then[name] == now[name])
        rows += [
            (name, str(then[name]), str(now[name]), "kept" if then[name] == now[name] else "kept, moved")
            for name in both
        ]
        width = min(40, max(len(name) for name, *_ in [("class",), *rows]))
        lines = [
            f"{_short(name, width):<{width}}  {before:>6}  {after:>6}  {what}" for name, before, after, what in rows
        ]
        head = f"  {'class':<{width}}  {'before':>6}  {'now':>6}"
        return f"Classes matched by name with those of {self.source}:\n{head}\n{some_lines_of(lines, MOST_ROWS)}"


def _short(name: str, width: int) -> str:
    return name if len(name) <= width else f"{name[: width - 3]}..."


def match_classes(source: Path, before: list[str], after: list[str], classes: Classes) -> ClassRows:
    """Match a checkpoint's classes by name with those of the photos.

    Args:
        source: the checkpoint, for messages.
        before: its classes.
        after: the photos' classes.
        classes: whether they may differ.

    Raises:
        BadInput: they differ and must not; or no name is in both.
    """
    rows = ClassRows(source, tuple(before), tuple(after))
    if rows.differ and classes == "strict":
        order = " The names are the same, in another order." if {*before} == {*after} else ""
        raise BadInput(
            f"--model.classes strict: expected the classes of {source}, {quoted(before)}, received photos of "
            f"{quoted(after)} ({other_names(before, after)}).{order} Give the photos of the same classes with "
            "--data.root, or match them by name with --model.classes match."
        )
    if not rows.kept:
        raise BadInput(
            f"--model.classes: expected photos of at least one class of {source}, {quoted(before)}, received "
            f"{quoted(after)}. Name the folders or labels as the checkpoint does; or, where its classes are numbers, "
            "give them their names when it is imported (`lightning import ... --class_names`)."
        )
    return rows


def with_outputs(graph: str, count: int) -> str:
    """Return the description of an imported network with another number of classes; its weights are not part of it.

    Args:
        graph: as `models.graph_network.packed` wrote it.
        count: how many logits it gives from now on.

    Raises:
        BadInput: the network does not end in a layer with a row for each class.
    """
    description = unpacked(graph)
    nodes = description["head"]
    try:
        if nodes[-1]["shape"] == [count]:
            return graph
        place = _last_layer(nodes)
        for node in nodes[place:]:
            node["shape"] = [count, *node["shape"][1:]]
        nodes[place]["weights"] = {role: [count, *shape[1:]] for role, shape in nodes[place]["weights"].items()}
    except (KeyError, TypeError, IndexError, AttributeError):
        return graph  # it is no description of a network; GraphClassifier says so
    return packed(description)


def _last_layer(nodes: list[dict[str, Any]]) -> int:
    """Place of the layer with a row for each class."""
    classes = nodes[-1]["shape"][0]
    for place in reversed(range(len(nodes))):
        node = nodes[place]
        plain = node["op"] == "dense" or (node["op"] == "conv2d" and node["attributes"]["groups"] == 1)
        if plain and node["shape"][0] == classes:
            return place
        alone = len(node["inputs"]) == 1 and node["shape"][0] == classes
        if node["op"] not in _OF_EACH_CHANNEL or not alone:
            break
    raise BadInput(
        f"--model.classes: expected a network that ends in a layer with a row for each class (Dense or Conv2D), "
        f"received an imported one that ends in {nodes[-1]['name']!r} ({nodes[-1]['op']}). Its classes must stay what "
        "they are and in their order: give them with --data.class_names."
    )


def _rows_of(network: TimmClassifier) -> tuple[str, nn.Module]:
    """The name and the module of the layer with a row for each class."""
    if not isinstance(network, GraphClassifier):
        return "head.predictions.", cast(nn.Module, network.head.predictions)
    key = network.head.module_of[network.head.nodes[_last_layer(network.head.nodes)]["name"]]
    return f"head.layers.{key}.", network.head.layers[key]


def take_weights(network: TimmClassifier, class_names: list[str], checkpoint: Path, classes: Classes) -> ClassRows:
    """Give a network a checkpoint's weights, the rows of its last layer matched by the classes' names.

    Rows of classes that the checkpoint does not have are drawn, as in a new network: glorot_uniform, and zeros for the
    bias. All else is the checkpoint's, bit for bit.

    Args:
        network: changed in place, after everything has been checked.
        class_names: in the order of its outputs.
        checkpoint: of this project.
        classes: whether they may differ.

    Returns:
        Which rows were taken.

    Raises:
        BadInput: it is no such checkpoint or of another network, or the classes cannot be matched.
    """
    source = read_checkpoint(checkpoint)
    rows = match_classes(checkpoint, list(source.class_names), class_names, classes)
    own, theirs = network.state_dict(), source.network.state_dict()
    if not rows.differ:
        start, layer = "", None
    else:
        start, layer = _rows_of(network)
    cut = {  # the tensors of the last layer may have another number of rows
        side: {name: each[:1] if start and name.startswith(start) else each for name, each in tensors.items()}
        for side, tensors in (("own", own), ("theirs", theirs))
    }
    if wrong := misfits(cut["own"], cut["theirs"]):
        raise BadInput(
            f"expected weights for {network.backbone_name} with hidden layers {list(network.hidden)}, received "
            f"{checkpoint}, which is {source.backbone} with {list(source.network.hidden)}: {len(wrong)} tensors do not "
            f"fit, such as {wrong[0]}. Give the --model.backbone and --model.hidden that it was trained with."
        )
    if layer is not None and len(rows.kept) < len(class_names):
        nn.init.xavier_uniform_(cast(nn.Parameter, layer.weight))
        if layer.bias is not None:
            nn.init.zeros_(cast(nn.Parameter, layer.bias))
    now, before = [now for now, _ in rows.kept], [before for _, before in rows.kept]
    taken = dict(theirs)
    if layer is not None:
        for name, tensor in network.state_dict().items():
            if name.startswith(start):
                taken[name] = tensor.clone()
                taken[name][now] = theirs[name][before].to(tensor)
    network.load_state_dict(taken)
    return rows

"""Attention: tokens, heads, windows and class tokens are the same function in a real Keras, and faults are named.

Two small networks and their faulty twins, one Keras process; every node's output is compared in float64.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from export.graph.nodes import Graph, Node
from export.graph.record import record
from export.graph.trace import NoKerasCounterpart, trace_graph
from export.keras_file.layers import keras_layers
from export.keras_file.write import training_config, write_keras_h5
from export.proof.checks import check_layers
from export.proof.parity import Pair, check_parity
from export.proof.torch_side import torch_layers
from export.torch_to_keras import write_twin
from export.worker.keras_process import run_keras
from tests.conftest import photos_of, random_classifier, save_checkpoint

SIZE = (16, 16)
WIDTH, HEADS, CLASSES = 12, 3, 4


class Attention(nn.Module):
    """Heads as timm's ViT has them: one linear layer for queries, keys and values."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.qkv, self.proj, self.fused = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH), fused

    def forward(self, x, bias=None):
        images, tokens, width = x.shape
        qkv = self.qkv(x).reshape(images, tokens, 3, HEADS, width // HEADS).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        if self.fused:
            x = functional.scaled_dot_product_attention(query, key, value, bias)
        else:
            scores = query @ key.transpose(-2, -1) / (width // HEADS) ** 0.5
            x = (scores if bias is None else scores + bias).softmax(dim=-1) @ value
        return self.proj(x.transpose(1, 2).reshape(images, tokens, width))


class Tokens(nn.Module):
    """A class token and positions; layer norm; two ways to write attention; the class token classifies."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 4, stride=4)
        self.class_token, self.places = nn.Parameter(torch.randn(1, 1, WIDTH)), nn.Parameter(torch.randn(1, 17, WIDTH))
        self.first, self.second = Attention(fused=True), Attention(fused=False)
        self.norm, self.scale = nn.LayerNorm(WIDTH, eps=1e-6), nn.Parameter(torch.randn(WIDTH))
        self.channels, self.head = nn.BatchNorm1d(WIDTH), nn.Linear(2 * WIDTH, CLASSES)

    def forward(self, images):
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1) + self.places
        x = x + self.first(self.norm(x)) * self.scale
        x = x + functional.gelu(self.second(x))
        x = self.channels(x.flatten(0, 1)).reshape_as(x)
        x = functional.normalize(x, dim=-1)
        x = torch.addcmul(self.scale, self.scale.square(), x)
        x = x / (x[:, :2].mean(dim=1, keepdim=True) - 9.0)  # by negative numbers
        x = functional.pad(x, (0, 0, 1, 0), value=0.5)[:, 1:]
        return self.head(torch.cat([x[:, 0], x[:, 1:].mean(dim=1)], dim=-1))


class Windows(nn.Module):
    """Swin's: shifted windows of 2x2, a mask, a bias by relative place; then every second place."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.attention = nn.Conv2d(3, WIDTH, 4, stride=4), Attention(fused=True)
        self.table, self.head = nn.Parameter(torch.randn(5, HEADS)), nn.Linear(WIDTH, CLASSES)
        self.register_buffer("places", torch.arange(16).reshape(4, 4) % 5, persistent=False)
        mask = torch.zeros(4, 4, 4)
        mask[1, :2, 2:] = mask[3, 1:, :1] = -100.0
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, images):
        x = self.patches(images).permute(0, 2, 3, 1)
        x = functional.pad(x, (0, 0, 0, 0, 0, 0)).roll((-1, -1), (1, 2))
        x = x.reshape(-1, 2, 2, 2, 2, WIDTH).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, WIDTH)
        bias = self.table[self.places.reshape(-1)].reshape(4, 4, HEADS).permute(2, 0, 1)[None]
        mask = self.mask.reshape(1, 4, 1, 4, 4).expand(len(images), -1, HEADS, -1, -1).reshape(-1, HEADS, 4, 4)
        x = self.attention(x, bias + mask)
        x = x.reshape(-1, 2, 2, 2, 2, WIDTH).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, 4, WIDTH)
        x = x.roll((1, 1), (1, 2)).permute(0, 3, 1, 2)
        return self.head(x[:, :, ::2, ::2].flatten(2).mean(2))


def traced(network: nn.Module) -> Graph:
    return trace_graph(record(network, SIZE))


@pytest.fixture(scope="module")
def networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    made: dict[str, nn.Module] = {"tokens": Tokens().eval(), "windows": Windows().eval()}
    norm = made["tokens"].get_submodule("channels")
    norm.running_mean.normal_(), norm.running_var.uniform_(0.5, 1.5)
    return made


def of(graph: Graph, op: str, number: int = 0):
    """The node of that operation, by its number among them."""
    return [node for node in graph.nodes if node.op == op][number]


def with_node(graph: Graph, changed) -> Graph:
    nodes = tuple(changed if node.name == changed.name else node for node in graph.nodes)
    return Graph(nodes, graph.tensors, graph.computed)


def with_tensor(graph: Graph, role_of) -> Graph:
    """One number of a node's array is another."""
    (name,) = role_of.weights.values()
    array = graph.tensors[name].copy()
    array.reshape(-1)[-1] += 1e-3
    return Graph(graph.nodes, {**graph.tensors, name: array}, graph.computed)


def with_attribute(graph: Graph, node, **attributes) -> Graph:
    return with_node(graph, replace(node, attributes={**node.attributes, **attributes}))


def heads_in_turn(graph: Graph) -> Graph:
    """The heads' results joined number by number instead of head by head."""
    merged = of(graph, "regroup", 2)
    tokens, heads, numbers = 17, HEADS, WIDTH // HEADS
    turned = Node("turned", "transpose", merged.inputs, (heads, tokens, numbers), {"axes": (0, 2, 1)})
    place = graph.nodes.index(merged)
    nodes = [*graph.nodes[:place], turned, replace(merged, inputs=("turned",)), *graph.nodes[place + 1 :]]
    return Graph(tuple(nodes), graph.tensors, graph.computed)


# Fault -> (network, what makes the faulty graph, the operation that is named and its number).
FAULTS = {
    "a number of the class token": ("tokens", lambda graph: with_tensor(graph, of(graph, "array")), "array", 0),
    "a number of the positions": ("tokens", lambda graph: with_tensor(graph, of(graph, "add_array")), "add_array", 0),
    "queries and keys exchanged": (
        "tokens",
        lambda graph: with_node(
            graph, replace(of(graph, "matmul"), inputs=tuple(reversed(of(graph, "matmul").inputs)))
        ),
        "matmul",
        0,
    ),
    "values for keys": (
        "tokens",
        lambda graph: with_attribute(graph, of(graph, "cut", 1), start=2, stop=3),
        "cut",
        1,
    ),
    "numbers of the heads in turn": ("tokens", lambda graph: heads_in_turn(graph), "regroup", 2),
    "shifted by two": ("windows", lambda graph: with_attribute(graph, of(graph, "roll"), shifts=(-2, -1)), "roll", 0),
    "rows and columns of windows exchanged": (
        "windows",
        lambda graph: with_attribute(graph, of(graph, "transpose"), axes=(2, 0, 1, 3, 4)),
        "transpose",
        0,
    ),
    "a number of the bias": (
        "windows", lambda graph: with_tensor(graph, of(graph, "add_array")), "add_array", 0
    ),
    "the other places are taken": (
        "windows",
        lambda graph: with_attribute(graph, of(graph, "cut", -1), start=1),
        "cut",
        -1,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def compared(networks, tmp_path_factory):
    """Network or fault -> the right graph, the check of layers, and what Keras loaded; one process for all."""
    images = np.random.default_rng(0).random((2, *SIZE, 3))
    graphs = {name: (name, traced(network)) for name, network in networks.items()}
    right = {name: graph for name, (_, graph) in graphs.items()}
    graphs |= {fault: (name, make(right[name])) for fault, (name, make, _, _) in FAULTS.items()}
    jobs, folder = [], tmp_path_factory.mktemp("attention")
    for number, (_, graph) in enumerate(graphs.values()):
        own = folder / str(number)
        own.mkdir()
        h5 = own / "m.h5"
        write_keras_h5(
            h5, keras_layers(graph, separate=True), model_name="m", details={}, training=training_config(1e-3)
        )
        np.save(own / "inputs.npy", images)
        names = [node.name for node in graph.nodes[1:]]
        task = {"task": "layers", "inputs": str(own / "inputs.npy"), "names": names, "folder": str(own)}
        jobs.append((h5, [task]))
    run_keras(jobs)
    expected = {name: torch_layers(network, right[name], images) for name, network in networks.items()}
    checks = {}
    for number, (fault, (name, graph)) in enumerate(graphs.items()):
        names = [node.name for node in graph.nodes[1:]]
        given = {each: np.load(folder / str(number) / f"{index}.npy") for index, each in enumerate(names)}
        checks[fault] = right[name], check_layers(right[name], expected[name], given)[0]
    return checks


@pytest.mark.keras
@pytest.mark.parametrize("name", ["tokens", "windows"])
def test_attention_is_the_same_function_in_keras(compared, name):
    _, check = compared[name]
    assert check.passed, check


@pytest.mark.keras
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named(compared, fault):
    graph, check = compared[fault]
    _, _, op, number = FAULTS[fault]
    assert not check.passed
    assert check.first_divergence == of(graph, op, number).name


def test_what_torch_moves_costs_no_permutation(networks):
    ops = [node.op for node in traced(networks["tokens"]).nodes]
    assert ops.count("matmul") == 4
    assert "matmul_windows" not in ops
    assert "transpose" not in ops  # the natural order of tokens is that of every layer


def test_few_keys_in_many_windows_are_multiplied_one_by_one(networks):
    ops = [node.op for node in traced(networks["windows"]).nodes]
    assert ops.count("matmul_windows") == 2
    assert "matmul" not in ops


def test_arrays_of_all_images_are_the_weights_themselves(networks):
    graph = traced(networks["tokens"])
    held = {tensor: array for layer in keras_layers(graph) for _, tensor, array in layer.weights}
    for name in ("class_token", "places"):
        assert np.array_equal(held[name], networks["tokens"].state_dict()[name][0].numpy())
    assert {source for each in graph.computed.values() for source in each.sources} == {"scale"}


def test_constants_are_not_trained(networks):
    layers = keras_layers(traced(networks["windows"]))
    fixed = [layer for layer in layers if layer.fixed]
    assert fixed
    assert all(tensor == "" for layer in fixed for _, tensor, _ in layer.weights)


@pytest.mark.keras
@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "trainable"), [("test_vit", "head"), ("test_vit", "all"), ("test_coatnet", "head")]
)
def test_the_whole_ladder(tmp_path, backbone, trainable):
    network = random_classifier(0, backbone=backbone, mean=0.45, std=0.25)
    checkpoint = save_checkpoint(tmp_path / "a.ckpt", network, (160, 160), trainable=trainable)
    twin = write_twin(checkpoint, tmp_path / "a.h5")
    report = check_parity(Pair(checkpoint, twin.path, photos_of((160, 160))))
    assert report.verdict == "PASS", report.failed


class Refused(nn.Module):
    def __init__(self, operation) -> None:
        super().__init__()
        self.patches, self.operation = nn.Conv2d(3, 4, 4, stride=4), operation

    def forward(self, images):
        return self.operation(self.patches(images).flatten(2).transpose(1, 2)).flatten(1)[:, :CLASSES]


@pytest.mark.parametrize(
    ("operation", "named"),
    [
        (lambda x: x.softmax(dim=0), "along the images"),
        (lambda x: x.flip(0), "along the images"),
        (lambda x: x.transpose(0, 1).reshape(x.shape), "along the images"),
        (lambda x: x @ x.transpose(0, 1)[:2, :4].transpose(-2, -1), "aten.matmul"),
    ],
    ids=["softmax over images", "images in reverse", "images mixed", "product over images"],
)
def test_what_would_not_be_the_same_is_refused(operation, named):
    with pytest.raises(NoKerasCounterpart) as caught:
        traced(Refused(operation))
    assert named in caught.value.reason


def test_a_cast_to_float32_leaves_the_proof_in_float64():
    class Cast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(3, CLASSES, 4)

        def forward(self, images):
            return self.patches(images).float().to(torch.float32).relu().mean((2, 3))

    network = Cast().eval()
    given = torch_layers(network, traced(network), np.random.default_rng(0).random((2, *SIZE, 3)))
    assert all((value != value.astype(np.float32)).any() for value in given.values())

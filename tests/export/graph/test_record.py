"""One forward pass -> a graph of its operations: what is followed, what is refused, and that nothing else comes out."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from export.graph.record import NotTraced, operation_name, record
from export.graph.trace import CONVERTERS, NoKerasCounterpart, trace_graph, unknown_operations
from export.proof.torch_side import torch_layers

SIZE = (12, 8)


class Net(nn.Module):
    """A convolution to four channels, something, the mean over the places."""

    def __init__(self, something, pool=True):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3)
        self.something, self.pool = something, pool

    def forward(self, images):
        x = self.something(self.conv(images))
        return x.mean((2, 3)) if self.pool else x


def trace(something, pool=True):
    return trace_graph(record(Net(something, pool), SIZE))


def reads(graph, op):
    """What each node with that operation reads, by operation."""
    return [[graph.node(name).op for name in node.inputs] for node in graph.nodes if node.op == op]


def scaled_then_changed(x):
    before = x * 2.0
    functional.relu_(x)
    return before + x


def same_numbers_in_another_tensor(x):
    other = x.detach()
    functional.relu_(x)
    return x + other


def inference_gives_dropout_s_input_back(x):
    return x + functional.dropout(x, 0.5, training=False)


def dropped_out_and_changed(x):
    functional.relu_(functional.dropout(x, 0.5, training=False))
    return x + x


def one_part_changed(x):
    first, second = x.chunk(2, 1)
    functional.relu_(first)
    return first + second


@pytest.mark.parametrize(
    ("something", "adds"),
    [
        (scaled_then_changed, ["affine", "relu"]),
        (same_numbers_in_another_tensor, ["relu", "relu"]),
        (inference_gives_dropout_s_input_back, ["conv2d", "dropout"]),
        (dropped_out_and_changed, ["relu", "relu"]),
        (one_part_changed, ["relu", "slice_channels"]),
    ],
)
def test_change_in_place_is_read_by_whoever_reads_afterwards(something, adds):
    assert reads(trace(something), "add") == [adds]


def view_read_after_its_base_changed(x):
    view = x.permute(0, 2, 3, 1)
    functional.relu_(x)
    return x + view.permute(0, 3, 1, 2)


def every_second_place_changed(x):
    functional.relu_(x[..., ::2])
    return x


def base_seen_in_another_shape(x):
    rows = x.flatten(2)
    functional.relu_(x[:, :, 2:4, 1:3])
    return x * rows.mean()


@pytest.mark.parametrize(
    "something", [view_read_after_its_base_changed, every_second_place_changed, base_seen_in_another_shape]
)
def test_value_that_changed_through_another_is_refused(something):
    with pytest.raises(NoKerasCounterpart, match=r"two values share memory, and one is read after"):
        trace(something)


def test_a_part_that_is_changed_is_put_in_its_place():
    def something(x):
        functional.relu_(x[:, 1:3, 2:4])
        return x

    nodes = trace(something).nodes[2:-2]
    assert [node.op for node in nodes].count("relu") == 1
    assert nodes[-1].op == "concatenate"
    assert nodes[-1].shape == (4, 10, 6)
    network, images = Net(something).eval(), np.random.default_rng(0).random((2, *SIZE, 3))
    values = torch_layers(network, trace_graph(record(network, SIZE)), images)
    conv, whole = values["conv"], values[nodes[-1].name]
    expected = conv.copy()
    expected[:, 2:4, :, 1:3] = expected[:, 2:4, :, 1:3].clip(0)
    assert np.array_equal(whole, expected)
    assert not np.array_equal(whole, conv)


def test_view_of_a_changed_value_that_nobody_reads_afterwards_is_no_harm():
    def something(x):
        view = x.permute(0, 2, 3, 1)
        functional.relu_(view)
        return view.permute(0, 3, 1, 2)

    assert [node.op for node in trace(something).nodes][1:3] == ["conv2d", "relu"]


def caught(x):
    try:
        return x * float(x.mean())
    except Exception:
        return x


def through_a_copy(x):
    return x * copy.deepcopy(x.mean()).item()


def through_numpy(x):
    return x + torch.from_numpy(x.numpy().max(axis=(0, 1, 2, 3), keepdims=True) * 2)


def through_shared_memory(x):
    return x + torch.from_numpy(np.from_dlpack(x))


@pytest.mark.parametrize(
    ("something", "named"),
    [
        (lambda x: x if x.sum() > 0 else -x, "Python bool"),
        (lambda x: x * x.mean().item(), "Python float"),
        (lambda x: x * int(x.abs().max()), "Python"),
        (lambda x: x[:, : 2 + bool(torch.equal(x, x))], "Python bool"),
        (lambda x: x * x.amax((0, 1, 2, 3)).tolist(), "Python reads"),
        (lambda x: x * np.asarray(x).max(), "Python reads"),
        (through_numpy, "Python reads"),
        (through_shared_memory, "shares the memory"),
        (through_a_copy, "memory"),
        (caught, "Python float"),
    ],
)
def test_python_that_looks_at_values_is_refused(something, named):
    """They would be frozen into the graph as they are for one image."""
    with pytest.raises(NotTraced, match=named):
        trace(something)


def test_python_may_look_at_shapes_and_at_weights():
    class Scaled(Net):
        def forward(self, images):
            x = self.conv(images)
            if x.shape[-1] % 2 == 0 and bool((self.conv.weight < 100).all()):
                x = functional.relu(x)
            return x.mean((2, 3))

    assert [node.op for node in trace_graph(record(Scaled(None), SIZE)).nodes][1:3] == ["conv2d", "relu"]


def test_value_that_nothing_reads_is_left_out():
    """As in timm's dla60, which pools for a shortcut that it does not have."""

    def something(x):
        functional.max_pool2d(x, 2)
        torch.erf(x)
        x.chunk(3, dim=2)
        return x

    assert [node.op for node in trace(something).nodes][1:] == ["conv2d", "global_average_pool", "softmax"]
    assert unknown_operations(record(Net(something), SIZE)) == []


@pytest.mark.parametrize(
    "something",
    [
        lambda x: x * torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(1, 4, 1, 1),
        lambda x: (torch.arange(4.0) + 1)[None, :, None, None] * x,
        lambda x: x * torch.ones(1, 4, 1, 1).cumsum(1),
    ],
)
def test_tensor_made_in_forward_is_a_constant(something):
    assert [node.attributes["scale"] for node in trace(something).nodes if node.op == "affine"] == [(1, 2, 3, 4)]


def test_constant_has_the_numbers_that_it_had_when_it_was_read():
    def something(x):
        mask = torch.ones(1, 4, 1, 1)
        one = x * mask
        mask[:, 0] = 0
        return one + x * mask

    scales = [node.attributes["scale"] for node in trace(something).nodes if node.op == "affine"]
    assert scales == [(1, 1, 1, 1), (0, 1, 1, 1)]


def test_random_numbers_are_no_constant():
    with pytest.raises(NoKerasCounterpart, match=r"^aten\.rand "):
        trace(lambda x: x * torch.rand(1, 4, 1, 1))


def test_weight_changed_by_the_forward_pass_is_refused_and_stays_as_it_was():
    class Counting(Net):
        def __init__(self):
            super().__init__(None)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, images):
            self.calls += 1
            return self.conv(images).mean((2, 3)) * self.calls

    network = Counting()
    with pytest.raises(NotTraced, match=r"aten\.add_ changes a weight"):
        record(network, SIZE)
    assert network.calls == 0


def test_dropout_in_place_is_dropout():
    """As in torchvision's networks."""
    dropped = [
        node for node in trace(lambda x: functional.dropout(x, 0.25, False, inplace=True)).nodes if node.op == "dropout"
    ]
    assert [node.attributes for node in dropped] == [{"rate": 0.25}]


def test_operations_in_place_have_the_arguments_that_their_converters_look_for():
    """`dropout` calls its first one ``input`` and `dropout_` calls it ``self``."""
    differ = set()
    for name in CONVERTERS:
        own, changing = (getattr(torch.ops.aten, name.removeprefix("aten.") + end, None) for end in ("", "_"))
        for overload in set(changing.overloads()) & set(own.overloads()) if changing else ():
            given, wanted = (getattr(each, overload)._schema.arguments for each in (changing, own))
            if str(given[0].type) == "Tensor" and [each.name for each in given] != [each.name for each in wanted]:
                differ.add(name)
    assert differ == {"aten.dropout"}


def test_adaptive_pooling_to_its_own_size_does_nothing():
    ops = [node.op for node in trace(lambda x: functional.adaptive_avg_pool2d(x, x.shape[-2:])).nodes]
    assert ops[1:] == ["conv2d", "global_average_pool", "softmax"]
    ops = [node.op for node in trace(lambda x: functional.adaptive_avg_pool2d(x, (5, 4))).nodes]
    assert ops[1:] == ["conv2d", "map_places", "global_average_pool", "softmax"]
    ops = [node.op for node in trace(lambda x: functional.adaptive_max_pool2d(x, (5, 3))).nodes]
    assert ops[1:] == ["conv2d", "max_pool", "global_average_pool", "softmax"]


def test_maximum_over_all_places_is_a_layer():
    network = Net(lambda x: functional.adaptive_max_pool2d(x, 1).flatten(1), pool=False)
    graph, images = trace_graph(record(network, SIZE)), np.random.default_rng(0).random((2, *SIZE, 3))
    assert [node.op for node in graph.nodes][1:3] == ["conv2d", "global_max_pool"]
    values = torch_layers(network, graph, images)
    expected = values[graph.nodes[1].name].max(axis=(1, 2))
    assert np.array_equal(values[graph.nodes[2].name].reshape(2, 4), expected)


# What somebody's network may do. Each must convert or be told apart by name, and nothing else may come out.
WEIRD = {
    "mean of all": lambda x: x * x.mean(),
    "mean of images": lambda x: x - x.mean(0, keepdim=True),
    "mean of channels": lambda x: x * x.mean(1, keepdim=True),
    "first image": lambda x: x[:1],
    "images in a row": lambda x: x.flatten(0, 1)[None],
    "images and channels exchanged": lambda x: x.transpose(0, 1),
    "cat of images": lambda x: torch.cat([x, x], 0),
    "number minus": lambda x: 2 - x,
    "number divided": lambda x: 2 / x,
    "alpha": lambda x: torch.add(x, x, alpha=2),
    "constant plus": lambda x: torch.ones(1, 4, 1, 1) + x,
    "constant of places": lambda x: x + torch.ones(1, 1, 10, 6),
    "constant minus": lambda x: torch.ones(1, 4, 1, 1) - x,
    "constants only": lambda x: torch.ones(2, 4, 1, 1),
    "statistics of the batch": lambda x: functional.batch_norm(x, None, None, training=True),
    "norm without weights": lambda x: functional.layer_norm(x, x.shape[1:]),
    "dropout that is always on": lambda x: functional.dropout(x, 0.5, True),
    "kernel that is computed": lambda x: functional.conv2d(x, x[:, :, :3, :3]),
    "kernel that is constant": lambda x: functional.conv2d(x, torch.ones(4, 1, 2, 2), groups=4),
    "kernel that is random": lambda x: functional.conv2d(x, torch.rand(4, 4, 1, 1)),
    "pooling with places": lambda x: functional.max_pool2d(x, 2, return_indices=True)[1] * 1.0,
    "places of the maximum": lambda x: functional.adaptive_max_pool2d(x, 1, return_indices=True)[1] * 1.0,
    "largest": lambda x: x.max(1)[0].unsqueeze(1),
    "sorted": lambda x: x.sort(1)[0],
    "indexed": lambda x: x[:, [3, 2, 1, 0]],
    "masked": lambda x: x * (x > 0),
    "where": lambda x: torch.where(x > 0, x, 0.1 * x),
    "nonzero": lambda x: x[x > 0].reshape(1, -1),
    "unbound": lambda x: torch.stack(x.unbind(1), 1),
    "split by places": lambda x: torch.cat(x.split(5, 2), 2),
    "permuted": lambda x: x.permute(0, 1, 3, 2),
    "viewed": lambda x: x.reshape(-1, 2, 2, 10, 6).transpose(1, 2).reshape(-1, 4, 10, 6),
    "upsampled by halves": lambda x: functional.interpolate(x, scale_factor=1.5),
    "squeezed in place": lambda x: x.unsqueeze_(2).squeeze_(2),
    "padded unevenly": lambda x: functional.pad(x, (1, 0, 2, 0, 0, 1)),
    "cut": lambda x: functional.pad(x, (-1, -1)),
    "half": lambda x: x.half().float(),
    "double": lambda x: x.double(),
    "einsum": lambda x: torch.einsum("bchw,bdhw->bcd", x, x)[..., None],
    "fourier": lambda x: torch.fft.rfft2(x).abs(),
    "rows of a linear layer": lambda x: functional.linear(x, torch.ones(3, 6)),
    "bilinear": lambda x: functional.bilinear(x[..., :2], x[..., :2], torch.ones(3, 2, 2)),
    "written into": lambda x: torch.zeros_like(x).copy_(x),
    "written out": lambda x: torch.add(x, x, out=torch.empty_like(x)),
    "none": lambda x: None,
    "raises nothing to say": lambda x: (_ for _ in ()).throw(ValueError()),
    "stops": lambda x: next(iter(())),
    "assertion": lambda x: (_ for _ in ()).throw(AssertionError("no")),
    "key": lambda x: {}["k"],
}
ENDS = {
    "tuple": lambda x: (x.mean((2, 3)), x),
    "dict": lambda x: {"out": x.mean((2, 3))},
    "four dimensions": lambda x: x,
    "no dimension": lambda x: x.sum(),
    "classes of one image": lambda x: x.mean((0, 2, 3)),
    "constant": lambda x: torch.ones(2, 4),
    "number": lambda x: 3,
}


@pytest.mark.parametrize("name", [*WEIRD, *ENDS])
def test_whatever_a_network_does_it_converts_or_is_told_why_not(name):
    network, refusal = Net({**WEIRD, **ENDS}[name], pool=name in WEIRD), ""
    try:
        graph = trace_graph(record(network, SIZE))
    except (NoKerasCounterpart, NotTraced) as error:
        refusal = str(error)
    if refusal:
        assert "onnx2tf" in refusal
        assert "in this form" not in refusal, "its converter should say what it does not take"
    else:
        images = np.random.default_rng(0).random((3, *SIZE, 3))
        assert torch_layers(network, graph, images).keys() == {node.name for node in graph.nodes[1:]}


def test_modules_are_named_by_their_own_path_even_after_an_exception_inside():
    class Careful(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            try:
                return self.inner(x)
            except ValueError:
                return functional.relu(x)

    class Fails(nn.Module):
        def forward(self, x):
            raise ValueError

    graph = record(Net(Careful(Fails())), SIZE).graph
    paths = {operation_name(node.target): node.meta["path"] for node in graph.nodes if node.op == "call_function"}
    assert paths == {"aten.conv2d": "conv", "aten.relu": "something", "aten.mean": ""}


def test_pass_is_the_network_s_own():
    """Recording changes no bit of what the network gives; the values are those of the moment."""
    network, images = Net(scaled_then_changed), torch.rand(2, 3, *SIZE)
    recording = record(network, SIZE, images, keep=["conv2d"])
    with torch.inference_mode():
        assert torch.equal(recording.output, network(images))
        assert torch.equal(recording.values["conv2d"], network.conv(images))

"""torch module -> graph: what is stated, what is refused."""

import numpy as np
import pytest
import torch
from torch import nn

from export.checkpoint import read_checkpoint
from export.graph.nodes import Computed, Graph, Node
from export.graph.record import NotTraced, record
from export.graph.trace import NoKerasCounterpart, trace_graph
from export.keras_file.layers import keras_layers
from export.torch_to_keras import trace_checkpoint
from models.bad_input import BadInput
from tests.conftest import lightning, random_classifier, save_checkpoint


def trace(network, image_size=(48, 40)):
    return trace_graph(record(network, image_size))


def test_every_tensor_of_the_network_is_used_exactly_once(small_checkpoint):
    graph = trace_checkpoint(read_checkpoint(small_checkpoint))
    used = [tensor for node in graph.nodes for tensor in node.weights.values()]
    state = read_checkpoint(small_checkpoint).network.state_dict()
    assert sorted(used) == sorted(name for name in state if not name.endswith("num_batches_tracked"))


def test_padding_epsilon_ceiling_and_momentum_are_stated():
    graph = trace(random_classifier(backbone="mobilenetv2_035", pad_type="same", bn_eps=1e-3), (48, 41))
    stem = graph.node("backbone_conv_stem")
    assert stem.attributes["padding"] == (0, 1, 1, 1)  # SAME for stride 2: asymmetric on 48 rows, symmetric on 41
    assert graph.node("backbone_bn1").attributes == {"epsilon": 1e-3, "momentum": 0.9}
    assert {node.attributes["max_value"] for node in graph.nodes if node.op == "relu"} == {6.0, None}


def test_symmetric_padding_of_timm_is_kept():
    graph = trace(random_classifier(backbone="mobilenetv2_035"))
    assert graph.node("backbone_conv_stem").attributes["padding"] == (1, 1, 1, 1)


@pytest.mark.parametrize(
    ("kernel", "dilation", "padding", "stated"),
    [
        (3, 1, "same", (1, 1, 1, 1)),
        ((4, 3), 1, "same", (1, 2, 1, 1)),
        (2, 3, "same", (1, 2, 1, 2)),
        (3, 1, "valid", (0, 0, 0, 0)),
        (3, 1, (2, 1), (2, 2, 1, 1)),
    ],
)
def test_padding_by_name_is_stated_in_numbers(kernel, dilation, padding, stated):
    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, kernel, dilation=dilation, padding=padding)

        def forward(self, x):
            return self.conv(x).mean((2, 3))

    network = Padded()
    node = next(node for node in trace(network).nodes if node.op == "conv2d")
    assert node.attributes["padding"] == stated
    top, bottom, left, right = stated
    image = torch.rand(1, 3, 48, 40)
    padded = nn.functional.pad(image, (left, right, top, bottom))
    again = nn.functional.conv2d(padded, network.conv.weight, network.conv.bias, dilation=dilation)
    torch.testing.assert_close(again, network.conv(image))


def test_normalisation_is_one_affine_node_with_exact_constants():
    network = random_classifier(backbone="mobilenetv2_035", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    affine = [node for node in trace(network).nodes if node.op == "affine"]
    assert len(affine) == 1
    assert np.float32(affine[0].attributes["scale"]).tolist() == network.normalise.scale.flatten().tolist()
    assert np.float32(affine[0].attributes["offset"]).tolist() == network.normalise.offset.flatten().tolist()


def test_layers_of_mobilenetv2_have_the_names_of_keras_applications(small_checkpoint):
    names = [node.name for node in trace_checkpoint(read_checkpoint(small_checkpoint)).nodes]
    assert names[:6] == ["image", "normalise", "Conv1", "bn_Conv1", "Conv1_relu", "expanded_conv_depthwise"]
    assert {"block_1_expand", "block_2_add", "block_16_project_BN", "Conv_1", "Conv_1_bn", "out_relu"} <= set(names)
    assert names[-6:] == [
        "global_average_pooling2d", "dense", "dense_relu", "dropout", "predictions", "probabilities",
    ]  # fmt: skip


class Odd(nn.Module):
    def __init__(self, operation):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.operation = operation

    def forward(self, x):
        return self.operation(self.conv(x)).mean((2, 3))


class Deep(nn.Module):
    """Something odd in a submodule of a submodule, between what can be converted."""

    def __init__(self, odd):
        super().__init__()
        self.blocks = nn.Sequential(nn.ReLU(), odd)

    def forward(self, x):
        return torch.relu(self.blocks(x))


@pytest.mark.parametrize(
    ("operation", "named", "why"),
    [
        (torch.sin, "aten.sin", ""),
        (lambda x: nn.functional.max_pool2d(x, 2, dilation=2), "aten.max_pool2d", r": with dilation \[2, 2\]"),
        (lambda x: x + torch.randn_like(x), "aten.randn_like", ": random numbers, in inference as well: let forward"),
        (lambda x: x.sum((0, 1), keepdim=True) + x, "aten.sum", ": along the images"),
        (lambda x: nn.functional.fractional_max_pool2d(x, 2, 3), "aten.rand", ""),
    ],
    ids=["sine", "dilated", "noise", "over images", "by chance"],
)
def test_operation_without_counterpart_is_named_with_its_module_and_the_way_out(operation, named, why):
    with pytest.raises(
        NoKerasCounterpart, match=rf"^{named} in module 'blocks\.1' has no counterpart .*{why}"
    ) as caught:
        trace(Deep(Odd(operation)))
    assert "onnx2tf" in str(caught.value)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3)

    def forward(self, x):
        return self.conv(self.conv(x)).mean((2, 3))


class Spare(Odd):
    def __init__(self):
        super().__init__(torch.relu)
        self.spare = nn.Linear(2, 2)


def test_weight_that_is_never_used_is_named_with_the_way_out():
    said = r"weight weight in module 'blocks\.1\.spare' has no counterpart .*: it has no part in what is computed"
    with pytest.raises(NoKerasCounterpart, match=said) as caught:
        trace(Deep(Spare()))
    assert "onnx2tf" in str(caught.value)


def test_weight_that_is_used_twice_is_there_twice_and_said():
    network = Twice()
    graph = trace(network)
    first, second = (node.weights for node in graph.nodes if node.op == "conv2d")
    assert first == {"kernel": "conv.weight", "bias": "conv.bias"}
    assert second == {"kernel": "conv.weight.again", "bias": "conv.bias.again"}
    assert graph.computed["conv.weight.again"] == Computed(("conv.weight",))
    assert np.array_equal(graph.tensors["conv.weight.again"], network.conv.weight.detach().numpy())


def test_module_that_is_there_under_two_names_is_one():
    conv = nn.Conv2d(3, 3, 3, bias=False)
    graph = trace(nn.Sequential(conv, nn.ReLU(), conv, nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    assert set(graph.tensors) == {"0.weight", "0.weight.again"}


@pytest.mark.parametrize(
    ("operation", "named"),
    [(lambda x: x if x.sum() > 0 else -x, ""), (lambda x: x.reshape(-1, 7), "shape")],
    ids=["data-dependent", "of another size"],
)
def test_network_that_torch_cannot_trace_is_named_with_its_module_and_the_way_out(operation, named):
    with pytest.raises(
        NotTraced, match=rf"got Deep at 48x40 pixels, where module 'blocks\.1' raises \w+: .*{named}"
    ) as caught:
        trace(Deep(Odd(operation)))
    assert "onnx2tf" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "standardise",
    [
        lambda kernel: kernel.transpose(0, 1).contiguous().transpose(0, 1) * 1.5,
        lambda kernel: 0.5 * kernel,
        lambda kernel: kernel * kernel,
        lambda kernel: nn.functional.batch_norm(kernel.reshape(1, 4, -1), None, None, training=True).view_as(kernel),
        lambda kernel: torch.relu(kernel),
        lambda kernel: torch.cat([part.float() for part in kernel.chunk(2)]),
    ],
    ids=["transposed", "by a number", "by itself", "batch_norm", "relu", "parts"],
)
def test_weight_that_is_computed_with_is_computed_at_export(standardise):
    """As networks with standardised kernels do."""

    class Standardised(nn.Conv2d):
        def forward(self, x):
            return nn.functional.conv2d(x, standardise(self.weight), self.bias).mean((2, 3))

    network = Standardised(3, 4, 3)
    graph = trace(network)
    assert set(graph.tensors) == {"weight.computed", "bias"}
    assert graph.computed["weight.computed"].sources == ("weight",)
    exact = standardise(network.weight.detach().double()).float().numpy()
    np.testing.assert_allclose(graph.tensors["weight.computed"], exact, rtol=1e-7)


def test_weight_seen_in_another_shape_is_that_weight():
    class Seen(nn.Conv2d):
        def forward(self, x):
            return nn.functional.conv2d(x, self.weight.flatten().reshape(self.weight.shape)).mean((2, 3))

    graph = trace(Seen(3, 4, 3, bias=False))
    assert set(graph.tensors) == {"weight"}
    assert not graph.computed


def test_network_that_cannot_be_traced_is_bad_input_of_the_command(tmp_path, capsys):
    """Exit code 1 would mean that the twins differ."""
    network = random_classifier(backbone="eca_halonext26ts", hidden=())  # its attention takes blocks of 8 pixels alone
    checkpoint = save_checkpoint(tmp_path / "a.ckpt", network, (80, 80))
    assert lightning("export", checkpoint, tmp_path / "m.h5") == 2
    said = capsys.readouterr().err
    assert "got eca_halonext26ts at 80x80 pixels, where module 'backbone.stages" in said
    assert "Traceback" not in said
    assert not (tmp_path / "m.h5").exists()


def test_value_changed_in_place_is_read_as_changed():
    class Reuse(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.pool = nn.AdaptiveAvgPool2d(1)

        def forward(self, x):
            x = self.conv(x)
            y = nn.functional.relu_(x)
            return self.pool(x + y).flatten(1)

    graph = trace(Reuse())
    add = next(node for node in graph.nodes if node.op == "add")
    assert [graph.node(name).op for name in add.inputs] == ["relu", "relu"]


@pytest.mark.parametrize(("operation", "op"), [(torch.max, "maximum"), (torch.min, "minimum")])
def test_the_larger_of_two_values_by_either_name(operation, op):
    graph = trace(Odd(lambda x: operation(x, x * 2.0)))
    assert [node.op for node in graph.nodes if node.op in ("maximum", "minimum")] == [op]


def test_concatenation_of_one_value_is_that_value():
    graph = trace(Odd(lambda x: torch.cat([torch.relu(torch.cat([x], 1)), x], 1)))
    assert [node.op for node in graph.nodes][1:4] == ["conv2d", "relu", "concatenate"]
    assert graph.node(graph.nodes[3].inputs[1]).op == "conv2d"


def test_unpooled_flatten_states_its_order():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.conv(x).flatten(1)

    graph = trace(Flat())
    assert graph.nodes[-2].op == "flatten_channels"  # channel by channel; Keras's own is place by place, "flatten"
    assert graph.nodes[-2].shape == (4 * 46 * 38,)


def test_graph_refuses_a_tensor_used_twice_or_never():
    image = Node("image", "input", (), (3, 4, 4))
    kernel = np.zeros((2, 3), np.float32)
    first = Node("a", "dense", ("image",), (2,), {}, {"kernel": "w"})
    second = Node("b", "dense", ("a",), (2,), {}, {"kernel": "w"})
    with pytest.raises(ValueError, match=r"more than once \['w'\]"):
        Graph((image, first, second), {"w": kernel})
    with pytest.raises(ValueError, match=r"unused \['v'\]"):
        Graph((image, first), {"w": kernel, "v": kernel})


def test_value_that_nothing_reads_is_left_out():
    """As in DLA."""

    class Unread(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            x = self.conv(x)
            nn.functional.max_pool2d(x, 2)
            torch.relu(x * 2).split(2, 1)
            return x.mean((2, 3))

    assert [node.op for node in trace(Unread()).nodes] == ["input", "conv2d", "global_average_pool", "softmax"]


@pytest.mark.parametrize("size", [(6, 6), (7, 7)])
def test_adaptive_pooling_to_the_size_that_is_there_is_nothing(size):
    """As in torchvision's VGG."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d((6, 6)), nn.Flatten())
    graph = trace(network, (size[0] + 2, size[1] + 2))
    assert ("map_places" in {node.op for node in graph.nodes}) == (size == (7, 7))


@pytest.mark.parametrize("inplace", [False, True])
def test_dropout_is_kept_in_place_as_well(inplace):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(0.3, inplace), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert next(node for node in trace(network).nodes if node.op == "dropout").attributes == {"rate": 0.3}


def test_what_a_writer_does_not_expect_is_a_refusal_and_no_fault():
    image, kernel = Node("image", "input", (), (3, 4, 4)), np.zeros((2, 3), np.float32)
    attributes = dict.fromkeys(("strides", "padding", "dilation", "groups"), (1, 1))
    odd = Node("odd", "conv2d", ("image",), (2, 4, 4), attributes, {"kernel": "w"}, "stem")
    with pytest.raises(BadInput, match=r"conv2d in module 'stem' .*ValueError"):
        keras_layers(Graph((image, odd), {"w": kernel}))

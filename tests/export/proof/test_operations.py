"""Operations that MobileNetV2 lacks and other families have: each is the same function in a real Keras.

One network with all of them, one Keras process; every node's output is compared in float64.
"""

import numpy as np
import pytest
import torch
from torch import nn

from export.graph.record import record
from export.graph.trace import NoKerasCounterpart, trace_graph
from export.keras_file.layers import keras_layers
from export.keras_file.write import training_config, write_keras_h5
from export.proof.checks import LAYER_THRESHOLD, check_layers
from export.proof.torch_side import torch_layers
from export.torch_answers import torch_probabilities
from export.worker.keras_process import run_keras

SIZE = (16, 12)


class Everything(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, (4, 3), padding="same")
        self.leaky, self.mish = nn.LeakyReLU(0.01), nn.Mish()
        self.shrink, self.up = nn.Conv2d(12, 12, 3, stride=2, padding=1), nn.Upsample(scale_factor=2, mode="nearest")
        self.head = nn.Linear(9, 4)

    def forward(self, images):
        x = self.leaky(self.stem(images) * 10.17)  # a number that float32 does not hold
        x = x - self.up(self.mish(self.shrink(x)))
        x = torch.cat([x], dim=1)
        first, second, third = x.split([3, 5, 4], dim=1)
        left, right = second[:, :4], second[:, 1:]
        quarter = third.chunk(4, dim=1)[-1]
        x = torch.cat([first + quarter, left * third, right[:, 2:]], dim=1)
        x = x.permute(0, 2, 3, 1)[..., :9].permute(0, 3, 1, 2)
        return self.head(x.mean((2, 3)))


def test_new_operations_become_nodes():
    graph = trace_graph(record(Everything(), SIZE))
    ops = [node.op for node in graph.nodes]
    assert ops.count("slice_channels") == 7
    assert {"leaky_relu", "mish", "upsample", "subtract", "multiply", "concatenate"} <= set(ops)
    parts = [node.attributes for node in graph.nodes if node.op == "slice_channels"]
    assert {"start": 3, "stop": 8} in parts
    assert {"start": 3, "stop": 4} in parts  # the last of four chunks
    assert "aten.chunk" not in {node.op for node in graph.nodes}


@pytest.mark.parametrize(
    ("operation", "named"),
    [
        (lambda x: x.split(2, dim=2)[0], "aten.split: along dimension 2"),
        (lambda x: x[:, :, ::2], "aten.slice"),
        (lambda x: nn.functional.leaky_relu(x, 2.0), "negative slope 2.0"),
        (lambda x: nn.functional.interpolate(x, size=(20, 20)), "aten.upsample_nearest2d"),
        (lambda x: x - 1.0, "aten.sub: of constants"),
    ],
    ids=["split of rows", "every other row", "steep", "odd size", "constant"],
)
def test_what_would_not_be_the_same_is_refused(operation, named):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return operation(self.conv(x)).mean((2, 3))

    with pytest.raises(NoKerasCounterpart) as caught:
        trace_graph(record(Odd(), SIZE))
    assert caught.value.reason.startswith(named) or named in caught.value.reason


@pytest.mark.keras
def test_new_operations_are_the_same_function_in_keras(tmp_path):
    torch.manual_seed(0)
    network = Everything().eval()
    graph = trace_graph(record(network, SIZE))
    h5 = tmp_path / "m.h5"
    write_keras_h5(h5, keras_layers(graph), model_name="m", details={}, training=training_config(1e-3))
    images = np.random.default_rng(0).random((2, *SIZE, 3))
    np.save(tmp_path / "exact.npy", images)
    np.save(tmp_path / "single.npy", images.astype(np.float32))
    names = [node.name for node in graph.nodes[1:]]
    tasks = [
        {"task": "layers", "inputs": str(tmp_path / "exact.npy"), "names": names, "folder": str(tmp_path)},
        {"task": "predict", "inputs": str(tmp_path / "single.npy"), "scale": 1.0, "outputs": str(tmp_path / "p.npy")},
    ]
    run_keras([(h5, tasks)])
    expected = torch_layers(network, graph, images)
    given = {name: np.load(tmp_path / f"{index}.npy") for index, name in enumerate(names)}
    check, _ = check_layers(graph, expected, given)
    assert check.passed, check
    probabilities = torch_probabilities(network, [images.astype(np.float32)])
    assert np.abs(np.load(tmp_path / "p.npy") - probabilities).max() < 1e-6
    # what the comparison is for: channels cut one too far would be seen
    cut = next(node.name for node in graph.nodes if node.op == "slice_channels")
    shifted = {**given, cut: np.roll(given[cut], 1, axis=-1)}
    assert check_layers(graph, expected, shifted)[0].figure > LAYER_THRESHOLD

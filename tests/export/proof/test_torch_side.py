"""What torch learns in the ladder's steps of training, without a Keras."""

import numpy as np
import pytest

from export.proof.comparison import UNCERTAIN
from export.proof.torch_side import torch_train
from tests.conftest import random_classifier


@pytest.fixture(scope="module")
def network():
    return random_classifier(backbone="mobilenetv2_035", hidden=())


STEPS = 3


def train(network, learning_rate: float, uncertain: float = UNCERTAIN) -> tuple[dict[str, np.ndarray], int]:
    images = np.random.default_rng(0).random((2, 32, 32, 3))
    return torch_train(network, "all", learning_rate, images, np.eye(4)[[0, 2]], STEPS, None, uncertain)


def test_steps_end_where_keras_would_have_no_gradient(network):
    assert train(network, 1e-5)[1] == STEPS
    _, steps = train(network, 0.3)
    assert 1 <= steps < STEPS
    assert train(network, 0.3, uncertain=0.0)[1] == STEPS


def test_a_step_moves_weights_and_no_statistics(network):
    after, _ = train(network, 1e-3)
    before = network.state_dict()
    moved = {name for name in after if not np.array_equal(after[name], before[name].double().numpy())}
    assert {"backbone.conv_stem.weight", "head.predictions.weight"} <= moved
    assert not any("running" in name for name in moved)

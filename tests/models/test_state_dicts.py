"""A new network whose weights are not drawn; a copy of a network whose weights are computed from others."""

import copy

import pytest
import torch
from torch import nn

from models.state_dicts import Unfilled, copied


@pytest.mark.parametrize("bounds", [(-2.0, 2.0), (0.5, 0.6)], ids=["usual", "narrow"])
def test_an_initialisation_that_draws_until_it_fits_comes_to_an_end(bounds):
    """torchvision's GoogLeNet draws so; on memory that happens to hold NaN or 1e30 it never ended."""
    weight = torch.full((4, 4), 1e30)
    with Unfilled():
        nn.init.trunc_normal_(weight, mean=0.5, std=0.05, a=bounds[0], b=bounds[1])
        layer = nn.Linear(2, 3)
        meta = nn.Linear(2, 3, device="meta")
        torch.empty(3, device="meta").normal_()
    assert bool((weight >= bounds[0]).all() and (weight <= bounds[1]).all())
    assert layer.weight.shape == meta.weight.shape


def test_a_network_with_weight_norm_is_copied():
    with pytest.warns(FutureWarning):
        layer = nn.utils.weight_norm(nn.Linear(3, 2))
    layer(torch.ones(1, 3))
    with pytest.raises(RuntimeError):
        copy.deepcopy(layer)
    other = copied(layer)
    assert torch.equal(other(torch.ones(1, 3)), layer(torch.ones(1, 3)))
    other.weight_g.data.mul_(2)
    assert not torch.equal(other(torch.ones(1, 3)), layer(torch.ones(1, 3)))

"""Where torch has an axis and where Keras has it."""

import pytest
import torch

from export.graph.layouts import MAP, Layout, moved_batch, reshaped

BATCH = 3


def keras_of(layout: Layout, value: torch.Tensor) -> torch.Tensor:
    return layout.to_keras(value, BATCH)


def test_a_map_has_its_channels_last_in_keras():
    value = torch.rand(BATCH, 2, 4, 5)
    assert torch.equal(keras_of(MAP, value), value.permute(0, 2, 3, 1))
    assert MAP.in_keras(MAP.of_image(value.shape)) == (4, 5, 2)


def test_windows_that_torch_merges_with_the_batch_are_an_axis():
    layout = Layout((0, 1, 2), merged=4)
    value = torch.rand(BATCH * 4, 9, 5)
    assert torch.equal(keras_of(layout, value), value.reshape(BATCH, 4, 9, 5))
    assert [layout.image_axis(dim) for dim in (1, 2)] == [1, 2]


def test_the_batch_may_be_anywhere():
    layout = Layout((1, 0, 2), batch_axis=1)
    value = torch.rand(3, BATCH, 4, 5)
    assert torch.equal(keras_of(layout, value), value.permute(1, 2, 0, 3))
    assert [layout.image_axis(dim) for dim in range(4)] == [0, None, 1, 2]


@pytest.mark.parametrize(
    ("order", "before", "after"),
    [
        ((2, 0, 1), (6, 4, 5), (6, 20)),  # a map's places become tokens: Keras has them side by side
        ((0, 1), (20, 12), (4, 5, 12)),
        ((0, 1), (20, 12), (20, 3, 2, 2)),  # heads
        ((1, 0, 2), (3, 20, 4), (3, 4, 5, 4)),
        ((0, 1), (6, 4), (1, 6, 1, 4)),
        ((0, 1, 2), (1, 6, 4), (6, 4)),
        ((2, 0, 1), (1, 4, 5), (20, 1)),
        ((3, 1, 0, 2), (2, 3, 4, 5), (2, 3, 2, 2, 5)),
    ],
)
def test_a_reshape_in_keras_gives_torchs_numbers(order, before, after):
    value = torch.rand(BATCH, *before)
    held, new = Layout(order), reshaped(order, before, after)
    assert new is not None
    shape = Layout(new).in_keras(after)
    torchs = value.reshape(BATCH, *after)
    assert torch.equal(keras_of(held, value).reshape(BATCH, *shape), keras_of(Layout(new), torchs))


@pytest.mark.parametrize(
    ("order", "before", "after"),
    [((2, 0, 1), (6, 4, 5), (120,)), ((1, 0), (4, 5), (20,)), ((0, 2, 1), (2, 3, 4), (6, 4))],
)
def test_axes_that_keras_has_elsewhere_are_moved_first(order, before, after):
    assert reshaped(order, before, after) is None


@pytest.mark.parametrize(
    ("layout", "before", "after", "expected"),
    [
        (Layout((0, 1)), (3, 20, 12), (60, 12), (0, 20, 1)),  # every token a row of one matrix
        (Layout((0, 1), merged=20), (60, 12), (3, 20, 12), (0, 1, 1)),
        (Layout((0, 1, 2), batch_axis=1), (2, 3, 20, 12), (2, 3, 5, 4, 12), (1, 1, 1)),
        (Layout((0, 1)), (3, 20, 12), (1, 3, 240), (1, 1, 1)),
        (Layout((0, 1)), (3, 20, 12), (20, 3, 12), None),  # it would mix images
        (Layout((0, 1), batch_axis=1), (20, 3, 12), (60, 12), (0, 1, 20)),  # tokens first
    ],
)
def test_where_the_images_are_after_a_reshape(layout, before, after, expected):
    assert moved_batch(layout, before, after, BATCH) == expected

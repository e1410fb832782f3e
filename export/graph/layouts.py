"""How torch holds a value that Keras holds with the batch first and the channels last.

In Keras the batch can be neither moved nor merged with another axis, and each layer works on the last axis. In torch
tokens are (B, N, C), heads (B, heads, N, d), the windows of Swin (B * windows, N, C), and the three results of one
linear layer (3, B, heads, N, d). So a value is not moved where torch moves it: the layout says how torch holds it, and
a Permute or Reshape is made only where a layer needs the axes in another order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Where each axis of a value is.

    Attributes:
        order: for each axis of one image's value in torch, which axis of Keras's it is, both without the batch.
        batch_axis: where torch has the batch; -1 if it has none, as of a weight that is the same for all images.
        merged: how many values of one image torch has in the batch's axis, image by image, such as windows. With more
            than one they are an axis of the image's value.
        outer: how many there are of which each is that of all images, such as tokens first. They, too, are an axis.
    """

    order: tuple[int, ...]
    batch_axis: int = 0
    merged: int = 1
    outer: int = 1

    @property
    def own(self) -> tuple[int, ...]:
        """Sizes of the axes of one image's value that torch has in the batch's axis."""
        return tuple(size for size in (self.outer, self.merged) if size > 1)

    def of_image(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Torch's shape of one image's value, from that of all."""
        if self.batch_axis < 0:
            return tuple(shape)
        return (*shape[: self.batch_axis], *self.own, *shape[self.batch_axis + 1 :])

    def in_keras(self, of_image: Sequence[int]) -> tuple[int, ...]:
        """Keras's shape of one image's value, from torch's."""
        return tuple(of_image[self.order.index(place)] for place in range(len(self.order)))

    def image_axis(self, axis: int) -> int | None:
        """The axis of one image's value that an axis of torch's tensor is; None for the batch."""
        if axis == self.batch_axis:
            return None
        return axis - 1 + len(self.own) if axis > self.batch_axis else axis

    def to_keras(self, value: Tensor, batch: int) -> Tensor:
        """Torch's tensor as Keras has it, batch first."""
        if self.batch_axis < 0:
            return replace(self, batch_axis=0).to_keras(value.expand(batch, *value.shape), batch)
        own = (self.outer, batch, self.merged)
        apart = value.reshape(*value.shape[: self.batch_axis], *own, *value.shape[self.batch_axis + 1 :])
        first = apart.movedim(self.batch_axis + 1, 0)
        first = first.reshape(batch, *self.of_image(value.shape))
        return first.permute(0, *(1 + self.order.index(place) for place in range(len(self.order))))


# Torch has the channels first, Keras has them last.
MAP = Layout((2, 0, 1))


def moved_batch(layout: Layout, before: Sequence[int], after: Sequence[int], batch: int) -> tuple[int, int, int] | None:
    """Where the batch is after a reshape, as (`batch_axis`, `merged`, `outer`); None if images would be mixed.

    Args:
        layout: before it.
        before: torch's shape.
        after: torch's shape after it.
        batch: number of images.
    """
    slower = prod(before[: layout.batch_axis]) * layout.outer  # what is in front of the batch
    seen = 1
    for axis, size in enumerate(after):
        if seen < slower and slower % (seen * size) == 0:  # all of this axis is in front
            seen *= size
            continue
        outer = slower // seen
        if slower % seen == 0 and size % (outer * batch) == 0:
            return axis, size // (outer * batch), outer
        if size != 1:
            return None
    return None


def reshaped(order: Sequence[int], before: Sequence[int], after: Sequence[int]) -> tuple[int, ...] | None:
    """The order of a reshaped value, if reshaping Keras's own gives the same numbers.

    It does if the axes that torch merges or splits follow each other in Keras as they do in torch.

    Args:
        order: of the value before.
        before: torch's shape of one image's value.
        after: torch's shape after it.

    Returns:
        The order after it; None if Keras's value has to be brought into torch's order first.
    """
    sources, targets = ([axis for axis, size in enumerate(shape) if size != 1] for shape in (before, after))
    keras = sorted(sources, key=lambda axis: order[axis])
    groups: list[tuple[int, list[int]]] = []  # place in Keras of the first source axis, target axes
    start = stop = 0
    while start < len(sources):
        left, right = [sources[start]], [targets[stop]]
        small, large = before[left[0]], after[right[0]]
        while small != large:
            if small < large:
                left.append(sources[start + len(left)])
                small *= before[left[-1]]
            else:
                right.append(targets[stop + len(right)])
                large *= after[right[-1]]
        place = keras.index(left[0])
        if keras[place : place + len(left)] != left:
            return None
        groups.append((place, right))
        start, stop = start + len(left), stop + len(right)
    # an axis of size 1 goes with the one behind it
    places: list[int] = []
    for _, right in sorted(groups):
        for axis in right:
            first = axis
            while first and after[first - 1] == 1:
                first -= 1
            places.extend(range(first, axis + 1))
    places.extend(axis for axis in range(len(after)) if axis not in places)
    return tuple(places.index(axis) for axis in range(len(after)))

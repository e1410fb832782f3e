"""A part of a tensor that is changed in place, as `out[:, :8] = x` does: the whole, said without a change."""

from __future__ import annotations

import torch
from torch import Tensor


def box_in(whole: Tensor, part: Tensor) -> list[tuple[int, int]] | None:
    """From where to where along each axis of a tensor another one is, which has the same memory.

    None if it is no such part of it, as every second place is not.
    """
    if whole.dtype != part.dtype or not part.numel():
        return None
    left, steps = int(part.storage_offset() - whole.storage_offset()), [int(step) for step in whole.stride()]
    long = [axis for axis, size in enumerate(part.shape) if size > 1]
    strides, sizes = [part.stride()[axis] for axis in long], [int(part.shape[axis]) for axis in long]
    box = [(0, 1)] * whole.dim()
    for axis in sorted(range(whole.dim()), key=lambda axis: -steps[axis]):
        if whole.shape[axis] > 1:
            start = left // steps[axis] if steps[axis] else -1
            left -= start * steps[axis]
            box[axis] = (start, start + 1)
    for axis, (start, _) in enumerate(box):
        if strides and whole.shape[axis] > 1 and steps[axis] == strides[0]:
            del strides[0]
            box[axis] = (start, start + sizes.pop(0))
    inside = all(0 <= start < stop <= size for (start, stop), size in zip(box, whole.shape, strict=True))
    return box if inside and left == 0 and not strides else None


def joined_around(whole: Tensor, part: Tensor, box: list[tuple[int, int]]) -> Tensor:
    """What lies around a part of a tensor, and the part in its place. Nothing is read where the part is."""
    for axis in reversed(range(len(box))):
        start, stop = box[axis]
        around = []
        for first, last in ((0, start), (stop, whole.shape[axis])):
            piece = whole.narrow(axis, first, last - first)
            for before in range(axis):
                piece = piece.narrow(before, box[before][0], box[before][1] - box[before][0])
            around.append(piece)
        pieces = [piece for piece in (around[0], part, around[1]) if piece.numel()]
        part = torch.cat(pieces, axis) if len(pieces) > 1 else part
    return part

"""Photos that occur more than once: byte for byte, or nearly the same."""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from datamodule.audit.inspection import Inspection
from datamodule.audit.suspects import represent

MOST_BITS_APART = 12
"""Largest distance between two copies, of the perceptual hash's 64 bits. The hash alone treats different garments on
the same carpet as one photo."""
LEAST_COSINE = 0.96
"""Lowest cosine similarity of two copies' features. On 3,068 photos of garments, both criteria together find two pairs:
one photo that is in two classes, and one skirt photographed twice. At 0.94 they also find different shirts on one
carpet."""
BITS_APART_ALONE = 2
"""Largest distance of two copies' hashes if there are no features."""
ROWS_AT_ONCE = 512


class Pair(NamedTuple):
    """Two photos that are nearly or exactly the same; `first` comes first in Keras's order.

    Attributes:
        first: row of the first photo.
        second: row of the second photo.
        exact: whether they are the same byte for byte.
        likeness: 0 to 1.
        mirrored: whether one is like the other's mirror image.
    """

    first: int
    second: int
    exact: bool
    likeness: float
    mirrored: bool


def find_pairs(photos: Sequence[Inspection], features: np.ndarray | None) -> list[Pair]:
    """Pair each photo with the earlier one that it resembles most, if it is a copy of any.

    Args:
        photos: in Keras's order.
        features: pooled features of the backbone, shape (N, F), or None; without them only hashes that are almost equal
            make a pair.

    Returns:
        At most one pair for each `second`.
    """
    first_of: dict[str, int] = {}
    pairs = {}
    for row, photo in enumerate(photos):
        first = first_of.setdefault(photo.digest, row)
        if first != row:
            pairs[row] = Pair(first, row, True, 1.0, False)
    rows = np.array(sorted(set(range(len(photos))) - set(pairs)), int)
    plain = np.array([photos[row].hash64 for row in rows], np.uint64)
    mirrored = np.array([photos[row].mirrored_hash64 for row in rows], np.uint64)
    # The hash of a photo without structure says nothing.
    telling = np.array([photos[row].contrast > 5 for row in rows], bool)
    unit = None if features is None else represent(features[rows])
    for start in range(0, len(rows), ROWS_AT_ONCE):
        block = slice(start, start + ROWS_AT_ONCE)
        straight = np.bitwise_count(plain[block, None] ^ plain[None, :])
        turned = np.bitwise_count(mirrored[block, None] ^ plain[None, :])
        apart = np.minimum(straight, turned).astype(int)
        earlier = np.arange(len(rows))[None, :] < np.arange(len(rows))[block, None]
        alike = earlier & telling[block, None] & telling[None, :]
        if unit is None:
            alike &= apart <= BITS_APART_ALONE
            likeness = 1 - apart / 64
        else:
            cosine = unit[block] @ unit.T
            alike &= (apart <= MOST_BITS_APART) & (cosine >= LEAST_COSINE)
            likeness = np.clip(cosine, 0, 1)
        for offset in np.flatnonzero(alike.any(1)):
            best = int(np.where(alike[offset], likeness[offset], -1).argmax())
            row = int(rows[start + offset])
            is_turned = bool(turned[offset, best] < straight[offset, best])
            pairs[row] = Pair(int(rows[best]), row, False, float(likeness[offset, best]), is_turned)
    return [pairs[row] for row in sorted(pairs)]


def group_rows(pairs: Sequence[Pair], photos: int) -> np.ndarray:
    """Number the groups of photos that pairs connect, shape (N,); a photo without a pair is a group of its own."""
    links = coo_matrix(
        (np.ones(len(pairs)), ([pair.first for pair in pairs], [pair.second for pair in pairs])), (photos, photos)
    )
    return connected_components(links, directed=False)[1]


def find_straddling(groups: np.ndarray, sets_of_photos: np.ndarray) -> np.ndarray:
    """Return for every photo whether its group has photos in several sets, shape (N,), bool.

    Args:
        groups: number of each photo's group, shape (N,).
        sets_of_photos: number of each photo's set, shape (N,).
    """
    parts = defaultdict(set)
    for group, part in zip(groups.tolist(), sets_of_photos.tolist(), strict=True):
        parts[group].add(part)
    return np.array([len(parts[group]) > 1 for group in groups.tolist()], bool)

"""Photos that are there more than once: byte for byte, or nearly."""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from datamodule.audit.inspection import Inspection
from datamodule.audit.suspects import represent

MOST_BITS_APART = 12
"""Of the 64 of the perceptual hash. Alone it takes different garments on the same carpet for one photo."""
LEAST_COSINE = 0.96
"""Of the backbone's features. Of 3,068 photos of garments both together leave two pairs: one photo that two classes
have, and one skirt taken twice. From 0.94 on there are different shirts on one carpet among them."""
BITS_APART_ALONE = 2
"""Bits up to which the hash is believed without features."""
ROWS_AT_ONCE = 512


class Pair(NamedTuple):
    """Two photos that are nearly or exactly the same; `first` comes first in Keras's order.

    Attributes:
        first: row of the one.
        second: row of the other.
        exact: byte for byte.
        likeness: 0 to 1.
        mirrored: the one is like the other's mirror image.
    """

    first: int
    second: int
    exact: bool
    likeness: float
    mirrored: bool


def find_pairs(photos: Sequence[Inspection], features: np.ndarray | None) -> list[Pair]:
    """Pair each photo with the earlier one it is most like, if it is like any.

    Args:
        photos: in Keras's order.
        features: pooled features of the backbone, shape (N, F), or None where there are none: then only hashes that
            are all but equal count.

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
    # A photo without structure has no hash to speak of.
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
    """Number the groups of photos that hang together by pairs, shape (N,); one without a twin is a group of its own."""
    links = coo_matrix(
        (np.ones(len(pairs)), ([pair.first for pair in pairs], [pair.second for pair in pairs])), (photos, photos)
    )
    return connected_components(links, directed=False)[1]


def find_straddling(groups: np.ndarray, in_validation: np.ndarray) -> np.ndarray:
    """Tell for every photo whether its group is in the training part and in the validation part, shape (N,), bool."""
    parts = defaultdict(set)
    for group, part in zip(groups.tolist(), in_validation.tolist(), strict=True):
        parts[group].add(part)
    return np.array([len(parts[group]) == 2 for group in groups.tolist()], bool)

"""The places of a map: connected regions above its mean, and the entropy of what lies on them.

Peruzzo et al. 2022, "Spatial Entropy as an Inductive Bias for Vision Transformers", arXiv 2206.04636. `spatial_entropy`
says the method; here it is for many maps at once, and without lensplug's types. Imports SciPy when it is called.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

EVEN = 1e-6
"""A cell is above the mean if it is so by more than this share of it: rounding of fp32 is below."""


def entropy_of_places(maps: NDArray[np.float64], margin: float = 0.0) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The entropy of each map in nats, and its number of places; NaN and 0 where no cell is above the mean.

    Args:
        maps: `[map row column]`, not negative; NaN where there is no cell.
        margin: How far above its map's mean a cell of a place is.
    """
    from scipy.ndimage import label

    is_cell = ~np.isnan(maps)
    cells = is_cell.sum(axis=(1, 2), keepdims=True)
    mean = np.where(is_cell, maps, 0.0).sum(axis=(1, 2), keepdims=True) / np.maximum(cells, 1)
    above = np.where(is_cell, maps, -np.inf) - mean
    is_place = above > np.maximum(margin, EVEN * mean)
    neighbours = np.zeros((3, 3, 3), dtype=bool)
    neighbours[1] = True  # by edge or corner, within one map
    labels, count = label(is_place, structure=neighbours)
    which, weights = labels[is_place] - 1, above[is_place]
    map_of_place = np.zeros(count, dtype=np.int64)
    map_of_place[which] = is_place.nonzero()[0]
    mass = np.bincount(which, weights, count)
    share = mass / np.bincount(map_of_place, mass, len(maps))[map_of_place]
    entropy = np.bincount(map_of_place, -share * np.log(share), len(maps))
    places = np.bincount(map_of_place, minlength=len(maps))
    return np.where(places > 0, np.maximum(entropy, 0.0), np.nan), places


def elbow(values: NDArray[np.float64]) -> float:
    """The value at the elbow of the sorted values: the point furthest from the chord between the ends.

    Between equal ends, or of fewer than three values, the smallest.
    """
    ordered = np.sort(values)
    if len(ordered) < 3 or ordered[-1] == ordered[0]:
        return float(ordered[0])
    rank = np.linspace(0.0, 1.0, len(ordered))
    # The chord from (0, 0) to (1, 1) of the ordinates scaled alike: which point is furthest does not depend on scale.
    return float(ordered[np.abs(rank - (ordered - ordered[0]) / (ordered[-1] - ordered[0])).argmax()])

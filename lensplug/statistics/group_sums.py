"""The weighted sums of one group in every replicate: what a bootstrap holds instead of examples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float64, Int64


class GroupSums:
    """Σ w s of each replicate and row, and Σ w n once for all rows that have values in the same examples.

    Rows of a result are heads and layers, and an example lacks a modality in all of them: a handful of columns of Σ w n
    serve thousands of rows. Rows share a column until a chunk has a value for one and none for the other.
    """

    def __init__(self, replicates: int, rows: int) -> None:
        """Nothing is counted yet."""
        self._sums: Float64[np.ndarray, "replicate row"] = np.zeros((replicates, rows))
        self._weights: Float64[np.ndarray, "replicate column"] = np.zeros((replicates, min(rows, 1)))
        self._column: Int64[np.ndarray, " row"] = np.zeros(rows, dtype=np.int64)
        self._first_cluster: list[str | None] = [None] * rows
        self.has_several_clusters: Bool[np.ndarray, " row"] = np.zeros(rows, dtype=bool)
        """Whether values of a row come of two clusters at least."""

    def add(
        self,
        weights: Float64[np.ndarray, "replicate cluster"],
        sums: Float64[np.ndarray, "cluster row"],
        counts: Float64[np.ndarray, "cluster row"],
        clusters: Sequence[str],
    ) -> None:
        """Count clusters: how often each is drawn, the sum of its values, how many it has."""
        self._sums += weights @ sums
        column, first_row = self._split(counts)
        self._weights = self._weights[:, self._column[first_row]] + weights @ counts[:, first_row]
        self._column = column
        self._note_clusters(counts > 0, clusters)

    def merge(self, other: GroupSums) -> None:
        """Count what another has counted."""
        self._sums += other._sums
        column, first_row = self._split(other._column[None])
        self._weights = self._weights[:, self._column[first_row]] + other._weights[:, other._column[first_row]]
        self._column = column
        self.has_several_clusters |= other.has_several_clusters
        for row, cluster in enumerate(other._first_cluster):
            if cluster is not None:
                self._note_cluster(row, cluster)

    def means(self) -> Float64[np.ndarray, "replicate row"]:
        """The mean of every replicate and row; NaN where nothing was drawn."""
        weights = self._weights[:, self._column]
        means = np.full_like(self._sums, np.nan)
        np.divide(self._sums, weights, out=means, where=weights > 0)
        return means

    def _split(self, told_apart_by: np.ndarray) -> tuple[Int64[np.ndarray, " row"], Int64[np.ndarray, " column"]]:
        """The column of each row after what tells rows apart, and for each column a row that has it."""
        keys = np.concatenate([self._column[None].astype(np.float64), told_apart_by.astype(np.float64)])
        first_row: dict[bytes, int] = {}
        number: dict[bytes, int] = {}
        column = np.empty(keys.shape[1], dtype=np.int64)
        for row, key in enumerate(map(bytes, np.ascontiguousarray(keys.T))):
            first_row.setdefault(key, row)
            column[row] = number.setdefault(key, len(number))
        return column, np.array(list(first_row.values()), dtype=np.int64)

    def _note_clusters(self, present: Bool[np.ndarray, "cluster row"], clusters: Sequence[str]) -> None:
        of_several = present.sum(axis=0) > 1
        self.has_several_clusters |= of_several
        for row in np.flatnonzero(~self.has_several_clusters & present.any(axis=0)):
            self._note_cluster(int(row), clusters[int(present[:, row].argmax())])

    def _note_cluster(self, row: int, cluster: str) -> None:
        first = self._first_cluster[row]
        if first is None:
            self._first_cluster[row] = cluster
        elif first != cluster:
            self.has_several_clusters[row] = True

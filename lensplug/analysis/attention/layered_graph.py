"""Maximum flow through a stack of layers, from one node at the top to each node at the bottom.

Every layer is a matrix of capacities, `[upper lower]`. Layers are added from the last down, so that only what the
source reaches is ever kept: of a causal model the positions up to the row, and no edge of capacity 0. The flows are
found by igraph's push-relabel, compiled, in fp64, one for each node at the bottom.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lensplug.errors import LensplugError

CHUNKS = 16
"""Number of passes over the sinks, each on the part of the graph that leads to them: in a causal model a third."""
SECONDS = 1e-7
"""Seconds for one maximum flow per edge of the whole graph (24 layers of 200 and of 500 positions, one core)."""


class LayeredGraph:
    """The edges below one node that have been added so far.

    graph = LayeredGraph(source=2, width=3)
    graph.add(A2)
    graph.add(A1)
    graph.max_flows()                      # of the last layer's lower nodes, [width]
    """

    def __init__(self, *, source: int, width: int) -> None:
        """The source alone.

        Args:
            source: Which of the upper nodes of the first layer that will be added.
            width: The number of nodes on each level.
        """
        self.width, self.levels, self.n_edges = width, 0, 0
        self.reached = torch.zeros(width, dtype=torch.bool)
        self.reached[source] = True
        self._edges: list[Tensor] = []
        self._capacities: list[Tensor] = []

    def foresee(self, capacity: Float[Tensor, "upper lower"], layers: int) -> tuple[int, int, float]:
        """The edges, the sinks, and roughly the seconds, given how many layers like this one are still to come."""
        edges = self.n_edges + layers * int(capacity[self.reached].count_nonzero())
        sinks = int(capacity[self.reached].any(dim=0).sum())
        return edges, sinks, edges * sinks * SECONDS

    def add(self, capacity: Float[Tensor, "upper lower"]) -> None:
        """One more layer below."""
        from_reached = capacity[self.reached]
        upper, lower = from_reached.nonzero(as_tuple=True)
        self._capacities.append(from_reached[upper, lower])
        upper = self.reached.nonzero()[:, 0][upper] + self.levels * self.width
        self._edges.append(torch.stack([upper, lower + (self.levels + 1) * self.width], dim=1))
        self.reached = from_reached.any(dim=0)
        self.levels += 1
        self.n_edges += len(lower)

    def max_flows(self) -> Float[Tensor, " width"]:
        """The maximum flow into each lower node of the last layer, each as if it were the only sink, in fp64."""
        igraph = _solver()

        graph = igraph.Graph(
            (self.levels + 1) * self.width,
            torch.cat(self._edges).numpy(),
            directed=True,
            edge_attrs={"capacity": torch.cat(self._capacities).tolist()},
        )
        flows = torch.zeros(self.width, dtype=torch.float64)
        for sinks in self.reached.nonzero()[:, 0].chunk(CHUNKS):
            sink_nodes = (sinks + self.levels * self.width).tolist()
            above = sorted(set().union(*(graph.subcomponent(sink, mode="in") for sink in sink_nodes)))
            # In the order of the whole graph: the source is the first, the sinks are the last.
            part = graph.induced_subgraph(above)
            first = len(above) - len(sink_nodes)
            flows[sinks] = torch.tensor(
                [part.maxflow_value(0, first + index, "capacity") for index in range(len(sink_nodes))],
                dtype=torch.float64,
            )
        return flows


def _solver() -> Any:
    """igraph: imported when asked for, since that takes longer than importing all of lensplug's analyses.

    Raises:
        LensplugError: If it is not installed; it is not among the dependencies, because its licence is the GPL.
    """
    try:
        return import_module("igraph")
    except ImportError as error:
        raise LensplugError("attention_flow needs igraph: pip install 'lensplug[flow]'.") from error

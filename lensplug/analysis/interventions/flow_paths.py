"""Paths of `information_flow` in one prompt: which keys which queries lose, and random keys as a control."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lensplug.errors import LensplugError
from lensplug.inputs.multimodal_input import MultimodalInput
from lensplug.interventions.knockout import Knockout
from lensplug.interventions.places import Place, RunPositions, in_words
from lensplug.positions.by_modality import MEDIA

Path = tuple[Place, Place]
"""From where to where: what is read, and who reads it."""
Paths = Sequence[Path] | Mapping[str, Path]
"""Paths, or names of them and paths."""
PAPERS_WINDOW, PAPERS_LAYERS = 9, 32
"""Layers of a window, in a model of so many layers."""


@dataclass(frozen=True)
class Edge:
    """A path in one prompt."""

    keys: Bool[Tensor, "1 pos"]
    queries: Bool[Tensor, "1 pos"]
    attended: Bool[Tensor, "1 pos"]

    @property
    def _before(self) -> Bool[Tensor, "1 pos"]:
        """What at least one query sees, besides itself."""
        index = torch.arange(self.keys.shape[1], device=self.keys.device)
        return self.attended & (index < int(self.queries.nonzero()[-1, 1]))

    @property
    def n_keys(self) -> int:
        """How many keys are cut: those that a query sees."""
        return int((self.keys & self._before).sum())

    def knockout(self, window: Sequence[int]) -> list[Knockout]:
        """The path cut in these layers; no knockout for no layers."""
        return _cut(self.keys & self._before, self.queries, window)

    def controls(self, draws: int, seed: int) -> Int[Tensor, "draw key"]:
        """As many other keys, drawn at random; fewer where there are no more."""
        others = (self._before & ~self.keys)[0].nonzero()[:, 0].cpu()
        generator = torch.Generator().manual_seed(seed)
        orders = [torch.randperm(len(others), generator=generator) for _ in range(draws)]
        count = min(self.n_keys, len(others))
        return torch.stack([others[order[:count]] for order in orders]) if draws else others.new_zeros(0, count)

    def control_knockout(self, keys: Int[Tensor, " key"], window: Sequence[int]) -> list[Knockout]:
        """Random keys cut in the same way."""
        mask = torch.zeros_like(self.keys)
        mask[0, keys.to(mask.device)] = True
        return _cut(mask, self.queries, window)


def _cut(keys: Tensor, queries: Tensor, window: Sequence[int]) -> list[Knockout]:
    return [Knockout(keys, queries, layers=list(window))] if len(window) and bool(keys.any()) else []


def named_paths(paths: Paths | None, inputs: MultimodalInput) -> dict[str, Path]:
    """Paths by their names; by default each medium to the last position and to the question, and the question to it.

    Raises:
        LensplugError: If there is none, or one is no pair.
    """
    if paths is None:
        media = [kind for kind in MEDIA if kind in inputs.modality.names]
        pairs: list[Path] = [(kind, "last") for kind in media]
        if inputs.modality.user_words is not None:
            pairs += [*((kind, "question") for kind in media), ("question", "last")]
        paths = pairs
    if not paths:
        raise LensplugError("there are no paths: give some, [('image', 'last')], or a dict of names and paths.")
    named = dict(paths) if isinstance(paths, Mapping) else {_name(path): path for path in paths}
    if len(named) < len(paths):
        raise LensplugError("two paths are the same: each is measured once.")
    for name, path in named.items():
        if not isinstance(path, tuple) or len(path) != 2:
            raise LensplugError(f"the path {name!r} is {path!r}, expected two places, ('image', 'last').")
    return named


def _name(path: object) -> str:
    if not isinstance(path, tuple) or len(path) != 2:
        raise LensplugError(f"paths has {path!r}, expected two places, ('image', 'last').")
    return " → ".join(place if isinstance(place, str) else in_words(place) for place in path)


def edges_of(inputs: MultimodalInput, paths: Mapping[str, Path]) -> list[list[Edge]]:
    """Each path in each example.

    Raises:
        LensplugError: If a place is not there, or nothing of `to` comes behind anything of `from`.
    """
    positions = RunPositions.of(inputs)
    masks = {
        name: [
            positions.place(place, f"{end} of the path {name!r}").mask for place, end in zip(path, ENDS, strict=True)
        ]
        for name, path in paths.items()
    }
    edges = []
    for example in range(len(inputs)):
        at = slice(example, example + 1)
        edges.append([Edge(keys[at], queries[at], positions.attended[at]) for keys, queries in masks.values()])
        for name, edge in zip(masks, edges[-1], strict=True):
            if not edge.n_keys:
                raise LensplugError(
                    f"the path {name!r} has no edge in example {example}: no position that it leads to comes behind one"
                    " that it comes from."
                )
    return edges


ENDS = ("the beginning", "the end")


def default_window(n_layers: int) -> int:
    """9 layers from 32 layers on, as in the paper; of smaller models the same share, as an odd number."""
    share = min(PAPERS_WINDOW, n_layers * PAPERS_WINDOW / PAPERS_LAYERS)
    return max(1, 2 * round((share - 1) / 2) + 1)


def windows_of(layers: Sequence[int], window: int, n_layers: int) -> list[range]:
    """The layers around each, clipped at both ends; of an even number one more behind than before."""
    if not window:
        return [range(0) for _ in layers]
    return [range(max(0, layer - (window - 1) // 2), min(n_layers, layer + window // 2 + 1)) for layer in layers]

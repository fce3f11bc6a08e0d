"""Passes of which only the later positions differ from a run that is known: the others are not computed again.

Not a patch, but shared by the two patches for unwatched blocks. A causal model computes the positions before the first
edited one as without the edit. Many runs that are edited at one place each (see `from_layer`) need, of the blocks
behind the edit, these positions' keys and values alone, which are made once of the stream of the run without edits; and
of the last block, only the rows whose logits are read. What is computed is the same up to rounding.

It is done from the first block on that no hook sees, if none behind it is seen either. Rows that are not read, and
earlier positions, are zeros behind the last block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float, Int, Shaped
from torch import Tensor

from lensplug.patches.hook_points import has_hooks

KeysAndValues = tuple[Shaped[Tensor, "example known ..."], Shaped[Tensor, "example known ..."]]
"""Of one block, the keys rotated."""


@dataclass(eq=False)
class LaterPositions:
    """What is known of a pass, for all of its blocks."""

    first: int
    """The first position that may differ."""
    begin: int
    """The first block that is computed."""
    streams: Mapping[int, Float[Tensor, "example pos d_model"]]
    """Block -> what enters it in the run without edits; copies of its examples follow each other in the pass."""
    rows: Int[Tensor, "batch row"]
    """The positions that are read behind the last block, none before the first."""
    kept: dict[int, KeysAndValues] = field(default_factory=dict)
    """Block -> its keys and values at all positions of `streams`, once they were asked for; passes share them."""
    _cut_from: int = field(default=-1, init=False)
    _enters_edited: bool = field(default=False, init=False)
    """Whether hooks see what enters the first block."""

    def decide(self, blocks: list[Any]) -> None:
        """Find the first block that is cut, when hooks are in place: by the first that is computed.

        Args:
            blocks: An `UnwatchedBlock` for each.
        """
        computed = blocks[self.begin :]
        quiet = [not block.is_watched and not block.shows_rows for block in computed]
        behind = all(quiet[1:]) and not any(has_hooks(point) for block in computed[1:] for point in block.edges)
        leaves_unseen = quiet[0] and not any(map(has_hooks, computed[0].edges[1:]))
        self._enters_edited = has_hooks(computed[0].edges[0])
        if not behind:
            self._cut_from = len(blocks)
        else:
            self._cut_from = self.begin if leaves_unseen else self.begin + 1

    def cut(self, layer: int, n_layers: int, residual: Float[Tensor, "batch pos d_model"]) -> Cut | None:
        """What a block computes; None: all of it."""
        if layer < self._cut_from:
            return None
        length, later = self.first + residual.shape[1], residual
        if layer == self._cut_from:  # this block gets all positions; the earlier ones are as without the edit
            length, later = residual.shape[1], residual[:, self.first :]
        if layer in self.streams and not (layer == self.begin and self._enters_edited):
            stream, kept = self.streams[layer].to(residual), self.kept
        else:  # hooks may have written elsewhere too, in every copy alike
            stream, kept = residual[: len(next(iter(self.streams.values()))), : self.first], {}
        return Cut(self.first, length, stream, later, self.rows if layer == n_layers - 1 else None, kept, layer)


@dataclass(frozen=True)
class Cut:
    """What one block computes."""

    first: int
    length: int
    """Of the whole prompt."""
    stream: Float[Tensor, "example known d_model"]
    """What enters the block without the edit, at the earlier positions at least."""
    later: Float[Tensor, "batch later d_model"]
    rows: Int[Tensor, "batch row"] | None
    kept: dict[int, KeysAndValues]
    layer: int

    def queried(self, values: Shaped[Tensor, "alike later ..."]) -> Shaped[Tensor, "batch query ..."]:
        """Of what there is at the later positions, alike for all or of each, that of those that look."""
        if self.rows is None:
            return values
        index = (self.rows.to(values.device) - self.first).view(*self.rows.shape, *[1] * (values.ndim - 2))
        values = values.expand(len(self.rows), *[-1] * (values.ndim - 1))
        return values.gather(1, index.expand(-1, -1, *values.shape[2:]))

    def of_all(
        self,
        keys: Shaped[Tensor, "batch later ..."],
        values: Shaped[Tensor, "batch later ..."],
        made: Callable[[Float[Tensor, "example known d_model"]], KeysAndValues],
    ) -> KeysAndValues:
        """Keys, rotated, and values of all positions.

        Args:
            keys: Of the later positions, rotated.
            values: Of the later positions.
            made: Makes those of a stream at the first positions, as many as it has.
        """
        if self.layer not in self.kept:
            self.kept[self.layer] = made(self.stream)
        early_keys, early_values = self.kept[self.layer]
        return self._joined(early_keys, keys), self._joined(early_values, values)

    def _joined(
        self, early: Shaped[Tensor, "example known ..."], later: Shaped[Tensor, "batch later ..."]
    ) -> Shaped[Tensor, "batch pos ..."]:
        whole = later.new_empty(len(later), self.length, *later.shape[2:])
        whole.view(-1, len(early), *whole.shape[1:])[:, :, : self.first] = early[:, : self.first]
        whole[:, self.first :] = later
        return whole

    def given_on(self, output: Float[Tensor, "batch query d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """What the block gives on: of the last one all positions, zeros where nothing was computed."""
        if self.rows is None:
            return output
        whole = output.new_zeros(len(output), self.length, output.shape[2])
        return whole.scatter_(1, self.rows.to(output.device)[:, :, None].expand_as(output), output)

"""Direct paths, side by side: what receivers read if one sender alone is another run's, and what follows from it.

Two passes for each batch of senders of a layer. In the first the output of every attention head behind the sender (z)
is that of the base run, so that the sender's change reaches the stream directly, through MLPs, or, with these frozen
too, alone; what the receivers read of this stream is noted, and the pass ends there. In the second, of the base run,
the receivers get what was noted, and nothing else is held. Norms are always computed anew. It is done with hooks of
TransformerLens, so that it holds for either engine, shared keys and norms behind attention.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lensplug.analysis.interventions.measured_target import MeasuredTarget
from lensplug.analysis.interventions.patched_places import Places
from lensplug.analysis.interventions.path_receivers import Receiver, ReceiverKind
from lensplug.analysis.protocols import EditedRuns

Senders = Literal["heads", "mlps"]
"""What sends: attention heads, or the MLPs of layers."""
MLPs = Literal["computed", "frozen"]
"""What MLPs on the way do: compute their output from the changed stream, or give that of the base run."""
Hook = tuple[str, Callable[..., Any]]
Noted = Mapping[int, Float[Tensor, "run pos head d_head"]]
"""Layer -> what its heads read."""


class _Noted(BaseException):
    """Everything is noted that the first pass is for; no code on the way takes it for an error."""


@dataclass(frozen=True, eq=False)
class DirectPaths:
    """Paths from the places of one layer after another to each receiver."""

    runs: EditedRuns
    """Of the base prompt."""
    base: Mapping[str, Tensor]
    """What heads and MLPs give there, by hook."""
    sent: Callable[[str], Tensor]
    """What a sender gives in the other run, by hook, at the base prompt's positions."""
    places: Places
    measured: MeasuredTarget
    receivers: Sequence[Receiver]
    kind: ReceiverKind
    senders: Senders
    mlps: MLPs
    n_layers: int

    def of_layer(self, layer: int, done: Callable[[int], None]) -> list[Float[Tensor, "place example"]]:
        """The target with each place of a layer as sender, for each receiver; NaN where there is no path.

        Args:
            layer: Of the senders.
            done: Called after each pass with how many runs it was.
        """
        columns: list[list[Tensor]] = [[] for _ in self.receivers]
        for batch in self.places.batches(self.runs.batch):
            for column, values in zip(columns, self._of_batch(layer, batch, done), strict=True):
                column.append(values)
        return [torch.cat(column) for column in columns]

    def n_passes(self, layer: int) -> int:
        """How many runs each place of a layer needs."""
        behind = [receiver for receiver in self.receivers if receiver.is_behind(layer)]
        return len(behind) + bool(behind and behind[0].heads)

    def _of_batch(
        self, layer: int, batch: Sequence[tuple[int, int]], done: Callable[[int], None]
    ) -> list[Float[Tensor, "place example"]]:
        behind = [receiver for receiver in self.receivers if receiver.is_behind(layer)]
        nothing = torch.full((len(batch), len(self.places.groups)), torch.nan)
        if not behind:
            return [nothing] * len(self.receivers)
        first = self.places.first_position(batch)
        if not behind[0].heads:
            hooks = self._held(layer, batch, self.n_layers)
            logits = self.runs.logits(len(batch), hooks, from_layer=layer, from_position=first)
            done(len(batch))
            return [self.measured.of_copies(logits)]
        noted = self._noted(layer, batch, behind)
        done(len(batch))
        found = []
        for receiver in self.receivers:
            if receiver not in behind:
                found.append(nothing)
                continue
            layers = [at for at in receiver.layers if at > layer]
            hooks = [(self._input(at), _written(noted[at], receiver.of_layer(at))) for at in layers]
            logits = self.runs.logits(len(batch), hooks, from_layer=layers[0], from_position=first)
            found.append(self.measured.of_copies(logits))
            done(len(batch))
        return found

    def _noted(self, layer: int, batch: Sequence[tuple[int, int]], behind: Sequence[Receiver]) -> Noted:
        """What all receivers behind a layer read with each place as sender: the first pass."""
        layers = sorted({at for receiver in behind for at in receiver.layers if at > layer})
        noted: dict[int, Tensor] = {}

        def note(value: Tensor, hook: Any) -> None:
            noted[at := int(hook.name.split(".")[1])] = value.detach().clone()
            if at == layers[-1]:
                raise _Noted

        hooks = self._held(layer, batch, layers[-1]) + [(self._input(at), note) for at in layers]
        try:
            self.runs.logits(len(batch), hooks, from_layer=layer, from_position=self.places.first_position(batch))
        except _Noted:
            pass
        return noted

    def _held(self, layer: int, batch: Sequence[tuple[int, int]], stop: int) -> list[Hook]:
        """Senders as in the other run, and what is frozen, in the layers from this one on and before `stop`."""
        is_head = self.senders == "heads"
        name = (z_of if is_head else mlp_of)(layer)
        hooks = [(name, self._sent(name, batch))]
        frozen = [z_of(at) for at in range(layer + 1, stop)]
        if self.mlps == "frozen":
            frozen += [mlp_of(at) for at in range(layer if is_head else layer + 1, stop)]
        return hooks + [(each, self._frozen(each, len(batch))) for each in frozen]

    def _sent(self, name: str, batch: Sequence[tuple[int, int]]) -> Callable[..., Tensor]:
        def sent(value: Tensor, hook: Any) -> Tensor:
            base = self.base[name].to(value)
            where = self.places.masks(batch, base, self.senders == "heads")
            return torch.where(where, self.sent(name).to(value), base.expand(len(batch), *base.shape)).flatten(0, 1)

        return sent

    def _frozen(self, name: str, n_copies: int) -> Callable[..., Tensor]:
        def frozen(value: Tensor, hook: Any) -> Tensor:
            base = self.base[name].to(value)
            return base.repeat(n_copies, *[1] * (base.ndim - 1))

        return frozen

    def _input(self, layer: int) -> str:
        return f"blocks.{layer}.attn.hook_{self.kind}"


def z_of(layer: int) -> str:
    """The hook of what a layer's heads give."""
    return f"blocks.{layer}.attn.hook_z"


def mlp_of(layer: int) -> str:
    """The hook of what a layer's MLP gives."""
    return f"blocks.{layer}.hook_mlp_out"


def _written(noted: Float[Tensor, "run pos head d_head"], heads: Sequence[int]) -> Callable[..., Tensor]:
    def written(value: Tensor, hook: Any) -> Tensor:
        index = torch.tensor(heads, device=value.device)
        return value.index_copy(2, index, noted.index_select(2, index))

    return written

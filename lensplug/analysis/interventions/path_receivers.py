"""Where a path ends: the query, key or value input of heads, or the stream that logits are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lensplug.errors import LensplugError
from lensplug.interventions.layers_and_heads import heads_of

HeadInput = Literal["q", "k", "v"]
"""What a head reads of the stream: its query, key or value."""
ReceiverKind = HeadInput | Literal["logits"]
"""What receives: an input of heads, or the stream behind the last layer."""
ReceiverHeads = Sequence[tuple[int, int]] | Mapping[str, Sequence[tuple[int, int]]] | None
"""Pairs (layer, head), each a receiver; or names, each of several heads that receive together."""
LOGITS = "logits"


@dataclass(frozen=True)
class Receiver:
    """Heads that receive together, or the logits."""

    name: str
    heads: tuple[tuple[int, int], ...]
    """Pairs (layer, head); of keys and values key-value heads. None: the logits."""

    def of_layer(self, layer: int) -> list[int]:
        """Its heads of one layer."""
        return [head for at, head in self.heads if at == layer]

    @property
    def layers(self) -> list[int]:
        """Those that it has heads in."""
        return sorted({layer for layer, _ in self.heads})

    def is_behind(self, layer: int) -> bool:
        """Whether a sender in this layer has a path to it."""
        return not self.heads or self.layers[-1] > layer


def receivers_of(heads: ReceiverHeads, kind: ReceiverKind, cfg: Any) -> list[Receiver]:
    """The receivers that are meant.

    Args:
        heads: As the user gives them.
        kind: What of them receives.
        cfg: Of the model.

    Raises:
        LensplugError: If heads are missing, not needed, not there, or in the first layer.
    """
    if kind == LOGITS:
        if heads is not None:
            raise LensplugError("receiver='logits' has no heads: leave them out, or say receiver='q', 'k' or 'v'.")
        return [Receiver(LOGITS, ())]
    if not heads:
        raise LensplugError(f"receiver={kind!r} needs the heads that receive: heads=[(layer, head), ...].")
    if isinstance(heads, Mapping):
        return [Receiver(name, _pairs(several, kind, cfg)) for name, several in heads.items()]
    pairs = _pairs(heads, kind, cfg)
    return [Receiver(f"{layer}.{head}", ((layer, head),)) for layer, head in pairs]


def n_heads_of(kind: ReceiverKind, cfg: Any) -> int:
    """How many heads a layer has of this kind: query heads may share keys and values."""
    return int(cfg.n_heads if kind == "q" else getattr(cfg, "n_key_value_heads", None) or cfg.n_heads)


def _pairs(heads: Sequence[tuple[int, int]], kind: ReceiverKind, cfg: Any) -> tuple[tuple[int, int], ...]:
    """Pairs with layers from 0, in order.

    Raises:
        LensplugError: If they are no pairs, or a head is not there or in the first layer.
    """
    if not heads or not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in heads):
        raise LensplugError(f"heads is {heads!r}, expected pairs (layer, head): [(2, 0), (2, 3)].")
    n_heads = n_heads_of(kind, cfg)
    if kind != "q" and n_heads < cfg.n_heads and any(head not in range(n_heads) for _, head in heads):
        raise LensplugError(
            f"heads is {list(heads)!r}: receiver={kind!r} counts key-value heads, 0 to {n_heads - 1}, each of which"
            f" {cfg.n_heads // n_heads} of the {cfg.n_heads} query heads share."
        )
    by_layer = heads_of(None, list(heads), cfg.n_layers, n_heads)
    if 0 in by_layer:
        raise LensplugError("heads of layer 0 receive nothing: there is no head or MLP before them.")
    return tuple((layer, head) for layer, of_layer in by_layer.items() for head in of_layer or ())

"""In which layers and heads an edit acts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np
from torch import Tensor

from lensplug.errors import LensplugError
from lensplug.validation.arguments import described

Layers = int | Sequence[int] | range | None
"""One layer, several, or None: all. Negative ones count from the last."""
Heads = int | Sequence[int] | Sequence[tuple[int, int]] | Mapping[int, Sequence[int]] | None
"""Of each of the layers: one head, several, or None: all; or, and then no layers, pairs (layer, head), or the heads of
each layer {3: [1, 2]}."""


def layers_of(layers: Any, n_layers: int) -> list[int]:
    """The layers that are meant, in order; there may be none.

    Raises:
        LensplugError: If one is not there.
    """
    return sorted(set(in_their_order(layers, n_layers)))


def in_their_order(layers: Any, n_layers: int) -> list[int]:
    """The layers that are meant, as they were given, counted from 0.

    Raises:
        LensplugError: If they are no layers, or one is not there.
    """
    if not (layers is None or _is_index(layers) or isinstance(layers, Sequence | Set | Tensor | np.ndarray)):
        raise LensplugError(f"layers is {described(layers)}, expected a layer, a list of them, range(2, 5), or None.")
    chosen = range(n_layers) if layers is None else [layers] if _is_index(layers) else list(layers)
    if not all(_is_index(layer) and -n_layers <= layer < n_layers for layer in chosen):
        raise LensplugError(f"layers is {layers!r}, the model has layers 0 to {n_layers - 1} (or -{n_layers} to -1).")
    return [int(layer) % n_layers for layer in chosen]


def heads_of(layers: Any, heads: Any, n_layers: int, n_heads: int) -> dict[int, list[int] | None]:
    """The heads that are meant, by layer; None: all.

    Raises:
        LensplugError: If one is not there, or pairs are given with layers.
    """
    if isinstance(heads, Mapping):
        heads = [(layer, head) for layer, of_layer in heads.items() for head in _listed(of_layer)]
    if not (heads is None or _is_index(heads) or isinstance(heads, Sequence | Set | Tensor | np.ndarray)):
        raise LensplugError(f"heads is {described(heads)}, expected heads ([0, 3]) or pairs ([(2, 0), (2, 3)]).")
    several = None if heads is None else [heads] if _is_index(heads) else list(heads)
    if several is None or all(_is_index(head) for head in several):
        chosen: list[int] | None = None if several is None else sorted(set(several))
        by_layer: dict[int, list[int] | None] = dict.fromkeys(layers_of(layers, n_layers), chosen)
    elif all(isinstance(pair, Sequence) and len(pair) == 2 and all(map(_is_index, pair)) for pair in several):
        if layers is not None:
            raise LensplugError(f"heads are pairs (layer, head), and layers={layers!r}: leave layers out.")
        pairs = [(layers_of(layer, n_layers)[0], head) for layer, head in several]
        by_layer = {layer: sorted({head for at, head in pairs if at == layer}) for layer, _ in sorted(pairs)}
    else:
        raise LensplugError(f"heads is {heads!r}, expected heads ([0, 3]) or pairs ([(2, 0), (2, 3)]).")
    if any(head not in range(n_heads) for chosen in by_layer.values() for head in chosen or ()) or several == []:
        raise LensplugError(f"heads is {heads!r}, the model has heads 0 to {n_heads - 1}.")
    return by_layer


def names_layers(heads: Any) -> bool:
    """Whether heads say their layers: pairs, or heads by layer."""
    if heads is None or _is_index(heads):
        return False
    return isinstance(heads, Mapping) or not all(map(_is_index, heads))


def stated(layers: Any, heads: Any = None) -> list[str]:
    """What is said of layers and heads, as it is typed, for provenance."""
    return [f"{name}={_typed(value)!r}" for name, value in (("layers", layers), ("heads", heads)) if value is not None]


def _typed(value: Any) -> Any:
    """A tensor or array as a list: long ones would be said with dots for numbers, and two with the same words."""
    return value.tolist() if isinstance(value, Tensor | np.ndarray) else value


def _listed(of_layer: Any) -> list[Any]:
    return [of_layer] if _is_index(of_layer) else list(of_layer)


def _is_index(value: Any) -> bool:
    return hasattr(value, "__index__") and not isinstance(value, bool) and not getattr(value, "ndim", 0)

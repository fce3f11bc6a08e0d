"""Activation patching as an edit: activations of another run, put in at some places.

Method: an activation becomes, at the chosen layers, heads and positions, what it is in `values`.

Papers: Vig et al. 2020, arXiv 2004.12265; Heimersheim & Nanda 2024, arXiv 2404.15255.

When to use it: to put one state of one run into another, and go on: also while generating.

When not to use it: to search for the place (`analysis.activation_patching` patches one place after another, and aligns
prompts that differ).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformer_lens.utilities import get_act_name

from lensplug.cache.activation_cache import ActivationCache
from lensplug.errors import LensplugError
from lensplug.interventions.edit import ActivationHook, Changes, refuse_missing_hook
from lensplug.interventions.equality import EqualByValue
from lensplug.interventions.layers_and_heads import Heads, Layers, heads_of, names_layers, stated
from lensplug.interventions.places import Place, Placed, RunPositions, in_words
from lensplug.interventions.tensors import tensor_in_words
from lensplug.interventions.values import activation_of, fitting, refuse_other_positions, values_in_words

OF_HEADS = ("q", "k", "v", "z")
OF_PAIRS = ("pattern", "attn_scores")
"""Activations `[batch head query key]`."""
WHOLE_NAME = re.compile(r"blocks\.(?P<layer>\d+)\.(\w+\.)*hook_(?P<short>\w+)")


@dataclass(frozen=True, eq=False)
class Replace(EqualByValue):
    """An activation is that of another run.

    _, cache = lens.run_with_cache(of_red)
    with lens.intervene(Replace(cache, at="resid_pre", layers=3, positions="image")):
        lens.generate(of_blue).text
    """

    values: ActivationCache | Mapping[str, Tensor] | Tensor
    """A cache of a run on as many positions; a tensor `[batch pos ...]` is for one layer."""
    at: str = "resid_pre"
    """TransformerLens's short name: "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"; of heads "q", "k",
    "v", "z" (queries and keys before their rotation). Or a whole name, which says its layer:
    "blocks.3.hook_resid_pre"."""
    layers: Layers = None
    positions: Place = "all"
    heads: Heads = None

    def __str__(self) -> str:
        """In words, for provenance."""
        if isinstance(self.values, Tensor):
            values = tensor_in_words(self.values)
        else:
            values = values_in_words(self.values, "hook_" + self.at.rpartition("hook_")[2], self.layers)
        parts = [values, f"at={self.at!r}", *stated(self.layers, self.heads), f"positions={in_words(self.positions)}"]
        return f"Replace({', '.join(parts)})"

    def changes(self, model: Any, positions: RunPositions) -> Changes:
        """The hooks of a run.

        Raises:
            LensplugError: If there is no such activation, or the other run has other positions.
        """
        whole = WHOLE_NAME.fullmatch(self.at)
        short = self.at if whole is None else whole["short"]
        if self.heads is not None and short not in OF_HEADS:
            raise LensplugError(f"at={self.at!r} has no heads: one of {', '.join(map(repr, OF_HEADS))} has.")
        if short in OF_PAIRS:
            raise LensplugError(
                f"at={self.at!r} is of pairs of positions, and a place is of one: cut what is seen with Knockout, or"
                " edit patterns with lens.hooks."
            )
        if whole is None and {self.at, f"hook_{self.at}"} & model.hook_dict.keys():
            raise LensplugError(
                f"at={self.at!r} is of no layer: expected 'resid_pre', 'resid_mid', 'resid_post', 'attn_out',"
                " 'mlp_out', 'q', 'k', 'v', 'z', or a whole name (blocks.3.hook_resid_pre). lens.hooks edits any hook."
            )
        placed = positions.place(self.positions, "positions")
        of_prompt = Placed(placed.mask, later=False)  # the other run has no more
        n_heads = model.cfg.n_key_value_heads if short in ("k", "v") else None
        by_layer = heads_of(self.layers, self.heads, model.cfg.n_layers, n_heads or model.cfg.n_heads)
        if whole is not None:
            by_layer = self._in_layer(int(whole["layer"]), by_layer, model)
        if isinstance(self.values, Tensor) and len(by_layer) != 1:
            raise LensplugError(f"values are one tensor, for {len(by_layer)} layers: give one layer, or a cache.")
        hooks = []
        for layer, heads in by_layer.items():
            refuse_missing_hook(model, name := str(self.at if whole else get_act_name(self.at, layer)))
            value = self.values if isinstance(self.values, Tensor) else activation_of(self.values, name)
            refuse_other_positions(value, name, positions)
            change = partial(_replaced, value, heads, name)
            hooks.append(ActivationHook(name, change, of_prompt, positions.generating))
        return Changes(hooks)

    def _in_layer(self, layer: int, by_layer: dict[int, list[int] | None], model: Any) -> dict[int, list[int] | None]:
        """Of what layers and heads say, the layer that a whole name says.

        Raises:
            LensplugError: If they say another, or the model has no such hook.
        """
        refuse_missing_hook(model, self.at)
        says_layers = self.layers is not None or names_layers(self.heads)
        if says_layers and list(by_layer) != [layer]:
            raise LensplugError(
                f"at={self.at!r} is of layer {layer}, and {', '.join(stated(self.layers, self.heads))} is of"
                f" {list(by_layer)}: leave the layers out, or give at={self.at.rpartition('hook_')[2]!r}."
            )
        return {layer: by_layer[layer]}


def _replaced(value: Tensor, heads: list[int] | None, name: str, activation: Tensor) -> Tensor:
    if value.shape[1] != activation.shape[1]:  # a step of an answer, at which nothing is replaced
        return activation
    new = fitting(value, activation, name)
    if heads is None:
        return new
    at = torch.tensor(heads, device=activation.device)
    return activation.index_copy(2, at, new.index_select(2, at))

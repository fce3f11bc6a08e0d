"""The gap: TransformerLens's decompositions of the residual stream know attention and MLPs, and nothing else.

Where blocks of a model add a third thing to the stream (features of an image in Qwen3-VL, per-layer inputs in Gemma 4),
or multiply the stream at their end (Gemma 4's `layer_scalar`), `decompose_resid` and `get_full_resid_decomposition`
would not sum to it, without a word. Here they do: what else is added has rows of its own, the last ones, and every row
is what is left of it where the stream is read, multiplied by the numbers of all layers since. A cache that lacks an
added term is refused; of models whose blocks do neither they are TransformerLens's own.
"""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import Tensor
from transformer_lens import ActivationCache
from transformer_lens.utilities import Slice

from lensplug.patches.errors import LensplugError

NAMES = ("hook_per_layer_out", "hook_deepstack")
"""Hooks of what a block adds besides attention and MLP, in the order in which it does; a row of the second of layer 0
is called "0_deepstack"."""


def terms_of(model: Any) -> list[tuple[int, str]]:
    """The further terms of a model's blocks: layer, and the name of the hook."""
    blocks = enumerate(getattr(model, "blocks", ()))
    return [(layer, name) for layer, block in blocks for name in NAMES if hasattr(block, name)]


def left_of(model: Any, layer: int, at: int) -> float:
    """By which number that which a layer wrote is multiplied until it enters another."""
    return float(math.prod(getattr(model.cfg, "stream_scales", ())[layer:at]))


class StreamTermsCache(ActivationCache):  # type: ignore[misc]
    """An ActivationCache whose decompositions have all that blocks do to the stream."""

    def decompose_resid(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        mode: Any = "all",
        apply_ln: bool = False,
        pos_slice: Any = None,
        incl_embeds: bool = True,
        return_labels: bool = False,
    ) -> Any:
        """ActivationCache.decompose_resid; with `mode="all"`, what is added as well."""
        options = {"mlp_input": mlp_input, "mode": mode, "apply_ln": apply_ln, "pos_slice": pos_slice}
        stack, labels = super().decompose_resid(layer, incl_embeds=incl_embeds, return_labels=True, **options)
        stack = self._as_left(stack, labels, layer)
        if mode == "all":
            stack, labels = self._with_terms(stack, labels, layer, mlp_input, apply_ln, pos_slice, None)
        return (stack, labels) if return_labels else stack

    def get_full_resid_decomposition(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        expand_neurons: bool = True,
        apply_ln: bool = False,
        pos_slice: Any = None,
        return_labels: bool = False,
        project_output_onto: Tensor | None = None,
    ) -> Any:
        """ActivationCache.get_full_resid_decomposition, and what is added."""
        options = {"mlp_input": mlp_input, "apply_ln": apply_ln, "pos_slice": pos_slice}
        stack, labels = super().get_full_resid_decomposition(
            layer, expand_neurons=expand_neurons, return_labels=True, project_output_onto=project_output_onto, **options
        )
        stack = self._as_left(stack, labels, layer)
        stack, labels = self._with_terms(stack, labels, layer, mlp_input, apply_ln, pos_slice, project_output_onto)
        return (stack, labels) if return_labels else stack

    def _as_left(self, stack: Tensor, labels: list[str], layer: int | None) -> Tensor:
        """Every row times what is left of it where the stream is read."""
        if all(scale == 1 for scale in getattr(self.model.cfg, "stream_scales", ())):
            return stack
        if "bias" in labels and bool(stack[labels.index("bias")].any()):
            raise LensplugError(
                "the biases of all layers are one row of get_full_resid_decomposition, and this model multiplies its"
                " stream behind each layer (cfg.stream_scales): use decompose_resid."
            )
        at = self._layer(layer)
        left = [left_of(self.model, _layer_of(label), at) for label in labels]
        return stack * torch.tensor(left).to(stack).view(-1, *[1] * (stack.ndim - 1))

    def _layer(self, layer: int | None) -> int:
        return int(self.model.cfg.n_layers) if layer is None or layer == -1 else layer

    def _with_terms(
        self,
        stack: Tensor,
        labels: list[str],
        layer: int | None,
        mlp_input: bool,
        apply_ln: bool,
        pos_slice: Any,
        onto: Tensor | None,
    ) -> tuple[Tensor, list[str]]:
        at = self._layer(layer)
        added = [(index, name) for index, name in terms_of(self.model) if index < at]
        if not added:
            return stack, labels
        if lacking := [hook for index, name in added if (hook := f"blocks.{index}.{name}") not in self.cache_dict]:
            kind = lacking[0].rpartition("hook_")[2]
            raise LensplugError(
                f"the cache does not hold {lacking[0]!r}, which the block adds to the residual stream, and parts would"
                f" not sum to it: run without names_filter, or with {kind!r} in it."
            )
        pos_slice = pos_slice if isinstance(pos_slice, Slice) else Slice(pos_slice)
        terms = torch.stack(
            [pos_slice.apply(self.cache_dict[f"blocks.{index}.{name}"], dim=-2) for index, name in added]
        )
        if apply_ln:
            terms = self.apply_ln_to_stack(terms, at, pos_slice=pos_slice, mlp_input=mlp_input)
        if onto is not None:
            terms = terms @ onto
        # Features of an image are added behind the layer's own number.
        left = [left_of(self.model, index + (name == "hook_deepstack"), at) for index, name in added]
        terms = terms * torch.tensor(left).to(terms).view(-1, *[1] * (terms.ndim - 1))
        return torch.cat([stack, terms.to(stack)]), [*labels, *(f"{index}_{name[5:]}" for index, name in added)]


def _layer_of(label: str) -> int:
    """The layer that a row is of: "3_attn_out", "L3H0", "L3N12"; the embedding enters the first."""
    number = re.match(r"L?(\d+)[_HN]", label)
    return int(number[1]) if number else 0

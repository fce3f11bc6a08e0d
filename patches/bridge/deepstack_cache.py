"""The gap: TransformerLens's decompositions of the residual stream know attention and MLPs, and no other term.

Where blocks of a model add a third thing to the stream (`deepstack`), `decompose_resid` and
`get_full_resid_decomposition` would not sum to it, without a word. Here they do, and a cache that lacks
`blocks.N.hook_deepstack` is refused; of models whose blocks add nothing else they are TransformerLens's own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformer_lens import ActivationCache
from transformer_lens.utilities import Slice

from lensplug.patches.errors import LensplugError

NAME = "hook_deepstack"


def layers_that_add(model: Any) -> list[int]:
    """The blocks of a model that add a third term to the stream, by number."""
    return [index for index, block in enumerate(getattr(model, "blocks", ())) if hasattr(block, NAME)]


class DeepstackCache(ActivationCache):  # type: ignore[misc]
    """An ActivationCache whose decompositions have what blocks add besides attention and MLP, as their last rows."""

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
        stack, labels = self._with_terms(stack, labels, layer, mlp_input, apply_ln, pos_slice, project_output_onto)
        return (stack, labels) if return_labels else stack

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
        layer = self.model.cfg.n_layers if layer in (None, -1) else layer
        indices = [index for index in layers_that_add(self.model) if index < layer]
        if not indices:
            return stack, labels
        if lacking := [name for index in indices if (name := f"blocks.{index}.{NAME}") not in self.cache_dict]:
            raise LensplugError(
                f"the cache does not hold {lacking[0]!r}, which the block adds to the residual stream, and parts would"
                " not sum to it: run without names_filter, or with 'deepstack' in it."
            )
        added = {index: self.cache_dict[f"blocks.{index}.{NAME}"] for index in indices}
        pos_slice = pos_slice if isinstance(pos_slice, Slice) else Slice(pos_slice)
        terms = torch.stack([pos_slice.apply(term, dim=-2) for term in added.values()])
        if apply_ln:
            terms = self.apply_ln_to_stack(terms, layer, pos_slice=pos_slice, mlp_input=mlp_input)
        if onto is not None:
            terms = terms @ onto
        return torch.cat([stack, terms.to(stack)]), [*labels, *(f"{index}_deepstack" for index in added)]

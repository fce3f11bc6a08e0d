"""Many continuations of one prompt behind keys that are computed once, with either engine.

Not a patch, but used where many runs of a prompt differ from some position on only: what a causal model computes before
it is the same in all of them. The first positions are run once; each branch computes the others, and reads keys and
values of the first from where they are: nothing is stored of a branch.

Checked against transformer-lens 3.9.0 and 4.3.0 with transformers 5.24.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from inspect import signature
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lensplug.patches.decoder_inputs import of_examples, of_positions
from lensplug.patches.hook_points import seen
from lensplug.patches.merged_embeddings import Merged


class Branches:
    """The positions of one prompt behind the first, as often as wanted.

    branches = HookedBranches(model, embeds, 700)
    logits = branches.run(64)                          # [64 pos d_vocab] of the positions from 700 on
    """

    def __init__(
        self,
        model: Any,
        embeds: Float[Tensor, "1 pos d_model"],
        start: int,
        decoder_inputs: Mapping[str, Any] | None = None,
    ) -> None:
        """Run the first positions.

        Args:
            model: A HookedTransformer or a TransformerBridge.
            embeds: Merged embeddings of one prompt, no padding among them.
            start: How many positions all branches share; there may be none.
            decoder_inputs: What else its core is given, of kinds that do not depend on later positions.
        """
        self.model, self.start, self._embeds, self._decoder_inputs = model, start, embeds, decoder_inputs or {}
        if start:
            self._run_first()

    def run(self, count: int) -> Float[Tensor, "branch pos d_vocab"]:
        """Logits of the positions from `start` on, of this many branches."""
        # A copy: hooks may write into what they get.
        return self._run_rest(self._embeds[:, self.start :].repeat(count, 1, 1), count)

    def _run_first(self) -> None:
        raise NotImplementedError

    def _run_rest(self, embeds: Tensor, count: int) -> Tensor:
        raise NotImplementedError


class HookedBranches(Branches):
    """Of a HookedTransformer."""

    def _run_first(self) -> None:
        from lensplug.patches.hooked_transformer.unwatched_blocks import GrowingEntry

        self._entries = [GrowingEntry() for _ in self.model.blocks]
        first = self._embeds[:, : self.start].clone()
        self.model(
            seen(self.model.hook_embed, first),
            start_at_layer=0,
            stop_at_layer=self.model.cfg.n_layers,
            past_kv_cache=self._entries,
        )

    def _run_rest(self, embeds: Tensor, count: int) -> Tensor:
        entries = [entry.shared(count) for entry in self._entries] if self.start else None
        residual = seen(self.model.hook_embed, embeds)
        logits: Tensor = self.model(residual, start_at_layer=0, past_kv_cache=entries)
        return logits


class BridgeBranches(Branches):
    """Of a TransformerBridge."""

    def _run_first(self) -> None:
        from transformers import DynamicCache

        from lensplug.patches.both.logit_rows import LogitRows
        from lensplug.patches.patch import in_force

        original = self.model.original_model
        renamed = "cache" in signature(type(original).forward).parameters  # transformers has renamed the cache
        self._cache_name, self._cache = "cache" if renamed else "past_key_values", DynamicCache(config=original.config)
        with in_force(LogitRows(self.model, torch.zeros(1, 1, dtype=torch.long))):
            self._call(self._embeds[:, : self.start].clone(), slice(0, self.start), self._cache)

    def _run_rest(self, embeds: Tensor, count: int) -> Tensor:
        positions = slice(self.start, self.start + embeds.shape[1])
        return self._call(embeds, positions, _shared(self._cache) if self.start else None)

    def _call(self, embeds: Tensor, positions: slice, cache: Any) -> Tensor:
        copies = torch.zeros(len(embeds), dtype=torch.long)
        decoder_inputs = {
            name: of_examples(name, of_positions(name, value, positions), copies)
            for name, value in self._decoder_inputs.items()
        }
        if decoder_inputs.get("position_ids") is None:
            decoder_inputs["position_ids"] = torch.arange(positions.start, positions.stop, device=embeds.device)[None]
        if cache is None:
            whole: Tensor = self.model(Merged(embeds, None, None, decoder_inputs))
            return whole
        behind = {self._cache_name: cache, "use_cache": True}
        logits: Tensor = self.model(embeds, attention_mask=None, **decoder_inputs, **behind)
        return logits


def _shared(cache: Any) -> Any:
    """A key-value cache of transformers that many branches read, and none writes to."""
    reading = copy(cache)

    def update(keys: Tensor, values: Tensor, layer: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        kept = cache.layers[layer]
        both = [(kept.keys, keys), (kept.values, values)]
        keys, values = (torch.cat([first.expand(len(new), -1, -1, -1), new], dim=2) for first, new in both)
        return keys, values

    reading.update = update
    return reading

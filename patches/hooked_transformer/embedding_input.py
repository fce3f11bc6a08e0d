"""The gap: HookedTransformer takes tokens, and a multimodal model's input is not tokens.

Floats can be given to HookedTransformer only with `start_at_layer=0`, which skips `hook_embed` (so
that `decompose_resid` and its relatives lack the embedding), knows no padding and no loss. While this
patch is applied to a HookedTransformer, merged embeddings go wherever tokens go: `model(x)`,
`run_with_cache(x)`, `run_with_hooks(x)`, `generate(x)`. `x` is a float tensor `[batch pos d_model]` or
any object with `embeds`, `tokens` and `attention_mask` (a lensplug MultimodalInput). `hook_embed` fires
with the merged embeddings, so hooks on it see, and may edit, what the image became.

Strings and token ids go the old way, untouched. Padding may be at the left or at the right: give
`attention_mask=`, or an object that carries it. `return_type="loss"` needs the tokens: `tokens=`.

Checked against transformer-lens 3.9.0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lensplug.patches.errors import LensplugError
from lensplug.patches.hooked_transformer.names import HookedTransformer
from lensplug.patches.merged_embeddings import Merged, as_looked_up, is_merged, padded, refuse_long_answer
from lensplug.patches.patch import Patch, in_force


class EmbeddingInput(Patch):
    """While applied, a HookedTransformer accepts merged embeddings wherever it accepts tokens.

    with EmbeddingInput(model):
        loss = model(embeds, return_type="loss", tokens=tokens, attention_mask=mask)
    """

    def __init__(self, model: HookedTransformer) -> None:
        """Keep `model`; nothing is changed before `apply`."""
        super().__init__(model)

    def _changes(self) -> dict[str, Any]:
        # The replaced method may itself be a patch's, so patches can be stacked.
        self._forward = self.target.forward
        self._input_to_embed = self.target.input_to_embed
        self._generate, self._to_tokens = self.target.generate, self.target.to_tokens
        return {
            "forward": self.forward,
            "input_to_embed": self.input_to_embed,
            "generate": self.generate,
            "to_tokens": self.to_tokens,
        }

    def forward(
        self, input: Any, *args: Any, tokens: Tensor | None = None, attention_mask: Any = None, **kwargs: Any
    ) -> Any:
        """HookedTransformer.forward, for merged embeddings too."""
        is_residual = kwargs.get("start_at_layer") is not None
        if is_residual and not isinstance(input, Tensor):
            raise LensplugError("start_at_layer takes a residual stream: give inputs.embeds, or leave it out.")
        if is_residual or not is_merged(input):
            return self._forward(input, *args, tokens=tokens, attention_mask=attention_mask, **kwargs)
        merged = Merged.of(self.target, input, tokens, attention_mask)
        if merged.tokens is None and (args[0] if args else kwargs.get("return_type")) in ("loss", "both"):
            raise LensplugError("the loss needs the tokens: model(embeds, return_type='loss', tokens=tokens).")
        return self._forward(merged, *args, attention_mask=merged.attention_mask, **kwargs)

    def input_to_embed(
        self,
        input: Any,
        prepend_bos: Any = None,
        padding_side: Any = None,
        attention_mask: Any = None,
        past_kv_cache: Any = None,
    ) -> tuple[Tensor, Tensor | None, None, Tensor | None]:
        """HookedTransformer.input_to_embed: the first residual stream, tokens, (no) positions, mask."""
        if not isinstance(input, Merged) and not is_merged(input):
            looked_up: tuple[Tensor, Tensor | None, None, Tensor | None] = self._input_to_embed(
                input,
                prepend_bos=prepend_bos,
                padding_side=padding_side,
                attention_mask=attention_mask,
                past_kv_cache=past_kv_cache,
            )
            return looked_up
        merged = input if isinstance(input, Merged) else Merged.of(self.target, input, None, attention_mask)
        mask = merged.attention_mask
        if past_kv_cache is not None:
            mask = torch.ones(merged.embeds.shape[:2], dtype=torch.long) if mask is None else mask
            mask = past_kv_cache.append_attention_mask(mask.to(merged.embeds.device))
        # A copy: hooks may write into what they get, as they may with looked-up tokens, and the inputs stay whole.
        return self.target.hook_embed(as_looked_up(merged.embeds, self.target.embed.W_E)), merged.tokens, None, mask

    def to_tokens(self, input: Any, *args: Any, **kwargs: Any) -> Any:
        """HookedTransformer.to_tokens; an object with embeddings is returned unchanged."""
        if is_merged(input) and not isinstance(input, Tensor):
            return input
        return self._to_tokens(input, *args, **kwargs)

    def generate(self, input: Any = "", *args: Any, attention_mask: Any = None, **kwargs: Any) -> Any:
        """HookedTransformer.generate; from merged embeddings it returns tokens or text as asked.

        With the tokens known (an object that carries them), `return_type` "input" and "tokens" give
        prompt and answer tokens; else TransformerLens's own meaning holds: only new tokens, or embeddings.
        """
        if not is_merged(input):
            mask_argument = {} if attention_mask is None else {"attention_mask": attention_mask}
            return self._generate(input, *args, **mask_argument, **kwargs)
        merged = Merged.of(self.target, input, None, attention_mask)
        merged.refuse_padding_at_the_end()
        prompt = merged.tokens if kwargs.get("return_type", "input") in ("input", "tokens") else None
        if prompt is not None:
            kwargs["return_type"] = "tokens"
        with in_force(_GenerationSteps(self.target, merged)):
            output = self._generate(merged.embeds, *args, **kwargs)
        return torch.cat([prompt, output], dim=1) if prompt is not None and isinstance(output, Tensor) else output


class _GenerationSteps(Patch):
    """While TransformerLens generates from embeddings: every step gets the padding mask and fires hook_embed.

    Its `generate` runs each step as `forward(residual, start_at_layer=0)`, without either.
    """

    def __init__(self, model: HookedTransformer, prompt: Merged) -> None:
        super().__init__(model)
        self._prompt = prompt

    def _options(self) -> dict[str, Any]:
        return {"prompt": self._prompt}

    def _changes(self) -> dict[str, Any]:
        self._forward = self.target.forward
        return {"forward": self.forward}

    def forward(self, residual: Tensor, *, past_kv_cache: Any = None, **kwargs: Any) -> Any:
        n_cached = past_kv_cache[0].past_keys.shape[1] if past_kv_cache is not None else 0
        length = n_cached + residual.shape[1]
        refuse_long_answer(length, self.target.cfg.n_ctx)
        if self._prompt.attention_mask is not None:
            kwargs["attention_mask"] = padded(self._prompt.attention_mask, length)
        return self._forward(self.target.hook_embed(residual.clone()), past_kv_cache=past_kv_cache, **kwargs)

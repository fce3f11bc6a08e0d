"""Autoregressive decoding with either engine: the prompt once, then one token at a time with a key-value cache.

Not a patch, but used for generation. TransformerLens's own `generate` computes logits at every position of the prompt,
and runs in inference mode, whose tensors cannot take part in gradients later. Here each step returns the logits of the
last position and fires every hook once: for the prompt, then for one position at a time.

Checked against transformer-lens 3.9.0 and 4.3.0 with transformers 5.24.
"""

from __future__ import annotations

from contextlib import nullcontext
from inspect import signature
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lensplug.patches.both.logit_rows import LogitRows
from lensplug.patches.decoder_inputs import of_an_answer, of_new_words
from lensplug.patches.merged_embeddings import Merged, padded, refuse_long_answer
from lensplug.patches.patch import in_force


class Decoding:
    """The steps of one answer.

    logits = (decoding := HookedDecoding(model, inputs)).prompt()
    logits = decoding.following(logits.argmax(-1))
    """

    def __init__(self, model: Any, prompt: Any) -> None:
        """Check the prompt; nothing is run yet.

        Args:
            model: A HookedTransformer under `EmbeddingInput`, or a TransformerBridge under `BridgeEmbeddingInput`.
            prompt: An object with `embeds`, `tokens`, `attention_mask` (and `decoder_inputs`).

        Raises:
            LensplugError: If no answer can follow this prompt.
        """
        self.model = model
        self._prompt = Merged.of(model, prompt, None, None)
        self._prompt.refuse_padding_at_the_end()
        self._length = 0

    def prompt(self) -> Float[Tensor, "batch d_vocab"]:
        """Logits after the prompt."""
        return self._next(self._prompt.embeds)

    def following(self, tokens: Int[Tensor, " batch"]) -> Float[Tensor, "batch d_vocab"]:
        """Logits after these tokens, one per example."""
        return self._next(self._words(tokens[:, None]))

    def _next(self, embeds: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch d_vocab"]:
        past, self._length = self._length, self._length + embeds.shape[1]
        refuse_long_answer(self._length, self.model.cfg.n_ctx)
        last = torch.full((len(embeds), 1), embeds.shape[1] - 1, device=embeds.device)
        with in_force(LogitRows(self.model, last)) if embeds.shape[1] > 1 else nullcontext():
            # A copy: hooks may write into what they get.
            logits: Tensor = self._step(embeds.clone(), padded(self._prompt.attention_mask, self._length), past)
        return logits[:, -1]

    def _words(self, tokens: Int[Tensor, "batch 1"]) -> Float[Tensor, "batch 1 d_model"]:
        """Embeddings of new tokens; no hook fires."""
        raise NotImplementedError

    def _step(self, embeds: Tensor, attention_mask: Tensor | None, past: int) -> Tensor:
        """Logits of one step, `[batch row d_vocab]`, with the mask of all positions so far."""
        raise NotImplementedError


class HookedDecoding(Decoding):
    """Decoding with a HookedTransformer."""

    def __init__(self, model: Any, prompt: Any) -> None:
        """See `Decoding`."""
        from lensplug.patches.hooked_transformer.unwatched_blocks import GrowingEntry

        super().__init__(model, prompt)
        self._cache = [GrowingEntry() for _ in model.blocks]

    def _words(self, tokens: Tensor) -> Tensor:
        words: Tensor = self.model.embed.W_E[tokens]
        return words

    def _step(self, embeds: Tensor, attention_mask: Tensor | None, past: int) -> Tensor:
        logits: Tensor = self.model(
            self.model.hook_embed(embeds), start_at_layer=0, past_kv_cache=self._cache, attention_mask=attention_mask
        )
        return logits


class BridgeDecoding(Decoding):
    """Decoding with a TransformerBridge."""

    def __init__(self, model: Any, prompt: Any) -> None:
        """See `Decoding`."""
        from transformers import DynamicCache

        super().__init__(model, prompt)
        self._cache = DynamicCache(config=model.original_model.config)
        # transformers has renamed the cache.
        renamed = "cache" in signature(type(model.original_model).forward).parameters
        self._cache_name = "cache" if renamed else "past_key_values"

    def _words(self, tokens: Tensor) -> Tensor:
        self._tokens = tokens
        words: Tensor = self.model.embed.original_component(tokens)
        return words

    def _step(self, embeds: Tensor, attention_mask: Tensor | None, past: int) -> Tensor:
        decoder_inputs = dict(self._prompt.decoder_inputs)
        if past:
            decoder = self.model.original_model.get_decoder()
            decoder_inputs = of_new_words(decoder, decoder_inputs, self._tokens) | of_an_answer(
                decoder_inputs, self._prompt.embeds.shape[1], past
            )
        if decoder_inputs.get("position_ids") is None:  # words alone: a model of three-part positions gives none
            decoder_inputs["position_ids"] = self._positions(attention_mask, past, embeds)
        arguments = {
            "attention_mask": attention_mask,
            self._cache_name: self._cache,
            "use_cache": True,
            **decoder_inputs,
        }
        logits: Tensor = self.model(embeds, **arguments)
        return logits

    def _positions(self, attention_mask: Tensor | None, past: int, embeds: Tensor) -> Int[Tensor, "example pos"]:
        """As Hugging Face counts them: attended positions."""
        if attention_mask is None:
            return torch.arange(past, self._length, device=embeds.device)[None]
        return (attention_mask.cumsum(dim=1) - 1).clamp(min=0)[:, past:]

"""The gap: a TransformerBridge takes embeddings, but neither shows nor pads nor generates from them.

Floats go past `hook_embed`, so that `decompose_resid` and its relatives lack the embedding; generating forgets the
padding after the first step. While this patch is applied to a bridge of a decoder, merged embeddings go wherever tokens
go, as under `EmbeddingInput` on a HookedTransformer: `model(x)`, `run_with_cache(x)`, `run_with_hooks(x)`,
`generate(x)`. `x` is a float tensor `[batch pos d_model]` or any object with `embeds`, `tokens` and `attention_mask` (a
lensplug MultimodalInput). `hook_embed` fires with the merged embeddings, and hooks on it may edit them. Generating from
them finds the key-value cache (`key_value_cache`), without which the prompt would be forgotten.

Strings and token ids are not affected. Positions are counted as Hugging Face counts them where it is given
none. `return_type="loss"` needs the tokens: `tokens=`.

Some cores are given more than embeddings: positions of three parts (Qwen2-VL), masks in which an image sees itself
whole (Gemma 3). For these `x` needs `decoder_inputs` too, and embeddings alone are refused: they would be read as text.

Checked against transformer-lens 3.9.0 and 4.3.0.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from lensplug.patches.bridge.key_value_cache import BridgeCache
from lensplug.patches.decoder_inputs import of_an_answer, of_new_words
from lensplug.patches.errors import LensplugError
from lensplug.patches.merged_embeddings import Merged, as_looked_up, is_merged, padded, refuse_long_answer
from lensplug.patches.patch import Patch, PatchOfParts, in_force


class BridgeEmbeddingInput(Patch):
    """While applied, a TransformerBridge accepts merged embeddings wherever it accepts tokens.

    with BridgeEmbeddingInput(bridge):
        loss = bridge(embeds, return_type="loss", tokens=tokens, attention_mask=mask)
    """

    def __init__(self, model: Any, *, beside: tuple[str, ...] = ()) -> None:
        """Keep `model`; nothing is changed before `apply`.

        Args:
            model: A TransformerBridge.
            beside: Names of the additional inputs of its core, as in `decoder_inputs.KINDS`; none: nothing, or what a
                patch of this kind that is in force already says.
        """
        super().__init__(model)
        self._beside = beside

    def _changes(self) -> dict[str, Any]:
        self._forward = self.target.forward
        self._generate, self._to_tokens = self.target.generate, self.target.to_tokens
        return {"forward": self.forward, "generate": self.generate, "to_tokens": self.to_tokens}

    def _options(self) -> dict[str, Any]:
        return {"beside": self._beside} if self._beside else {}

    def forward(
        self,
        input: Any,
        return_type: str | None = "logits",
        loss_per_token: bool = False,
        *args: Any,
        tokens: Tensor | None = None,
        attention_mask: Any = None,
        **kwargs: Any,
    ) -> Any:
        """TransformerBridge.forward, for merged embeddings too."""
        if attention_mask is not None:
            kwargs["attention_mask"] = attention_mask
        is_residual = kwargs.get("start_at_layer") is not None
        if is_residual and not isinstance(input, Tensor):
            raise LensplugError("start_at_layer takes a residual stream: give inputs.embeds, or leave it out.")
        if is_residual and not kwargs.keys() >= set(self._beside):
            raise LensplugError(
                f"this core is given {' and '.join(self._beside)} by its model, in every layer:"
                f" model(residual, start_at_layer={kwargs['start_at_layer']}, **inputs.decoder_inputs)."
            )
        if is_residual or not is_merged(input):
            with_tokens = {} if tokens is None else {"tokens": tokens}
            return self._forward(input, return_type, loss_per_token, *args, **with_tokens, **kwargs)
        if isinstance(input, Tensor) and any(kwargs.get(name) is not None for name in ("cache", "past_key_values")):
            # A step of an answer: its mask is that of all positions so far, and its caller's affair.
            return self._forward(self.target.embed.hook_out(input), return_type, loss_per_token, *args, **kwargs)
        merged = self._merged(input, tokens, kwargs.pop("attention_mask", None))
        of_loss = return_type in ("loss", "both")
        if merged.tokens is None and of_loss:
            raise LensplugError("the loss needs the tokens: model(embeds, return_type='loss', tokens=tokens).")
        # A copy: hooks may write into what they get, as they may with looked-up tokens, and the inputs stay whole.
        embeds, mask = (
            self.target.embed.hook_out(as_looked_up(merged.embeds, self.target.embed.W_E)),
            merged.attention_mask,
        )
        arguments = {"attention_mask": mask, **merged.decoder_inputs, **kwargs}
        output = self._forward(embeds, "logits" if of_loss else return_type, **arguments)
        if not of_loss:
            return output
        loss = self.target.loss_fn(output, merged.tokens, attention_mask=mask, per_token=loss_per_token)
        return loss if return_type == "loss" else (output, loss)

    def to_tokens(self, input: Any, *args: Any, **kwargs: Any) -> Any:
        """TransformerBridge.to_tokens; an object with embeddings is returned unchanged."""
        if is_merged(input) and not isinstance(input, Tensor):
            return input
        return self._to_tokens(input, *args, **kwargs)

    def generate(self, input: Any = "", *args: Any, attention_mask: Any = None, **kwargs: Any) -> Any:
        """TransformerBridge.generate; from merged embeddings it returns tokens or text as asked.

        With the tokens known (an object that carries them), `return_type` "input" and "tokens" give prompt and answer
        tokens; else TransformerLens's own meaning holds: only new tokens.
        """
        if not is_merged(input):
            mask_argument = {} if attention_mask is None else {"attention_mask": attention_mask}
            return self._generate(input, *args, **mask_argument, **kwargs)
        merged = self._merged(input, None, attention_mask)
        merged.refuse_padding_at_the_end()
        if merged.decoder_inputs and not kwargs.get("use_past_kv_cache", True):
            names = " and ".join(merged.decoder_inputs)
            raise LensplugError(f"a core that is given {names} generates with use_past_kv_cache=True.")
        prompt = merged.tokens if kwargs.get("return_type", "input") in ("input", "tokens") else None
        with in_force(BridgeCache(self.target)), in_force(_GenerationSteps(self.target, merged, self._forward)):
            output = self._generate(merged.embeds, *args, **kwargs)
        return torch.cat([prompt, output], dim=1) if prompt is not None and isinstance(output, Tensor) else output

    def _merged(self, input: Any, tokens: Tensor | None, attention_mask: Any) -> Merged:
        merged = Merged.of(self.target, input, tokens, attention_mask)
        if not merged.decoder_inputs.keys() >= set(self._beside):
            raise LensplugError(
                f"this core is given {' and '.join(self._beside)} by its model, besides embeddings: give the inputs of"
                " lens.prepare (lens.encode) themselves, not their embeds."
            )
        return merged


class _GenerationSteps(PatchOfParts):
    """While a bridge generates from embeddings: every step gets padding and positions, and fires hook_embed once."""

    def __init__(self, model: Any, prompt: Merged, forward: Callable[..., Any]) -> None:
        steps = _Step(model, prompt, forward)
        super().__init__(model, [steps, _WordEmbedding(model.original_model, model.embed.original_component, steps)])


class _Step(Patch):
    tokens: Tensor
    """The new words, `[batch 1]`."""

    def __init__(self, model: Any, prompt: Merged, forward: Callable[..., Any]) -> None:
        super().__init__(model)
        self._prompt, self._forward = prompt, forward

    def _options(self) -> dict[str, Any]:
        return {"prompt": self._prompt}

    def _changes(self) -> dict[str, Any]:
        return {"forward": self.forward}

    def forward(self, embeds: Tensor, *args: Any, past_key_values: Any = None, **kwargs: Any) -> Any:
        n_cached = 0 if past_key_values is None else past_key_values.get_seq_length()
        length = n_cached + embeds.shape[1]
        refuse_long_answer(length, self.target.cfg.n_ctx)
        kwargs["attention_mask"] = padded(self._prompt.attention_mask, length)
        if past_key_values is None:
            kwargs |= self._prompt.decoder_inputs
        else:
            # transformers has renamed the cache, and warns of the old name at every step.
            renamed = "cache" in signature(type(self.target.original_model).forward).parameters
            kwargs["cache" if renamed else "past_key_values"] = past_key_values
            decoder = self.target.original_model.get_decoder()
            kwargs |= of_new_words(decoder, self._prompt.decoder_inputs, self.tokens)
            kwargs |= of_an_answer(self._prompt.decoder_inputs, self._prompt.embeds.shape[1], n_cached)
        return self._forward(self.target.embed.hook_out(embeds.clone()), *args, **kwargs)


class _WordEmbedding(Patch):
    """The bridge asks its model for the embedding of a new word, and would fire hook_embed for that too."""

    def __init__(self, hf_model: Any, embedding: Any, step: _Step) -> None:
        super().__init__(hf_model)
        self._embedding, self._step = embedding, step

    def _changes(self) -> dict[str, Any]:
        return {"get_input_embeddings": lambda: self._embedded}

    def _embedded(self, tokens: Tensor) -> Tensor:
        self._step.tokens = tokens
        embeds: Tensor = self._embedding(tokens)
        return embeds

"""Merged embeddings on their way into a model, checked against it and against each other.

Not a patch but what the two `embedding_input` have in common: which inputs are embeddings, and which of them
a model can take.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lensplug.patches.decoder_inputs import on_device
from lensplug.patches.errors import LensplugError
from lensplug.patches.masks import as_mask


@dataclass(frozen=True)
class Merged:
    """Embeddings, their tokens where they are known, their mask where there is padding; on the model's device."""

    embeds: Tensor
    tokens: Tensor | None
    attention_mask: Tensor | None
    decoder_inputs: Mapping[str, Any] = field(default_factory=dict)
    """Additional decoder inputs by name: multimodal rotary positions, attention masks."""

    @classmethod
    def of(cls, model: Any, input: Any, tokens: Tensor | None, attention_mask: Any) -> Merged:
        """What came, for this model.

        Args:
            model: A HookedTransformer or a TransformerBridge.
            input: Float `[batch pos d_model]`, or an object with `embeds`, `tokens` and `attention_mask`, and
                `decoder_inputs` where its core is given more.
            tokens: In place of the object's.
            attention_mask: In place of the object's; True and False, or 1 and 0.

        Raises:
            LensplugError: If shapes, dtype or length do not fit, or the mask has a hole.
        """
        decoder_inputs = getattr(input, "decoder_inputs", {})
        if not isinstance(input, Tensor):
            tokens = input.tokens if tokens is None else tokens
            attention_mask = input.attention_mask if attention_mask is None else attention_mask
            input = input.embeds
        weight = model.embed.W_E
        if input.ndim != 3 or input.shape[-1] != model.cfg.d_model:
            raise LensplugError(
                f"embeddings have the shape {list(input.shape)}, expected [batch, pos, {model.cfg.d_model}]."
            )
        if input.dtype != weight.dtype:
            raise LensplugError(
                f"embeddings are {input.dtype}, the model is {weight.dtype}: give embeds.to({weight.dtype})."
            )
        if input.shape[1] > model.cfg.n_ctx:
            raise LensplugError(f"{input.shape[1]} positions, but the model has a context of {model.cfg.n_ctx}.")
        if tokens is not None and tokens.shape != input.shape[:2]:
            raise LensplugError(f"tokens has the shape {list(tokens.shape)}, expected {list(input.shape[:2])}.")
        if attention_mask is not None:
            attention_mask = as_mask(attention_mask, input.shape[:2], "attention_mask")
            _refuse_holes(attention_mask)
            # Without padding the mask says nothing; without it attention is cheaper.
            attention_mask = None if bool(attention_mask.all()) else attention_mask.long().to(weight.device)
        return cls(
            input.to(weight.device),
            None if tokens is None else tokens.to(weight.device),
            attention_mask,
            on_device(decoder_inputs, weight.device),
        )

    def refuse_padding_at_the_end(self) -> None:
        """Raise if an answer would begin behind padding."""
        if self.attention_mask is not None and not bool(self.attention_mask[:, -1].all()):
            raise LensplugError(
                "the prompt is padded at its right, and the answer would begin behind the padding: pad at the left"
                " (tokenizer.padding_side = 'left')."
            )


def is_merged(input: Any) -> bool:
    """Whether an input is embeddings (not words, not token ids)."""
    if isinstance(input, Tensor):
        return input.is_floating_point()
    return hasattr(input, "embeds") and hasattr(input, "attention_mask")


def as_looked_up(embeds: Tensor, weight: Tensor) -> Tensor:
    """A copy of embeddings that behaves like looked-up tokens.

    Hooks may write into it, and it has a gradient where the embedding matrix would.
    """
    if torch.is_grad_enabled() and weight.requires_grad and not embeds.requires_grad:
        embeds = embeds.detach().requires_grad_()
    return embeds.clone()


def refuse_long_answer(length: int, n_ctx: int) -> None:
    """Raise if an answer has left the context."""
    if length > n_ctx:
        raise LensplugError(
            f"the answer reaches {length} positions, but the model has a context of {n_ctx}: give a smaller"
            " max_new_tokens."
        )


def _refuse_holes(attended: Tensor) -> None:
    """TransformerLens counts attended positions only, Hugging Face all of them: behind a hole they differ."""
    starts = attended[:, :1].sum(dim=1) + (attended[:, 1:] & ~attended[:, :-1]).sum(dim=1)
    if bool((starts > 1).any()):
        example = int((starts > 1).nonzero()[0])
        raise LensplugError(
            f"attention_mask has a hole in example {example}: only padding at the left or at the right is known."
        )


def padded(attention_mask: Tensor | None, length: int) -> Tensor | None:
    """The mask of a prompt with an answer behind it."""
    if attention_mask is None:
        return None
    return torch.nn.functional.pad(attention_mask, (0, length - attention_mask.shape[1]), value=1)

"""The three parts of a Hugging Face model that its language core is: what every engine builds its model from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn


def mask_form(decoder: Any) -> str:
    """The attention whose masks a decoder is given: "sdpa", or "eager" where transformers has no other (soft caps)."""
    return "sdpa" if getattr(decoder, "_supports_sdpa", True) else "eager"


def has_three_part_positions(decoder: Any) -> bool:
    """Whether rotary positions have three parts (time, height, width), each with a section of the angles."""
    rope = getattr(decoder.config, "rope_parameters", None)
    in_config = isinstance(rope, dict) and bool(rope.get("mrope_section"))
    return in_config or hasattr(getattr(decoder, "rotary_emb", None), "mrope_section")


def embedding_multiplier(decoder: Any) -> float:
    """What a decoder multiplies embeddings by as they enter the stream (Granite, Kosmos)."""
    return float(getattr(decoder, "embedding_multiplier", None) or getattr(decoder, "embed_scale", None) or 1.0)


@dataclass(frozen=True)
class Asked:
    """What a full model said of its core when it was run on a few words, where no table knows it."""

    arguments: Mapping[str, Any]
    """What the decoder was called with: these words."""
    beside: tuple[str, ...] = ()
    """Which of them are more than embeddings and padding: "position_ids" of several parts, "attention_mask"."""
    logit_scale: float = 1.0
    """By which number logits are multiplied behind the head."""
    soft_cap: float | None = None
    """Beyond which no logit goes."""
    forbidden: tuple[int, ...] = ()
    """Tokens that the model never says: it sets their logits to the least number there is (Chameleon's pictures)."""


@dataclass(frozen=True)
class CoreParts:
    """A decoder, the head behind it, and the configuration of both: `head(decoder(inputs_embeds))` are the logits."""

    decoder: Any
    """The module that takes `inputs_embeds`: LlamaModel, Qwen2Model, ... (`hf_model.get_decoder()`)."""
    head: nn.Linear
    """From the decoder's output to the vocabulary (`hf_model.get_output_embeddings()`)."""
    text_config: Any
    """The decoder's configuration (`hf_model.config.get_text_config(decoder=True)`)."""

    @property
    def model_type(self) -> str | None:
        """What transformers calls the decoder's family: "llama", "qwen2", ...; None where it does not say."""
        return getattr(self.text_config, "model_type", None)

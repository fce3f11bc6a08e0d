"""A scope in which each position of a model's encoders attends to itself alone: what does a patch itself contribute?

Through the attention of a vision tower every patch knows of every other, and a change of one corner of the picture
moves all embeddings. With each position's own value in the place of the mean over all values, a change moves the
embeddings of what was changed, and no others: `lensplug.locating` finds by it where positions lie.

It acts on encoders that choose their attention by name, as those of transformers do. Attention of fewer queries than
keys (a resampler's, a Q-Former's) is cross-attention, and stays as it is.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface

from lensplug.hf.attention_choice import attending_by
from lensplug.hf.language_core import LanguageCore

NAME = "lensplug_own_value"


def own_positions_only(hf_model: Any, core: LanguageCore) -> AbstractContextManager[None]:
    """While it lasts, self-attention outside the decoder gives each position its own value; other threads wait.

    Args:
        hf_model: The full model.
        core: Its language core, which is left alone.
    """
    AttentionInterface.register(NAME, _own_value)
    return attending_by(NAME, core, encoder_configs(hf_model, core))


def encoder_configs(hf_model: Any, core: LanguageCore) -> list[Any]:
    """The configurations that modules outside the decoder read, each once."""
    of_decoder = {id(module) for module in core.decoder.modules()}
    configs = {
        id(config): config
        for module in hf_model.modules()
        if id(module) not in of_decoder and hasattr(config := getattr(module, "config", None), "_attn_implementation")
    }
    configs.pop(id(core.decoder.config), None)
    return list(configs.values())


def _own_value(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **options: Any
) -> tuple[Tensor, None]:
    """As an attention function of transformers: `[batch head pos d_head]` to `[batch pos head d_head]`."""
    if query.shape[2] != key.shape[2] or getattr(module, "is_cross_attention", False):
        crossed: tuple[Tensor, None] = AttentionInterface()["sdpa"](module, query, key, value, *args, **options)
        return crossed
    if value.shape[1] != query.shape[1]:  # several heads share keys and values
        value = value.repeat_interleave(query.shape[1] // value.shape[1], dim=1)
    return value.transpose(1, 2).contiguous(), None

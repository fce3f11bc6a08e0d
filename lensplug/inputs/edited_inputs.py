"""Edited copies of an input: replaced embeddings, removed positions, or an appended answer.

Analyses that change what the core receives (`deletion_curve`, `modality_ablation`) run many of them, and `generate`
makes one. Some cores receive more than embeddings (multimodal rotary positions, their own masks): if all positions stay
in place, these are reused; otherwise the model recomputes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lensplug.errors import LensplugError
from lensplug.hf.language_core import LanguageCore
from lensplug.hf.seam import run_to_seam
from lensplug.inputs.multimodal_input import MEDIA_FEATURES, MultimodalInput
from lensplug.patches.decoder_inputs import of_examples, of_replaced
from lensplug.validation.masks import Mask, as_mask

FEATURE_SIZES = {
    "image": ("image_grid_thw",),
    "video": ("video_grid_thw", "second_per_grid_ts", "video_second_per_grid"),
    "audio": ("feature_attention_mask", "audio_feature_lengths"),
}
"""What goes with the features of a medium, for the models whose cores are given more."""


@dataclass(frozen=True)
class Variant:
    """The input of a core, without metadata. Accepted wherever tokens are."""

    embeds: Float[Tensor, "batch pos d_model"]
    attention_mask: Int[Tensor, "batch pos"]
    decoder_inputs: Mapping[str, Any] = field(default_factory=dict)
    tokens: Int[Tensor, "batch pos"] | None = None
    like: Callable[[], MultimodalInput] | None = None
    """The inputs whose positions it has, in their places; None where positions were left out."""


def in_place(
    inputs: MultimodalInput,
    embeds: Float[Tensor, "variant pos d_model"],
    examples: Int[Tensor, " variant"] | None = None,
) -> Variant:
    """The same inputs with other embeddings.

    Features that layers add at a position (Qwen3-VL) go where its embedding is another: they are the medium's too. So
    do per-layer inputs of words (Gemma 4), which say what word it was.

    Args:
        inputs: From `prepare` or `encode`.
        embeds: In place of theirs.
        examples: For each variant, the index of the example that it is a variant of; by default one of each.
    """
    words = inputs.modality.mask("text")
    if examples is None:
        decoder_inputs = of_replaced(inputs.decoder_inputs, (embeds != inputs.embeds).any(dim=-1), words)
        return Variant(embeds, inputs.attention_mask, decoder_inputs, like=lambda: inputs)
    decoder_inputs = {name: of_examples(name, value, examples) for name, value in inputs.decoder_inputs.items()}
    decoder_inputs = of_replaced(decoder_inputs, (embeds != inputs.embeds[examples]).any(dim=-1), words[examples])
    mask, chosen = inputs.attention_mask[examples], examples.tolist()
    return Variant(embeds, mask, decoder_inputs, like=lambda: cast(MultimodalInput, inputs[chosen]))


def without(hf_model: Any, core: LanguageCore, inputs: MultimodalInput, gone: Mask) -> Variant:
    """The same prompts without some positions (a mask `[batch pos]`): the rest moves together, padded at the left.

    Raises:
        LensplugError: If nothing is left of an example, or a model whose masks must be recomputed would have
            to see a part of its image, video or sound.
    """
    left_out: Tensor = as_mask(gone, inputs.tokens.shape, "positions")
    is_kept = inputs.attention_mask.bool() & ~left_out.to(inputs.tokens.device)
    if not bool(is_kept.any(dim=1).all()):
        raise LensplugError(f"nothing is left of example {int((~is_kept.any(dim=1)).nonzero()[0])}: leave out less.")
    # A stable sort by "kept" puts what is left out first, which is then padding.
    order = is_kept.long().argsort(dim=1, stable=True)[:, -int(is_kept.sum(dim=1).max()) :]
    embeds = inputs.embeds.gather(1, order[..., None].expand(-1, -1, inputs.embeds.shape[2]))
    mask = is_kept.long().gather(1, order)
    if not core.beside:
        return Variant(embeds, mask)

    padding = {"input_ids": next(token for token in count() if token not in core.placeholder_ids.values())}

    def shorter(name: str, value: Tensor) -> Tensor:
        return value.gather(1, order).masked_fill(mask == 0, padding.get(name, 0))

    model_inputs = _by_position(_with_media(core, inputs, is_kept), is_kept.shape, shorter)
    return Variant(embeds, mask, run_to_seam(hf_model, core, model_inputs).beside)


def _with_media(core: LanguageCore, inputs: MultimodalInput, is_kept: Bool[Tensor, "batch pos"]) -> Mapping[str, Any]:
    """The full model's inputs, without the features of media that have no position left."""
    dropped: set[str] = set()
    for kind, token in core.placeholder_ids.items():
        is_placeholder = (inputs.tokens == token) & inputs.attention_mask.bool()
        if not bool((is_placeholder & is_kept).any()):
            dropped |= {*MEDIA_FEATURES[kind], *FEATURE_SIZES[kind]}
        elif bool((is_placeholder & ~is_kept).any()):
            raise LensplugError(
                f"some positions of {kind} would be left out, and others not: {core.name} gives its core"
                f" {' and '.join(core.beside)}, which are not known for a part of one. Leave out all of every"
                " example, or replace embeddings in their places."
            )
    return {name: value for name, value in inputs.model_inputs.items() if name not in dropped}


def _by_position(
    model_inputs: Mapping[str, Any], shape: torch.Size, change: Callable[[str, Tensor], Tensor]
) -> dict[str, Any]:
    """What the full model takes, `change` made to what has a number for each position (tokens, mask, types)."""
    return {
        name: change(name, value) if isinstance(value, Tensor) and value.shape == shape else value
        for name, value in model_inputs.items()
    }


def continued(
    hf_model: Any, core: LanguageCore, inputs: MultimodalInput, tokens: Tensor, generated: Tensor
) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """What the full model takes for an input with an answer behind it, and what it then gives its core besides.

    Returns:
        `model_inputs` and `decoder_inputs` of the longer input.
    """
    appended, no_media = {"input_ids": tokens, "attention_mask": generated}, torch.zeros_like(tokens)
    if core.sees_whole_prompt:  # by this an answer is told from the prompt
        appended["token_type_ids"] = torch.ones_like(tokens)

    def longer(name: str, value: Tensor) -> Tensor:
        return torch.cat([value, appended.get(name, no_media).to(value)], dim=1)

    model_inputs = _by_position(inputs.model_inputs, inputs.tokens.shape, longer)
    return model_inputs, run_to_seam(hf_model, core, model_inputs).beside

"""The prompts of a proof: ordinary tokens with some structure, a batch padded at the left, a small picture or sound."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lensplug.errors import LensplugError
from lensplug.hf.language_core import LanguageCore
from lensplug.hf.lead import QUESTION, Lead, example_media
from lensplug.hf.prompts import as_the_model_reads, has_chat_template
from lensplug.hf.seam import run_to_seam

LENGTH = 12
"""Tokens of the text prompt."""
MEDIUM = 8
"""Tokens of the prompts of layers alone, gradients and generation."""
SHORT = 4
"""Tokens of the prompt that is edited: there is one for each edit."""
NO_LEAD = Lead()


@dataclass(frozen=True)
class Prompt:
    """One input, for both models."""

    name: str
    """"text", "left-padded", "image", ..."""
    model_inputs: Mapping[str, Any]
    """For the full model."""
    embeds: Tensor
    """`[batch pos d_model]`, as its decoder is given them."""
    tokens: Tensor
    attention_mask: Tensor
    decoder_inputs: Mapping[str, Any]

    @property
    def real(self) -> Tensor:
        """True where there is no padding, `[batch pos]`."""
        return self.attention_mask.bool()


def text(
    hf_model: Any, core: LanguageCore, length: int = LENGTH, *, batch: int = 1, padding: int = 0, lead: Lead = NO_LEAD
) -> Prompt:
    """A prompt of words, the same in every row; with `padding`, this much of it at the left of a second row.

    Args:
        hf_model: The full model.
        core: Its language core.
        length: How many words.
        batch: How many rows.
        padding: Of another row, which lacks as many of the words.
        lead: What the words stand behind.
    """
    row = words(hf_model, core, length)
    inputs = lead.before([row] * batch + ([row[: length - padding]] if padding else []), core)
    seam = run_to_seam(hf_model, core, inputs)
    name = "left-padded" if padding else "text"
    embeds = seam.embeds.to(core.decoder.embed_tokens.weight.dtype)  # within `full_precision` they are its copies
    return Prompt(name, inputs, embeds, inputs["input_ids"], seam.attention_mask, seam.beside)


def words(hf_model: Any, core: LanguageCore, length: int) -> list[int]:
    """Token ids from all over the vocabulary, the second third of them the first again; no special ones."""
    rows = core.decoder.embed_tokens.weight.shape[0]
    special = set(core.placeholder_ids.values())
    for config in (hf_model.config, core.text_config):
        for name, value in config.to_dict().items():
            if name.endswith(("token_id", "token_index", "token_ids")):
                special |= {
                    token for token in (value if isinstance(value, list) else [value]) if isinstance(token, int)
                }
    chooser = random.Random(0)
    ordinary = [token for token in chooser.sample(range(rows), min(rows, 4 * length)) if token not in special]
    third = max(1, length // 3)
    fresh = (ordinary * length)[: length - third]
    return (fresh[:third] + fresh[:third] + fresh[third:])[:length]


def media(lens: Any, kind: str) -> Prompt:
    """A small picture, sound or video of our own, and a question, through the lens's processor.

    Raises:
        LensplugError: If its processor cannot make an input of it.
    """
    medium = {"images": None, "videos": None, "audio": None, **example_media(kind)}
    question = as_the_model_reads(lens.processor, QUESTION, **medium)
    inputs = lens.prepare(question, **medium, chat_template=has_chat_template(lens.processor))
    if not inputs.model_inputs:
        raise LensplugError("the inputs of the full model are not kept.")
    return Prompt(
        kind, inputs.model_inputs, inputs.embeds, inputs.tokens, inputs.attention_mask, dict(inputs.decoder_inputs)
    )

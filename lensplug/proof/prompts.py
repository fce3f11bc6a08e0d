"""The prompts of a proof: ordinary tokens with some structure, a batch padded at the left, a small picture or sound."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from PIL import Image
from torch import Tensor

from lensplug.errors import LensplugError
from lensplug.hf.language_core import LanguageCore
from lensplug.hf.seam import run_to_seam

LENGTH = 12
"""Tokens of the text prompt."""
MEDIUM = 8
"""Tokens of the prompts of layers alone, gradients and generation."""
SHORT = 4
"""Tokens of the prompt that is edited: there is one for each edit."""


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


def text(hf_model: Any, core: LanguageCore, length: int = LENGTH, *, batch: int = 1, padding: int = 0) -> Prompt:
    """A prompt of words, the same in every row; with `padding`, this much of it at the left of a second row."""
    row = words(hf_model, core, length)
    tokens = torch.tensor([row] * batch)
    mask = torch.ones_like(tokens)
    if padding:
        shorter = [row[0]] * padding + row[: length - padding]
        tokens, mask = torch.cat([tokens, torch.tensor([shorter])]), torch.cat([mask, mask[:1]])
        mask[-1, :padding] = 0
    inputs = {"input_ids": tokens.to(core.device), "attention_mask": mask.to(core.device)}
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
    noise = numpy.random.default_rng(0)
    picture = Image.fromarray(noise.integers(0, 255, (64, 64, 3), dtype=numpy.uint8))
    if kind == "image":
        medium: dict[str, Any] = {"images": [picture]}
    elif kind == "video":
        medium = {"videos": [noise.integers(0, 255, (4, 64, 64, 3), dtype=numpy.uint8)]}
    else:
        medium = {"audio": [(noise.standard_normal(16_000).astype(numpy.float32) / 8, 16_000)]}
    inputs = lens.prepare("What is this?", **medium)
    if not inputs.model_inputs:
        raise LensplugError("the inputs of the full model are not kept.")
    return Prompt(
        kind, inputs.model_inputs, inputs.embeds, inputs.tokens, inputs.attention_mask, dict(inputs.decoder_inputs)
    )

"""What a prompt of a model begins with when it is asked, checked or proved: nothing, or a medium that it always needs.

BLIP-2 and its relatives refuse words alone. The processor of such a model makes a prompt of a small picture, sound or
video of ours and a question, and words are put behind it: `Lead.before`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy
import torch
from PIL import Image
from torch import Tensor

from lensplug.errors import LensplugError
from lensplug.hf import prompts
from lensplug.hf.language_core import LanguageCore
from lensplug.hf.model_inputs import to_model
from lensplug.hf.seam import decoder_arguments

KINDS = ("image", "video", "audio")
QUESTION = "What is this?"
NOT_MODEL_INPUTS = ("input_ids", "attention_mask")


@dataclass(frozen=True)
class Lead:
    """The inputs of one prompt with a medium; by default none."""

    kind: str = ""
    """"image", "video" or "audio"; "" without a medium."""
    model_inputs: Mapping[str, Any] = field(default_factory=dict)
    """For the full model, of one example."""

    def before(self, rows: Sequence[Sequence[int]], core: LanguageCore) -> dict[str, Any]:
        """Inputs of the full model: for each row the medium, then its words; shorter rows are padded at the left.

        Args:
            rows: Token ids.
            core: Where they go.
        """
        lead = self.model_inputs.get("input_ids", torch.zeros(1, 0, dtype=torch.long, device=core.device))
        longest = max(map(len, rows))
        pads = [longest - len(row) for row in rows]
        words = [torch.tensor([row], device=core.device) for row in rows]
        padding = [row[:, :1].expand(1, pad) for row, pad in zip(words, pads, strict=True)]
        tokens = [torch.cat([pad, lead, row], dim=1) for pad, row in zip(padding, words, strict=True)]
        mask = [torch.ones_like(row) for row in tokens]
        for row, pad in zip(mask, pads, strict=True):
            row[:, :pad] = 0
        inputs: dict[str, Any] = {"input_ids": torch.cat(tokens), "attention_mask": torch.cat(mask)}
        for name, value in self.model_inputs.items():
            if name in NOT_MODEL_INPUTS:
                continue
            if isinstance(value, Tensor) and value.shape == lead.shape:  # a number for each position
                each = [torch.nn.functional.pad(value, (pad, longest - pad)) for pad in pads]
                inputs[name] = torch.cat(each)
            else:
                inputs[name] = torch.cat([value] * len(rows)) if isinstance(value, Tensor) else value
        return inputs


def lead_of(hf_model: Any, core: LanguageCore, processor: Any) -> Lead:
    """What words have to stand behind for a model to take them.

    Args:
        hf_model: The full model.
        core: Its language core.
        processor: Its processor, or None.

    Raises:
        LensplugError: If it takes no words alone, and no prompt with a medium can be made here.
    """
    words = [ordinary_words(core, 2)]
    try:
        decoder_arguments(hf_model, core, Lead().before(words, core))
        return Lead()
    except LensplugError as refusal:
        refused = refusal
    name = type(hf_model).__name__
    if not callable(processor) or not hasattr(processor, "tokenizer"):
        raise LensplugError(
            f"{name} takes no prompt of words alone ({refused}), and without its processor none with a medium can be"
            " made, to check and prove the core on: lensplug.wrap(model, processor)."
        ) from refused
    reasons = []
    for kind in KINDS:
        try:
            lead = Lead(kind, _inputs(processor, core, kind))
            decoder_arguments(hf_model, core, lead.model_inputs)
            decoder_arguments(hf_model, core, lead.before(words, core))
            return lead
        except Exception as error:  # noqa: BLE001, whatever a processor raises
            reasons.append(f"{kind}: {str(error).splitlines()[0][:200] if str(error) else type(error).__name__}")
    raise LensplugError(
        f"{name} takes no prompt of words alone ({refused}), and its processor, {type(processor).__name__}, makes none"
        f" of a medium and words that it takes ({'; '.join(reasons)}): there is nothing to prove its core on."
    ) from refused


def ordinary_words(core: LanguageCore, count: int) -> list[int]:
    """Token ids from the middle of the vocabulary, no placeholders."""
    rows = core.decoder.embed_tokens.weight.shape[0]
    special = set(core.placeholder_ids.values())
    words = torch.linspace(rows // 5, rows - 1 - rows // 5, 3 * count).long().tolist()
    return [word for word in words if word not in special][:count]


def example_media(kind: str) -> dict[str, Any]:
    """A small picture, video or sound of noise, as `lens.prepare` takes it."""
    noise = numpy.random.default_rng(0)
    if kind == "image":
        return {"images": [Image.fromarray(noise.integers(0, 255, (64, 64, 3), dtype=numpy.uint8))]}
    if kind == "video":
        return {"videos": [noise.integers(0, 255, (4, 64, 64, 3), dtype=numpy.uint8)]}
    return {"audio": [(noise.standard_normal(16_000).astype(numpy.float32) / 8, 16_000)]}


def _inputs(processor: Any, core: LanguageCore, kind: str) -> dict[str, Any]:
    """What the processor makes of a question about a medium, for the full model."""
    media = {"images": None, "videos": None, "audio": None, **example_media(kind)}
    text = prompts.as_the_model_reads(processor, QUESTION, **media)
    templated = prompts.has_chat_template(processor)
    outputs, _, _ = prompts.prepare(processor, [text], batched=False, chat_template=templated, **media)
    inputs = {name: to_model(value, core) for name, value in outputs.items()}
    inputs.setdefault("attention_mask", torch.ones_like(inputs["input_ids"]))
    return inputs

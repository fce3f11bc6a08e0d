"""Real processors of families that take no words alone, and so are wrapped with one: narrow, with a few words."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf

from support.families.small import VIEW
from support.narrow import tokenizer_with

SIZE = {"height": VIEW, "width": VIEW}
PLACEHOLDERS = {"<image>": 271, "<video>": 272}
"""Which tokens of the tokenizer these are, and so of the small models (`exceptions.EXCEPTIONS`)."""


def processor_of(family: str, config: Any) -> Any:
    """The processor of a small model; None where it is wrapped without.

    Args:
        family: Its `model_type`.
        config: Its configuration.
    """
    if family not in ("blip-2", "instructblip", "instructblipvideo"):
        return None
    tokenizer = tokenizer_with()
    assert {token: tokenizer.convert_tokens_to_ids(token) for token in PLACEHOLDERS} == PLACEHOLDERS
    queries = {"num_query_tokens": config.num_query_tokens}
    if family == "blip-2":
        return hf.Blip2Processor(hf.BlipImageProcessor(size=SIZE), tokenizer, **queries)
    if family == "instructblip":
        return hf.InstructBlipProcessor(hf.BlipImageProcessor(size=SIZE), tokenizer, tokenizer_with(), **queries)
    frames = hf.InstructBlipVideoVideoProcessor(size=SIZE)
    return hf.InstructBlipVideoProcessor(frames, tokenizer, tokenizer_with(), **queries)


def inputs_of(processor: Any, seed: int = 0) -> tuple[str, dict[str, Any]]:
    """What such a processor makes of words and a picture, or a video: "image" or "video", and inputs of the model."""
    generator = torch.Generator().manual_seed(seed)
    is_video = hasattr(processor, "video_token")
    shape = (4, VIEW, VIEW, 3) if is_video else (VIEW, VIEW, 3)
    medium = torch.randint(0, 255, shape, generator=generator, dtype=torch.uint8).numpy()
    outputs = processor(images=[medium], text=["What is this ? one two"], return_tensors="pt")
    return "video" if is_video else "image", dict(outputs)

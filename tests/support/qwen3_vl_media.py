"""A tiny Qwen3-VL with its real processor, of images of any size and videos with their timestamps."""

from __future__ import annotations

from functools import cache as once
from typing import Any

import torch
import transformers as hf

import lensplug
from lensplug.tiny.words import word_tokenizer
from support.beside import DEEP, ROPE, TEXT
from support.models import randomise

SPECIAL = ["<pad>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
WORDS = ["What is the color ? one two three", *[f"<{tenth / 10:.1f} seconds>" for tenth in range(40)]]
CHAT = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% else %}<|vision_start|><|{{ part['type'] }}_pad|><|vision_end|>{% endif %}"
    "{% endfor %}{% endfor %}"
)


def qwen3_vl_with_processor() -> tuple[Any, Any]:
    """The model and its processor; patches of 4 px, merged two by two."""
    tokenizer = word_tokenizer(WORDS, special=SPECIAL, eos="<pad>", pad="<pad>")
    ids = dict(zip(SPECIAL, tokenizer.convert_tokens_to_ids(SPECIAL), strict=True))
    config = hf.Qwen3VLConfig(
        text_config={**TEXT, "vocab_size": len(tokenizer), "head_dim": 8, "rope_parameters": ROPE}, vision_config=DEEP,
        image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"],
    )  # fmt: skip
    patches = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
    size = {"shortest_edge": 16 * 16, "longest_edge": 64 * 64}
    processor = hf.Qwen3VLProcessor(
        hf.Qwen2VLImageProcessor(**patches, size=size), tokenizer,
        hf.Qwen3VLVideoProcessor(**patches, size={"shortest_edge": 256, "longest_edge": 16 * 64 * 64}),
        chat_template=CHAT,
    )  # fmt: skip
    return randomise(hf.Qwen3VLForConditionalGeneration(config)), processor


@once
def wrapped_with_processor() -> Any:
    """Its lens."""
    return lensplug.wrap(*qwen3_vl_with_processor())


def frames(count: int, seed: int) -> torch.Tensor:
    """`[frame height width channel]`, of numbers of 0 to 255."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 16, 24, 3), generator=generator, dtype=torch.uint8)

"""A tiny LLaVA over each language core that image models are built on, and prompts for it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache as once
from typing import Any

import torch
import transformers as hf
from torch import Tensor

import lensplug
from support.models import CLIP, IMAGE_TOKEN, SMALL, randomise

EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
MULTIPLIERS = {
    "embedding_multiplier": 3.0, "residual_multiplier": 0.4, "attention_multiplier": 0.2, "logits_scaling": 2.5,
}  # fmt: skip
CORES: dict[str, Callable[[], Any]] = {
    "ministral3": lambda: hf.Ministral3Config(**SMALL, head_dim=8),
    "phi3": lambda: hf.Phi3Config(**SMALL),
    "phi3-part-rotated": lambda: hf.Phi3Config(**SMALL, partial_rotary_factor=0.5),
    "smollm3": lambda: hf.SmolLM3Config(**SMALL, no_rope_layers=[1, 0, 1]),
    "glm": lambda: hf.GlmConfig(**SMALL, head_dim=8),
    "stablelm": lambda: hf.StableLmConfig(**SMALL),
    "ernie4_5": lambda: hf.Ernie4_5Config(**SMALL, head_dim=8),
    "cohere2": lambda: hf.Cohere2Config(
        **SMALL, head_dim=8, sliding_window=6,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "granite": lambda: hf.GraniteConfig(**SMALL, **MULTIPLIERS),
    "gemma": lambda: hf.GemmaConfig(**SMALL, head_dim=8),
    "qwen3_moe": lambda: hf.Qwen3MoeConfig(**SMALL, **EXPERTS, head_dim=8, num_experts=4),
    "qwen2_moe": lambda: hf.Qwen2MoeConfig(**SMALL, **EXPERTS, num_experts=4, shared_expert_intermediate_size=16),
    "mixtral": lambda: hf.MixtralConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2),
}  # fmt: skip
"""Test id -> its configuration: fused projections, heads rotated in part or not at all, blocks side by side, ..."""


def llava_over(core: str) -> Any:
    """The model, images of 16 positions."""
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**CLIP), text_config=CORES[core](), image_token_index=IMAGE_TOKEN
    )
    model = randomise(hf.LlavaForConditionalGeneration(config))
    with torch.no_grad():
        for name, parameter in model.get_decoder().named_parameters():
            if core == "gemma" and "norm" in name:
                parameter -= 1  # which these norms add
            elif "mlp.experts" in name:
                parameter *= 0.3  # one matrix in numbers for all experts: drawn as if it were no weight
    return model


def prompts() -> dict[str, Tensor]:
    """Two of different lengths, padded at the left, with an image each."""
    generator = torch.Generator().manual_seed(0)
    image = torch.full((16,), IMAGE_TOKEN)
    rows = []
    for length in (14, 9):
        words = torch.randint(3, 290, (length,), generator=generator)
        rows.append(torch.cat([words[:4], image, words[4:]]))
    padding = len(rows[0]) - len(rows[1])
    mask = torch.ones(2, len(rows[0]), dtype=torch.long)
    mask[1, :padding] = 0
    tokens = torch.stack([rows[0], torch.nn.functional.pad(rows[1], (padding, 0), value=7)])
    pixels = torch.randn(2, 3, CLIP["image_size"], CLIP["image_size"], generator=generator)
    return {"input_ids": tokens, "attention_mask": mask, "pixel_values": pixels}


@once
def wrapped(core: str) -> Any:
    """Its lens, made once."""
    return lensplug.wrap(llava_over(core))

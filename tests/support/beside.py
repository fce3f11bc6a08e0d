"""Tiny random models whose core is given more than embeddings: the Qwen-VLs, Gemma 3; and prompts for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache as once
from typing import Any

import torch
import transformers as hf
from torch import Tensor
from transformers.models.gemma2.modeling_gemma2 import Gemma2PreTrainedModel

import lensplug
from support.models import randomise

IMAGE = 300
TEXT: dict[str, Any] = {
    "vocab_size": 320, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "bos_token_id": None, "eos_token_id": None,
    "pad_token_id": None,
}  # fmt: skip
VISION = {"depth": 1, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}
DEEP = {
    **VISION, "depth": 3, "hidden_size": 16, "intermediate_size": 16, "out_hidden_size": 32,
    "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 2],
}  # fmt: skip
IDS = {"image_token_id": IMAGE, "video_token_id": 301, "vision_start_token_id": 302, "vision_end_token_id": 303}
ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}


def qwen2_vl() -> Any:
    vision = {**VISION, "embed_dim": 16, "hidden_size": 32, "mlp_ratio": 1}
    config = hf.Qwen2VLConfig(text_config={**TEXT, "rope_parameters": ROPE}, vision_config=vision, **IDS)
    return randomise(hf.Qwen2VLForConditionalGeneration(config))


def qwen2_5_vl() -> Any:
    vision = {
        **VISION, "hidden_size": 16, "out_hidden_size": 32, "intermediate_size": 16, "window_size": 16,
        "fullatt_block_indexes": [0],
    }  # fmt: skip
    config = hf.Qwen2_5_VLConfig(text_config={**TEXT, "rope_parameters": ROPE}, vision_config=vision, **IDS)
    return randomise(hf.Qwen2_5_VLForConditionalGeneration(config))


def qwen3_vl(text: Mapping[str, Any] = TEXT) -> Any:
    config = hf.Qwen3VLConfig(text_config={**text, "head_dim": 8, "rope_parameters": ROPE}, vision_config=DEEP, **IDS)
    return randomise(hf.Qwen3VLForConditionalGeneration(config))


def qwen3_vl_moe() -> Any:
    """Layers of six experts, of which each token takes two; the second layer has none."""
    text = {
        **TEXT, "head_dim": 8, "rope_parameters": ROPE, "moe_intermediate_size": 16, "num_experts": 6,
        "num_experts_per_tok": 2, "decoder_sparse_step": 1, "mlp_only_layers": [1],
    }  # fmt: skip
    config = hf.Qwen3VLMoeConfig(text_config=text, vision_config=DEEP, **IDS)
    model = randomise(hf.Qwen3VLMoeForConditionalGeneration(config))
    with torch.no_grad():
        for name, parameter in model.get_decoder().named_parameters():
            if "experts" in name:  # as large as the weights of a plain MLP
                parameter *= 1.5 / parameter.shape[-1] ** 0.5
    return model


def gemma3() -> Any:
    vision = hf.SiglipVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8,
        vision_use_head=False,
    )  # fmt: skip
    text = hf.Gemma3TextConfig(
        **TEXT, head_dim=8, query_pre_attn_scalar=12, sliding_window=6,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    )  # fmt: skip
    config = hf.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=IMAGE)
    return randomise(hf.Gemma3ForConditionalGeneration(config))


def paligemma(version: int, text_numbers: Mapping[str, Any] = TEXT, image_token: int = IMAGE) -> Any:
    """Everything in a prompt sees everything; of the second, scores and logits have soft caps, two layers a window."""
    vision = hf.SiglipVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=16,
        vision_use_head=False,
    )  # fmt: skip
    text: Any = hf.GemmaConfig(**text_numbers, head_dim=8)
    if version == 2:
        text = hf.Gemma2Config(
            **text_numbers, head_dim=8, query_pre_attn_scalar=12, sliding_window=6, attn_logit_softcapping=3.0,
            final_logit_softcapping=4.0,
        )  # fmt: skip
    config = hf.PaliGemmaConfig(
        vision_config=vision,
        text_config=text,
        projection_dim=32,
        image_token_index=image_token,
        vocab_size=text_numbers["vocab_size"],
        tie_word_embeddings=version == 2,
    )
    model = randomise(hf.PaliGemmaForConditionalGeneration(config))
    with torch.no_grad():
        for name, parameter in model.get_decoder().named_parameters():
            if "norm" in name:
                parameter -= 1  # which these norms add
    return model


def qwen_prompts(*lengths: int) -> dict[str, Tensor]:
    """For each length so many words, an image of 2 x 4 positions among them; padded at the left."""
    image = torch.tensor([302, *[IMAGE] * 8, 303])
    prompts = _prompts(image, lengths)
    pixels = torch.randn(32 * len(lengths), 3 * 2 * 4 * 4, generator=torch.Generator().manual_seed(1))
    grid = torch.tensor([[1, 4, 8]] * len(lengths))
    return {**prompts, "pixel_values": pixels, "image_grid_thw": grid, "mm_token_type_ids": _types(prompts)}


def gemma_prompts(*lengths: int) -> dict[str, Tensor]:
    """The same with an image of 4 positions."""
    prompts = _prompts(torch.full((4,), IMAGE), lengths)
    pixels = torch.randn(len(lengths), 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return {**prompts, "pixel_values": pixels, "token_type_ids": _types(prompts)}


def paligemma_prompts(*lengths: int) -> dict[str, Tensor]:
    """The same, all of it a prompt."""
    prompts = gemma_prompts(*lengths)
    return {**prompts, "token_type_ids": torch.zeros_like(prompts["input_ids"])}


FAMILIES: dict[str, tuple[Callable[[], Any], Callable[..., dict[str, Tensor]]]] = {
    "qwen2-vl": (qwen2_vl, qwen_prompts),
    "qwen2.5-vl": (qwen2_5_vl, qwen_prompts),
    "qwen3-vl": (qwen3_vl, qwen_prompts),
    "qwen3-vl-moe": (qwen3_vl_moe, qwen_prompts),
    "gemma3": (gemma3, gemma_prompts),
    "paligemma": (lambda: paligemma(1), paligemma_prompts),
    "paligemma2": (lambda: paligemma(2), paligemma_prompts),
}
"""Test id -> the model, and prompts for it."""
if Gemma2PreTrainedModel._supports_sdpa:  # there transformers leaves soft caps out, which lensplug refuses
    del FAMILIES["paligemma2"]


@once
def wrapped(family: str) -> Any:
    """Its lens, made once."""
    return lensplug.wrap(FAMILIES[family][0]())


@once
def given_of(family: str) -> dict[str, Tensor]:
    """Two prompts of different lengths, padded at the left, with an image each."""
    return FAMILIES[family][1](20, 13)


def _prompts(image: Tensor, lengths: tuple[int, ...]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = []
    for length in lengths:
        words = torch.randint(0, 290, (length,), generator=generator)
        rows.append(torch.cat([words[:5], image, words[5:]]))
    longest = max(map(len, rows))

    def padded(row: Tensor, value: int) -> Tensor:
        return torch.nn.functional.pad(row, (longest - len(row), 0), value=value)

    tokens = torch.stack([padded(row, 7) for row in rows])
    mask = torch.stack([padded(torch.ones_like(row), 0) for row in rows])
    return {"input_ids": tokens, "attention_mask": mask}


def _types(prompts: dict[str, Tensor]) -> Tensor:
    return (prompts["input_ids"] == IMAGE).long()

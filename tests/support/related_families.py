"""Models that share a processor with a described family, built as those of `image_families`."""

from __future__ import annotations

from typing import Any

import transformers as hf

from support.counted_families import glm, lively
from support.more_image_families import PADDED_CHAT, PIECES
from support.narrow import CHAT, NARROW, TEXT, tokenizer_with

ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
SECONDS = [f"<{tenth / 10:.1f} seconds>" for tenth in range(60)]
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
VISION: dict[str, Any] = {
    "depth": 2, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "patch_size": 16,
    "out_hidden_size": 16, "num_position_embeddings": 16,
}  # fmt: skip


def ids_of(tokenizer: Any, pieces: tuple[str, ...] = PIECES) -> dict[str, int]:
    """What the configurations of Qwen-VLs call the tokens around and of images and videos."""
    names = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
    return dict(zip(names, map(tokenizer.convert_tokens_to_ids, pieces), strict=True))


def _qwen3_processor(tokenizer: Any) -> Any:
    size = {"shortest_edge": 4 * 64 * 64, "longest_edge": 32 * 32 * 768}
    return hf.Qwen3VLProcessor(
        hf.Qwen2VLImageProcessor(patch_size=16), tokenizer, hf.Qwen3VLVideoProcessor(size=size),
        chat_template=PADDED_CHAT,
    )  # fmt: skip


def qwen3_5(experts: bool = False) -> tuple[Any, Any]:
    """Qwen3.5 and its MoE: the processor of Qwen3-VL; a layer of linear attention, one of attention."""
    tokenizer = tokenizer_with(*PIECES, *SECONDS)
    name = "Qwen3_5Moe" if experts else "Qwen3_5"
    text = {
        **TEXT, "vocab_size": len(tokenizer), "head_dim": 8, "layer_types": ["linear_attention", "full_attention"],
        "rope_parameters": {**ROPE, "partial_rotary_factor": 1.0}, "linear_key_head_dim": 8,
        "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 2,
    }  # fmt: skip
    if experts:
        text |= {**EXPERTS, "shared_expert_intermediate_size": 8}
    config = getattr(hf, f"{name}Config")(text_config=text, vision_config=VISION, **ids_of(tokenizer))
    return getattr(hf, f"{name}ForConditionalGeneration")(config), _qwen3_processor(tokenizer)


def cosmos3_omni() -> tuple[Any, Any]:
    """Cosmos 3 Omni's reasoner: Qwen3-VL under another name."""
    tokenizer = tokenizer_with(*PIECES, *SECONDS)
    config = hf.Cosmos3OmniConfig(
        text_config={**TEXT, "vocab_size": len(tokenizer), "head_dim": 8, "rope_parameters": ROPE},
        vision_config={**VISION, "deepstack_visual_indexes": [0, 1]}, **ids_of(tokenizer),
    )  # fmt: skip
    return hf.Cosmos3OmniForConditionalGeneration(config), _qwen3_processor(tokenizer)


def exaone4_5() -> tuple[Any, Any]:
    """EXAONE 4.5: the encoder of Qwen2.5-VL with heads that share keys, and no positions of three axes."""
    tokenizer = tokenizer_with(*PIECES)
    ids = ids_of(tokenizer)
    vision = {
        "depth": 2, "hidden_size": 16, "num_heads": 2, "num_key_value_heads": 1, "intermediate_size": 16,
        "out_hidden_size": 16, "fullatt_block_indexes": [1],
    }  # fmt: skip
    config = hf.Exaone4_5_Config(
        text_config=hf.Exaone4Config(**{**TEXT, "vocab_size": len(tokenizer)}, head_dim=8), vision_config=vision,
        image_token_id=ids["image_token_id"], video_token_id=ids["video_token_id"],
    )  # fmt: skip
    size = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 768}
    processor = hf.Exaone4_5_Processor(
        hf.Qwen2VLImageProcessor(), tokenizer, hf.Qwen2VLVideoProcessor(size=size), chat_template=PADDED_CHAT
    )
    return lively(hf.Exaone4_5_ForConditionalGeneration(config)), processor


def glm4v_moe() -> tuple[Any, Any]:
    """GLM-4.5V: the processor of GLM-4.1V; the second layer has experts."""
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
    return glm("Glm4vMoe", **experts, rope_parameters={**ROPE, "partial_rotary_factor": 1.0})


def qianfan_ocr() -> tuple[Any, Any]:
    """Qianfan-OCR: the tiles of InternVL, here of 112 px, patches merged 2 x 2."""
    tokenizer = tokenizer_with(
        "<img>", "</img>", "<context>", start_image_token="<img>", end_image_token="</img>",
        context_image_token="<context>",
    )  # fmt: skip
    config = hf.QianfanOCRConfig(
        vision_config={"image_size": [112, 112], "patch_size": [14, 14], **NARROW},
        text_config=hf.Qwen3Config(vocab_size=len(tokenizer), head_dim=8, **TEXT),
        image_token_id=tokenizer.convert_tokens_to_ids("<context>"), image_seq_length=16,
    )  # fmt: skip
    images = hf.GotOcr2ImageProcessor(size={"height": 112, "width": 112})
    processor = hf.QianfanOCRProcessor(images, tokenizer, image_seq_length=16, chat_template=CHAT)
    return hf.QianfanOCRForConditionalGeneration(config), processor


BUILDERS = {
    "qwen3.5": qwen3_5,
    "qwen3.5-moe": lambda: qwen3_5(experts=True),
    "cosmos3-omni": cosmos3_omni,
    "exaone4.5": exaone4_5,
    "glm4v-moe": glm4v_moe,
    "glmga": lambda: glm("Glmga"),
    "qianfan-ocr": qianfan_ocr,
}

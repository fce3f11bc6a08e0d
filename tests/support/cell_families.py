"""Models whose processors cut into cells of patches as Qwen2-VL's, built as those of `image_families`."""

from __future__ import annotations

from typing import Any

import pytest
import transformers as hf
from packaging import version

from support.counted_families import OMNI_CHAT, lively
from support.more_image_families import PADDED_CHAT, PIECES
from support.narrow import CHAT, NARROW, TEXT, tokenizer_with
from support.omni import NAMES
from support.related_families import EXPERTS, ROPE, SECONDS, VISION, ids_of

SIZE = {"shortest_edge": 4 * 64 * 64, "longest_edge": 32 * 32 * 768}
COMPASS = ("<|VISION_START|>", "<|VISION_END|>", "<|IMAGE_PAD|>", "<|VIDEO_PAD|>")


def cohere_compass() -> tuple[Any, Any]:
    """North Micro Vision (Cohere Compass): the encoder of Qwen3-VL, its features added to the first layers too."""
    tokenizer = tokenizer_with(*COMPASS, *SECONDS)
    text = {
        **TEXT, "vocab_size": len(tokenizer), "head_dim": 8, "rope_parameters": {"full_attention": ROPE},
        "layer_types": ["full_attention"] * 2,
    }  # fmt: skip
    config = hf.CohereCompassConfig(
        text_config=text, vision_config={**VISION, "deepstack_visual_indexes": [0, 1]}, **ids_of(tokenizer, COMPASS)
    )
    wrapped = "'<|VISION_START|><|' + part['type'] | upper + '_PAD|><|VISION_END|>'"
    processor = hf.CohereCompassProcessor(
        hf.CohereCompassImageProcessor(patch_size=16), tokenizer, hf.CohereCompassVideoProcessor(size=SIZE),
        chat_template=CHAT.replace("'<' + part['type'] + '>'", wrapped),
    )  # fmt: skip
    return lively(hf.CohereCompassForConditionalGeneration(config)), processor


def hyperclovax() -> tuple[Any, Any]:
    """HyperCLOVA X SEED Vision 2: the encoder of Qwen2.5-VL."""
    tokenizer = tokenizer_with(*PIECES)
    ids = ids_of(tokenizer)
    vision = {**VISION, "patch_size": 14, "fullatt_block_indexes": [1]}
    del vision["num_position_embeddings"]
    config = hf.HyperCLOVAXVisionV2Config(
        text_config=hf.HyperCLOVAXConfig(**{**TEXT, "vocab_size": len(tokenizer)}, head_dim=8),
        vision_config=vision, image_token_id=ids["image_token_id"], video_token_id=ids["video_token_id"],
    )  # fmt: skip
    size = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 768}
    processor = hf.HyperCLOVAXVisionV2Processor(
        hf.Qwen2VLImageProcessor(), tokenizer, hf.Qwen2VLVideoProcessor(size=size), chat_template=PADDED_CHAT
    )
    return lively(hf.HyperCLOVAXVisionV2ForConditionalGeneration(config)), processor


def lfm3_vl() -> tuple[Any, Any]:
    """LFM3-VL: patches merged 2 x 2, frames in pairs; an encoder of attention, and of convolutions over neighbours.

    Here without convolutions: a change would reach the cells beside it.
    """
    tokenizer = tokenizer_with(*PIECES, *SECONDS)
    config = hf.Lfm3VlConfig(
        text_config={
            **TEXT, "vocab_size": len(tokenizer), "pad_token_id": 0, "layer_types": ["conv", "full_attention"],
        },
        vision_config={**NARROW, "num_key_value_heads": 1, "layer_types": ["full_attention"] * 2},
        **ids_of(tokenizer),
    )  # fmt: skip
    processor = hf.Lfm3VlProcessor(
        hf.Qwen2VLImageProcessor(patch_size=16), tokenizer, hf.Qwen3VLVideoProcessor(size=SIZE),
        chat_template=PADDED_CHAT,
    )  # fmt: skip
    return lively(hf.Lfm3VlForConditionalGeneration(config)), processor


def cosmos3_edge() -> tuple[Any, Any]:
    """Cosmos 3 Edge: SigLIP 2's encoder on cells, frames one by one."""
    if version.parse(hf.__version__) < version.parse("5.24"):
        pytest.skip("wrap refuses Cosmos 3 Edge of this transformers: its proof fails on an image")
    tokenizer = tokenizer_with(*PIECES, *SECONDS)
    config = hf.Cosmos3EdgeConfig(
        text_config={**TEXT, "vocab_size": len(tokenizer), "head_dim": 8, "rope_parameters": ROPE},
        vision_config={**NARROW, "num_patches": 16}, projector_hidden_size=32, **ids_of(tokenizer),
    )  # fmt: skip
    processor = hf.Cosmos3EdgeProcessor(
        hf.Cosmos3EdgeImageProcessor(), tokenizer, hf.Cosmos3EdgeVideoProcessor(size=SIZE), chat_template=PADDED_CHAT
    )
    return hf.Cosmos3EdgeForConditionalGeneration(config), processor


def qwen3_omni() -> tuple[Any, Any]:
    """Qwen3-Omni's thinker: images and videos of Qwen3-VL, sounds of Qwen3-ASR."""
    tokenizer = tokenizer_with(*NAMES.values(), **NAMES)
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in NAMES.items()}
    config = hf.Qwen3OmniMoeThinkerConfig(
        text_config={**TEXT, **EXPERTS, "vocab_size": len(tokenizer), "head_dim": 8, "rope_parameters": ROPE},
        vision_config={**VISION, "deepstack_visual_indexes": [0, 1]},
        audio_config={
            "num_mel_bins": 80, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 16, "d_model": 16,
            "output_dim": 16, "downsample_hidden_size": 8,
        },
        image_token_id=ids["image_token"], video_token_id=ids["video_token"], audio_token_id=ids["audio_token"],
        vision_start_token_id=ids["vision_bos_token"], vision_end_token_id=ids["vision_eos_token"],
        audio_start_token_id=ids["audio_bos_token"],
    )  # fmt: skip
    processor = hf.Qwen3OmniMoeProcessor(
        hf.Qwen2VLImageProcessor(patch_size=16), hf.Qwen2VLVideoProcessor(patch_size=16),
        hf.WhisperFeatureExtractor(80), tokenizer, chat_template=OMNI_CHAT,
    )  # fmt: skip
    processor.videos_kwargs = {"size": {"shortest_edge": 64 * 64, "longest_edge": 32 * 32 * 768}}
    return lively(hf.Qwen3OmniMoeThinkerForConditionalGeneration(config)), processor


HUNYUAN = ("<image_start>", "<image_end>", "<newline>")


def hunyuan_vl() -> tuple[Any, Any]:
    """HunYuan-VL and HunyuanOCR: patches of 16 px merged 2 x 2, markers of the model's own around rows."""
    tokenizer = tokenizer_with(
        *HUNYUAN, image_token="<image>", image_start_token=HUNYUAN[0], image_end_token=HUNYUAN[1], pad_token="<pad>"
    )
    start, end, line = map(tokenizer.convert_tokens_to_ids, HUNYUAN)
    text = {
        **TEXT, "vocab_size": len(tokenizer), "head_dim": 8, "pad_token_id": 0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 1, 1]},
    }  # fmt: skip
    config = hf.HunYuanVLConfig(
        text_config=text, vision_config={**NARROW, "max_image_size": 128}, im_start_id=start, im_end_id=end,
        im_newline_id=line, image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    size = {"shortest_edge": 4 * 64 * 64, "longest_edge": 32 * 32 * 768}
    chat = CHAT.replace("'<' + part['type'] + '>'", "'<image_start><image><image_end>'")
    processor = hf.HunYuanVLProcessor(hf.HunYuanVLImageProcessor(size=size), tokenizer, chat_template=chat)
    return lively(hf.HunYuanVLForConditionalGeneration(config)), processor


BUILDERS = {
    "cohere-compass": cohere_compass,
    "hyperclovax": hyperclovax,
    "hunyuan-vl": hunyuan_vl,
    "lfm3-vl": lfm3_vl,
    "cosmos3-edge": cosmos3_edge,
    "qwen3-omni": qwen3_omni,
}

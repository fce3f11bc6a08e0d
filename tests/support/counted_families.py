"""Image families whose processors say how many patches an image has, built as those of `image_families`."""

from __future__ import annotations

from typing import Any

import transformers as hf

from support.narrow import CHAT, TEXT, tokenizer_with
from support.newer_image_families import ROPE
from support.omni import NAMES

OMNI_CHAT = CHAT.replace("'<' + part['type'] + '>'", "'<|vision_bos|><|' + part['type'] | upper + '|><|vision_eos|>'")


def qwen_omni() -> tuple[Any, Any]:
    """Qwen2.5-Omni's thinker: images and videos of Qwen2.5-VL, sounds."""
    tokenizer = tokenizer_with(*NAMES.values(), **NAMES)
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in NAMES.items()}
    vision = {
        "depth": 2, "num_heads": 2, "patch_size": 14, "hidden_size": 16, "out_hidden_size": 16,
        "intermediate_size": 16, "fullatt_block_indexes": [1],
    }  # fmt: skip
    audio = {
        "d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 32, "num_mel_bins": 80,
        "n_window": 100, "output_dim": 16,
    }  # fmt: skip
    config = hf.Qwen2_5OmniThinkerConfig(
        text_config={**TEXT, "vocab_size": len(tokenizer), "rope_parameters": ROPE}, vision_config=vision,
        audio_config=audio, image_token_index=ids["image_token"], video_token_index=ids["video_token"],
        audio_token_index=ids["audio_token"], vision_start_token_id=ids["vision_bos_token"],
        vision_end_token_id=ids["vision_eos_token"], audio_start_token_id=ids["audio_bos_token"],
        audio_end_token_id=ids["audio_eos_token"],
    )  # fmt: skip
    processor = hf.Qwen2_5OmniProcessor(
        hf.Qwen2VLImageProcessor(), hf.Qwen2VLVideoProcessor(), hf.WhisperFeatureExtractor(80), tokenizer,
        chat_template=OMNI_CHAT,
    )  # fmt: skip
    processor.videos_kwargs = {"size": {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 768}}
    return hf.Qwen2_5OmniThinkerForConditionalGeneration(config), processor


BUILDERS = {
    "qwen2.5-omni": qwen_omni,
}

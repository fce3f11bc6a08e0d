"""A tiny Qwen2.5-Omni thinker with its real processor: images of any size, videos, sounds of up to four seconds."""

from __future__ import annotations

from functools import cache as once
from typing import Any

import transformers as hf

import lensplug
from lensplug.tiny.words import word_tokenizer
from support.beside import ROPE, TEXT, VISION
from support.models import randomise

NAMES = {
    "image_token": "<|IMAGE|>", "video_token": "<|VIDEO|>", "audio_token": "<|AUDIO|>",
    "vision_bos_token": "<|vision_bos|>", "vision_eos_token": "<|vision_eos|>",
    "audio_bos_token": "<|audio_bos|>", "audio_eos_token": "<|audio_eos|>",
}  # fmt: skip
CHAT = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% elif part['type'] == 'audio' %}<|audio_bos|><|AUDIO|><|audio_eos|>"
    "{% else %}<|vision_bos|><|{{ part['type'] | upper }}|><|vision_eos|>{% endif %}"
    "{% endfor %}{% endfor %}"
)


def thinker_config(tokenizer: Any, *, text: dict[str, Any], vision: dict[str, Any], audio: dict[str, Any]) -> Any:
    """Of a model with this tokenizer, which has `NAMES`; the encoders with 80 bands of sound."""
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in NAMES.items()}
    sound = {"d_model": 16, "encoder_attention_heads": 2, "encoder_ffn_dim": 32, "num_mel_bins": 80}
    return hf.Qwen2_5OmniThinkerConfig(
        text_config={**text, "vocab_size": len(tokenizer)}, vision_config=vision, audio_config={**sound, **audio},
        image_token_index=ids["image_token"], video_token_index=ids["video_token"],
        audio_token_index=ids["audio_token"], vision_start_token_id=ids["vision_bos_token"],
        vision_end_token_id=ids["vision_eos_token"], audio_start_token_id=ids["audio_bos_token"],
        audio_end_token_id=ids["audio_eos_token"],
    )  # fmt: skip


def thinker_with_processor() -> tuple[Any, Any]:
    """The model and its processor; patches of 4 px, merged two by two, frames in pairs."""
    special = ["<pad>", *NAMES.values()]
    tokenizer = word_tokenizer(["What is the color ? one two three"], special=special, eos="<pad>", pad="<pad>")
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in NAMES.items()}
    for name, token in NAMES.items():
        setattr(tokenizer, name, token)
        setattr(tokenizer, f"{name}_id", ids[name])
    vision = {
        **VISION, "hidden_size": 16, "out_hidden_size": 32, "intermediate_size": 16, "window_size": 16,
        "fullatt_block_indexes": [0],
    }  # fmt: skip
    audio = {
        "encoder_layers": 1, "n_window": 20, "max_source_positions": 200, "output_dim": 32,
    }  # fmt: skip
    config = thinker_config(tokenizer, text={**TEXT, "rope_parameters": ROPE}, vision=vision, audio=audio)
    patches = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
    processor = hf.Qwen2_5OmniProcessor(
        hf.Qwen2VLImageProcessor(**patches, size={"shortest_edge": 256, "longest_edge": 64 * 64}),
        hf.Qwen2VLVideoProcessor(**patches, size={"shortest_edge": 256, "longest_edge": 16 * 64 * 64}),
        hf.WhisperFeatureExtractor(80, chunk_length=4), tokenizer, chat_template=CHAT,
    )  # fmt: skip
    processor.videos_kwargs = {"size": {"shortest_edge": 256, "longest_edge": 16 * 64 * 64}}
    return randomise(hf.Qwen2_5OmniThinkerForConditionalGeneration(config)), processor


@once
def wrapped_with_processor() -> Any:
    """Its lens."""
    return lensplug.wrap(*thinker_with_processor())

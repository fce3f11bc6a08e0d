"""The tiny LLaVA-OneVision: its processor and its untrained model.

A real `LlavaOnevisionForConditionalGeneration` (SigLIP tower, projector, Qwen2 core with grouped-query
attention and a tied head) with a real `LlavaOnevisionProcessor`, small enough to train on two cores.
Its geometry is that of the large model scaled down: views of 48 px in patches of 8 px (6 x 6 positions
per view, 27 x 27 in the large one), a base view, tiles, newline tokens.
"""

from __future__ import annotations

from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
)

from lensplug.tiny.scenes import every_text
from lensplug.tiny.words import word_tokenizer

VIEW = 48
PATCH = 8
GRID_PINPOINTS = [[VIEW * i, VIEW * j] for i, j in ((1, 1), (1, 2), (2, 1), (2, 2), (1, 3), (3, 1))]
VISION_ASPECT_RATIO = "anyres_max_9"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] }}{% if message['role'] != 'assistant' %}{{ ' ' }}{% endif %}"
    "{% for part in message['content'] if part['type'] == 'image' %}<image>{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'video' %}<video>{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ '\n' + part['text'] }}{% endfor %}"
    "{{ '<|im_end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""The form of the large model's template: media first, then a line break and the text."""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Every word that the scenes use is one token."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"]
    corpus = [*every_text(), "user", "assistant", "system", " user", " assistant", " system"]
    return word_tokenizer(corpus, special=special, eos="<|im_end|>", pad="<|endoftext|>")


def build_processor() -> LlavaOnevisionProcessor:
    """The real processor, over the tiny tokenizer and grid."""
    size = {"height": VIEW, "width": VIEW}
    return LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=GRID_PINPOINTS),
        tokenizer=build_tokenizer(),
        video_processor=LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=(VIEW // PATCH) ** 2,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
        vision_aspect_ratio=VISION_ASPECT_RATIO,
    )


def build_model(processor: LlavaOnevisionProcessor) -> LlavaOnevisionForConditionalGeneration:
    """The model with random weights (from torch's global generator)."""
    tokenizer = processor.tokenizer
    vision = SiglipVisionConfig(
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=VIEW,
        patch_size=PATCH,
        vision_use_head=False,
    )
    text = Qwen2Config(
        vocab_size=-(-len(tokenizer) // 8) * 8,  # padded to a multiple of 8, as large vocabularies are
        hidden_size=96,
        intermediate_size=224,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.08,  # the default of 0.02 is for wide models; here it leaves attention flat for long
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = LlavaOnevisionConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=GRID_PINPOINTS,
        vision_aspect_ratio=VISION_ASPECT_RATIO,
        tie_word_embeddings=True,
    )
    model = LlavaOnevisionForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model

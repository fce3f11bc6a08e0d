"""What the tests of geometry make models of: narrow towers and cores, and a tokenizer with a family's special words."""

from __future__ import annotations

from typing import Any

import transformers as hf

from lensplug.tiny.words import word_tokenizer

NARROW = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {
    **NARROW,
    "num_key_value_heads": 2,
    "max_position_embeddings": 16384,
    "bos_token_id": None,
    "eos_token_id": None,
}
CHAT = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}{{ '<' + part['type'] + '>' }}{% endif %}"
    "{% endfor %}{% endfor %}"
)
WORDS = ["What is this ? one two"]


def tokenizer_with(*special: str, **named: str) -> Any:
    tokenizer = word_tokenizer(WORDS, special=["<pad>", "<image>", "<video>", *special], eos="<pad>", pad="<pad>")
    for name, token in named.items():
        setattr(tokenizer, name, token)
        setattr(tokenizer, f"{name}_id", tokenizer.convert_tokens_to_ids(token))
    return tokenizer


def text_config(tokenizer: Any, name: str = "Llama") -> Any:
    return getattr(hf, f"{name}Config")(vocab_size=len(tokenizer), **TEXT)


def clip(view: int, patch: int) -> hf.CLIPVisionConfig:
    return hf.CLIPVisionConfig(image_size=view, patch_size=patch, **NARROW)

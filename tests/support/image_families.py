"""One model of each image family with the views, patches and tiles of the large one, and everything else narrow."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import transformers as hf
from torch import nn

import lensplug
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
NEXT_PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
WORDS = ["What is this ? one two"]


def _tokenizer(*special: str, **named: str) -> Any:
    tokenizer = word_tokenizer(WORDS, special=["<pad>", "<image>", "<video>", *special], eos="<pad>", pad="<pad>")
    for name, token in named.items():
        setattr(tokenizer, name, token)
        setattr(tokenizer, f"{name}_id", tokenizer.convert_tokens_to_ids(token))
    return tokenizer


def _text(tokenizer: Any, name: str = "Llama") -> Any:
    return getattr(hf, f"{name}Config")(vocab_size=len(tokenizer), **TEXT)


def _clip(view: int, patch: int) -> hf.CLIPVisionConfig:
    return hf.CLIPVisionConfig(image_size=view, patch_size=patch, **NARROW)


def llava(strategy: str = "default", **image_options: Any) -> tuple[Any, Any]:
    """LLaVA 1.5: views of 336 px in patches of 14 px, cropped; "full" keeps the class token."""
    tokenizer = _tokenizer()
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    config = hf.LlavaConfig(
        vision_config=_clip(336, 14), text_config=_text(tokenizer), image_token_index=image_id,
        vision_feature_select_strategy=strategy,
    )  # fmt: skip
    options = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}, **image_options}
    kind = hf.LlavaImageProcessor if "do_pad" in image_options else hf.CLIPImageProcessor
    processor = hf.LlavaProcessor(
        kind(**options), tokenizer, patch_size=14, vision_feature_select_strategy=strategy,
        num_additional_image_tokens=1, chat_template=CHAT,
    )  # fmt: skip
    return hf.LlavaForConditionalGeneration(config), processor


def llava_next() -> tuple[Any, Any]:
    """LLaVA-NeXT: the views of LLaVA 1.5 in five tilings."""
    tokenizer = _tokenizer()
    config = hf.LlavaNextConfig(
        vision_config=_clip(336, 14), text_config=_text(tokenizer, "Mistral"), image_grid_pinpoints=NEXT_PINPOINTS,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    images = hf.LlavaNextImageProcessor(
        size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}, image_grid_pinpoints=NEXT_PINPOINTS
    )
    processor = hf.LlavaNextProcessor(
        images, tokenizer, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=CHAT,
    )  # fmt: skip
    return hf.LlavaNextForConditionalGeneration(config), processor


def llava_onevision() -> tuple[Any, Any]:
    """LLaVA-OneVision: views of 384 px in patches of 14 px, every tiling of the large model, anyres_max_9."""
    tokenizer = _tokenizer()
    pinpoints = hf.LlavaOnevisionImageProcessor.image_grid_pinpoints
    config = hf.LlavaOnevisionConfig(
        vision_config=hf.SiglipVisionConfig(image_size=384, patch_size=14, vision_use_head=False, **NARROW),
        text_config=_text(tokenizer, "Qwen2"), image_grid_pinpoints=pinpoints, vision_aspect_ratio="anyres_max_9",
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
    )  # fmt: skip
    processor = hf.LlavaOnevisionProcessor(
        hf.LlavaOnevisionImageProcessor(), tokenizer, hf.LlavaOnevisionVideoProcessor(), num_image_tokens=729,
        vision_feature_select_strategy="full", chat_template=CHAT, vision_aspect_ratio="anyres_max_9",
    )  # fmt: skip
    return hf.LlavaOnevisionForConditionalGeneration(config), processor


def internvl() -> tuple[Any, Any]:
    """InternVL3: views of 448 px in patches of 14 px, merged 2 x 2, up to 12 tiles and a thumbnail."""
    tokenizer = _tokenizer(
        "<img>", "</img>", start_image_token="<img>", end_image_token="</img>", context_image_token="<image>",
        video_token="<video>",
    )  # fmt: skip
    config = hf.InternVLConfig(
        vision_config=hf.InternVLVisionConfig(image_size=[448, 448], patch_size=[14, 14], **NARROW),
        text_config=_text(tokenizer, "Qwen2"), image_token_id=tokenizer.context_image_token_id,
    )  # fmt: skip
    size = {"height": 448, "width": 448}
    processor = hf.InternVLProcessor(
        hf.GotOcr2ImageProcessor(size=size), tokenizer, hf.InternVLVideoProcessor(size=size), chat_template=CHAT
    )
    return hf.InternVLForConditionalGeneration(config), processor


def idefics3() -> tuple[Any, Any]:
    """Idefics3: views of 364 px in patches of 14 px, merged 2 x 2, the longest edge scaled to 4 views."""
    places = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    tokenizer = _tokenizer("<fake_token_around_image>", "<end_of_utterance>", "<global-img>", *places)
    processor = hf.Idefics3Processor(hf.Idefics3ImageProcessor(), tokenizer, image_seq_len=169, chat_template=CHAT)
    config = hf.Idefics3Config(
        vision_config=hf.models.idefics3.Idefics3VisionConfig(image_size=364, patch_size=14, **NARROW),
        text_config=_text(tokenizer), image_token_id=tokenizer.convert_tokens_to_ids("<image>"), scale_factor=2,
    )  # fmt: skip
    return hf.Idefics3ForConditionalGeneration(config), processor


BUILDERS = {
    "llava": llava,
    "llava-full": lambda: llava("full"),
    "llava-padded": lambda: llava(do_pad=True),
    "llava-squeezed": lambda: llava(size={"height": 336, "width": 336}, do_center_crop=False),
    "llava-next": llava_next,
    "llava-onevision": llava_onevision,
    "internvl": internvl,
    "idefics3": idefics3,
}


@cache
def lens(name: str, *, attention: bool = True) -> lensplug.MultimodalLens:
    """The lens of a family, random weights; without attention no patch of a view knows of another."""
    torch.manual_seed(0)
    model, processor = BUILDERS[name]()
    if not attention:
        _silence_attention(model)
    return lensplug.wrap(model.eval(), processor, check=False)


def _silence_attention(model: Any) -> None:
    tower = getattr(model.model, "vision_tower", None) or model.model.vision_model
    outputs = [
        module
        for name, module in tower.named_modules()
        if isinstance(module, nn.Linear) and name.rsplit(".", 1)[-1] in ("out_proj", "projection_layer")
    ]
    assert len(outputs) == NARROW["num_hidden_layers"]
    for module in outputs:
        nn.init.zeros_(module.weight)
    tower.config._attn_implementation = "values as they are"  # multiplied by these zeros; half of the time was this


hf.AttentionInterface.register(
    "values as they are", lambda module, query, key, value, mask, **options: (value.transpose(1, 2).contiguous(), None)
)

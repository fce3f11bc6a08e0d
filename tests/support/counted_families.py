"""Omni, GLM, OCR and Cohere models, built as those of `image_families`."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf

from support.narrow import CHAT, NARROW, TEXT, tokenizer_with
from support.newer_image_families import ROPE
from support.omni import NAMES, thinker_config

OMNI_CHAT = CHAT.replace("'<' + part['type'] + '>'", "'<|vision_bos|><|' + part['type'] | upper + '|><|vision_eos|>'")


def qwen_omni() -> tuple[Any, Any]:
    """Qwen2.5-Omni's thinker: images and videos of Qwen2.5-VL, sounds."""
    tokenizer = tokenizer_with(*NAMES.values(), **NAMES)
    vision = {
        "depth": 2, "num_heads": 2, "patch_size": 14, "hidden_size": 16, "out_hidden_size": 16,
        "intermediate_size": 16, "fullatt_block_indexes": [1],
    }  # fmt: skip
    audio = {"encoder_layers": 2, "n_window": 100, "output_dim": 16}
    config = thinker_config(tokenizer, text={**TEXT, "rope_parameters": ROPE}, vision=vision, audio=audio)
    processor = hf.Qwen2_5OmniProcessor(
        hf.Qwen2VLImageProcessor(), hf.Qwen2VLVideoProcessor(), hf.WhisperFeatureExtractor(80), tokenizer,
        chat_template=OMNI_CHAT,
    )  # fmt: skip
    processor.videos_kwargs = {"size": {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 768}}
    return hf.Qwen2_5OmniThinkerForConditionalGeneration(config), processor


GLM_PIECES = (
    "<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>", "<|image|>", "<|video|>",
)  # fmt: skip
GLM_CHAT = CHAT.replace(
    "'<' + part['type'] + '>'",
    "'<|begin_of_' + part['type'] + '|><|' + part['type'] + '|><|end_of_' + part['type'] + '|>'",
)


def glm(name: str = "Glm4v", **of_text: Any) -> tuple[Any, Any]:
    """GLM-4.xV, GLM-OCR and GLM-GA: patches of 14 px, merged 2 x 2, frames in pairs with their times as words."""
    tokenizer = tokenizer_with(*GLM_PIECES, *map(str, range(60)), image_token="<|image|>", video_token="<|video|>")
    ids = [tokenizer.convert_tokens_to_ids(piece) for piece in GLM_PIECES]
    names = ("image_start", "image_end", "video_start", "video_end", "image", "video")
    vision = {
        "depth": 2, "num_heads": 2, "patch_size": 14, "hidden_size": 16, "out_hidden_size": 16,
        "intermediate_size": 16, "image_size": 112,
    }  # fmt: skip
    text = {**TEXT, "vocab_size": len(tokenizer), "rope_parameters": ROPE, "head_dim": 8, **of_text}
    del text["bos_token_id"], text["eos_token_id"]
    config = getattr(hf, f"{name}Config")(
        vision_config=vision, text_config=text,
        **{f"{kind}_token_id": token for kind, token in zip(names, ids, strict=True)},
    )  # fmt: skip
    kind = "Glm4v" if name in ("Glm4v", "Glm4vMoe") else "Glm46V"
    media = "Glmga" if name == "Glmga" else kind
    size = {"shortest_edge": 2 * 56 * 56, "longest_edge": 2 * 28 * 28 * 768}
    processor = getattr(hf, f"{kind}Processor")(
        getattr(hf, f"{media}ImageProcessor")(), tokenizer, getattr(hf, f"{media}VideoProcessor")(size=size),
        chat_template=GLM_CHAT,
    )  # fmt: skip
    return lively(hf.AutoModelForImageTextToText.from_config(config)), processor


def lively(model: Any) -> Any:
    """Its weights larger: gates that are nearly closed hide a picture, and small weights an edit."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def paddle_ocr() -> tuple[Any, Any]:
    """PaddleOCR-VL: patches of 14 px, merged 2 x 2, any proportions."""
    tokenizer = tokenizer_with("<start>", "<end>", image_token="<image>")
    image, video = (tokenizer.convert_tokens_to_ids(f"<{kind}>") for kind in ("image", "video"))
    text = {**TEXT, "vocab_size": len(tokenizer), "head_dim": 8, "rope_parameters": ROPE}
    config = hf.PaddleOCRVLConfig(
        vision_config={"patch_size": 14, "image_size": 112, **NARROW}, text_config=text, image_token_id=image,
        video_token_id=video, vision_start_token_id=tokenizer.convert_tokens_to_ids("<start>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<end>"),
    )  # fmt: skip
    images = hf.PaddleOCRVLImageProcessor(size={"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 768})
    chat = CHAT.replace("'<' + part['type'] + '>'", "'<start><' + part['type'] + '><end>'")
    processor = hf.PaddleOCRVLProcessor(images, tokenizer, chat_template=chat)
    return lively(hf.PaddleOCRVLForConditionalGeneration(config)), processor


def lighton_ocr() -> tuple[Any, Any]:
    """LightOnOCR: Pixtral's encoder, patches of 14 px merged 2 x 2, no words between rows."""
    tokenizer = tokenizer_with(
        "<break>", "<end>", image_token="<image>", image_break_token="<break>", image_end_token="<end>"
    )
    config = hf.LightOnOcrConfig(
        vision_config=hf.PixtralVisionConfig(image_size=1540, patch_size=14, head_dim=8, **NARROW),
        text_config=hf.Qwen3Config(vocab_size=len(tokenizer), head_dim=8, **TEXT),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    images = hf.PixtralImageProcessor(patch_size={"height": 28, "width": 28}, size={"longest_edge": 1540})
    processor = hf.LightOnOcrProcessor(images, tokenizer, chat_template=CHAT)
    return hf.LightOnOcrForConditionalGeneration(config), processor


def cohere2_vision() -> tuple[Any, Any]:
    """Cohere 2 Vision: tiles and the whole, here of 112 px, patches merged 2 x 2."""
    tokenizer = tokenizer_with(
        "<boi>", "<eoi>", "<line>", image_token="<image>", boi_token="<boi>", eoi_token="<eoi>",
        img_line_break_token="<line>",
    )  # fmt: skip
    config = hf.Cohere2VisionConfig(
        vision_config=hf.SiglipVisionConfig(image_size=112, patch_size=14, vision_use_head=False, **NARROW),
        text_config=hf.Cohere2Config(vocab_size=len(tokenizer), head_dim=8, **TEXT),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"), alignment_intermediate_size=32,
    )  # fmt: skip
    # positions a view: 4 x 4, of which the processor calls the side its patch size
    images = hf.Cohere2VisionImageProcessor(size={"height": 112, "width": 112}, patch_size=4)
    processor = hf.Cohere2VisionProcessor(images, tokenizer, chat_template=CHAT)
    return hf.Cohere2VisionForConditionalGeneration(config), processor


def aya_vision() -> tuple[Any, Any]:
    """Aya Vision: as Cohere 2 Vision, with the tiles of GOT-OCR 2 and words for each."""
    pieces = ("<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>", "TILE_GLOBAL", "TILE")
    tokenizer = tokenizer_with(*pieces, *(f"TILE_{tile}" for tile in range(1, 13)))
    config = hf.AyaVisionConfig(
        vision_config=hf.SiglipVisionConfig(image_size=112, patch_size=14, vision_use_head=False, **NARROW),
        text_config=hf.Cohere2Config(vocab_size=len(tokenizer), head_dim=8, **TEXT),
        image_token_index=tokenizer.convert_tokens_to_ids("<|IMG_PATCH|>"),
    )  # fmt: skip
    images = hf.GotOcr2ImageProcessor(size={"height": 112, "width": 112}, crop_to_patches=True)
    processor = hf.AyaVisionProcessor(
        images, tokenizer, patch_size=14, img_size=112, downsample_factor=2, chat_template=CHAT
    )
    return hf.AyaVisionForConditionalGeneration(config), processor


BUILDERS = {
    "glm4v": glm,
    "glm46v": lambda: glm("Glm46V"),
    "glm-ocr": lambda: glm("GlmOcr"),
    "paddleocr-vl": paddle_ocr,
    "lighton-ocr": lighton_ocr,
    "cohere2-vision": cohere2_vision,
    "aya-vision": aya_vision,
    "qwen2.5-omni": qwen_omni,
}

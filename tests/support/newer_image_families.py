"""Further image families, built as those of `image_families`."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf

from support.narrow import CHAT, NARROW, TEXT, tokenizer_with

ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
PIECES = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
QWEN_CHAT = CHAT.replace("'<' + part['type'] + '>'", "'<|vision_start|><|' + part['type'] + '_pad|><|vision_end|>'")
GEMMA_CHAT = CHAT.replace("'<' + part['type'] + '>'", "'<start_of_image>'")
MISTRAL_CHAT = CHAT.replace("'<' + part['type'] + '>'", "'[IMG]'")


def qwen_vl(version: str = "2") -> tuple[Any, Any]:
    """Qwen2-VL and Qwen2.5-VL: patches of 14 px, merged 2 x 2, frames in pairs; up to 1280 positions an image."""
    tokenizer = tokenizer_with(*PIECES)
    name = {"2": "Qwen2", "2.5": "Qwen2_5_"}[version]
    start, end, image, video = (tokenizer.convert_tokens_to_ids(piece) for piece in PIECES)
    vision: dict[str, Any] = {"depth": 2, "num_heads": 2, "patch_size": 14}
    if version == "2":
        vision |= {"embed_dim": 16, "hidden_size": 16, "mlp_ratio": 1}
    else:
        vision |= {"hidden_size": 16, "out_hidden_size": 16, "intermediate_size": 16, "fullatt_block_indexes": [1]}
    config = getattr(hf, f"{name}VLConfig")(
        vision_config=vision, text_config={**TEXT, "vocab_size": len(tokenizer), "rope_parameters": ROPE},
        image_token_id=image, video_token_id=video, vision_start_token_id=start, vision_end_token_id=end,
    )  # fmt: skip
    processor = getattr(hf, f"{name}VLProcessor")(
        hf.Qwen2VLImageProcessor(), tokenizer, hf.Qwen2VLVideoProcessor(size={"shortest_edge": 56 * 56,
        "longest_edge": 28 * 28 * 768}), chat_template=QWEN_CHAT,
    )  # fmt: skip
    return getattr(hf, f"{name}VLForConditionalGeneration")(config), processor


class PannedGemma3Processor(hf.Gemma3Processor):
    """Called with pan and scan, which no setting of its parts switches on."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        return super().__call__(*args, **{**options, "images_kwargs": {"do_pan_and_scan": True}})


def gemma3(view_px: int, side: int, kind: Any = hf.Gemma3Processor) -> tuple[Any, Any]:
    """Gemma 3: patches of 14 px (the large model has views of 896 px), averaged to `side` x `side` (16)."""
    tokenizer = tokenizer_with(
        "<start_of_image>", "<end_of_image>", "<image_soft_token>", boi_token="<start_of_image>",
        eoi_token="<end_of_image>", image_token="<image_soft_token>",
    )  # fmt: skip
    config = hf.Gemma3Config(
        vision_config=hf.SiglipVisionConfig(image_size=view_px, patch_size=14, vision_use_head=False, **NARROW),
        text_config=hf.Gemma3TextConfig(**{**TEXT, "vocab_size": len(tokenizer)}, head_dim=8),
        mm_tokens_per_image=side**2, image_token_index=tokenizer.image_token_id,
    )  # fmt: skip
    images = hf.Gemma3ImageProcessor(size={"height": view_px, "width": view_px})
    processor = kind(images, tokenizer, image_seq_length=side**2, chat_template=GEMMA_CHAT)
    model = hf.Gemma3ForConditionalGeneration(config)
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.3)  # made as zeros
    return model, processor


def pixtral(merged: int) -> tuple[Any, Any]:
    """Mistral 3 (patches of 14 px, merged 2 x 2) and Pixtral (of 16 px, one by one), rows ended by a word."""
    tokenizer = tokenizer_with("[IMG]", "[IMG_BREAK]", "[IMG_END]")
    patch = 14 if merged > 1 else 16
    vision = hf.PixtralVisionConfig(image_size=1540, patch_size=patch, head_dim=8, **NARROW)
    text = hf.MistralConfig(vocab_size=len(tokenizer), **TEXT)
    image = tokenizer.convert_tokens_to_ids("[IMG]")
    model: Any
    parts: dict[str, Any] = {"vision_config": vision, "text_config": text, "image_token_index": image}
    if merged > 1:
        model = hf.Mistral3ForConditionalGeneration(hf.Mistral3Config(**parts, spatial_merge_size=merged))
    else:
        model = hf.LlavaForConditionalGeneration(
            hf.LlavaConfig(**parts, vision_feature_layer=-1, vision_feature_select_strategy="full")
        )
    images = hf.PixtralImageProcessor(
        patch_size={"height": patch, "width": patch}, size={"longest_edge": 1540 if merged > 1 else 1024}
    )
    processor = hf.PixtralProcessor(
        images, tokenizer, patch_size=patch, spatial_merge_size=merged, chat_template=MISTRAL_CHAT
    )
    return model, processor


BUILDERS = {
    "qwen2-vl": qwen_vl,
    "qwen2.5-vl": lambda: qwen_vl("2.5"),
    "gemma3": lambda: gemma3(224, 4),
    "gemma3-pan": lambda: gemma3(224, 4, PannedGemma3Processor),
    "mistral3": lambda: pixtral(2),
    "pixtral": lambda: pixtral(1),
}

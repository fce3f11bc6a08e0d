"""Image families whose encoders take any proportions, or mix neighbours, built as those of `image_families`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf

from support.narrow import CHAT, NARROW, TEXT, text_config, tokenizer_with


def lfm2_vl(**image_options: Any) -> tuple[Any, Any]:
    """LFM2-VL: patches of 16 px, merged 2 x 2, any proportions; a large picture in tiles (here of 128 px) as well."""
    places = [f"<|img_row_{row}_col_{column}|>" for row in range(1, 11) for column in range(1, 11)]
    tokenizer = tokenizer_with("<|image_start|>", "<|image_end|>", "<|img_thumbnail|>", *places, image_token="<image>")
    config = hf.Lfm2VlConfig(
        vision_config=hf.Siglip2VisionConfig(patch_size=16, num_patches=16, vision_use_head=False, **NARROW),
        text_config=hf.Lfm2Config(vocab_size=len(tokenizer), layer_types=["conv", "full_attention"], **TEXT),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"), projector_hidden_size=32,
    )  # fmt: skip
    size = {"tile_size": 128, "min_image_tokens": 16, "max_image_tokens": 128}
    images = hf.Lfm2VlImageProcessor(**size, **image_options)
    return hf.Lfm2VlForConditionalGeneration(config), hf.Lfm2VlProcessor(images, tokenizer, chat_template=CHAT)


def perception_lm(**image_options: Any) -> tuple[Any, Any]:
    """PerceptionLM: the picture whole and in up to 4 tiles (here of 112 px), patches of 14 px pooled 2 x 2."""
    pytest.importorskip("timm")
    tokenizer = tokenizer_with(image_token="<image>", video_token="<video>")
    tower = {"embed_dim": 16, "depth": 2, "num_heads": 2, "img_size": [112, 112], "global_pool": ""}
    config = hf.PerceptionLMConfig(
        vision_config=hf.TimmWrapperConfig(architecture="vit_pe_lang_large_patch14_448", model_args=tower),
        text_config=text_config(tokenizer), projector_pooling_ratio=2,
        image_token_id=tokenizer.image_token_id, video_token_id=tokenizer.video_token_id,
    )  # fmt: skip
    images = hf.PerceptionLMImageProcessor(**{"tile_size": 112, "max_num_tiles": 4, **image_options})
    videos = hf.PerceptionLMVideoProcessor(size={"height": 112, "width": 112})
    processor = hf.PerceptionLMProcessor(videos, images, tokenizer, patch_size=14, chat_template=CHAT)
    return hf.PerceptionLMForConditionalGeneration(config), processor


def fast_vlm(**image_options: Any) -> tuple[Any, Any]:
    """FastVLM: one view (here of 256 px), the encoder of the large one with a block a stage, a position for 64 px."""
    pytest.importorskip("timm")
    tokenizer = tokenizer_with()
    tower = {
        "layers": [1] * 5, "embed_dims": [8, 8, 16, 32, 32], "mlp_ratios": [1] * 5, "inference_mode": True,
    }  # fmt: skip
    config = hf.FastVlmConfig(
        vision_config=hf.TimmWrapperConfig(architecture="fastvit_mci3", hidden_size=64, model_args=tower),
        text_config=text_config(tokenizer, "Qwen2"), image_seq_length=16,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    options = {"size": {"height": 256, "width": 256}, "do_center_crop": False, **image_options}
    processor = hf.LlavaProcessor(
        hf.LlavaImageProcessor(**options), tokenizer, patch_size=64, vision_feature_select_strategy="full",
        num_additional_image_tokens=0, chat_template=CHAT,
    )  # fmt: skip
    model = hf.FastVlmForConditionalGeneration(config)
    for parameter in model.model.vision_tower.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model, processor


def granite_vision() -> tuple[Any, Any]:
    """Granite Vision 3: LLaVA-NeXT with SigLIP's encoder, several layers of it, here in views of 120 px."""
    tokenizer = tokenizer_with()
    pinpoints = [[120, 240], [240, 120], [240, 240], [360, 120], [120, 360]]
    config = hf.LlavaNextConfig(
        vision_config=hf.SiglipVisionConfig(image_size=120, patch_size=14, vision_use_head=False, **NARROW),
        text_config=text_config(tokenizer, "Granite"), image_grid_pinpoints=pinpoints, image_seq_length=64,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"), vision_feature_layer=[-3, -2, -1],
        vision_feature_select_strategy="full",
    )  # fmt: skip
    size = {"size": {"height": 120, "width": 120}, "crop_size": {"height": 120, "width": 120}}
    images = hf.LlavaNextImageProcessor(**size, image_grid_pinpoints=pinpoints)
    processor = hf.LlavaNextProcessor(
        images, tokenizer, patch_size=14, vision_feature_select_strategy="full", chat_template=CHAT
    )
    return hf.LlavaNextForConditionalGeneration(config), processor


GOT_CHAT = CHAT.replace("'<' + part['type'] + '>'", "'<img><imgpad></img>'")


class CroppingGotOcr2Processor(hf.GotOcr2Processor):
    """Called with tiles, which no setting of its parts switches on."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        return super().__call__(*args, **{**options, "images_kwargs": {"crop_to_patches": True, "max_patches": 6}})


def got_ocr2(kind: Any = hf.GotOcr2Processor) -> tuple[Any, Any]:
    """GOT-OCR 2: one view (here of 256 px) in patches of 16 px, two convolutions with a stride of two behind them."""
    tokenizer = tokenizer_with("<imgpad>", "<img>", "</img>")
    vision = hf.models.got_ocr2.GotOcr2VisionConfig(
        image_size=256, patch_size=16, output_channels=8, global_attn_indexes=[0], window_size=4, mlp_dim=16,
        initializer_range=0.1, **NARROW,
    )  # fmt: skip
    config = hf.GotOcr2Config(
        vision_config=vision, text_config=text_config(tokenizer, "Qwen2"), image_seq_length=16,
        image_token_index=tokenizer.convert_tokens_to_ids("<imgpad>"),
    )  # fmt: skip
    images = hf.GotOcr2ImageProcessor(size={"height": 256, "width": 256}, max_patches=6)
    processor = kind(images, tokenizer, chat_template=GOT_CHAT)
    processor.num_image_tokens = 16
    return hf.GotOcr2ForConditionalGeneration(config), processor


BUILDERS = {
    "fast-vlm": fast_vlm,
    "granite-vision": granite_vision,
    "got-ocr2": got_ocr2,
    "got-ocr2-tiles": lambda: got_ocr2(CroppingGotOcr2Processor),
    "lfm2-vl": lfm2_vl,
    "lfm2-vl-whole": lambda: lfm2_vl(use_thumbnail=False, min_tiles=3, max_tiles=4),
    "perception-lm": perception_lm,
    "perception-lm-one": lambda: perception_lm(vision_input_type="thumb"),
}

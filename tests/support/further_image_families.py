"""Image families whose encoders take any proportions, or mix neighbours, built as those of `image_families`."""

from __future__ import annotations

from typing import Any

import transformers as hf

from support.narrow import CHAT, NARROW, TEXT, tokenizer_with


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


BUILDERS = {
    "lfm2-vl": lfm2_vl,
    "lfm2-vl-whole": lambda: lfm2_vl(use_thumbnail=False, min_tiles=3, max_tiles=4),
}

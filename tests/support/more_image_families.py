"""Image families of one view, of tiles, and of videos, built as those of `image_families`, with small views."""

from __future__ import annotations

from typing import Any

import transformers as hf
from transformers.models.smolvlm import processing_smolvlm

from support.narrow import CHAT, NARROW, TEXT, clip, text_config, tokenizer_with

VIEW, PATCH = 112, 14
PIECES = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
PADDED_CHAT = CHAT.replace("'<' + part['type'] + '>'", "'<|vision_start|><|' + part['type'] + '_pad|><|vision_end|>'")


def _square(edge: int) -> dict[str, int]:
    return {"height": edge, "width": edge}


def _ids(tokenizer: Any) -> dict[str, int]:
    return {f"{kind}_token_index": tokenizer.convert_tokens_to_ids(f"<{kind}>") for kind in ("image", "video")}


def smolvlm() -> tuple[Any, Any]:
    """SmolVLM: the views of Idefics3, here of 56 px, and videos."""
    if processing_smolvlm.num2words is None:  # says how many frames there are, as a word
        processing_smolvlm.num2words = str
    places = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    tokenizer = tokenizer_with("<fake_token_around_image>", "<end_of_utterance>", "<global-img>", *places)
    size = {"size": {"longest_edge": 4 * 56}, "max_image_size": {"longest_edge": 56}}
    processor = hf.SmolVLMProcessor(
        hf.SmolVLMImageProcessor(**size), tokenizer, hf.SmolVLMVideoProcessor(**size), image_seq_len=4,
        chat_template=CHAT,
    )  # fmt: skip
    config = hf.SmolVLMConfig(
        vision_config=hf.models.smolvlm.SmolVLMVisionConfig(image_size=56, patch_size=PATCH, **NARROW),
        text_config=text_config(tokenizer), image_token_id=tokenizer.convert_tokens_to_ids("<image>"), scale_factor=2,
    )  # fmt: skip
    return hf.SmolVLMForConditionalGeneration(config), processor


def vipllava() -> tuple[Any, Any]:
    """ViP-LLaVA: LLaVA's view, several layers of the tower."""
    tokenizer = tokenizer_with()
    config = hf.VipLlavaConfig(
        vision_config=clip(VIEW, PATCH), text_config=text_config(tokenizer), vision_feature_layers=[-2, -1],
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    processor = hf.LlavaProcessor(
        hf.CLIPImageProcessor(size={"shortest_edge": VIEW}, crop_size=_square(VIEW)), tokenizer, patch_size=PATCH,
        vision_feature_select_strategy="default", num_additional_image_tokens=1, chat_template=CHAT,
    )  # fmt: skip
    return hf.VipLlavaForConditionalGeneration(config), processor


def video_llava() -> tuple[Any, Any]:
    """Video-LLaVA: LLaVA's view of images and of frames, whose class tokens are kept."""
    tokenizer = tokenizer_with()
    config = hf.VideoLlavaConfig(
        vision_config=clip(VIEW, PATCH), text_config=text_config(tokenizer), **_ids(tokenizer),
        vision_feature_layer=-2,
    )  # fmt: skip
    size: dict[str, Any] = {"size": {"shortest_edge": VIEW}, "crop_size": _square(VIEW)}
    processor = hf.VideoLlavaProcessor(
        hf.VideoLlavaImageProcessor(**size), hf.VideoLlavaVideoProcessor(**size), tokenizer, patch_size=PATCH,
        vision_feature_select_strategy="default", num_additional_image_tokens=1, chat_template=CHAT,
    )  # fmt: skip
    return hf.VideoLlavaForConditionalGeneration(config), processor


def llava_next_video() -> tuple[Any, Any]:
    """LLaVA-NeXT-Video: the tiles of LLaVA-NeXT; frames cropped and pooled 2 x 2."""
    tokenizer = tokenizer_with()
    pinpoints = [[VIEW, 2 * VIEW], [2 * VIEW, VIEW], [2 * VIEW, 2 * VIEW], [3 * VIEW, VIEW], [VIEW, 3 * VIEW]]
    config = hf.LlavaNextVideoConfig(
        vision_config=clip(VIEW, PATCH), text_config=text_config(tokenizer), image_grid_pinpoints=pinpoints,
        image_seq_length=64, **_ids(tokenizer),
    )  # fmt: skip
    size: dict[str, Any] = {"size": {"shortest_edge": VIEW}, "crop_size": _square(VIEW)}
    processor = hf.LlavaNextVideoProcessor(
        hf.LlavaNextVideoVideoProcessor(**size), hf.LlavaNextImageProcessor(**size, image_grid_pinpoints=pinpoints),
        tokenizer, chat_template=CHAT, patch_size=PATCH, vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )  # fmt: skip
    return hf.LlavaNextVideoForConditionalGeneration(config), processor


def qwen3_vl() -> tuple[Any, Any]:
    """Qwen3-VL: the geometry of Qwen2-VL with patches of 16 px, and the time of frames written between them."""
    seconds = [f"<{tenth / 10:.1f} seconds>" for tenth in range(60)]
    tokenizer = tokenizer_with(*PIECES, *seconds)
    start, end, image, video = (tokenizer.convert_tokens_to_ids(piece) for piece in PIECES)
    vision = {
        "depth": 2, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "patch_size": 16,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": 16, "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0, 1],
    }  # fmt: skip
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    config = hf.Qwen3VLConfig(
        text_config={**TEXT, "vocab_size": len(tokenizer), "head_dim": 8, "rope_parameters": rope},
        vision_config=vision, image_token_id=image, video_token_id=video, vision_start_token_id=start,
        vision_end_token_id=end,
    )  # fmt: skip
    processor = hf.Qwen3VLProcessor(
        hf.Qwen2VLImageProcessor(patch_size=16), tokenizer,
        hf.Qwen3VLVideoProcessor(size={"shortest_edge": 4 * 64 * 64, "longest_edge": 32 * 32 * 768}),
        chat_template=PADDED_CHAT,
    )  # fmt: skip
    return hf.Qwen3VLForConditionalGeneration(config), processor


def _with_image_tokens() -> Any:
    return tokenizer_with(
        "<begin_of_image>", "<end_of_image>", image_token="<image>", boi_token="<begin_of_image>",
        eoi_token="<end_of_image>",
    )  # fmt: skip


def janus() -> tuple[Any, Any]:
    """Janus: one view, padded to a square."""
    tokenizer = _with_image_tokens()
    config = hf.JanusConfig(
        vision_config={"image_size": VIEW, "patch_size": PATCH, "projection_dim": 16, "depth": 2, "mlp_ratio": 1,
                       **NARROW},
        vq_config={"embed_dim": 8, "num_embeddings": 8, "latent_channels": 8, "base_channels": 32, "image_size": 32,
                   "projection_dim": 16, "channel_multiplier": [1, 1], "num_res_blocks": 1, "num_patches": 4},
        text_config=text_config(tokenizer), image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    processor = hf.JanusProcessor(
        hf.JanusImageProcessor(size=_square(VIEW)), tokenizer, chat_template=CHAT, num_image_tokens=64
    )
    return hf.JanusForConditionalGeneration(config), processor


def deepseek_vl(hybrid: bool = False) -> tuple[Any, Any]:
    """DeepSeek-VL: as Janus; the hybrid sees the same square in two resolutions."""
    tokenizer = _with_image_tokens()
    name = "DeepseekVLHybrid" if hybrid else "DeepseekVL"
    parts: dict[str, Any] = {}
    options: dict[str, Any] = {"size": _square(VIEW)}
    if hybrid:
        parts["high_res_vision_config"] = hf.SamVisionConfig(
            image_size=256, patch_size=16, global_attn_indexes=[0], window_size=4, output_channels=8, mlp_dim=16,
            **NARROW,
        )  # fmt: skip
        options["high_res_size"] = _square(256)
    config = getattr(hf, f"{name}Config")(
        vision_config=hf.SiglipVisionConfig(image_size=VIEW, patch_size=PATCH, vision_use_head=False, **NARROW),
        text_config=text_config(tokenizer), image_token_id=tokenizer.convert_tokens_to_ids("<image>"), **parts,
    )  # fmt: skip
    processor = getattr(hf, f"{name}Processor")(
        getattr(hf, f"{name}ImageProcessor")(**options), tokenizer, chat_template=CHAT, num_image_tokens=64
    )
    return getattr(hf, f"{name}ForConditionalGeneration")(config), processor


def ovis2() -> tuple[Any, Any]:
    """Ovis2: the whole image, then its tiles; indicators between them; 2 x 2 patches to a position."""
    indicators = ["<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>"]
    tokenizer = tokenizer_with("<IMG_ATOM>", *indicators)
    config = hf.Ovis2Config(
        vision_config=hf.models.ovis2.Ovis2VisionConfig(
            image_size=VIEW, patch_size=PATCH, vocab_size=64, hidden_stride=2, num_visual_indicator_tokens=5, **NARROW
        ),
        text_config=text_config(tokenizer, "Qwen2"), hidden_size=16, vocab_size=len(tokenizer),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_ATOM>"),
        visual_indicator_token_ids=tokenizer.convert_tokens_to_ids(indicators),
    )  # fmt: skip
    processor = hf.Ovis2Processor(
        hf.Ovis2ImageProcessor(size=_square(VIEW), crop_to_patches=True, max_patches=9), tokenizer,
        chat_template=CHAT, image_seq_length=16,
    )  # fmt: skip
    return hf.Ovis2ForConditionalGeneration(config), processor


def video_llama_3() -> tuple[Any, Any]:
    """VideoLLaMA 3: images and frames of any proportions; of a video, what changes."""
    times = [f"Time {tenth / 10:.1f}s:" for tenth in range(60)]
    tokenizer = tokenizer_with(*PIECES, *times)
    _, _, image, video = (tokenizer.convert_tokens_to_ids(piece) for piece in PIECES)
    config = hf.VideoLlama3Config(
        vision_config={"patch_size": PATCH, **NARROW}, text_config=text_config(tokenizer, "Qwen2"),
        image_token_id=image, video_token_id=video,
    )  # fmt: skip
    processor = hf.VideoLlama3Processor(
        hf.VideoLlama3ImageProcessor(), tokenizer,
        hf.VideoLlama3VideoProcessor(size={"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 768}),
        chat_template=PADDED_CHAT,
    )  # fmt: skip
    return hf.VideoLlama3ForConditionalGeneration(config), processor


def paligemma() -> tuple[Any, Any]:
    """PaliGemma: one squeezed view."""
    tokenizer = tokenizer_with(image_token="<image>")
    tokenizer.bos_token = "<pad>"
    config = hf.PaliGemmaConfig(
        vision_config=hf.SiglipVisionConfig(
            image_size=VIEW, patch_size=PATCH, vision_use_head=False, projection_dim=16, **NARROW
        ),
        text_config=hf.GemmaConfig(vocab_size=len(tokenizer) + 1200, head_dim=8, **TEXT), projection_dim=16,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    images = hf.SiglipImageProcessor(size=_square(VIEW))
    images.image_seq_length = 64
    return hf.PaliGemmaForConditionalGeneration(config), hf.PaliGemmaProcessor(images, tokenizer, chat_template=CHAT)


def idefics2() -> tuple[Any, Any]:
    """Idefics2: a resampler makes 4 positions of each view, wherever they are."""
    tokenizer = tokenizer_with()
    config = hf.Idefics2Config(
        vision_config=hf.models.idefics2.Idefics2VisionConfig(image_size=70, patch_size=PATCH, **NARROW),
        perceiver_config=hf.models.idefics2.Idefics2PerceiverConfig(
            hidden_size=16, resampler_n_latents=4, resampler_depth=1, resampler_n_heads=2, resampler_head_dim=8,
            num_key_value_heads=2,
        ),
        text_config=text_config(tokenizer, "Mistral"), image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    images = hf.Idefics2ImageProcessor(size={"shortest_edge": 40, "longest_edge": 70}, do_image_splitting=False)
    processor = hf.Idefics2Processor(images, tokenizer, image_seq_len=4, chat_template=CHAT)
    config.text_config.vocab_size = len(tokenizer)
    return hf.Idefics2ForConditionalGeneration(config), processor


WITHOUT_PLACES = {"idefics2": idefics2}
"""Families whose positions have no place; they are no grid families."""
BUILDERS = {
    "smolvlm": smolvlm,
    "vipllava": vipllava,
    "video-llava": video_llava,
    "llava-next-video": llava_next_video,
    "qwen3-vl": qwen3_vl,
    "janus": janus,
    "deepseek-vl": deepseek_vl,
    "deepseek-vl-hybrid": lambda: deepseek_vl(hybrid=True),
    "ovis2": ovis2,
    "paligemma": paligemma,
    "video-llama-3": video_llama_3,
}

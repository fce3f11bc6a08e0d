"""What the numbers of a family ask for that their names do not tell: path in its configuration -> value.

A path that ends in ".from" names a part that the defaults leave out, and the configuration it has.
"""

from __future__ import annotations

from typing import Any

CODEC = {"upsample_groups": 64, "num_filters": 4, "upsampling_ratios": [4, 2], "num_quantizers": 4}
SOUND_TOKENS = {"vae_std": 0.0, "num_filters": 4, "downsampling_ratios": [2, 2], "depths": [1, 1, 1]}
RESNET = {"architecture": "resnet18", "hidden_size": 512, "model_args": {}}
"""The smallest picture encoder of timm that gives a map."""
SPEECH = {"conv_dim": [16, 16], "conv_stride": [5, 2], "conv_kernel": [10, 3]}
STARTS = {"vision_start_token_id": 502, "vision_end_token_id": 503, "audio_start_token_id": 504}
"""What the published configurations of Qwen-Omni's thinkers name, and the defaults do not."""
THREE_PARTS = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
PICTURE_WORDS = {"<image>": 500, "<|extra_200|>": 501}
"""Chameleon's and Emu3's words for pieces of a picture."""


def _under(part: str, numbers: dict[str, Any]) -> dict[str, Any]:
    return {f"{part}.{name}": value for name, value in numbers.items()}


EXCEPTIONS: dict[str, dict[str, Any]] = {
    "apertus1p5": {
        "image_token_offset": 300, "audio_token_offset": 364, "vision_config.base_channels": 32,
        "audio_config.num_filters": 4,
    },
    "aria": {"projector_patch_to_query_dict": {16: 4}},
    "blip-2": {"image_token_index": 271, "num_query_tokens": 6},
    "instructblip": {"image_token_index": 271, "num_query_tokens": 6, "text_config.from": "llama"},
    "instructblipvideo": {"video_token_index": 272, "num_query_tokens": 6, "text_config.from": "llama"},
    "chameleon": {
        "image_token_id": 500,
        "vocabulary_map": {"<image>": 500, **{f"IMGIMG{letter}Z": 400 + n for n, letter in enumerate("ABCDEFGHIJ")}},
        "vq_config.num_embeddings": 10, "vq_config.base_channels": 32, "vq_config.embed_dim": 32,
        "vq_config.latent_channels": 32,
    },
    "cohere_compass": {
        "text_config.rope_parameters": {"full_attention": THREE_PARTS},
        "vision_config.deepstack_visual_indexes": [0, 1],
    },
    "cosmos3_omni": {"text_config.rope_parameters": THREE_PARTS, "vision_config.deepstack_visual_indexes": [0, 1]},
    "csm": _under("codec_config", CODEC),
    "deepseek_vl_hybrid": {"high_res_vision_config.global_attn_indexes": [0]},
    "deepseek_ocr2": {
        "text_config.mlp_layer_types": ["dense", "sparse", "sparse", "sparse"], "text_config.num_experts_per_tok": 2,
    },
    "diffusion_gemma": {
        "text_config.num_experts": 4, "text_config.top_k_experts": 2, "text_config.moe_intermediate_size": 32,
    },
    "dots3_note": {
        "text_config.head_dim": 32, "vision_config.adapter_in_dim": 64, "vision_config.adapter_out_dim": 64,
        "audio_config.adapter_input_size": 64, "audio_config.adapter_out_dim": 64,
        "text_config.per_layer_config": {
            layer: {"num_attention_heads": 4, "num_key_value_heads": 4, "kv_lora_rank": 16, "qk_nope_head_dim": 16}
            for layer in (2, 3)
        },
    },
    "emu3": {
        "image_token_id": 500, "vocabulary_map": PICTURE_WORDS, "vq_config.base_channels": 32,
        "vq_config.hidden_size": 128,
    },
    "ernie4_5_vl_moe": {
        "text_config.rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [3, 3, 2]},
        "text_config.moe_intermediate_size": [32, 16],
    },
    "evolla": {"protein_encoder_config.pad_token_id": 1},
    "fast_vlm": _under("vision_config", RESNET),
    "fun_asr_nano": {"adaptor_config.intermediate_size": 16},
    "gemma3n": {
        **_under("vision_config", RESNET), "vision_soft_tokens_per_image": 1,
        "text_config.num_kv_shared_layers": 2,
        "text_config.layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    },
    "mistral4": {"head_dim": 32},  # of which half is rotated: the 16 of qk_rope_head_dim
    "step3p7": {"text_config.sliding_window": 6},
    "gemma4": {
        "vision_config.from": "gemma4_vision", "audio_config.from": "gemma4_audio",
        "text_config.num_kv_shared_layers": 2, "text_config.use_double_wide_mlp": True,
        "text_config.layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "gemma4_unified": {"vision_config.from": "gemma4_unified_vision", "audio_config.from": "gemma4_unified_audio"},
    **{family: {"mm_tokens_per_image": 4} for family in ("gemma3", "shieldgemma2")},
    "glmasr": {"audio_config.intermediate_size": 128},
    "granite_docling": {"vision_config.deepstack_visual_indexes": [0, 1]},
    "granite4_vision": {
        "deepstack_layer_map": [[0, 1]], "downsample_rate": "1/2", "spatial_target_layers": [2],
        "image_grid_pinpoints": [[32, 64], [64, 32]],
    },
    **{
        family: {"text_config.rope_parameters": {**THREE_PARTS, "partial_rotary_factor": 1.0}}
        for family in ("glm4v", "glm46v", "glmga", "glm_ocr", "glm4v_moe")
    },
    "hunyuan_vl": {
        "text_config.head_dim": 16,
        "text_config.rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 2, 2, 2]},
    },
    "kyutai_speech_to_text": _under("codec_config", CODEC),
    "llava_next": {"image_grid_pinpoints": [[32, 64], [64, 32]]},
    "llava_next_video": {"image_grid_pinpoints": [[32, 64], [64, 32]]},
    "llava_onevision": {"image_grid_pinpoints": [[32, 64], [64, 32]]},
    "molmo2": {"adapter_config.vision_feature_layer": [1, 0]},
    **{
        family: {"image_token_id": 500, "video_token_id": 501}
        for family in ("minicpm_ocr", "minicpmv4_6", "minicpmv4_7")
    },
    "moonshine_streaming": {"num_key_value_heads": 4},
    "moss_transcribe_diarize": {"audio_config.max_source_positions": 48},
    "muse_glimmer": {"out_hidden_size": 256},
    "phi4_multimodal": {"vision_config.crop_size": 32},
    "perception_lm": {
        "vision_config.architecture": "vit_tiny_patch16_224",
        "vision_config.model_args": {
            "embed_dim": 64, "depth": 2, "num_heads": 4, "img_size": 32, "patch_size": 8, "global_pool": "",
        },
    },
    "qwen3_omni_moe": {
        "talker_config.text_config.shared_expert_intermediate_size": 32, "talker_config.spatial_merge_size": 2,
    },
    "qwen4_exp": {
        "text_config.indexer_n_heads": 2, "text_config.indexer_kv_heads": 1, "text_config.indexer_head_dim": 16,
        "text_config.indexer_budget": 8, "text_config.indexer_compress_ratio": 2,
        "text_config.ngram_vocab_size_base": 64, "text_config.split_ngram_parts": 4,
    },
    **{
        family: {"text_config.rope_parameters": THREE_PARTS}
        for family in ("qwen2_vl", "qwen2_5_vl", "qwen3_5", "qwen3_5_moe", "paddleocr_vl")
    },
    **{
        family: {"text_config.rope_parameters": THREE_PARTS, "vision_config.deepstack_visual_indexes": [0, 1]}
        for family in ("qwen3_vl", "qwen3_vl_moe")
    },
    "qwen2_5_omni_thinker": {"text_config.rope_parameters": THREE_PARTS, **STARTS},
    "qwen3_omni_moe_thinker": {
        "text_config.rope_parameters": THREE_PARTS, "vision_config.deepstack_visual_indexes": [0, 1], **STARTS,
    },
    "speech-encoder-decoder": _under("encoder", SPEECH),
    "speecht5": SPEECH,
    "vipllava": {"vision_feature_layers": [-2, -1]},
    "vibevoice": {
        **_under("audio_config", SOUND_TOKENS), **_under("semantic_model_config", SOUND_TOKENS),
        **_under("diffusion_head_config", {"hidden_size": 64}),
    },
    "vibevoice_asr": {
        **_under("acoustic_tokenizer_encoder_config", SOUND_TOKENS),
        **_under("semantic_tokenizer_encoder_config", SOUND_TOKENS), "acoustic_tokenizer_chunk_size": 200,
    },
    "voxtral": {
        "audio_token_id": 500, "audio_config.intermediate_size": 256, "audio_config.max_source_positions": 1500,
    },
}  # fmt: skip

"""Small random Gemma 4 models of the forms that are published, with the real processor around a small tokenizer."""

from __future__ import annotations

from functools import cache as once
from typing import Any

import torch
import transformers as hf

import lensplug
from support.models import randomise
from support.narrow import CHAT, tokenizer_with

WORD = {"image": "<image>", "video": "<|video|>", "audio": "<sound>", "boi": "<boi>", "eoi": "<eoi>", "boa": "<boa>",
        "eoa": "<eoa>"}  # fmt: skip
GEMMA_CHAT = CHAT.replace("'<' + part['type'] + '>'", str({k: WORD[k] for k in ("image", "video", "audio")})
                          + "[part['type']]")  # fmt: skip
LAYERS = ["sliding_attention", "full_attention"] * 2
SCALES = (0.5, 0.8, 1.2, 0.7)
"""What each layer multiplies its stream by."""
TEXT: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "head_dim": 8,
    "num_key_value_heads": 2, "global_head_dim": 16, "sliding_window": 8, "layer_types": LAYERS,
    "hidden_size_per_layer_input": 8, "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0,
}  # fmt: skip
FORMS: dict[str, dict[str, Any]] = {
    # The last layers have no keys of their own, and wider MLPs.
    "E": {"num_kv_shared_layers": 2, "use_double_wide_mlp": True, "final_logit_softcapping": 30.0},
    # Experts beside the MLP, values that are the keys, an image that sees itself; no per-layer inputs.
    "A": {
        "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0, "enable_moe_block": True, "num_experts": 4,
        "top_k_experts": 2, "moe_intermediate_size": 16, "attention_k_eq_v": True, "num_global_key_value_heads": 1,
        "use_bidirectional_attention": "vision",
    },
}  # fmt: skip
"""As the small models (E2B, E4B), and as that with experts (26B-A4B)."""


def gemma4(form: str = "E") -> tuple[Any, Any]:
    """The model, and its processor: patches of 16 px, 3 x 3 of them a position."""
    words = {name: token for name, token in WORD.items() if name != "video"}
    tokenizer = tokenizer_with(*WORD.values(), **{f"{name}_token": token for name, token in words.items()})
    tokenizer.add_special_tokens({"additional_special_tokens": [WORD["video"]]})
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in WORD.items()}
    vocab = {"vocab_size": len(tokenizer), "vocab_size_per_layer_input": len(tokenizer)}
    narrow = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = hf.Gemma4Config(
        text_config=hf.Gemma4TextConfig(**{**TEXT, **vocab, **FORMS[form]}),
        vision_config=hf.Gemma4VisionConfig(
            **narrow, intermediate_size=32, num_key_value_heads=2, head_dim=16, position_embedding_size=64
        ),
        audio_config=hf.Gemma4AudioConfig(**narrow, output_proj_dims=32),
        **{f"{name}_token_id": ids[name] for name in ("image", "video", "audio", "boi", "eoi", "boa")},
        eoa_token_index=ids["eoa"],
    )
    torch.manual_seed(0)
    model = randomise(hf.Gemma4ForConditionalGeneration(config))
    for layer, scale in zip(model.get_decoder().layers, SCALES, strict=True):
        layer.layer_scalar.fill_(scale)
    processor = hf.Gemma4Processor(
        hf.Gemma4AudioFeatureExtractor(), hf.Gemma4ImageProcessor(max_soft_tokens=70), tokenizer,
        hf.Gemma4VideoProcessor(do_sample_frames=False), chat_template=GEMMA_CHAT,
    )  # fmt: skip
    return model, processor


@once
def wrapped(form: str = "E") -> Any:
    """The lens of one, which its proof on load has passed."""
    return lensplug.wrap(*gemma4(form))

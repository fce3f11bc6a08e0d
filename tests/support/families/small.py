"""A small model of any family, from its configuration class alone: few layers, narrow, few words, large weights.

1. Take the configuration's defaults, those of its parts included.
2. Make every width, number of heads, of layers, of experts, of words small, by the name of the number; one of each kind
   of layer stays; ids of tokens are moved into the small vocabulary, equal ones alike.
3. Apply what `exceptions.EXCEPTIONS` says of the family.
4. Draw weights of a large variance (`support.models.randomise`): with small ones attention is flat and everything
   agrees. Where an encoder overflows under them, it keeps its first weights.
"""

from __future__ import annotations

import re
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING

from support.families.exceptions import EXCEPTIONS
from support.families.listed import families
from support.models import randomise

WIDTH, HEADS, KEY_VALUE_HEADS, HEAD_DIM, VOCAB, LAYERS, ENCODER_LAYERS = 64, 4, 2, 16, 512, 4, 2
VIEW, PATCH = 32, 8
SMALL = {
    r"(.*_)?vocab_size|vocab_size_per_layer_input": VOCAB,
    r"(num_layers|n_layers?|depth|.*_depth|num_block|(.*_)?num_hidden_layers|.*_layers|.*_num_layers)": ENCODER_LAYERS,
    r"(.*_)?(num_key_value_heads|kv_heads)": KEY_VALUE_HEADS,
    r"(.*_)?(num_attention_heads|attention_heads|n_heads?|num_heads)|resampler_heads": HEADS,
    r"(.*_)?(head_dim|dim_head|d_kv)": HEAD_DIM,
    r"(.*_)?(intermediate_size|ffn_dim|d_ff|linear_units|n_inner|ffn_hidden_size)": 96,
    r"(.*_)?(hidden_size|d_model|n_embd|hidden_dim|embed_proj_dim)": WIDTH,
    r"(.*_)?(projection_dim|output_dim|input_dim|condition_dim)": WIDTH,
    r"embed_dim|dim|out_dim|emb_dim|codebook_dim|hidden_size_per_layer_input": WIDTH,
    r"n_routed_experts|(.*_)?num_experts|num_local_experts": 4,
    r"num_experts_per_tok|num_experts_per_token|moe_k|top_k_experts|moe_topk": 2,
    r"n_group|topk_group|num_expert_group": 1,
    r"(.*_)?lora_rank": 16,
    r"image_size|resolution": VIEW,
    r"patch_size": PATCH,
    r"max_source_positions": 50,
    r"max_position_embeddings|max_sequence_length|max_target_positions|block_size": 512,
    r"sliding_window|attention_chunk_size|sliding_window_size": 6,
    r"codebook_size": 64,
    r"num_position_embeddings": 16,
    r"original_max_position_embeddings": 64,
}  # fmt: skip
"""What numbers of these names become at most."""
DEPTHS = ("num_hidden_layers", "n_layer", "num_layers", "depth")
TOKENS = re.compile(
    r".*(_token_ids?|_token_index|_(bos|eos|pad|start|end|newline|patch)_id)|(bos|eos|pad|sep)_token_id"
)
LISTS = {"image_size": VIEW, "patch_size": PATCH}
KEPT = ("id2label", "label2id")


def small_model(family: str, seed: int = 0) -> Any:
    """A model of a family with random weights, in evaluation mode.

    Args:
        family: A `model_type`, a key of `families()`.
        seed: Of the weights.
    """
    torch.manual_seed(seed)
    return with_large_weights(getattr(transformers, families()[family])(small_config(family)), seed)


def small_config(family: str) -> Any:
    """Its configuration, small."""
    kind = CONFIG_MAPPING[family]
    defaults = kind().to_dict()
    exceptions = EXCEPTIONS.get(family, {})
    for path, value in exceptions.items():
        if path.endswith(".from"):  # a part that the defaults leave out
            _put(defaults, path.removesuffix(".from"), CONFIG_MAPPING[value]().to_dict())
    small = _small(defaults, _TokenIds(), is_core="text_config" not in defaults)
    for path, value in exceptions.items():
        if not path.endswith(".from"):
            _put(small, path, value)
    return kind(**{name: value for name, value in small.items() if name not in ("transformers_version", "model_type")})


def with_large_weights(model: Any, seed: int) -> Any:
    """Weights under which every part matters; state-space and quantisation parameters stay as they are made."""
    initial = {name: value.clone() for name, value in model.state_dict().items() if name.endswith(INITIAL)}
    randomise(model, seed)
    model.load_state_dict(initial, strict=False)
    numbers = [value for name, value in model.named_buffers() if name.endswith(".layer_scalar")]
    for layer, value in enumerate(numbers):  # Gemma 4's, which its checkpoints bring
        value.fill_((0.6, 1.2, 0.8, 1.5)[layer % 4])
    return model


INITIAL = (".A_log", ".dt_bias", ".D", "running_var", "running_mean", "rope_freqs")
"""Ends of the names of parameters that are no weights of a sum: decays, and what must be positive."""


def _small(numbers: dict[str, Any], token_ids: _TokenIds, *, is_core: bool) -> dict[str, Any]:
    depth = next((numbers[name] for name in DEPTHS if isinstance(numbers.get(name), int)), None)
    layers = _kept_layers(numbers, depth, LAYERS if is_core else ENCODER_LAYERS) if depth else []
    small: dict[str, Any] = {}
    for name, value in numbers.items():
        if name == "per_layer_config" and isinstance(value, dict):
            by_layer = {int(layer): _small(changes, token_ids, is_core=False) for layer, changes in value.items()}
            small[name] = {new: by_layer[old] for new, old in enumerate(layers) if old in by_layer}
        elif isinstance(value, dict) and name not in KEPT:
            small[name] = _small(value, token_ids, is_core=name in ("text_config", "decoder", "text_model"))
        elif isinstance(value, list) and depth and len(value) == depth:
            small[name] = [value[layer] for layer in layers]
        elif TOKENS.fullmatch(str(name)):
            small[name] = [token_ids(token) for token in value] if isinstance(value, list) else token_ids(value)
        elif isinstance(value, list) and name in LISTS:
            small[name] = [LISTS[name]] * len(value)
        else:
            small[name] = len(layers) if name in DEPTHS and depth else _small_number(str(name), value)
    if numbers.get("num_key_value_heads") == numbers.get("num_attention_heads") and "num_attention_heads" in numbers:
        small["num_key_value_heads"] = small["num_attention_heads"]
    if isinstance(small.get("rope_parameters"), dict):
        small["rope_parameters"] = _small_rope(small["rope_parameters"], small)
    return small


def _kept_layers(numbers: dict[str, Any], depth: int, at_most: int) -> list[int]:
    """Some layers, one of each kind among them."""
    lists = [value for name, value in numbers.items() if "type" in str(name) and isinstance(value, list)]
    kinds = next((value for value in lists if len(value) == depth), [0] * depth)
    first = {str(kind): layer for layer, kind in reversed(list(enumerate(kinds)))}
    others = [layer for layer in range(depth) if layer not in first.values()]
    return sorted([*sorted(first.values()), *others][: min(depth, at_most)])


def _small_number(name: str, value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        return value
    return next((min(value, most) for pattern, most in SMALL.items() if re.fullmatch(pattern, name)), value)


def _small_rope(rope: dict[str, Any], numbers: dict[str, Any]) -> dict[str, Any]:
    """Rotations of a small head: the sections of several parts keep their shares."""
    if any(isinstance(value, dict) for value in rope.values()):
        return {name: _small_rope(value, numbers) if isinstance(value, dict) else value for name, value in rope.items()}
    sections, half = rope.get("mrope_section"), (numbers.get("head_dim") or HEAD_DIM) // 2
    half = int(half * (rope.get("partial_rotary_factor") or numbers.get("partial_rotary_factor") or 1.0))
    if sections:
        shares = [max(1, section * half // sum(sections)) for section in sections]
        rope = {**rope, "mrope_section": [*shares[:-1], half - sum(shares[:-1])]}
    factors = {
        name: value[:half] for name, value in rope.items() if name.endswith("_factor") and isinstance(value, list)
    }
    return {**rope, **factors}


class _TokenIds:
    """Ids of tokens, moved to the end of the small vocabulary."""

    def __init__(self) -> None:
        self.moved: dict[int, int] = {}

    def __call__(self, token: Any) -> Any:
        if isinstance(token, bool) or not isinstance(token, int) or token < 50:
            return token  # none, or small already
        return self.moved.setdefault(token, VOCAB - 50 + len(self.moved))


def _put(numbers: dict[str, Any], path: str, value: Any) -> None:
    *parents, name = path.split(".")
    for parent in parents:
        numbers = numbers[parent]
    numbers[name] = value

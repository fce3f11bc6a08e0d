"""Caches for the tests of the analyses: real ActivationCaches, hand-made or run by TransformerLens alone."""

from __future__ import annotations

import math
import re
import weakref
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformer_lens import ActivationCache
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedTokenizerFast

from support.built import HOOKED, ONE_ENGINE


def text_model(seed: int = 0, **changes: Any) -> Any:
    """A small model of TransformerLens alone with random weights, biases and norms; GPT-2's form by default.

    A HookedTransformer, or, where there is none or `LENSPLUG_ENGINE=bridge`, a bridge of what Hugging Face has of that
    form.
    """
    form = {
        "n_layers": 3, "d_model": 24, "n_heads": 3, "d_head": 8, "d_mlp": 32, "n_ctx": 64, "d_vocab": 50,
        "act_fn": "gelu_new", "normalization_type": "LN", "device": "cpu", "model_name": "text-model",
        "dtype": torch.float32, **changes,
    }  # fmt: skip
    model = _hooked(form) if HOOKED and ONE_ENGINE != "bridge" else _bridged(form)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        is_norm_weight = NORM_WEIGHT.search(name)
        wide = parameter.ndim > 1
        value = 1 + 0.3 * noise if is_norm_weight else noise * (0.35 if wide else 0.3)
        parameter.data.copy_(value)
    return model.eval()


NORM_WEIGHT = re.compile(r"(^|[._])ln[^.]*\.(\w+\.)?w(eight)?$")
"""In the names of parameters, of either kind of model."""


def _hooked(form: dict[str, Any]) -> Any:
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    return HookedTransformer(HookedTransformerConfig(**form))


def _bridged(form: dict[str, Any]) -> Any:
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    gpt2 = form["normalization_type"] == "LN" and not form.get("final_rms")
    plain = form["d_model"] == form["n_heads"] * form["d_head"] and not form.get("use_local_attn")
    if not plain or form.get("output_logits_soft_cap") or not (gpt2 or form["normalization_type"] == "RMS"):
        pytest.skip("a form that HookedTransformer alone has")
    sizes = {"vocab_size": form["d_vocab"], "bos_token_id": None, "eos_token_id": None, "tie_word_embeddings": False}
    if gpt2:
        config = GPT2Config(
            n_layer=form["n_layers"], n_embd=form["d_model"], n_head=form["n_heads"], n_inner=form["d_mlp"],
            n_positions=form["n_ctx"], **sizes,
        )  # fmt: skip
    else:
        config = LlamaConfig(
            num_hidden_layers=form["n_layers"], hidden_size=form["d_model"], num_attention_heads=form["n_heads"],
            num_key_value_heads=form.get("n_key_value_heads"), intermediate_size=form["d_mlp"],
            max_position_embeddings=form["n_ctx"], attention_bias=True, mlp_bias=True, **sizes,
        )  # fmt: skip
    hf = AutoModelForCausalLM.from_config(config, dtype=form["dtype"])
    return build_bridge_from_module(hf, type(hf).__name__, hf_config=config, model_name=form["model_name"])


ROTARY: dict[str, Any] = {
    "normalization_type": "RMS", "positional_embedding_type": "rotary", "rotary_dim": 8,
    "gated_mlp": True, "act_fn": "silu", "final_rms": True,
}  # fmt: skip
"""What makes `text_model` a Llama in form."""


def tokens(batch: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 50, (batch, length), generator=torch.Generator().manual_seed(seed))


def padded(rows: Sequence[Tensor], *, left: bool) -> tuple[Tensor, Tensor]:
    """Rows of several lengths as one batch, and its attention mask."""
    length = max(map(len, rows))

    def pad(row: Tensor) -> Tensor:
        n_padding = length - len(row)
        return torch.nn.functional.pad(row, (n_padding, 0) if left else (0, n_padding))

    return torch.stack([pad(row) for row in rows]), torch.stack([pad(torch.ones_like(row)) for row in rows])


def run(model: Any, ids: Tensor, mask: Tensor | None = None, **kwargs: Any) -> tuple[Tensor, Any]:
    """Logits and cache, as a user of TransformerLens alone gets them, who has put the mask on it."""
    with torch.no_grad():
        logits, cache = model.run_with_cache(ids, attention_mask=mask, **kwargs)
    return logits, unpadded(cache, ids) if mask is None else cache


def unpadded(cache: ActivationCache, ids: Tensor) -> ActivationCache:
    """The cache, told that there is no padding."""
    cache.attention_mask = torch.ones_like(ids)
    return cache


def cache_of_patterns(patterns: Sequence[Tensor], model: Any = None, **changes: Any) -> ActivationCache:
    """A cache that holds the given pattern `[batch head query key]` for each layer; empty rows are of padding."""
    if model is None:  # analyses of patterns read no more of it
        form = {"n_layers": len(patterns), "n_heads": patterns[0].shape[1], "dtype": torch.float32, **changes}
        model = SimpleNamespace(cfg=SimpleNamespace(model_name="text-model", **form))
    tensors = {f"blocks.{layer}.attn.hook_pattern": pattern for layer, pattern in enumerate(patterns)}
    cache = ActivationCache(tensors, model)
    cache.attention_mask = torch.stack([pattern.sum(dim=(1, 3)) != 0 for pattern in patterns]).any(dim=0).long()
    return cache


def causal_patterns(layers: int, batch: int, heads: int, length: int, seed: int = 0) -> list[Tensor]:
    """Random causal attention."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.ones(length, length).triu(1).bool()
    scores = [2 * torch.randn(batch, heads, length, length, generator=generator) for _ in range(layers)]
    return [score.masked_fill(hidden, -math.inf).softmax(dim=-1) for score in scores]


def cache_of_residuals(residuals: Sequence[Tensor], model: Any) -> ActivationCache:
    """A cache that holds the given residuals `[batch pos d_model]`: of the embedding, then after each block."""
    names = ["blocks.0.hook_resid_pre", *(f"blocks.{layer}.hook_resid_post" for layer in range(len(residuals) - 1))]
    return unpadded(ActivationCache(dict(zip(names, residuals, strict=True)), model), residuals[0][..., 0].long())


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Four words, one token each."""
    words = {word: index for index, word in enumerate(["[UNK]", "red", "green", "circle"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")


class LiveMemory(TorchDispatchMode):
    """The most bytes that tensors of vocabulary width, made while it is active, hold at one time."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary, self.peak = vocabulary, 0
        self.live: dict[object, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        inputs = (*args, *(kwargs or {}).values())  # out= is a keyword
        known_storages = {tensor.untyped_storage().data_ptr() for tensor in inputs if isinstance(tensor, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.shape[-1:] == (self.vocabulary,):
            storage = out.untyped_storage()
            if storage.data_ptr() not in known_storages:
                key = object()
                self.live[key] = storage.nbytes()
                weakref.finalize(storage, self.live.pop, key)
                self.peak = max(self.peak, sum(self.live.values()))
        return out

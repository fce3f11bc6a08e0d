"""Random language models of Hugging Face, each wrapped in both ways, and what Hugging Face itself computes of them."""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import transformers as hf
from support.built import HOOKED
from support.models import LINEAR_ROPE, LLAMA3_ROPE, randomise
from support.tolerances import rounding, through_layers
from torch import Tensor

import lensplug
from fuzz.case import Case
from lensplug.engines import EngineName

ENGINES: tuple[EngineName, ...] = ("hooked_transformer", "bridge") if HOOKED else ("bridge",)
WINDOWS = (None, 2, 3, 5, 9)


@dataclass(frozen=True)
class Wrapped:
    """One random model."""

    lenses: dict[str, Any]
    """By engine, around the same weights."""
    reference: Any
    """A copy with eager attention, which lensplug has not seen."""
    config: Any

    def allowed(self, length: int, scale: float | Tensor) -> float:
        """Rounding on the way through all layers, forwards."""
        cfg = next(iter(self.lenses.values())).model.cfg
        return rounding(torch.float32, through_layers(cfg, length), scale)


def wrapped(case: Case) -> Wrapped:
    """One of the run's random models."""
    return _wrapped(case.pool, case.integer(1, case.n_models))


@cache
def _wrapped(pool: str, number: int) -> Wrapped:
    choose = random.Random(f"{pool}/core/{number}")
    name, config = _configuration(choose)
    model = randomise(getattr(hf, f"{name}ForCausalLM")(config), seed=choose.getrandbits(30))
    reference = copy.deepcopy(model)
    reference.set_attn_implementation("eager")
    return Wrapped({engine: lensplug.wrap(model, engine=engine) for engine in ENGINES}, reference, config)


def _configuration(choose: random.Random) -> tuple[str, Any]:
    """Of Llama, Qwen2, Mistral or Qwen3: what a core may differ in."""
    name = choose.choice(["Llama", "Qwen2", "Mistral", "Qwen3"])
    kv_heads, repeats, head_dim = choose.randint(1, 3), choose.randint(1, 3), choose.choice([4, 8, 12, 16])
    heads = kv_heads * repeats
    changes: dict[str, Any] = {
        "vocab_size": choose.randint(50, 130),
        "hidden_size": heads * (head_dim if name == "Qwen2" else choose.choice([6, 8, 12])),
        "intermediate_size": choose.randint(16, 48),
        "num_hidden_layers": choose.randint(1, 4),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "max_position_embeddings": 512,
        "rms_norm_eps": choose.choice([1e-6, 1e-5, 1e-2, 0.3]),
        "hidden_act": choose.choice(["silu", "gelu", "relu"]),
        "tie_word_embeddings": choose.random() < 0.3,
        "rope_parameters": choose.choice(
            [{"rope_type": "default", "rope_theta": theta} for theta in (100.0, 1e4, 1e6)]
            + ([LLAMA3_ROPE, LINEAR_ROPE] if name == "Llama" else [])
        ),
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    if name == "Qwen2":
        del changes["head_dim"]
        window = choose.choice(WINDOWS)
        changes |= {"use_sliding_window": window is not None, "sliding_window": window}
        changes["max_window_layers"] = choose.randint(0, changes["num_hidden_layers"])
    if name == "Mistral":
        changes["sliding_window"] = choose.choice(WINDOWS)
    if name in ("Llama", "Qwen3"):
        changes["attention_bias"] = choose.random() < 0.5
    return name, getattr(hf, f"{name}Config")(**changes)


@dataclass(frozen=True)
class Prompts:
    """Token ids of a few examples, some padded."""

    tokens: Tensor
    mask: Tensor

    @property
    def real(self) -> Tensor:
        return self.mask.bool()

    @property
    def last(self) -> Tensor:
        """The last position of each example that is not padding."""
        return torch.tensor([max(row.nonzero().flatten().tolist()) for row in self.mask])

    def positions(self, example: int) -> list[int]:
        """Those of an example that are not padding."""
        return self.mask[example].nonzero().flatten().tolist()


def prompts(case: Case, vocabulary: int, *, shortest: int = 1, longest: int = 16, most: int = 3) -> Prompts:
    """Up to `most` examples, each padded at the left, at the right, or not."""
    batch, length = case.integer(1, most), case.integer(shortest, longest)
    tokens = torch.randint(0, vocabulary, (batch, length), generator=case.generator)
    mask = torch.ones_like(tokens)
    side = case.one_of(["none", "left", "right", "any"])
    for row in mask:
        own = case.one_of(["left", "right"]) if side == "any" else side
        gone = case.integer(0, length - shortest)
        if own == "left":
            row[:gone] = 0
        elif own == "right":
            row[length - gone :] = 0
    return Prompts(tokens, mask)


def encoded(lens: Any, given: Prompts) -> Any:
    """What lensplug makes of them."""
    return lens.encode({"input_ids": given.tokens, "attention_mask": given.mask})


def reference(own: Wrapped, given: Prompts, *, gradients: bool = False) -> Any:
    """Hugging Face's outputs, with its eager attentions and its hidden states."""
    with torch.set_grad_enabled(gradients):
        return own.reference(
            input_ids=given.tokens,
            attention_mask=given.mask,
            output_attentions=True,
            output_hidden_states=True,
            use_cache=False,
        )

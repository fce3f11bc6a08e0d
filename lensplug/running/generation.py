"""The model's answer, written by the wrapped core, and the input that it makes with its prompt."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from lensplug import engines
from lensplug.errors import LensplugError
from lensplug.hf.language_core import LanguageCore
from lensplug.inputs.multimodal_input import MultimodalInput
from lensplug.running.teacher_forcing import behind, tokens_of
from lensplug.running.token_sampling import Writer, settings


@dataclass(frozen=True)
class Answer:
    """What the model wrote, or what the user says that it writes (`lens.with_answer`)."""

    text: list[str]
    """For each example, without special tokens."""
    tokens: Int[Tensor, "batch new"]
    """The new tokens; padded at the right where an answer ended early."""
    inputs: MultimodalInput
    """Prompt and answer as one input, the answer labelled "generated"."""


@dataclass(frozen=True)
class Choosing:
    """How the next token is chosen; refused where it says nothing that can be followed."""

    max_new_tokens: int
    do_sample: bool = False
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop_strings: str | Sequence[str] | None = None

    def __post_init__(self) -> None:
        """Raise if a value is invalid."""
        whole_numbers = {"max_new_tokens": self.max_new_tokens, "top_k": self.top_k}
        for name, value in whole_numbers.items():
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise LensplugError(f"{name} is {value!r}, expected at least 1 (a whole number).")
        for name, most in (("temperature", math.inf), ("top_p", 1.0)):
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and 0 < value <= most and value < math.inf):
                limit = "" if most == math.inf else " and at most 1"
                raise LensplugError(f"{name} is {value!r}, expected a number above 0{limit}.")
        if self.seed is not None and (isinstance(self.seed, bool) or not isinstance(self.seed, int)):
            raise LensplugError(f"seed is {self.seed!r}, expected a whole number.")
        if not isinstance(self.do_sample, bool):
            raise LensplugError(f"do_sample is {self.do_sample!r}, expected True or False.")
        by_chance = [name for name in ("temperature", "top_p", "top_k", "seed") if getattr(self, name) is not None]
        if by_chance and not self.do_sample:
            raise LensplugError(
                f"{', '.join(by_chance)} would change nothing: the likeliest token is taken. Give do_sample=True too."
            )
        stops = [self.stop_strings] if isinstance(self.stop_strings, str) else self.stop_strings
        if stops is not None and not (stops and all(isinstance(stop, str) and stop for stop in stops)):
            raise LensplugError(f"stop_strings is {self.stop_strings!r}, expected a string or several, none empty.")


def generate(
    model: Any,
    engine: engines.EngineName,
    hf_model: Any,
    core: LanguageCore,
    tokenizer: Any,
    inputs: MultimodalInput,
    choosing: Choosing,
) -> Answer:
    """The answer of a TransformerLens model, until an end-of-turn token of the Hugging Face model.

    Raises:
        LensplugError: If the answer cannot begin behind the prompt, or leaves the context.
    """
    if choosing.stop_strings is not None and tokenizer is None:
        raise LensplugError("stop_strings need a tokenizer, and this lens has none: lensplug.wrap(model, tokenizer).")
    chosen = settings(
        hf_model,
        tokenizer,
        max_new_tokens=choosing.max_new_tokens,
        do_sample=choosing.do_sample,
        given={name: getattr(choosing, name) for name in ("temperature", "top_p", "top_k")},
        stop_strings=choosing.stop_strings,
    )
    # The tables that grow here are read by later runs with gradients, whatever the user's code is in.
    with torch.inference_mode(False), torch.no_grad(), _seeded(choosing.seed, core.device):
        writer = Writer(hf_model, engines.decoding(engine, model, inputs), chosen)
        with engines.at_sdpa_speed(engine, model, len(inputs)), engines.unwatched_blocks(engine, model):
            tokens, generated = writer.write(inputs.tokens, inputs.attention_mask, tokenizer)
        text = [_decoded(row[is_generated], tokenizer) for row, is_generated in zip(tokens, generated, strict=True)]
    return Answer(text, tokens, behind(hf_model, core, tokenizer, inputs, tokens, generated))


def given(
    model: Any, hf_model: Any, core: LanguageCore, tokenizer: Any, inputs: MultimodalInput, text: str | Sequence[str]
) -> Answer:
    """The answer that the user gives, as if the model had written it.

    Raises:
        LensplugError: If it is not one text for each prompt, or does not fit behind it.
    """
    inputs, tokens, is_answer = tokens_of(text, inputs, core, tokenizer, model.cfg.n_ctx)
    texts = [_decoded(row[mask], tokenizer) for row, mask in zip(tokens, is_answer, strict=True)]
    return Answer(texts, tokens, behind(hf_model, core, tokenizer, inputs, tokens, is_answer))


@contextmanager
def _seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Chance begins at a seed, and goes on outside as if nothing had been drawn."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _decoded(tokens: Int[Tensor, " new"], tokenizer: Any) -> str:
    if tokenizer is None:
        return " ".join(map(str, tokens.tolist()))
    return str(tokenizer.decode(tokens, skip_special_tokens=True)).strip()

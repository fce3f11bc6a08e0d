"""Token sampling with Hugging Face's own code, over the decoding steps of a wrapped core.

What `generate` of transformers knows (the likeliest token or one by chance, penalties, forbidden words, stop strings,
the end) is its own code here. It asks the core for logits, and knows nothing of TransformerLens.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin
from transformers.generation import StoppingCriteria, StopStringCriteria
from transformers.modeling_outputs import CausalLMOutput

from lensplug.errors import LensplugWarning

SAMPLING = ("temperature", "top_p", "top_k", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
"""Settings that are read where tokens are chosen by chance."""
FOLLOWED = {
    "do_sample", *SAMPLING, "repetition_penalty", "encoder_repetition_penalty", "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size", "bad_words_ids", "sequence_bias", "min_length", "min_new_tokens",
    "forced_bos_token_id", "forced_eos_token_id", "remove_invalid_values", "exponential_decay_length_penalty",
    "suppress_tokens", "begin_suppress_tokens", "renormalize_logits", "watermarking_config", "stop_strings", "max_time",
    "eos_token_id", "pad_token_id", "bos_token_id",
}  # fmt: skip
"""Settings of a GenerationConfig that mean here what they mean in transformers."""
UNREAD = {
    "max_length", "max_new_tokens", "transformers_version", "decoder_start_token_id", "length_penalty",
    "early_stopping", "diversity_penalty", "num_assistant_tokens", "num_assistant_tokens_schedule",
    "assistant_confidence_threshold", "assistant_lookbehind", "target_lookbehind", "max_matching_ngram_size",
    "output_attentions", "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate",
    "is_assistant", "low_memory", "disable_compile", "compile_config", "cache_config", "max_cache_len", "use_cache",
    "cache_implementation", "prefill_chunk_size", "continuous_batching_config",
}  # fmt: skip
"""Settings that change no token, or say how one of those acts that are named when they are not followed."""


def settings(
    hf_model: Any,
    tokenizer: Any,
    *,
    max_new_tokens: int,
    do_sample: bool,
    given: dict[str, Any],
    stop_strings: str | Sequence[str] | None,
) -> GenerationConfig:
    """Generation settings: the model's own `generation_config`, overridden by the caller's options.

    What it asks for and is not followed (beams, several answers, sampling that was not asked for) is named in a
    warning.

    Args:
        hf_model: The full model.
        tokenizer: Its tokenizer; may be None.
        max_new_tokens: Maximum length of the answer, in tokens.
        do_sample: Choose by chance.
        given: Settings of `SAMPLING` in place of the model's own; None: not given.
        stop_strings: Texts that end an answer.
    """
    model_config = getattr(hf_model, "generation_config", None) or GenerationConfig()
    defaults = GenerationConfig()._get_default_generation_params()
    requested = {
        name: value
        for name, value in model_config.to_dict().items()
        if not name.startswith("_") and name not in UNREAD and value is not None and value != defaults.get(name)
    }
    dropped = {name: requested.pop(name) for name in [*requested] if name not in FOLLOWED}
    if not do_sample:
        if requested.pop("do_sample", False):
            dropped["do_sample"] = True
        by_chance = {name: requested.pop(name) for name in SAMPLING if name in requested}
        dropped |= by_chance if "do_sample" in dropped else {}
    if dropped:
        dropped_names = ", ".join(f"{name}={value!r}" for name, value in dropped.items())
        sample = "" if do_sample or "do_sample" not in dropped else " do_sample=True follows what is said of sampling."
        warnings.warn(
            f"the model's generation_config has {dropped_names}, which the answer does not follow.{sample}",
            LensplugWarning,
            stacklevel=4,
        )
    requested |= {name: value for name, value in given.items() if value is not None}
    requested |= {"max_new_tokens": max_new_tokens, "do_sample": do_sample}
    if stop_strings is not None:
        requested["stop_strings"] = [stop_strings] if isinstance(stop_strings, str) else list(stop_strings)
    requested.setdefault("eos_token_id", getattr(tokenizer, "eos_token_id", None))
    ends = end_tokens(requested["eos_token_id"])
    padding = getattr(tokenizer, "pad_token_id", None)
    requested.setdefault("pad_token_id", ends[0] if ends else 0 if padding is None else padding)
    return GenerationConfig(**requested)


def end_tokens(eos_token_id: Any) -> list[int]:
    """The tokens that end an answer: of one id, several, or none."""
    return [] if eos_token_id is None else [eos_token_id] if isinstance(eos_token_id, int) else list(eos_token_id)


class Writer(GenerationMixin):  # type: ignore[misc]
    """What transformers' `generate` takes for a model: its logits are those of the steps of a wrapped core."""

    main_input_name = "input_ids"
    _is_stateful = False

    def __init__(self, hf_model: Any, steps: Any, generation_config: GenerationConfig) -> None:
        """Take the configuration of the full model, and the steps from `engines.decoding`."""
        self.config, self.device, self.dtype = copy.copy(hf_model.config), hf_model.device, hf_model.dtype
        self.generation_config = generation_config
        self._steps, self._begun = steps, False

    def write(
        self, tokens: Int[Tensor, "batch pos"], attention_mask: Int[Tensor, "batch pos"], tokenizer: Any
    ) -> tuple[Int[Tensor, "batch new"], Bool[Tensor, "batch new"]]:
        """The new tokens, and which of them belong to an answer: the rest is padding behind its end."""
        ended = _Ended(self.generation_config, tokenizer, tokens.shape[1])
        sequences = self.generate(
            input_ids=tokens,
            attention_mask=attention_mask,
            stopping_criteria=[ended],
            **({} if self.generation_config.stop_strings is None else {"tokenizer": tokenizer}),
        )
        new_tokens = sequences[:, tokens.shape[1] :]
        places = torch.arange(new_tokens.shape[1], device=new_tokens.device)
        return new_tokens, places < ended.lengths(new_tokens)[:, None]

    def __call__(self, **kwargs: Any) -> CausalLMOutput:
        """One step."""
        return self.forward(**kwargs)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> CausalLMOutput:
        """Logits behind the prompt, then behind each token; the core has the prompt and the padding already."""
        logits = self._steps.following(input_ids[:, -1]) if self._begun else self._steps.prompt()
        self._begun = True
        return CausalLMOutput(logits=logits[:, None])

    def prepare_inputs_for_generation(self, input_ids: Tensor, **kwargs: Any) -> dict[str, Any]:
        """What a step is given: all tokens so far."""
        return {"input_ids": input_ids}

    def _prepare_cache_for_generation(self, *args: Any, **kwargs: Any) -> None:
        """The steps have their own."""

    def get_experts_implementation(self) -> dict[str, str]:
        """Nothing for transformers to change while it generates."""
        return {}


class _Ended(StoppingCriteria):  # type: ignore[misc]
    """Remembers where each answer ended; transformers tells only that all have."""

    def __init__(self, config: GenerationConfig, tokenizer: Any, prompt: int) -> None:
        self._prompt, self._ends = prompt, end_tokens(config.eos_token_id)
        stops = config.stop_strings
        self._stop_strings = None if stops is None else StopStringCriteria(tokenizer, stops)
        self._length: Tensor | None = None
        self._last_ones: Tensor | None = None  # on the device, made once: to bring them there waits for it

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Bool[Tensor, " batch"]:
        last = input_ids[:, -1]
        if self._last_ones is None:
            self._last_ones = torch.tensor(self._ends, device=last.device, dtype=last.dtype)
        has_ended = torch.isin(last, self._last_ones)
        if self._stop_strings is not None:
            has_ended = has_ended | self._stop_strings(input_ids, scores)
        n_generated = input_ids.shape[1] - self._prompt
        if self._length is None:
            self._length = torch.zeros_like(last)
        self._length = torch.where(has_ended & (self._length == 0), n_generated, self._length)
        return self._length > 0

    def lengths(self, new: Int[Tensor, "batch new"]) -> Int[Tensor, " batch"]:
        """How many tokens each answer has."""
        assert self._length is not None
        return torch.where(self._length > 0, self._length, new.shape[1])

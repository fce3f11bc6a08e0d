"""A few tokens behind a key-value cache, greedily, against Hugging Face's `generate`: of a batch padded at the left."""

from __future__ import annotations

from collections.abc import Callable

from transformers import GenerationConfig

from lensplug import engines
from lensplug.hf.attention_choice import eager
from lensplug.proof.measures import Tally, apart
from lensplug.proof.pair import Pair
from lensplug.proof.prompts import Prompt
from lensplug.proof.report import Check

STEPS = 3
"""The prompt, a token behind it, and one behind a cache that has grown."""


def checks(pair: Pair, prompt: Prompt, tolerance: float, explained: Callable[[], float]) -> list[Check]:
    """The logits of each step, both given Hugging Face's tokens."""
    choosing = GenerationConfig(
        max_new_tokens=STEPS,
        min_new_tokens=STEPS,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        output_logits=True,
        return_dict_in_generate=True,
        pad_token_id=0,
    )
    with eager(pair.core):
        expected = pair.hf_model.generate(**prompt.model_inputs, generation_config=choosing)
    tokens = expected.sequences[:, -STEPS:]
    tally = Tally("greedy tokens behind a key-value cache", tolerance, explained)
    decoding = engines.decoding(pair.engine, pair.model, prompt)
    for step in range(STEPS):
        logits = decoding.prompt() if not step else decoding.following(tokens[:, step - 1])
        tally.add(apart(logits, expected.logits[step]), f"step {step}")
        # Of two tokens that are alike either may be first.
        chosen = logits.gather(1, logits.argmax(-1, keepdim=True))
        theirs = logits.gather(1, expected.logits[step].argmax(-1, keepdim=True))
        tally.add(apart(chosen, theirs, logits), f"step {step}, another token")
    return [tally.check()]

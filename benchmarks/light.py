"""What studying a model costs beside running it: head specialisation and the logit lens of the last position.

A LLaVA-OneVision core of the real 0.5B size with random weights, fp32, at several lengths. Time is the median of
`ROUNDS`, all modes taking turns in one process; peak memory above the weights is measured in a process of its own
for each. The plain forward of Hugging Face (SDPA, last logit only) is 1. A TransformerBridge has a model of its own,
since it changes the one that it is made of.

    python benchmarks/light.py [tokens ...]
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from measuring import answer, measured, peak, setting
from rich.console import Console
from rich.table import Table

LENGTHS = (750, 1500, 3000)
ROUNDS = 5
LARGEST = 1500
"""The modes that keep every pattern or activation are run up to this length."""
PLAIN = "Hugging Face, SDPA"
BRIDGE = "TransformerBridge, patterns"


def modes(lens: Any, inputs: Any) -> dict[str, Callable[[], Any]]:
    """Each way to the numbers (the plain forward gives none)."""
    from lensplug import analysis

    hf, model = lens.hf_model, lens.model
    tokens = {"input_ids": inputs.tokens, "attention_mask": inputs.attention_mask}

    def plain() -> Any:
        hf.set_attn_implementation("sdpa")
        return hf(**tokens, use_cache=False, logits_to_keep=1)

    def eager() -> Any:
        hf.set_attn_implementation("eager")
        try:
            return hf(**tokens, use_cache=False, logits_to_keep=1, output_attentions=True)
        finally:
            hf.set_attn_implementation("sdpa")

    def patterns() -> Any:
        return model.run_with_cache(inputs, names_filter=lambda name: name.endswith("hook_pattern"))

    def notebook() -> Any:
        logits, cache = model.run_with_cache(inputs)
        mass = [
            [cache["pattern", layer][0, head, -1, :500].sum().item() for head in range(model.cfg.n_heads)]
            for layer in range(model.cfg.n_layers)
        ]
        return logits, mass

    def bridge() -> Any:
        return bridged(lens).run_with_cache(inputs.tokens, names_filter=lambda name: name.endswith("hook_pattern"))

    def with_lensplug(lens: Any) -> Any:
        _, cache = lens.run_with_cache(
            inputs, needs=[analysis.head_specialization, analysis.logit_lens],
            query_positions=[-1], residual_positions=[-1], logit_positions=[-1],
        )  # fmt: skip
        return analysis.head_specialization(cache, inputs.modality), analysis.logit_lens(cache)

    ways = {
        PLAIN: plain,
        "lensplug": lambda: with_lensplug(lens),
        "lensplug, engine='bridge'": lambda: with_lensplug(on_a_bridge(lens)),
    }
    if inputs.tokens.shape[1] <= LARGEST:
        ways |= {
            "Hugging Face, eager, output_attentions": eager,
            "TransformerLens, patterns": patterns,
            BRIDGE: bridge,
            "TransformerLens, full cache and a loop over heads": notebook,
        }
    return ways


@lru_cache(maxsize=1)
def on_a_bridge(lens: Any) -> Any:
    """The same model with the other engine; the weights are shared."""
    import lensplug

    return lensplug.wrap(lens.hf_model, engine="bridge", check=False)


@lru_cache(maxsize=1)
def bridged(lens: Any) -> Any:
    """A TransformerBridge of a copy of the language core."""
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
    from transformers import Qwen2ForCausalLM

    shell = Qwen2ForCausalLM(lens.core.text_config).eval()
    shell.set_attn_implementation("eager")
    return build_bridge_from_module(shell, "Qwen2ForCausalLM", hf_config=shell.config)


def measured_peak(length: int, name: str) -> int:
    lens, inputs = setting(length)
    short = lens.encode({"input_ids": inputs.tokens[:, :16]})
    with torch.no_grad():
        modes(lens, short)[name]()  # first-call costs are not the mode's
    return peak(modes(lens, inputs)[name])


def main(lengths: tuple[int, ...]) -> None:
    table = Table(title="Head specialisation and logit lens of the last position, 0.5B size", title_justify="left")
    for column in ("tokens", "way", "seconds", "x time", "GB above weights", "x memory"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for length in lengths:
        times, memory = measured(__file__, length)
        for name in times:
            table.add_row(
                f"{length:,}", name, f"{times[name]:.1f}", f"{times[name] / times[PLAIN]:.2f}",
                f"{memory[name] / 1e9:.2f}", f"{memory[name] / memory[PLAIN]:.2f}",
            )  # fmt: skip
    Console(width=120).print(table)


if __name__ == "__main__":
    if not answer(modes, measured_peak, ROUNDS):
        main(tuple(map(int, sys.argv[1:])) or LENGTHS)

"""What rollouts cost: one row of attention rollout, and gradient rollout, against Hugging Face's own forward.

A LLaVA-OneVision core of the real 0.5B size with random weights, fp32. "rollout" is multiplied up while the model runs
(`keep="rollout"`); "a row from means" and "all rows from means" are the products alone, of means over heads that were
kept. Gradient rollout (`keep="cam"`) is a forward and a backward pass. Memory is above the weights, in pos x pos
fp32 matrices above the plain forward, too.

    python benchmarks/rollout.py [tokens ...]
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from measuring import answer, measured, peak, setting
from rich.console import Console
from rich.table import Table

LENGTHS = (1500, 3000)
ROUNDS = 5
PLAIN, EAGER = "Hugging Face, SDPA", "Hugging Face, eager"


def modes(lens: Any, inputs: Any) -> dict[str, Callable[[], Any]]:
    from lensplug import analysis

    hf, held = lens.hf_model, {}
    tokens = {"input_ids": inputs.tokens, "attention_mask": inputs.attention_mask}

    def forward(attention: str) -> Any:
        hf.set_attn_implementation(attention)
        try:
            return hf(**tokens, use_cache=False, logits_to_keep=1)
        finally:
            hf.set_attn_implementation("sdpa")

    def rollout() -> Any:
        _, cache = lens.run_with_cache(inputs, names_filter=[], keep="rollout", logit_positions=[])
        return analysis.attention_rollout(cache, rows=-1)

    def means() -> Any:
        _, held["cache"] = lens.run_with_cache(inputs, names_filter=[], keep="head_mean", logit_positions=[])

    def gradient_rollout() -> Any:
        _, cache, grads = lens.run_with_gradients(inputs, target=7, keep="cam")
        return analysis.gradient_rollout(cache, grads, rows=-1)

    return {
        PLAIN: lambda: forward("sdpa"),
        EAGER: lambda: forward("eager"),
        "rollout": rollout,
        "means over heads": means,
        "a row from means": lambda: analysis.attention_rollout(held["cache"], rows=-1),
        "all rows from means": lambda: analysis.attention_rollout(held["cache"]),
        "gradient rollout": gradient_rollout,
    }


def measured_peak(length: int, name: str) -> int:
    lens, inputs = setting(length)
    with torch.no_grad():
        short = modes(lens, lens.encode({"input_ids": inputs.tokens[:, :16]}))
        ways = modes(lens, inputs)
        if name.endswith("from means"):
            short["means over heads"](), ways["means over heads"]()
        short[name]()  # first-call costs are not the mode's
    return peak(ways[name])


def main(lengths: tuple[int, ...]) -> None:
    table = Table(title="Rollouts, 0.5B size", title_justify="left")
    for column in ("tokens", "way", "seconds", "x SDPA", "x eager", "GB above weights", "pos x pos above SDPA"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for length in lengths:
        times, memory = measured(__file__, length)
        for name in times:
            table.add_row(
                f"{length:,}", name, f"{times[name]:.2f}", f"{times[name] / times[PLAIN]:.2f}",
                f"{times[name] / times[EAGER]:.2f}", f"{memory[name] / 1e9:.2f}",
                f"{(memory[name] - memory[PLAIN]) / (4 * length**2):.1f}",
            )  # fmt: skip
    Console(width=120).print(table)


if __name__ == "__main__":
    if not answer(modes, measured_peak, ROUNDS):
        main(tuple(map(int, sys.argv[1:])) or LENGTHS)

"""The logit lens at every position of a prompt: time against the bare matrix product, and peak memory.

A core of the real 0.5B size (24 layers, 896 wide, vocabulary 152,000, fp32) with random weights and residuals. The bare
product writes to one place again and again: whole rows, as many as the lens makes at a time, or blocks of columns that
stay in the processor's cache, the fastest that we found. "all at once" unembeds a layer at all positions in one
product, as a notebook does.

    python benchmarks/logit_lens.py [positions ...]
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from measuring import answer, measured, peak, setting
from rich.console import Console
from rich.table import Table
from transformer_lens import ActivationCache

POSITIONS = (1500,)
ROUNDS = 2
ROWS, BLOCKS = "bare product, 375 rows", "bare product, 1,500 rows x 2,048 columns"


def modes(lens: Any, inputs: Any) -> dict[str, Callable[[], Any]]:
    from lensplug import analysis
    from lensplug.analysis.logits.unembedding import unembed

    model, shape = lens.model, (*inputs.tokens.shape, lens.model.cfg.d_model)
    names = ["blocks.0.hook_resid_pre", *(f"blocks.{layer}.hook_resid_post" for layer in range(model.cfg.n_layers))]
    residuals = {name: torch.randn(shape) for name in names}
    cache, W_U = ActivationCache(residuals, model), model.unembed.W_U

    def product(rows: int, columns: int) -> None:
        place = torch.empty(rows * columns)
        for x in torch.cat([residual[0] for residual in residuals.values()]).split(rows):
            for block in W_U.split(columns, dim=1):
                torch.mm(x, block, out=place[: len(x) * block.shape[1]].view(len(x), -1))

    def all_at_once() -> None:
        for residual in residuals.values():
            unembed(model, residual[0]).softmax(dim=-1).topk(5)

    return {
        ROWS: lambda: product(375, W_U.shape[1]),
        BLOCKS: lambda: product(1500, 2048),
        "lensplug": lambda: analysis.logit_lens(cache, positions=None),
        "all at once, softmax and top 5": all_at_once,
    }


def main(lengths: tuple[int, ...]) -> None:
    for positions in lengths:
        table = Table(title=f"Logit lens at {positions:,} positions x 25 entries, 0.5B size", title_justify="left")
        for column in ("way", "seconds", "x rows", "x blocks", "GB above weights"):
            table.add_column(column, justify="left" if column == "way" else "right")
        times, memory = measured(__file__, positions)
        for name, time in times.items():
            ratios = [f"{time / times[bare]:.2f}" for bare in (ROWS, BLOCKS)]
            table.add_row(name, f"{time:.1f}", *ratios, f"{memory[name] / 1e9:.2f}")
        Console(width=120).print(table)


if __name__ == "__main__":
    if not answer(modes, lambda positions, name: peak(modes(*setting(positions))[name]), ROUNDS):
        main(tuple(map(int, sys.argv[1:])) or POSITIONS)

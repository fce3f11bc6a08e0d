"""What studying a model costs beside running it: head specialisation and the logit lens of the last position.

A LLaVA-OneVision core of the real 0.5B size with random weights, fp32, at several lengths. Time is the median of
`ROUNDS`, all modes taking turns in one process; peak memory above the weights is measured in a process of its own
for each. The plain forward of Hugging Face (SDPA, last logit only) is 1.

    python benchmarks/light.py [tokens ...]
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.table import Table

LENGTHS = (750, 1500, 3000)
ROUNDS = 5
LARGEST = 1500
"""The modes that keep every pattern or activation are run up to this length."""


def setting(length: int) -> tuple[Any, Any]:
    """The lens, and inputs of so many tokens."""
    from wrap import build

    import lensplug

    torch.manual_seed(0)
    lens = lensplug.wrap(build(), check=False)
    return lens, lens.encode({"input_ids": torch.randint(0, 100_000, (1, length))})


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

    def lensplug_way() -> Any:
        _, cache = lens.run_with_cache(
            inputs, needs=[analysis.head_specialization, analysis.logit_lens],
            query_positions=[-1], residual_positions=[-1], logit_positions=[-1],
        )  # fmt: skip
        return analysis.head_specialization(cache, inputs.modality), analysis.logit_lens(cache)

    ways = {"Hugging Face, SDPA": plain, "lensplug": lensplug_way}
    if inputs.tokens.shape[1] <= LARGEST:
        ways |= {
            "Hugging Face, eager, output_attentions": eager,
            "TransformerLens, patterns": patterns,
            "TransformerLens, full cache and a loop over heads": notebook,
        }
    return ways


def peak(length: int, name: str) -> float:
    """Memory of one run above what was there before, in bytes."""
    lens, inputs = setting(length)
    process, seen, ended = psutil.Process(), [], threading.Event()

    def watch() -> None:
        while not ended.wait(0.005):
            seen.append(process.memory_info().rss)

    with torch.no_grad():
        modes(lens, lens.encode({"input_ids": inputs.tokens[:, :16]}))[name]()  # first-call costs are not the mode's
        before = process.memory_info().rss
        watcher = threading.Thread(target=watch)
        watcher.start()
        modes(lens, inputs)[name]()
        ended.set()
        watcher.join()
    return max(seen) - before


def seconds(length: int) -> dict[str, float]:
    """The median time of every mode."""
    lens, inputs = setting(length)
    ways, times = modes(lens, inputs), {}
    with torch.no_grad():
        for turn in range(ROUNDS + 1):
            for name, way in ways.items():
                start = time.perf_counter()
                way()
                if turn:  # the first is for warming up
                    times.setdefault(name, []).append(time.perf_counter() - start)
    return {name: statistics.median(each) for name, each in times.items()}


def main(lengths: tuple[int, ...]) -> None:
    table = Table(title="Head specialisation and logit lens of the last position, 0.5B size", title_justify="left")
    for column in ("tokens", "way", "seconds", "x time", "GB above weights", "x memory"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for length in lengths:
        times = _in_a_process("seconds", length)
        memory = {name: _in_a_process("peak", length, name) for name in times}
        base_time, base_memory = times["Hugging Face, SDPA"], memory["Hugging Face, SDPA"]
        for name in times:
            table.add_row(
                f"{length:,}", name, f"{times[name]:.1f}", f"{times[name] / base_time:.2f}",
                f"{memory[name] / 1e9:.2f}", f"{memory[name] / base_memory:.2f}",
            )  # fmt: skip
    Console(width=120).print(table)


def _in_a_process(*arguments: Any) -> Any:
    run = subprocess.run([sys.executable, __file__, *map(str, arguments)], capture_output=True, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1])


if __name__ == "__main__":
    if sys.argv[1:2] == ["seconds"]:
        print(json.dumps(seconds(int(sys.argv[2]))))
    elif sys.argv[1:2] == ["peak"]:
        print(json.dumps(peak(int(sys.argv[2]), sys.argv[3])))
    else:
        main(tuple(map(int, sys.argv[1:])) or LENGTHS)

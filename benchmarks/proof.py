"""How long a proof on load takes: a random core as large as Qwen2-0.5B, known from the table, and tried.

The same model both ways: what CI tests, forced with `prove=True`, and by the parts of its layers. Processor time counts
what all threads computed, and hardly changes with what else the machine does; the steps are those of `prove`.

OMP_NUM_THREADS=1 python benchmarks/proof.py   # 2 minutes, 6 GB
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

import lensplug
from lensplug.patches.bridge import core
from lensplug.proof import prove

SIZE = {
    "hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
    "intermediate_size": 4864, "vocab_size": 151_936, "tie_word_embeddings": True,
}  # fmt: skip
"""Of Qwen2-0.5B."""


def main() -> None:
    """Print a table."""
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    rows, steps = [], {}
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        with torch.no_grad():
            model = Qwen2ForCausalLM(Qwen2Config(**SIZE)).to(dtype).eval()
        for name in ("in the table", "tried"):
            kept = core.CORES.pop("qwen2") if name == "tried" else None
            try:
                begun = Times.now()
                with timed_steps() as of_steps:
                    lensplug.wrap(model, engine="bridge", prove=True)
                whole = Times.now() - begun
            finally:
                if kept is not None:
                    core.CORES["qwen2"] = kept
            short = str(dtype).removeprefix("torch.")
            steps[f"{name}, {short}"] = of_steps
            proof = of_steps.pop("all")
            rows.append(f"| {name} | {short} | {whole} | {proof} |")
    print("processor time / wall, s\n\n| core | dtype | wrap | of it proof |\n| --- | --- | ---: | ---: |")
    print("\n".join(rows))
    columns = list(steps)
    print(f"\n| step | {' | '.join(columns)} |\n| --- |{' ---: |' * len(columns)}")
    for step in steps[columns[0]]:
        print(f"| {step} | {' | '.join(str(steps[column][step]) for column in columns)} |")


@dataclass
class Times:
    """Processor time and wall time, in seconds."""

    processor: float
    wall: float

    @classmethod
    def now(cls) -> Times:
        """Of this process."""
        return cls(time.process_time(), time.perf_counter())

    def __sub__(self, begun: Times) -> Times:
        """What has passed since."""
        return Times(self.processor - begun.processor, self.wall - begun.wall)

    def __str__(self) -> str:
        """Both."""
        return f"{self.processor:.1f} / {self.wall:.1f}"


@contextmanager
def timed_steps() -> Iterator[dict[str, Times]]:
    """The times of every step of a proof that is made in this scope, and of "all"."""
    found: dict[str, Times] = {}
    kept = prove.attempted, prove._checks

    def attempted(names: Any, make: Any) -> Any:
        begun = Times.now()
        checks = kept[0](names, make)
        found[names[0]] = Times.now() - begun
        return checks

    def every(*given: Any) -> Any:
        begun = Times.now()
        checks = kept[1](*given)
        found["all"] = Times.now() - begun
        return checks

    prove.attempted, prove._checks = attempted, every
    try:
        yield found
    finally:
        prove.attempted, prove._checks = kept


if __name__ == "__main__":
    main()

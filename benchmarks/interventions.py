"""What a table of knockouts, each layer by each path, costs beside as many plain forwards.

A core of the 0.5B size of LLaVA-OneVision with random weights; a prompt whose positions stand for a picture (four
fifths), a question of 20 and the template behind it. A plain forward is Hugging Face's, with logits of the last
position. Paths are cut around each of 24 layers, with one random control, the path from the picture to itself around
three; the last row runs each knockout by itself (`lens.intervene`), in three layers.

    python benchmarks/interventions.py                # 500 positions
    python benchmarks/interventions.py 120 bridge
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from measuring import setting
from rich.console import Console
from rich.table import Table

import lensplug
from lensplug import analysis
from lensplug.interventions import Knockout

LENGTH, QUESTION, BEHIND = 500, 20, 5


def seconds(way: Callable[[], Any]) -> float:
    """Of one call."""
    begun = time.perf_counter()
    way()
    return time.perf_counter() - begun


def swept(lens: Any, inputs: Any, paths: Any, layers: Sequence[int]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", lensplug.LensplugWarning)  # of a random model every target is improbable
        return analysis.information_flow(lens, inputs, 7, paths=paths, layers=layers, draws=1, progress=False)


def main(length: int, engine: Any) -> None:
    lens, inputs = setting(length)
    if engine is not None:
        lens = lensplug.wrap(lens.hf_model, None, engine=engine, check=False)
    layers, last = lens.model.cfg.n_layers, torch.tensor([[length - 1]])
    question = list(range(length - BEHIND - QUESTION, length - BEHIND))
    picture = list(range(5, 5 + length * 4 // 5))
    tables: dict[str, Any] = {
        "picture to last": {"picture to last": (picture, "last")},
        "picture to question": {"picture to question": (picture, question)},
        "these, and question to last": {
            "picture to last": (picture, "last"),
            "picture to question": (picture, question),
            "question to last": (question, "last"),
        },
        "picture to itself": {"picture to itself": (picture, picture)},
    }
    decoder, head = lens.hf_model.get_decoder(), lens.hf_model.get_output_embeddings()

    def plain() -> Any:
        states = decoder(inputs_embeds=inputs.embeds, attention_mask=inputs.attention_mask, use_cache=False)
        return head(states.last_hidden_state[:, -1:])

    def one_by_one() -> None:
        for layer in range(3):
            with lens.intervene(Knockout(picture, "last", layers=layer)):
                lens.logits_at(inputs, last)

    table = Table(title=f"Knockouts in {layers} layers, {length} positions, {lens.engine}", title_justify="left")
    for column in ("paths", "runs", "seconds", "x as many plain forwards"):
        table.add_column(column, justify="left" if column == "paths" else "right")
    with torch.no_grad():
        forward = min(seconds(plain) for _ in range(3))
        for name, paths in tables.items():
            around = [0, layers // 2, layers - 1] if name == "picture to itself" else range(layers)
            runs = 1 + 2 * len(around) * len(paths)
            taken = seconds(lambda paths=paths, around=around: swept(lens, inputs, paths, around))
            table.add_row(name, str(runs), f"{taken:.2f}", f"{taken / (runs * forward):.3f}")
        alone = seconds(one_by_one)
        table.add_row("picture to last, one by one", "3", f"{alone:.2f}", f"{alone / (3 * forward):.3f}")
    table.add_row("a plain forward", "1", f"{forward:.2f}", "1")
    Console(width=120).print(table)


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[1:] if word.isdigit()]
    engines = [word for word in sys.argv[1:] if not word.isdigit()]
    main(numbers[0] if numbers else LENGTH, engines[0] if engines else None)

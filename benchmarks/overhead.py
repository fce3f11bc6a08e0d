"""What lensplug's own code costs for each example: milliseconds of a processor beside those of running the model.

The tiny models that ship with lensplug: their numbers take so little that calls, checks and hooks show. An example is
a question with a picture (a voice, for the audio-LLaMA): prepared, run with what two analyses need at the last
position, and read by both. The whole forward of Hugging Face on what the processor made, vision tower and all, is 1.
CPU time of the process on one thread, medians of `ROUNDS` in which all parts take turns; a chat template is rendered
by another process, whose time is not in it.

    python benchmarks/overhead.py
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import lensplug
from lensplug import analysis
from lensplug.engines import installed
from lensplug.tiny.scenes import draw_scene
from lensplug.tiny.voices import SAMPLING_RATE, make_voice

ROUNDS = 60
WARMING_UP = 5
FORWARD = "Hugging Face forward"
EXAMPLE = ("prepare", "run_with_cache", "head_specialization", "logit_lens")
"""What makes up an example."""
TABLES = "to_dataframe"
"""On top of it, where tables are wanted."""

Parts = dict[str, Callable[[], Any]]


def parts(lens: Any, text: str, **media: Any) -> Parts:
    """The parts of studying one prompt; each takes what the one before it has made."""
    made: dict[str, Any] = {"inputs": lens.prepare(text, **media)}

    def forward() -> None:
        with torch.no_grad():
            lens.hf_model(**made["inputs"].model_inputs, use_cache=False)

    def prepare() -> None:
        made["inputs"] = lens.prepare(text, **media)

    def run() -> None:
        _, made["cache"] = lens.run_with_cache(
            made["inputs"], needs=[analysis.head_specialization, analysis.logit_lens],
            query_positions=[-1], residual_positions=[-1], logit_positions=[-1],
        )  # fmt: skip

    def heads() -> None:
        made["heads"] = analysis.head_specialization(made["cache"], made["inputs"].modality)

    def layers() -> None:
        made["layers"] = analysis.logit_lens(made["cache"])

    def tables() -> None:
        made["heads"].to_dataframe(), made["layers"].to_dataframe()

    return {FORWARD: forward, **dict(zip(EXAMPLE, (prepare, run, heads, layers), strict=True)), TABLES: tables}


def examples() -> dict[str, Parts]:
    """A picture and a voice, on each engine that is installed."""
    picture = draw_scene(random.Random(0), size=(96, 96)).image
    voice = make_voice(random.Random(0), transcript=False)
    sound = (voice.waveform, SAMPLING_RATE)
    made = {}
    for engine in installed():
        sees, hears = (
            lensplug.wrap(lens.hf_model, lens.processor, engine=engine, check=False)
            for lens in (lensplug.tiny.llava_onevision(), lensplug.tiny.audio_llama())
        )
        made[f"LLaVA, {engine}"] = parts(sees, "What is the color? Answer single word.", images=[picture])
        made[f"audio-LLaMA, {engine}"] = parts(hears, voice.prompt("sound"), audio=[sound])
    return made


def milliseconds(examples: dict[str, Parts]) -> dict[str, dict[str, float]]:
    """Example -> part -> median CPU time; the parts of all examples take turns."""
    times: dict[tuple[str, str], list[float]] = {}
    for turn in range(WARMING_UP + ROUNDS):
        for name, each in examples.items():
            for part, call in each.items():
                start = time.process_time()
                call()
                if turn >= WARMING_UP:
                    times.setdefault((name, part), []).append(1e3 * (time.process_time() - start))
    return {name: {part: statistics.median(times[name, part]) for part in each} for name, each in examples.items()}


def main() -> None:
    torch.set_num_threads(1)
    table = Table(title="CPU time of one example on the tiny models", title_justify="left")
    for column in ("model", "part", "ms", "x forward"):
        table.add_column(column, justify="left" if column in ("model", "part") else "right")
    for name, spent in milliseconds(examples()).items():
        whole = sum(spent[part] for part in EXAMPLE)
        lines = {**spent, "the example": whole, "the example and its tables": whole + spent[TABLES]}
        for part, ms in lines.items():
            table.add_row(name if part == FORWARD else "", part, f"{ms:.1f}", f"{ms / spent[FORWARD]:.2f}")
        table.add_section()
    Console(width=100).print(table)


if __name__ == "__main__":
    main()

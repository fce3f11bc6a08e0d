"""What the tiny audio-LLaMA uses the sound for: accuracy with it, without it, without the words, and under the control.

python benchmarks/listening.py
"""

from __future__ import annotations

import random

from rich.console import Console
from rich.progress import track
from rich.table import Table

import lensplug
from lensplug import analysis
from lensplug.tiny.voices import QUESTIONS, make_voice

VOICES = 150
UNSEEN = 2_000_003  # training draws from seed 0


def main() -> None:
    lens = lensplug.tiny.audio_llama()
    rng = random.Random(UNSEEN)
    voices = [make_voice(rng, transcript=True) for _ in range(VOICES)]
    table = Table(title=f"Right answers of the tiny audio-LLaMA on {VOICES} unseen voices", title_justify="left")
    table.add_column("about")
    columns = ("with both", "no sound", "silence", "no words", "control", "changed", "control changed")
    for column in columns:
        table.add_column(column, justify="right")
    for topic, question in track(QUESTIONS.items(), description="ablating", console=Console(stderr=True)):
        examples = [analysis.Example(v.prompt(topic), v.answer(topic), audio=[v.audio], keep=question) for v in voices]
        removed, silent = (analysis.modality_ablation(lens, examples, "audio", m) for m in ("remove", "silence"))
        wordless = analysis.modality_ablation(lens, examples, "text", "remove")
        changed = removed.summary().changed
        numbers = (
            removed.accuracy["with"], removed.accuracy["without"], silent.accuracy["without"],
            wordless.accuracy["without"], removed.accuracy["control"], changed["without"], changed["control"],
        )  # fmt: skip
        table.add_row(topic, *(f"{number:.0%}" for number in numbers))
    Console().print(table)


if __name__ == "__main__":
    main()

"""What a study costs on top of its runs, what batches gain, and whether memory grows with the number of examples.

1. CPU time of a study of the tiny LLaVA against a plain loop over the same batches, which prepares, runs and reads the
   same and keeps nothing: 1 is the loop.
2. Examples in a second by batch size.
3. Peak memory of means by group over results of more and more examples, made of generated numbers.

    python benchmarks/study.py
"""

from __future__ import annotations

import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import lensplug
from lensplug import analysis
from lensplug.tiny.scenes import draw_scene

QUESTION = "What is the color? Answer single word."
EXAMPLES, ROUNDS = 256, 5
BATCHES = (1, 4, 8, 16)
GENERATED = (100, 1_000, 10_000, 100_000)
ROWS = 6 * 6 * 7
"""As many numbers as the heads of the tiny model have."""


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        console = Console(width=100)
        console.print(overhead(Path(folder)))
        console.print(memory())


def overhead(folder: Path) -> Table:
    """CPU time of studies and of plain loops, which take turns; and examples in a second."""
    lens = lensplug.tiny.llava_onevision()
    for index in range(EXAMPLES):
        draw_scene(random.Random(index), size=(48, 48)).image.save(folder / f"{index:04d}.png")
    table = Table(title=f"{EXAMPLES} examples, two measurements", title_justify="left")
    for column in ("batch", "loop, CPU s", "study, CPU s", "x loop", "examples a second", "x batch 1"):
        table.add_column(column, justify="right")
    rates: dict[int, float] = {}
    for batch in BATCHES:
        spent: dict[str, list[float]] = {"loop": [], "study": []}
        for turn in range(ROUNDS + 1):
            study = lensplug.Study(folder / f"study-{batch}-{turn}", model="lensplug.tiny:llava_onevision")
            study.add_folder(folder, prompt=QUESTION)
            study.measure(analysis.head_specialization)
            study.measure(analysis.logit_lens)
            rows = study.examples
            loop_s = _cpu(lambda rows=rows, batch=batch: plain_loop(lens, rows, batch))
            start = time.perf_counter()
            study_s = _cpu(lambda study=study, batch=batch: study.run(lens=lens, batch=batch))
            if turn:  # the first warms up
                spent["loop"].append(loop_s)
                spent["study"].append(study_s)
                rates[batch] = max(rates.get(batch, 0.0), EXAMPLES / (time.perf_counter() - start))
        loop, of_study = (float(np.median(times)) for times in spent.values())
        ratio = float(np.median(np.divide(spent["study"], spent["loop"])))
        table.add_row(
            str(batch), f"{loop:.2f}", f"{of_study:.2f}", f"{ratio:.2f}", f"{rates[batch]:.1f}",
            f"{rates[batch] / rates[BATCHES[0]]:.2f}",
        )  # fmt: skip
    return table


def plain_loop(lens: Any, rows: Any, batch: int) -> None:
    """What a researcher writes: the same batches, the same files, nothing kept."""
    for start in range(0, len(rows), batch):
        part = rows.iloc[start : start + batch]
        inputs = lens.prepare(part.prompt.tolist(), images=[list(images) for images in part.images])
        _, cache = lens.run_with_cache(
            inputs, needs=[analysis.head_specialization, analysis.logit_lens], query_positions=[-1],
            residual_positions=[-1], logit_positions=[-1],
        )  # fmt: skip
        analysis.head_specialization(cache, inputs.modality)
        analysis.logit_lens(cache)


def memory() -> Table:
    """Peak memory of a process that streams means and a bootstrap over generated examples."""
    table = Table(title="Means by group and bootstrap intervals, streamed", title_justify="left")
    for column in ("examples", "peak MB", "seconds"):
        table.add_column(column, justify="right")
    for examples in GENERATED:
        start = time.perf_counter()
        peak = subprocess.run(
            [sys.executable, __file__, "--stream", str(examples)], capture_output=True, text=True, check=True
        )
        table.add_row(f"{examples:,}", peak.stdout.strip(), f"{time.perf_counter() - start:.0f}")
    return table


def stream(examples: int) -> float:
    """Peak memory in MB after streaming so many generated examples."""
    from lensplug.statistics import Bootstrap, Moments

    generator = np.random.default_rng(0)
    moments, bootstrap = Moments(), Bootstrap(replicates=500)
    for start in range(0, examples, 64):
        count = min(64, examples - start)
        values, groups = generator.random((count, ROWS)), [f"group {index % 3}" for index in range(count)]
        moments.add(values, groups)
        bootstrap.add(values, groups, [str(start + index) for index in range(count)])
    bootstrap.interval()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _cpu(call: Any) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


if __name__ == "__main__":
    if sys.argv[1:2] == ["--stream"]:
        print(f"{stream(int(sys.argv[2])):.0f}")
    else:
        main()

"""The logit lens at every position of an image: time against the bare matrix product, and peak memory.

A core of the real 0.5B size (896 wide, vocabulary 152,000, fp32) with random weights, the 2,929 positions of an image
of 480 x 640 pixels, and the residuals of 6 of its 24 layers; each way in a process of its own. "all at once" unembeds
a layer at all positions in one product, as a notebook does.

    python benchmarks/patches.py
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time

import psutil
from rich.console import Console
from rich.table import Table

POSITIONS, LAYERS = 2_929, 6
MODES = ("bare product, in chunks", "all at once, softmax and top 5", "lensplug")


def measure(mode: str) -> dict[str, float]:
    """Seconds, and peak memory above what was there before, in this process."""
    import torch
    from transformer_lens import ActivationCache
    from wrap import build

    import lensplug
    from lensplug import analysis
    from lensplug.analysis.logit_lens import unembed

    lens = lensplug.wrap(build(), check=False)
    lens.model.cfg.n_layers = LAYERS
    generator = torch.Generator().manual_seed(0)
    names = ["blocks.0.hook_resid_pre", *(f"blocks.{layer}.hook_resid_post" for layer in range(LAYERS))]
    residuals = {name: torch.randn(1, POSITIONS, lens.model.cfg.d_model, generator=generator) for name in names}
    cache = ActivationCache(residuals, lens.model)
    W_U = lens.model.unembed.W_U
    process, seen = psutil.Process(), []
    before, ended = process.memory_info().rss, threading.Event()

    def watch() -> None:
        while not ended.wait(0.02):
            seen.append(process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    with torch.no_grad():
        if mode == "lensplug":
            analysis.logit_lens(cache, positions=range(POSITIONS))
        elif mode.startswith("bare"):
            for residual in residuals.values():
                for rows in residual[0].split(60):
                    rows @ W_U
        else:
            for residual in residuals.values():
                unembed(lens.model, residual[0]).softmax(dim=-1).topk(5)
    seconds = time.perf_counter() - start
    ended.set()
    watcher.join()
    return {"seconds": seconds, "peak_gb": (max(seen) - before) / 1e9}


def main() -> None:
    results = {}
    for mode in MODES:
        run = subprocess.run([sys.executable, __file__, mode], capture_output=True, text=True, check=True)
        results[mode] = json.loads(run.stdout.splitlines()[-1])
    table = Table(title=f"Logit lens at {POSITIONS:,} positions x {LAYERS + 1} entries, 0.5B size")
    for column in ("mode", "seconds", "x bare product", "peak above the weights"):
        table.add_column(column, justify="right")
    for mode, result in results.items():
        ratio = result["seconds"] / results[MODES[0]]["seconds"]
        table.add_row(mode, f"{result['seconds']:.1f}", f"{ratio:.2f}", f"{result['peak_gb']:.2f} GB")
    Console().print(table)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1])))
    else:
        main()

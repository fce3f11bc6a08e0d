"""Sweeps of activation patching: against the library's loop, and against as many plain forwards.

The loop is `transformer_lens.patching.generic_activation_patch`, one place after another, at the speed of SDPA and with
the logits that are read alone; times are those of the processor, so that other work on the machine counts little.

    python benchmarks/patching.py
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import pandas as pd
import torch
from measuring import setting
from rich.console import Console
from rich.table import Table
from transformer_lens import patching

import lensplug
from lensplug import analysis
from lensplug.tiny.scenes import draw_scene

QUESTION = "What is the color? Answer single word."
LONG, GROUPS = 400, 8


def processor_seconds(way: Callable[[], Any]) -> float:
    begun = time.process_time()
    way()
    return time.process_time() - begun


def loop(lens: Any, clean: Any, corrupt: Any, groups: Any, target: tuple[int, int]) -> None:
    """The same table by the library's loop."""
    _, cache = lens.run_with_cache(clean, names_filter="resid_pre", query_positions=[], logit_positions=[-1])
    index = [(layer, group) for layer in range(lens.model.cfg.n_layers) for group in range(int(groups.max()) + 1)]

    def setter(stream: Any, index: Any, clean: Any) -> Any:
        return torch.where((groups == index[1])[..., None], clean, stream)

    def metric(logits: Any) -> Any:
        return (logits[:, -1, target[0]] - logits[:, -1, target[1]]).mean()

    rows = torch.tensor([[corrupt.shape[1] - 1]])
    with torch.no_grad(), lens.logits_only(rows):
        table = pd.DataFrame(index, columns=["layer", "group"])
        patching.generic_activation_patch(lens.model, corrupt, cache, metric, setter, "resid_pre", index_df=table)


def tiny() -> tuple[str, int, float, float]:
    """The table of 702 places of a picture of 96 x 96 pixels: ours, and the loop."""
    lens = lensplug.tiny.llava_onevision()
    red, blue = (
        lens.prepare(QUESTION, images=[draw_scene(random.Random(3), size=(96, 96), color=color, shape="square").image])
        for color in ("red", "blue")
    )
    found = analysis.activation_patching(lens, red, blue, (5, 6), groups="modality", progress=False)
    ours = processor_seconds(
        lambda: analysis.activation_patching(lens, red, blue, (5, 6), groups="modality", progress=False)
    )
    theirs = processor_seconds(lambda: loop(lens, red, blue, found.groups, (5, 6)))
    return "tiny: the library's loop", found.values.numel(), theirs, ours


def large() -> tuple[str, int, float, float]:
    """A layer x place table at 0.5B size: ours, and as many plain forwards, timed for a few of them."""
    lens, clean = setting(LONG)
    corrupt = lens.encode({"input_ids": torch.randint(0, 100_000, (1, LONG))})
    groups = torch.arange(LONG) * GROUPS // LONG
    rows = torch.tensor([[LONG - 1]])
    lens.logits_at(corrupt, rows)
    plain = processor_seconds(lambda: [lens.logits_at(corrupt, rows) for _ in range(4)]) / 4
    ours = processor_seconds(
        lambda: analysis.activation_patching(lens, clean, corrupt, (5, 6), groups=groups, progress=False)
    )
    n_places = lens.model.cfg.n_layers * GROUPS
    return "0.5B: plain forwards", n_places, plain * n_places, ours


def main() -> None:
    table = Table(title="Activation patching, a layer x place table", title_justify="left")
    for column in ("against", "places", "its s", "lensplug s", "lensplug / it"):
        table.add_column(column, justify="right")
    for name, n_places, theirs, ours in (tiny(), large()):
        table.add_row(name, str(n_places), f"{theirs:.1f}", f"{ours:.1f}", f"{ours / theirs:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()

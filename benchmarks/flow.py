"""Attention flow: time against networkx, what sizes are feasible, and how tight the bound of merged positions is.

Random causal attention, and the embedded tiny models. networkx takes minutes for all positions of the smallest size:
it is timed for a few, and its time for all is reckoned from these.

    python benchmarks/flow.py
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import networkx as nx
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformer_lens import ActivationCache

import lensplug
from lensplug import analysis
from lensplug.analysis.attention.layered_graph import LayeredGraph
from lensplug.positions.groups import group_positions
from lensplug.reductions import names as hook_names
from lensplug.tiny.scenes import draw_scene
from lensplug.tiny.voices import make_voice

SIZES = ((12, 64), (24, 200), (24, 500))
LONG = (24, 2_929)
"""A prompt with an image of 480 x 640 pixels."""
SINKS = (0, 21, 42, 63)


def random_cache(layers: int, length: int, different: int | None = None) -> Any:
    """Random causal attention of one head; of `different` layers, again and again."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.ones(length, length).triu(1).bool()
    made = [
        (2 * torch.randn(1, 1, length, length, generator=generator)).masked_fill(hidden, -torch.inf).softmax(dim=-1)
        for _ in range(different or layers)
    ]
    named = {f"blocks.{layer}.attn.hook_pattern": made[layer % len(made)] for layer in range(layers)}
    return ActivationCache(named, None)


def capacities(cache: Any, layers: int) -> list[Tensor]:
    """A' of every layer, in fp64."""
    fused = [
        cache.cache_dict[hook_names.head_mean(layer)][0].double()
        if hook_names.head_mean(layer) in cache.cache_dict
        else cache[f"blocks.{layer}.attn.hook_pattern"][0].mean(dim=0).double()
        for layer in range(layers)
    ]
    return [(a / a.sum(dim=-1, keepdim=True) + torch.eye(len(a), dtype=a.dtype)) / 2 for a in fused]


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = run()
    return result, time.perf_counter() - start


def networkx_graph(stack: list[Tensor]) -> Any:
    graph = nx.DiGraph()
    for layer, capacity in enumerate(stack):
        for i, j in capacity.nonzero().tolist():
            graph.add_edge((layer + 1, i), (layer, j), capacity=float(capacity[i, j]))
    return graph


def joint(stack: list[Tensor], groups: Tensor) -> Tensor:
    """The exact flow from the last position into each group's positions together: merged at the bottom only."""
    length = len(stack[0])
    graph = LayeredGraph(source=length - 1, width=length)
    for capacity in reversed(stack[1:]):
        graph.add(capacity)
    bottom = torch.zeros_like(stack[0]).index_add_(1, groups, stack[0])
    graph.add(bottom)
    return graph.max_flows()


def times() -> Table:
    table = Table(title="Maximum flows from the last position into every other", title_justify="left")
    for column in ("layers x positions", "edges", "seconds", "networkx", "times faster", "largest difference"):
        table.add_column(column, justify="right")
    analysis.attention_flow(random_cache(2, 4))  # imports igraph
    for layers, length in SIZES:
        cache = random_cache(layers, length)
        flow, seconds = timed(lambda cache=cache: analysis.attention_flow(cache))
        edges = (layers - 1) * length * (length + 1) // 2 + length
        row = [f"{layers} x {length}", f"{edges:,}", f"{seconds:.2f}", "", "", ""]
        if (layers, length) == SIZES[0]:
            graph, built = timed(lambda cache=cache, layers=layers: networkx_graph(capacities(cache, layers)))
            top = (layers, length - 1)
            found, some = timed(lambda g=graph, top=top: [nx.maximum_flow_value(g, top, (0, sink)) for sink in SINKS])
            theirs = built + some * length / len(SINKS)
            difference = (flow.values[0, list(SINKS)] - torch.tensor(found, dtype=torch.float64)).abs().max()
            row[3:] = [f"{theirs:.0f} s ({len(SINKS)} timed)", f"{theirs / seconds:.0f}", f"{float(difference):.0e}"]
        table.add_row(*row)
    layers, length = LONG
    cache, groups = random_cache(layers, length, different=3), torch.arange(length) * 127 // length
    _, seconds = timed(lambda: analysis.attention_flow(cache, groups=groups))
    table.add_row(f"{layers} x {length:,} in 128 groups", "", f"{seconds:.2f}", "", "", "")
    return table


def tightness() -> Table:
    table = Table(title="Grouped flow over the exact flow into a group's positions together", title_justify="left")
    for column in ("attention", "positions", "groups", "mean", "largest", "mean of merged"):
        table.add_column(column, justify="right")

    def add(name: str, cache: Any, layers: int, **grouping: Any) -> None:
        flow = analysis.attention_flow(cache, **grouping)
        exact = joint(capacities(cache, layers), flow.groups[0])[: flow.values.shape[1]]
        ratio, merged = flow.values[0] / exact, flow.positions[0] > 1
        numbers = (float(ratio.mean()), float(ratio.max()), float(ratio[merged].mean()))
        table.add_row(name, str(flow.groups.shape[1]), str(len(ratio)), *(f"{number:.3f}" for number in numbers))

    for each in (2, 4, 8):
        add(f"random, 6 layers, runs of {each}", random_cache(6, 96), 6, groups=torch.arange(96) // each)
    lens = lensplug.tiny.llava_onevision()
    scene = draw_scene(random.Random(3), size=(96, 96), color="red")
    inputs = lens.prepare("What is the color? Answer single word.", images=[scene.image])
    _, cache = lens.run_with_cache(inputs, keep="head_mean")
    add(
        "tiny LLaVA-OneVision, by modality", cache, lens.model.cfg.n_layers, groups="modality", modality=inputs.modality
    )
    for blocks in (3, 1):
        groups = group_positions(inputs.modality, blocks=blocks, join_newlines=True).of_position
        add(f"the same, {blocks} x {blocks} regions a view", cache, lens.model.cfg.n_layers, groups=groups)
    lens = lensplug.tiny.audio_llama()
    voice = make_voice(random.Random(3), emotion="happy", place="late", transcript=True)
    inputs = lens.prepare(voice.prompt("sound"), audio=[voice.audio])
    _, cache = lens.run_with_cache(inputs, keep="head_mean")
    audio = inputs.modality.mask("audio")[0]
    pairs = torch.where(audio, audio.cumsum(0) // 3 + len(audio), torch.arange(len(audio)))
    add("tiny audio-LLaMA, sound in threes", cache, lens.model.cfg.n_layers, groups=pairs)
    return table


def main() -> None:
    console = Console()
    console.print(tightness())
    console.print(times())


if __name__ == "__main__":
    main()

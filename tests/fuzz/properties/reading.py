"""What is read off patterns in one layer or by modality: sums, means, entropies, and ranks of maps."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import scipy.stats
import torch
from support.caches import cache_of_patterns
from support.tolerances import rounding

from fuzz.case import Case, holds
from fuzz.properties.mixing import Attention, attention
from lensplug import ModalityMap, analysis
from lensplug.analysis.attention.received_attention import RowScale
from lensplug.positions.groups import Groups

KINDS = ("text", "image", "video", "audio", "generated")


def labelled(case: Case, mask: torch.Tensor) -> tuple[ModalityMap, list[list[str]]]:
    """A map of runs of modalities, and the modality of each position."""
    names = [list(row) for row in [[""] * mask.shape[1]] * len(mask)]
    for example, row in enumerate(mask.tolist()):
        kind = "text"
        for at, real in enumerate(row):
            kind = case.one_of(KINDS) if case.chance(0.3) else kind
            names[example][at] = kind if real else "pad"
    order = ("text", "image", "video", "audio", "generated", "pad")
    labels = torch.tensor([[order.index(name) for name in row] for row in names])
    return ModalityMap(labels, torch.zeros_like(labels).bool(), torch.full_like(labels, -1)), names


@holds(weight=6)
def head_specialization_is_sums_by_modality(case: Case) -> None:
    prompt_batch = attention(case)
    kinds, names = labelled(case, prompt_batch.mask)
    fewest = min(len(prompt_batch.positions(example)) for example in range(len(prompt_batch.mask)))
    query = -case.integer(1, fewest)
    causal = prompt_batch.cache.model.cfg.attention_dir == "causal"
    seen_by = [
        real[: query + len(real) + 1] if causal else real
        for real in map(prompt_batch.positions, range(len(prompt_batch.mask)))
    ]
    left = any(len(seen) > 1 for seen in seen_by)  # beside the sink
    sink = case.one_of(("apart", "counted", "out") if left else ("apart", "counted"))
    options: dict[str, Any] = {"sinks": None if sink == "counted" else "first", "exclude_sink": sink == "out"}
    found = analysis.head_specialization(prompt_batch.cache, kinds, query=query, **options)
    length = prompt_batch.mask.shape[1]
    for example, pattern in enumerate(zip(*prompt_batch.numpys, strict=True)):
        real = prompt_batch.positions(example)
        at = real[query]
        case.same(int(found.query[example]), at, "query")
        seen = [p for p in real if (p <= at or not causal) and not (sink == "out" and p == real[0])]
        classes = {p: "sink" if sink == "apart" and p == real[0] else names[example][p] for p in seen}
        for index, name in enumerate(found.modalities):
            wrapped = [p for p in seen if classes[p] == name]
            allowed = rounding(torch.float64, length)
            for layer, heads in enumerate(pattern):
                whole = heads[:, at, seen].sum(-1, keepdims=True)
                if wrapped and not whole.all():
                    continue  # nothing is left beside the sink
                row = heads[:, at, wrapped] / whole if wrapped else heads[:, at, wrapped]
                mass = row.sum(-1) if wrapped else np.full(len(heads), np.nan)
                case.close(found.mass[example, layer, :, index], mass, allowed, f"mass on {name}")
                chance = len(wrapped) / len(seen) if wrapped else np.nan
                case.close(found.chance[example, layer, index], chance, allowed, f"chance of {name}")
                largest = row.max(-1) if wrapped else np.full(len(heads), np.nan)
                case.close(found.largest[example, layer, :, index], largest, allowed, f"largest weight on {name}")
                with np.errstate(invalid="ignore", divide="ignore"):
                    share = row / mass[:, None]
                    entropy = -np.where(share > 0, share * np.log(share), 0).sum(-1)
                entropy = np.where(mass > 0, entropy, np.nan) if wrapped else mass
                # p log p is at most 104 times the smallest p; log of a mass that is nearly nothing likewise.
                case.close(
                    found.entropy[example, layer, :, index], entropy, _of_entropy(mass, length), f"entropy in {name}"
                )


def _of_entropy(mass: np.ndarray, length: int) -> float:
    """Entropy is a difference of two numbers, of the size of log mass, divided by the mass."""
    known = mass[mass > 0]
    return rounding(torch.float64, length, (1 + np.abs(np.log(known)).max()) * 4 if known.size else 1.0)


@holds(weight=2)
def received_attention_is_the_mean_of_a_column(case: Case) -> None:
    prompt_batch = attention(case)
    layer, heads = _layer_and_heads(case, prompt_batch)
    scale: RowScale = case.one_of(["row-max", "none"])
    sink = case.chance(0.4)
    found = analysis.received_attention(prompt_batch.cache, layer=layer, head=heads, scale=scale, exclude_sink=sink)
    causal = prompt_batch.cache.model.cfg.attention_dir == "causal"
    for example in range(len(prompt_batch.mask)):
        real, wrapped = prompt_batch.positions(example), _one_matrix(prompt_batch, layer, heads, example)
        keys = real[1:] if sink else real
        expected = np.full(prompt_batch.mask.shape[1], np.nan)
        with warnings.catch_warnings(), np.errstate(invalid="ignore"):
            warnings.simplefilter("ignore")
            for key in keys:
                rows = [query for query in real if query >= key or not causal]
                largest = wrapped[rows][:, keys].max(-1) if scale == "row-max" else np.ones(len(rows))
                column = wrapped[rows, key] / np.where(largest > 0, largest, 1)
                expected[key] = column.mean()
        case.close(found.values[example], expected, 4 * prompt_batch.allowed, "received attention")


def _layer_and_heads(case: Case, prompt_batch: Attention) -> tuple[int, Any]:
    layers, heads = len(prompt_batch.patterns), prompt_batch.patterns[0].shape[1]
    some = case.some_of(range(-heads, heads))
    return case.integer(-layers, layers - 1), case.one_of(["mean", some[0], some])


def _one_matrix(prompt_batch: Attention, layer: int, heads: Any, example: int) -> np.ndarray:
    wrapped = prompt_batch.numpys[layer][example]
    return wrapped.mean(0) if heads == "mean" else wrapped[heads] if isinstance(heads, int) else wrapped[heads].mean(0)


@holds(weight=3)
def attention_matrix_sums_over_keys_and_averages_queries(case: Case) -> None:
    prompt_batch = attention(case)
    layer, heads = _layer_and_heads(case, prompt_batch)
    batch, length = prompt_batch.mask.shape
    grouped = case.chance(0.6)
    numbers = [[case.integer(0, 3) for _ in range(length)] for _ in range(batch)]
    groups = [Groups(torch.tensor(row), [f"g{index}" for index in range(4)]) for row in numbers]
    found = analysis.attention_matrix(prompt_batch.cache, layer=layer, head=heads, groups=groups if grouped else None)
    for example in range(batch):
        wrapped, real = _one_matrix(prompt_batch, layer, heads, example), prompt_batch.positions(example)
        if not grouped:
            expected = np.full_like(wrapped, np.nan)
            expected[np.ix_(real, real)] = wrapped[np.ix_(real, real)]
            case.close(found.values[example], expected, prompt_batch.allowed, "attention")
            continue
        names = list(dict.fromkeys(numbers[example][at] for at in real))
        case.same(found.texts[example], tuple(f"g{name}" for name in names), "names of groups")
        members = [[at for at in real if numbers[example][at] == name] for name in names]
        pooled = [[wrapped[np.ix_(queries, keys)].sum(1).mean() for keys in members] for queries in members]
        case.close(
            found.values[example, : len(names), : len(names)], pooled, prompt_batch.allowed, "attention of groups"
        )


@holds(weight=2)
def agreement_is_spearmans_of_scipy(case: Case) -> None:
    length = case.integer(3, 30)
    maps = {f"m{index}": case.normal(length) for index in range(case.integer(2, 4))}
    if case.chance():
        maps["m0"] = (2 * maps["m0"]).round()  # ties
    if case.chance(0.2):
        maps["m1"] = torch.full((length,), 3.0)
    gone = torch.rand(length, generator=case.generator) < 0.1
    maps["m1"] = maps["m1"].masked_fill(gone, torch.nan)
    chosen = torch.rand(length, generator=case.generator) < 0.8
    positions = chosen if case.chance() else None
    left = ~gone & (chosen if positions is not None else True)
    if int(left.sum()) < 3:
        return
    found = analysis.agreement(maps, positions=positions)
    case.same(found.count, int(left.sum()), "positions")
    for i, one in enumerate(maps.values()):
        for j, other in enumerate(maps.values()):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                expected = scipy.stats.spearmanr(one[left].numpy(), other[left].numpy()).statistic
            case.close(found.rank_correlation[i, j], expected, rounding(torch.float32, 2), "rank correlation")


@holds(weight=1)
def attention_from_is_a_row(case: Case) -> None:
    prompt_batch = attention(case)
    fewest = min(len(prompt_batch.positions(example)) for example in range(len(prompt_batch.mask)))
    query = -case.integer(1, fewest)
    found = analysis.attention_from(prompt_batch.cache, queries=query)
    for example in range(len(prompt_batch.mask)):
        at = prompt_batch.positions(example)[query]
        for layer, pattern in enumerate(prompt_batch.patterns):
            case.close(found.values[example, layer, :, 0], pattern[example, :, at], rounding(torch.float32, 1), "row")


@holds(weight=1)
def uniform_attention_is_chance(case: Case) -> None:
    """Whatever the modalities, the padding and the query."""
    prompt_batch = attention(case)
    causal = prompt_batch.cache.model.cfg.attention_dir == "causal"
    allowed = prompt_batch.mask[:, None, :].expand(-1, prompt_batch.mask.shape[1], -1).double()
    allowed = allowed.tril() if causal else allowed
    uniform = (allowed / allowed.sum(-1, keepdim=True).clamp(min=1)).float()
    cache = cache_of_patterns(
        [uniform[:, None].expand(-1, 2, -1, -1)] * 2, attention_dir=prompt_batch.cache.model.cfg.attention_dir
    )
    kinds, _ = labelled(case, prompt_batch.mask)
    cache.attention_mask = prompt_batch.mask
    found = analysis.head_specialization(cache, kinds, query=-1)
    ratio = found.ratio
    case.close(
        ratio[~ratio.isnan()], np.ones(int((~ratio.isnan()).sum())), rounding(torch.float32, 2), "mass over chance"
    )
    preference = found.preference[~ratio.isnan()]
    # The log of what is 1 to rounding, twice.
    case.close(preference, np.zeros(len(preference)), rounding(torch.float32, 4), "preference")

"""Sinks: positions with massive activations, or that get attention from everywhere, whatever they hold.

Method, for each layer and each position that is not padding, by up to three rules:

1. "massive" (Sun et al. 2024, "Massive Activations in Large Language Models", arXiv 2402.17762): the largest magnitude
   in the residual stream at the position is at least `ratio` = 1,000 times the median magnitude of the example's stream
   in this layer, and at least `magnitude` = 100.
2. "dimensions" (Kang et al. 2025, "See What You Are Told: Visual Attention Sink in Large Multimodal Models", arXiv
   2503.03321): sink dimensions are those d in which the stream of the first position has |x_d| / rms(x) > `tau` = 20; a
   position is a sink if it has that in one of them too. The paper takes the dimensions of each language model from
   earlier work; here they are read off the first position of the run, in each layer.
3. "attention": a query q looks at a key k before it if A[q, k] > `times` / n_q, n_q the positions up to q: `times` = 20
   even shares. k is a sink if more than `queries` = half of the queries after it look at it, in more than `heads` =
   half of the heads. Keys that fewer than `min_queries` = 16 queries see are not judged.

A sink of the run (`mask`, `positions`) is one in at least `min_layers` layers. The idea of attention from everywhere is
that of Xiao et al. 2023 (arXiv 2309.17453); Gu et al. 2025 (arXiv 2410.10781) ask for a mean weight of 0.3 in prompts
of 64 tokens, which is 19 even shares. The rule is our own in this form: it is meant to hold from tens of positions to
thousands, where a picture's sinks get one percent of the attention each.

The stream is that which enters a layer: what its attention reads. |x_d| / rms(x) cannot exceed the root of the width,
so that rule 2 finds nothing in models narrower than 400.

When to use it: before a claim that heads attend to the image. Much of that attention can lie on a few patches of
background: `sink_share` says how much, and every analysis that reads attention takes the result as `sinks=`.

When not to use it: a sink is not without use to the model: many norms and attention heads rely on it. What a model does
without them is a question for an intervention. In prompts of fewer than some forty positions rule 3 finds nothing,
since most queries have no twenty even shares to give; queries behind a sliding window count as not looking.

Example:
    sinks = analysis.sinks(cache, inputs)
    sinks.positions, sinks.to_dataframe()
    heads = analysis.head_specialization(cache, inputs, sinks=sinks)
    views.sinks(sinks)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lensplug.analysis.attention.found_sinks import RULES, SinkRule, Sinks
from lensplug.analysis.protocols import needs_with
from lensplug.analysis.provenance import Provenance
from lensplug.cache.activation_cache import ActivationCache, known
from lensplug.cache.reading import n_layers, read, read_kept, read_pattern, refuse_other_map, texts_of
from lensplug.errors import LensplugError
from lensplug.positions.by_modality import Modality, modality_of
from lensplug.reductions import names as hook_names
from lensplug.reductions.received import TIMES, later_queries, measure
from lensplug.validation.arguments import at_least, checked

ROWS_AT_ONCE = 256
HOOKS: dict[SinkRule, str] = {
    "massive": "hook_resid_pre",
    "dimensions": "hook_resid_pre",
    "attention": "attn.hook_pattern",
}
"""What each rule reads of every layer."""


def _reads(**options: Any) -> Callable[[str], bool]:
    rules: Any = options.get("rules", RULES)
    endings = tuple(HOOKS[rule] for rule in RULES if rule in ([rules] if isinstance(rules, str) else rules))
    return lambda name: name.endswith(endings)


@needs_with(_reads)
@checked
def sinks(
    cache: ActivationCache,
    modality: Modality,
    *,
    rules: SinkRule | Sequence[SinkRule] = RULES,
    ratio: float = 1000.0,
    magnitude: float = 100.0,
    tau: float = 20.0,
    times: float = TIMES,
    queries: float = 0.5,
    heads: float = 0.5,
    min_queries: int = 16,
    min_layers: int = 1,
) -> Sinks:
    """Find the sinks of a run.

    Args:
        cache: An ActivationCache with what the rules read of every layer and position (`sinks.needs`):
            `hook_resid_pre`, and `hook_pattern` or what each key receives (`lens.run_with_cache(..., keep="received")`,
            for prompts whose patterns are too large to keep).
        modality: Which position is what: `inputs.modality`, or the inputs.
        rules: "massive", "dimensions", "attention", or several of them; a position is a sink by any.
        ratio: "massive": the largest magnitude at a position over the layer's median magnitude.
        magnitude: "massive": the least that the largest magnitude must be.
        tau: "dimensions": how many root mean squares a sink dimension has.
        times: "attention": how many even shares a query gives to a key that it looks at.
        queries: "attention": more than this fraction of the later queries look at a sink.
        heads: "attention": in more than this fraction of the heads.
        min_queries: "attention": how many later queries it takes to judge a key.
        min_layers: In how many layers a sink of the run is one.

    Raises:
        LensplugError: If the cache lacks what a rule reads, the map does not fit it, or an option is out of its range.
    """
    chosen = tuple(rule for rule in RULES if rule in ([rules] if isinstance(rules, str) else rules))
    if not chosen:
        raise LensplugError(f"rules is empty, expected some of {', '.join(map(repr, RULES))}.")
    _refuse_ranges(ratio=ratio, magnitude=magnitude, tau=tau, times=times, queries=queries, heads=heads)
    at_least(1, min_queries=min_queries, min_layers=min_layers)
    modality, layers = modality_of(modality), n_layers(cache)
    mask = modality.attention_mask.cpu()
    shape = (len(mask), mask.shape[1])
    refuse_other_map(cache, shape, modality)
    nothing = torch.full((shape[0], layers, shape[1]), math.nan)
    measured = {name: nothing.clone() for name in ("activation_ratio", "norm_ratio", "dimension", "received", "heads")}
    found: dict[SinkRule, Tensor] = {rule: torch.zeros(nothing.shape, dtype=torch.bool) for rule in chosen}
    for layer in range(layers):
        if "massive" in chosen or "dimensions" in chosen:
            stream = _stream(cache, layer, shape)
            for example, real in enumerate(mask.bool()):
                numbers = _of_stream(stream[example, real.to(stream.device)].float(), tau)
                for name, values in zip(("activation_ratio", "norm_ratio", "dimension"), numbers[1:], strict=True):
                    measured[name][example, layer, real] = values.cpu()
                if "massive" in chosen:
                    is_massive = (numbers[1] >= ratio) & (numbers[0] >= magnitude)
                    found["massive"][example, layer, real] = is_massive.cpu()
        if "attention" in chosen:
            measured["received"][:, layer], measured["heads"][:, layer] = _looked_at(
                cache, layer, mask, times, queries, min_queries
            )
    if "dimensions" in chosen:
        found["dimensions"] = measured["dimension"] > tau
    if "attention" in chosen:
        found["attention"] = measured["heads"] > heads
    asked = {
        "massive": {"ratio": ratio, "magnitude": magnitude},
        "dimensions": {"tau": tau},
        "attention": {"times": times, "queries": queries, "heads": heads, "min_queries": float(min_queries)},
    }
    thresholds = {name: value for rule in chosen for name, value in asked[rule].items()}
    thresholds["min_layers"] = float(min_layers)
    options = {name: f"{value:g}" for name, value in thresholds.items()}
    convention = f"sinks by {' or '.join(chosen)}; the stream that enters each layer"
    return Sinks(
        found=torch.stack([found[rule] for rule in chosen], dim=-1),
        **measured,
        rules=chosen,
        thresholds=thresholds,
        modalities=tuple(map(tuple, modality.position_names)),
        str_tokens=texts_of(cache, None, shape),
        provenance=Provenance.of(cache, "sinks", convention, options=options),
    )


def _refuse_ranges(**numbers: float) -> None:
    for name, number in numbers.items():
        share = name in ("queries", "heads")
        if not math.isfinite(number) or number < 0 or (share and number >= 1):
            raise LensplugError(
                f"{name} is {number}, expected {'a share from 0 to below 1' if share else '0 or more'}."
            )


def _stream(cache: ActivationCache, layer: int, shape: tuple[int, int]) -> Float[Tensor, "batch pos d_model"]:
    """What enters a layer."""
    name = f"blocks.{layer}.hook_resid_pre"
    before = f"blocks.{layer - 1}.hook_resid_post"
    if name not in cache.cache_dict and before in cache.cache_dict:
        name = before  # the same stream, by its other name
    if name not in cache.cache_dict:
        raise LensplugError(
            f"the rules 'massive' and 'dimensions' read {name!r}, and the cache does not hold it: run with"
            " needs=[analysis.sinks], or look at attention alone, rules='attention'."
        )
    if known(cache, "residual_positions") is not None:
        raise LensplugError(
            "the rules 'massive' and 'dimensions' compare the stream of all positions, and the cache holds some: run"
            " without residual_positions, or look at attention alone, rules='attention'."
        )
    stream = read(cache, name, needed_by="sinks")
    if tuple(stream.shape[:2]) != shape:
        raise LensplugError(f"{name!r} is of {list(stream.shape[:2])} positions, the map of {list(shape)}.")
    return stream


def _of_stream(x: Float[Tensor, "pos d_model"], tau: float) -> tuple[Float[Tensor, " pos"], ...]:
    """Of one example's stream: largest magnitude, that over the median, the norm over the median, sink dimensions."""
    size = x.abs()
    largest, norm = size.amax(dim=-1), x.norm(dim=-1)
    scaled = size / (size.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()
    is_sink_dimension = scaled[0] > tau
    in_dimensions = torch.full_like(largest, math.nan)
    if bool(is_sink_dimension.any()):
        in_dimensions = scaled[:, is_sink_dimension].amax(dim=-1)
    return largest, largest / size.median(), norm / norm.median(), in_dimensions


def _looked_at(
    cache: ActivationCache,
    layer: int,
    mask: Int[Tensor, "batch pos"],
    times: float,
    queries: float,
    min_queries: int,
) -> tuple[Float[Tensor, "batch pos"], Float[Tensor, "batch pos"]]:
    """What each position receives of later ones on average, and in how many heads most of them look at it."""
    causal = getattr(getattr(cache.model, "cfg", None), "attention_dir", "causal") == "causal"
    totals = _totals(cache, layer, mask, times, causal)
    count = later_queries(mask, causal=causal) * mask
    mean, share = (totals / count.clamp(min=1)[:, None, :, None]).unbind(dim=-1)
    in_heads = (share > queries).float().mean(dim=1)
    return mean.mean(dim=1).masked_fill(count == 0, math.nan), in_heads.masked_fill(count < min_queries, math.nan)


def _totals(
    cache: ActivationCache, layer: int, mask: Int[Tensor, "batch pos"], times: float, causal: bool
) -> Float[Tensor, "batch head key 2"]:
    """`reductions.received.measure` of all rows: as it was kept, or of the pattern."""
    kept = read_kept(cache, hook_names.received(layer))
    if kept is not None and known(cache, "received_times") == times:
        return kept.cpu()
    if kept is not None and f"blocks.{layer}.attn.hook_pattern" not in cache.cache_dict:
        raise LensplugError(
            f"the cache holds what keys receive for times={known(cache, 'received_times'):g}, and {times:g} is asked"
            f" for: run with keep=[lensplug.reductions.Received(times={times:g})]."
        )
    if f"blocks.{layer}.attn.hook_pattern" not in cache.cache_dict or known(cache, "query_positions") is not None:
        raise LensplugError(
            "the rule 'attention' reads the patterns of all queries, and the cache does not hold them: run with"
            " keep='received', or with needs=[analysis.sinks] and without query_positions; or look at the stream alone,"
            " rules=['massive', 'dimensions']."
        )
    pattern = read_pattern(cache, layer, needed_by="sinks")
    totals = pattern.new_zeros(*pattern.shape[:2], pattern.shape[3], 2)
    for start in range(0, pattern.shape[2], ROWS_AT_ONCE):
        totals += measure(pattern[:, :, start : start + ROWS_AT_ONCE], mask, start, times, causal=causal)
    return totals.cpu()

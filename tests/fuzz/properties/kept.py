"""What is kept of a run in place of whole patterns and streams is what the whole ones would give."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fuzz import by_hand
from fuzz.case import Case, holds
from fuzz.properties.core import drawn
from fuzz.properties.mixing import Attention, heads_of, mixing_options, mixtures
from fuzz.wrapped import Prompts, reference
from lensplug.positions.indices import resolve_positions
from lensplug.reductions import HeadMean, RolloutProduct
from lensplug.reductions.mixing import Mixing


def asked(case: Case, prompt_batch: Prompts, most: int = 4) -> tuple[Any, list[list[int]]]:
    """Positions as a user says them, the same for all or for each example, and what they mean."""
    wrapped = [prompt_batch.positions(example) for example in range(len(prompt_batch.mask))]
    count = case.integer(1, most)
    if case.chance(0.4):
        each = [[case.one_of([*row, *range(-len(row), 0)]) for _ in range(count)] for row in wrapped]
        return torch.tensor(each), [
            [by_hand.position(at, row) for at in some] for some, row in zip(each, wrapped, strict=True)
        ]
    both = sorted(set(wrapped[0]).intersection(*wrapped))
    same = [case.one_of([*both, *range(-min(map(len, wrapped)), 0)]) for _ in range(count)]
    meant = [[by_hand.position(at, row) for at in same] for row in wrapped]
    if count == 1 and case.chance():
        return same[0], meant
    return case.one_of([same, tuple(same), torch.tensor(same)]), meant


@holds(weight=6)
def positions_count_from_the_last_that_is_not_padding(case: Case) -> None:
    batch, length = case.integer(1, 4), case.integer(1, 30)
    mask = torch.ones(batch, length, dtype=torch.long)
    for row in mask:
        first = case.integer(0, length - 1)
        last = case.integer(first, length - 1)
        row[:first], row[last + 1 :] = 0, 0
    prompt_batch = Prompts(mask, mask)
    said, meant = asked(case, prompt_batch)
    case.same(resolve_positions(said, mask), np.array(meant), "positions")


@holds(weight=4)
def rows_of_a_run_are_those_of_the_whole_one(case: Case) -> None:
    wrapped, lens, prompt_batch, inputs = drawn(case)
    queries, rows = asked(case, prompt_batch)
    residuals, streams = asked(case, prompt_batch)
    places, read = asked(case, prompt_batch)
    logits, cache = lens.run_with_cache(
        inputs, query_positions=queries, residual_positions=residuals, logit_positions=places
    )
    expected, length = reference(wrapped, prompt_batch), prompt_batch.mask.shape[1]
    seen = prompt_batch.mask[:, None, None].bool()

    def gathered(whole: Tensor, at: list[list[int]], axis: int) -> Tensor:
        return torch.stack(
            [one.index_select(axis - 1, torch.tensor(wrapped)) for one, wrapped in zip(whole, at, strict=True)]
        )

    case.same(cache.query_positions, np.array(rows), "query_positions")
    wanted = gathered(expected.logits, read, 1)
    case.close(logits, wanted, wrapped.allowed(length, wanted), "logits at positions")
    for layer, pattern in enumerate(expected.attentions):
        found, wanted = cache["pattern", layer], gathered(pattern, rows, 2)
        case.close(found * seen, wanted * seen, wrapped.allowed(length, 1.0), f"rows of pattern {layer}")
        wanted = gathered(expected.hidden_states[layer], streams, 1)
        case.close(cache["resid_pre", layer], wanted, wrapped.allowed(length, wanted), f"rows of resid_pre {layer}")


@holds(weight=4)
def reductions_are_those_of_the_whole_patterns(case: Case) -> None:
    wrapped, lens, prompt_batch, inputs = drawn(case)
    expected, length = reference(wrapped, prompt_batch), prompt_batch.mask.shape[1]
    real = prompt_batch.mask[:, None, :, None] * prompt_batch.mask[:, None, None, :]
    patterns = [pattern * real for pattern in expected.attentions]  # padding looks at nothing
    whole = Attention(patterns, prompt_batch.mask, None)
    options = mixing_options(case, whole) | {"discard": 0.0}
    options.pop("layers", None)
    heads = options.get("heads")
    mixing = Mixing(**{**options, "heads": None if heads is None else tuple(heads)})
    layers = case.some_of(range(len(patterns)))
    _, cache = lens.run_with_cache(inputs, names_filter=[], keep=[RolloutProduct(mixing), HeadMean(layers=layers)])
    at = prompt_batch.real.numpy()
    # Rows are scaled up to sum 1: by so much grows what they are off.
    allowed = wrapped.allowed(length, 1.0) / least_left(whole, options) + whole.allowed
    for example in range(len(prompt_batch.mask)):
        product = by_hand.product(mixtures(whole, example, options))
        case.close(cache.cache_dict["rollout"][example][at[example]], product[at[example]], allowed, "rollout")
    case.same(
        sorted(name for name in cache if name.endswith("head_mean")),
        sorted(f"blocks.{layer}.attn.head_mean" for layer in layers),
        "layers",
    )
    for layer in layers:
        found, mean = cache.cache_dict[f"blocks.{layer}.attn.head_mean"], patterns[layer].mean(1)
        case.close(found[at], mean[at], wrapped.allowed(length, 1.0), f"mean of heads, layer {layer}")


def least_left(whole: Attention, options: dict[str, Any]) -> float:
    """The smallest sum, before it is scaled to 1, of a row of fused attention of which anything is left."""
    least = 1.0
    for example in range(len(whole.mask)):
        for layer, pattern in enumerate(whole.numpys):
            fused = by_hand.fused(pattern[example], options["head_fusion"], heads_of(options, layer))
            if options["exclude_first"]:
                fused = np.delete(fused, whole.positions(example)[0], axis=1)
            sums = fused.sum(-1)
            least = min([least, *sums[sums > 0].tolist()])
    return least


@holds(weight=3)
def kept_masses_are_sums_over_each_modality(case: Case) -> None:
    wrapped, lens, prompt_batch, inputs = drawn(case)
    _, cache = lens.run_with_cache(inputs, names_filter=[], keep="modality_mass")
    expected = reference(wrapped, prompt_batch)
    for example in range(len(prompt_batch.mask)):
        first = prompt_batch.positions(example)[0]
        for layer, pattern in enumerate(expected.attentions):
            kept = cache.cache_dict[f"blocks.{layer}.attn.modality_mass"][example]
            for query in prompt_batch.positions(example):
                row = pattern[example, :, query].double().numpy() * prompt_batch.mask[example].numpy()
                rest = np.delete(row, first, axis=-1)
                logs = np.where(rest > 0, rest * np.log(np.where(rest > 0, rest, 1)), 0)
                found = kept[:, query].double().numpy()
                allowed = wrapped.allowed(prompt_batch.mask.shape[1], 1.0)
                case.close(found[:, 0, 0], row[:, first], allowed, "mass on the first position")
                case.close(found[:, 1:, 0].sum(-1), rest.sum(-1), allowed, "mass on text")
                case.close(
                    found[:, 1:, 2].max(-1, initial=0), rest.max(-1, initial=0), allowed, "largest weight on text"
                )
                # d(p log p) = (1 + log p) dp, with p at least 1e-38 in single precision.
                case.close(found[:, 1:, 1].sum(-1), logs.sum(-1), 90 * allowed, "sum of p log p on text")
                case.same(found.shape[1] <= 3, True, "only the parts that occur: first, special, text")

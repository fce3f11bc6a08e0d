"""Rollout, flow and gradient rollout of random attention, against the recursions and networkx."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import networkx as nx
import numpy as np
import torch
from support.caches import cache_of_patterns
from support.tolerances import rounding

from fuzz import by_hand
from fuzz.case import Case, holds
from lensplug import analysis
from lensplug.analysis.attention.gradient_rollout import Contributions


@dataclass(frozen=True)
class Attention:
    """Random patterns of a few layers, padded as attention in a model is."""

    patterns: list[torch.Tensor]
    mask: torch.Tensor
    cache: Any

    @property
    def numpys(self) -> list[np.ndarray]:
        return [pattern.double().numpy() for pattern in self.patterns]

    def positions(self, example: int) -> list[int]:
        return self.mask[example].nonzero().flatten().tolist()

    @property
    def allowed(self) -> float:
        """Of a product of all layers, whose rows sum to 1: fusing, scaling and multiplying in each."""
        heads, length = self.patterns[0].shape[1], self.mask.shape[1]
        return rounding(torch.float32, len(self.patterns) * (2 * length + heads + 4))


def attention(case: Case, *, layers: int = 4, heads: int = 4, length: int = 9, batch: int = 2) -> Attention:
    """Causal or not, padded at either side or not, flat to sharp."""
    batch, layers, heads = case.integer(1, batch), case.integer(1, layers), case.integer(1, heads)
    length, sharp, causal = case.integer(1, length), case.real(0, 6), case.chance(0.7)
    mask = torch.ones(batch, length, dtype=torch.long)
    for row in mask:
        gone, side = case.integer(0, length - 1), case.one_of(["none", "left", "right"])
        row[slice(0, gone) if side == "left" else slice(length - gone, length) if side == "right" else slice(0)] = 0
    seen = mask[:, None, :].expand(batch, length, length).bool()
    seen = seen & torch.ones(length, length).tril().bool() if causal else seen
    patterns = []
    for _ in range(layers):
        scores = sharp * case.normal(batch, heads, length, length)
        hidden = ~seen[:, None]
        pattern = scores.masked_fill(hidden, -math.inf).softmax(dim=-1).nan_to_num(0)
        patterns.append(pattern)
    direction = "causal" if causal else "bidirectional"
    cache = cache_of_patterns(patterns, attention_dir=direction)
    cache.attention_mask = mask
    return Attention(patterns, mask, cache)


def mixing_options(case: Case, given: Attention) -> dict[str, Any]:
    """Those that rollout and flow share."""
    layers, heads = len(given.patterns), given.patterns[0].shape[1]
    options: dict[str, Any] = {
        "residual": case.one_of([0.5, 0.0, 1.0, case.real(0, 1)]),
        "head_fusion": case.one_of(["mean", "mean", "max", "min"]),
        "discard": case.one_of([0.0, 0.0, case.real(0, 0.95)]),
        "exclude_first": case.chance(),
    }
    if case.chance(0.3):
        pairs = [(layer, head) for layer in range(layers) for head in range(heads)]
        options["heads"] = case.some_of(list(range(heads)) if case.chance() else pairs)
    if case.chance(0.3):
        first = case.integer(0, layers - 1)
        options["layers"] = (first, case.integer(first, layers - 1))
    return options


def heads_of(options: dict[str, Any], layer: int) -> list[int] | None:
    """Those that were chosen of a layer; None: all."""
    if options.get("heads") is None:
        return None
    pairs = [one if isinstance(one, tuple) else (layer, one) for one in options["heads"]]
    return [head for own, head in pairs if own == layer]


def mixtures(given: Attention, example: int, options: dict[str, Any]) -> list[np.ndarray]:
    """Of the chosen layers, first to last."""
    first, last = options.get("layers", (0, len(given.patterns) - 1))
    made = []
    for layer in range(first, last + 1):
        fused = by_hand.fused(given.numpys[layer][example], options["head_fusion"], heads_of(options, layer))
        exclude = given.positions(example)[0] if options["exclude_first"] else None
        made.append(by_hand.mixture(fused, residual=options["residual"], discard=options["discard"], exclude=exclude))
    return made


def rows_of(case: Case, given: Attention) -> tuple[Any, list[list[int]]]:
    """Output positions as a user says them, and what they mean."""
    batch, length = given.mask.shape
    if case.chance(0.3):
        return None, [list(range(length))] * batch
    own = [given.positions(example) for example in range(batch)]
    fewest = min(map(len, own))
    count = case.integer(1, 3)
    if case.chance(0.3):
        said = [[case.one_of([*row, *range(-len(row), 0)]) for _ in range(count)] for row in own]
        asked: Any = torch.tensor(said)
    else:
        both = sorted(set(own[0]).intersection(*own))
        same = [case.one_of([*both, *range(-fewest, 0)]) for _ in range(count)]
        asked, said = (same[0], [same[:1]] * batch) if case.chance(0.3) else (same, [same] * batch)
    return asked, [[by_hand.position(one, row) for one in each] for each, row in zip(said, own, strict=True)]


@holds(weight=8)
def rollout_is_the_product(case: Case) -> None:
    given = attention(case)
    options = mixing_options(case, given)
    asked, meant = rows_of(case, given)
    per_layer = case.chance(0.3)
    try:
        expected = [mixtures(given, example, options) for example in range(len(given.mask))]
    except by_hand.Undecided:
        options["discard"] = 0.0
        expected = [mixtures(given, example, options) for example in range(len(given.mask))]
    found = analysis.attention_rollout(given.cache, rows=asked, per_layer=per_layer, **options)
    case.same(found.rows, np.array(meant), "rows")
    for example, own in enumerate(expected):
        case.close(found.values[example], by_hand.product(own)[meant[example]], given.allowed, "rollout")
        if per_layer:
            for index in range(len(own)):
                assert found.by_layer is not None
                up_to = by_hand.product(own[: index + 1])[meant[example]]
                case.close(found.by_layer[example, index], up_to, given.allowed, f"rollout up to entry {index}")


@holds(weight=3)
def lift_is_over_the_rollout_of_even_attention(case: Case) -> None:
    given = attention(case)
    options = mixing_options(case, given) | {"discard": 0.0}
    asked, meant = rows_of(case, given)
    found = analysis.attention_rollout(given.cache, rows=asked, **options)
    causal = given.cache.model.cfg.attention_dir == "causal"
    chosen, last = options.get("layers", (0, len(given.patterns) - 1))
    for example, mask in enumerate(given.mask.numpy().astype(bool)):
        seen = np.broadcast_to(mask, (len(mask), len(mask)))
        seen = np.tril(seen) if causal else seen.copy()
        first = given.positions(example)[0]
        apart = first if causal or options["exclude_first"] else None
        own = []
        for layer in range(chosen, last + 1):
            heads = heads_of(options, layer)
            fused = by_hand.fused(given.numpys[layer][example], options["head_fusion"], heads)
            exclude = first if options["exclude_first"] else None
            own.append(
                by_hand.even_mixture(
                    fused, seen, residual=options["residual"], discard=0.0, exclude=exclude, apart=apart
                )
            )
        real = [index for index, row in enumerate(meant[example]) if mask[row]]
        expected = by_hand.product(own)[np.array(meant[example])[real]]
        # What a row has beside the first position is a sum of small weights in single precision.
        case.close(found.uniform[example][real], expected, given.allowed, "uniform")
        shown = mask.copy()
        if apart is not None:
            shown[apart] = False
        enough = (expected > 1e-3) & shown
        lifted = found.lift[example][real].double().numpy()
        rollout = by_hand.product(mixtures(given, example, options))[np.array(meant[example])[real]]
        allowed = 2e3 * given.allowed * max(1.0, float((rollout[enough] / expected[enough]).max(initial=0.0)))
        case.close(lifted[enough], rollout[enough] / expected[enough], allowed, "lift")
        case.same(bool(np.isnan(lifted[:, ~shown]).all()), True, "no lift of the first position and of padding")


def maximum_flows(own: list[np.ndarray], source: int) -> np.ndarray:
    """Into each position of the input alone, from one of the output."""
    length, graph = len(own[0]), nx.DiGraph()
    for level, matrix in enumerate(reversed(own)):
        for query in range(length):
            for key in np.flatnonzero(matrix[query]):
                graph.add_edge((level, query), (level + 1, int(key)), capacity=float(matrix[query, key]))
    flows = np.zeros(length)
    for sink in range(length):
        if (len(own), sink) in graph and (0, source) in graph:
            flows[sink] = nx.maximum_flow_value(graph, (0, source), (len(own), sink))
    return flows


@holds(weight=3)
def flow_is_the_maximum_flow_of_networkx(case: Case) -> None:
    given = attention(case, layers=3, length=6)
    options = mixing_options(case, given)
    positions = [given.positions(example) for example in range(len(given.mask))]
    row = -case.integer(1, min(map(len, positions)))
    try:
        own = [mixtures(given, example, options) for example in range(len(given.mask))]
    except by_hand.Undecided:
        options["discard"] = 0.0
        own = [mixtures(given, example, options) for example in range(len(given.mask))]
    found = analysis.attention_flow(given.cache, row=row, **options)
    for example, (mixed, real) in enumerate(zip(own, positions, strict=True)):
        expected = maximum_flows(mixed, by_hand.position(row, real))
        expected[[at for at in range(given.mask.shape[1]) if at not in real]] = np.nan
        case.close(found.values[example], expected, given.allowed, "flow")
        share = expected / np.nansum(expected)
        case.close(found.normalized[example], share, 2 * given.allowed / np.nansum(expected), "normalized flow")


@holds(weight=1)
def flow_into_groups_is_that_of_a_merged_graph(case: Case) -> None:
    given = attention(case, layers=2, length=6, batch=1)
    real, length = given.positions(0), given.mask.shape[1]
    numbers = torch.tensor([case.integer(0, 2) for _ in range(length)])
    row = by_hand.position(-1, real)
    found = analysis.attention_flow(given.cache, groups=numbers, exclude_first=False)
    of = {at: (row if at == row else -1 - int(numbers[at])) for at in real}
    names = list(dict.fromkeys(of[at] for at in real))
    member = np.array([[of.get(at) == name for name in names] for at in range(length)], dtype=float)
    own = [by_hand.mixture(pattern[0].mean(0)) for pattern in given.numpys]
    merged = [member.T @ matrix @ member for matrix in own]
    expected = maximum_flows(merged, names.index(row))
    case.same(found.groups[0], [names.index(of[at]) if at in of else -1 for at in range(length)], "groups")
    case.close(found.values[0], expected, len(real) * given.allowed, "flow into groups")


@holds(weight=5)
def gradient_rollout_is_the_rule(case: Case) -> None:
    given = attention(case)
    gradients = [case.real(0.01, 2) * case.normal(*pattern.shape) for pattern in given.patterns]
    if case.chance(0.2):
        gradients[0][:] = 0
    held = {f"blocks.{layer}.attn.hook_pattern": gradient for layer, gradient in enumerate(gradients)}
    contributions: Contributions = case.one_of(["positive", "negative", "signed"])
    normalize = contributions != "signed" and case.chance()
    asked, meant = rows_of(case, given)
    first = case.one_of([None, True, False])  # None: left out where attention is causal
    found = analysis.gradient_rollout(
        given.cache, held, rows=asked, contributions=contributions, normalize=normalize, exclude_first=first
    )
    left_out = given.cache.model.cfg.attention_dir == "causal" if first is None else first
    for example, mask in enumerate(given.mask.numpy()):
        both = np.outer(mask, mask)
        both[:, given.positions(example)[0]] *= not left_out
        pairs = [
            (one[example], other[example].double().numpy()) for one, other in zip(given.numpys, gradients, strict=True)
        ]
        own = [both * by_hand.cams(pattern, gradient, contributions) for pattern, gradient in pairs]
        magnitudes = [both * by_hand.cams(pattern, np.abs(gradient), "positive") for pattern, gradient in pairs]
        expected = by_hand.relevance(own, normalize)[meant[example]]
        largest = 1.0 if normalize else float(by_hand.relevance(magnitudes, False).max())
        case.close(found.values[example], expected, given.allowed * largest, "R")
        identity = np.eye(len(mask))[meant[example]]
        case.close(found.relevance[example], expected - identity, given.allowed * largest, "R - I")

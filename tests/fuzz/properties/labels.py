"""Which position is what: spans, media, groups; read off the tokens one by one."""

from __future__ import annotations

from itertools import groupby

import numpy as np
import torch
from support.tolerances import rounding

from fuzz.case import Case, holds
from fuzz.properties.reading import labelled
from lensplug import ModalityMap
from lensplug.positions.groups import Groups, group_positions

IDS = {"image": 90, "video": 91, "audio": 92}
SPECIAL = (0, 1, 2)


def _prompt(case: Case) -> tuple[list[int], list[tuple[str, int]]]:
    """Words and media, which may touch; and the medium and number of each position ("text", -1)."""
    tokens: list[int] = []
    what: list[tuple[str, int]] = []
    numbers = dict.fromkeys(IDS, 0)
    for _ in range(case.integer(1, 6)):
        if case.chance():
            words = [case.integer(0, 80) for _ in range(case.integer(1, 4))]
            tokens += words
            what += [("text", -1)] * len(words)
        else:
            kind, size = case.one_of(list(IDS)), case.integer(1, 5)
            tokens += [IDS[kind]] * size
            what += [(kind, numbers[kind])] * size
            numbers[kind] += 1
    return tokens, what


@holds(weight=4)
def a_map_says_what_each_position_is(case: Case) -> None:
    made = [_prompt(case) for _ in range(case.integer(1, 3))]
    length = max(len(tokens) for tokens, _ in made)
    left = case.chance()
    rows, mask, what = [], [], []
    for tokens, own in made:
        rest = length - len(tokens)
        padding = [case.one_of([0, IDS["image"]])] * rest  # padding may look like a placeholder
        rows.append(padding + tokens if left else tokens + padding)
        mask.append([0] * rest + [1] * len(tokens) if left else [1] * len(tokens) + [0] * rest)
        none = [("pad", -1)] * rest
        what.append(none + own if left else own + none)
    lengths = {kind: [_sizes(own, kind) for own in what] for kind in IDS}
    found = ModalityMap.build(
        torch.tensor(rows), torch.tensor(mask), placeholder_ids=IDS, special_ids=SPECIAL, media_lengths=lengths
    )
    answer = torch.rand(len(made), case.integer(0, 3), generator=case.generator) < 0.6
    found = found.appended(answer)
    what = [
        own + [("generated" if new else "pad", -1) for new in row]
        for own, row in zip(what, answer.tolist(), strict=True)
    ]
    case.same(found.position_names, [[kind for kind, _ in own] for own in what], "modalities")
    case.same(found.media_index, [[number for _, number in own] for own in what], "media")
    case.same(found.attention_mask, [[int(kind != "pad") for kind, _ in own] for own in what], "padding")
    special = [
        [kind == "text" and token in SPECIAL for (kind, _), token in zip(own, [*row, 99, 99, 99], strict=False)]
        for own, row in zip(what, rows, strict=True)
    ]
    case.same(found.special, np.array(special), "special tokens")
    order = ("text", "image", "video", "audio", "generated", "pad")
    there = {kind for own in what for kind, _ in own}
    case.same(found.names, tuple(name for name in order if name in there), "names")
    expected = []
    for example, own in enumerate(what):
        at = 0
        for (kind, number), run in groupby(own):
            size = len(list(run))
            expected.append((example, kind, at, at + size, None if number < 0 else number))
            at += size
    case.same([tuple(vars(span).values()) for span in found.spans], expected, "spans")
    for example, own in enumerate(what):
        for kind, number in set(own) - {(name, -1) for name in order}:
            positions = [at for at, one in enumerate(own) if one == (kind, number)]
            case.same(getattr(found, f"{kind}_positions")(number, example), positions, f"positions of {kind}")


def _sizes(own: list[tuple[str, int]], kind: str) -> list[int]:
    numbers = [number for name, number in own if name == kind]
    return [numbers.count(number) for number in range(max(numbers, default=-1) + 1)]


@holds(weight=2)
def groups_pool_sums_of_keys_and_means_of_queries(case: Case) -> None:
    mask = torch.ones(1, case.integer(1, 14), dtype=torch.long)
    mask[0, : case.integer(0, mask.shape[1] - 1)] = 0
    kinds, names = labelled(case, mask)
    run = case.integer(1, 3)
    groups = group_positions(kinds, text_run=run)
    expected: list[int] = []
    count = 0
    for kind, members in groupby(names[0]):
        size = len(list(members))
        each = run if kind in ("text", "generated") else size
        expected += [-1] * size if kind == "pad" else [count + at // each for at in range(size)]
        count += 0 if kind == "pad" else -(-size // each)
    case.same(groups.of_position, expected, "groups")
    pattern = torch.rand(2, mask.shape[1], mask.shape[1], generator=case.generator)
    positions = [[at for at, own in enumerate(expected) if own == group] for group in range(count)]
    own = pattern.double().numpy()
    pooled = [[own[:, queries][:, :, keys].sum(-1).mean(-1) for keys in positions] for queries in positions]
    allowed = rounding(torch.float32, 2 * mask.shape[1], mask.shape[1])
    case.close(groups.pool(pattern).permute(1, 2, 0), pooled, allowed, "pooled")
    kept = torch.rand(mask.shape[1], generator=case.generator) < 0.7
    left = [own if keep else -1 for own, keep in zip(expected, kept.tolist(), strict=True)]
    order = list(dict.fromkeys(own for own in left if own >= 0))
    fewer = Groups(torch.tensor(expected), groups.names).only(kept)
    case.same(fewer.of_position, [order.index(own) if own >= 0 else -1 for own in left], "groups of some positions")
    case.same(fewer.names, [groups.names[own] for own in order], "names of groups")

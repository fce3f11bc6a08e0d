"""The numbers of rows of logits, against torch's own in double precision."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lensplug.analysis.logits.logit_statistics import BLOCK, largest, statistics, tiles

WIDTHS = (2, 5, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK, 6 * BLOCK + 7, 20_003)
"""Vocabularies of fewer columns than k, of fewer blocks than k, of whole blocks, and with columns to spare."""


def logits_of(kind: str, *shape: int) -> Tensor:
    logits = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    return {
        "usual": lambda: 5 * logits,
        "large": lambda: 1e4 * logits,
        "far from 0": lambda: logits - 1e4,
        "ties": lambda: (2 * logits).round(),
        "all equal": lambda: logits * 0 + 3,
        "float16": lambda: (5 * logits).half(),
        "bfloat16": lambda: (5 * logits).bfloat16(),
    }[kind]()


KINDS = ("usual", "large", "far from 0", "ties", "all equal", "float16", "bfloat16")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", WIDTHS)
def test_the_numbers_are_those_of_torch(kind, width):
    logits = logits_of(kind, 3, 4, width)  # position entry d_vocab
    exact = logits.double()
    log_p = exact.log_softmax(dim=-1)
    p_last = log_p[:, -1].exp()
    target = torch.tensor([0, width - 1, width // 2])
    of_target = exact.gather(-1, target[:, None, None].expand(3, 4, 1))
    k = min(5, width)
    for few in (1, 3, 8, 100):
        found = statistics(logits.clone(), p_last.float(), target, top_k=k, few=few)
        tokens = found["top_tokens"]
        assert torch.equal(exact.gather(-1, tokens), exact.topk(k).values)
        assert all(len(set(row)) == k for row in tokens.flatten(0, 1).tolist())
        assert torch.equal(found["rank"], 1 + (exact > of_target).sum(dim=-1))
        for name, expected in {
            "top_probabilities": log_p.gather(-1, tokens).exp(),
            "log_probability": log_p.gather(-1, target[:, None, None].expand(3, 4, 1))[..., 0],
            "entropy": torch.special.entr(log_p.exp()).sum(dim=-1),
            "cross": -(p_last[:, None] * log_p).sum(dim=-1),
        }.items():
            torch.testing.assert_close(found[name], expected.float(), atol=2e-6, rtol=2e-6)


def test_a_real_vocabulary_is_summed_to_the_precision_of_fp32():
    logits = logits_of("usual", 2, 3, 152_000)
    log_p = logits.double().log_softmax(dim=-1)
    target = torch.tensor([7, 151_999])
    found = statistics(logits.clone(), log_p[:, -1].exp().float(), target, top_k=5, few=2)
    for name, expected in {
        "log_probability": log_p.gather(-1, target[:, None, None].expand(2, 3, 1))[..., 0],
        "entropy": torch.special.entr(log_p.exp()).sum(dim=-1),
        "cross": -(log_p[:, -1:].exp() * log_p).sum(dim=-1),
    }.items():
        torch.testing.assert_close(found[name], expected.float(), atol=5e-7, rtol=5e-7)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_logit_of_minus_infinity_adds_nothing(width):
    logits = logits_of("usual", 1, 3, width + 1)
    logits[..., width // 2] = -math.inf
    without = logits[..., torch.arange(width + 1) != width // 2].clone()
    target = torch.tensor([width])
    found = statistics(logits, logits[:, -1].softmax(dim=-1), target, top_k=1, few=2)
    expected = statistics(without, without[:, -1].softmax(dim=-1), target - 1, top_k=1, few=2)
    for name in ("top_probabilities", "rank", "log_probability", "entropy", "cross"):
        torch.testing.assert_close(found[name].float(), expected[name].float(), atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", WIDTHS)
def test_the_largest_are_those_of_topk(kind, width):
    rows = logits_of(kind, 7, width)
    rows[0] = rows[0].sort().values  # the largest in the columns after the last whole block
    for k in {1, 2, min(5, width), width // 2, width if width < 1000 else 300}:
        values, columns = largest(rows, k)
        assert torch.equal(values, rows.topk(k).values) and torch.equal(rows.gather(-1, columns), values)
        assert all(len(set(row)) == k for row in columns.tolist())


def test_tiles_cover_a_table_once_with_no_more_fields_than_allowed():
    for rows, columns, size in [(5, 3, 1), (5, 3, 2), (5, 3, 3), (5, 3, 7), (5, 3, 100), (1, 9, 4)]:
        table = torch.zeros(rows, columns)
        for tile in tiles(rows, columns, size):
            assert 1 <= table[tile].numel() <= size
            table[tile] += 1
        assert bool((table == 1).all())

"""Rank correlations, against ranks correlated by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from support.caches import cache_of_patterns, causal_patterns

from lensplug import LensplugError, analysis, views


def by_hand(one, other):
    """Pearson's correlation of mean ranks."""

    def ranks(values):
        return np.array([(values < v).sum() + ((values == v).sum() + 1) / 2 for v in values])

    return float(np.corrcoef(ranks(one), ranks(other))[0, 1])


@pytest.fixture
def maps():
    generator = torch.Generator().manual_seed(0)
    one = torch.rand(40, generator=generator)
    return {"one": one, "monotonic": one.exp(), "other": (5 * torch.rand(40, generator=generator)).round(), "up": -one}


def test_equals_ranks_correlated_by_hand(maps):
    result = analysis.agreement(maps)
    for i, one in enumerate(maps.values()):
        for j, other in enumerate(maps.values()):
            assert float(result.rank_correlation[i, j]) == pytest.approx(by_hand(one.numpy(), other.numpy()), abs=1e-6)
    assert float(result.rank_correlation[0, 1]) == pytest.approx(1) and result.count == 40
    assert float(result.rank_correlation[0, 3]) == pytest.approx(-1)
    assert len(result.to_dataframe()) == 6 and views.draw(result).layout.title.text


def test_chosen_positions_and_positions_without_a_value(maps):
    mask = torch.arange(40) % 2 == 0
    holes = {**maps, "one": maps["one"].clone()}
    holes["one"][:10] = torch.nan
    result = analysis.agreement(holes, positions=mask)
    expected = by_hand(maps["one"][mask][5:].numpy(), maps["other"][mask][5:].numpy())
    assert float(result.rank_correlation[0, 2]) == pytest.approx(expected, abs=1e-6) and result.count == 15


def test_results_with_one_map():
    cache = cache_of_patterns(causal_patterns(layers=3, batch=2, heads=2, length=9))
    rollout, received = analysis.attention_rollout(cache, rows=-1), analysis.received_attention(cache)
    result = analysis.agreement({"rollout": rollout, "received": received}, example=1)
    expected = by_hand(rollout.lift[1, 0, 1:].numpy(), received.values[1, 1:].numpy())
    assert float(result.rank_correlation[0, 1]) == pytest.approx(expected, abs=1e-6)
    with pytest.raises(LensplugError, match=r"rollout is a Rollout with 2 maps \('into position 0', 'into position 8'"):
        analysis.agreement({"rollout": analysis.attention_rollout(cache, rows=[0, -1]), "received": received})


def test_what_cannot_be_compared_is_refused(maps):
    cases: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        ({"one": maps["one"]}, {}, "at least two methods"),
        ({**maps, "short": maps["one"][:5]}, {}, "different numbers of positions"),
        (maps, {"positions": torch.arange(40) < 2}, "2 positions are left"),
        (maps, {"positions": torch.arange(9) < 2}, r"positions has the shape \[9\]"),
    ]
    for given, options, message in cases:
        with pytest.raises(LensplugError, match=message):
            analysis.agreement(given, **options)

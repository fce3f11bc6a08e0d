"""Figures of patching: names of thousands of positions, cells beyond the scale, and how far estimates agree."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.models import QUESTION, scene

import lensplug
from lensplug import analysis, views
from lensplug.views.figures.heatmap import numbered


@pytest.fixture(scope="module")
def found():
    """Attribution patching of the positions of one prompt, three places of it verified."""
    lens = lensplug.tiny.llava_onevision()
    clean, corrupt = (lens.prepare(QUESTION, images=[scene(48, 48, seed)]) for seed in (3, 5))
    return analysis.attribution_patching(lens, clean, corrupt, ("Red", "Blue"), layers=(0, 1), verify=3, progress=False)


def title_of(result):
    return views.activation_patching(result).layout.title.text.replace("<br>", " ").replace("</sub> <sub>", " ")


def test_names_of_positions_are_made_once(found, monkeypatch):
    """Not once for each position: of 2,118 that took half a minute."""
    calls = []

    def counted(*arguments):
        calls.append(arguments)
        return numbered(*arguments)

    monkeypatch.setattr("lensplug.views.figures.activation_patching.numbered", counted)
    fig = views.activation_patching(found)
    assert len(calls) == 1 and len(set(fig.data[0].x)) == found.groups.shape[1]


def test_the_title_says_how_far_estimates_agree(found):
    agreement = float(found.rank_correlation[0])
    assert f"rank correlation with exact patching at the 3 strongest places {agreement:.2f}" in title_of(found)
    none = torch.full_like(found.verified, torch.nan)
    assert "rank correlation" not in title_of(replace(found, verified=none))


def test_the_title_counts_what_is_beyond_the_colors(found):
    effect = float(found.clean[0] - found.corrupt[0])
    attribution = torch.zeros_like(found.attribution)
    attribution[0, 0, :3, 0] = effect * torch.tensor([1.0, 1.5, -2.0])
    assert f"2 of {attribution.numel()} cells are beyond ±100%" in title_of(replace(found, attribution=attribution))
    attribution[0, 0, :3, 0] = effect
    assert "beyond" not in title_of(replace(found, attribution=attribution))

"""Pictures do not mislead: what they open on, their colours, and what one row's colours say beside another's."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from support.models import scene
from support.painted import painted

import lensplug
from lensplug import LensplugError, analysis, views
from lensplug.analysis.provenance import Provenance
from lensplug.views.style import DIVERGING, HEAT, HEAT_SIGNED


def patched_of(seen, values):
    """A result of activation patching with one group a position, recovering these values `[layer pos]`."""
    layers, length = values.shape
    return analysis.ActivationPatching(
        values=values[None, :, :, None], clean=torch.ones(1), corrupt=torch.zeros(1), rounding=torch.zeros(1),
        groups=torch.arange(length)[None], labels=(tuple(map(str, range(length))),), layers=tuple(range(layers)),
        activation="resid_pre", by="position", provenance=Provenance("activation_patching", "tiny", "float32", "", {}),
    )  # fmt: skip


def test_what_is_no_share_of_attention_opens_on_the_view_that_has_the_most(seen):
    grid, at = seen.inputs.modality.image_grid(), seen.inputs.modality.image_positions()
    for view, name in ((0, "whole image"), (1, "tiles")):
        values = torch.zeros(2, seen.inputs.tokens.shape[1])
        token = int(((grid.view > 0) == view).logical_and(grid.placed).nonzero()[3])
        values[1, at[token]] = 0.749
        fig = views.image_overlay(patched_of(seen, values), seen.inputs)
        assert fig.layout.updatemenus[0].buttons[0].label == name
        x, y = (grid.boxes[token, :2] + grid.boxes[token, 2:]) / 2
        assert painted(fig.data[1], float(x), float(y)) == pytest.approx(0.749)  # as its table has it, not half of it
    plain = views.image_overlay(values[1], seen.inputs)
    assert plain.layout.updatemenus[0].buttons[0].label == "mean of both"  # plain rows that can be attention


def test_shares_of_attention_open_on_the_mean_of_both_views(seen):
    looked = analysis.attention_from(seen.cache)
    for shares in (looked, looked.by_position(), seen.rollout.by_position(raw=True)):
        assert views.image_overlay(shares, seen.inputs).layout.updatemenus[0].buttons[0].label == "mean of both"
    rollout = seen.rollout
    relevance = analysis.GradientRollout(rollout.values, rollout.values, rollout.rows, rollout.provenance)
    for other in (seen.rollout, relevance, torch.randn(seen.inputs.tokens.shape[1]), 3 * seen.rollout.values[0, 0]):
        assert views.image_overlay(other, seen.inputs).layout.updatemenus[0].buttons[0].label != "mean of both"


def rows_of(inputs, signs):
    generator = torch.Generator().manual_seed(1)
    draw = torch.rand(3, inputs.tokens.shape[1], generator=generator) * torch.tensor([[0.01], [0.2], [1.0]])
    return {f"layer {i}": row * (torch.randn(row.shape, generator=generator).sign() if signs else 1)
            for i, row in enumerate(draw)}  # fmt: skip


@pytest.mark.parametrize("signs", [False, True], ids=["positive", "signed"])
def test_a_slider_has_one_scale_and_a_switch_gives_each_row_its_own(seen, signs):
    rows, grid = rows_of(seen.inputs, signs), seen.inputs.modality.image_grid()
    at = seen.inputs.modality.image_positions()[grid.placed]
    fig = views.image_overlay(rows, seen.inputs)
    largest = max(float(row[at].abs().max()) for row in rows.values())
    low = -largest if signs else 0
    assert {trace.zmin for trace in fig.data} == {low} and {trace.zmax for trace in fig.data} == {largest}
    one, own = fig.layout.updatemenus[1].buttons
    assert (one.label, own.label) == ("one scale for all", "each its own")
    assert one.args[0]["zmax"] == [trace.zmax for trace in fig.data]
    for index, (top, bottom) in enumerate(zip(own.args[0]["zmax"], own.args[0]["zmin"], strict=True)):
        most = float(list(rows.values())[index % 3][at].abs().max())
        assert top == pytest.approx(most) and bottom == (pytest.approx(-most) if signs else 0)
    assert "zmin" not in fig.layout.updatemenus[0].buttons[0].args[0]  # the other buttons leave scales alone
    single = views.image_overlay(rows["layer 0"], seen.inputs)
    assert len(single.layout.updatemenus) == 1


def alpha(color):
    return float(color[5:-1].split(",")[3])


def test_zero_lets_the_picture_through_and_signs_are_told_apart(seen):
    rows = rows_of(seen.inputs, True)
    signed = views.image_overlay(rows, seen.inputs).data[0]
    assert signed.zmin == -signed.zmax and [list(one) for one in signed.colorscale] == HEAT_SIGNED
    middle = next(color for place, color in HEAT_SIGNED if place == 0.5)
    assert alpha(middle) == 0 and alpha(HEAT_SIGNED[0][1]) == alpha(HEAT_SIGNED[-1][1]) > 0.8
    plain = views.image_overlay(rows["layer 0"].abs(), seen.inputs).data[0]
    assert (plain.zmin, [list(one) for one in plain.colorscale]) == (0, HEAT) and alpha(HEAT[0][1]) == 0


def test_a_sound_has_one_scale_symmetric_where_signs_differ_and_the_switch(heard):
    length = heard.inputs.tokens.shape[1]
    rows = {"layer 0": torch.linspace(-0.2, 0.1, length), "layer 1": torch.linspace(-1, 2, length)}
    at = heard.inputs.modality.audio_positions()
    most = max(float(row[at].abs().max()) for row in rows.values())
    fig = views.sound_overlay(rows, heard.inputs)
    for heat in (fig.data[1], fig.data[3]):
        assert (heat.zmin, heat.zmax) == (pytest.approx(-most), pytest.approx(most))
    assert list(fig.layout.yaxis.range) == pytest.approx([-1.05 * most, 1.05 * most])
    own = fig.layout.updatemenus[0].buttons[1]
    assert list(own.args[2]) == [1, 3] and own.args[0]["zmax"][0] == pytest.approx(
        float(rows["layer 0"][at].abs().max())
    )
    plain = views.sound_overlay({name: row.abs() for name, row in rows.items()}, heard.inputs)
    assert plain.data[1].zmin == 0 and len(views.sound_overlay(rows["layer 0"], heard.inputs).layout.updatemenus) == 0


def test_layers_run_down_in_every_picture(seen):
    """Whatever has layers (or entries of the lens) on an axis has the first on top."""
    looked = analysis.attention_from(seen.cache)
    other = dataclasses.replace(seen.logit_lens, entropy=seen.logit_lens.entropy + 1)
    patched = patched_of(seen, torch.rand(6, 4))
    figures = [
        views.head_specialization(seen.heads), views.heads_by_layer(seen.heads), views.logit_lens(seen.logit_lens),
        views.attention_by_layer(looked), views.activation_patching(patched),
        views.comparison(analysis.compare(seen.heads, seen.heads), modality="image"),
        views.comparison(analysis.compare(seen.logit_lens, other)),
    ]  # fmt: skip
    for fig in figures:
        axis = fig.layout.yaxis
        assert axis.title.text in ("layer", "after layer", "entry")
        assert axis.autorange == "reversed" or axis.range[0] > axis.range[1], axis.title.text


def test_compared_numbers_of_both_signs_have_a_symmetric_scale(seen):
    other = dataclasses.replace(seen.heads, mass=seen.heads.mass.flip(2))
    fig = views.comparison(analysis.compare(seen.heads, other), number="preference", modality="image")
    numbers, changes = fig.layout.coloraxis, fig.layout.coloraxis2
    assert numbers.cmin == -numbers.cmax and changes.cmin == -changes.cmax
    assert list(map(list, numbers.colorscale)) == DIVERGING
    assert views.comparison(analysis.compare(seen.heads, other), modality="image").layout.coloraxis.cmin >= 0


def test_tokens_of_both_signs_have_one_scale(seen):
    values = torch.zeros(seen.inputs.tokens.shape[1])
    values[0], values[1] = 1.0, -0.01
    body = views.colored_tokens(values, seen.inputs).body
    assert '"minValue": -1.0' in body and '"maxValue": 1.0' in body
    assert np.isclose(float(values.max()), 1)


def test_regions_over_the_picture_and_the_sound():
    """Cells where masks say, overlapping regions added up; spans at their seconds, NaN where none is."""
    provenance = Provenance("region_attribution", "a", "float32", "by hand", {})
    masks = torch.zeros(2, 4, 6, dtype=torch.bool)
    masks[0, :, :3] = True
    masks[1, 1:3, 2:5] = True
    one = torch.tensor([1.0])
    result = analysis.RegionAttribution(
        torch.tensor([[2.0, -0.5]]), torch.zeros(1, 2), one, one * 0, one.long(), (("left", "middle"),), "image",
        provenance, boxes=torch.tensor([[[0.0, 0, 3, 4], [2, 1, 5, 3]]]), masks=(masks,),
    )  # fmt: skip
    inputs = lensplug.tiny.llava_onevision().prepare("What is the color?", images=[scene(6, 4)])
    (drawn,) = views.image_overlay(result, inputs).data
    assert drawn.y.tolist() == [0, 1, 3, 4] and drawn.x.tolist() == [0, 2, 3, 5, 6]
    nan = float("nan")
    expected = [[2, 2, nan, nan], [2, 1.5, -0.5, nan], [2, 2, nan, nan]]
    torch.testing.assert_close(torch.tensor(drawn.z), torch.tensor(expected), equal_nan=True)
    assert drawn.text[1][1] == "left<br>middle" and drawn.zmin == -2 and drawn.zmax == 2
    with pytest.raises(LensplugError, match="view= is for values of positions"):
        views.image_overlay(result, inputs, view="base")
    with pytest.raises(LensplugError, match="6 x 4 pixels"):
        views.image_overlay(result, inputs, image=scene(6, 5))
    with pytest.raises(LensplugError, match="regions are of image"):
        views.sound_overlay(result, inputs, sound=(np.zeros(8000, np.float32), 8000))

    heard = lensplug.tiny.audio_llama()
    of_sound = heard.prepare("How does the speaker sound?", audio=[(0.1 * np.ones(8000, np.float32), 8000)])
    spans = dataclasses.replace(
        result, kind="audio", boxes=None, masks=(), spans_s=torch.tensor([[[0.25, 0.5], [0.5, 2.0]]])
    )
    bars, heat, *_ = views.sound_overlay(spans, of_sound).data
    assert list(bars.x) == [0.375, 0.75] and list(bars.width) == [0.25, 0.5] and list(bars.y) == [2, -0.5]
    colors = torch.tensor(heat.z[0])
    assert bool(colors[:50].isnan().all()) and colors[50:100].unique().tolist() == [2.0]
    assert colors[100:].unique().tolist() == [-0.5]
    with pytest.raises(LensplugError, match="regions are of audio"):
        views.image_overlay(spans, inputs)

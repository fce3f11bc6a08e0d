"""The plotly figures hold the result's own numbers, and say no where there is nothing to draw."""

import dataclasses

import numpy as np
import plotly.graph_objects as go
import pytest
import torch

from lensplug import LensplugError, views


def test_head_map_shows_log2_of_the_ratio_one_modality_at_a_time(seen):
    fig = views.head_specialization(seen.heads)
    image = seen.heads.modalities.index("image")
    shown = [trace for trace in fig.data if trace.visible]
    assert len(shown) == 1 and len(fig.data) == len(seen.heads.modalities)
    expected = seen.heads.mean[..., image].clamp(1 / 8, 8).log2().numpy()
    np.testing.assert_allclose(np.asarray(shown[0].z), expected, atol=1e-6)
    with pytest.raises(LensplugError, match="audio"):
        views.head_specialization(seen.heads, modality="audio")


def test_logit_lens_cells_are_the_top_tokens(seen):
    fig = views.logit_lens(seen.logit_lens, inputs=seen.inputs)
    heat = fig.data[0]
    assert np.asarray(heat.z).shape == (7, 3)
    assert heat.text[-1][-1] == seen.logit_lens.top_texts[0][-1][-1][0]
    assert "rank of" in heat.hovertext[0][0]


def test_overlay_paints_the_values_where_their_boxes_are(seen):
    values = torch.zeros(seen.inputs.tokens.shape[1])
    at = seen.inputs.modality.image_positions()
    grid = seen.inputs.modality.image_grid()
    token = 7  # of the base view: second row, second column
    values[at[token]] = 1.0
    fig = views.image_overlay(values, seen.inputs, view="base")
    heat = np.asarray(fig.data[0].z)
    x0, y0, x1, y1 = (int(edge) for edge in grid.boxes[token])
    expected = np.zeros((96, 96))
    expected[y0:y1, x0:x1] = 1
    np.testing.assert_array_equal(heat, expected)
    assert fig.layout.images[0].source.startswith("data:image/")


def test_overlay_has_a_slider_for_several_rows_and_refuses_other_lengths(seen):
    rows = {f"layer {i}": torch.rand(seen.inputs.tokens.shape[1]) for i in range(3)}
    fig = views.image_overlay(rows, seen.inputs)
    assert [trace.visible for trace in fig.data] == [True, False, False]
    assert len(fig.layout.sliders[0].steps) == 3
    with pytest.raises(LensplugError, match="one for each"):
        views.image_overlay(torch.zeros(5), seen.inputs)
    with pytest.raises(LensplugError, match="pixels"):
        views.image_overlay(rows, seen.inputs, image=np.zeros((10, 10, 3), dtype=np.uint8))


def test_overlay_without_geometry_says_so(seen):
    unplaced = dataclasses.replace(seen.inputs, modality=dataclasses.replace(seen.inputs.modality, grids={}))
    with pytest.raises(LensplugError, match="no geometry"):
        views.image_overlay(torch.zeros(seen.inputs.tokens.shape[1]), unplaced)


def test_ribbon_covers_every_position_once(seen):
    fig = views.modality_ribbon(seen.inputs)
    covered = sorted((bar.base[0], bar.base[0] + bar.x[0]) for bar in fig.data)
    assert covered[0][0] == 0 and covered[-1][1] == seen.inputs.tokens.shape[1]
    assert all(left[1] == right[0] for left, right in zip(covered, covered[1:], strict=False))


def test_rollout_bars_are_the_row(seen):
    fig = views.attention_rollout(seen.rollout, inputs=seen.inputs)
    np.testing.assert_allclose(np.asarray(fig.data[0].y), seen.rollout.values[0, -1].numpy())


def test_every_result_has_a_picture_in_a_notebook(seen, monkeypatch):
    monkeypatch.setattr("plotly.io.renderers.default", "plotly_mimetype")  # what Jupyter and VS Code read
    for result in (seen.heads, seen.logit_lens, seen.rollout):
        assert isinstance(views.draw(result), go.Figure)
        assert result._repr_mimebundle_()["application/vnd.plotly.v1+json"]["data"]
    with pytest.raises(LensplugError, match="int"):
        views.draw(3)


def test_token_text_cannot_act_on_the_page():
    from lensplug.views.style import visible

    assert visible("<img src=x onerror=alert(1)>") == "&lt;img src=x onerror=alert(1)&gt;"
    assert visible(" a\n") == "·a⏎" and visible("") == "∅"


def test_overlays_of_many_layers_on_a_large_picture_stay_small(seen):
    rows = {f"layer {i}": torch.rand(seen.inputs.tokens.shape[1]) for i in range(28)}
    grid = seen.inputs.modality.image_grid()
    large = dataclasses.replace(grid, boxes=grid.boxes * 20, width=grid.width * 20, height=grid.height * 20)
    modality = dataclasses.replace(seen.inputs.modality, grids={(0, 0): large})
    inputs = dataclasses.replace(seen.inputs, modality=modality)
    fig = views.image_overlay(rows, inputs, image=seen.scene.image.resize((large.width, large.height)))
    assert len(fig.to_json()) < 1_500_000
    heat = np.asarray(fig.data[0].z)
    assert heat.shape[0] > 24, "finer than the twelve rows of tiles"

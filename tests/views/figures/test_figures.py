"""The plotly figures hold the result's own numbers, and say no where there is nothing to draw."""

import dataclasses

import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from support.painted import painted

from lensplug import LensplugError, analysis, views
from lensplug.views.style import MODALITY_COLORS, visible


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
    x0, y0, x1, y1 = (int(edge) for edge in grid.boxes[token])
    expected = np.zeros((96, 96))
    expected[y0:y1, x0:x1] = 1
    heat = [[painted(fig.data[0], x + 0.5, y + 0.5) for x in range(96)] for y in range(96)]
    np.testing.assert_array_equal(heat, expected)
    assert fig.layout.images[0].source.startswith("data:image/")


def test_overlay_has_a_slider_for_several_rows_and_refuses_other_lengths(seen):
    rows = {f"layer {i}": torch.rand(seen.inputs.tokens.shape[1]) for i in range(3)}
    fig = views.image_overlay(rows, seen.inputs, view="tiles")
    assert [trace.visible for trace in fig.data] == [True, False, False] * 3
    visible = [step.args[0]["visible"] for step in fig.layout.sliders[0].steps]
    assert visible == np.tile(np.eye(3, dtype=bool), 3).tolist()
    assert [button.label for button in fig.layout.updatemenus[0].buttons] == ["tiles", "mean of both", "whole image"]
    with pytest.raises(LensplugError, match="one for each"):
        views.image_overlay(torch.zeros(5), seen.inputs)
    with pytest.raises(LensplugError, match="pixels"):
        views.image_overlay(rows, seen.inputs, image=np.zeros((10, 10, 3), dtype=np.uint8))
    with pytest.raises(LensplugError, match="view is 'whole', expected 'all', 'base', 'tiles' or None"):
        views.image_overlay(rows, seen.inputs, view="whole")  # type: ignore[arg-type]


def test_slider_and_view_buttons_choose_one_heat_map_together(seen):
    rows = {f"layer {i}": torch.rand(seen.inputs.tokens.shape[1]) for i in range(3)}
    grid, at = seen.inputs.modality.image_grid(), seen.inputs.modality.image_positions()
    fig = views.image_overlay(rows, seen.inputs, view="all")
    steps, choices = fig.layout.sliders[0].steps, fig.layout.updatemenus[0].buttons
    assert [one.label for one in choices] == ["mean of both", "whole image", "tiles"]
    assert [(t.visible, t.opacity) for t in fig.data if t.showscale and t.visible] == [(True, 1)]
    for step, row in zip(steps, rows.values(), strict=True):
        for button, view in zip(choices, ("all", "base", "tiles"), strict=True):
            shown = [
                trace
                for trace, visible, opacity in zip(
                    fig.data, step.args[0]["visible"], button.args[0]["opacity"], strict=True
                )
                if visible and opacity
            ]
            assert len(shown) == 1
            heat = grid.to_pixels(row[at], view=view)
            for y, x in ((10, 20), (50, 3), (80, 80)):
                assert painted(shown[0], x + 0.5, y + 0.5) == pytest.approx(float(heat[y, x]))


def test_every_result_with_a_value_for_each_position_can_be_laid_over_the_image(seen):
    at = seen.inputs.modality.image_positions()
    patches = analysis.logit_lens(seen.cache, positions=at, target="Red")
    looked = analysis.attention_from(seen.cache, queries=-1)
    received = analysis.received_attention(seen.cache, layer=2)
    _, cache, grads = seen.lens.run_with_gradients(seen.inputs, target="Red")
    relevance = analysis.gradient_rollout(cache, grads, rows=-1)
    flow = analysis.attention_flow(cache, groups="modality", modality=seen.inputs.modality)
    for result, count in ((patches, 7), (looked, 6), (received, 1), (seen.rollout, 1), (relevance, 1), (flow, 1)):
        fig = views.image_overlay(result, seen.inputs, view="base")
        assert len(fig.data) == count * 3
        row = list(result.by_position().values())[-1]
        expected = seen.inputs.modality.image_grid().to_pixels(row[at], view="base")
        assert painted(fig.data[count - 1], 30.5, 60.5) == pytest.approx(float(expected[60, 30]))
    assert torch.equal(
        looked.by_position(head=2)["layer 1"], seen.cache["blocks.1.attn.hook_pattern"][0, 2, -1].float()
    )
    with pytest.raises(LensplugError, match="HeadSpecialization has no value for each position"):
        views.image_overlay(seen.heads, seen.inputs)


def test_video_overlay_has_a_slider_for_frames_and_a_menu_for_layers(seen):
    frames = [seen.scene.image, seen.scene.image.rotate(90), seen.scene.image.rotate(180)]
    inputs = seen.lens.prepare("What is the color?", videos=[(frames, 2)])
    rows = {f"layer {i}": torch.rand(inputs.tokens.shape[1]) for i in range(4)}
    fig = views.video_overlay(rows, inputs)
    grid, at = inputs.modality.video_grid(), inputs.modality.video_positions()
    assert [step.label for step in fig.layout.sliders[0].steps] == ["0 (0.0 s)", "1 (0.5 s)", "2 (1.0 s)"]
    assert [image.visible for image in fig.layout.images] == [True, False, False]
    step, button = fig.layout.sliders[0].steps[1], fig.layout.updatemenus[0].buttons[3]
    assert step.args[1] == {"images[0].visible": False, "images[1].visible": True, "images[2].visible": False}
    shown = [t for t, v, o in zip(fig.data, step.args[0]["visible"], button.args[0]["opacity"], strict=True) if v and o]
    assert len(shown) == 1
    heat = grid.to_pixels(rows["layer 3"][at])[1]
    assert painted(shown[0], 50.5, 20.5) == pytest.approx(float(heat[20, 50]))
    assert len(views.video_overlay(rows["layer 0"], inputs).layout.updatemenus) == 0
    falling = {"a": -rows["layer 0"] * torch.linspace(1, 9, len(rows["layer 0"]))}
    assert len({(trace.zmin, trace.zmax) for trace in views.video_overlay(falling, inputs).data}) == 1
    with pytest.raises(LensplugError, match="the video has 2 frames of .96, 96. pixels, the grid is of one of 3"):
        views.video_overlay(rows, inputs, video=frames[:2])


def test_overlay_without_geometry_says_so(seen):
    unplaced = dataclasses.replace(seen.inputs, modality=dataclasses.replace(seen.inputs.modality, grids={}))
    with pytest.raises(LensplugError, match="this image has no grid"):
        views.image_overlay(torch.zeros(seen.inputs.tokens.shape[1]), unplaced)


def test_ribbon_covers_every_position_once(seen):
    fig = views.modality_ribbon(seen.inputs)
    covered = sorted((bar.base[0], bar.base[0] + bar.x[0]) for bar in fig.data)
    assert covered[0][0] == 0 and covered[-1][1] == seen.inputs.tokens.shape[1]
    assert all(left[1] == right[0] for left, right in zip(covered, covered[1:], strict=False))


def test_rollout_bars_are_the_row(seen):
    fig = views.attention_rollout(seen.rollout, inputs=seen.inputs)
    np.testing.assert_allclose(np.asarray(fig.data[0].y), seen.rollout.lift[0, -1].numpy())
    said = fig.layout.title.text.replace("</sub><br><sub>", " ")
    assert "Shown: lift over uniform attention" in said and "rank correlation" in said
    assert fig.layout.yaxis.title.text == "lift over uniform attention"
    fig = views.attention_rollout(seen.rollout, inputs=seen.inputs, raw=True)
    np.testing.assert_allclose(np.asarray(fig.data[0].y), seen.rollout.values[0, -1].numpy())
    assert "Shown: the raw share" in fig.layout.title.text.replace("</sub><br><sub>", " ")


def test_flow_bars_are_positions_or_groups_in_the_colour_of_their_modality(seen):
    flow = analysis.attention_flow(seen.cache, row=20)  # the third word is at 2, then comes the image
    fig = views.attention_flow(flow, inputs=seen.inputs)
    np.testing.assert_array_equal(np.asarray(fig.data[0].y), flow.lift[0].numpy())
    assert "Shown: lift over uniform attention" in fig.layout.title.text.replace("</sub><br><sub>", " ")
    raw = views.attention_flow(flow, inputs=seen.inputs, raw=True)
    np.testing.assert_array_equal(np.asarray(raw.data[0].y), flow.values[0].numpy())
    colors = [MODALITY_COLORS[name] for name in seen.inputs.modality.position_names[0]]
    assert list(fig.data[0].marker.color) == colors and fig.layout.xaxis.title.text == "position"
    assert fig.data[0].customdata[1] == visible(seen.inputs.str_tokens[0][1])
    assert set(views.draw(flow).data[0].marker.color) == {MODALITY_COLORS["text"]}  # nobody said what is what
    merged = analysis.attention_flow(seen.cache, groups="modality", modality=seen.inputs.modality)
    fig = views.draw(merged)
    np.testing.assert_array_equal(np.asarray(fig.data[0].y), merged.lift[0].numpy())
    assert list(fig.data[0].marker.color) == [MODALITY_COLORS[name] for name in merged.modalities[0]]
    of_region = merged.labels[0].index("[tiles·2,2]")
    assert fig.data[0].customdata[of_region] == "[tiles·2,2], 4 positions"
    assert fig.layout.xaxis.title.text == "group" and "upper bound" in fig.layout.title.text
    named = views.attention_flow(merged, inputs=seen.inputs, normalized=True).data[0]
    assert np.asarray(named.y).sum() == pytest.approx(1)
    assert named.customdata[-1] == visible(seen.inputs.str_tokens[0][-1])
    assert named.customdata[of_region] == fig.data[0].customdata[of_region]
    with pytest.raises(LensplugError, match="example is 1"):
        views.attention_flow(merged, example=1)


def test_every_result_has_a_picture_in_a_notebook(seen, monkeypatch):
    monkeypatch.setattr("plotly.io.renderers.default", "plotly_mimetype")  # what Jupyter and VS Code read
    for result in (seen.heads, seen.logit_lens, seen.rollout):
        assert isinstance(views.draw(result), go.Figure)
        assert result._repr_mimebundle_()["application/vnd.plotly.v1+json"]["data"]
    with pytest.raises(LensplugError, match="int"):
        views.draw(3)


def test_token_text_cannot_act_on_the_page():
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
    assert len(fig.data) == 28 * 3

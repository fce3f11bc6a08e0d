"""Heat maps of attention hold the result's own numbers, name positions once, say their scale, and stay small."""

from __future__ import annotations

import dataclasses

import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from support.caches import cache_of_patterns, causal_patterns

import lensplug
from lensplug import LensplugError, analysis, views
from lensplug.views.figures.heatmap import BY_ROOT, CLIP, PAPER_TO_INK, heatmap

TOKENS = [["[CLS]", "ro", "##ll", "<b>", "[PAD]"], ["[CLS]", "a", "b", "c", "d"]]
MASK = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])


@pytest.fixture
def cache():
    return lensplug.cache_from_attentions(causal_patterns(3, 2, 2, 5), attention_mask=MASK, tokens=TOKENS)


def test_the_matrix_is_drawn_without_padding_and_hover_tells_both_texts(cache):
    result = analysis.attention_matrix(cache, layer=1, head=0)
    fig = views.attention_matrix(result)
    heat = fig.data[0]
    np.testing.assert_array_equal(np.asarray(heat.z), result.values[0, :4, :4].numpy())
    assert list(heat.x) == list(heat.y) == ["[CLS] 0", "ro 1", "##ll 2", "&lt;b&gt; 3"]
    assert heat.hovertemplate.startswith("<b>%{y}</b> attends to <b>%{x}</b>: %{z")
    assert fig.layout.yaxis.scaleanchor == "x" and fig.layout.yaxis.autorange == "reversed"
    assert "layer 1, head 0" in fig.layout.title.text and "colour from 0 to" in fig.layout.title.text
    words = views.attention_matrix(analysis.attention_matrix(cache, layer=1, groups="words"))
    assert list(words.data[0].x) == ["[CLS] 0", "roll 1", "&lt;b&gt; 2"]
    assert "sum over keys, mean over queries" in words.layout.title.text
    assert np.asarray(views.attention_matrix(result, example=1).data[0].z).shape == (5, 5)
    with pytest.raises(LensplugError, match="example is 2, there are 2"):
        views.attention_matrix(result, example=2)
    with pytest.raises(LensplugError, match="scale is 'log', expected 'linear' or 'root'"):
        views.attention_matrix(result, scale="log")  # type: ignore[arg-type]


def test_positions_without_text_are_numbers():
    fig = views.attention_matrix(analysis.attention_matrix(cache_of_patterns(causal_patterns(1, 1, 1, 3)), layer=0))
    assert list(fig.data[0].x) == ["0", "1", "2"]


def test_colour_goes_by_the_square_root():
    positions, colors = zip(*BY_ROOT, strict=True)
    assert positions[0] == 0 and positions[12] == pytest.approx(0.25) and positions[-1] == 1
    assert colors[0] == "rgb(255, 255, 255)" and colors[-1] == "rgb(11, 37, 69)"


def shown(values, scale="root"):
    names = [str(at) for at in range(values.shape[1])]
    rows = names[: len(values)]
    return heatmap(values, rows, names, title="Attention", notes="rows", hover="%{y}", height=300, scale=scale)


def test_colour_goes_by_the_weight_and_a_switch_takes_its_square_root():
    values = torch.full((60, 60), 0.004)
    values[:, 0] = 0.764
    fig, rooted = shown(values, "linear"), shown(values)
    heat = fig.data[0]
    assert (heat.zmin, heat.zmax) == (0, pytest.approx(0.764))  # nothing is beyond the scale
    assert [place for place, _ in heat.colorscale] == [place for place, _ in PAPER_TO_INK]
    linear, root = fig.layout.updatemenus[0].buttons
    assert fig.layout.updatemenus[0].active == 0 and rooted.layout.updatemenus[0].active == 1
    for button, drawn in ((linear, heat), (root, rooted.data[0])):
        restyled = button.args[0]
        assert (restyled["zmin"], restyled["zmax"]) == (drawn.zmin, drawn.zmax)
        assert [color for _, color in restyled["colorscale"][0]] == [color for _, color in drawn.colorscale]
    assert root.args[1]["title.text"] == rooted.layout.title.text != fig.layout.title.text


def test_where_sinks_have_nearly_everything_the_scale_ends_lower_and_says_so():
    values = torch.full((60, 60), 0.004)
    values[:, 0] = 0.764
    fig = shown(values)
    assert fig.data[0].zmax == pytest.approx(0.764 / CLIP)
    assert "darkest from 0.048 on (the largest weight is 0.76)" in fig.layout.title.text.replace("</sub><br><sub>", " ")
    spread = torch.rand(60, 60)
    assert shown(spread).data[0].zmax == pytest.approx(float(spread.quantile(0.95)))
    few = torch.tensor([[0.9, 0.1], [0.8, 0.2]])
    assert shown(few).data[0].zmax == pytest.approx(0.9) and "darkest" not in shown(few).layout.title.text
    assert shown(torch.zeros(2, 2)).data[0].zmax == 1


def test_five_hundred_tokens_stay_small_and_thousands_are_refused():
    texts = [[f"token{at}" for at in range(500)]]
    cache = lensplug.cache_from_attentions([torch.full((1, 1, 500, 500), 1 / 500)], tokens=texts)
    fig = views.draw(analysis.attention_matrix(cache, layer=0))
    assert len(fig.to_json()) < 1_500_000
    assert fig.layout.xaxis.tickvals is None  # plotly names as many as there is room for
    many = torch.zeros(1, 1, 1001, 1001) + 1 / 1001
    result = analysis.attention_matrix(lensplug.cache_from_attentions([many]), layer=0)
    with pytest.raises(LensplugError, match="1001 x 1001 cells .* 5 MB .*groups='words'.*views.attention_by_layer"):
        views.attention_matrix(result)


def test_a_row_by_layer_is_what_the_position_looks_at(cache):
    looked = analysis.attention_from(cache, queries=[0, 3])
    fig = views.attention_by_layer(looked, str_tokens=cache.str_tokens)
    np.testing.assert_array_equal(np.asarray(fig.data[0].z), looked.values[0, :, :, 1].mean(1).numpy())
    assert list(fig.data[0].y) == ["0", "1", "2"] and list(fig.data[0].x)[2] == "##ll 2"
    assert "Where &lt;b&gt; (position 3) attends in each layer" in fig.layout.title.text
    other = views.attention_by_layer(looked, row=0, head=1, example=1)
    np.testing.assert_array_equal(np.asarray(other.data[0].z), looked.values[1, :, 1, 0].numpy())
    assert "position 0" in other.layout.title.text and "head 1" in other.layout.title.text


def test_a_rollout_by_layer_is_its_rows_and_words_are_sums(cache):
    result = analysis.attention_rollout(cache, rows=-1, per_layer=True, layers=(1, 2))
    words = lensplug.join_pieces(TOKENS[0])
    fig = views.attention_by_layer(result, str_tokens=cache.str_tokens, groups=words, raw=True)
    z = np.asarray(fig.data[0].z)
    assert result.by_layer is not None
    rows = result.by_layer[0, :, 0].numpy()
    assert "Shown: the raw share" in fig.layout.title.text.replace("</sub><br><sub>", " ")
    lifted = np.asarray(views.attention_by_layer(result, str_tokens=cache.str_tokens, groups=words).data[0].z)
    even = result.uniform_by_layer[0, :, 0].numpy()
    np.testing.assert_allclose(lifted[:, 1], z[:, 1] / (even[:, 1] + even[:, 2]), rtol=1e-5)
    np.testing.assert_allclose(z[:, 1], rows[:, 1] + rows[:, 2], atol=1e-7)
    np.testing.assert_allclose(z.sum(axis=1), 1, atol=1e-6)
    assert list(fig.data[0].y) == ["1", "2"] and list(fig.data[0].x)[1] == "roll 1"
    assert "Rollout into &lt;b&gt; (position 3) up to each layer" in fig.layout.title.text


def test_by_layer_refuses_what_is_not_there(cache):
    looked = analysis.attention_from(cache, queries=0)
    whole = analysis.attention_rollout(cache, rows=0)
    layers = analysis.attention_rollout(cache, rows=0, per_layer=True)
    for call, message in (
        (lambda: views.attention_by_layer(looked, row=1), "query is 1, the result has 1"),
        (lambda: views.attention_by_layer(looked, head=2), "head is 2, expected 'mean' or a head from 0 to 1"),
        (lambda: views.attention_by_layer(looked, example=2), "example is 2, there are 2"),
        (lambda: views.attention_by_layer(whole), r"attention_rollout\(..., per_layer=True\)"),
        (lambda: views.attention_by_layer(layers, row=1), "row is 1, the result has 1"),
        (lambda: views.attention_by_layer(looked, str_tokens=[["a"]]), r"texts are for \[1\] positions"),
        (
            lambda: views.attention_by_layer(looked, groups=lensplug.join_pieces(["a"])),
            "groups are of 1 positions, the attention is of 5",
        ),
    ):
        with pytest.raises(LensplugError, match=message):
            call()


def test_results_are_drawn_in_a_notebook(cache, monkeypatch):
    monkeypatch.setattr("plotly.io.renderers.default", "plotly_mimetype")
    layers = analysis.attention_rollout(cache, rows=0, per_layer=True)
    for result, kind in (
        (analysis.attention_matrix(cache, layer=0), go.Heatmap),
        (analysis.attention_from(cache, queries=0), go.Heatmap),
        (layers, go.Heatmap),
        (dataclasses.replace(layers, by_layer=None), go.Bar),
    ):
        assert isinstance(views.draw(result).data[0], kind)
        assert result._repr_mimebundle_()["application/vnd.plotly.v1+json"]["data"]


def test_the_pictures_of_prompts_take_their_inputs(seen):
    looked = analysis.attention_from(seen.cache, queries=-1)
    groups = views.group_positions(seen.inputs.modality, seen.inputs.str_tokens)
    fig = views.attention_by_layer(looked, inputs=seen.inputs, groups=groups)
    assert np.asarray(fig.data[0].z).shape == (6, len(groups.names))
    matrix = analysis.attention_matrix(seen.cache, layer=0, groups=[groups], str_tokens=seen.inputs.str_tokens)
    assert views.attention_matrix(matrix).data[0].x[0].endswith(" 0")


def test_encoders_are_drawn_by_circuitsvis_and_as_bars(cache):
    widget = views.attention_heads(cache, layer=0)
    assert '"ro"' in widget.body and "[PAD]" not in widget.body
    rolled = analysis.attention_rollout(cache, rows=0)
    tokens = views.colored_tokens(rolled.values[0, 0], str_tokens=cache.str_tokens)
    assert '["[CLS]", " ro", "ll", " ' in tokens.body
    bars = views.attention_rollout(rolled, str_tokens=cache.str_tokens)
    assert list(bars.data[0].customdata)[3] == "&lt;b&gt;" and "[CLS] (position 0)" in bars.layout.title.text
    received = views.received_attention(analysis.received_attention(cache, layer=0))
    assert "ro" in received.layout.xaxis6.ticktext
    long = lensplug.cache_from_attentions([torch.full((1, 12, 300, 300), 1 / 300)])
    assert len(views.attention_heads(long, layer=0).body) < 400_000


def test_two_matrices_are_compared_as_maps():
    one, other = (
        analysis.attention_matrix(cache_of_patterns(causal_patterns(1, 1, 2, 4, seed=seed)), layer=0) for seed in (0, 1)
    )
    fig = views.comparison(analysis.compare(one, other))
    np.testing.assert_allclose(np.asarray(fig.data[0].z, dtype=float), one.values[0].numpy(), atol=1e-4)

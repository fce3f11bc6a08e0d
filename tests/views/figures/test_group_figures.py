"""Figures of means, differences and settled layers over the examples of a study: their numbers, order and colors."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import torch

from lensplug import LensplugError, analysis, views
from lensplug.analysis.provenance import Provenance
from lensplug.views.static.draw import draw

PROVENANCE = Provenance(
    model="m", dtype="float32", convention="c", analysis="a", versions={}, weights="w", query="", options={}
)
GROUPS = ("daisy", "rose", "tulip")


def means(number: str, **labels) -> analysis.GroupMeans:
    """Group g of row r has the mean (10 g + r) / 100, and limits .01 below and .03 above."""
    rows = pd.DataFrame(labels)
    parts = [rows.assign(group=name, mean=(10 * g + np.arange(len(rows))) / 100) for g, name in enumerate(GROUPS)]
    table = pd.concat(parts, ignore_index=True)
    table = table.assign(
        low=table["mean"] - 0.01, high=table["mean"] + 0.03, standard_error=0.01, count=[7, 8, 9] * (len(table) // 3)
    )
    return analysis.GroupMeans(table, "a", number, "species", GROUPS, tuple(labels), "95%, bootstrap", PROVENANCE)


def traces(fig: go.Figure, kind: str) -> dict[str, go.Scatter]:
    return {one.name: one for one in fig.data if one.type == kind and not (kind == "scatter" and one.fill)}


def test_lines_over_layers_have_bands():
    made = means("target_on_top", entry=["embed", "0", "1"])
    fig = views.group_means(made)
    lines = traces(fig, "scatter")
    assert list(lines) == list(GROUPS) and lines["rose"].y == (-1, 0, 1)
    np.testing.assert_allclose(lines["rose"].x, [0.1, 0.11, 0.12])
    bands = [one for one in fig.data if one.fill == "toself"]
    assert fig.data[:3] == tuple(bands)  # below every line
    np.testing.assert_allclose(bands[1].x, [0.09, 0.1, 0.11, 0.15, 0.14, 0.13])
    assert fig.layout.yaxis.ticktext == ("embed", "0", "1") and fig.layout.yaxis.range[0] > fig.layout.yaxis.range[1]
    assert "Share with the target on top by layer, by species" in fig.layout.title.text
    assert draw(fig).axes


def test_layers_of_one_class():
    made = means("mass", layer=[0, 1, 0, 1], modality=["text", "text", "image", "image"])
    fig = views.group_means(made)
    np.testing.assert_allclose(traces(fig, "scatter")["daisy"].x, [0.02, 0.03])
    assert "on the image" in fig.layout.title.text
    np.testing.assert_allclose(traces(views.group_means(made, modality="text"), "scatter")["daisy"].x, [0.0, 0.01])
    with pytest.raises(LensplugError, match="modality is 'audio', this result has text, image"):
        views.group_means(made, modality="audio")


def test_bars_stand_by_label_in_the_colors_of_groups():
    made = means("right", condition=["with", "without", "control"])
    fig = views.group_means(made)
    bars = traces(fig, "bar")
    assert list(bars) == list(GROUPS) and bars["tulip"].y == ("as it is", "without the medium", "control: less text")
    np.testing.assert_allclose(bars["tulip"].x, [0.2, 0.21, 0.22])
    np.testing.assert_allclose(bars["tulip"].error_x.array, 0.03)
    np.testing.assert_allclose(bars["tulip"].error_x.arrayminus, 0.01)
    assert len({one.marker.color for one in bars.values()}) == 3
    alone = analysis.GroupMeans(
        made.table[made.table.condition == "with"].drop(columns="condition"),
        "a", "total", "species", GROUPS, (), "", PROVENANCE,
    )  # fmt: skip
    assert [bar.y for bar in views.group_means(alone).data] == [(name,) for name in GROUPS]


def test_many_bars_are_cut_to_the_largest_of_all_groups():
    made = means("x", thing=[str(index) for index in range(100)])
    fig = views.group_means(made)
    assert all(len(bar.y) == 60 for bar in fig.data) and fig.layout.yaxis.categoryarray[0] in ("99", "40")
    assert set(fig.layout.yaxis.categoryarray) == {str(index) for index in range(40, 100)}


def test_a_static_picture_has_both_ends_of_an_interval():
    ax = draw(views.group_means(means("right", condition=["with", "without", "control"]))).axes[0]
    ends = [path for one in ax.collections for path in (segment for segment in one.get_segments())]
    reach = sorted((round(float(end[:, 0].min()), 4), round(float(end[:, 0].max()), 4)) for end in ends)
    assert reach[0] == (-0.01, 0.03) and reach[-1] == (0.21, 0.25)


def test_settled_layers_are_shares_of_examples():
    rank = torch.tensor([[2, 1, 1], [1, 2, 1], [1, 1, 1], [1, 1, 2]])[:, :, None]
    zeros = torch.zeros(4, 3, 1)
    said = analysis.LogitLens(
        top_tokens=torch.ones(4, 3, 1, 1, dtype=torch.long), top_probabilities=zeros[..., None],
        target=torch.ones(4, 1, dtype=torch.long), rank=rank, log_probability=zeros, entropy=zeros, kl_to_last=zeros,
        positions=torch.ones(4, 1, dtype=torch.long), top_texts=[[[["a"]]] * 3] * 4, target_texts=[["a"]] * 4,
        length=torch.full((4,), 5), provenance=PROVENANCE,
    )  # fmt: skip
    assert said.settled_layer[:, 0].tolist() == [0, 1, -1, 2]
    fig = views.settled_layers(said)
    by_layer, line = fig.data
    assert by_layer.y == (-1, 0, 1) and by_layer.x == (0.25, 0.25, 0.25)  # the fourth never settles
    assert line.x == (0.25, 0.5, 0.75)
    groups = views.settled_layers(means("settled", entry=["embed", "0", "1"]))
    assert len(groups.data) == 9 and draw(groups).axes
    with pytest.raises(LensplugError, match="expected that of 'settled'"):
        views.settled_layers(means("target_on_top", entry=["embed", "0", "1"]))
    with pytest.raises(LensplugError, match="several positions were read"):
        views.settled_layers(means("settled", entry=["embed", "embed"], position=[0, 1]))


def test_differences_are_colored_where_they_are_more_than_chance():
    table = pd.DataFrame(
        {
            "entry": ["embed", "0", "1", "2"],
            "difference": [0.0, 0.3, -0.2, np.nan],
            "low": [-0.1, 0.2, -0.3, np.nan],
            "high": [0.1, 0.4, -0.1, np.nan],
            "p_value": [1.0, 0.001, 0.001, np.nan],
            "adjusted_p_value": [1.0, 0.01, 0.02, np.nan],
        }
    )
    made = analysis.GroupDifferences(table, "a", "settled", ("rose", "tulip"), ("entry",), True, "pairs", PROVENANCE)
    fig = views.group_differences(made)
    grey, orange, blue = fig.data[0].marker.color
    assert len({grey, orange, blue}) == 3 and fig.layout.yaxis.ticktext == ("embed", "0", "1")
    assert "2 of 3 rows" in fig.layout.title.text and "rose less tulip" in fig.layout.title.text
    assert views.group_differences(made, level=0.015).data[0].marker.color == (grey, orange, grey)
    assert draw(fig).axes


def test_maps_of_groups_share_one_scale_whose_bar_is_behind_the_last():
    made = means("mass", layer=[0, 0, 1, 1], head=[0, 1, 0, 1])
    fig = views.group_means(made)
    assert [one.text for one in fig.layout.annotations] == list(GROUPS)
    np.testing.assert_allclose(fig.data[1].z, [[0.1, 0.11], [0.12, 0.13]])
    assert fig.layout.coloraxis.cmax == pytest.approx(0.23)
    drawn = draw(fig)
    *maps, bar = sorted((ax.get_position() for ax in drawn.axes), key=lambda box: box.x0)
    assert len(maps) == 3 and bar.x0 > maps[-1].x1

"""The map of heads: readings and classes choose one map together, heads that differ have other colours."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from plotly.colors import sample_colorscale
from support.published import published_heads

from lensplug import LensplugError, views
from lensplug.analysis.attention.head_readings import READINGS
from lensplug.views.figures.head_specialization import LABEL, NOTES
from lensplug.views.style import DIVERGING, PAPER_TO_DARK


def shown(fig, by, name):
    """The map of heads, and the column of chance, that these two buttons show."""
    classes, readings = (menu.buttons for menu in fig.layout.updatemenus)
    visible = next(one for one in classes if one.label == name).args[0]["visible"]
    swapped = next(one for one in readings if one.label == by).args[0]
    at = [index for index, own in enumerate(visible) if own]
    return [{key: values[index] for key, values in swapped.items()} for index in at]


def test_it_opens_on_the_mass_of_the_medium_with_chance_beside(seen):
    fig = views.head_specialization(seen.heads)
    image = seen.heads.modalities.index("image")
    heads, chance = (trace for trace in fig.data if trace.visible)
    np.testing.assert_allclose(np.asarray(heads.z, dtype=float), seen.heads.average()[..., image], atol=1e-5)
    np.testing.assert_allclose(np.asarray(chance.z, dtype=float)[:, 0], seen.heads.chance[0, :, image], atol=1e-5)
    assert (heads.zmin, heads.zmax, chance.zmin, chance.zmax) == (0, 1, 0, 1)
    assert any("chance" in text for text in heads.colorbar.ticktext) and fig.layout.yaxis.autorange == "reversed"
    assert "not what it moves" in fig.layout.title.text.replace("</sub><br><sub>", " ")
    with pytest.raises(LensplugError, match="modality is 'audio', this result has text, image, sink"):
        views.head_specialization(seen.heads, modality="audio")
    with pytest.raises(LensplugError, match="by is 'odds'"):
        views.head_specialization(seen.heads, by="odds")  # type: ignore[arg-type]


def test_buttons_for_classes_and_readings_choose_one_map_together(seen):
    fig = views.head_specialization(seen.heads)
    assert [one.label for one in fig.layout.updatemenus[0].buttons] == ["text", "image", "sink", LABEL]
    assert [one.label for one in fig.layout.updatemenus[1].buttons] == list(READINGS) == list(NOTES)
    for index, name in enumerate(seen.heads.modalities):
        for by in READINGS:
            heads, chance = shown(fig, by, name)
            expected = seen.heads.average(by)[..., index]
            ends = {"mass": None, "preference": 0, "ratio": 0}[by]
            if by == "ratio":
                expected = expected.clamp(min=2 ** heads["zmin"]).log2()
            np.testing.assert_allclose(np.asarray(heads["z"], dtype=float), expected, atol=1e-5)
            assert ends is None or (heads["zmin"] == -heads["zmax"] and set(np.asarray(chance["z"]).flat) == {0})
            assert heads["zmin"] <= float(expected.min()) and float(expected.max()) <= heads["zmax"] + 1e-6
    other = views.head_specialization(seen.heads, modality="sink", by="preference")
    np.testing.assert_allclose(
        np.asarray(next(trace.z for trace in other.data if trace.visible), dtype=float),
        seen.heads.average("preference")[..., 2], atol=1e-5,
    )  # fmt: skip


def test_every_class_is_shown_at_once_in_its_colour(seen):
    fig = views.head_specialization(seen.heads)
    for by, labels in (("mass", seen.heads.labels), ("preference", seen.heads.prefers)):
        heads, _ = shown(fig, by, LABEL)
        names = heads["colorbar"]["ticktext"]
        assert [[names[number] for number in row] for row in heads["z"]] == labels


def colours(z, zmin, zmax, scale):
    places = [(value - zmin) / (zmax - zmin) for value in z]
    return [tuple(round(float(part)) for part in one[4:-1].split(",")) for one in sample_colorscale(scale, places)]


def test_no_two_heads_that_differ_have_one_colour():
    """Up to a 255th of the scale, which no screen shows: of the published sums, 3.68 and 3.69 are so near."""
    published = published_heads()
    image = published.modalities.index("image")
    fig = views.head_specialization(published, modality="image")
    for by, scale, same in (("mass", PAPER_TO_DARK, {(4, 10)}), ("preference", DIVERGING, None)):
        heads, _ = shown(fig, by, "image")
        z = heads["z"][0]
        found = colours(z, heads["zmin"], heads["zmax"], scale)
        step = (heads["zmax"] - heads["zmin"]) / 255
        for one in range(14):
            for other in range(one):
                if abs(z[one] - z[other]) > step:
                    assert found[one] != found[other], (by, one, other)
                elif same is not None:
                    assert (other, one) in same
    texts = fig.data[2 * image].text[0]
    assert texts[4] == "0.147" and texts[10] == "0.148" and len(set(texts)) == 14


def test_lines_by_layer_are_shares_and_masses_with_layers_down(seen):
    fig = views.draw(seen.heads.by_layer())
    lines = seen.heads.by_layer()
    bars = {trace.name: trace for trace in fig.data if trace.type == "bar"}
    for index, label in enumerate(lines.labels):
        np.testing.assert_allclose(bars[label].x, lines.share[:, index])
    drawn = {trace.name: trace for trace in fig.data if trace.type == "scatter" and trace.name}
    assert set(drawn) == {"text", "image", "sink", "image: base", "image: tiles", "image: newline"}
    for index, name in enumerate(lines.classes):
        np.testing.assert_allclose(drawn[name].x, lines.mass[:, index])
    assert list(fig.layout.yaxis.range) == [5.5, -0.5]
    assert torch.allclose(lines.mass[:, 3:].sum(dim=1), lines.mass[:, 1])  # the views are the image's mass

"""A page without scripts: what is drawn are the figure's numbers, and hostile texts are texts.

That nothing in a report runs and everything in it is shown is tested on the pages of `tests/app/test_leaks.py`, each of
which takes seconds to draw.
"""

import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from support.html_page import Parsed
from typer.testing import CliRunner

from lensplug import LensplugError, views
from lensplug.app.cli import app
from lensplug.app.report import report
from lensplug.views.page.page import Page, Section
from lensplug.views.static.draw import draw
from lensplug.views.static.pictures import svg
from lensplug.views.static.states import states
from lensplug.views.style import visible

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def of_picture(seen):
    return report(seen.lens, "What is the color? Answer single word.", images=[seen.scene.image]).page


@pytest.fixture(scope="module")
def of_sound(heard):
    return report(heard.lens, heard.voice.prompt("sound"), audio=[heard.voice.audio]).page


def test_every_figure_of_the_views_is_known(figures):
    for fig in figures:
        for _, state in states(fig):
            drawn = draw(state)
            shown = [t for t in state.data if t.visible in (None, True) and t.opacity != 0]
            assert len([ax for ax in drawn.axes if ax.has_data()]) > 0 or not shown


@pytest.fixture
def figures(of_picture, of_sound, seen):
    def noise(*shape):
        return torch.rand(*shape, generator=torch.Generator().manual_seed(0))

    found = [part for page in (of_picture, of_sound) for s in page.sections for part in s.parts]
    made = [part for part in found if isinstance(part, go.Figure)]
    return [*made, views.attention_over_signal(noise(10) / 10, noise(40, 2)), views.draw(seen.heads.by_layer())]


@pytest.mark.parametrize("down", [True, False])
def test_a_heat_map_has_its_numbers_colours_and_directions(down):
    values = np.array([[0.0, 1.0, 2.0], [3.0, np.nan, 5.0]])
    heat = go.Heatmap(
        z=values, x=["a", "b", "c"], y=[10, 20], zmin=-1, zmax=6, colorscale=[[0, "#000000"], [1, "#ffffff"]]
    )
    fig = go.Figure(heat, {"yaxis": {"autorange": "reversed" if down else True}})
    ax = draw(fig).axes[0]
    (mesh,) = [one for one in ax.collections if one.get_array() is not None]
    np.testing.assert_array_equal(np.ma.filled(mesh.get_array().reshape(2, 3), np.nan), values)
    assert mesh.get_clim() == (-1, 6)
    np.testing.assert_allclose(mesh.get_coordinates()[:, 0, 1], [5, 15, 25])
    assert ax.get_ylim() == ((25, 5) if down else (5, 25)) and ax.get_xlim() == (-0.5, 2.5)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["a", "b", "c"]
    np.testing.assert_allclose(mesh.to_rgba(2.5), [0.5, 0.5, 0.5, 1], atol=1e-3)
    assert mesh.to_rgba(mesh.get_array()).reshape(2, 3, 4)[1, 1, 3] == 0


def test_colours_that_let_a_picture_through_do(seen):
    values = torch.zeros(seen.inputs.tokens.shape[1])
    values[seen.inputs.modality.image_positions()[7]] = 1.0
    ax = draw(views.image_overlay(values, seen.inputs, view="base")).axes[0]
    (mesh,) = [one for one in ax.collections if one.get_array() is not None]
    assert mesh.to_rgba(0.0)[3] == pytest.approx(0) and mesh.to_rgba(1.0)[3] == pytest.approx(0.85)
    assert len(ax.images) == 1 and ax.get_ylim() == (96, 0)


def test_bars_and_lines_have_their_numbers():
    fig = go.Figure(
        [go.Bar(x=[0, 1], y=[1, 2], name="a"), go.Bar(x=[0, 1], y=[3, -4], name="b")], {"barmode": "relative"}
    )
    ax = draw(fig).axes[0]
    assert [(bar.get_y(), bar.get_height()) for bar in ax.patches] == [(0, 1), (0, 2), (1, 3), (0, -4)]
    ax = draw(go.Figure(go.Scatter(x=[1, 2, 4], y=[3, 1, 2], line={"dash": "dot"}))).axes[0]
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[1, 3], [2, 1], [4, 2]])
    assert ax.lines[0].get_linestyle() == ":"


def test_hostile_texts_show_as_typed(recwarn):
    typed = ["<script>x</script>", "$x^2$", "\x1b[31m", "漢字", "{{ 7*7 }}"]
    names = [visible(text) for text in typed]
    heat = go.Heatmap(z=[[1.0] * 5], x=names, y=[0], text=[names], texttemplate="%{text}")
    text = svg(go.Figure(heat, {"title": {"text": names[0] + "<br>" + names[1]}}), width=1600)
    parsed = Parsed(text)
    assert not [tag for tag, _ in parsed.tags if tag == "script"]
    for shown in ("<script>x</script>", "$x^2$", "\\x1b[31m", "漢字", "{{ 7*7 }}"):
        assert shown in parsed.text
    assert "\x1b" not in text and not [one for one in recwarn if "Glyph" in str(one.message)]
    tokens = views.colored_tokens(torch.tensor([0.1, -0.2]), str_tokens=[["<script>", "$a$"]])
    page = Page("a", (("b", "<script>"),), (Section("c", "d", (tokens,)),)).to_html(static=True)
    assert "<script" not in page and "&lt;script&gt;" in page and "$a$" in page and 'class="less-20"' in page


def test_a_slider_becomes_at_most_twelve_pictures_with_first_and_last():
    fig = go.Figure([go.Bar(x=[0], y=[i], visible=i == 0) for i in range(40)])
    steps = [
        {"label": str(i), "args": [{"visible": [j == i for j in range(40)]}, {"title.text": f"t{i}"}]}
        for i in range(40)
    ]
    fig.update_layout(sliders=[{"steps": steps}])
    drawn = states(fig)
    assert len(drawn) == 12 and drawn[0][0] == "0" and drawn[-1][0] == "39"
    assert [trace.y[0] for trace in drawn[-1][1].data if trace.visible] == [39]
    assert drawn[-1][1].layout.title.text == "t39" and fig.data[0].visible is True


@pytest.mark.parametrize(
    "fig",
    [
        go.Figure(go.Pie(values=[1])),
        go.Figure(go.Scatter(x=[1], y=[1], mode="text", text=["a"])),
        go.Figure(go.Heatmap(z=[[1]], texttemplate="%{x}")),
        go.Figure(go.Bar(x=["2020-01-01"], y=[1]), {"xaxis": {"type": "date"}}),
    ],
)
def test_what_is_not_known_is_refused(fig):
    with pytest.raises(LensplugError, match="static picture cannot"):
        draw(fig)


def test_without_matplotlib_nothing_is_computed(monkeypatch, tmp_path):
    monkeypatch.setattr("lensplug.views.static.library.find_spec", lambda name: None)
    monkeypatch.setattr("lensplug.tiny.llava_onevision", lambda **_: pytest.fail("a model was loaded"))
    ended = CliRunner().invoke(app, ["demo", "--static", "--out", str(tmp_path / "out")])
    assert ended.exit_code == 2 and "lensplug[static]" in " ".join(ended.output.split())
    assert not (tmp_path / "out").exists()
    ended = CliRunner().invoke(
        app, ["report", "--static", "--model", "x", "--prompt", "y", "--out", str(tmp_path / "a.html")]
    )
    assert ended.exit_code == 2 and "lensplug[static]" in " ".join(ended.output.split())


def test_the_users_settings_are_put_back():
    import matplotlib

    with matplotlib.rc_context({"font.size": 31.0}):
        draw(go.Figure(go.Bar(x=[0], y=[1])))
        assert matplotlib.rcParams["font.size"] == 31.0

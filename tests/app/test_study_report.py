"""The page on a study: what it says of what was asked, done and failed, its numbers, and what it leaves out."""

from __future__ import annotations

import random
import re
import socket
from base64 import b64decode
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from support.models import QUESTION
from typer.testing import CliRunner

import lensplug
from lensplug import LensplugError, Study, analysis
from lensplug.app import study_facts
from lensplug.app.cli import app
from lensplug.app.study_report import study_report
from lensplug.study import StudyResult
from lensplug.tiny.scenes import draw_scene
from lensplug.views.page.plain import SmallPictures, Table, small

MODEL = "lensplug.tiny:llava_onevision"
COLORS = ("red", "green", "blue")


@pytest.fixture(scope="module")
def lens():
    return lensplug.tiny.llava_onevision()


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> pd.DataFrame:
    """Nine pictures, one of them no picture, in a folder that no page may name; each says something in its file."""
    folder = tmp_path_factory.mktemp("of mister hidden")
    rows, said = [], PngInfo()
    said.add_text("comment", "written by mister hidden")
    for index in range(9):
        shape, color = ("ring", "cross")[index % 2], COLORS[index % 3]
        path = folder / f"{index}.png"
        draw_scene(random.Random(index), size=(48, 48), shape=shape, color=color).image.save(path, pnginfo=said)
        rows.append({"prompt": QUESTION, "image": str(path), "target": color.capitalize(), "shape": shape, "n": index})
    (folder / "8.png").write_bytes(b"no picture")
    return pd.DataFrame(rows)


def begun(folder: Path, table: pd.DataFrame) -> Study:
    study = Study(folder, model=MODEL, chunk=4)
    study.add(table)
    study.measure(analysis.head_specialization, query=-1)
    study.measure(analysis.logit_lens, positions=-1)
    return study


@pytest.fixture(scope="module")
def study(lens, table, tmp_path_factory) -> Study:
    """All five measurements of them."""
    made = begun(tmp_path_factory.mktemp("studies") / "shapes", table)
    made.measure(analysis.neuron_activity, domain=made.column("shape"))
    made.measure(analysis.grounding, medium="image")
    classes = [color.capitalize() for color in COLORS]
    made.measure(analysis.modality_ablation, modality="image", method="remove", classes=classes)
    made.run(lens=lens, batch=4)
    return made


@pytest.fixture(scope="module")
def tuned(table, tmp_path_factory) -> Study:
    """The same heads of another checkpoint: in layer 1 all attention is at random."""
    lens = lensplug.tiny.llava_onevision()
    with torch.no_grad():
        lens.core.decoder.layers[1].self_attn.q_proj.weight.normal_(generator=torch.Generator().manual_seed(0))
    made = begun(tmp_path_factory.mktemp("studies") / "tuned", table[:-1])
    made.run(lens=lens, batch=4)
    return made


@pytest.fixture(scope="module")
def page(study):
    """Its page, made without all examples of a measurement in memory at once."""

    def refused(self):
        assert not self.measurement.way.rows, "all rows of a measurement were read as one result"
        return self._whole()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StudyResult, "result", property(refused))
        return study_report(study)


def parts(page, title, kind):
    """The parts of one kind in the section whose title begins so."""
    (section,) = [one for one in page.sections if one.title.startswith(title)]
    return [part for part in section.parts if isinstance(part, kind)]


def test_it_says_what_was_asked_and_of_how_much(page, study):
    facts = dict(page.facts)
    assert page.title == "Study: shapes" and facts["Model"] == MODEL and facts["Prompt"] == f"{QUESTION} (9)"
    assert facts["Groups, by shape"] == "cross 4, ring 5" and facts["Examples"] == "9, with 9 different media"
    assert facts["Loaded"] == "dtype float32"
    (done,) = parts(page, "What was done", Table)
    assert done.rows[0][1:4] == ("8", "1", "0") and float(done.rows[0][4]) > 0
    assert [section.title for section in page.sections] == [
        "Some of the examples", "What was done", "What failed", "Which heads look at the image",
        "At which layer answers settle", "Which neurons fire where", "What the image adds to the answers",
        "What the image is used for",
    ]  # fmt: skip
    assert any("torch" in line for line in page.provenance) and "logit_lens(positions=-1)" in page.provenance


def test_failures_are_counted_by_kind_with_an_example_each(page, study):
    (failed,) = parts(page, "What failed", Table)
    assert len(failed.rows) == 1 and failed.rows[0][0] == "1" and failed.rows[0][3] == "8.png"
    alike = ["'/home/x/1.png' has 10 bytes", "'/home/y/2.png' has 2000 bytes", "it is too long"]
    assert len({study_facts._kind("E", text) for text in alike}) == 2


def test_it_holds_no_path_no_host_and_nothing_of_files_but_pixels(page, study):
    html = page.to_html()
    for hidden in ("hidden", socket.gethostname(), study.storage.place.rpartition("/")[0]):
        assert len(hidden) < 3 or hidden not in html, hidden
    (shown,) = parts(page, "Some of", SmallPictures)
    assert len(shown.pictures) == 6
    for index, (address, lines) in enumerate(shown.pictures):
        assert lines[0] == ("cross", "ring")[index % 2] and re.fullmatch("answers '(Red|Green|Blue)'", lines[1])
        picture = Image.open(BytesIO(b64decode(address.partition("base64,")[2])))
        assert picture.size == (48, 48) and not set(picture.info) - {"background", "loop", "duration", "timestamp"}
    large = Image.open(BytesIO(b64decode(small(Image.new("RGB", (900, 300))).partition("base64,")[2])))
    assert large.size == (192, 64)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("'/home/me/a b/x.png' cannot be read", "b/x.png' cannot"),
        ("'/home/me/x.png' has changed", "'x.png' has changed"),
        ("at C:\\Users\\me\\x.png now", "at x.png now"),
        ("either/or and 3/4", "either/or and 3/4"),
    ],
)
def test_paths_are_cut_to_their_last_name(text, expected):
    assert expected in study_facts.without_paths(text) and "/home" not in study_facts.without_paths(text)


def test_its_numbers_are_those_of_the_results(page, study):
    by_layer, preference = parts(page, "Which heads", go.Figure)[:2]
    heads = study.result("head_specialization")
    expected = heads.mean("shape", over="head").table.query("modality == 'image'").groupby("group")["mean"]
    lines = {one.name: one for one in by_layer.data if not one.fill}
    for group in ("cross", "ring"):
        np.testing.assert_allclose(lines[group].x, expected.get_group(group), atol=1e-5)
    assert preference.data[0].z.shape == (6, 6)
    top = parts(page, "Which heads", Table)[0]
    layer, head, mass = heads.result.top("image", k=1)[0]
    assert top.columns == ("layer", "head", "mass, all", "preference", "cross", "ring")
    assert top.rows[0][:2] == (str(layer), str(head)) and top.rows[0][2].startswith(f"{mass:.3f} [")
    settled, answers = parts(page, "At which layer", Table)
    assert settled.rows[0][:2] == ("cross", "4") and settled.rows[0][3] == "100%"
    counts = pd.Series([texts[-1][0][0] for texts in study.result("logit_lens").result.top_texts]).value_counts()
    assert {row[0]: int(row[1]) + int(row[2]) for row in answers.rows} == {repr(a): n for a, n in counts.items()}
    f1, changes = parts(page, "What the image is used for", Table)
    ablation = study.result("modality_ablation").result
    for name, row in zip(ablation.classes, f1.rows, strict=True):
        assert row[2:] == tuple(f"{ablation.per_class(one).f1[name]:.2f}" for one in ("with", "without", "control"))
    assert sum(int(row[2]) for row in changes.rows) == len(ablation.changes())


def test_two_groups_are_compared(page):
    figures, tables = (parts(page, "Which heads", kind) for kind in (go.Figure, Table))
    assert "cross less ring" in figures[-1].layout.title.text and "cross less ring" in tables[-1].title


def test_two_studies_are_compared(study, tuned):
    made = study_report(study, other=tuned)
    assert made.title == "Study: shapes, compared with tuned" and dict(made.facts)["Compared with"] == f"tuned: {MODEL}"
    (figure,), (rows,) = (parts(made, "Which heads look otherwise", kind) for kind in (go.Figure, Table))
    expected = study.result("head_specialization").compare(tuned.result("head_specialization"))
    image = expected.table.query("modality == 'image'").pivot(index="layer", columns="head", values="difference")
    np.testing.assert_allclose(figure.data[0].z, image, atol=1e-5)
    assert "1" in {row[0] for row in rows.rows} and "shapes less tuned" in rows.title
    assert parts(made, "At which layers answers settle otherwise", go.Figure)
    assert not [one for one in made.sections if one.title.endswith("adds otherwise")]  # not measured there


def test_what_has_nothing_to_compare_is_refused(study, table, lens, tmp_path):
    other = Study(tmp_path / "other", model=MODEL)
    with pytest.raises(LensplugError, match="no examples yet, and so nothing to report"):
        study_report(other)
    other.add(table)
    other.measure(analysis.head_specialization, query=-2)
    with pytest.raises(LensplugError, match="no results of a measurement that they share"):
        study_report(study, other=other)
    with pytest.raises(LensplugError, match="no column 'species': they have shape, n, prompt"):
        study_report(study, by="species")
    with pytest.raises(LensplugError, match="'n' has 9 values, and a page tells 8 groups apart"):
        study_report(study, by="n")
    unfinished = study_report(other)
    (section,) = [one for one in unfinished.sections if one.title == "head_specialization"]
    assert "has no results yet" in section.text
    (done,) = parts(unfinished, "What was done", Table)
    assert done.rows == (("head_specialization", "0", "0", "9", "", "", ""),)


def test_groups_by_another_column(tuned, tmp_path):
    html = tuned.report(tmp_path / "page.html", by="target").read_text(encoding="utf-8")
    assert "<dt>Groups, by target</dt><dd>Blue 2, Green 3, Red 3</dd>" in html
    assert html.count("plotly-graph-div") == 3 and html.count('<table class="plain">') == 4  # of three groups


def test_a_page_that_cannot_be_written_is_refused_before_anything_is_read(study, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    for read in ("lensplug.app.study_report.study_report", "lensplug.study.study.passes.pass_of"):
        monkeypatch.setattr(read, lambda *_, **__: pytest.fail("results were read"))
    with pytest.raises(LensplugError, match="is no folder"):
        study.report(tmp_path / "file" / "page.html")
    for command in (["report"], ["export", "grounding"]):
        name, *measurement = command
        out = ["--out", str(tmp_path / "file" / "x.csv")]
        ended = CliRunner().invoke(app, ["study", name, study.storage.place, *measurement, *out])
        assert ended.exit_code == 2 and "is no folder" in ended.output


def test_the_command_writes_a_page_without_scripts(study, tuned, tmp_path):
    pytest.importorskip("matplotlib")
    arguments = ["study", "report", tuned.storage.place, "--out", str(tmp_path / "a.html"), "--static"]
    ended = CliRunner().invoke(app, [*arguments, "--compare", study.storage.place, "--by", "shape"])
    assert ended.exit_code == 0, ended.output
    html = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert "Page:" in ended.output and "<script" not in html and "style=" not in html
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!#|data:)""", html)
    assert html.count('<table class="plain">') >= 5 and html.count('alt="Example: ') == 6
    ended = CliRunner().invoke(app, ["study", "report", str(tmp_path / "nothing"), "--out", str(tmp_path / "b.html")])
    assert ended.exit_code == 2 and "there is no study in" in ended.output and not (tmp_path / "b.html").exists()


def test_hostile_names_show_as_typed():
    table = Table(("<b>", "x"), (("<script>alert(1)</script>", "\x1b[2J"),), "<i>")
    assert "<script" not in table.body and "&lt;script&gt;" in table.body and r"\x1b[2J" in table.body
    assert "<i>" not in table.body and Table(("a",), (), "nothing").body.count("<table") == 0
    pictures = SmallPictures((("data:x", ('"><script>',)),)).body
    assert "<script" not in pictures

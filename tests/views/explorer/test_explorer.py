"""The explorer: what it packs comes back, what it refuses, hostile tokens, its size, and a browser that points."""

import html
import json
import re
import shutil
import subprocess
from base64 import b64decode
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from support.explorer_data import grid_of, random_results, said_of

from lensplug import LensplugError, analysis, views
from lensplug.geometry import ImageGrid
from lensplug.views.explorer import arrays as explorer_numbers
from lensplug.views.explorer import packing
from lensplug.views.style import visible

BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
HOSTILE = "</script><img src=x onerror=alert(1)><b>&amp;"


def contents(shown):
    """The facts and the arrays of an explorer, read back from its page."""
    (facts,) = map(json.loads, re.findall(r'class="explorer-facts">(.*?)</script>', shown.body, re.DOTALL))
    (text,) = re.findall(r'class="explorer-data">(.*?)</script>', shown.body, re.DOTALL)
    return facts, packing.unpacked(text, facts["arrays"])


def small(**changes):
    form = {"layers": 3, "heads": 4, "answer": ["Red", "."], "top_k": 2, "vocabulary": 40, **changes}
    return random_results(grid_of(4, 2, 1, 64, 48), **form)


@pytest.fixture(scope="module")
def made():
    said, looked, inputs, image = small()
    return said, looked, inputs, views.image_explorer(said, looked, inputs, image=image)


@pytest.fixture(scope="module")
def asked(seen):
    """The tiny model's answer, explored."""
    answer = seen.lens.generate(seen.inputs, max_new_tokens=3)
    _, cache = seen.lens.run_with_cache(answer.inputs)
    prompt, end = seen.inputs.tokens.shape[1], answer.inputs.tokens.shape[1]
    looked = analysis.attention_from(cache, queries=range(prompt - 1, end - 1))
    said = analysis.logit_lens(cache, positions=seen.inputs.modality.image_positions())
    return said, looked, answer.inputs, views.image_explorer(said, looked, answer.inputs)


def test_steps_of_the_root_come_back_within_what_is_said():
    rows = np.random.default_rng(0).random((3, 5, 200)).astype(np.float32) ** 6
    rows[0, 0] = 0
    for steps in explorer_numbers.STEPS:
        codes, largest = packing.quantised(rows, steps)
        back = packing.restored(codes, largest, steps)
        bound = largest[..., None] * (np.sqrt(rows / np.maximum(largest, 1e-9)[..., None]) + 0.25 / steps) / steps
        assert (np.abs(back - rows) <= bound + 1e-7).all()
        assert np.allclose(back.max(-1), largest)


def test_attention_comes_back_by_answer_token_layer_and_head(made):
    _, looked, inputs, shown = made
    facts, arrays = contents(shown)
    at = inputs.modality.image_positions()
    expected = looked.values[0, ..., at].permute(2, 0, 1, 3).numpy()  # [query layer head token]
    back = packing.restored(arrays["attention"], arrays["largest"], facts["steps"])
    assert facts["steps"] == 255 and np.abs(back - expected).max() <= expected.max() / 255
    assert [one["text"] for one in facts["answers"]] == ["Red", "."]
    assert [one["query"] for one in facts["answers"]] == looked.queries[0].tolist()
    assert arrays["positions"].tolist() == at.tolist()


def test_what_no_patch_sees_is_hatched_and_said(made):
    """A grid over the left half of a picture of 128 x 48."""
    grid = replace(grid_of(4, 2, 1, 64, 48), width=128)
    said, looked, inputs, image = random_results(grid, layers=3, heads=4, answer=["Red"], top_k=2, vocabulary=40)
    half = views.image_explorer(said, looked, inputs, image=image)
    facts, _ = contents(half)
    gray = np.asarray(Image.open(BytesIO(b64decode(facts["picture"].partition(",")[2]))).convert("L")).astype(int)
    plain = np.asarray(image.convert("L")).astype(int)
    assert np.abs(gray - plain)[:, :56].mean() < 8 < np.abs(gray - plain)[:, 72:].mean()
    assert "Hatched: not seen." in half.body and "Hatched" not in made[-1].body


def test_totals_are_exact_and_newlines_have_their_own(made):
    _, looked, inputs, shown = made
    facts, arrays = contents(shown)
    grid, at = inputs.modality.image_grid(), inputs.modality.image_positions()
    rows = looked.values[0, ..., at].permute(2, 0, 1, 3)
    assert facts["newlines"] == 4
    np.testing.assert_allclose(arrays["totals"][..., 2], rows[..., grid.newline].sum(-1), rtol=1e-6)
    np.testing.assert_allclose(arrays["totals"].sum(-1), rows.sum(-1), rtol=1e-5)
    assert not arrays["totals"][..., 3].any()


def test_tokens_and_probabilities_come_back(made):
    said, *_, shown = made
    facts, arrays = contents(shown)
    texts = json.loads(arrays["texts"].tobytes())
    numbers = (arrays["tokens"].astype(int) * np.array([1, 256, 65536])[:, None, None, None]).sum(0)
    assert numbers.shape == (4, 2, len(said.positions[0])) and facts["entries"] == ["embed", "0", "1", "2"]
    for entry, k, token in [(0, 0, 0), (3, 1, 7), (2, 0, numbers.shape[2] - 1)]:
        assert texts[numbers[entry, k, token]] == said.top_texts[0][entry][token][k].replace(" ", "·")
    back = (arrays["probability"] / 255) ** 2
    assert np.abs(back - said.top_probabilities[0].permute(0, 2, 1).numpy()).max() <= 1 / 255


def test_every_cell_is_the_token_whose_box_it_lies_in(made):
    _, _, inputs, shown = made
    _, arrays = contents(shown)
    grid = inputs.modality.image_grid()
    x, y = ((arrays[axis][1:] + arrays[axis][:-1]) / 2 for axis in "xy")
    for view, cells in enumerate(arrays["cells"]):
        for row, column in [(0, 0), (2, 3), (len(y) - 1, len(x) - 1)]:
            token = int(cells[row, column]) - 1
            x0, y0, x1, y1 = grid.boxes[token].tolist()
            assert x0 < x[column] < x1 and y0 < y[row] < y1 and bool(grid.view[token] > 0) == bool(view)


def test_boxes_without_area_or_place_are_in_no_cell_and_many_lines_are_thinned():
    boxes = torch.rand(2000, 2, 2).sort(dim=1).values.flatten(1) * 300
    boxes[0], boxes[1, 2] = torch.nan, boxes[1, 0]
    grid = ImageGrid(boxes, torch.zeros(2000, dtype=torch.long), torch.zeros(2000, dtype=torch.bool), 300, 300)
    raster = explorer_numbers.raster_of(grid)
    assert max(raster["cells"].shape) <= explorer_numbers.LINES + 1
    assert not np.isin([1, 2], raster["cells"]).any() and raster["cells"].any()
    nowhere = replace(grid, boxes=torch.full_like(boxes, torch.nan))
    with pytest.raises(LensplugError, match="no token of this image has a place"):
        explorer_numbers.raster_of(nowhere)


def test_it_starts_at_the_patch_that_is_looked_at_most(made):
    _, looked, inputs, shown = made
    start = contents(shown)[0]["start"]
    grid, at = inputs.modality.image_grid(), inputs.modality.image_positions()
    rows = looked.values[0, :, :, 0][..., at]
    assert start["patch"] == int(rows.mean((0, 1)).masked_fill(grid.newline, -1).argmax())
    assert float(rows[start["layer"], start["head"], start["patch"]]) == float(rows[..., start["patch"]].max())


def test_the_tiny_models_answer(asked):
    _, looked, inputs, shown = asked
    facts, arrays = contents(shown)
    assert [one["text"] for one in facts["answers"]] == inputs.str_tokens[0][-looked.queries.shape[1] :]
    assert "[the picture]" in facts["chips"] and facts["chips"].count("[the picture]") == 1
    sums = packing.restored(arrays["chip"], arrays["chip_largest"], 255).sum(-1)
    np.testing.assert_allclose(sums, 1, atol=0.05)
    assert facts["picture"].startswith("data:image/jpeg")


def test_a_token_can_neither_end_a_script_nor_become_html():
    said, looked, inputs, image = small(answer=[HOSTILE, HOSTILE], text=lambda one: HOSTILE)
    shown = views.image_explorer(said, looked, inputs, image=image)
    assert shown.body.count("</script>") == 2 and "<img" not in shown.body
    facts, arrays = contents(shown)
    assert facts["answers"][0]["text"] == HOSTILE and json.loads(arrays["texts"].tobytes())[0] == HOSTILE
    assert "<img" not in re.sub(r"<script\b.*?</script>", "", shown.to_html(), flags=re.DOTALL)


def test_what_is_refused(made):
    said, looked, inputs, _ = made
    image = np.zeros((48, 64, 3), dtype=np.uint8)
    with pytest.raises(LensplugError, match="picture is not known"):
        views.image_explorer(said, looked, inputs)
    with pytest.raises(LensplugError, match="no geometry"):
        unplaced = replace(inputs, modality=replace(inputs.modality, grids={}))
        views.image_explorer(said, looked, unplaced, image=image)
    fewer = said_of(said.positions[0, 1:], 3, top_k=2, vocabulary=4, text=str)
    for other in (fewer, replace(said, positions=said.positions.flip(1))):
        with pytest.raises(LensplugError, match="image_positions"):
            views.image_explorer(other, looked, inputs, image=image)
    for values, message in (
        (looked.values[..., 1:], "the inputs that were run"),
        (looked.values[:, 1:], "2 layers, the logit lens 3"),
        (looked.values[..., :0, :], "no query"),
    ):
        with pytest.raises(LensplugError, match=message):
            other = replace(looked, values=values, queries=looked.queries[:, : values.shape[3]])
            views.image_explorer(said, other, inputs, image=image)
    with pytest.raises(LensplugError, match="the picture is"):
        views.image_explorer(said, looked, inputs, image=image[:20])


def test_a_page_of_a_real_model_stays_under_8_mb_even_with_noise(tmp_path):
    """3,000 image tokens, 24 layers, 14 heads, top-5 of 150,000 tokens, four answer tokens, all of it noise."""
    grid = grid_of(24, 2, 2, 900, 620)
    said, looked, inputs, image = random_results(grid, layers=24, heads=14, answer=["a", "b", "c", "d"])
    assert 2900 < len(grid) < 3100
    shown = views.image_explorer(said, looked, inputs, image=image)
    assert shown.save(tmp_path / "explorer.html").stat().st_size < 8_000_000
    facts, arrays = contents(shown)
    at = inputs.modality.image_positions()
    back = packing.restored(arrays["attention"], arrays["largest"], facts["steps"])
    expected = looked.values[0, ..., at].permute(2, 0, 1, 3).numpy()
    assert np.abs(back - expected).max() <= 1.02 * expected.max() / facts["steps"]
    assert f"attention in {facts['steps']} steps for each answer token" in shown.body


def test_a_notebook_frame_is_self_contained(made):
    frame = made[-1]._repr_html_()
    assert frame.startswith("<iframe srcdoc=") and "default-src &#x27;none&#x27;" in frame and "<script" not in frame


POINT = """
<script>
const said = () => [".lens", ".heads"].map((panel) => document.querySelector(`${panel} .said`).textContent).join();
const later = () => new Promise((go) => setTimeout(go, 300));
const until = async (ready) => { while (!ready()) await later(); };
(async () => {
  await until(() => window.lensplugExplorer);
  const { plots, facts, state } = window.lensplugExplorer, seen = [said()];
  const table = () => JSON.stringify(plots.lens.data[0].text) + JSON.stringify(plots.heads.data[0].customdata);
  const tables = [table()];
  const surface = plots.picture.querySelector(".nsewdrag");
  const { left, top, width, height } = surface.getBoundingClientRect();
  const move = { clientX: left + 0.07 * width, clientY: top + 0.6 * height, bubbles: true };
  surface.dispatchEvent(new MouseEvent("mousemove", move));
  await later(); const hovered = state.hovered; seen.push(said()); tables.push(table());
  window.lensplugExplorer.hover(3); await later(); seen.push(said()); tables.push(table());
  window.lensplugExplorer.hover(null); await later();
  const back = said() === seen[0];
  window.lensplugExplorer.pin(5); await later();
  document.querySelector("[data-answer='1']").click(); await later();
  document.querySelector(".most button").click(); await later();
  plots.picture.focus();
  document.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight" })); await later();
  const moved = state.pinned;
  document.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape" })); await later();
  const report = { seen: new Set(seen).size, tables: new Set(tables).size, back, moved, under: hovered, ...state,
    images: document.querySelectorAll("img, main b").length,
    heads: document.querySelector(".heads h3").textContent, chips: document.querySelectorAll(".colored-tokens").length,
    value: window.lensplugExplorer.attention(1, 2, 4), guess: window.lensplugExplorer.guess(2, 1, 4) };
  document.body.dataset.report = JSON.stringify(report);
})();
</script>"""


@pytest.mark.skipif(BROWSER is None, reason="needs a Chromium; the other tests run without")
@pytest.mark.parametrize("hostile", [False, True])
def test_pointing_in_a_browser_changes_the_tables_without_an_error_or_a_request(made, tmp_path, hostile):
    said, looked, inputs, shown = made
    if hostile:
        said, looked, inputs, image = small(answer=[HOSTILE, "."], text=lambda one: f"{one}{HOSTILE}")
        shown = views.image_explorer(said, looked, inputs, image=image)
    path = tmp_path / "explorer.html"
    page = shown.to_html()
    own = re.findall(r'<script nonce="\w+">', page)[0]  # the page runs no other script
    path.write_text(page.replace("</body>", POINT.replace("<script>", own) + "</body>"), encoding="utf-8")
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}",
        "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--virtual-time-budget=30000",
        "--window-size=1300,900", "--dump-dom", path.as_uri(),
    ]  # fmt: skip
    run = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)
    console = [line for line in run.stderr.splitlines() if "CONSOLE" in line]
    assert not console, console
    report = re.search(r'data-report="(.*?)"', run.stdout)
    assert report is not None, run.stdout[-2000:]
    result = json.loads(html.unescape(report[1]))
    assert result["seen"] == result["tables"] == 3 and result["back"]
    x0, y0, x1, y1 = inputs.modality.image_grid().boxes[result["under"]].tolist()
    assert x0 < 0.07 * 64 < x1 and y0 < 0.6 * 48 < y1
    assert result["answer"] == 1 and result["pinned"] is None and result["moved"] != 5
    assert result["heads"] == "How much each head looks at the picture" and result["chips"] == 1
    at = int(inputs.modality.image_positions()[4])
    row = looked.values[0, 1, 2, 1]
    assert result["value"] == pytest.approx(float(row[at]), abs=float(row.max()) / 255)
    assert result["guess"]["text"] == html.unescape(visible(said.top_texts[0][2][4][1]))
    assert result["images"] == 0

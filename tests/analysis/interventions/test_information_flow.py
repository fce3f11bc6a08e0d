"""Cut paths against minus infinity that a hook writes into the scores, path by path and window by window."""

from __future__ import annotations

import random
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from support import models

import lensplug
from lensplug import analysis, views
from lensplug.analysis.interventions.flow_paths import Path, default_window, edges_of, windows_of
from lensplug.errors import LensplugError, LensplugWarning
from lensplug.interventions import Region, Seconds, Words, grid_regions
from lensplug.tiny.scenes import draw_scene
from lensplug.tiny.voices import make_voice

QUESTION = "What is the color? Answer single word."
PATHS: dict[str, Path] = {
    "picture": ("image", "last"),
    "read": ("image", "question"),
    "question": ("question", "last"),
    "words": (Words("color"), "last"),
    "role": (Words("user"), "all"),
}
IMAGES = [[models.scene(96, 48, seed)] for seed in range(2)]


@pytest.fixture(scope="module")
def untrained():
    """Random weights under which every path matters."""
    return lensplug.wrap(*models.llava_onevision())


@pytest.fixture(scope="module")
def trained():
    return lensplug.tiny.llava_onevision()


def examples_of(colors):
    scenes = [draw_scene(random.Random(seed), size=(48, 48), color=color) for seed, color in enumerate(colors)]
    return [analysis.Example(QUESTION, scene.color.capitalize(), images=[scene.image]) for scene in scenes]


def with_hooks(lens, inputs, keys, queries, window, target):
    """The probabilities of the target with a plain hook on the scores of each layer of the window."""
    cut = queries[:, None, :, None] & keys[:, None, None, :] & ~torch.eye(inputs.shape[1], dtype=torch.bool)

    def hook(scores, hook):
        return scores.masked_fill(cut, -torch.inf)

    logits = lens.run_with_hooks(inputs, fwd_hooks=[(("attn_scores", layer), hook) for layer in window])
    return logits[:, -1].float().softmax(dim=-1)[torch.arange(len(inputs)), target]


def masks_by_hand(inputs):
    """Keys and queries of `PATHS`."""
    image, last = inputs.modality.mask("image"), torch.zeros(inputs.shape, dtype=torch.bool)
    last[:, -1] = True
    question, color, first = torch.zeros_like(last), torch.zeros_like(last), torch.zeros_like(last)
    for example, texts in enumerate(inputs.str_tokens):
        start = texts.index("What")
        question[example, start : texts.index("<|im_end|>", start)] = True
        color[example, len(texts) - 1 - texts[::-1].index(" color")] = True  # the last
        first[example, texts.index("user")] = True
    attended = inputs.attention_mask.bool()
    return [(image, last), (image, question), (question, last), (color, last), (first, attended)]


@pytest.mark.parametrize("window", [1, 2, 3])
def test_each_path_and_window_is_that_of_hooks_on_the_scores(untrained, window):
    """In a batch whose prompts are padded at the left."""
    inputs = untrained.prepare([QUESTION, f"{QUESTION} What is the color?"], images=IMAGES)
    assert not bool(inputs.attention_mask.all())
    target = untrained.logits_at(inputs, torch.full((2, 1), inputs.shape[1] - 1))[:, 0].argmax(dim=-1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LensplugWarning)
        flow = analysis.information_flow(untrained, inputs, target, paths=PATHS, window=window, draws=1, progress=False)
    n_layers = untrained.model.cfg.n_layers
    nothing = torch.zeros(inputs.shape, dtype=torch.bool)
    plain = with_hooks(untrained, inputs, nothing, nothing, [], target)
    assert models.largest_difference(flow.baseline.exp(), plain) < 1e-5
    for path, (keys, queries) in enumerate(masks_by_hand(inputs)):
        for layer in range(n_layers):
            cut = range(max(0, layer - (window - 1) // 2), min(n_layers, layer + window // 2 + 1))
            expected = with_hooks(untrained, inputs, keys, queries, cut, target)
            found = flow.log_probability[:, path, layer].exp()
            assert models.largest_difference(found, expected) < 1e-5, (flow.paths[path], layer)
            change = 100 * (expected.double() - plain.double()) / plain.double()
            torch.testing.assert_close(flow.change[:, path, layer], change, rtol=1e-2, atol=0.05)
            assert flow.windows[layer] == (cut[0], cut[-1])
    assert float(flow.change.abs().amax(dim=(0, 2)).min()) > 1, "every path matters here"


def test_the_control_cuts_other_keys_for_the_same_queries(untrained):
    inputs = untrained.prepare(QUESTION, images=IMAGES[0])
    with pytest.warns(LensplugWarning, match="probability is below"):
        flow = analysis.information_flow(untrained, inputs, 7, paths=PATHS, window=2, draws=2, seed=3, progress=False)
    edges = edges_of(inputs, PATHS)[0]
    for path, edge in enumerate(edges):
        queries = edge.queries[0].nonzero()[:, 0]
        drawn = edge.controls(2, 3)
        visible = {key for key in range(inputs.shape[1]) if key < int(queries.max())}
        for keys in drawn.tolist():
            assert (
                len(set(keys))
                == len(keys)
                == min(edge.n_keys, len(visible - set(edge.keys[0].nonzero()[:, 0].tolist())))
            )
            assert not bool(edge.keys[0, keys].any()) and set(keys) <= visible
        assert flow.control_keys[0, path] == drawn.shape[1] and flow.keys[0, path] == edge.n_keys
        for draw, keys in enumerate(drawn):
            mask = torch.zeros(inputs.shape, dtype=torch.bool).index_fill(1, keys, value=True)
            expected = with_hooks(untrained, inputs, mask, edge.queries, [2, 3], torch.tensor([7]))
            assert models.largest_difference(flow.control[0, path, draw, 2].exp(), expected[0]) < 1e-5
    assert not torch.equal(edges[2].controls(2, 3), edges[2].controls(2, 4))


def test_a_picture_that_is_nearly_all_of_a_prompt_has_no_control(untrained):
    """Which is said, with numbers; its regions have one."""
    inputs = untrained.prepare("What?", images=[[models.scene(384, 384, seed) for seed in range(3)]])
    options: dict[str, Any] = {"window": 1, "layers": [0], "progress": False}
    target = int(untrained.logits_at(inputs, torch.tensor([[inputs.shape[1] - 1]]))[0, 0].argmax())
    n_image, others = int(inputs.modality.mask("image").sum()), int((~inputs.modality.mask("image")).sum()) - 1
    assert others < 0.1 * n_image
    said = f"'image → last' cuts {n_image} keys, and its control all {others} others"
    with pytest.warns(LensplugWarning, match=said):
        flow = analysis.information_flow(untrained, inputs, target, paths=[("image", "last")], draws=1, **options)
    title = views.information_flow(flow).layout.title.text.replace("<br>", " ")
    assert f"image → last {others} for {n_image:,}" in title
    cells = {name: (cell, "last") for name, cell in grid_regions(2, 2).items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error", LensplugWarning)
        analysis.information_flow(untrained, inputs, target, paths=cells, draws=1, **options)
        analysis.information_flow(untrained, inputs, target, paths=[("image", "last")], draws=0, **options)


def test_no_layers_change_nothing(trained):
    flow = analysis.information_flow(trained, examples_of(["red", "blue"]), window=0, draws=1, progress=False)
    assert flow.windows[0] == (0, -1)
    assert bool((flow.change == 0).all()) and bool((flow.control_change == 0).all())


def test_what_the_trained_model_reads_is_read_in_its_second_layer(trained):
    """From the picture to the last position, without the question in between."""
    examples = examples_of(["red", "blue", "green", "yellow"])
    flow = analysis.information_flow(trained, examples, progress=False)
    assert flow.paths == ("image → last", "image → question", "question → last")
    assert bool((flow.baseline.exp() > 0.99).all())
    of_picture = flow.change[:, 0].mean(dim=0)
    assert float(of_picture[1]) < -50 and float(of_picture[[0, 2, 3, 4, 5]].abs().max()) < 2
    assert float(flow.change[:, 1:].abs().max()) < 5 and float(flow.control_change.abs().max()) < 5


def test_batches_and_inputs_give_the_same(trained):
    examples = examples_of(["red", "blue", "green"])
    together = analysis.information_flow(trained, examples, draws=2, progress=False)
    in_batches = analysis.information_flow(trained, examples, draws=2, batch_size=2, progress=False)
    alone = [
        analysis.information_flow(
            trained, trained.prepare(each.text, images=list(each.images)), each.answer, draws=2, progress=False
        )
        for each in examples
    ]
    for other in (in_batches, analysis.InformationFlow.combine(alone)):
        for name in ("log_probability", "control", "baseline"):
            torch.testing.assert_close(getattr(other, name), getattr(together, name), rtol=1e-4, atol=1e-5)
        assert torch.equal(other.keys, together.keys) and other.targets == together.targets
    assert together.examples == (QUESTION,) * 3 and alone[0].examples == (QUESTION,)


def test_means_and_intervals(trained):
    flow = analysis.information_flow(trained, examples_of(["red", "blue", "green", "red"]), draws=3, progress=False)
    table = flow.mean(replicates=200)
    row = table[(table.path == "image → last") & (table.layer == 1)].iloc[0]
    probabilities = flow.log_probability[:, 0, 1].double().exp().numpy()
    before = flow.baseline.double().exp().numpy()
    expected = 100 * (probabilities - before) / before
    assert row.change == pytest.approx(expected.mean()) and expected.min() <= row.low <= row.change <= row.high
    draws = flow.control_change[:, 0, :, 1].mean(dim=0)
    assert row.control_change == pytest.approx(float(draws.mean()))
    assert row.draws_low == pytest.approx(float(draws.min())) and row.draws_high == pytest.approx(float(draws.max()))
    assert row.beyond_control == pytest.approx(row.change - row.control_change)
    assert (row.first_layer, row.last_layer, row.examples) == (1, 1, 4)
    rows = flow.to_dataframe()
    assert len(rows) == 4 * 3 * 6
    one = rows[(rows.example == 2) & (rows.path == "question → last") & (rows.layer == 5)].iloc[0]
    assert one.change == pytest.approx(float(flow.change[2, 2, 5])) and one["keys"] == int(flow.keys[2, 2])
    assert np.isnan(analysis.InformationFlow.mean(_first(flow)).low).all(), "one example has no interval"


def _first(flow):
    from dataclasses import replace

    names = ("log_probability", "control", "baseline", "keys", "control_keys", "examples", "targets")
    return replace(flow, **{name: getattr(flow, name)[:1] for name in names})


def test_by_region_and_by_span_of_time(trained):
    """Cells in shares of the picture are boxes in its pixels; a span of time is what is heard in it."""
    inputs = trained.prepare(QUESTION, images=[models.scene(96, 48)])
    paths = {name: (cell, "last") for name, cell in grid_regions(2, 4).items()}
    assert list(paths)[:2] == ["row 0, column 0", "row 0, column 1"] and len(paths) == 8
    edges = dict(zip(paths, edges_of(inputs, paths)[0], strict=True))
    (by_pixels,) = edges_of(inputs, {"cell": (Region((24.0, 24.0, 48.0, 48.0)), "last")})[0]
    assert torch.equal(edges["row 1, column 1"].keys, by_pixels.keys)
    covered = torch.stack([edge.keys for edge in edges.values()]).any(dim=0)
    placed = inputs.modality.image_grid().placed
    assert torch.equal(covered[inputs.modality.mask("image")], placed)
    lens = lensplug.tiny.audio_llama()
    voice = make_voice(random.Random(1), emotion="angry", place="late")
    heard = lens.prepare(voice.prompt("sound"), audio=[voice.audio])
    timeline = heard.modality.audio_timeline()
    assert timeline is not None
    middle = float(timeline.duration_s) / 2
    spans = {"first half": (Seconds(0.0, middle), "last"), "second half": (Seconds(middle, 60.0), "last")}
    flow = analysis.information_flow(lens, heard, lens.generate(heard, max_new_tokens=1).text[0], paths=spans, window=3,
                                     draws=0, progress=False)  # fmt: skip
    sound = heard.modality.mask("audio")[0].nonzero()[:, 0]
    last = torch.zeros(heard.shape, dtype=torch.bool).index_fill(1, torch.tensor([heard.shape[1] - 1]), value=True)
    for path, heard_then in enumerate([timeline.start_s < middle, timeline.end_s > middle]):
        keys = torch.zeros(heard.shape, dtype=torch.bool).index_fill(1, sound[heard_then], value=True)
        token = lens.tokenizer(flow.targets[0], add_special_tokens=False)["input_ids"]
        expected = with_hooks(lens, heard, keys, last, [1, 2, 3], torch.tensor(token))
        assert models.largest_difference(flow.log_probability[0, path, 2].exp(), expected[0]) < 1e-5
        assert int(flow.keys[0, path]) == int(heard_then.sum())
    assert flow.control.shape == (1, 2, 0, 6)


def test_windows():
    assert [default_window(n) for n in (1, 6, 12, 24, 28, 32, 40, 80)] == [1, 1, 3, 7, 7, 9, 9, 9]
    assert [list(each) for each in windows_of([0, 2, 5], 3, 6)] == [[0, 1], [1, 2, 3], [4, 5]]
    assert [list(each) for each in windows_of([0, 3], 4, 6)] == [[0, 1, 2], [2, 3, 4, 5]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": None}, "target is missing"),
        ({"target": "Red Blue"}, "expected one"),
        ({"paths": []}, "there are no paths"),
        ({"paths": [("image", "last"), ("image", "last")]}, "two paths are the same"),
        ({"paths": [("sound", "last")]}, "the beginning of the path"),
        ({"paths": [("audio", "last")]}, "means no position of example 0"),
        ({"paths": {"back": ("last", "image")}}, "the path 'back' has no edge in example 0"),
        ({"window": -1}, "window is -1"),
        ({"draws": -1}, "draws is -1"),
        ({"layers": [6]}, "layers 0 to 5"),
        ({"layers": []}, "there are no layers"),
    ],
)
def test_refused(trained, options, message):
    inputs = trained.prepare(QUESTION, images=IMAGES[0])
    target = options.pop("target", "Red")
    with pytest.raises(LensplugError, match=message):
        analysis.information_flow(trained, inputs, target, progress=False, **options)


def test_refused_examples(trained):
    with pytest.raises(LensplugError, match="there are no examples"):
        analysis.information_flow(trained, [])
    with pytest.raises(LensplugError, match="examples, which have answers of their own"):
        analysis.information_flow(trained, examples_of(["red"]), "Red")

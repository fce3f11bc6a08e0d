"""Values of regions against captum and the textbook formula, over Hugging Face's model on pixels blanked by hand."""

from __future__ import annotations

import math
import random
import sys
from itertools import combinations, product

import numpy as np
import pytest
import torch
from captum.attr import FeatureAblation, ShapleyValues
from PIL import Image
from support.built import ENGINES

import lensplug
from lensplug import LensplugError, analysis
from lensplug.analysis.regions.captum_methods import attributed, need_captum
from lensplug.tiny.scenes import draw_scene
from lensplug.tiny.voices import make_voice

QUESTION = "What is the color? Answer single word."
PROMPT = "<|im_start|>user <image>\nWhat is the color? Answer single word.<|im_end|><|im_start|>assistant\n"


@pytest.fixture(scope="module", params=ENGINES)
def lens(request):
    made = lensplug.tiny.llava_onevision()
    return lensplug.wrap(made.hf_model, made.processor, engine=request.param, check=False)


@pytest.fixture(scope="module")
def drawn():
    """A scene that the model sees as a base view and four tiles; its middle is in no cell of 2 x 2."""
    return draw_scene(random.Random(1), size=(96, 96), color="red", shape="square", place="top")


def quarters(width=96, height=96):
    return [(x, y, x + width // 2, y + height // 2) for y in (0, height // 2) for x in (0, width // 2)]


def value_by_hugging_face(lens, picture, boxes, word="Red"):
    """Which boxes are there -> the logit of a word, of the whole model on what its processor makes of pixels."""
    token = lens.tokenizer(word, add_special_tokens=False)["input_ids"][0]

    def value(present):
        logits = []
        for row in present.tolist():
            pixels = np.array(picture)
            for (x0, y0, x1, y1), is_there in zip(boxes, row, strict=True):
                if not is_there:
                    pixels[y0:y1, x0:x1] = 128
            given = lens.processor(text=[PROMPT], images=[Image.fromarray(pixels)], return_tensors="pt")
            with torch.no_grad():
                logits.append(lens.hf_model(**given).logits[0, -1, token])
        return torch.stack(logits)

    return value


def shapley_by_hand(value, count):
    """The textbook formula over all subsets."""
    table = {row: float(value(torch.tensor([row]))[0]) for row in product((0.0, 1.0), repeat=count)}
    values = []
    for region in range(count):
        others = [index for index in range(count) if index != region]
        total = 0.0
        for size in range(count):
            weight = math.factorial(size) * math.factorial(count - size - 1) / math.factorial(count)
            for members in combinations(others, size):
                before = tuple(float(index in members) for index in range(count))
                after = tuple(float(index in members or index == region) for index in range(count))
                total += weight * (table[after] - table[before])
        values.append(total)
    return torch.tensor(values), table


def test_the_prompt_written_by_hand_is_that_of_the_lens(lens, drawn):
    by_hand = lens.processor(text=[PROMPT], images=[drawn.image], return_tensors="pt")["input_ids"]
    assert torch.equal(by_hand, lens.prepare(QUESTION, images=[drawn.image]).tokens)


def test_exact_values_are_those_of_the_textbook_and_of_captum_on_the_hugging_face_model(lens, drawn):
    inputs = lens.prepare(QUESTION, images=[drawn.image])
    value = value_by_hugging_face(lens, drawn.image, quarters())
    by_hand, table = shapley_by_hand(value, 4)
    ones, zeros = torch.ones(1, 4), torch.zeros(1, 4)

    result = analysis.region_attribution(lens, inputs, "Red", (2, 2), method="shapley", batch_size=5)
    torch.testing.assert_close(result.values[0], by_hand, atol=2e-3, rtol=1e-4)
    known = lambda rows: torch.tensor([table[tuple(row)] for row in rows.tolist()])  # noqa: E731
    torch.testing.assert_close(
        result.values, ShapleyValues(known).attribute(ones, baselines=zeros), atol=2e-3, rtol=1e-4
    )
    assert float(result.full) == pytest.approx(table[1, 1, 1, 1], abs=2e-3)
    assert float(result.none) == pytest.approx(table[0, 0, 0, 0], abs=2e-3)
    assert abs(float(result.residual)) < 1e-4
    assert result.runs.tolist() == [16] and result.standard_error.tolist() == [[0.0] * 4]
    assert result.boxes is not None
    assert result.boxes.tolist() == [[list(map(float, box)) for box in quarters()]]

    occluded = analysis.region_attribution(lens, inputs, "Red", quarters())
    expected = FeatureAblation(value).attribute(ones, baselines=zeros)
    torch.testing.assert_close(occluded.values, expected, atol=2e-3, rtol=1e-4)
    assert occluded.runs.tolist() == [6]


def test_shapley_values_find_what_occlusion_misses(lens):
    """A shape over several of 4 x 4 cells: each alone is hardly missed, so the effect is shared out."""
    lens = lensplug.tiny.llava_onevision()
    scene = draw_scene(random.Random(3), size=(96, 96), color="red")
    inputs = lens.prepare(QUESTION, images=[scene.image])
    occluded = analysis.region_attribution(lens, inputs, "Red", (4, 4))
    shared = analysis.region_attribution(lens, inputs, "Red", (4, 4), method="shapley", samples=6)
    assert float(occluded.values.max()) < 1 < 2 < float(shared.values[0].sort().values[-2])
    assert abs(float(shared.residual)) < 1e-3 < 10 < float(occluded.residual)
    x0, y0, x1, y1 = scene.box
    for left, top, right, bottom in shared.top(2)[["x0", "y0", "x1", "y1"]].to_numpy():
        assert left < x1 and right > x0 and top < y1 and bottom > y0


@pytest.mark.parametrize("baseline", ["grey", "mean", "blur"])
def test_one_region_holds_the_answer(baseline):
    """The shape against two corners of the background; mean and blur still show its colour."""
    lens = lensplug.tiny.llava_onevision()
    scene = draw_scene(random.Random(3), size=(96, 96), color="red")
    x0, y0, x1, y1 = scene.box
    around = (x0 - 2, y0 - 2, x1 + 2, y1 + 2)
    inputs = lens.prepare(QUESTION, images=[scene.image])
    regions = {"shape": around, "above": (80, 0, 96, 16), "below": (80, 80, 96, 96)}
    result = analysis.region_attribution(lens, inputs, "Red", regions, method="shapley", baseline=baseline)
    shape, *others = result.values[0].tolist()
    assert max(map(abs, others)) < 1
    assert shape > 10 if baseline == "grey" else shape < 10
    assert result.names == (("shape", "above", "below"),)
    assert baseline != "grey" or result.top(1).region.tolist() == ["shape"]


@pytest.mark.parametrize(
    ("method", "samples"), [("occlusion", None), ("shapley", None), ("shapley", 5), ("kernel_shap", 60)]
)
def test_a_function_of_one_region(method, samples):
    values, error = attributed(method, lambda present: 3.0 * present[:, 1].double() + 1, 4, samples, 0)
    torch.testing.assert_close(values, torch.tensor([0.0, 3.0, 0.0, 0.0]), atol=1e-3, rtol=0)
    assert bool(error.isnan().all()) if method == "kernel_shap" else error.abs().max() < 1e-6


def test_drawn_orders_come_near_the_exact_values_by_their_standard_error():
    """A game with interactions: v = number of regions squared, plus region 0 with region 5; φ by hand."""

    def value(present):
        there = present.double()
        return there.sum(dim=1) ** 2 + 10 * there[:, 0] * there[:, 5]

    exact = torch.full((9,), 9.0)
    exact[[0, 5]] += 5.0
    values, error = attributed("shapley", value, 9, 400, 0)
    assert float(error.min()) > 0.1
    assert bool(((values - exact).abs() < 4 * error).all())
    again, _ = attributed("shapley", value, 9, 400, 0)
    other, _ = attributed("shapley", value, 9, 400, 1)
    assert torch.equal(values, again) and not torch.equal(values, other)


def test_kernel_shap_fits_the_exact_values():
    """v = regions squared, and 4 more for the first two together: φ by hand."""

    def value(present):
        there = present.double()
        return there.sum(dim=1) ** 2 + 4 * there[:, 0] * there[:, 1]

    fitted, _ = attributed("kernel_shap", value, 4, 4000, 0)
    torch.testing.assert_close(fitted, torch.tensor([6.0, 6.0, 4.0, 4.0]), atol=0.3, rtol=0)


def test_chance_goes_on_outside(lens, drawn):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    attributed("shapley", lambda present: present[:, 0].double(), 3, 2, 0)
    assert torch.equal(torch.rand(3), expected)


def test_spans_of_a_sound(request):
    """Four spans, samples set to 0 by hand, through the whole model; the last span is shorter."""
    hears = lensplug.tiny.audio_llama()
    voice = make_voice(random.Random(4), emotion="happy", place="early", transcript=False, duration_s=2.0)
    waveform, rate = voice.audio
    inputs = hears.prepare(voice.prompt("sound"), audio=[voice.audio])
    result = analysis.region_attribution(hears, inputs, "Happy", 0.6, method="shapley")
    assert result.kind == "audio" and result.spans_s is not None
    torch.testing.assert_close(result.spans_s[0], torch.tensor([[0, 0.6], [0.6, 1.2], [1.2, 1.8], [1.8, 2.0]]))
    token = hears.tokenizer("Happy", add_special_tokens=False)["input_ids"][0]

    def value(present):
        logits = []
        for row in present.tolist():
            heard = waveform.copy()
            for span, is_there in enumerate(row):
                if not is_there:
                    heard[round(0.6 * span * rate) : round(0.6 * (span + 1) * rate)] = 0
            of_prompt = hears.prepare(voice.prompt("sound"), audio=[(heard, rate)]).model_inputs
            with torch.no_grad():
                logits.append(hears.hf_model(**of_prompt).logits[0, -1, token])
        return torch.stack(logits)

    by_hand, table = shapley_by_hand(value, 4)
    torch.testing.assert_close(result.values[0], by_hand, atol=2e-3, rtol=1e-3)
    assert float(result.full - result.none) == pytest.approx(table[1, 1, 1, 1] - table[0, 0, 0, 0], abs=2e-3)
    spoken = [float(end) > voice.start_s and float(start) < voice.end_s for start, end in result.spans_s[0]]
    assert spoken[int(result.values[0].argmax())]
    named = analysis.region_attribution(
        hears, inputs, "Happy", {"voice": (voice.start_s, voice.end_s), "end": (1.9, 2.0)}
    )
    assert float(named.values[0, 0]) > 5 * abs(float(named.values[0, 1]))


def test_embeddings_are_those_of_a_wholly_blank_picture(lens, drawn):
    inputs = lens.prepare(QUESTION, images=[drawn.image])
    grey = lens.prepare(QUESTION, images=[Image.new("RGB", drawn.image.size, (128,) * 3)])
    left = analysis.region_attribution(lens, inputs, "Red", [(0, 0, 48, 96)], at="embeddings")
    grid = inputs.modality.image_grid()
    # Written out: positions whose box lies at least by half left of x = 48.
    assert grid is not None
    half = ((grid.boxes[:, 2].clamp(max=48) - grid.boxes[:, 0]) / (grid.boxes[:, 2] - grid.boxes[:, 0])) >= 0.5
    positions = inputs.modality.image_positions()[half]
    assert 20 < len(positions) < len(grid)
    embeds = inputs.embeds.clone()
    embeds[:, positions] = grey.embeds[:, positions]
    with torch.no_grad():
        logits = lens.hf_model.get_decoder()(inputs_embeds=embeds).last_hidden_state[:, -1]
        logits = lens.hf_model.get_output_embeddings()(logits)[0]
    token = lens.tokenizer("Red", add_special_tokens=False)["input_ids"][0]
    assert float(left.none) == pytest.approx(float(logits[token]), abs=2e-3)
    assert abs(float(left.none - left.full)) > 0.01


def test_words_of_the_prompt(lens, drawn):
    """Those of the user, one by one; their embeddings replaced by the mean of all, through Hugging Face's decoder."""
    inputs = lens.prepare(QUESTION, images=[drawn.image])
    result = analysis.region_attribution(lens, inputs, "Red", "words")
    assert result.names == (("What", "is", "the", "color?", "Answer", "single", "word."),)
    embeds = inputs.embeds.clone()
    where = inputs.str_tokens[0].index(" color")
    embeds[0, where : where + 2] = lens.hf_model.get_input_embeddings().weight.mean(dim=0)
    with torch.no_grad():
        state = lens.hf_model.get_decoder()(inputs_embeds=torch.cat([inputs.embeds, embeds])).last_hidden_state[:, -1]
        logits = lens.hf_model.get_output_embeddings()(state)
    token = lens.tokenizer("Red", add_special_tokens=False)["input_ids"][0]
    assert float(result.values[0, 3]) == pytest.approx(float(logits[0, token] - logits[1, token]), abs=2e-3)
    texts = analysis.region_attribution(lens, inputs, "Red", ["the color", "single word"])
    assert texts.names == (("the color", "single word"),) and texts.kind == "text"


def test_answers_batches_and_inputs_that_were_encoded(lens):
    """Two examples of different lengths at once are those of each alone; an answer of several tokens is a target."""
    scenes = [draw_scene(random.Random(seed), size=size) for seed, size in ((1, (48, 48)), (2, (96, 48)))]
    pictures = [[scene.image] for scene in scenes]
    both = lens.prepare([QUESTION] * 2, images=pictures, answer=["Blue square", "Red"])
    result = analysis.region_attribution(lens, both, both, (2, 1), measure="log_probability")
    for example in range(2):
        alone = lens.prepare(QUESTION, images=pictures[example], answer=["Blue square", "Red"][example])
        expected = analysis.region_attribution(lens, alone, alone, (2, 1), measure="log_probability")
        torch.testing.assert_close(result.values[example], expected.values[0], atol=2e-3, rtol=1e-3)
    rows = analysis.RegionAttribution.combine([result, result])
    assert rows.values.shape == (4, 2) and len(rows.masks) == 4
    assert list(result.over_examples().labels) == ["region"]

    by_processor = lens.processor(text=[PROMPT], images=pictures[1], return_tensors="pt")
    known = lens.encode(by_processor, images=pictures[1])
    assert analysis.region_attribution(lens, known, "Red", (2, 1)).values.shape == (1, 2)
    with pytest.raises(LensplugError, match=r"not known.*lens.encode give images=\[\.\.\.\]"):
        analysis.region_attribution(lens, lens.encode(by_processor), "Red")
    with pytest.raises(LensplugError, match="give texts of the prompt as regions"):
        analysis.region_attribution(lens, known, "Red", "words")
    changed = {**by_processor, "pixel_values": by_processor["pixel_values"] * 0.7}
    with pytest.warns(lensplug.LensplugWarning), pytest.raises(LensplugError, match="gives other embeddings"):
        analysis.region_attribution(lens, lens.encode(changed, images=pictures[1]), "Red")


def test_refusals(lens, drawn):
    inputs = lens.prepare(QUESTION, images=[drawn.image])

    def refused(said, regions=(2, 2), **options):
        with pytest.raises(LensplugError, match=said):
            analysis.region_attribution(lens, inputs, "Red", regions, **options)

    refused("a grid of 0 rows|there are 0 regions", (0, 4))
    refused("a grid of 97 rows", (97, 1))
    refused("there are 0 regions", [])
    refused("there are 9216 regions", (96, 96))
    refused("has no area", [(5, 5, 5, 9)])
    refused("no pixel", [(200, 200, 300, 300)])
    refused("give a list of it", [1, 2, 3, 4])
    refused(r"expected a box x0 y0 x1 y1, or a mask of the shape \[96, 96\]", [np.ones((4, 4))])
    refused("regions are of a sound, and these inputs have none", 0.5)
    refused("regions are of a sound", [(0.0, 1.0)])
    refused("the text 'weather' is not in the prompt", ["weather"])
    refused("samples changes nothing", samples=3)
    refused("samples is 0", method="shapley", samples=0)
    refused("Give at least samples=6, better 100", (2, 2), method="kernel_shap", samples=5)
    refused("expected 3 to 100000", method="kernel_shap", samples=10**9)
    refused("there is one region", (1, 1), method="kernel_shap")
    refused("baseline='mean' is for pictures", "words", baseline="mean")
    refused("changes nothing for words", "words", at="embeddings")
    refused("media_index is 1", media_index=1)
    refused("batch_size is 0", batch_size=0)


def test_what_to_install(monkeypatch):
    """scikit-learn only where captum asks for it."""
    monkeypatch.setitem(sys.modules, "sklearn", None)
    need_captum("shapley")
    with pytest.raises(LensplugError, match=r"'kernel_shap' needs scikit-learn: pip install 'lensplug\[attribution\]'"):
        need_captum("kernel_shap")
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(LensplugError, match="'occlusion' needs captum: pip install"):
        need_captum("occlusion")

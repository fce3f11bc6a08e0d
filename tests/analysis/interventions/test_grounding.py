"""Log-probabilities of given answers against those of the Hugging Face model, with the picture and with a grey one."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image
from support.built import ENGINES

import lensplug
from lensplug import LensplugError, analysis, views
from lensplug.analysis import Example, Grounding
from lensplug.tiny.scenes import draw_scene
from lensplug.tiny.voices import make_voice

QUESTION = "What is the color? Answer single word."
PHRASE = "What is the color? Answer in a phrase."


@pytest.fixture(scope="module", params=ENGINES)
def lens(request):
    made = lensplug.tiny.llava_onevision()
    return lensplug.wrap(made.hf_model, made.processor, engine=request.param, check=False)


def scene(color: str, size: tuple[int, int] = (48, 48)):
    return draw_scene(random.Random(1), size=size, color=color).image


def by_hugging_face(lens, example: Example, picture) -> list[float]:
    """The log-probability of each token of the answer, from the whole model."""
    inputs = lens.prepare(example.text, images=[picture], answer=example.answer)
    of_prompt = lens.prepare(example.text, images=[picture]).model_inputs
    given = {**of_prompt, "input_ids": inputs.tokens, "attention_mask": inputs.attention_mask}
    with torch.no_grad():
        logits = lens.hf_model(**given).logits[0].float().log_softmax(dim=-1)
    answered = inputs.modality.mask("generated")[0].nonzero()[:, 0].tolist()
    return [float(logits[position - 1, inputs.tokens[0, position]]) for position in answered]


@pytest.mark.parametrize("batch_size", [1, 8])
def test_log_probabilities_are_those_of_the_whole_model(lens, batch_size):
    """Answers of one and of three tokens, pictures of two sizes."""
    examples = [
        Example(QUESTION, "Red", images=[scene("red")]),
        Example(PHRASE, "Blue square Red", images=[scene("blue", (96, 48))]),
    ]
    result = analysis.grounding(lens, examples, "image", batch_size=batch_size)
    for index, example in enumerate(examples):
        picture = example.images[0]
        grey = Image.fromarray(np.full((picture.height, picture.width, 3), 128, np.uint8))
        for values, seen in ((result.with_medium, picture), (result.with_blank, grey)):
            expected = by_hugging_face(lens, example, seen)
            assert len(result.texts[index]) == len(expected)
            torch.testing.assert_close(values[index, : len(expected)], torch.tensor(expected), atol=2e-3, rtol=1e-4)
            assert bool(values[index, len(expected) :].isnan().all())
    assert len(result.texts[0]) < len(result.texts[1]) == result.with_medium.shape[1]


def test_attention_knocked_out_is_hugging_faces_decoder_with_a_mask(lens):
    """Beside the blank: the picture stays, and its columns are masked in every layer."""
    examples = [Example(QUESTION, "Red", images=[scene("red")]), Example(PHRASE, "Blue square", images=[scene("blue")])]
    result = analysis.grounding(lens, examples, "image", knockout=True)
    assert result.with_knockout is not None and result.knockout_difference is not None
    of_knockout = result.knockout_difference
    for index, example in enumerate(examples):
        inputs = lens.prepare(example.text, images=list(example.images), answer=example.answer)
        length = inputs.shape[1]
        sees = torch.ones(length, length, dtype=torch.bool).tril() & ~inputs.modality.mask("image")[0]
        mask = torch.zeros(1, 1, length, length).masked_fill(~sees, torch.finfo(torch.float32).min)
        with torch.no_grad():
            states = lens.hf_model.get_decoder()(
                inputs_embeds=inputs.embeds, attention_mask=mask, position_ids=torch.arange(length)[None]
            ).last_hidden_state
            logits = lens.hf_model.get_output_embeddings()(states)[0].log_softmax(dim=-1)
        places = inputs.modality.mask("generated")[0].nonzero()[:, 0]
        expected = logits[places - 1, inputs.tokens[0, places]]
        torch.testing.assert_close(result.with_knockout[index, : len(places)], expected, atol=1e-3, rtol=1e-4)
        assert float((of_knockout - result.difference)[index, 0].abs()) > 0.1
    table = result.to_dataframe()
    assert table["knockout_difference"].tolist() == pytest.approx(
        result.knockout_difference[~result.difference.isnan()]
    )
    bars = views.grounding(result).data
    assert [bar.name for bar in bars] == ["blank image", "attention knocked out"]
    plain = analysis.grounding(lens, examples, "image")
    assert plain.with_knockout is None and "knockout_difference" not in plain.to_dataframe()
    with pytest.raises(LensplugError, match="convention"):
        Grounding.combine([plain, result])


def test_the_color_needs_the_picture(lens):
    examples = [
        Example(QUESTION, color.capitalize(), images=[scene(color)]) for color in ("red", "green")
    ]  # of grey it says "Blue"
    result = analysis.grounding(lens, examples, "image")
    assert [texts[0] for texts in result.texts] == ["Red", "Green"]
    assert float(result.difference[:, 0].min()) > 1
    wrong = analysis.grounding(lens, [Example(QUESTION, "Blue", images=[scene("red")])], "image")
    assert float(wrong.difference[0, 0]) < float(result.difference[:, 0].min())
    torch.testing.assert_close(result.total, result.difference.nansum(dim=1))


def test_a_sound_against_silence():
    lens = lensplug.tiny.audio_llama()
    voice = make_voice(random.Random(4), emotion="happy", transcript=False)
    prompt = voice.prompt("sound")
    answer = lens.generate(lens.prepare(prompt, audio=[voice.audio])).text[0]
    result = analysis.grounding(lens, [Example(prompt, answer, audio=[voice.audio])], "audio")
    assert float(result.difference[0, 0]) > 1


def test_tables_combination_and_figure(lens):
    examples = [Example(QUESTION, answer, images=[scene("red")]) for answer in ("Red", "Red square <b>")]
    results = [analysis.grounding(lens, [example], "image") for example in examples]
    both = Grounding.combine(results)
    table = both.to_dataframe()
    assert len(table) == sum(len(texts) for texts in both.texts)
    assert table["difference"].tolist() == pytest.approx(
        (table["log_probability"] - table["log_probability_blank"]).tolist(), abs=1e-5
    )
    figure = views.draw(both)
    assert list(figure.data[0].y) == pytest.approx(both.difference[0, : len(both.texts[0])].tolist())
    assert "&lt;b&gt;" in "".join(views.grounding(both, example=1).layout.xaxis.ticktext)


@pytest.mark.parametrize(
    ("examples", "medium", "message"),
    [
        ([], "image", "there are no examples"),
        ([Example(QUESTION, "Red")], "image", "has no image: there is nothing to replace"),
        ([Example(QUESTION, "Red", images=[scene("red")])], "audio", "has no audio: there is nothing to replace"),
        ([Example(QUESTION, 5, images=[scene("red")])], "image", "the answer 5 is not a text"),
        ([Example(QUESTION, "", images=[scene("red")])], "image", "has no answer: give the words of one"),
        ([Example(QUESTION, "Red", images=[scene("red")])], "smell", "medium is 'smell', expected 'image'"),
    ],
)
def test_what_cannot_be_compared_is_refused(lens, examples, medium, message):
    with pytest.raises(LensplugError, match=message):
        analysis.grounding(lens, examples, medium)

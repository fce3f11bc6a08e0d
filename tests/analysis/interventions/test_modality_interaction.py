"""The four log-probabilities against Hugging Face's model on embeddings written by hand, and what follows from them."""

from __future__ import annotations

import random

import pytest
import torch
from PIL import Image
from support.built import ENGINES

import lensplug
from lensplug import LensplugError, analysis, views
from lensplug.analysis import Example, ModalityInteraction
from lensplug.analysis.provenance import Provenance
from lensplug.tiny.scenes import draw_scene
from lensplug.tiny.voices import make_voice

QUESTION = "What is the color? Answer single word."
WORDS = ["What", " is", " the", " color", "?", " Answer", " single", " word", "."]


@pytest.fixture(scope="module", params=ENGINES)
def lens(request):
    made = lensplug.tiny.llava_onevision()
    return lensplug.wrap(made.hf_model, made.processor, engine=request.param, check=False)


def scene(color: str, size: tuple[int, int] = (48, 48)):
    return draw_scene(random.Random(1), size=size, color=color).image


def by_hugging_face(lens, answer: str, picture, *, words: bool) -> list[float]:
    """Of each token of the answer; without words, the nine of the question are the mean of the embedding matrix."""
    inputs = lens.prepare(QUESTION, images=[picture], answer=answer)
    embeds = inputs.embeds.clone()
    start = inputs.str_tokens[0].index("What")
    assert inputs.str_tokens[0][start : start + 9] == WORDS
    if not words:
        embeds[0, start : start + 9] = lens.hf_model.get_input_embeddings().weight.mean(dim=0)
    with torch.no_grad():
        state = lens.hf_model.get_decoder()(inputs_embeds=embeds).last_hidden_state
        logits = lens.hf_model.get_output_embeddings()(state)[0].log_softmax(dim=-1)
    answered = inputs.modality.mask("generated")[0].nonzero()[:, 0].tolist()
    return [float(logits[position - 1, inputs.tokens[0, position]]) for position in answered]


def test_four_conditions_are_those_of_hugging_face(lens):
    """Answers of one and of two tokens, pictures of two sizes, so the first prompt is padded."""
    examples = [
        Example(QUESTION, "Red", images=[scene("red")]),
        Example(QUESTION, "Blue Red", images=[scene("blue", (96, 48))]),
    ]
    result = analysis.modality_interaction(lens, examples, "image")
    for index, example in enumerate(examples):
        picture = example.images[0]
        grey = Image.new("RGB", picture.size, (128, 128, 128))
        cases = [(picture, True), (picture, False), (grey, True), (grey, False)]
        for condition, (seen, words) in enumerate(cases):
            expected = torch.tensor(by_hugging_face(lens, str(example.answer), seen, words=words))
            found = result.log_probability[condition, index, : len(expected)]
            torch.testing.assert_close(found, expected, atol=2e-3, rtol=1e-4)
    assert bool(result.log_probability[:, 0, 1:].isnan().all())
    alone = analysis.modality_interaction(lens, examples, "image", batch_size=1)
    torch.testing.assert_close(result.interaction, alone.interaction, atol=5e-3, rtol=1e-3, equal_nan=True)


def made(*values):
    log_probability = torch.tensor(values)[:, None, None]
    return ModalityInteraction(
        log_probability, (("Red",),), "image", Provenance("modality_interaction", "a", "", "", {})
    )


@pytest.mark.parametrize(
    ("values", "by_medium", "by_text", "interaction"),
    [
        ((-1.0, -3.0, -4.0, -6.0), 3.0, 2.0, 0.0),  # each adds what it adds in any case
        ((0.0, -6.0, -6.0, -6.0), 0.0, 0.0, 6.0),  # only together
        ((0.0, 0.0, 0.0, -6.0), 6.0, 6.0, -6.0),  # either is enough
    ],
)
def test_what_adds_how_much_by_hand(values, by_medium, by_text, interaction):
    result = made(*values)
    assert [float(part) for part in (result.by_medium, result.by_text, result.interaction)] == [
        by_medium, by_text, interaction,
    ]  # fmt: skip
    summary = result.summary().iloc[0]
    assert summary.both - summary.neither == pytest.approx(by_medium + by_text + interaction)
    assert summary.answer == "Red"
    rows = result.over_examples().values
    assert {name: float(value) for name, value in rows.items()} == {
        "interaction": interaction, "by_medium": by_medium, "by_text": by_text,
    }  # fmt: skip
    assert [bar.y[0] for bar in views.modality_interaction(result).data] == [by_medium, by_text, interaction]


def test_kept_words_stay_and_sounds_interact_too():
    """With the question kept and nothing else to take away there is nothing to ask; with a transcript there is."""
    hears = lensplug.tiny.audio_llama()
    voice = make_voice(random.Random(4), emotion="happy", words="sad", transcript=True)
    text = voice.prompt("sound")
    question = text[text.index("How") :]
    example = Example(text, "Sad", audio=[voice.audio], keep=question)
    kept = analysis.modality_interaction(hears, [example], "audio")
    whole = analysis.modality_interaction(hears, [Example(text, "Sad", audio=[voice.audio])], "audio")
    torch.testing.assert_close(kept.log_probability[[0, 2]], whole.log_probability[[0, 2]])
    assert abs(float(kept.log_probability[1, 0, 0] - whole.log_probability[1, 0, 0])) > 0.01
    with pytest.raises(LensplugError, match="no word that could be taken away"):
        analysis.modality_interaction(hears, [Example(text, "Happy", audio=[voice.audio], keep=text)], "audio")


def test_refusals(lens):
    with pytest.raises(LensplugError, match="has no image"):
        analysis.modality_interaction(lens, [Example(QUESTION, "Red")], "image")
    with pytest.raises(LensplugError, match="there are no examples"):
        analysis.modality_interaction(lens, [], "image")
    with pytest.raises(LensplugError, match="is not a text"):
        analysis.modality_interaction(lens, [Example(QUESTION, 5, images=[scene("red")])], "image")

"""Ablation: each method against the embeddings written out by hand; tables by hand; the trained model's behaviour."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import lensplug
from lensplug import ModalityMap, MultimodalInput, analysis
from lensplug.analysis.interventions.ablation_methods import METHODS, Ablation, EmbeddingStatistics
from lensplug.analysis.interventions.ablation_run import Method
from lensplug.analysis.interventions.modality_ablation import ModalityAblation
from lensplug.analysis.provenance import Provenance
from lensplug.hf.language_core import LanguageCore
from lensplug.inputs import edited_inputs
from lensplug.positions.tokens import find_text
from lensplug.tiny.scenes import draw_scene
from lensplug.tiny.voices import QUESTIONS, make_voice


@pytest.fixture(scope="module")
def lens():
    return lensplug.tiny.audio_llama()


def examples(topic, count, seed=0, **options):
    rng = random.Random(seed)
    voices = [make_voice(rng, transcript=True, **options) for _ in range(count)]
    return [analysis.Example(v.prompt(topic), v.answer(topic), audio=[v.audio], keep=QUESTIONS[topic]) for v in voices]


def given(mask, chosen, width=3):
    embeds = torch.arange(len(mask) * len(mask[0]) * width).float().view(len(mask), len(mask[0]), width)
    statistics = EmbeddingStatistics()
    chosen = torch.tensor(chosen).bool()
    statistics.add(embeds, chosen)
    return ablation(embeds, torch.tensor(mask), chosen, statistics, seed=0)


def ablation(embeds, mask, chosen, statistics, *, seed):
    tokens = torch.zeros_like(mask)
    inputs = MultimodalInput(embeds, tokens, mask, ModalityMap.build(tokens, mask, placeholder_ids={}), [])
    return Ablation(OnPlain(), inputs, chosen, statistics, torch.Generator().manual_seed(seed))


class OnPlain:
    """A lens whose core is given embeddings and padding alone."""

    model = tokenizer = None
    core = LanguageCore(
        SimpleNamespace(config=None), torch.nn.Linear(1, 1), SimpleNamespace(model_type="llama"), "plain", {}
    )

    def without(self, inputs, positions):
        return edited_inputs.without(None, self.core, inputs, positions)

    def _never(self, *args: Any, **options: Any) -> Any:
        raise AssertionError("nothing is run")

    prepare = with_media = logits_at = logits_only = run_with_cache = edited_runs = _never


def ran(method, own):
    variant = METHODS[method](own)
    return variant.embeds, variant.attention_mask


MASK = [[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]]
CHOSEN = [[0, 0, 1, 0, 0], [0, 1, 1, 0, 0]]


def test_removal_by_hand():
    own = given(MASK, CHOSEN)
    embeds, mask = ran("remove", own)
    assert mask.tolist() == [[1, 1, 1], [1, 1, 1]]
    assert torch.equal(embeds[0], own.inputs.embeds[0, [1, 3, 4]]) and torch.equal(
        embeds[1], own.inputs.embeds[1, [0, 3, 4]]
    )
    uneven = given(MASK, [[0, 0, 1, 1, 0], [0, 0, 0, 0, 0]])
    embeds, mask = ran("remove", uneven)
    assert mask.tolist() == [[0, 0, 0, 1, 1], [1, 1, 1, 1, 1]]
    assert torch.equal(embeds[0, 3:], uneven.inputs.embeds[0, [1, 4]])


@pytest.mark.parametrize("method", ["zero", "mean", "noise"])
def test_replacement_touches_the_chosen_positions_only(method):
    own = given(MASK, CHOSEN)
    embeds, mask = ran(method, own)
    assert torch.equal(mask, own.inputs.attention_mask)
    assert torch.equal(embeds[~own.chosen], own.inputs.embeds[~own.chosen])
    if method == "zero":
        assert not embeds[own.chosen].any()
    if method == "mean":
        assert torch.allclose(embeds[own.chosen], own.inputs.embeds[own.chosen].mean(dim=0).expand(3, -1))


def test_statistics_are_numpys_and_noise_has_them():
    embeds = torch.randn(4, 500, 3, generator=torch.Generator().manual_seed(1)) * torch.tensor([1.0, 2.0, 0.1]) + 5
    chosen = torch.ones(4, 500).bool()
    statistics = EmbeddingStatistics()
    for row in embeds:
        statistics.add(row[None], chosen[:1])
    flat = embeds.flatten(0, 1).double().numpy()
    assert np.allclose(statistics.mean, flat.mean(axis=0))
    assert np.allclose(statistics.standard_deviation, flat.std(axis=0))
    mask = torch.ones(4, 500).long()
    noisy, _ = ran("noise", ablation(embeds, mask, chosen, statistics, seed=2))
    assert torch.allclose(noisy.flatten(0, 1).std(dim=0), torch.tensor([1.0, 2.0, 0.1]), rtol=0.1)


@torch.no_grad()
@pytest.mark.parametrize("method", ["remove", "zero", "silence"])
def test_log_probabilities_are_hugging_faces_on_the_changed_input(lens, method):
    """The same embeddings, changed by hand, one prompt at a time, through the full Hugging Face model."""
    own = examples("sound", 5)
    result = analysis.modality_ablation(lens, own, "audio", method, batch_size=3)
    for index, example in enumerate(own):
        inputs = lens.prepare(example.text, audio=example.audio)
        at = inputs.modality.mask("audio")[0]
        if method == "silence":
            waveform, rate = example.audio[0]
            embeds = lens.prepare(example.text, audio=[(np.zeros_like(waveform), rate)]).embeds
        else:
            embeds = inputs.embeds[:, ~at] if method == "remove" else inputs.embeds.masked_fill(at[:, None], 0)
        token = lens.tokenizer(example.answer)["input_ids"][0]
        for condition, tensor in ((0, inputs.embeds), (1, embeds)):
            logits = lens.hf_model(inputs_embeds=tensor).logits[0, -1]
            expected = float(logits.log_softmax(-1)[token])
            assert float(result.log_probability[condition, index]) == pytest.approx(expected, abs=1e-3)
            assert result.top_texts[condition][index] == lens.tokenizer.decode([int(logits.argmax())])
    assert result.ablated[:2].tolist() == [[0] * 5, [10] * 5]


def test_the_batch_size_changes_nothing(lens):
    own = examples("feeling", 7)
    one, many = (analysis.modality_ablation(lens, own, "audio", "zero", batch_size=size) for size in (1, 7))
    assert torch.allclose(one.log_probability[:2], many.log_probability[:2], atol=1e-3)


def test_the_trained_model_needs_the_sound_for_its_answers_and_the_control_does_not_matter(lens):
    """The words beside the sound, as many positions of them, change (nearly) nothing for these questions."""
    for topic in ("sound", "time", "pitch"):
        result = analysis.modality_ablation(lens, examples(topic, 60), "audio", "remove", batch_size=30)
        accuracy, changed = result.accuracy, result.changed.float().mean(dim=1).tolist()
        print(f"{topic}: accuracy {accuracy}, changed {changed}")
        assert accuracy["with"] > 0.95 and accuracy["control"] > 0.95 and accuracy["without"] < 0.65
        assert changed[1] > 10 * max(changed[2], 0.02)


def test_words_are_needed_for_what_the_words_say(lens):
    sound = analysis.modality_ablation(lens, examples("words", 60), "audio", "remove", batch_size=30)
    assert sound.accuracy["without"] > 0.95
    text = analysis.modality_ablation(lens, examples("words", 60), "text", "remove", batch_size=30)
    assert text.accuracy["without"] < 0.6 and text.accuracy["control"] > 0.95


def test_without_the_sound_the_speaker_feels_what_the_words_say(lens):
    """Angry in voice, sad in words: which class answers change to is known."""
    own = examples("feeling", 20, emotion="angry", words="sad")
    result = analysis.modality_ablation(lens, own, "audio", "remove", classes=["Happy", "Sad", "Angry", "Neutral"])
    table = result.transitions()
    assert result.accuracy["with"] == 1.0 and int(table.loc["Angry"].sum()) == 20
    assert int(table.loc["Angry", "Sad"]) >= 15


def test_an_image_model_too():
    lens = lensplug.tiny.llava_onevision()
    rng = random.Random(0)
    scenes = [draw_scene(rng, size=(48, 48)) for _ in range(12)]
    own = [
        analysis.Example("What is the color? Answer single word.", scene.color.capitalize(), images=[scene.image])
        for scene in scenes
    ]
    for method in ("blank", "zero"):
        result = analysis.modality_ablation(lens, own, "image", method)
        assert result.accuracy["with"] == 1.0 and result.accuracy["without"] < 0.6
        assert int(result.ablated[1, 0]) > int(result.ablated[2, 0]), "there are fewer words than image positions"


def made(predicted, target, log_probability):
    provenance = Provenance("modality_ablation", "m", "float32", "", {})
    count = len(target)
    return ModalityAblation(
        examples=("p",) * count, classes=("A", "B"), target=torch.tensor(target), predicted=torch.tensor(predicted),
        top_texts=(("A",) * count,) * 3, log_probability=torch.tensor(log_probability),
        ablated=torch.tensor([[0] * count, [10] * count, [4] * count]), modality="audio", method="remove",
        provenance=provenance,
    )  # fmt: skip


def test_tables_by_hand():
    result = made(
        [[0, 1, 0, 1], [1, 1, 1, 1], [0, 1, 1, 1]], [0, 1, 0, 0],
        [[-1.0, -1.0, -2.0, -3.0], [-2.0, -1.0, -4.0, -3.0], [-1.0, -1.0, -2.0, -3.0]],
    )  # fmt: skip
    assert result.accuracy == {"with": 0.75, "without": 0.25, "control": 0.5}
    assert result.changed.tolist() == [[False] * 4, [True, False, True, False], [False, False, True, False]]
    assert result.confusion("with").to_numpy().tolist() == [[2, 1], [0, 1]]
    assert result.confusion("without").to_numpy().tolist() == [[0, 3], [0, 1]]
    assert result.transitions().to_numpy().tolist() == [[0, 2], [0, 2]]
    summary = result.summary()
    assert summary.log_probability_change.tolist() == pytest.approx([0, -0.75, 0])
    assert summary.standard_error["without"] == pytest.approx(np.std([-1, 0, -2, 0], ddof=1) / 2)
    assert summary.positions_ablated.tolist() == [0, 10, 4]
    frame = result.to_dataframe()
    assert len(frame) == 12 and set(frame.condition) == {"with", "without", "control"}
    with pytest.raises(lensplug.LensplugError, match="condition is 'none', expected 'with', 'without' or 'control'"):
        result.confusion("none")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], "audio"), "there are no examples"),
        (
            (1, "audio", "shuffle"),
            "method is 'shuffle', expected 'remove', 'zero', 'mean', 'noise', 'silence' or 'blank'",
        ),
        ((1, "smell"), "modality is 'smell', expected 'audio'"),
        ((1, "audio", "blank"), "method 'blank' is for image and video, not for audio"),
        ((1, "image"), "has no image: there is nothing to ablate"),
        ((1, "audio", "remove", "odds"), "scoring is 'odds', expected 'sum', 'mean' or 'first'"),
        (([analysis.Example("How?", [], audio=[])], "audio"), r"the answer \[\] is no text, token id from 0 to"),
        (([analysis.Example("How?", 10**6, audio=[])], "audio"), "the answer 1000000 is no text"),
        (([analysis.Example("How?", "Happy", keep="Why?")], "text"), r"'Why\?', to be kept, does not occur in"),
    ],
)
def test_refuses(lens, arguments, message):
    own, *rest = arguments
    rest, scoring = rest[:2], dict(zip(["scoring"], rest[2:], strict=False))
    own = examples("sound", own) if isinstance(own, int) else own
    with pytest.raises(lensplug.LensplugError, match=message):
        analysis.modality_ablation(lens, own, *rest, **scoring)


def test_refuses_an_answer_that_is_no_class(lens):
    with pytest.raises(lensplug.LensplugError, match="is not one of the classes Yes, No"):
        analysis.modality_ablation(lens, examples("sound", 1), "audio", classes=["Yes", "No"])


def test_find_text_does_not_count_white_space():
    texts = ["<s>", "\n", "We", "won", " the", " game", ".", " the", " game"]
    assert find_text("the game", texts) == range(7, 9), "the last occurrence"
    assert find_text("We won", texts) == range(2, 4)
    assert find_text("a game", texts) is None and find_text("", texts) is None


class Bytes:
    """Decodes UTF-8 bytes, as byte-level vocabularies do."""

    def decode(self, ids):
        return bytes(ids).decode(errors="replace")


def test_a_character_of_several_tokens_is_found():
    """ "🙂" is four bytes: each alone is decoded to a sign for what is no character."""
    ids = list("<s>I am 🙂, für.</s>".encode())
    texts = [Bytes().decode([one]) for one in ids]
    assert find_text("🙂", texts) is None, "without ids there is no way to know"
    start = len(b"<s>I am ")
    assert find_text("🙂", texts, ids, Bytes()) == range(start, start + 4)
    assert find_text("I am 🙂, für.", texts, ids, Bytes()) == range(3, len(ids) - 4)
    assert find_text("ü", texts, ids, Bytes()) == range(start + 7, start + 9)


@torch.no_grad()
@pytest.mark.parametrize("scoring", ["sum", "mean", "first"])
def test_answers_of_several_tokens_are_scored_as_hugging_face_scores_prompt_and_answer(lens, scoring):
    """The full model on the embeddings of prompt and answer, one prompt at a time."""
    embed = lens.hf_model.get_input_embeddings()
    classes: list[Any] = ["Happy", "Happy and sad", [5, 6, 7], 9]
    own = [
        analysis.Example(one.text, answer, audio=one.audio)
        for one, answer in zip(examples("sound", 4), classes, strict=True)
    ]
    result = analysis.modality_ablation(lens, own, "audio", classes=classes, scoring=scoring, batch_size=3)
    assert result.scores is not None and result.predicted is not None
    ids = [
        lens.tokenizer(one, add_special_tokens=False)["input_ids"] if isinstance(one, str) else one for one in classes
    ]
    ids = [one if isinstance(one, list) else [one] for one in ids]
    assert result.classes[0] == "Happy" and len(ids[1]) > 2
    for index, example in enumerate(own):
        inputs = lens.prepare(example.text, audio=example.audio)
        without = inputs.embeds[:, ~inputs.modality.mask("audio")[0]]
        for condition, prompt in ((0, inputs.embeds), (1, without)):
            for label, tokens in enumerate(ids):
                counted = tokens[: [1, 2, 1, 1][label]] if scoring == "first" else tokens
                whole = torch.cat([prompt, embed(torch.tensor([tokens]))], dim=1)
                rows = lens.hf_model(inputs_embeds=whole).logits[0].log_softmax(-1)[prompt.shape[1] - 1 :]
                each = [float(rows[at, token]) for at, token in enumerate(counted)]
                expected = np.mean(each) if scoring == "mean" else np.sum(each)
                assert float(result.scores[condition, index, label]) == pytest.approx(expected, abs=2e-3)
        assert int(result.predicted[0, index]) == int(result.scores[0, index].argmax())
        assert float(result.log_probability[0, index]) == float(result.scores[0, index, index])


def test_first_differing_pieces_by_hand():
    from lensplug.analysis.interventions.answer_scoring import scored_pieces

    answers = [(1, 2, 3), (1, 4), (5, 6), (5, 6, 7)]
    assert scored_pieces(answers, "first") == [(1, 2), (1, 4), (5, 6), (5, 6, 7)]
    assert scored_pieces(answers, "sum") == answers


def test_class_scores_are_scikit_learns():
    predicted = [[0, 1, 0, 1, 1, 0], [1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 0, 0]]
    result = made(predicted, [0, 1, 0, 0, 1, 1], [[-1.0] * 6, [-2.0] * 6, [-1.0] * 6])
    table = result.per_class("with")
    assert table.precision.tolist() == pytest.approx([2 / 3, 2 / 3]) and table.recall.tolist() == pytest.approx(
        [2 / 3] * 2
    )
    assert table.support.tolist() == [3, 3]
    assert result.per_class("without").f1.tolist() == pytest.approx([0, 2 / 3])
    assert result.weighted_f1["without"] == pytest.approx(1 / 3) == result.summary().weighted_f1["without"]
    metrics = pytest.importorskip("sklearn.metrics")
    for row, name in enumerate(("with", "without", "control")):
        found = metrics.precision_recall_fscore_support(result.target, predicted[row], zero_division=0)
        for column, expected in zip(("precision", "recall", "f1", "support"), found, strict=True):
            assert result.per_class(name)[column].tolist() == pytest.approx(expected.tolist())


def test_which_answers_changed_and_what_only_the_modality_tells():
    result = made(
        [[0, 1, 0, 1], [1, 1, 1, 1], [0, 1, 1, 1]], [0, 1, 1, 0],
        [[-1.0, -1.0, -2.0, -3.0], [-2.0, -1.0, -4.0, -3.0], [-1.0, -1.0, -2.0, -3.0]],
    )  # fmt: skip
    table = result.changes()
    assert (
        table.example.tolist() == [0, 2]
        and table["with"].tolist() == ["A", "A"]
        and table["without"].tolist() == ["B", "B"]
    )
    assert table.log_probability_change.tolist() == [-1, -2] and table.right_without.tolist() == [False, True]
    assert result.only_with().example.tolist() == [0] and result.only_with("control").empty


def test_videos_are_ablated():
    """It could never run: an example had no videos."""
    lens = lensplug.tiny.llava_onevision()
    scene = draw_scene(random.Random(0), size=(48, 48))
    frames = [scene.image, scene.image.rotate(90)]
    own = [analysis.Example("What is the color? Answer single word.", "Red", videos=[(frames, 2)])]
    inputs = lens.prepare(own[0].text, videos=[(frames, 2)])
    grey = lens.prepare(own[0].text, videos=[([scene.image.point(lambda _: 128)] * 2, 2)])
    expected_embeds: dict[Method, torch.Tensor] = {
        "zero": inputs.embeds.masked_fill(inputs.modality.mask("video")[..., None], 0),
        "blank": grey.embeds,
    }
    for method, embeds in expected_embeds.items():
        result = analysis.modality_ablation(lens, own, "video", method)
        with torch.no_grad():
            logits = lens.hf_model(inputs_embeds=embeds).logits[0, -1].log_softmax(-1)
        expected = float(logits[lens.tokenizer("Red")["input_ids"][0]])
        assert float(result.log_probability[1, 0]) == pytest.approx(expected, abs=1e-3)
    with pytest.raises(lensplug.LensplugError, match="'blank' is for image and video, not for audio"):
        analysis.modality_ablation(lens, own, "audio", "blank")

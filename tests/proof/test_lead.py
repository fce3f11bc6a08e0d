"""Models that take no words alone are asked, checked and proved on words behind a medium that their processor makes."""

from __future__ import annotations

import pytest
import torch
from support.eager import eager
from support.families.processors import inputs_of, processor_of
from support.families.small import small_model
from support.models import largest_difference, relative_difference

import lensplug
from lensplug import engines
from lensplug.errors import LensplugError
from lensplug.hf.language_core import LanguageCore
from lensplug.hf.lead import Lead, example_media

FAMILIES = {"blip-2": "proved", "instructblip": "tested family", "instructblipvideo": "tested family"}
"""Family -> on what its core stands: OPT's (BLIP-2) is in no table, Llama's is."""


@pytest.fixture(scope="module", params=FAMILIES)
def wrapped(request):
    model = small_model(request.param)
    processor = processor_of(request.param, model.config)
    return request.param, lensplug.wrap(model, processor), *inputs_of(processor)


@pytest.fixture(scope="module")
def blip2():
    return small_model("blip-2")


def test_it_is_hugging_faces_model(wrapped):
    family, lens, kind, given = wrapped
    assert lens.proof.standing == FAMILIES[family]
    inputs = lens.encode(given)
    assert inputs.modality.names == ("text", kind)
    logits, cache = lens.run_with_cache(inputs)
    with torch.no_grad(), eager(lens.core.decoder):
        reference = lens.hf_model(**given, use_cache=False, output_attentions=True)
    assert relative_difference(logits, reference.logits) < 1e-5
    for layer, pattern in enumerate(reference.language_model_outputs.attentions):
        assert largest_difference(cache["pattern", layer], pattern) < 1e-5
    assert relative_difference(cache.decompose_resid().sum(0), cache["resid_post", -1]) < 1e-5
    with torch.no_grad():
        other = lens.hf_model(**{**given, "pixel_values": given["pixel_values"] / 2}, use_cache=False).logits
    assert largest_difference(other, reference.logits) > 1e-2, "the medium is read"


def test_it_prepares_answers_and_is_patched(wrapped):
    _, lens, kind, given = wrapped
    inputs = lens.prepare("What is this ?", **example_media(kind), chat_template=False)
    assert lens.check(inputs).agrees
    again = lens.with_media(inputs, **{f"{kind}s": [list(getattr(inputs, f"{kind}s")[0])]})
    assert largest_difference(again.embeds, inputs.embeds) < 1e-5, "words that a Q-Former reads are the prompt's"
    through = lens.resampler_attention(inputs, stripes=8)
    n_positions = int(inputs.modality.mask(kind).sum())
    assert through.probabilities.shape[2] == n_positions and through.n_views == (4 if kind == "video" else 1)
    torch.testing.assert_close(through.probabilities.sum(-1), torch.ones(1, 4, n_positions), atol=1e-5, rtol=0)
    if "qformer_input_ids" in inputs.model_inputs:
        twice = lens.prepare(
            ["What is this ?"] * 2,
            **{name: [[one]] * 2 for name, (one,) in example_media(kind).items()},
            chat_template=False,
        )
        with pytest.raises(LensplugError, match="reads words with its media .* give the inputs of one prompt"):
            lens.resampler_attention(twice)
    inputs = lens.encode(given)
    answer = lens.generate(inputs, max_new_tokens=4)
    reference = lens.hf_model.generate(**given, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert answer.tokens[0].tolist() == reference[0, -4:].tolist()


def test_the_medium_is_part_of_what_is_proved(blip2):
    lens = lensplug.wrap(blip2, processor_of("blip-2", blip2.config), prove=True)
    outcomes = {check.name: check.outcome for check in lens.proof.checks}
    for name in ("logits", "left padding equals unpadded", "logits (image)", "decompose_resid sums (image)"):
        assert outcomes[name] == "passed"
    assert "hook_pos_embed" in lens.model.hook_dict


def test_a_fault_is_found_behind_a_medium_too():
    model = small_model("blip-2")
    model.language_model.get_decoder().layers[1].fc2.register_forward_hook(lambda module, args, output: 1.01 * output)
    with pytest.raises(LensplugError, match=r"failed the proof on load \(.* at layer 1"):
        lensplug.wrap(model, processor_of("blip-2", model.config), check=False)


@pytest.mark.parametrize("engine", engines.installed())
def test_a_known_core_is_proved_on_request(engine):
    model = small_model("instructblip")
    assert lensplug.wrap(model, processor_of("instructblip", model.config), engine=engine, prove=True).proof.passed


def test_without_a_processor_it_is_refused_and_told_what_to_give(blip2):
    with pytest.raises(
        LensplugError, match=r"takes no prompt of words alone \(.*pixel_values.*wrap\(model, processor\)"
    ):
        lensplug.wrap(blip2)


def test_a_processor_that_cannot_is_named(blip2):
    processor = processor_of("blip-2", blip2.config)
    processor.num_query_tokens = 5  # the model makes six positions of a picture
    processor.image_processor = None
    with pytest.raises(
        LensplugError, match=r"its processor, Blip2Processor, makes none .*nothing to prove its core on"
    ):
        lensplug.wrap(blip2, processor)


def test_words_behind_a_medium_by_hand(blip2):
    core = LanguageCore.of(blip2)
    lead = Lead("image", {
        "input_ids": torch.tensor([[7, 7]]), "attention_mask": torch.ones(1, 2, dtype=torch.long),
        "mm_token_type_ids": torch.tensor([[1, 1]]), "pixel_values": torch.zeros(1, 3, 4, 4), "delay": 3,
    })  # fmt: skip
    inputs = lead.before([[10, 11, 12], [20]], core)
    assert inputs["input_ids"].tolist() == [[7, 7, 10, 11, 12], [20, 20, 7, 7, 20]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]]
    assert inputs["mm_token_type_ids"].tolist() == [[1, 1, 0, 0, 0], [0, 0, 1, 1, 0]]
    assert (inputs["pixel_values"].shape, inputs["delay"]) == ((2, 3, 4, 4), 3)
    assert Lead().before([[1, 2]], core).keys() == {"input_ids", "attention_mask"}

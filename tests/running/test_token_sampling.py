"""How tokens are chosen: what Hugging Face's own `generate` writes with the same settings, on both engines."""

from __future__ import annotations

import gc
import warnings

import pytest
import torch
from support.models import QUESTION, scene, text_tokens
from torch.profiler import ProfilerActivity, profile

import lensplug

NEW = 12


@pytest.fixture
def batch(lens):
    """Two prompts of different lengths."""
    return lens.prepare([QUESTION, "What is the shape? " + QUESTION], images=[[scene(48, 48, 1)], [scene(80, 64, 2)]])


@pytest.fixture
def configured(lens, monkeypatch):
    """Give the model's generation_config settings, for this test."""

    def put(**values):
        for name, value in values.items():
            monkeypatch.setattr(lens.hf_model.generation_config, name, value)

    return put


def hugging_face(lens, inputs, **settings):
    written = lens.hf_model.generate(**inputs.model_inputs, max_new_tokens=NEW, **settings)
    return written[:, inputs.tokens.shape[1] :]


def peak(way):
    """The most that is allocated at once while a call lasts."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as measured:
        way()
    now, most = 0, 0
    for event in sorted(measured.profiler.kineto_results.events(), key=lambda one: one.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


@pytest.mark.parametrize(
    "settings",
    [{}, {"temperature": 0.6}, {"temperature": 1.7, "top_p": 0.8}, {"top_k": 3}],
    ids=["plain", "temperature", "top_p", "top_k"],
)
def test_sampling_is_hugging_faces_with_the_same_seed(lens, batch, settings):
    torch.manual_seed(5)
    expected = hugging_face(lens, batch, do_sample=True, **settings)
    torch.manual_seed(11)
    before = torch.get_rng_state()
    written = lens.generate(batch, max_new_tokens=NEW, do_sample=True, seed=5, **settings).tokens
    assert torch.equal(written, expected)
    assert torch.equal(torch.get_rng_state(), before), "chance outside goes on as if nothing had been drawn"
    greedy = lens.generate(batch, max_new_tokens=NEW).tokens
    assert settings == {"top_k": 3} or not torch.equal(written, greedy)


def test_without_a_seed_chance_is_the_callers(lens, batch):
    torch.manual_seed(5)
    expected = hugging_face(lens, batch, do_sample=True)
    torch.manual_seed(5)
    assert torch.equal(lens.generate(batch, max_new_tokens=NEW, do_sample=True).tokens, expected)


@pytest.mark.parametrize(
    "name", ["repetition_penalty", "no_repeat_ngram_size", "suppress_tokens", "bad_words_ids", "min_new_tokens"]
)
def test_the_models_settings_are_followed(lens, batch, configured, name):
    """Each changes the greedy answer, to Hugging Face's own."""
    greedy = lens.generate(batch, max_new_tokens=NEW).tokens
    favourite = greedy.flatten().mode().values.item()
    values = {
        "repetition_penalty": 3.0,
        "no_repeat_ngram_size": 1,
        "suppress_tokens": [favourite],
        "bad_words_ids": [[int(greedy[0, 0])], [favourite]],
        "min_new_tokens": 6,
    }
    configured(**{name: values[name]})
    if name == "min_new_tokens":
        configured(eos_token_id=int(greedy[0, 2]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        written = lens.generate(batch, max_new_tokens=NEW).tokens
    assert torch.equal(written, hugging_face(lens, batch, do_sample=False))
    assert not torch.equal(written, greedy)


def test_what_is_not_followed_is_named(lens, batch, configured):
    greedy = lens.generate(batch, max_new_tokens=NEW).tokens
    configured(num_beams=3, do_sample=True, temperature=0.7, top_p=0.8)
    named = r"num_beams=3.*do_sample=True, temperature=0\.7, top_p=0\.8, which the answer does not follow"
    with pytest.warns(UserWarning, match=named):
        written = lens.generate(batch, max_new_tokens=NEW).tokens
    assert torch.equal(written, greedy)


def test_sampling_takes_the_models_temperature_unless_given_another(lens, batch, configured):
    configured(do_sample=True, temperature=0.4, top_k=7)
    for given in ({}, {"temperature": 1.5}):
        torch.manual_seed(0)
        expected = hugging_face(lens, batch, do_sample=True, **given)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            written = lens.generate(batch, max_new_tokens=NEW, do_sample=True, seed=0, **given).tokens
        assert torch.equal(written, expected)


@pytest.mark.parametrize("several", [False, True])
def test_stop_strings_end_an_answer(lens, inputs, several):
    """Of the words that it would write, the third ends it, and belongs to it."""
    greedy = lens.generate(inputs, max_new_tokens=NEW).tokens
    stop = lens.tokenizer.decode(greedy[0, 2:3]).strip()
    stops = ["never written", stop] if several else stop
    answer = lens.generate(inputs, max_new_tokens=NEW, stop_strings=stops)
    expected = hugging_face(lens, inputs, do_sample=False, stop_strings=stops, tokenizer=lens.tokenizer)
    assert torch.equal(answer.tokens, expected) and answer.tokens.shape[1] <= 3
    assert answer.text[0].endswith(stop)


def test_an_example_that_a_stop_string_ended_is_padded(lens, batch):
    greedy = lens.generate(batch, max_new_tokens=NEW).tokens
    stop = lens.tokenizer.decode(greedy[0, 1:2]).strip()
    answer = lens.generate(batch, max_new_tokens=NEW, stop_strings=stop)
    lengths = answer.inputs.modality.mask("generated").sum(dim=1).tolist()
    texts = lens.tokenizer.batch_decode(greedy[:, :NEW])
    assert lengths[0] <= 2 and (stop in texts[1] or lengths[1] == NEW)
    assert torch.equal(answer.inputs.attention_mask[:, -NEW:].sum(dim=1), torch.tensor(lengths)) or stop in texts[1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"temperature": 0.5}, "temperature would change nothing.*do_sample=True"),
        ({"seed": 1, "top_k": 3}, "top_k, seed would change nothing"),
        ({"do_sample": True, "temperature": 0.0}, "temperature is 0.0, expected a number above 0"),
        ({"do_sample": True, "temperature": float("nan")}, "temperature is nan"),
        ({"do_sample": True, "top_p": 1.5}, "top_p is 1.5, expected a number above 0 and at most 1"),
        ({"do_sample": True, "top_k": 0}, "top_k is 0, expected at least 1"),
        ({"max_new_tokens": True}, "max_new_tokens is True, expected"),
        ({"stop_strings": ["a", ""]}, "expected a string or several, none empty"),
        ({"stop_strings": []}, "stop_strings is \\[\\], expected a string or several"),
    ],
)
def test_values_that_cannot_be_are_refused(lens, inputs, given, message):
    with pytest.raises(lensplug.LensplugError, match=message):
        lens.generate(inputs, **given)


def test_a_hook_on_patterns_sees_and_edits_all_of_them(lens, batch):
    """Without one none are made; with one that hides a position the answer is that of a run that hides it."""
    layers, length = lens.model.cfg.n_layers, batch.tokens.shape[1]
    seen = []

    def hide(pattern, hook):
        seen.append(tuple(pattern.shape[2:]))
        pattern[..., length - 3] = 0
        return pattern

    hooks = [(f"blocks.{layer}.attn.hook_pattern", hide) for layer in range(layers)]
    plain = lens.generate(batch, max_new_tokens=4)
    with lens.model.hooks(fwd_hooks=hooks):
        hidden = lens.generate(batch, max_new_tokens=4)
    assert seen == [shape for step in range(4) for shape in [(1 if step else length, length + step)] * layers]
    again = lens.run_with_hooks(hidden.inputs, fwd_hooks=hooks)
    assert torch.equal(again[:, length - 1 : -1].argmax(-1), hidden.tokens)
    assert not torch.equal(hidden.tokens, plain.tokens)


def test_residual_hooks_steer_every_step(lens, inputs):
    """At SDPA's speed too, an edit of the stream is that of a run over prompt and answer."""

    def steer(resid, hook):
        return resid + 50.0 * lens.core.head.weight[7]

    hooks = [("blocks.1.hook_resid_post", steer)]
    with lens.model.hooks(fwd_hooks=hooks):
        steered = lens.generate(inputs, max_new_tokens=4)
    logits = lens.run_with_hooks(steered.inputs, fwd_hooks=hooks)
    assert torch.equal(logits[:, inputs.tokens.shape[1] - 1 : -1].argmax(-1), steered.tokens)
    assert not torch.equal(steered.tokens, lens.generate(inputs, max_new_tokens=4).tokens)


def test_no_pattern_is_made_while_nobody_sees_one(lens):
    """The most that is allocated at once is less than one layer's pattern of all pairs would take."""
    inputs = lens.encode({"input_ids": text_tokens(480) % 290})
    lens.generate(inputs, max_new_tokens=1)
    one = inputs.tokens.shape[1] ** 2 * lens.model.cfg.n_heads * 4
    assert peak(lambda: lens.generate(inputs, max_new_tokens=2)) < one
    hooks = [("blocks.0.attn.hook_pattern", lambda pattern, hook: None)]
    with lens.model.hooks(fwd_hooks=hooks):
        assert peak(lambda: lens.generate(inputs, max_new_tokens=2)) > one
    assert peak(lambda: lens.check(inputs)) < one + 4 * 128 * lens.model.cfg.d_vocab_out * 4


def test_what_does_not_fit_is_refused_before_it_runs(lens, inputs, monkeypatch):
    monkeypatch.setattr("lensplug.running.memory_estimate.free_bytes", lambda device: 100_000)
    for run in (lambda: lens.generate(inputs, max_new_tokens=2), lambda: lens.check(inputs)):
        with pytest.raises(lensplug.LensplugError, match="this run would take .* on cpu, and 0.1 MB are free"):
            run()

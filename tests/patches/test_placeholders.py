"""PlaceholdersRefused: tokens that stand for a picture which is not there do not run in silence; before = after."""

from __future__ import annotations

import copy

import pytest
import torch
from support.built import ENGINES, built
from support.models import snapshot, text_model, text_tokens

from lensplug import LensplugError
from lensplug.patches import PlaceholdersRefused
from lensplug.patches.both.placeholders import placeholders_as_words
from lensplug.tiny.image_model import build_tokenizer

IMAGE, WORDS = 7, text_tokens(9)
LONELY = torch.cat([WORDS[:, :4], torch.full((1, 3), IMAGE), WORDS[:, 4:]], dim=1)
QUIET = {"max_new_tokens": 2, "do_sample": False, "stop_at_eos": False, "verbose": False}
REFUSED = (
    r"the tokens hold 3 image placeholder\(s\) \(id 7\) and no image.*inputs of lens.prepare.*placeholders_as_words"
)

assert IMAGE not in WORDS


@pytest.fixture(params=ENGINES, scope="module")
def plain(request):
    return built(request.param, text_model("llama", vocab_size=512), tokenizer=build_tokenizer())


@pytest.fixture
def model(plain):
    with PlaceholdersRefused(plain, {"image": IMAGE, "audio": 11}):
        yield plain


DOORS = {
    "call": lambda model, tokens: model(tokens),
    "by name": lambda model, tokens: model.forward(input=tokens),
    "with a loss": lambda model, tokens: model(tokens, return_type="loss"),
    "run_with_cache": lambda model, tokens: model.run_with_cache(tokens),
    "run_with_hooks": lambda model, tokens: model.run_with_hooks(tokens, fwd_hooks=[("hook_embed", lambda v, hook: v)]),
    "stop_at_layer": lambda model, tokens: model(tokens, stop_at_layer=1),
    "generate": lambda model, tokens: model.generate(tokens, **QUIET),
    "generate anew": lambda model, tokens: model.generate(tokens, use_past_kv_cache=False, **QUIET),
}


@pytest.mark.parametrize("door", DOORS)
def test_every_door_refuses_them_unless_told(model, door):
    run = DOORS[door]
    for given in (LONELY, LONELY.repeat(2, 1)):
        with pytest.raises(LensplugError, match=REFUSED.replace("3", str(3 * len(given)))):
            run(model, given)
    run(model, WORDS)
    with placeholders_as_words():
        run(model, LONELY)
    with pytest.raises(LensplugError, match=REFUSED):
        run(model, LONELY)


def test_without_the_patch_they_run_in_silence(plain):
    assert bool(plain(LONELY).isfinite().all())


def test_told_in_one_thread_is_not_told_in_another(model):
    from threading import Thread

    heard = []

    def other():
        try:
            model(LONELY)
        except LensplugError as error:
            heard.append(error)

    with placeholders_as_words():
        thread = Thread(target=other)
        thread.start()
        thread.join()
    assert len(heard) == 1


def test_words_that_hold_one_are_refused(plain):
    tokenizer = plain.tokenizer
    image = tokenizer.convert_tokens_to_ids("<image>")
    with PlaceholdersRefused(plain, {"image": image}):
        for words in ("What <image> is?", ["What is?", "What <image> is?"]):
            for run in (plain, plain.run_with_cache):
                with pytest.raises(LensplugError, match=f"1 image placeholder.*id {image}"):
                    run(words)
        with pytest.raises(LensplugError, match="1 image placeholder"):
            plain.generate("What <image> is?", **QUIET)
        plain("What is?")


def test_what_is_no_tokens_goes_the_old_way(model):
    resid = model(WORDS, stop_at_layer=1)
    assert resid.shape == (1, 9, 32) and not hasattr(model, "no_such_method")
    assert model.to_tokens("What <image> is?").dtype == torch.long, "looking a word up runs nothing"


def test_a_copy_of_the_model_has_doors_of_its_own(model):
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.W_E.zero_() if not hasattr(other, "original_model") else other.embed.original_component.weight.zero_()
    assert not torch.equal(other(WORDS), model(WORDS))
    with pytest.raises(LensplugError, match=REFUSED):
        other(LONELY)


def test_before_is_after(plain):
    before = snapshot(plain)
    with pytest.raises(ZeroDivisionError), PlaceholdersRefused(plain, {"image": IMAGE}):
        raise ZeroDivisionError
    assert snapshot(plain) == before
    plain(LONELY)

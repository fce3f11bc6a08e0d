"""Temporary hooks fire as TransformerLens's own do, and nothing else comes or goes with them."""

from __future__ import annotations

import pytest
import torch
from support.built import ENGINES, built
from support.models import snapshot, text_model, text_tokens

from lensplug.patches.both.temporary_hooks import temporary_hooks

AT = "blocks.1.hook_resid_post"


@pytest.fixture(params=ENGINES)
def model(request):
    return built(request.param, text_model("llama"))


def doubled(value, hook):
    return 2 * value


def test_they_do_what_those_of_transformer_lens_do(model):
    tokens, seen = text_tokens(6), []
    with temporary_hooks(model, [(AT, doubled), (AT, lambda value, hook: seen.append((hook.name, value)))]):
        found = model(tokens)
    assert torch.equal(found, model.run_with_hooks(tokens, fwd_hooks=[(AT, doubled)]))
    assert not torch.equal(found, model(tokens))
    ((name, value),) = seen
    assert name == AT and torch.equal(value, 2 * model.run_with_cache(tokens)[1][AT]), "in the order given"


def test_the_hooks_of_others_stay(model):
    calls = []
    model.add_hook(AT, lambda value, hook: calls.append("left"))
    before = snapshot(model)
    with model.hooks(fwd_hooks=[(AT, lambda value, hook: calls.append("around"))]):
        with temporary_hooks(model, [(AT, lambda value, hook: calls.append("ours"))]):
            with model.hooks(fwd_hooks=[(AT, lambda value, hook: calls.append("within"))]):
                model(text_tokens(4))
            assert calls == ["left", "around", "ours", "within"]
            calls.clear()
            model(text_tokens(4))
            assert calls == ["left", "around", "ours"]
        calls.clear()
        model(text_tokens(4))
        assert calls == ["left", "around"]
    assert snapshot(model)["hooks"] == before["hooks"]


def test_they_go_if_a_hook_raises_or_a_name_is_unknown(model):
    before = snapshot(model)["hooks"]

    def fail(value, hook):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), temporary_hooks(model, [(AT, doubled), ("hook_embed", fail)]):
        model(text_tokens(4))
    with pytest.raises(KeyError), temporary_hooks(model, [(AT, doubled), ("blocks.0.nothing", doubled)]):
        pass
    assert snapshot(model)["hooks"] == before

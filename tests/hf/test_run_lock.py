"""Training mode is refused by every run, and threads that use one model wait for each other."""

from __future__ import annotations

import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from support.built import ENGINES
from support.models import QUESTION, llava_onevision, reference_logits, scene, snapshot

import lensplug
from lensplug import LensplugError, analysis
from lensplug.hf.run_lock import turn


@pytest.fixture(scope="module", params=ENGINES)
def lens(request):
    return lensplug.wrap(*llava_onevision(), engine=request.param)


@pytest.fixture(scope="module")
def inputs(lens):
    return lens.prepare(QUESTION, images=[scene(48, 48)])


def runs(lens, inputs):
    """Every method that runs the model."""
    image, rows = inputs.modality.mask("image"), torch.tensor([[inputs.tokens.shape[1] - 1]])
    return {
        "prepare": lambda: lens.prepare(QUESTION, images=[scene(48, 48)]),
        "encode": lambda: lens.encode(inputs.model_inputs),
        "run_with_cache": lambda: lens.run_with_cache(inputs, names_filter=[]),
        "run_with_gradients": lambda: lens.run_with_gradients(inputs, target=5, keep="cam"),
        "run_with_hooks": lambda: lens.run_with_hooks(inputs),
        "logits_at": lambda: lens.logits_at(inputs, rows),
        "without": lambda: lens.without(inputs, image),
        "generate": lambda: lens.generate(inputs, max_new_tokens=2),
        "check": lambda: lens.check(inputs),
        "patching": lambda: analysis.activation_patching(
            lens, inputs, inputs, 5, groups=image[0].long(), layers=(0, 0)
        ),
    }


@pytest.mark.parametrize("part", ["hf_model", "model", "the vision tower", "one layer"])
def test_training_mode_is_refused_by_every_run(lens, inputs, part):
    named = {"the vision tower": lens.hf_model.model.vision_tower, "one layer": lens.core.decoder.layers[1].mlp}
    module = named[part] if part in named else getattr(lens, part)
    name = "lens.model" if part == "model" else "lens.hf_model"
    module.train()
    try:
        for run in runs(lens, inputs).values():
            with pytest.raises(LensplugError, match=rf"modules of {name} .*training mode.*call {name}.eval\(\) first"):
                run()
        if part != "model":
            with pytest.raises(LensplugError, match=r"call model.eval\(\) first"):
                lensplug.wrap(lens.hf_model, engine=lens.engine)
    finally:
        getattr(lens, name.removeprefix("lens.")).eval()
    for run in runs(lens, inputs).values():
        run()


def test_threads_wait_and_each_gets_what_it_asked_for(lens):
    """Two lenses on one model, prompts of several lengths, every way to run, in four threads."""
    other = lensplug.wrap(lens.hf_model, lens.processor, engine=lens.engine)
    assert turn(lens.core.decoder.config) is turn(other.core.decoder.config)
    lens.hf_model.set_attn_implementation("eager")
    before = [snapshot(one.model) for one in (lens, other)]
    prompts = [[QUESTION], ["What is the shape? " * 2 + QUESTION], [QUESTION, "What?"]]

    def work(index):
        own, prompt = (lens, other)[index % 2], prompts[index % 3]
        given = own.prepare(prompt if len(prompt) > 1 else prompt[0], images=[[scene(48, 48)]] * len(prompt))
        rows = torch.full((len(prompt), 1), given.tokens.shape[1] - 1)
        with own.logits_only(rows):
            logits = own.model(given)
        with torch.no_grad():
            whole = own.model(given)  # waits for the blocks of others, and has none of their rows
        _, cache = own.run_with_cache(given, query_positions=[-1], residual_positions=[-1])
        _, _, grads = own.run_with_gradients(given, target=5, names_filter="blocks.1.hook_resid_pre")
        return [
            logits.detach(), whole, cache["pattern", 1], cache["resid_post", -1], grads["resid_pre", 1],
            own.generate(given, max_new_tokens=1).tokens,
        ]  # fmt: skip

    try:
        expected = [work(index) for index in range(6)]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(work, range(6)))
        for index, results in enumerate(found):
            for one, theirs in zip(results, expected[index % 6], strict=True):
                assert one.shape == theirs.shape
                torch.testing.assert_close(one, theirs, atol=1e-4, rtol=1e-4)
        assert [snapshot(one.model) for one in (lens, other)] == before
        assert lens.core.decoder.config._attn_implementation == "eager"
    finally:
        lens.hf_model.set_attn_implementation("sdpa")


def test_the_seam_stops_its_own_thread_only(lens, inputs):
    """Another thread may call the Hugging Face model itself, in the midst of `encode`."""
    reference = reference_logits(lens.hf_model, inputs.model_inputs)
    found: list[Any] = []

    def meanwhile(*_):
        if not found and threading.current_thread() is threading.main_thread():
            found.append(None)
            with ThreadPoolExecutor(1) as pool:
                found[0] = pool.submit(reference_logits, lens.hf_model, inputs.model_inputs).result(timeout=60)

    handle = lens.hf_model.model.vision_tower.register_forward_hook(meanwhile)
    try:
        lens.encode(inputs.model_inputs)
    finally:
        handle.remove()
    torch.testing.assert_close(found[0], reference, atol=1e-4, rtol=0)


def test_hooks_of_one_thread_are_not_another_ones(lens, inputs):
    """`lens.model.hooks` in one thread; `lens.model` called in another waits until it is left."""
    expected, inside, left = lens.model(inputs).detach(), threading.Event(), threading.Event()

    def hooked():
        with lens.model.hooks(fwd_hooks=[("blocks.1.hook_resid_pre", lambda value, hook: value * 0)]):
            inside.set()
            left.wait(0.3)
            return lens.model(inputs).detach()

    with ThreadPoolExecutor(2) as pool:
        zeroed = pool.submit(hooked)
        inside.wait(30)
        plain = pool.submit(lambda: lens.model(inputs).detach()).result(timeout=60)
        assert float((zeroed.result(timeout=60) - expected).abs().max()) > 0.1
    torch.testing.assert_close(plain, expected, atol=1e-4, rtol=0)


def test_a_lens_is_copied_with_a_lock_of_its_own(lens, inputs):
    copied = copy.deepcopy(lens)
    assert turn(copied.core.decoder.config) is not turn(lens.core.decoder.config)
    with turn(lens.core.decoder.config), ThreadPoolExecutor(1) as pool, torch.no_grad():
        logits = pool.submit(lambda: copied.model(inputs).detach()).result(timeout=60)
    torch.testing.assert_close(logits, lens.model(inputs).detach(), atol=1e-5, rtol=0)


def test_the_lock_stands_in_the_way_of_no_saving(lens):
    """Of what TransformerLens and Hugging Face themselves let pickle."""
    assert pickle.loads(pickle.dumps(lens.core.text_config)).to_dict() == lens.core.text_config.to_dict()
    from lensplug.hf.run_lock import _Waiting

    waiting = pickle.loads(pickle.dumps(_Waiting(len, lens.core.text_config)))
    assert waiting([1, 2]) == 2

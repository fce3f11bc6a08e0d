"""UnwatchedBlocks and BridgeUnwatchedBlocks: the same steps to the bit, every hook as before, and fewer calls."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch
from support.built import ENGINES, unwatched_blocks
from support.models import snapshot, text_model, text_tokens
from transformer_lens.hook_points import HookPoint

import lensplug
from lensplug import engines
from lensplug.errors import LensplugError

STEPS = 5


@pytest.fixture(params=ENGINES, scope="module")
def engine(request):
    return request.param


@pytest.fixture(params=["llama", "qwen2", "qwen3", "mistral-window", "llama-llama3-rope"], scope="module")
def lens(engine, request):
    return lensplug.wrap(text_model(request.param), engine=engine, check=False)


@pytest.fixture(scope="module")
def plain(engine):
    return lensplug.wrap(text_model("qwen2"), engine=engine, check=False)


def prompt(lens, *, padding: bool = False):
    tokens, mask = text_tokens(14, batch=2), torch.ones(2, 14, dtype=torch.long)
    mask[0, :5] = 0 if padding else 1
    return lens.encode({"input_ids": tokens, "attention_mask": mask})


@torch.no_grad()
def steps(lens, inputs, *, patched: bool, before=lambda step: None):
    """Logits of the prompt and of each step behind it."""
    decoding, logits = engines.decoding(lens.engine, lens.model, inputs), list[torch.Tensor]()
    with ExitStack() as stack:
        stack.enter_context(engines.at_sdpa_speed(lens.engine, lens.model, len(inputs)))
        if patched:
            patch = stack.enter_context(unwatched_blocks(lens.engine)(lens.model))
            assert len(patch._parts) == lens.model.cfg.n_layers, "all of them are known"
        for step in range(STEPS):
            before(step)
            logits.append(decoding.following(logits[-1].argmax(-1)) if step else decoding.prompt())
    return torch.stack(logits)


@pytest.mark.parametrize("padding", [False, True])
def test_every_step_is_the_same_to_the_bit(lens, padding):
    inputs = prompt(lens, padding=padding)
    assert torch.equal(steps(lens, inputs, patched=True), steps(lens, inputs, patched=False))


def test_in_half_precision_too(engine):
    lens = lensplug.wrap(text_model("qwen2").to(torch.bfloat16), engine=engine, check=False)
    inputs = prompt(lens, padding=True)
    assert torch.equal(steps(lens, inputs, patched=True), steps(lens, inputs, patched=False))


def test_with_processed_weights(engine):
    lens = lensplug.wrap(text_model("qwen2"), engine=engine, check=False, process_weights=True)
    inputs = prompt(lens)
    with engines.unwatched_blocks(engine, lens.model):  # a block that is not known is left alone
        again = lens.generate(inputs, max_new_tokens=4)
    expected = lens.hf_model.generate(**inputs.model_inputs, max_new_tokens=4, do_sample=False)[:, 14:]
    assert torch.equal(again.tokens, expected)


def names_of_called(monkeypatch) -> list[str]:
    """The names of the hook points that are called from now on."""
    called: list[str] = []
    forward = HookPoint.forward

    def noted(self, x):
        called.append(self.name or "")
        return forward(self, x)

    monkeypatch.setattr(HookPoint, "forward", noted)
    return called


def test_hook_points_of_unwatched_blocks_are_not_called(plain, monkeypatch):
    called = names_of_called(monkeypatch)
    inputs = prompt(plain)
    steps(plain, inputs, patched=True)
    assert not [name for name in called if name.startswith("blocks.")] and called
    seen = len(called)
    steps(plain, inputs, patched=False)
    assert len(called) > 10 * seen


@pytest.mark.parametrize("name", ["resid_pre", "ln1.hook_scale", "attn.hook_k", "attn.hook_rot_k", "mlp.hook_post"])
@pytest.mark.parametrize("patched", [False, True])
def test_a_hook_acts_in_every_step(plain, name, patched, engine):
    """In its block only; the others stay short."""
    name = f"blocks.1.{name if '.' in name else 'hook_' + name}"
    inputs, shapes = prompt(plain), []

    def edit(value, hook):
        shapes.append(tuple(value.shape))
        return value * 0.3

    with plain.model.hooks(fwd_hooks=[(name, edit)]):
        expected = steps(plain, inputs, patched=False)
        of_old, shapes[:] = list(shapes), []
        assert torch.equal(steps(plain, inputs, patched=patched), expected)
    assert shapes == of_old and len(shapes) >= STEPS
    assert not torch.equal(steps(plain, inputs, patched=patched), expected)


@pytest.mark.parametrize(("first", "last"), [(0, 1), (2, 3), (1, STEPS)])
def test_hooks_that_come_and_go_between_steps(plain, first, last):
    """Behind steps without hooks, keys before their rotation are there for a block with one."""
    inputs, point = prompt(plain, padding=True), plain.model.blocks[1].attn.hook_q

    def before(step):
        if step == first:
            point.add_hook(lambda q, hook: q * 0.5)
        if step == last:
            plain.model.reset_hooks()

    try:
        expected = steps(plain, inputs, patched=False, before=before)
        plain.model.reset_hooks()
        again = steps(plain, inputs, patched=True, before=before)
    finally:
        plain.model.reset_hooks()
    assert torch.equal(again, expected) and not torch.equal(again, steps(plain, inputs, patched=False))


def test_a_torch_hook_on_a_module_is_a_hook(plain):
    inputs = prompt(plain)
    handle = plain.model.blocks[2].mlp.register_forward_hook(lambda module, given, output: output * 0.2)
    try:
        expected = steps(plain, inputs, patched=False)
        assert torch.equal(steps(plain, inputs, patched=True), expected)
    finally:
        handle.remove()
    assert not torch.equal(steps(plain, inputs, patched=True), expected)


def test_a_block_that_somebody_has_changed_is_left_alone(plain, monkeypatch):
    """A method replaced, a part put in: what it computes is not known."""
    inputs, mlp = prompt(plain), plain.model.blocks[1].mlp
    old = mlp.forward
    object.__setattr__(mlp, "forward", lambda x: old(x) * 0.2)
    try:
        expected = steps(plain, inputs, patched=False)
        with engines.unwatched_blocks(plain.engine, plain.model):
            again = steps(plain, inputs, patched=False)
    finally:
        object.__setattr__(mlp, "forward", old)
    assert torch.equal(again, expected) and not torch.equal(again, steps(plain, inputs, patched=False))


EDGES = ("resid_pre", "resid_post", "attn_scores", "pattern")


def rows_and_streams(lens, inputs, *, patched, names=EDGES, hidden=None):
    """What hooks at the edges of blocks, and on rows of patterns, see; and the logits."""
    found, shown = {}, []
    rows = torch.tensor([[13, 6], [9, 12]])
    wanted = tuple(f"hook_{name}" for name in names)

    def keep(value, hook):
        found[hook.name] = value.clone()

    def show(layer, start, block):
        shown.append(block.clone())

    with ExitStack() as stack, torch.no_grad():
        each_block = show if hidden is None else None
        stack.enter_context(engines.attention_rows(lens.engine, lens.model, rows, hidden=hidden, each_block=each_block))
        if patched:
            stack.enter_context(unwatched_blocks(lens.engine)(lens.model))
        stack.enter_context(lens.model.hooks(fwd_hooks=[(lambda name: name.endswith(wanted), keep)]))
        logits = lens.model(inputs)
    return {**found, "logits": logits, **dict(enumerate(shown))}


@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("hides", [False, True])
def test_rows_of_patterns_and_the_stream_are_the_same_to_the_bit(lens, padding, hides):
    inputs = prompt(lens, padding=padding)
    hidden = torch.arange(14).expand(2, -1) == 3 if hides else None
    found, expected = (rows_and_streams(lens, inputs, patched=patched, hidden=hidden) for patched in (True, False))
    assert list(found) == list(expected) and len(found) > 4 * lens.model.cfg.n_layers
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_hooks_at_the_edges_leave_a_block_short(plain, monkeypatch):
    called = names_of_called(monkeypatch)
    rows_and_streams(plain, prompt(plain), patched=True)
    within = [name for name in called if name.startswith("blocks.") and not name.endswith((*EDGES, "hook_z"))]
    assert called and not within
    rows_and_streams(plain, prompt(plain), patched=True, names=("resid_post", "rot_q"))
    assert [name for name in called if name.endswith("mlp.hook_post")]


@pytest.mark.parametrize("name", ["resid_pre", "resid_mid", "resid_post"])
def test_an_edit_of_the_stream_acts(plain, name):
    inputs = prompt(plain)
    edit = (f"blocks.1.hook_{name}", lambda value, hook: value * 0.3)
    with plain.model.hooks(fwd_hooks=[edit]):
        found, expected = (rows_and_streams(plain, inputs, patched=patched) for patched in (True, False))
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    assert not torch.equal(found["logits"], rows_and_streams(plain, inputs, patched=True)["logits"])


def test_an_edit_of_rows_is_refused(plain):
    edit = ("blocks.1.attn.hook_pattern", lambda value, hook: value * 0.3)
    with plain.model.hooks(fwd_hooks=[edit]), pytest.raises(LensplugError, match="a hook edits attention"):
        rows_and_streams(plain, prompt(plain), patched=True)


def test_gradients_and_what_stands_after(plain, engine):
    inputs, before = prompt(plain), snapshot(plain.model)
    with unwatched_blocks(engine)(plain.model):
        logits = plain.model(inputs)
        logits[0, -1, 5].backward()
        assert all(bool(p.grad.any()) for p in plain.model.blocks[0].ln1.parameters())
        plain.model.zero_grad()
    assert snapshot(plain.model) == before


def test_a_long_answer_outgrows_its_cache(plain):
    """More tokens than the cache grows by at once, as Hugging Face writes them."""
    inputs = prompt(plain, padding=True)
    answer = plain.generate(inputs, max_new_tokens=150)
    expected = plain.hf_model.generate(**inputs.model_inputs, max_new_tokens=150, do_sample=False)[:, 14:]
    assert torch.equal(answer.tokens, expected)

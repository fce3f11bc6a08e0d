"""MLPByPositions: gradients as of the whole MLP, hooks as before, and no tensor of all its neurons is kept."""

from __future__ import annotations

import pytest
import torch
from support.built import ENGINES, built
from support.models import snapshot, text_model, text_tokens

from lensplug.patches import CheckpointedBlocks, MLPByPositions

LENGTH = 24
TOKENS = text_tokens(LENGTH, 2)
NAMES = ["hook_embed", "blocks.1.hook_mlp_out", "blocks.1.attn.hook_pattern"]


@pytest.fixture(params=ENGINES)
def model(request):
    return built(request.param, text_model("llama")).requires_grad_(False)


@pytest.fixture(params=[1, 5_000, 2**25])
def chunk_bytes(request, monkeypatch):
    """One position at a time, some, and all."""
    monkeypatch.setattr("lensplug.patches.both.mlp_by_positions.CHUNK_BYTES", request.param)


def gradients(model, hooks=()):
    """A logit, and its gradient with respect to some activations."""
    kept = {}

    def keep(value, hook):
        if hook.name not in kept:  # a block that is computed again comes by twice
            kept[hook.name] = value if value.requires_grad else value.requires_grad_()
            return kept[hook.name]
        return value

    with model.hooks(fwd_hooks=[*((name, keep) for name in NAMES), *hooks]):
        logit = model(TOKENS)[:, -1, 5].sum()
        return logit.detach(), *torch.autograd.grad(logit, [kept[name] for name in NAMES])


def close(found, expected):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5 * float(other.abs().max()), rtol=1e-5)
        assert bool(other.any())


@pytest.mark.usefixtures("chunk_bytes")
@pytest.mark.parametrize("hook", [None, "blocks.1.hook_mlp_out", "blocks.1.hook_resid_post", "blocks.1.mlp.hook_post"])
def test_gradients_are_those_of_the_whole(model, hook):
    """Also beside an edit behind an MLP, which needs its output again, and one inside."""
    hooks = [] if hook is None else [(hook, lambda value, hook: (value * value.tanh()) + 0.3)]
    expected = gradients(model, hooks)
    with MLPByPositions(model):
        close(gradients(model, hooks), expected)
        with CheckpointedBlocks(model):
            close(gradients(model, hooks), expected)
    if hook is not None:
        assert not torch.allclose(gradients(model)[1], expected[1])


@pytest.mark.usefixtures("chunk_bytes")
def test_a_hook_inside_sees_all_positions_at_once(model):
    shapes = []

    def note(value, hook):
        shapes.append(value.shape[:2])

    with MLPByPositions(model):
        gradients(model, [("blocks.1.mlp.hook_post", note)])
    assert shapes == [TOKENS.shape]


def test_gradients_of_parameters_are_as_ever(model):
    def of_parameters():
        model.zero_grad()
        model(TOKENS)[0, -1, 5].backward()
        return [parameter.grad.clone() for parameter in model.blocks.parameters() if parameter.grad is not None]

    model.blocks.requires_grad_(True)
    expected = of_parameters()
    with MLPByPositions(model):
        assert all(map(torch.equal, of_parameters(), expected)) and bool(expected[0].any())


@pytest.mark.parametrize("checkpointed", [False, True])
def test_no_tensor_of_all_neurons_is_kept_nor_the_output_made_again(model, checkpointed, monkeypatch):
    monkeypatch.setattr("lensplug.patches.both.mlp_by_positions.CHUNK_BYTES", 5_000)
    d_mlp = model.blocks[0].mlp.W_gate.shape[1]
    kept, passes = list[torch.Tensor](), list[torch.Tensor]()
    lengths = list[int]()

    def noted(value, notes):
        notes.append(value)
        return value

    patch = MLPByPositions(model)
    for part in patch._parts:
        chunks, post = part.chunks, part.post
        monkeypatch.setattr(part, "chunks", lambda x, chunks=chunks: chunks(noted(x, passes)))
        monkeypatch.setattr(part, "post", lambda x, post=post: post(x[:, : noted(x.shape[1], lengths)]))
    with patch:
        embeds = model.embed(TOKENS).requires_grad_()
        with model.hooks(fwd_hooks=[("hook_embed", lambda value, hook: embeds)]):
            if checkpointed:
                with CheckpointedBlocks(model):
                    loss = model(TOKENS)[0, -1, 5]
                    loss.backward()
            else:
                with torch.autograd.graph.saved_tensors_hooks(lambda one: noted(one, kept), lambda one: one):
                    loss = model(TOKENS)[0, -1, 5]
                loss.backward()
                assert kept and not [one for one in kept if one.ndim == 3 and one.shape[2] == d_mlp]
    layers = len(model.blocks)
    assert len(passes) == 2 * layers, "forward and backward, and no third time in a block that is computed again"
    assert max(lengths) < LENGTH and sum(lengths) == layers * LENGTH


def test_before_is_after(model):
    before = snapshot(model)
    with MLPByPositions(model) as patch:
        assert patch.applied and all("forward" in block.mlp.__dict__ for block in model.blocks)
        gradients(model)
    assert snapshot(model) == before and not patch.applied

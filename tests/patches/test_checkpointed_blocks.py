"""CheckpointedBlocks, and the backward pass of AttentionRows: gradients of the eager model, seen block by block."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.built import ENGINES, attention_rows, built
from support.models import TEXT_CORES, snapshot, text_model, text_tokens

from lensplug.patches import CheckpointedBlocks

LENGTH = 24
TOKENS = text_tokens(LENGTH, 2)
MASKS = {"none": None, "left": slice(0, 5), "right": slice(19, LENGTH)}
NO_ROWS = torch.empty(2, 0, dtype=torch.long)


def gradients_of(model, mask):
    """Of one logit at an attended position, with respect to the parameters of every block."""
    model.zero_grad()
    model(TOKENS, attention_mask=mask)[:, 18, 5].sum().backward()
    return [one.grad.clone() for one in model.blocks.parameters() if one.grad is not None]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["llama", "qwen3-no-gqa-tied"])
def test_gradients_are_the_same_to_the_bit(engine, name):
    model = built(engine, text_model(name))
    expected, before = gradients_of(model, None), snapshot(model)
    with CheckpointedBlocks(model) as patch:
        assert patch.applied
        again = gradients_of(model, None)
    assert all(map(torch.equal, again, expected)) and bool(expected[0].any())
    assert not patch.applied and snapshot(model) == before


@pytest.mark.parametrize("engine", ENGINES)
def test_a_backward_pass_keeps_the_inputs_of_blocks_only(engine):
    model, kept = built(engine, text_model("llama")), dict[str, list[int]]()
    for name in ("plain", "checkpointed"):
        sizes = kept.setdefault(name, [])

        def noted(tensor, sizes=sizes):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(noted, lambda tensor: tensor):
            if name == "plain":
                model(TOKENS)
            else:
                with CheckpointedBlocks(model):
                    model(TOKENS)
    assert sum(kept["checkpointed"]) < sum(kept["plain"]) / 3


SIZES = [(name, 20_000) for name in TEXT_CORES]
SIZES += [(name, size) for name in ("llama", "qwen2-window-some-layers") for size in (1, 2**27)]


@pytest.mark.parametrize("padding", MASKS)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("name", "block_bytes"), SIZES)
def test_patterns_and_their_gradients_are_those_of_the_eager_model(engine, name, padding, block_bytes, monkeypatch):
    monkeypatch.setattr("lensplug.patches.pattern_blocks.BLOCK_BYTES", block_bytes)
    model, mask = built(engine, text_model(name)), None
    if MASKS[padding] is not None:
        mask = torch.ones(2, LENGTH, dtype=torch.long)
        mask[1, MASKS[padding]] = 0
    eager = {}

    def keep(pattern, hook):
        pattern.retain_grad()
        eager[hook.layer()] = pattern

    with model.hooks(fwd_hooks=[(lambda one: one.endswith("hook_pattern"), keep)]):
        expected = gradients_of(model, mask)
    seen: dict[int, Any] = {}

    def show(layer, start, pattern, gradient):
        own = seen.setdefault(layer, torch.zeros(2, 2, 4, LENGTH, LENGTH))
        stop, keys = start + pattern.shape[2], pattern.shape[3]
        own[0, :, :, start:stop, :keys], own[1, :, :, start:stop, :keys] = pattern, gradient

    with CheckpointedBlocks(model), attention_rows(engine)(model, NO_ROWS, each_gradient=show):
        fast = gradients_of(model, mask)
    for one, other in zip(fast, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4 * float(other.abs().max()), rtol=1e-4)
    assert list(seen) == [2, 1, 0]  # the last layer first
    for layer, (pattern, gradient) in seen.items():
        torch.testing.assert_close(pattern, eager[layer].detach(), atol=1e-5, rtol=0)
        on_pattern = eager[layer].detach() > 0  # what a query does not see is not shown
        largest = float(eager[layer].grad.abs().max())
        torch.testing.assert_close(
            gradient[on_pattern], eager[layer].grad[on_pattern], atol=1e-4 * max(largest, 1e-6), rtol=1e-3
        )
        assert layer == 2 or bool(gradient[on_pattern].any())

"""The wrapped core is the model of Hugging Face: logits, patterns, residuals and gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fuzz.case import Case, holds
from fuzz.wrapped import Prompts, Wrapped, encoded, prompts, reference, wrapped


def drawn(case: Case, **sizes: int) -> tuple[Wrapped, Any, Prompts, Any]:
    """A model, one of its lenses, prompts and what the lens makes of them."""
    tiny_model = wrapped(case)
    lens = tiny_model.lenses[case.one_of(list(tiny_model.lenses))]
    prompt_batch = prompts(case, tiny_model.config.vocab_size, **sizes)
    return tiny_model, lens, prompt_batch, encoded(lens, prompt_batch)


@holds(weight=6)
def logits_are_those_of_hugging_face(case: Case) -> None:
    tiny_model, lens, prompt_batch, inputs = drawn(case)
    with torch.no_grad():
        found = lens.model(inputs)
        expected = lens.hf_model(
            input_ids=prompt_batch.tokens, attention_mask=prompt_batch.mask, use_cache=False
        ).logits
    at = prompt_batch.real
    case.close(found[at], expected[at], tiny_model.allowed(at.shape[1], expected[at]), "logits (SDPA)")
    eager = reference(tiny_model, prompt_batch).logits
    case.close(found[at], eager[at], tiny_model.allowed(at.shape[1], eager[at]), "logits (eager)")


@holds(weight=6)
def patterns_and_residuals_are_those_of_hugging_face(case: Case) -> None:
    tiny_model, lens, prompt_batch, inputs = drawn(case)
    _, cache = lens.run_with_cache(inputs)
    expected, at = reference(tiny_model, prompt_batch), prompt_batch.real
    layers = tiny_model.config.num_hidden_layers
    case.same(cache["hook_embed"][at], expected.hidden_states[0][at], "embeddings")
    for layer in range(layers):
        rows = at[:, None].expand(expected.attentions[layer].shape[:3])
        found = cache["pattern", layer][rows]
        case.close(found, expected.attentions[layer][rows], tiny_model.allowed(at.shape[1], 1.0), f"pattern {layer}")
        stream, own_stream = cache["resid_pre", layer][at], expected.hidden_states[layer][at]
        case.close(stream, own_stream, tiny_model.allowed(at.shape[1], own_stream), f"resid_pre {layer}")
    final, normed = cache["resid_post", layers - 1][at], expected.hidden_states[layers][at]
    with torch.no_grad():
        found = tiny_model.reference.model.norm(final)
    case.close(found, normed, tiny_model.allowed(at.shape[1], normed), "resid_post of the last layer, normed")


def _target(case: Case, prompt_batch: Prompts, vocabulary: int) -> tuple[Any, int, Tensor]:
    """A token, tokens, or a pair, a position, and the weights of all logits `[batch pos d_vocab]` that they mean."""
    batch, length = prompt_batch.tokens.shape
    shortest = min(len(prompt_batch.positions(example)) for example in range(batch))
    position = -case.integer(1, shortest)
    weights = torch.zeros(batch, length, vocabulary)

    def token() -> Any:
        ids = torch.randint(0, vocabulary, (batch,), generator=case.generator)
        return int(ids[0]) if case.chance() else ids

    target = token() if case.chance(0.6) else (token(), token())
    for one, sign in zip(target if isinstance(target, tuple) else (target,), (1.0, -1.0), strict=False):
        for example, tiny_model in enumerate(torch.as_tensor(one).expand(batch).tolist()):
            weights[example, prompt_batch.positions(example)[position], tiny_model] += sign
    return target, position, weights


@holds(weight=6)
def gradients_are_those_of_autograd(case: Case) -> None:
    tiny_model, lens, prompt_batch, inputs = drawn(case)
    target, position, weights = _target(case, prompt_batch, tiny_model.config.vocab_size)
    _, _, grads = lens.run_with_gradients(inputs, target=target, position=position)
    outputs = reference(tiny_model, prompt_batch, gradients=True)
    expected = torch.autograd.grad((outputs.logits * weights).sum(), outputs.attentions)
    at = prompt_batch.real
    for layer, gradient in enumerate(expected):
        rows = at[:, None].expand(gradient.shape[:3])
        keys = at[:, None, None].expand(gradient.shape) & torch.ones_like(gradient).tril().bool()
        chosen = rows[..., None] & keys
        # There and back again: every term of the forward pass is met once more.
        allowed = 2 * tiny_model.allowed(at.shape[1], max(float(gradient[chosen].abs().max()), 1e-3))
        case.close(grads["pattern", layer][chosen], gradient[chosen], allowed, f"gradient of pattern {layer}")


@holds(weight=3)
def kept_cams_are_gradient_times_attention(case: Case) -> None:
    tiny_model, lens, prompt_batch, inputs = drawn(case)
    target, position, weights = _target(case, prompt_batch, tiny_model.config.vocab_size)
    _, cache, _ = lens.run_with_gradients(inputs, target=target, position=position, keep=["cam", "cam_negative"])
    outputs = reference(tiny_model, prompt_batch, gradients=True)
    expected = torch.autograd.grad((outputs.logits * weights).sum(), outputs.attentions)
    both = prompt_batch.real[:, :, None] & prompt_batch.real[:, None]
    for layer, gradient in enumerate(expected):
        product = (gradient * outputs.attentions[layer]).detach()
        allowed = 2 * tiny_model.allowed(both.shape[1], max(float(gradient.abs().max()), 1e-3))
        for name, part in (("cam_positive", product.clamp(min=0)), ("cam_negative", (-product).clamp(min=0))):
            found = cache.cache_dict[f"blocks.{layer}.attn.{name}"]
            case.close(found[both], part.mean(1)[both], allowed, f"{name} of layer {layer}")


@holds(weight=2)
def measured_and_value_weighted_read_the_model(case: Case) -> None:
    """What the options of a rollout need besides patterns: values through W_O, and norms of the stream."""
    tiny_model, lens, prompt_batch, inputs = drawn(case)
    kept: dict[tuple[str, int], Tensor] = {}
    hooks = []
    for layer, block in enumerate(tiny_model.reference.model.layers):
        attention = block.self_attn
        for name, module in (("v", attention.v_proj), ("attn_out", attention.o_proj)):
            key = (name, layer)
            hooks.append(module.register_forward_hook(lambda _, __, out, key=key: kept.__setitem__(key, out.detach())))
    try:
        reference(tiny_model, prompt_batch)
    finally:
        for hook in hooks:
            hook.remove()
    _, cache = lens.run_with_cache(inputs)
    at, config = prompt_batch.real, tiny_model.config
    for layer in range(config.num_hidden_layers):
        out = kept["attn_out", layer]
        case.close(cache["attn_out", layer][at], out[at], tiny_model.allowed(at.shape[1], out[at]), f"attn_out {layer}")
        value = kept["v", layer].view(*at.shape, config.num_key_value_heads, -1)
        found = cache["v", layer]
        repeats = found.shape[2] // value.shape[2]
        value = value.repeat_interleave(repeats, dim=2)
        case.close(found[at], value[at], tiny_model.allowed(at.shape[1], value[at]), f"v {layer}")


@holds(weight=1)
def a_run_leaves_nothing_behind(case: Case) -> None:
    """The same prompts twice, whatever ran between them, give the same bits."""
    tiny_model, lens, prompt_batch, inputs = drawn(case)
    with torch.no_grad():
        before = lens.model(inputs)
        if case.chance():
            lens.run_with_cache(inputs, names_filter=[], keep=case.some_of(["rollout", "head_mean", "modality_mass"]))
        if case.chance():
            lens.run_with_gradients(inputs, target=0, keep=case.one_of([None, "cam"]))
        if case.chance():
            lens.run_with_cache(inputs, query_positions=[-1], residual_positions=[-1], logit_positions=[-1])
        after = lens.model(inputs)
    case.same(after[prompt_batch.real], before[prompt_batch.real], "logits again")

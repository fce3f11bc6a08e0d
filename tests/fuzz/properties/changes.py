"""What is changed inside a model: deleted positions, patched activations, by a loop with Hugging Face's own hooks."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fuzz import by_hand
from fuzz.case import Case, holds
from fuzz.properties.core import drawn
from fuzz.wrapped import Prompts, Wrapped, encoded
from lensplug import analysis
from lensplug.analysis.interventions.patched_places import Activation, PatchedPlaces, StreamActivation


def _measured(case: Case, batch: Prompts, vocabulary: int) -> tuple[Any, int, Callable[[Tensor], Tensor]]:
    """A target, its position, and how it is read from `[batch pos d_vocab]`."""
    shortest = min(len(batch.positions(example)) for example in range(len(batch.mask)))
    position, pair = -case.integer(1, shortest), case.chance(0.4)
    ids = [case.integer(0, vocabulary - 1) for _ in range(1 + pair)]
    at = torch.tensor([batch.positions(example)[position] for example in range(len(batch.mask))])

    def read(values: Tensor) -> Tensor:
        rows = values[torch.arange(len(at)), at]
        return rows[:, ids[0]] - (rows[:, ids[1]] if pair else 0)

    return (tuple(ids) if pair else ids[0]), position, read


@holds(weight=2)
def a_deletion_curve_is_a_loop_over_hidden_positions(case: Case) -> None:
    wrapped, lens, batch, inputs = drawn(case, shortest=2, longest=12, most=2)
    target, position, read = _measured(case, batch, wrapped.config.vocab_size)
    among = torch.zeros_like(batch.real)
    for example, row in enumerate(among):
        # The first stays, and some position in every window: a row that sees nothing at all has no answer.
        row[case.some_of(batch.positions(example)[1:])] = True
    if _blind(wrapped, batch, among):
        return
    relevance, steps = case.normal(*batch.tokens.shape), case.integer(1, 4)
    curve = analysis.deletion_curve(
        lens,
        inputs,
        relevance,
        target,
        position=position,
        among=among,
        steps=steps,
        draws=1,
        batch_size=case.integer(1, 9),
    )
    embeds = wrapped.reference.get_input_embeddings()(batch.tokens).detach()
    sign = {"most": -1, "least": 1}
    for name, found in (("most", curve.most_first), ("least", curve.least_first)):
        for step, fraction in enumerate(curve.fractions.tolist()):
            changed, mask = embeds.clone(), batch.mask.clone()
            for example, chosen in enumerate(among):
                at = chosen.nonzero().flatten()
                order = at[(sign[name] * relevance[example, at]).argsort()]
                count = len(at) * fraction
                if abs(count % 1 - 0.5) < 1e-4:  # halves are rounded in single precision
                    return
                gone = order[: round(count)]
                changed[example, gone], mask[example, gone] = embeds[example, at].mean(0), 0
            with torch.no_grad():
                logits = wrapped.reference(inputs_embeds=changed, attention_mask=mask, use_cache=False).logits
            expected = read(logits.double().log_softmax(-1))
            allowed = 4 * wrapped.allowed(batch.mask.shape[1], logits)
            case.close(found[:, step], expected, allowed, f"{name} relevant first, step {step}")
            if step in (0, len(curve.fractions) - 1):
                case.close(curve.random[:, 0, step], expected, allowed, "random order, none or all deleted")


def _blind(wrapped: Wrapped, batch: Prompts, hidden: Tensor) -> bool:
    """Whether some position would see nothing in a layer with a window."""
    window = getattr(wrapped.config, "sliding_window", None) or batch.mask.shape[1]
    seen = torch.from_numpy(by_hand.causal(batch.mask.shape[1], window)) & (batch.real & ~hidden)[:, None]
    return not bool(seen.any(-1)[batch.real].all())


STREAM: tuple[StreamActivation, ...] = ("resid_pre", "resid_post", "attn_out", "mlp_out")


@holds(weight=2)
def activation_patching_is_a_loop_with_hooks(case: Case) -> None:
    wrapped, lens, batch, clean = drawn(case, shortest=1, longest=8, most=2)
    tokens = torch.randint(0, wrapped.config.vocab_size, batch.tokens.shape, generator=case.generator)
    other = Prompts(tokens, batch.mask)
    target, position, read = _measured(case, batch, wrapped.config.vocab_size)
    activation: Activation = case.one_of([*STREAM, "z"])
    by: PatchedPlaces = case.one_of(["position", "head", "head_and_position"]) if activation == "z" else "position"
    found = analysis.activation_patching(
        lens, clean, encoded(lens, other), target, activation=activation, by=by, position=position
    )
    kept: dict[int, Tensor] = {}
    value_of_clean = read(_hooked(wrapped, batch, activation, lambda layer, value: kept.__setitem__(layer, value)))
    value_of_corrupt = read(_hooked(wrapped, other, activation, lambda layer, value: None))
    scale = max(float(value_of_clean.abs().max()), float(value_of_corrupt.abs().max()), 10.0)
    allowed = 4 * wrapped.allowed(batch.mask.shape[1], scale)
    case.close(found.clean, value_of_clean, allowed, "clean")
    case.close(found.corrupt, value_of_corrupt, allowed, "corrupt")
    heads = wrapped.config.num_attention_heads if by != "position" else 1
    groups = 1 if by == "head" else max(len(batch.positions(example)) for example in range(len(batch.mask)))
    for _ in range(6):
        layer = case.integer(0, wrapped.config.num_hidden_layers - 1)
        group, head = case.integer(0, groups - 1), case.integer(0, heads - 1)
        where = torch.zeros(*batch.mask.shape, dtype=torch.bool)
        there = []
        for example in range(len(batch.mask)):
            real = batch.positions(example)
            there.append(group < len(real))
            where[example, real if by == "head" else real[group : group + 1]] = True

        def put(at: int, value: Tensor, layer: int = layer, head: int = head, where: Tensor = where) -> Tensor | None:
            if at != layer:
                return None
            if by == "position":
                return torch.where(where[:, :, None], kept[layer], value)
            split = (*value.shape[:2], wrapped.config.num_attention_heads, -1)
            one = (torch.arange(split[2]) == head)[None, None, :, None] & where[:, :, None, None]
            return torch.where(one, kept[layer].view(split), value.view(split)).view(value.shape)

        expected = read(_hooked(wrapped, other, activation, put)).double().numpy()
        expected[~np.array(there)] = np.nan
        case.close(found.values[:, layer, group, head], expected, allowed, f"{activation} of layer {layer} by {by}")


def _hooked(wrapped: Wrapped, batch: Prompts, activation: str, act: Callable[[int, Tensor], Tensor | None]) -> Tensor:
    """Logits of Hugging Face's model while `act` sees, and may replace, one activation of each layer."""

    def after(layer: int) -> Callable[..., Any]:
        def hook(_: Any, __: Any, out: Any) -> Any:
            value = out[0] if isinstance(out, tuple) else out
            edited = act(layer, value)
            return None if edited is None else (edited, *out[1:]) if isinstance(out, tuple) else edited

        return hook

    def before(layer: int) -> Callable[..., Any]:
        def hook(_: Any, args: tuple[Any, ...]) -> Any:
            edited = act(layer, args[0])
            return None if edited is None else (edited, *args[1:])

        return hook

    with ExitStack() as stack, torch.no_grad():
        for layer, block in enumerate(wrapped.reference.model.layers):
            attention = block.self_attn.o_proj
            if activation in ("resid_pre", "z"):
                handle = (block if activation == "resid_pre" else attention).register_forward_pre_hook(before(layer))
            else:
                module = {"resid_post": block, "attn_out": attention, "mlp_out": block.mlp}[activation]
                handle = module.register_forward_hook(after(layer))
            stack.callback(handle.remove)
        return wrapped.reference(input_ids=batch.tokens, attention_mask=batch.mask, use_cache=False).logits


@holds(weight=1)
def without_positions_is_the_shorter_prompt(case: Case) -> None:
    wrapped, lens, batch, inputs = drawn(case, shortest=2)
    removed = torch.zeros_like(batch.real)
    for example, row in enumerate(removed):
        real = batch.positions(example)
        row[case.some_of(real[:-1])] = True
    with torch.no_grad():
        found = lens.model(lens.without(inputs, removed))
    for example, row in enumerate(removed):
        remaining = batch.tokens[example][batch.real[example] & ~row][None]
        with torch.no_grad():
            expected = wrapped.reference(input_ids=remaining, use_cache=False).logits[0]
        case.close(
            found[example, -remaining.shape[1] :], expected, wrapped.allowed(batch.mask.shape[1], expected), "logits"
        )

"""Edits of a run, composed and nested: by Hugging Face's own hooks, and minus infinity in its layers' masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from fuzz.case import Case, holds
from fuzz.properties.core import drawn
from fuzz.wrapped import Prompts, Wrapped
from lensplug.interventions import Ablate, Knockout, Replace, Scale, SpliceSAE, Steer
from lensplug.interventions.edit import Edit

Change = Callable[[Tensor], Tensor]


@dataclass
class ByHand:
    """What one edit means in Hugging Face's model."""

    edit: Edit
    changes: dict[tuple[str, int], Change]
    """By (module, layer): "z" is what `o_proj` gets, "resid_post", "attn_out" and "mlp_out" what modules give."""
    hidden: dict[int, tuple[Tensor, list[int]]]
    """By layer: `[example query key]` that some heads do not see."""


@holds(weight=3)
def edits_are_hooks_and_masks_of_hugging_face(case: Case) -> None:
    wrapped, lens, batch, inputs = drawn(case, shortest=2, longest=12)
    edits = [edit for edit in (_drawn(case, wrapped, batch) for _ in range(case.integer(1, 3))) if edit is not None]
    if not edits:
        return
    cut = case.integer(0, len(edits))  # those of an outer scope act first, too
    with torch.no_grad(), lens.intervene(*[each.edit for each in edits[:cut]]):
        with lens.intervene(*[each.edit for each in edits[cut:]]):
            found = lens.model(inputs)
            rows = torch.tensor([[case.one_of(batch.positions(at))] for at in range(len(batch.mask))])
            light = lens.logits_at(inputs, rows)
    expected = _hugging_face(wrapped, batch, edits)
    at, what = batch.real, f"{lens.engine}: {', '.join(str(each.edit) for each in edits)}"
    allowed = 8 * wrapped.allowed(at.shape[1], expected[at])
    case.close(found[at], expected[at], allowed, f"logits under {what}")
    case.close(light[:, 0], expected[torch.arange(len(rows)), rows[:, 0]], allowed, f"logits_at under {what}")
    with torch.no_grad():
        after = lens.model(inputs)
    plain = _hugging_face(wrapped, batch, [])
    case.close(after[at], plain[at], wrapped.allowed(at.shape[1], plain[at]), f"logits after {what}")


@holds(weight=1)
def each_of_many_knockouts_is_a_mask_of_hugging_face(case: Case) -> None:
    wrapped, lens, batch, inputs = drawn(case, shortest=3, longest=12, most=2)
    drawn_edits = [_knockout(case, wrapped, batch) for _ in range(case.integer(1, 6))]
    variants = [[each] if each is not None else [] for each in drawn_edits]
    rows = torch.tensor([[case.one_of(batch.positions(at))] for at in range(len(batch.mask))])
    with lens.edited_runs(inputs, rows) as runs:
        found = runs.under_each([[each.edit for each in variant] for variant in variants], lambda logits: logits)
    for logits, variant in zip(found, variants, strict=True):
        whole = _hugging_face(wrapped, batch, variant)
        expected = whole[torch.arange(len(rows)), rows[:, 0]]
        allowed = 8 * wrapped.allowed(batch.mask.shape[1], whole[batch.real])
        what = f"{lens.engine}: {', '.join(str(each.edit) for each in variant)}"
        case.close(logits[:, 0], expected, allowed, what)


def _drawn(case: Case, wrapped: Wrapped, batch: Prompts) -> ByHand | None:
    """An edit of any kind; None where it would change nothing, which is refused."""
    kinds = [_knockout, _steer, _scale, _ablate, _replace, _splice]
    return case.one_of(kinds)(case, wrapped, batch)


def _layers(case: Case, wrapped: Wrapped) -> list[int]:
    return sorted(case.some_of(range(wrapped.config.num_hidden_layers)))


def _place(case: Case, batch: Prompts) -> tuple[Any, Tensor]:
    """A place, and the mask that it means; positions from the end are those that are no padding."""
    where = torch.zeros_like(batch.real)
    kind = case.one_of(["all", "last", "from the end", "mask"])
    if kind == "all":
        return "all", batch.real.clone()
    shortest = min(len(batch.positions(example)) for example in range(len(batch.mask)))
    back = [-1] if kind == "last" else [-1 - number for number in case.some_of(range(shortest))]
    for example, row in enumerate(where):
        real = batch.positions(example)
        row[case.some_of(real) if kind == "mask" else [real[position] for position in back]] = True
    return ("last" if kind == "last" else back if kind == "from the end" else where.clone()), where


def _heads(case: Case, wrapped: Wrapped) -> list[int]:
    return sorted(case.some_of(range(wrapped.config.num_attention_heads)))


def _knockout(case: Case, wrapped: Wrapped, batch: Prompts) -> ByHand | None:
    (from_, keys), (to, queries) = _place(case, batch), _place(case, batch)
    own, layers = case.chance(0.3), _layers(case, wrapped)
    heads = _heads(case, wrapped) if case.chance() else None
    unseen = queries[:, :, None] & keys[:, None, :]
    behind = torch.ones_like(unseen).tril(0 if own else -1)
    if not bool((unseen & behind).flatten(1).any(1).all()):
        return None
    if not own:
        unseen = unseen & ~torch.eye(unseen.shape[1], dtype=torch.bool)
    every = list(range(wrapped.config.num_attention_heads))
    edit = Knockout(from_, to, layers=layers, heads=heads, own=own)
    return ByHand(edit, {}, {layer: (unseen, every if heads is None else heads) for layer in layers})


def _steer(case: Case, wrapped: Wrapped, batch: Prompts) -> ByHand:
    (place, where), layers = _place(case, batch), _layers(case, wrapped)
    each = case.chance(0.3)
    direction = case.normal(*([len(layers)] if each else []), wrapped.config.hidden_size)
    scale, relative = case.real(-1, 1) or 0.5, case.chance()

    def change(own: Tensor) -> Change:
        def steered(value: Tensor) -> Tensor:
            size = value.norm(dim=-1, keepdim=True) / own.norm() if relative else 1.0
            return torch.where(where[..., None], value + scale * size * own, value)

        return steered

    edit = Steer(direction, layers=layers, positions=place, scale=scale, relative=relative)
    of_layer = [direction[number] if each else direction for number in range(len(layers))]
    return ByHand(edit, {("resid_post", layer): change(own) for layer, own in zip(layers, of_layer, strict=True)}, {})


def _of_heads(value: Tensor, wrapped: Wrapped, heads: Sequence[int], where: Tensor, change: Change) -> Tensor:
    """`change` of what some heads give at some positions."""
    by_head = value.view(*value.shape[:2], wrapped.config.num_attention_heads, -1)
    chosen = torch.zeros(by_head.shape[2], dtype=torch.bool).index_fill(0, torch.tensor(heads), True)
    at = where[:, :, None, None] & chosen[:, None]
    return torch.where(at, change(by_head), by_head).view(value.shape)


def _scale(case: Case, wrapped: Wrapped, batch: Prompts) -> ByHand:
    (place, where), layers, heads = _place(case, batch), _layers(case, wrapped), _heads(case, wrapped)
    factor = case.real(-2, 3)
    edit = Scale(heads, factor, layers=layers, positions=place)

    def scaled(value: Tensor) -> Tensor:
        return _of_heads(value, wrapped, heads, where, lambda z: z * factor)

    return ByHand(edit, {("z", layer): scaled for layer in layers}, {})


def _ablate(case: Case, wrapped: Wrapped, batch: Prompts) -> ByHand:
    (place, where), layers = _place(case, batch), _layers(case, wrapped)
    if case.chance():
        heads = _heads(case, wrapped)
        edit = Ablate(heads=heads, layers=layers, positions=place)

        def without(value: Tensor) -> Tensor:
            return _of_heads(value, wrapped, heads, where, torch.zeros_like)

        return ByHand(edit, {("z", layer): without for layer in layers}, {})
    output: Any = case.one_of(["attn_out", "mlp_out"])
    edit = Ablate(output, layers=layers, positions=place)

    def nothing(value: Tensor) -> Tensor:
        return value.masked_fill(where[..., None], 0)

    return ByHand(edit, {(output, layer): nothing for layer in layers}, {})


def _replace(case: Case, wrapped: Wrapped, batch: Prompts) -> ByHand:
    (place, where), layer = _place(case, batch), _layers(case, wrapped)[0]
    activation = case.one_of(["resid_post", "attn_out", "mlp_out"])
    put = case.normal(*batch.mask.shape, wrapped.config.hidden_size)
    edit = Replace(put, at=activation, layers=layer, positions=place)
    return ByHand(edit, {(activation, layer): lambda value: torch.where(where[..., None], put, value)}, {})


class StandIn:
    """What an edit asks of an SAE of SAELens, without SAELens."""

    dtype = torch.float32

    def __init__(self, case: Case, width: int, *, identity: bool) -> None:
        self.cfg, eye = SimpleNamespace(d_sae=2 * width), torch.eye(width)
        self.encoder = torch.cat([eye, -eye], 1) if identity else case.normal(width, 2 * width) / width**0.5
        self.decoder = torch.cat([eye, -eye]) if identity else case.normal(2 * width, width) / width**0.5

    def encode(self, x: Tensor) -> Tensor:
        return (x @ self.encoder).relu()

    def decode(self, latents: Tensor) -> Tensor:
        return latents @ self.decoder

    def __call__(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))


def _splice(case: Case, wrapped: Wrapped, batch: Prompts) -> ByHand:
    (place, where), layer = _place(case, batch), _layers(case, wrapped)[0]
    identity, error_term = case.chance(0.3), case.chance()
    sae = StandIn(case, wrapped.config.hidden_size, identity=identity)
    sets = {} if identity else {case.integer(0, sae.cfg.d_sae - 1): case.real(0, 3)}
    edit = SpliceSAE(sae, latents=sets, error_term=error_term, positions=place, hook=f"blocks.{layer}.hook_resid_post")

    def spliced(value: Tensor) -> Tensor:
        latents = sae.encode(value)
        edited = latents.clone()
        for latent, activation in sets.items():
            edited[..., latent] = activation
        error = value - sae.decode(latents) if error_term else 0
        return torch.where(where[..., None], value if identity else sae.decode(edited) + error, value)

    return ByHand(edit, {("resid_post", layer): spliced}, {})


def _hugging_face(wrapped: Wrapped, batch: Prompts, edits: Sequence[ByHand]) -> Tensor:
    """Logits of Hugging Face's eager model under edits."""
    with ExitStack() as stack, torch.no_grad():
        for layer, block in enumerate(wrapped.reference.model.layers):
            nothing_seen = block.self_attn.o_proj.register_forward_pre_hook(_before(torch.nan_to_num))
            stack.callback(nothing_seen.remove)
            modules = {"resid_post": block, "attn_out": block.self_attn, "mlp_out": block.mlp}
            for each in edits:
                for (name, where), change in each.changes.items():
                    if where != layer:
                        continue
                    handle = (
                        block.self_attn.o_proj.register_forward_pre_hook(_before(change))
                        if name == "z"
                        else modules[name].register_forward_hook(_after(change))
                    )
                    stack.callback(handle.remove)
            hidden = [each.hidden[layer] for each in edits if layer in each.hidden]
            if hidden:
                n_heads = wrapped.config.num_attention_heads
                masked = block.self_attn.register_forward_pre_hook(_masked(hidden, n_heads), with_kwargs=True)
                stack.callback(masked.remove)
        given = {"input_ids": batch.tokens, "attention_mask": batch.mask}
        logits: Tensor = wrapped.reference(**given, use_cache=False).logits
        return logits


def _before(change: Change) -> Callable[..., Any]:
    return lambda _, args: (change(args[0]), *args[1:])


def _after(change: Change) -> Callable[..., Any]:
    def hook(_: Any, __: Any, out: Any) -> Any:
        return (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)

    return hook


def _masked(hidden: Sequence[tuple[Tensor, list[int]]], n_heads: int) -> Callable[..., Any]:
    """The additive mask of one layer, lowest where heads do not see; a query that sees nothing gets nothing."""

    def hook(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        mask = kwargs["attention_mask"]
        length = kwargs["hidden_states"].shape[1]
        sees = torch.ones(length, length, dtype=torch.bool).tril() if mask is None else mask >= 0
        sees = sees.expand(len(kwargs["hidden_states"]), n_heads, length, length).clone()
        for unseen, heads in hidden:
            sees[:, heads] &= ~unseen[:, None]
        return args, {**kwargs, "attention_mask": torch.zeros(sees.shape).masked_fill(~sees, -torch.inf)}

    return hook

"""An edit of each kind of hook: does it reach the logits, and give what Hugging Face gives with the same edit?

All edits are made in one run: the prompt is repeated in a batch, each example is edited in another way, the last in
none. On Hugging Face's side plain module hooks make the same change: to what a layer is given or returns, to what its
output matrix (`o_proj`) or the last matrix of its MLP is given, to what `q_proj` returns. An edit of a pattern, or of
scores, is worked out by hand as a change of what the heads hand to `o_proj`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lensplug.proof.forward_checks import Run
from lensplug.proof.measures import Tally, apart
from lensplug.proof.pair import DOWN, PROJECTIONS, Pair, noise, on_input, on_output
from lensplug.proof.prompts import Prompt
from lensplug.proof.report import Check

KINDS = (
    "hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out", "hook_per_layer_out",
    "attn.hook_z", "attn.hook_q", "attn.hook_k", "attn.hook_v", "attn.hook_pattern", "attn.hook_attn_scores",
    "mlp.hook_post",
)  # fmt: skip
"""The hooks that are edited, where a layer has them."""
REACHED = 1e-3
"""The least change of a logit, as a fraction, that counts as having reached it; changes are about as large as what is
changed."""
Hooked = Callable[[], Any]
"""Puts a hook on Hugging Face's model, and returns its handle."""


@dataclass(frozen=True)
class Edit:
    """One edit: which hook, of which layer, in which example of the batch."""

    kind: str
    layer: int
    example: int


def edits_of(pair: Pair, layers: Sequence[int]) -> list[Edit]:
    """An edit of each kind of hook that each of these layers has."""
    places = [(kind, layer) for layer in layers for kind in KINDS if f"blocks.{layer}.{kind}" in pair.hook_names]
    return [Edit(kind, layer, example) for example, (kind, layer) in enumerate(places)]


def checks(pair: Pair, prompt: Prompt, edits: Sequence[Edit], run: Run, tolerance: float) -> list[Check]:
    """A check for each kind of hook.

    Args:
        pair: The models.
        prompt: Text, once more than there are edits.
        edits: From `edits_of`.
        run: Other text through both models, nothing edited, with the parts of the edited layers.
        tolerance: What rounding explains.
    """
    batch, length = prompt.tokens.shape
    position = length // 2
    behind = torch.arange(position, length).expand(batch, -1)  # nothing that is edited comes before
    values: dict[str, Tensor] = {}

    def edited(edit: Edit) -> Any:
        def hook(value: Tensor, hook: Any) -> Tensor:
            values[hook.name] = value.detach()[edit.example].clone()
            changed = value.clone()
            if edit.kind in ("attn.hook_pattern", "attn.hook_attn_scores"):
                row = changed[edit.example, :, position]
                changed[edit.example, :, position] = row + _row_change(edit.kind, row.detach(), position)
            else:
                changed[edit.example, position] += _change(value[edit.example, position].detach(), edit)
            return changed

        return (f"blocks.{edit.layer}.{edit.kind}", hook)

    logits = pair.wrapped(prompt, [edited(edit) for edit in edits], at=behind)
    counterparts = {edit: _counterpart(pair, run, edit, position, values) for edit in edits}
    hooks = [hooked() for hooked in counterparts.values() if hooked is not None]
    expected = pair.reference(prompt, hooks, at=behind)
    tallies = {kind: Tally(f"edit of {kind}", tolerance, partial(run.explains, "logits")) for kind in KINDS}
    lost: dict[str, Check] = {}
    for edit in edits:
        effect = apart(logits[edit.example], logits[-1])
        name = f"edit of {edit.kind}"
        if f"blocks.{edit.layer}.{edit.kind}" not in values:
            lost[edit.kind] = Check(name, "failed", where=f"layer {edit.layer}", why="the hook did not fire")
        elif not effect > REACHED:
            why = f"it does not reach the logits, which move by {effect:.1e}"
            lost[edit.kind] = Check(name, "failed", effect, REACHED, f"layer {edit.layer}", why)
        elif counterparts[edit] is not None:
            tallies[edit.kind].add(apart(logits[edit.example], expected[edit.example]), f"layer {edit.layer}")
    why = "it reaches the logits; Hugging Face has no module whose hook makes the same edit"
    present = [kind for kind in KINDS if any(edit.kind == kind for edit in edits)]
    return [lost.get(kind) or tallies[kind].check(why) for kind in present]


def _change(value: Tensor, edit: Edit) -> Tensor:
    """What is added at the edited position: noise as large as what is there."""
    return noise(value, seed=edit.example) * value.float().square().mean().sqrt().clamp(min=1e-3).to(value)


def _row_change(kind: str, row: Tensor, position: int) -> Tensor:
    """What is added to a row of a pattern, which becomes even, or to one of scores."""
    if kind == "attn.hook_pattern":
        even = torch.zeros_like(row)
        even[:, : position + 1] = 1 / (position + 1)
        return even - row
    return 2 * noise(row, seed=position)


def _counterpart(pair: Pair, run: Run, edit: Edit, position: int, values: dict[str, Tensor]) -> Hooked | None:
    """A hook on Hugging Face's model that makes the same edit; None where none is known."""
    layer = pair.layers[edit.layer]
    value = values.get(f"blocks.{edit.layer}.{edit.kind}")
    if value is None:
        return None
    attention = pair.attention_of(edit.layer)
    kind = edit.kind.removeprefix("attn.hook_").removeprefix("hook_")
    if kind in ("pattern", "attn_scores"):
        return _of_pattern(pair, run, edit, position, values, attention)
    added = _change(value[position], edit).flatten()

    def add(given: Tensor, scale: float = 1.0) -> Tensor:
        changed = given.clone()
        changed[edit.example, position] += (added / scale).to(given)
        return changed

    if kind == "resid_pre":
        return partial(on_input, layer, add)
    if kind == "resid_post":
        return partial(on_output, layer, add)
    if kind in ("resid_mid", "attn_out", "mlp_out", "per_layer_out"):
        part, scale = _that_writes(run, edit.layer, "hook_attn_out" if kind == "resid_mid" else f"hook_{kind}")
        return None if part is None else partial(on_output, part, partial(add, scale=scale))
    if kind == "mlp.hook_post":
        part = pair.part(edit.layer, DOWN)
        return None if part is None else partial(on_input, part, add)
    if attention is None:
        return None
    names = PROJECTIONS if kind == "z" else (f"{kind}_proj",)
    part = pair.part(edit.layer, names, attention)
    if part is None or _width(part, of_input=kind == "z") != added.numel():
        return None
    return partial(on_input if kind == "z" else on_output, part, add)


def _width(part: nn.Module, *, of_input: bool) -> int:
    weight: Any = part.weight
    return int(weight.shape[1 if of_input else 0])


def _that_writes(run: Run, layer: int, kind: str) -> tuple[nn.Module | None, float]:
    """The part of a Hugging Face layer whose output, times a number, is what the wrapped core says was written."""
    written = run.kept(layer, kind)
    if written is None:
        return None, 1.0
    for part, output in run.outputs[layer].items():
        if not isinstance(output, Tensor) or output.shape != written.shape or isinstance(part, nn.Dropout):
            continue
        scale = float((written.float() * output.float()).sum() / output.float().square().sum().clamp(min=1e-30))
        if scale and apart(output.float() * scale, written.float()) < 1e-3:
            return part, scale
    return None, 1.0


def _of_pattern(
    pair: Pair, run: Run, edit: Edit, position: int, values: dict[str, Tensor], attention: nn.Module | None
) -> Hooked | None:
    """What an edit of a pattern's row changes in what the heads give: the change of the row, times the values."""
    pattern, v = (values.get(f"blocks.{edit.layer}.attn.hook_{name}") for name in ("pattern", "v"))
    part = None if attention is None else pair.part(edit.layer, PROJECTIONS, attention)
    if pattern is None or v is None or part is None or not _hands_on_sums(run, edit.layer):
        return None
    row = pattern[:, position].float()
    if edit.kind == "attn.hook_pattern":
        moved = _row_change(edit.kind, row, position)
    else:
        factor = _row_change(edit.kind, torch.empty_like(row), position).exp()
        # What is missing of a sum of one went to a sink.
        moved = row * factor / (1 - row.sum(-1, keepdim=True) + (row * factor).sum(-1, keepdim=True)) - row
    added = _sums(moved[:, None], v)[0]

    def add(value: Tensor) -> Tensor:
        changed = value.clone()
        changed[edit.example, position] += added.to(value)
        return changed

    return partial(on_input, part, add)


def _hands_on_sums(run: Run, layer: int) -> bool:
    """Whether the matrix behind the heads is given sums of values as they are, nothing between: no gate, no norm."""
    pattern, v, given = run.patterns.get(layer), run.kept(layer, "attn.hook_v"), run.by_heads.get(layer)
    if pattern is None or v is None or given is None or v.ndim != 4 or pattern.shape[1] % v.shape[2]:
        return False
    heads = _sums(pattern[0].float(), v[0])
    return heads.shape == given[0].shape and apart(heads, given[0].float()) <= 1e-2


def _sums(pattern: Tensor, v: Tensor) -> Tensor:
    """Values by a pattern `[head query key]`, the heads side by side, `[query width]`."""
    by_head = v.repeat_interleave(len(pattern) // v.shape[1], dim=1).float()
    return torch.einsum("hqk,khd->qhd", pattern, by_head).flatten(1)

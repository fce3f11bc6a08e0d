"""The same prompt through both models: logits, the residual stream behind every layer, patterns, their rows, the sum.

What is compared is recorded in one run of each: `Run.of` keeps it. A stream that is wrong in one layer is wrong in all
behind it; each layer by itself is `layer_checks`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lensplug import engines
from lensplug.proof.measures import Tally, apart, explained
from lensplug.proof.pair import PROJECTIONS, Pair, on_input, on_output, rounded_otherwise, stream
from lensplug.proof.prompts import Prompt
from lensplug.proof.report import Check

BESIDE_THE_BLOCKS = ("hook_per_layer_out", "hook_deepstack")
"""Terms of the residual stream besides attention and MLP, by layer: `blocks.0.hook_deepstack`."""


@dataclass
class Run:
    """What both models made of one prompt."""

    pair: Pair
    prompt: Prompt
    expected_logits: Tensor
    logits: Tensor
    entering: dict[int, Tensor] = field(default_factory=dict)
    """Hugging Face's stream before each layer."""
    leaving: dict[int, Tensor] = field(default_factory=dict)
    """And behind it."""
    patterns: dict[int, Tensor] = field(default_factory=dict)
    """Hugging Face's patterns, of layers that have them."""
    cache: dict[str, Tensor] = field(default_factory=dict)
    """The wrapped core's activations."""
    outputs: dict[int, dict[nn.Module, Tensor]] = field(default_factory=dict)
    """What the parts of some of Hugging Face's layers return."""
    by_heads: dict[int, Tensor] = field(default_factory=dict)
    """What the matrix behind their heads is given."""

    @classmethod
    def of(cls, pair: Pair, prompt: Prompt, parts_of: Sequence[int] = ()) -> Run:
        """Run both, and keep what is compared; of the layers `parts_of` also what their parts made."""
        run = cls(pair, prompt, torch.empty(0), torch.empty(0))
        handles = run._watch_parts(pair, parts_of)
        for layer, module in enumerate(pair.layers):
            handles.append(on_input(module, partial(_note, run.entering, layer)))
            handles.append(on_output(module, partial(_note, run.leaving, layer)))
            for part in module.children():
                handles.append(part.register_forward_hook(_Patterns(run.patterns, layer, prompt.tokens.shape[1])))
        at = chosen_rows(prompt.real)
        run.expected_logits = pair.reference(prompt, handles, at=at)
        kinds = (
            "hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out", "attn.hook_pattern",
            *(["attn.hook_v"] if parts_of else []), *BESIDE_THE_BLOCKS,
        )  # fmt: skip
        names = [*_embeddings(pair), *(f"blocks.{layer}.{kind}" for layer in range(len(pair.layers)) for kind in kinds)]

        def keep(value: Tensor, hook: Any) -> None:
            run.cache[hook.name] = value.detach().clone()

        run.logits = pair.wrapped(prompt, [(name, keep) for name in names if name in pair.hook_names], at=at)
        return run

    @cached_property
    def roundings(self) -> dict[str, float]:
        """What one rounding of the first stream does to Hugging Face's "streams", "logits" and "patterns".

        Hugging Face's model runs once more for it.
        """
        pair = self.pair
        leaving: dict[int, Tensor] = {}
        patterns: dict[int, Tensor] = {}
        handles = [on_input(pair.layers[0], rounded_otherwise)]
        for layer, module in enumerate(pair.layers):
            handles.append(on_output(module, partial(_note, leaving, layer)))
            for part in module.children():
                handles.append(part.register_forward_hook(_Patterns(patterns, layer, self.prompt.tokens.shape[1])))
        real = self.prompt.real
        logits = pair.reference(self.prompt, handles, at=chosen_rows(real))

        def moved(value: Tensor, to: Tensor) -> float:
            comparable = value.shape == to.shape and value.shape[:2] == real.shape
            return apart(to[real], value[real]) if comparable else 0.0

        return {
            "logits": apart(logits, self.expected_logits),
            "streams": max(moved(value, leaving[layer]) for layer, value in self.leaving.items()),
            "patterns": max((_patterns_apart(patterns[n], hf, real) for n, hf in self.patterns.items()), default=0.0),
        }

    def explains(self, what: Literal["streams", "logits", "patterns"]) -> float:
        """The difference that rounding explains."""
        return explained(self.roundings[what])

    def _watch_parts(self, pair: Pair, layers: Sequence[int]) -> list[Any]:
        handles = []
        for layer in layers:
            outputs = self.outputs.setdefault(layer, {})
            for part in pair.layers[layer].children():
                handles.append(part.register_forward_hook(_Outputs(outputs)))
            attention = pair.attention_of(layer)
            behind = None if attention is None else pair.part(layer, PROJECTIONS, attention)
            if behind is not None:
                handles.append(on_input(behind, partial(_note, self.by_heads, layer)))
        return handles

    def kept(self, layer: int, kind: str) -> Tensor | None:
        """The wrapped core's activation of a layer; None where it has no such hook, or it did not fire."""
        return self.cache.get(f"blocks.{layer}.{kind}")


class _Patterns:
    """A hook that notes the pattern that a part of a layer returns beside its output, if it does."""

    def __init__(self, patterns: dict[int, Tensor], layer: int, length: int) -> None:
        self._patterns, self._layer, self._length = patterns, layer, length

    def __call__(self, module: Any, args: Any, output: Any) -> None:
        beside = output[1:] if isinstance(output, tuple) else ()
        for value in beside:
            if isinstance(value, Tensor) and value.ndim == 4 and value.shape[-2:] == (self._length,) * 2:
                self._patterns[self._layer] = value


def _note(place: dict[int, Tensor], layer: int, value: Tensor) -> None:
    place[layer] = value


class _Outputs:
    """A hook that notes what a part returns."""

    def __init__(self, outputs: dict[nn.Module, Tensor]) -> None:
        self._outputs = outputs

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        self._outputs[module] = stream(output)


def checks(pair: Pair, run: Run, tolerance: float) -> list[Check]:
    """Logits, streams, patterns, rows and sums of one run."""
    where = "" if run.prompt.name == "text" else f", {run.prompt.name}"
    name = f" ({run.prompt.name})" if where else ""
    real = run.prompt.real
    residuals = Tally(f"every layer's residual stream{name}", tolerance, partial(run.explains, "streams"))
    for layer in range(len(pair.layers)):
        for kind, expected in (("hook_resid_pre", run.entering), ("hook_resid_post", run.leaving)):
            found, hf = run.kept(layer, kind), expected.get(layer)
            added = run.kept(layer, "hook_deepstack") if kind == "hook_resid_post" else None
            if hf is not None and added is not None:  # behind the layer, which does not return it
                hf = hf + added
            if found is None or hf is None:
                residuals.add(float("inf"), f"layer {layer}, no {kind}")
            elif hf.shape != found.shape or hf.shape[:2] != real.shape:
                residuals.add(float("inf"), f"layer {layer}, {kind} has the shape {list(found.shape)}")
            else:
                residuals.add(apart(found[real], hf[real]), f"layer {layer}, {kind}{where}")
    logits = Tally(f"logits{name}", tolerance, partial(run.explains, "logits"))
    logits.add(apart(run.logits, run.expected_logits), f"the head{where}")
    return [
        residuals.check(),
        logits.check(),
        *_of_patterns(pair, run, tolerance, name),
        _sums(pair, run, tolerance, name),
    ]


def _of_patterns(pair: Pair, run: Run, tolerance: float, name: str) -> list[Check]:
    patterns = Tally(f"attention patterns{name}", tolerance, partial(run.explains, "patterns"))
    rows_tally = Tally(f"query_positions rows{name}", tolerance, partial(run.explains, "patterns"))
    without, unseen = [], []
    real = run.prompt.real
    for layer in range(len(pair.layers)):
        found, expected = run.kept(layer, "attn.hook_pattern"), run.patterns.get(layer)
        if found is None:
            without.append(layer)
        elif expected is None:
            unseen.append(layer)
        else:
            patterns.add(_patterns_apart(found, expected, real), f"layer {layer}{name}")
    checks = [patterns.check("no layer has patterns")]
    if without:
        which = ", ".join(map(str, without))
        checks.append(Check(f"patterns of layers {which}", "not proved", why="they have none: they do not attend"))
    if unseen:
        which = ", ".join(map(str, unseen))
        checks.append(
            Check(f"patterns of layers {which}", "not proved", why="Hugging Face's eager attention returns none there")
        )
    rows = chosen_rows(real)
    for layer, found in _rows_of(pair, run.prompt, rows).items():
        whole = run.kept(layer, "attn.hook_pattern")
        if whole is not None:
            expected = whole.float().gather(2, rows[:, None, :, None].expand(-1, whole.shape[1], -1, whole.shape[3]))
            rows_tally.add(apart(found.transpose(1, 2), expected.transpose(1, 2)), f"layer {layer}{name}")
    checks.append(rows_tally.check("no layer has patterns"))
    return checks


def _patterns_apart(found: Tensor, expected: Tensor, real: Tensor) -> float:
    """The largest difference of a probability, at queries that are not padding."""
    if found.shape != expected.shape:
        return float("inf")
    difference = (found.float() - expected.float()).abs().transpose(1, 2)[real]
    return float(difference.nan_to_num(nan=torch.inf).max()) if difference.numel() else 0.0


def chosen_rows(real: Tensor) -> Tensor:
    """For each example a few positions that are no padding: the first, one in the middle, the last.

    Rows of patterns are compared there, and logits: the stream that they are made of is compared at all positions.
    """
    length = real.shape[1]
    first = real.int().argmax(dim=1)
    return torch.stack([first, (first + length) // 2, torch.full_like(first, length - 1)], dim=1)


def _rows_of(pair: Pair, prompt: Prompt, rows: Tensor) -> dict[int, Tensor]:
    """The rows of patterns that `query_positions` gives."""
    found: dict[int, Tensor] = {}

    def keep(value: Tensor, hook: Any) -> None:
        found[hook.layer()] = value.detach().clone()

    names = [n for n in pair.hook_names if n.endswith("attn.hook_pattern")]
    with engines.attention_rows(pair.engine, pair.model, rows):
        pair.wrapped(prompt, [(name, keep) for name in names], at=rows[:, :0])
    return found


def _sums(pair: Pair, run: Run, tolerance: float, name: str) -> Check:
    """What `decompose_resid` adds up: the embedding and what every part wrote, against the stream."""
    tally = Tally(f"decompose_resid sums{name}", tolerance)
    if lost := [name for name in _embeddings(pair) if name not in run.cache]:
        return Check(tally.name, "failed", why=f"{lost[0]} did not fire")
    real = run.prompt.real
    total = torch.stack([run.cache[name].float() for name in _embeddings(pair)]).sum(0)
    scales = getattr(pair.model.cfg, "stream_scales", None) or (1.0,) * len(pair.layers)
    for layer, scale in enumerate(scales):
        terms = ("hook_attn_out", "hook_mlp_out", *BESIDE_THE_BLOCKS)
        for kind in terms:
            if kind == BESIDE_THE_BLOCKS[-1]:  # which is added behind the number
                total = total * scale
            written = run.kept(layer, kind)
            total = total if written is None else total + written.float()
            behind = "hook_resid_mid" if kind == terms[0] else "hook_resid_post" if kind == terms[-1] else ""
            reached = run.kept(layer, behind)
            if reached is not None and reached.shape == total.shape:
                tally.add(apart(total[real], reached.float()[real]), f"layer {layer}, {behind}{name}")
    return tally.check()


def _embeddings(pair: Pair) -> list[str]:
    """The hooks of what enters the stream before the first layer: of words, and of positions where they are added."""
    return ["hook_embed", *(["hook_pos_embed"] if hasattr(pair.model, "pos_embed") else [])]


def alike_unpadded(padded: Run, tolerance: float) -> list[Check]:
    """Whether a row padded at the left is the first row of its batch, which is not, as far as both go."""
    padding = int((~padded.prompt.real[-1]).sum())
    length = padded.prompt.tokens.shape[1] - padding
    last = len(padded.pair.layers) - 1
    found, expected = padded.kept(last, "hook_resid_post"), padded.leaving[last]
    tally = Tally("left padding equals unpadded", tolerance, partial(padded.explains, "streams"))
    if found is None:
        return [Check(tally.name, "failed", where=f"layer {last}", why="hook_resid_post did not fire")]
    ours, theirs = (apart(stream[-1, padding:], stream[0, :length]) for stream in (found, expected))
    tally.add(ours, "the padded row")
    if not tally.allows(theirs):
        why = f"Hugging Face's own stream differs by {theirs:.1e} there"
        return [Check(tally.name, "not proved", ours, tolerance, why=why)]
    return [tally.check()]


def layers_of_kinds(pair: Pair, run: Run, at_most: int = 4) -> Sequence[int]:
    """A layer of each kind, the middle one of its kind; kinds differ in their parts, their attention and its window."""
    kinds: dict[Any, list[int]] = {}
    for layer, module in enumerate(pair.layers):
        attention = pair.attention_of(layer)
        window = None if attention is None else getattr(attention, "sliding_window", None)
        parts = tuple(type(part).__name__ for part in module.children())
        kinds.setdefault((type(module).__name__, parts, window, layer in run.patterns), []).append(layer)
    return sorted(layers[len(layers) // 2] for layers in kinds.values())[:at_most]

"""The parts of a decoder's layers, found by running it: which part writes what to the residual stream, and reads where.

Not a patch, but what `usual_parts` makes a bridge's components of, and `block_terms` its hooks. Names differ between
families (`post_attention_layernorm` is the norm before the MLP in Llama, behind attention in Gemma and Exaone), numbers
do not: what a part returns is compared with what the stream gained.

Steps.

1. The decoder runs once on the embeddings of a few words, and every part of every layer is recorded.
2. The stream between attention and MLP ("mid") is the first value given to a part that is the layer's input plus what
   an earlier part returned, times a number (1, or a multiplier of the configuration).
3. The MLP's share is that part's output that the stream gained behind it. Without a stream between (attention and MLP
   side by side), the layer's output is the sum of two parts. A layer may have one part alone.
4. Behind the MLP a third part may write (per-layer inputs in Gemma 4), and the layer may multiply all by a number that
   it holds (its `layer_scalar`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from lensplug.patches.errors import LensplugError

WORDS = 8
NAMES_OF_STREAMS = ("hidden_states", "x", "inputs_embeds", "input")


PATTERNS_ALONE = (
    "For its patterns alone: lensplug.cache_from_attentions(outputs.attentions) of a run with eager attention and"
    " output_attentions=True."
)
"""What is left to do with a model whose layers are not read."""


@dataclass(frozen=True)
class Term:
    """What one part writes to the stream: its output, times a number."""

    part: str
    scale: float = 1.0


@dataclass(frozen=True)
class LayerParts:
    """The parts of one layer, by the names that it has for them; None where it has no such part."""

    attention: str | None = None
    """What mixes positions: attention, or something else ("attends" says)."""
    mlp: str | None = None
    norms: dict[str, str] = field(default_factory=dict)
    """TransformerLens's name ("ln1", "ln2", "ln1_post", "ln2_post") -> the layer's."""
    attention_term: Term | None = None
    mlp_term: Term | None = None
    reads_mid: tuple[str, ...] = ()
    """The parts that are given the stream between attention and MLP."""
    attends: bool = True
    third_term: Term | None = None
    """What is written besides, behind the MLP."""
    scale: float = 1.0
    """By which number the layer multiplies its stream at its end."""


@dataclass(eq=False)
class _Call:
    part: str
    module: nn.Module
    given: Tensor | None
    made: Tensor | None


@dataclass(frozen=True)
class DecoderParts:
    """The layers' parts, and the norm behind them."""

    layers: tuple[LayerParts, ...]
    final_norm: str


def decoder_parts(
    decoder: Any, multipliers: Sequence[float] = (), arguments: Mapping[str, Any] | None = None
) -> DecoderParts:
    """Find the parts of a decoder.

    Args:
        decoder: A decoder with `embed_tokens` and `layers`, which takes `inputs_embeds`.
        multipliers: Numbers by which its layers may multiply what a part returns.
        arguments: What it is called with; None: the embeddings of a few words.

    Raises:
        LensplugError: If it does not run on embeddings alone, or a layer has no parts whose outputs are what it writes.
    """
    calls, streams = _recorded(decoder, arguments)
    last = len(decoder.layers) - 1
    layers = []
    for layer in range(last + 1):
        before, after = streams.get(layer, (None, None))
        if before is None:
            raise LensplugError(
                f"layer {layer} ({type(decoder.layers[layer]).__name__}) does not run on words alone: what the model is"
                " shown enters there by cross-attention, and is no position among the words."
            )
        if after is None or before.shape != after.shape:
            raise LensplugError(f"layer {layer} of {type(decoder).__name__} does not go from a stream to a stream.")
        layers.append(_parts_of(layer, decoder.layers[layer], calls[layer], before, after, multipliers))
    behind = [call for call in calls[-1] if call.given is not None and _same(call.given, streams[last][1])]
    norms = [call.part for call in behind if is_norm(call.module)]
    if not norms:
        raise LensplugError(f"{type(decoder).__name__} has no norm behind its layers.")
    return DecoderParts(tuple(layers), norms[0])


def is_norm(module: nn.Module) -> bool:
    """Whether a part is called a norm."""
    return "norm" in type(module).__name__.lower()


def _recorded(
    decoder: Any, arguments: Mapping[str, Any] | None
) -> tuple[dict[int, list[_Call]], dict[int, tuple[Tensor, Tensor]]]:
    """Every call of a part of each layer (of the decoder itself: -1), and the streams before and behind each layer."""
    calls: dict[int, list[_Call]] = {layer: [] for layer in range(-1, len(decoder.layers))}
    streams: dict[int, tuple[Tensor, Tensor]] = {}

    def note(layer: int, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            made = output[0] if isinstance(output, tuple) else output
            made = made.detach().clone() if isinstance(made, Tensor) else None
            calls[layer].append(_Call(name, module, _first(args, kwargs), made))

        return hook

    def note_layer(layer: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            made = output[0] if isinstance(output, tuple) else output
            given = before.pop(layer, None)
            if given is not None and isinstance(made, Tensor):
                streams[layer] = (given, made.detach().clone())

        return hook

    before: dict[int, Tensor] = {}

    def note_input(layer: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if (given := _first(args, kwargs)) is not None:
                before[layer] = given

        return hook

    with ExitStack() as stack, torch.no_grad():
        for name, part in decoder.named_children():
            stack.callback(part.register_forward_hook(note(-1, name), with_kwargs=True).remove)
        for index, layer in enumerate(decoder.layers):
            stack.callback(layer.register_forward_pre_hook(note_input(index), with_kwargs=True).remove)
            stack.callback(layer.register_forward_hook(note_layer(index), with_kwargs=True).remove)
            for name, part in layer.named_children():
                stack.callback(part.register_forward_hook(note(index, name), with_kwargs=True).remove)
        embedding = decoder.embed_tokens
        rows = embedding.weight.shape[0]
        words = torch.linspace(rows // 5, rows - 1 - rows // 5, WORDS).long().to(embedding.weight.device)
        try:
            decoder(**{**(arguments or {"inputs_embeds": embedding(words[None])}), "use_cache": False})
        except Exception as error:
            why = str(error).splitlines()[0][:200] if str(error) else ""
            raise LensplugError(
                f"{type(decoder).__name__} does not run on what its model gives it ({type(error).__name__}: {why})."
            ) from error
    return calls, streams


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The stream that a part is given, as it was."""
    values = [*args[:1], *(kwargs[name] for name in NAMES_OF_STREAMS if name in kwargs)]
    value = next((value for value in values if isinstance(value, Tensor) and value.is_floating_point()), None)
    return None if value is None else value.detach().clone()


def _parts_of(
    number: int,
    layer: nn.Module,
    calls: Sequence[_Call],
    before: Tensor,
    after: Tensor,
    multipliers: Sequence[float],
) -> LayerParts:
    writers = [call for call in calls if call.made is not None and call.made.numel() == before.numel()]
    for index, call in enumerate(calls):
        mid = call.given
        if mid is None or mid.numel() != before.numel() or _same(mid, before):
            continue
        earlier = [writer for writer in writers if writer in calls[:index]]
        attention = _term(earlier, before, mid, multipliers)
        if attention is not None:
            later = [writer for writer in writers if writer in calls[index:]]
            readers = tuple(dict.fromkeys(other.part for other in calls[index:] if _same(other.given, mid)))
            mlp, third, scale = _behind_mid(later, mid, after, multipliers, _own_numbers(layer))
            return replace(_named(calls, attention, mlp, readers), third_term=third, scale=scale)
    for first, second in _pairs(writers):
        for scale in (1.0, *multipliers):
            if _adds_up(before, [(first, scale), (second, scale)], after):
                return _named(calls, Term(first.part, scale), Term(second.part, scale), ())
    alone = _term(writers, before, after, multipliers)
    if alone is None:
        raise LensplugError(
            f"layer {number} ({type(layer).__name__}) does not add what its parts return to the residual stream"
            f" ({', '.join(dict.fromkeys(call.part for call in calls))}): what it writes is not on any hook."
            f" {PATTERNS_ALONE}"
        )
    return _named(calls, alone, None, ())


def _own_numbers(layer: nn.Module) -> tuple[float, ...]:
    """Single numbers that a layer holds itself."""
    held = [*layer._parameters.values(), *layer._buffers.values()]
    return tuple(float(value) for value in held if value is not None and value.numel() == 1 and float(value))


def _behind_mid(
    later: Sequence[_Call], mid: Tensor, after: Tensor, multipliers: Sequence[float], scales: Sequence[float]
) -> tuple[Term | None, Term | None, float]:
    """The MLP's share, what a third part writes, and by which number all is multiplied then."""
    for scale in (1.0, *scales):
        behind = (after.double() / scale).to(after.dtype) if scale != 1 else after
        if (mlp := _term(later, mid, behind, multipliers)) is not None:
            return mlp, None, scale
        for first, second in _pairs(later):
            if _adds_up(mid, [(first, 1.0), (second, 1.0)], behind):
                return Term(first.part), Term(second.part), scale
    return _last_writer(later), None, 1.0


def _term(writers: Sequence[_Call], before: Tensor, after: Tensor, multipliers: Sequence[float]) -> Term | None:
    """The first part whose output, times a number, is what the stream gained."""
    for writer in writers:
        for scale in (1.0, *multipliers):
            if _adds_up(before, [(writer, scale)], after):
                return Term(writer.part, scale)
    return None


def _last_writer(later: Sequence[_Call]) -> Term | None:
    """The MLP of a layer that adds more behind it: the part named so, or the norm behind it."""
    mlps = [call for call in later if not is_norm(call.module) and call.part in ("mlp", "feed_forward", "moe")]
    if not mlps:
        return None
    behind = [call for call in later if is_norm(call.module) and _same(call.given, mlps[0].made)]
    return Term((behind or mlps)[0].part)


def _pairs(writers: Sequence[_Call]) -> Iterator[tuple[_Call, _Call]]:
    for index, first in enumerate(writers):
        for second in writers[index + 1 :]:
            yield first, second


def _adds_up(before: Tensor, parts: Sequence[tuple[_Call, float]], after: Tensor) -> bool:
    """Whether a stream and what parts made are the stream behind them, as far as its dtype goes."""
    total, size = before.double(), before.double().abs()
    for call, scale in parts:
        assert call.made is not None
        made = scale * call.made.double().view(before.shape)
        if not bool(made.abs().max() > 0):
            return False
        total, size = total + made, size + made.abs()
    # What is left must be less than any of the terms: rounding of a large one hides a small one.
    smallest = min(_size(before), *(abs(scale) * _size(call.made) for call, scale in parts))
    if not float((total - after.double().view(before.shape)).norm()) < smallest / 2:
        return False
    resolution = 4 * torch.finfo(before.dtype).eps
    return bool(((total - after.double().view(before.shape)).abs() <= resolution * size + 1e-30).all())


def _size(value: Tensor | None) -> float:
    return 0.0 if value is None else float(value.double().norm())


def _same(first: Tensor | None, second: Tensor | None) -> bool:
    if first is None or second is None or first.numel() != second.numel():
        return False
    return torch.equal(first.view(-1), second.view(-1))


def _named(calls: Sequence[_Call], attention: Term | None, mlp: Term | None, reads_mid: tuple[str, ...]) -> LayerParts:
    """TransformerLens's names for the parts."""
    norms: dict[str, str] = {}
    found: list[str | None] = []
    for term, before, behind in ((attention, "ln1", "ln1_post"), (mlp, "ln2", "ln2_post")):
        if term is None:
            found.append(None)
            continue
        call = next(call for call in calls if call.part == term.part)
        if is_norm(call.module):
            norms[behind] = call.part
            call = next((other for other in calls if _same(other.made, call.given)), call)
        found.append(call.part)
        entry = next((other for other in calls if is_norm(other.module) and _same(other.made, call.given)), None)
        if entry is not None and entry.part not in norms.values():
            norms[before] = entry.part
    modules = {call.part: call.module for call in calls}
    mixer = modules.get(found[0]) if found[0] else None
    attends = mixer is not None and _attends(mixer)
    return LayerParts(found[0], found[1], norms, attention, mlp, reads_mid, attends)


def _attends(part: nn.Module) -> bool:
    """Whether a part is attention; linear attention and its relatives have no patterns."""
    name = type(part).__name__
    return "Attention" in name and "LinearAttention" not in name

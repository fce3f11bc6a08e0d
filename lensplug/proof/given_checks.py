"""What the layers are given beside the stream: masks and rotations, for more positions than a prompt of a proof has.

A window of 4,096 positions that is off by one changes nothing in a prompt of thirty. The decoders make masks and
rotations before their layers run; here both do, for a prompt longer than the window, with layers that do nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from lensplug.hf.attention_choice import sdpa
from lensplug.patches.bridge.padding import seen_by
from lensplug.proof.measures import Tally
from lensplug.proof.pair import Pair
from lensplug.proof.report import Check

AT_LEAST, AT_MOST = 256, 8200
"""Positions that masks and rotations are compared at."""
NAME = "masks and rotations"


def checks(pair: Pair, tolerance: float) -> list[Check]:
    """Masks and rotations that each layer is given."""
    if pair.engine != "bridge":
        return [Check(NAME, "not proved", why="a HookedTransformer makes them inside its layers, as far as a run goes")]
    windows = _windows(pair)
    limit = int(getattr(pair.core.text_config, "max_position_embeddings", None) or AT_MOST)
    length = min(max([AT_LEAST, *(window + 3 for window in windows)]), limit, AT_MOST)
    token = torch.ones(1, length, dtype=torch.long, device=pair.core.device)
    decoder = pair.model.original_model.get_decoder()
    with torch.no_grad(), sdpa(pair.core):
        others = _others(pair, token)
        beside = _beside_stream(pair.core.decoder, token[:, :1], _others(pair, token[:, :1]))
        expected = _given(pair.core.decoder, token, others, beside)
        found = _given(decoder, token, others, beside)
    tally = Tally(NAME, tolerance)
    for layer, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        for name in sorted({*ours, *theirs} - {"hidden_states"}):
            tally.add(_differ(name, ours.get(name), theirs.get(name), length), f"layer {layer}, {name}")
    result = tally.check()
    beyond = [window for window in windows if window + 3 > length and window < limit]
    if not beyond:
        return [result]
    why = f"they were compared at {length} positions"
    return [result, Check(f"a window of {beyond[0]} positions", "not proved", why=why)]


def _windows(pair: Pair) -> list[int]:
    """Windows and chunks of the configuration."""
    names = ("sliding_window", "attention_chunk_size")
    values = [getattr(pair.core.text_config, name, None) for name in names]
    return [value for value in values if isinstance(value, int) and value > 0]


def _others(pair: Pair, tokens: Tensor) -> dict[str, Tensor]:
    """What a decoder is given besides embeddings, where it makes none itself: positions of parts, per-layer inputs."""
    others: dict[str, Tensor] = {}
    positions = None if pair.core.asked is None else pair.core.asked.arguments.get("position_ids")
    if isinstance(positions, Tensor) and positions.ndim >= 3:
        length = tokens.shape[1]
        others["position_ids"] = torch.arange(length, device=pair.core.device).expand(len(positions), 1, length)
    if "per_layer_inputs" in pair.core.beside:
        others["per_layer_inputs"] = pair.core.decoder.get_per_layer_inputs(tokens, None)
    return others


def _beside_stream(decoder: Any, token: Tensor, others: dict[str, Tensor]) -> int | None:
    """How many values layers return beside their stream, in a tuple; None where they return it alone."""
    outputs: list[Any] = []
    with decoder.layers[0].register_forward_hook(lambda *given: outputs.append(given[-1])):
        decoder(inputs_embeds=decoder.embed_tokens(token).detach(), use_cache=False, **others)
    return len(outputs[0]) - 1 if isinstance(outputs[0], tuple) else None


def _given(decoder: Any, tokens: Tensor, others: dict[str, Tensor], beside: int | None) -> list[dict[str, Any]]:
    """The keyword arguments of every layer, with layers that hand their stream on as it is, and nothing `beside`."""
    given: list[dict[str, Any]] = []

    def skipped(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        kwargs |= {str(number): value for number, value in enumerate(args)}
        given.append({name: value for name, value in kwargs.items() if _is_data(value)})
        return hidden_states if beside is None else (hidden_states, *[None] * beside)

    with ExitStack() as stack:
        for layer in decoder.layers:
            stack.enter_context(_replaced(layer, skipped))
        decoder(inputs_embeds=decoder.embed_tokens(tokens).detach(), use_cache=False, **others)
    return given


def _is_data(value: Any) -> bool:
    return isinstance(value, Tensor) or (
        isinstance(value, tuple) and bool(value) and all(isinstance(part, Tensor) for part in value)
    )


@contextmanager
def _replaced(layer: Any, forward: Any) -> Iterator[None]:
    """A layer with another forward; a bridge's block too, which would hand the assignment on."""
    before = layer.__dict__.get("forward")
    object.__setattr__(layer, "forward", forward)
    try:
        yield
    finally:
        if before is None:
            layer.__dict__.pop("forward", None)
        else:
            object.__setattr__(layer, "forward", before)


def _differ(name: str, ours: Any, theirs: Any, length: int) -> float:
    if isinstance(theirs, tuple) and isinstance(ours, tuple) and len(ours) == len(theirs):
        return max(_differ(name, mine, its, length) for mine, its in zip(ours, theirs, strict=True))
    if name == "attention_mask":
        device = next(value.device for value in (ours, theirs, torch.empty(0)) if value is not None)
        visible = [seen_by(value, length, length, device) for value in (ours, theirs)]
        return float((visible[0] != visible[1]).any())
    if ours is None or theirs is None:
        return 0.0 if ours is theirs else float("inf")
    if ours.shape != theirs.shape:
        return float("inf")
    return float((ours.double() - theirs.double()).abs().nan_to_num(nan=torch.inf).max())

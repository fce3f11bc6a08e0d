"""Each layer by itself, on streams that are the same for both models: a fault is found where it is.

Every layer of both models is given the same stream in place of what the layer before it made. Rounding does not add up,
and one run shows all layers. The second example is a thousandth of the first: there a norm's epsilon counts, which at
the usual size of a stream is lost in rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lensplug.proof.measures import Tally, apart
from lensplug.proof.pair import Hook, Pair, noise, on_input, on_output
from lensplug.proof.prompts import Prompt
from lensplug.proof.report import Check

SIZES = (1.0, 1e-3)
"""Root mean squares of the streams that layers are given, one for each example."""


def checks(pair: Pair, prompt: Prompt, tolerance: float, entering: Mapping[int, Tensor]) -> list[Check]:
    """Every layer, and the norm and head behind the last.

    Args:
        pair: The models.
        prompt: Text, an example for each of `SIZES` and one more.
        tolerance: What rounding explains.
        entering: The stream before each layer in a run of the full model: its first example's is given too.
    """
    layers = len(pair.layers)
    length = prompt.tokens.shape[1]
    streams = {layer: _streams(entering[min(layer, layers - 1)][:1, :length], layer) for layer in range(layers + 1)}
    ends = torch.tensor([[0, length - 1]] * len(prompt.tokens))  # the head makes each position's logits alone
    expected: dict[int, Tensor] = {}
    found: dict[int, Tensor] = {}
    handles = []
    for layer, module in enumerate(pair.layers):
        handles.append(on_input(module, partial(_replaced, streams[layer])))

        def keep(value: Tensor, layer: int = layer) -> Tensor | None:
            expected[layer] = value
            return streams[layers].to(value) if layer == layers - 1 else None

        handles.append(on_output(module, keep))

    def enter(value: Tensor, hook: Any) -> Tensor:
        return streams[hook.layer()].to(value)

    def leave(value: Tensor, hook: Any) -> Tensor | None:
        found[hook.layer()] = value.detach().clone()
        return streams[layers].to(value) if hook.layer() == layers - 1 else None

    expected_logits = pair.reference(prompt, handles, at=ends)
    hooks: list[tuple[str, Hook]] = [(f"blocks.{layer}.hook_resid_pre", enter) for layer in range(layers)]
    hooks += [(f"blocks.{layer}.hook_resid_post", leave) for layer in range(layers)]
    logits = pair.wrapped(prompt, hooks, at=ends)
    alone = Tally("each layer alone", tolerance)
    for layer in range(layers):
        if layer not in found or layer not in expected:
            alone.add(float("inf"), f"layer {layer}, which did not run")
            continue
        entered = streams[layer].to(expected[layer])
        for example in range(len(prompt.tokens)):
            written, hf = (value[example] - entered[example] for value in (found[layer], expected[layer]))
            # A layer may write much less than it is given: then rounding of the stream is what is left.
            size = (hf.float().square() + (0.01 * entered[example].float()).square()).sqrt()
            alone.add(apart(written, hf, size), f"layer {layer}")
    head = Tally("final norm and head alone", tolerance)
    for example in range(len(prompt.tokens)):
        head.add(apart(logits[example], expected_logits[example]), "the final norm or head")
    return [alone.check(), head.check()]


def _replaced(stream: Tensor, value: Tensor) -> Tensor:
    return stream.to(value)


def _streams(entering: Tensor, layer: int) -> Tensor:
    """Normal noise in each of the sizes, and, last, what the full model's own layer was given."""
    one = noise(entering.float(), seed=layer)
    return torch.cat([*(one * size for size in SIZES), entering.float()])

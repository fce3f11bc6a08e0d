"""What a resampler or a Q-Former attends to: its cross-attention, as the encoder runs, and the states that it reads.

Attention of fewer queries than keys, outside the decoder, is a resampler's. Where a module returns its probabilities
(transformers' do, when they attend eagerly), hooks see them; among its arguments are the states that it attends to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lensplug.hf.attention_choice import attending_by
from lensplug.hf.encoder_attention import encoder_configs
from lensplug.hf.language_core import LanguageCore


@dataclass(frozen=True, eq=False)
class CrossAttention:
    """Of one module, of all views that went through the encoder at once."""

    module: nn.Module
    probabilities: Float[Tensor, "view head query key"]
    n_states: int
    """The first keys are the states of the encoder; those behind them, if any, the queries themselves."""


def cross_attentions(hf_model: Any, core: LanguageCore, run: Callable[[], object]) -> list[CrossAttention]:
    """Every cross-attention outside the decoder in one run of the encoder, in the order in which it happens."""
    seen: list[CrossAttention] = []

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object) -> None:
        probabilities = output[1] if isinstance(output, tuple) and len(output) > 1 else None
        if not isinstance(probabilities, Tensor) or probabilities.ndim != 4:
            return
        n_queries, n_keys = probabilities.shape[-2:]
        states = states_among((*args, *kwargs.values()), n_keys, n_queries)
        if n_queries < n_keys and states is not None and all(probabilities is not one.probabilities for one in seen):
            seen.append(CrossAttention(module, probabilities, states.shape[1]))

    outside = set(hf_model.modules()) - set(core.decoder.modules())
    with ExitStack() as stack:
        for module in outside:
            stack.enter_context(module.register_forward_hook(note, with_kwargs=True))
        stack.enter_context(attending_by("eager", core, encoder_configs(hf_model, core)))
        run()
    return seen


@contextmanager
def keeping_states(module: nn.Module, n_keys: int, n_queries: int) -> Iterator[list[Tensor]]:
    """A scope in which the states that a module attends to are put into a list, one tensor a run."""
    states: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        found = states_among((*args, *kwargs.values()), n_keys, n_queries)
        if found is not None:
            states.append(found)

    with module.register_forward_pre_hook(keep, with_kwargs=True):
        yield states


def states_among(
    arguments: tuple[Any, ...], n_keys: int, n_queries: int
) -> Float[Tensor, "view state d_encoder"] | None:
    """Of a module's arguments, the states that it attends to: as many as keys, or the queries fewer."""
    for argument in arguments:
        if isinstance(argument, Tensor) and argument.ndim == 3 and torch.is_floating_point(argument):
            if argument.shape[1] in (n_keys, n_keys - n_queries) and argument.shape[1] != n_queries:
                return argument
    return None

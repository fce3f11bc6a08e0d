"""Deactivating neurons while a model runs: hooks on `mlp.hook_post` that set what some neurons give to a value.

`mlp.hook_post` is what the output matrix of an MLP receives: in a gated MLP act(gate) x linear, so that a neuron whose
activation act(gate) is 0, which is how MMNeuron deactivates, gives 0 there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lensplug.analysis.protocols import Lens
from lensplug.errors import LensplugError

Hook = tuple[str, Callable[..., Any]]


def mlp_shape(model: Any) -> tuple[int, int]:
    """How many layers a model has, and neurons in each.

    Raises:
        LensplugError: If a layer has no single set of neurons (a mixture of experts).
    """
    without = next((layer for layer in range(model.cfg.n_layers) if hook_name(layer) not in model.hook_dict), None)
    if without is not None or not model.cfg.d_mlp:
        raise LensplugError(
            f"layer {without or 0} of the model has no {hook_name(without or 0)}: in MLPs of another kind, such as"
            " mixtures of experts, neurons cannot be deactivated."
        )
    return int(model.cfg.n_layers), int(model.cfg.d_mlp)


def hook_name(layer: int) -> str:
    """The hook that neurons are deactivated at."""
    return f"blocks.{layer}.mlp.hook_post"


@dataclass(frozen=True)
class Deactivated:
    """Some neurons that give a value of their own."""

    neurons: Bool[Tensor, "layer neuron"]
    values: Float[Tensor, "layer neuron"]
    positions: Bool[Tensor, "batch pos"] | None
    """Where; None: at every position."""

    def hooks(self) -> list[Hook]:
        """One for each layer that has such neurons."""
        return [
            (hook_name(layer), partial(self._edit, layer=layer))
            for layer in self.neurons.any(dim=1).nonzero()[:, 0].tolist()
        ]

    def _edit(
        self, post: Float[Tensor, "batch pos neuron"], hook: Any, *, layer: int
    ) -> Float[Tensor, "batch pos neuron"]:
        refuse_other_width(post, self.neurons, layer)
        index = self.neurons[layer].nonzero()[:, 0].to(post.device)
        new = self.values[layer].to(post)[index].expand(*post.shape[:2], -1)
        if self.positions is not None:
            new = torch.where(self.positions.to(post.device)[..., None], new, post[..., index])
        return post.index_copy(-1, index, new)  # a copy: hooks of the user may keep the other


def refuse_other_width(post: Float[Tensor, "batch pos neuron"], neurons: Tensor, layer: int) -> None:
    """Refuse a layer that has another number of neurons than the configuration says."""
    if post.shape[-1] != neurons.shape[1]:
        raise LensplugError(
            f"layer {layer} has {post.shape[-1]} neurons, the model's configuration says {neurons.shape[1]}: layers of"
            " several sizes are not known."
        )


@contextmanager
def with_hooks(lens: Lens, hooks: list[Hook]) -> Iterator[None]:
    """A scope with hooks on the lens's model, which lose them again; without hooks nothing is touched."""
    if not hooks:
        yield
        return
    with lens.model.hooks(fwd_hooks=hooks):
        yield

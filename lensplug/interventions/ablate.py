"""Ablation: heads, neurons, or what a layer's attention or MLP writes, replaced by something that says nothing.

Method: the activation (`hook_z` of heads, `mlp.hook_post` of neurons, `hook_attn_out`, `hook_mlp_out`) becomes, at the
chosen positions,

- "zero": 0;
- "mean": its mean over a data set (`mean_activations`), the same at every position;
- "resample": what it is in another run (`values=`, a cache) at the same positions.

Papers: Wang et al. 2023, "Interpretability in the Wild", arXiv 2211.00593 (mean); Chan et al. 2022, "Causal Scrubbing"
(resample).

When to use it: to ask whether a component matters. Of models whose means are far from 0, "mean" and "resample" stay
nearer to what later layers know.

When not to use it: to say that a component does the work alone: others can take over (self-repair), and those that come
later are changed too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor

from lensplug.cache.activation_cache import ActivationCache
from lensplug.errors import LensplugError
from lensplug.interventions.edit import ActivationHook, Changes, refuse_missing_hook
from lensplug.interventions.equality import EqualByValue
from lensplug.interventions.layers_and_heads import Heads, Layers, heads_of, layers_of, stated
from lensplug.interventions.places import Place, RunPositions, in_words
from lensplug.interventions.tensors import tensor_in_words
from lensplug.interventions.values import activation_of, fitting, refuse_other_positions, values_in_words
from lensplug.validation.arguments import described

LayerOutput = Literal["attn_out", "mlp_out"]
Neurons = Mapping[int, list[int]] | list[tuple[int, int]]
"""By layer, or pairs (layer, neuron)."""
AblationValue = Literal["zero", "mean", "resample"]
HOOKS = {"attn_out": "hook_attn_out", "mlp_out": "hook_mlp_out", "heads": "attn.hook_z", "neurons": "mlp.hook_post"}
"""What is ablated -> the hook in a block where it is."""


@dataclass(frozen=True, eq=False)
class Ablate(EqualByValue):
    """A component gives nothing, its mean, or what it gives in another run.

    with lens.intervene(Ablate(heads=[(3, 1)])):
        lens.generate(inputs).text
    means = analysis.mean_activations(collected)   # of analysis.activations(cache, inputs, hook="mlp_out", pool=...)
    with lens.intervene(Ablate("mlp_out", layers=4, method="mean", values=means)):
        lens.generate(inputs).text
    """

    output: LayerOutput | None = None
    """What a whole layer's attention or MLP writes."""
    heads: Heads = None
    """In its place: pairs (layer, head), or heads of each of `layers`."""
    neurons: Neurons | None = None
    """In its place: MLP neurons."""
    layers: Layers = None
    positions: Place = "all"
    method: AblationValue = "zero"
    values: Mapping[str, Tensor] | ActivationCache | None = None
    """For "mean", from `mean_activations`; for "resample", a cache of a run on as many positions."""

    def __post_init__(self) -> None:
        """Raise if it does not say one thing.

        Raises:
            LensplugError: Then.
        """
        given = [name for name in ("output", "heads", "neurons") if getattr(self, name) is not None]
        if len(given) != 1:
            raise LensplugError(
                f"Ablate is given {' and '.join(given) or 'nothing'}, expected one of 'attn_out' or 'mlp_out', heads=,"
                " neurons=."
            )
        if self.output not in (None, "attn_out", "mlp_out"):
            raise LensplugError(f"Ablate({self.output!r}): expected 'attn_out' or 'mlp_out', heads= or neurons=.")
        if self.method not in ("zero", "mean", "resample"):
            raise LensplugError(f"method is {self.method!r}, expected one of 'zero', 'mean', 'resample'.")
        if (self.method == "zero") != (self.values is None):
            needed = "needs no values" if self.method == "zero" else "needs values="
            raise LensplugError(
                f"method={self.method!r} {needed}: analysis.mean_activations(...) for 'mean', a cache for 'resample'."
            )
        if self.neurons is not None and not self._by_layer():
            raise LensplugError("neurons is empty: the edit would change nothing.")
        if self.neurons is not None and self.layers is not None:
            raise LensplugError("neurons say their layers: leave layers out.")

    def __str__(self) -> str:
        """In words, for provenance."""
        what = [repr(self.output)] if self.output else []
        what += [f"neurons={self._neurons_in_words()}"] if self.neurons is not None else []
        how = [f"positions={in_words(self.positions)}", f"method={self.method!r}"]
        values = (
            [] if self.values is None else [f"values={values_in_words(self.values, HOOKS[self._kind], self.layers)}"]
        )
        return f"Ablate({', '.join([*what, *stated(self.layers, self.heads), *how, *values])})"

    def changes(self, model: Any, positions: RunPositions) -> Changes:
        """The hooks of a run.

        Raises:
            LensplugError: If a component is not there, or values do not fit.
        """
        placed = positions.place(self.positions, "positions")
        hooks = []
        for layer, index in self._components(model).items():
            refuse_missing_hook(model, name := f"blocks.{layer}.{HOOKS[self._kind]}")
            change = partial(self._ablated, index, self._value(name, positions), name)
            hooks.append(ActivationHook(name, change, placed, positions.generating))
        return Changes(hooks)

    @property
    def _kind(self) -> str:
        return self.output or ("heads" if self.heads is not None else "neurons")

    def _components(self, model: Any) -> dict[int, list[int] | None]:
        """The entries of the last axis but one (heads) or the last (neurons), by layer; None: all."""
        cfg = model.cfg
        if self.output is not None:
            return dict.fromkeys(layers_of(self.layers, cfg.n_layers))
        if self.heads is not None:
            return heads_of(self.layers, self.heads, cfg.n_layers, cfg.n_heads)
        by_layer = self._by_layer()
        for layer, neurons in by_layer.items():
            layers_of(layer, cfg.n_layers)
            if unknown := [neuron for neuron in neurons if not 0 <= neuron < cfg.d_mlp]:
                raise LensplugError(f"neurons has {unknown[0]} of layer {layer}, which has 0 to {cfg.d_mlp - 1}.")
        return {layer % cfg.n_layers: neurons for layer, neurons in by_layer.items()}

    def _by_layer(self) -> dict[int, list[int]]:
        by_layer: dict[int, list[int]] = {}
        if isinstance(self.neurons, Mapping):
            for layer, neurons in self.neurons.items():
                if not isinstance(neurons, list | tuple | range) or not neurons:
                    raise LensplugError(f"neurons of layer {layer} are {described(neurons)}, expected a list of them.")
                by_layer[int(layer)] = [int(neuron) for neuron in neurons]
            return by_layer
        for pair in cast("list[tuple[int, int]]", self.neurons):
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                raise LensplugError(f"neurons has {described(pair)}, expected pairs (layer, neuron).")
            by_layer.setdefault(int(pair[0]), []).append(int(pair[1]))
        return by_layer

    def _value(self, name: str, positions: RunPositions) -> Tensor | None:
        """What is put in: for every position alike (mean), or of each (resample); None: zeros."""
        if self.values is None:
            return None
        value = activation_of(self.values, name)
        if self.method == "resample":
            refuse_other_positions(value, name, positions)
        elif value.ndim != (2 if self.heads is not None else 1):
            raise LensplugError(
                f"values[{name!r}] is {list(value.shape)}, and a mean has no axes of examples and positions:"
                " analysis.mean_activations(...) makes it; a cache is for method='resample'."
            )
        return value

    def _ablated(self, index: list[int] | None, value: Tensor | None, name: str, activation: Tensor) -> Tensor:
        new = torch.zeros_like(activation) if value is None else _fitting(value, activation, name)
        if index is None:
            return new
        axis = 2 if self.heads is not None else activation.ndim - 1
        at = torch.tensor(index, device=activation.device)
        return activation.index_copy(axis, at, new.index_select(axis, at))

    def _neurons_in_words(self) -> str:
        by_layer = self._by_layer()
        pairs = [(layer, neuron) for layer, neurons in by_layer.items() for neuron in neurons]
        return repr(by_layer) if len(pairs) <= 20 else tensor_in_words(torch.tensor(pairs))


def _fitting(value: Tensor, activation: Tensor, name: str) -> Tensor:
    """Values in the shape of an activation; behind the prompt, where another run has no positions, its last ones."""
    if value.ndim == activation.ndim and value.shape[1] != activation.shape[1]:
        value = value[:, -activation.shape[1] :]
    return fitting(value, activation, name)

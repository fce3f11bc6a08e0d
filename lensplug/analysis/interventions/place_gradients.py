"""(a_clean - a_corrupt) . dm/da at every place of every layer, from runs with gradients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lensplug.analysis.interventions.measured_target import MeasuredTarget
from lensplug.analysis.interventions.patched_places import Places
from lensplug.analysis.protocols import EditedRuns
from lensplug.errors import LensplugError
from lensplug.validation.finite import refuse_not_finite


@dataclass(frozen=True, eq=False)
class PlaceGradients:
    """Runs of the corrupt prompt, as it is or with one layer on its way to clean, and their way back."""

    runs: EditedRuns
    """With gradients."""
    places: Places
    measured: MeasuredTarget
    names: Mapping[int, str]
    """Layer -> hook."""
    clean: Mapping[str, Tensor]
    """Hook -> the clean activation, at the positions of the corrupt prompt."""

    def of_all_layers(self) -> Float[Tensor, "example layer group head"]:
        """Differences times gradients of the corrupt run, from one run.

        Raises:
            LensplugError: If the target has no gradient or is one number of several examples, or a gradient is not
                finite.
        """
        return self._of_run(self.names, 0.0)

    def of_each_layer(self, share: float) -> Float[Tensor, "example layer group head"]:
        """The same with gradients where a layer's places, all of them, are so much of the way to clean: a run for each.

        Raises:
            LensplugError: As `of_all_layers`.
        """
        return torch.cat([self._of_run({layer: name}, share) for layer, name in self.names.items()], dim=1)

    def _of_run(self, names: Mapping[int, str], share: float) -> Float[Tensor, "example layer group head"]:
        differences: dict[str, Tensor] = {}
        taken: dict[str, Tensor] = {}

        def take(activation: Tensor, hook: Any) -> Tensor:
            clean = self.clean[hook.name].to(activation)
            differences[hook.name] = clean.float() - activation.detach().float()
            if share:
                is_place = (self.places.groups >= 0).to(activation.device)
                shape = [len(is_place), *[1] * (activation.ndim - 1)]
                shape[2 if self.places.pattern else 1] = is_place.shape[1]
                activation = torch.where(is_place.view(shape), torch.lerp(activation, clean, share), activation)
            if not activation.requires_grad:  # nothing before it does
                activation = activation.detach().requires_grad_()
            taken[hook.name] = activation
            return activation

        logits = self.runs.logits(1, [(name, take) for name in names.values()], from_layer=min(names))
        values = self.measured.of(logits[0])
        self._refuse(values)
        gradients = torch.autograd.grad(values.sum(), [taken[name] for name in names.values()], allow_unused=True)
        layers = []
        for name, gradient in zip(names.values(), gradients, strict=True):
            gradient = torch.zeros_like(differences[name]) if gradient is None else gradient
            refuse_not_finite(f"gradients of {name}", gradient, "use bfloat16 or float32 (fp16 ends at 65,504)")
            layers.append(self._by_place(differences[name] * gradient.float()))
        return torch.stack(layers, dim=1).masked_fill(~self.places.is_present[:, None, :, None], torch.nan)

    def _refuse(self, values: Float[Tensor, " example"]) -> None:
        if self.measured.is_shared:
            raise LensplugError(
                f"the target function makes one number of {len(values)} examples: gradients need one for each, of its"
                " logits; or give one example."
            )
        if not values.requires_grad:
            raise LensplugError(
                "what the target function returned has no gradient: compute it from the logits it is given, without"
                " .item(), .detach(), argmax or torch.no_grad()."
            )

    def _by_place(self, products: Tensor) -> Float[Tensor, "example group head"]:
        """Sums over each group of positions: of each head, or of all."""
        summed = products.sum(dim=-1).cpu()
        if self.places.pattern:
            summed = summed.transpose(1, 2)  # [example query head]
        if summed.ndim == 2:  # a stream
            summed = summed[:, :, None]
        if self.places.n_heads == 1:
            summed = summed.sum(dim=2, keepdim=True)
        n_groups = self.places.is_present.shape[1]
        groups = self.places.groups.masked_fill(self.places.groups < 0, n_groups)[:, :, None].expand_as(summed)
        table = summed.new_zeros(len(summed), n_groups + 1, summed.shape[2])
        return table.scatter_add(1, groups, summed)[:, :n_groups]

"""What direct attribution measured: logits by component, which sum to the logit, and by the source of each head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lensplug.analysis.attention.head_readings import CLASSES
from lensplug.analysis.over_examples import OverExamples, grid
from lensplug.analysis.provenance import Provenance
from lensplug.analysis.result import Result
from lensplug.errors import LensplugError
from lensplug.validation.arguments import at_least, check_example, checked

if TYPE_CHECKING:
    import pandas as pd

By = Literal["layer", "head", "neuron", "source", "modality"]
"""What the components are: attention and MLP of each layer, heads, neurons; heads from each position, or modality."""
SUBLAYERS = ("attn_out", "mlp_out")
NOWHERE = -1
"""In tables: of a component that has no layer, no number or no source."""


@dataclass(frozen=True, repr=False)
class DirectAttribution(Result):
    """Logits that each component writes; with `others` they sum to `logit`."""

    axis_labels = {"modality": ("modalities", CLASSES)}
    label_columns = ("example", "component", "source")
    main_number = "attribution"
    example_depth = {"target_texts": 0}

    values: Float[Tensor, "example layer component"]
    """By layer: attention, then MLP. By neuron: each neuron. Else each head, from all sources."""
    others: Float[Tensor, "example other"]
    """Everything else that is added up: the embedding, layers that are not divided, biases."""
    other_names: tuple[str, ...]
    """TransformerLens's names: "embed", "3_mlp_out", "3_b_O", "ln_final.b", "unembed.b_U"."""
    logit: Float[Tensor, " example"]
    """The model's own number: a logit, the difference of two, or a sum over an answer."""
    tolerance: Float[Tensor, " example"]
    """The largest difference between sum and logit that rounding explains."""
    rows: Int[Tensor, "example row"]
    """The positions whose logits are read, from the left; of an answer several."""
    target_texts: tuple[str, ...]
    """The target of each example: "Red", "Red - Blue"."""
    by: By
    provenance: Provenance
    sources: Float[Tensor, "example layer head source"] | None = None
    """By source: what each head brings from each position; 0 where it does not look."""
    masses: Float[Tensor, "example layer head modality"] | None = None
    """What each head brings from each class of positions; NaN where an example has none."""
    modalities: tuple[str, ...] = ()
    """The classes: modalities, and "sink"."""

    @property
    def total(self) -> Float[Tensor, " example"]:
        """The sum of all components: within `tolerance` of `logit`."""
        return (self.values.double().sum(dim=(1, 2)) + self.others.double().sum(dim=1)).float()

    @property
    def mean(self) -> Float[Tensor, "layer component"]:
        """The mean of `values` over examples."""
        return self.values.mean(dim=0)

    @checked
    def top(self, k: int = 10, *, example: int | None = None) -> list[tuple[int, int | str, float]]:
        """The k components with the largest magnitude: (layer, head or neuron, logits); by layer (layer, name, logits).

        Args:
            k: How many.
            example: Of this example; of the mean over all by default.
        """
        at_least(1, k=k)
        if example is not None:
            check_example(example, len(self.values))
        values = self.mean if example is None else self.values[example]
        order = values.flatten().abs().argsort(descending=True, stable=True)[:k]
        places = [(*divmod(index, values.shape[1]), float(values.flatten()[index])) for index in order.tolist()]
        return [(layer, SUBLAYERS[part] if self.by == "layer" else part, value) for layer, part, value in places]

    def by_modality(self) -> dict[str, Float[Tensor, "example layer head"]]:
        """What each head brings from each modality, and from the sink, in logits; NaN where an example has none.

        Raises:
            LensplugError: If it was not measured by source or modality with a modality map.
        """
        if self.masses is None:
            raise LensplugError(
                f"this was measured by {self.by} without a modality map: analysis.direct_attribution(cache, target,"
                " inputs.modality, by='source')."
            )
        return dict(zip(self.modalities, self.masses.unbind(dim=-1), strict=True))

    @checked
    def by_position(
        self, example: int = 0, *, heads: Sequence[tuple[int, int]] | None = None
    ) -> dict[str, Float[Tensor, " pos"]]:
        """What is brought from each position, in logits, for overlays: by all heads, then by those of each layer.

        Args:
            example: Which example.
            heads: These alone, added up: [(layer, head), ...].

        Raises:
            LensplugError: If it was not measured by source, or there is no such head.
        """
        check_example(example, len(self.values))
        if self.sources is None:
            raise LensplugError(f"this was measured by {self.by}: an overlay needs by='source'.")
        sources = self.sources[example]
        if heads is None:
            layers = {f"layer {layer}": of_layer.sum(dim=0) for layer, of_layer in enumerate(sources)}
            return {"all": sources.sum(dim=(0, 1)), **layers}
        if not len(heads):
            raise LensplugError("heads is empty: give at least one (layer, head), or None for all.")
        for layer, head in heads:
            if not (0 <= layer < sources.shape[0] and 0 <= head < sources.shape[1]):
                raise LensplugError(
                    f"heads has ({layer}, {head}), the result has {sources.shape[0]} layers of {sources.shape[1]}"
                    " heads, counted from 0."
                )
        chosen = list(dict.fromkeys(heads))
        name = ", ".join(f"L{layer}H{head}" for layer, head in chosen)
        return {name: torch.stack([sources[layer, head] for layer, head in chosen]).sum(dim=0)}

    def over_examples(self) -> OverExamples:
        """What each component writes, in logits; by modality, what each head brings from each."""
        if self.by == "modality" and self.masses is not None:
            labels = grid(layer=range(self.masses.shape[1]), head=range(self.masses.shape[2]), modality=self.modalities)
            return OverExamples(labels, {"attribution": self.masses.flatten(1).double()})
        _, layers, components = self.values.shape
        parts = SUBLAYERS if self.by == "layer" else range(components)
        name = {"layer": "sublayer", "neuron": "neuron"}.get(self.by, "head")
        labels = grid(layer=range(layers), **{name: parts})
        return OverExamples(labels, {"attribution": self.values.flatten(1).double()})

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each example and component, the others last; by source and modality for each of these too.

        "source" is a position or a modality, -1 or "" where there is none. "sum" and "logit" are the example's.
        """
        import pandas as pd

        values, named = self.values, self.by == "modality"
        sources: list[str] | range | None = None
        if self.by == "source" and self.sources is not None:
            values, sources = self.sources, range(self.sources.shape[-1])
        elif named and self.masses is not None:
            values, sources = self.masses, list(self.modalities)
        axes = torch.meshgrid(*(torch.arange(size) for size in values.shape), indexing="ij")
        example, layer, part, *source = (axis.flatten().numpy() for axis in axes)
        other_example, other = (
            axis.flatten().numpy() for axis in torch.meshgrid(*map(torch.arange, self.others.shape), indexing="ij")
        )
        count, nowhere = len(other), "" if named else NOWHERE
        names = np.array(
            [[self._named(row, column) for column in range(values.shape[2])] for row in range(values.shape[1])]
        )
        of_source = np.array(sources)[source[0]] if sources is not None else np.full(len(example), nowhere)
        examples = np.concatenate([example, other_example])
        return pd.DataFrame(
            {
                "example": examples,
                "component": np.concatenate([names[layer, part], np.array(self.other_names)[other]]),
                "layer": np.concatenate([layer, np.array([_layer(name) for name in self.other_names])[other]]),
                "index": np.concatenate([part, np.full(count, NOWHERE)]),
                "source": np.concatenate([of_source, np.full(count, nowhere)]),
                "attribution": np.concatenate(
                    [values.flatten().double().numpy(), self.others.flatten().double().numpy()]
                ),
                "target": np.array(self.target_texts)[examples],
                "sum": self.total.double().numpy()[examples],
                "logit": self.logit.double().numpy()[examples],
            }
        )

    def _named(self, layer: int, part: int) -> str:
        """TransformerLens's name of a component."""
        if self.by == "layer":
            return f"{layer}_{SUBLAYERS[part]}"
        return f"L{layer}{'N' if self.by == 'neuron' else 'H'}{part}"


def _layer(name: str) -> int:
    """The layer of another component."""
    first = name.split("_")[0]
    return int(first) if first.isdigit() else NOWHERE

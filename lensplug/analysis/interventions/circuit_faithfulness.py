"""Faithfulness of a circuit: how much of what a model does do these attention heads do alone?

Method, for a circuit C, a set of attention heads, and a target m (best a logit difference):

1. Measure m(all): the model as it is.
2. Measure m(none): every head of every layer ablated (its z is zero, or its mean over a data set).
3. Measure m(C): every head ablated but those of the circuit; and m(complement): the circuit ablated and nothing else.
4. faithfulness = (m(C) - m(none)) / (m(all) - m(none)): 1, the circuit is enough; 0, it does nothing alone.
5. completeness: the faithfulness of the complement, (m(complement) - m(none)) / (m(all) - m(none)): near 0, nothing
   outside the circuit does the same; near 1, the model does without it. (Marks et al. call it so; lower is better.)

All heads have the faithfulness 1 and no heads 0, exactly. MLPs, embeddings and norms run in each case. Where m(all) and
m(none) differ by no more than rounding explains, both are NaN.

Papers: Marks et al. 2024, "Sparse Feature Circuits", arXiv 2403.19647 (this normalisation); Wang et al. 2023,
"Interpretability in the Wild", arXiv 2211.00593 (mean ablation; faithfulness and completeness as differences); Hanna et
al. 2024, "Have Faith in Faithfulness", arXiv 2403.17806.

When to use it: to check a set of heads that another analysis found (`activation_patching`, `direct_attribution`,
`head_specialization`), before saying that these heads do it.

When not to use it: to find heads; and a number alone does not say that a circuit is small, or the only one. Values
below 0 and above 1 occur: heads outside can speak against the target. Zeros are out of distribution for heads whose
mean is far from 0: compare with method="mean", and with as many heads drawn at random.

Example:
    inputs = lens.prepare("What is the color? Answer single word.", images=[picture])
    result = analysis.circuit_faithfulness(lens, inputs, ("Red", "Blue"), [(1, 0), (2, 3)])
    result.faithfulness, result.completeness       # [example]
    views.circuit_faithfulness(result)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lensplug.analysis.interventions.measured_target import MeasuredTarget, rounding_of
from lensplug.analysis.over_examples import OverExamples
from lensplug.analysis.protocols import LensWithEdits
from lensplug.analysis.provenance import Provenance
from lensplug.analysis.result import Result
from lensplug.errors import LensplugError
from lensplug.inputs.logit_targets import Target
from lensplug.inputs.multimodal_input import MultimodalInput
from lensplug.interventions.ablate import Ablate
from lensplug.interventions.layers_and_heads import heads_of
from lensplug.validation.arguments import checked

if TYPE_CHECKING:
    import pandas as pd

HeadAblation = Literal["zero", "mean"]
"""What an ablated head gives."""
Circuit = frozenset[tuple[int, int]]
"""Pairs (layer, head)."""


@dataclass(frozen=True, repr=False)
class CircuitFaithfulness(Result):
    """The target of a model with all heads, with none, with those of a circuit, and with all others."""

    label_columns = ("example",)
    main_number = "faithfulness"

    all_heads: Float[Tensor, " example"]
    """The target of the model as it is."""
    no_heads: Float[Tensor, " example"]
    """With every head ablated."""
    circuit: Float[Tensor, " example"]
    """With every head ablated but those of the circuit."""
    complement: Float[Tensor, " example"]
    """With the heads of the circuit ablated."""
    rounding: Float[Tensor, " example"]
    """What rounding explains of a difference between two of these."""
    heads: tuple[tuple[int, int], ...]
    """The circuit: pairs (layer, head)."""
    n_heads: int
    """How many heads the model has in all layers."""
    method: HeadAblation
    provenance: Provenance

    @property
    def faithfulness(self) -> Float[Tensor, " example"]:
        """The share of the effect of all heads that the circuit has alone; NaN where heads have no effect."""
        return self._share(self.circuit)

    @property
    def completeness(self) -> Float[Tensor, " example"]:
        """The faithfulness of all other heads: near 0 where the circuit is complete."""
        return self._share(self.complement)

    def _share(self, values: Float[Tensor, " example"]) -> Float[Tensor, " example"]:
        effect = self.all_heads - self.no_heads
        return ((values - self.no_heads) / effect).masked_fill(effect.abs() <= self.rounding, torch.nan)

    def over_examples(self) -> OverExamples:
        """Faithfulness and completeness of each example."""
        shares = {"faithfulness": self.faithfulness, "completeness": self.completeness}
        return OverExamples({}, {name: share[:, None].double() for name, share in shares.items()})

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each example."""
        import pandas as pd

        columns = {
            "faithfulness": self.faithfulness,
            "completeness": self.completeness,
            "all_heads": self.all_heads,
            "no_heads": self.no_heads,
            "circuit": self.circuit,
            "complement": self.complement,
        }
        numbers = {name: values.tolist() for name, values in columns.items()}
        return pd.DataFrame({"example": range(len(self.all_heads)), **numbers})


@checked
def circuit_faithfulness(
    lens: LensWithEdits,
    inputs: MultimodalInput,
    target: Target,
    heads: Sequence[tuple[int, int]],
    *,
    method: HeadAblation = "zero",
    values: Mapping[str, Tensor] | None = None,
    position: int = -1,
) -> CircuitFaithfulness:
    """Measure a target with all heads, none, those of a circuit, and all but these: four runs.

    Args:
        lens: From `lensplug.load`, `wrap` or `tiny`.
        inputs: From `prepare` or `encode`; one example or several.
        target: What is measured: the logit of a token (a word that is one token, an id, ids `[example]`), the
            difference of two, or a function of all logits `[batch pos d_vocab]` that makes a number for each example.
        heads: The circuit, pairs (layer, head); negative layers count from the last. None in it: [].
        method: What an ablated head gives: "zero", or "mean", its mean over a data set.
        values: For "mean": `analysis.mean_activations` of "z", of every layer.
        position: Where a token's logit is read; negative ones count from the last that is not padding.

    Returns:
        The target in each case, `[example]`, and both shares.

    Raises:
        LensplugError: If a head is not there, values are missing or not needed, or the target is not one token.
    """
    cfg = lens.model.cfg
    every = frozenset((layer, head) for layer in range(cfg.n_layers) for head in range(cfg.n_heads))
    circuit = _circuit(heads, cfg.n_layers, cfg.n_heads)
    if (method == "mean") != (values is not None):
        needed = "needs values=" if method == "mean" else "needs no values: method='mean' takes"
        raise LensplugError(f"method={method!r} {needed} analysis.mean_activations(...) of 'z', of every layer.")
    measured = MeasuredTarget(lens, inputs, target, position)
    runs = _Runs(lens, inputs, measured, method, values)
    cases = {"all_heads": frozenset[tuple[int, int]](), "no_heads": every}
    cases |= {"circuit": every - circuit, "complement": circuit}
    convention = f"{len(circuit)} of {len(every)} heads, the others ablated ({method}), {measured.in_words}"
    return CircuitFaithfulness(
        **{name: runs.with_ablated(ablated) for name, ablated in cases.items()},
        rounding=rounding_of(cfg, measured),
        heads=tuple(sorted(circuit)),
        n_heads=len(every),
        method=method,
        provenance=Provenance.of_model(lens.model, "circuit_faithfulness", convention),
    )


def _circuit(heads: Iterable[tuple[int, int]], n_layers: int, n_heads: int) -> Circuit:
    """Pairs with layers from 0.

    Raises:
        LensplugError: If a head is not there.
    """
    if not (pairs := list(heads)):
        return frozenset()
    by_layer = heads_of(None, pairs, n_layers, n_heads)
    return frozenset((layer, head) for layer, of_layer in by_layer.items() for head in of_layer or ())


@dataclass(frozen=True)
class _Runs:
    """One run for each set of heads that is ablated: equal sets give equal numbers, to the bit."""

    lens: LensWithEdits
    inputs: MultimodalInput
    measured: MeasuredTarget
    method: HeadAblation
    values: Mapping[str, Tensor] | None
    found: dict[Circuit, Float[Tensor, " example"]] = field(default_factory=dict)

    def with_ablated(self, heads: Circuit) -> Float[Tensor, " example"]:
        """The target with these heads ablated."""
        if heads not in self.found:
            edits = [Ablate(heads=sorted(heads), method=self.method, values=self.values)] if heads else []
            with self.lens.intervene(*edits):
                self.found[heads] = self.measured(self._logits())
        return self.found[heads]

    def _logits(self) -> Tensor:
        if self.measured.rows is not None:
            return self.lens.logits_at(self.inputs, self.measured.rows)
        with torch.no_grad():
            logits: Tensor = self.lens.model(self.inputs)
        return logits

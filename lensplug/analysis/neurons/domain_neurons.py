"""Domain neurons: those that fire in one domain of examples and hardly in others.

Method, from the counts of `neuron_activity` over a data set:

1. p[d, l, i] = the fraction of positions of domain d at which neuron i of layer l fires.
2. Normalised over domains: q[d] = p[d] / Σ_d p[d]. Entropy H = -Σ_d q[d] ln q[d], in nats: 0 = one domain, ln D = all
   alike.
3. Left out first: neurons whose p exceeds the 95th percentile of all p in no domain. A neuron that is nearly dead has a
   low entropy by chance, one that never fires has none.
4. The share (1 %) of all neurons with the lowest entropy is selected. A selected neuron belongs to each domain in which
   its p exceeds that percentile.

When to use it: to ask whether, and in which layers, a model has neurons for kinds of pictures, sounds or questions.

When not to use it: with few positions, where p is noise (compare with domains assigned at random); or to claim that the
model needs these neurons: ablate them, and as many random neurons of the same layers.

Source: Huo et al. 2024, "MMNeuron: Discovering Neuron-Level Domain-Specific Interpretation in Multimodal Large Language
Model", EMNLP 2024; the entropy is that of Tang et al. 2024, "Language-Specific Neurons", arXiv 2402.16438.

Example:
    parts = [analysis.neuron_activity(cache, inputs.modality, domain=name) for name in ("flowers", "cars")]
    neurons = analysis.domain_neurons(analysis.NeuronActivity.combine(parts), modality="image", share=0.05)
    neurons.count                               # [domain layer]
    neurons.of("flowers")                       # [(layer, neuron), ...], lowest entropy first
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lensplug.analysis.neurons.neuron_activity import NeuronActivity
from lensplug.analysis.provenance import Provenance
from lensplug.analysis.result import Result
from lensplug.errors import LensplugError
from lensplug.positions.modality_map import ModalityName
from lensplug.validation.arguments import checked

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, repr=False)
class DomainNeurons(Result):
    """Which neurons belong to which domain."""

    label_columns = ("domain", "layer", "neuron")
    main_number = "probability"

    probability: Float[Tensor, "domain layer neuron"]
    """The fraction of positions at which each neuron fires (0 to 1)."""
    entropy: Float[Tensor, "layer neuron"]
    """Entropy over domains, in nats; NaN for a neuron that never fires."""
    selected: Bool[Tensor, "domain layer neuron"]
    """Whether a neuron belongs to a domain; it may belong to several."""
    threshold: float
    """The percentile of all probabilities that a neuron must exceed."""
    domains: tuple[str, ...]
    provenance: Provenance

    @property
    def count(self) -> Int[Tensor, "domain layer"]:
        """How many neurons of each layer belong to each domain."""
        return self.selected.sum(dim=-1)

    @checked
    def of(self, domain: str) -> list[tuple[int, int]]:
        """The (layer, neuron) of a domain, lowest entropy first.

        Raises:
            LensplugError: If there is no such domain.
        """
        if domain not in self.domains:
            raise LensplugError(f"there is no domain {domain!r}: there are {', '.join(map(repr, self.domains))}.")
        found = self.selected[self.domains.index(domain)].nonzero()
        order = self.entropy[found[:, 0], found[:, 1]].argsort(stable=True)
        return [(layer, neuron) for layer, neuron in found[order].tolist()]

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each domain and neuron of it."""
        import pandas as pd

        domain, layer, neuron = self.selected.nonzero().unbind(dim=1)
        return pd.DataFrame(
            {
                "domain": [self.domains[index] for index in domain.tolist()],
                "layer": layer.numpy(),
                "neuron": neuron.numpy(),
                "probability": self.probability[domain, layer, neuron].numpy(),
                "entropy_nats": self.entropy[layer, neuron].numpy(),
            }
        )


@checked
def domain_neurons(
    activity: NeuronActivity, *, modality: ModalityName | None = None, share: float = 0.01, percentile: float = 0.95
) -> DomainNeurons:
    """Select the neurons with the lowest entropy over domains.

    Args:
        activity: From `neuron_activity`, combined over the data set.
        modality: Count positions of this modality alone ("image"); all by default.
        share: The fraction of all neurons that is selected, above 0 and at most 1; fewer where fewer are not left out.
        percentile: Left out are neurons whose probability exceeds this quantile of all probabilities in no domain; at
            least 0 and below 1. 0 leaves out those alone that fire nowhere more often than the rarest.

    Returns:
        The neurons of each domain.

    Raises:
        LensplugError: If there are fewer than two domains, one has no position of the modality, or an option is out of
            range.
    """
    if not 0 < share <= 1:
        raise LensplugError(f"share is {share:g}, expected a fraction above 0 and at most 1.")
    if not 0 <= percentile < 1:
        raise LensplugError(f"percentile is {percentile:g}, expected a fraction from 0 to below 1.")
    if len(activity.domains) < 2:
        raise LensplugError(f"there is one domain, {activity.domains[0]!r}: count at least two to compare them.")
    probability = activity.probability(modality)
    empty = [name for name, rows in zip(activity.domains, probability, strict=True) if bool(rows.isnan().any())]
    if empty:
        raise LensplugError(f"the domain {empty[0]!r} has no {modality or 'counted'} position.")
    entropy = entropy_over_domains(probability)
    threshold = _quantile(probability, percentile)
    exceeds = probability > threshold
    ranked = entropy.masked_fill(~exceeds.any(dim=0), math.nan).flatten()
    candidates = int((~ranked.isnan()).sum())
    lowest = ranked.nan_to_num(math.inf).argsort(stable=True)[: min(round(share * len(ranked)), candidates)]
    chosen = torch.zeros(len(ranked), dtype=torch.bool)
    chosen[lowest] = True
    positions = modality or "all"
    made = replace(
        activity.provenance,
        analysis="domain_neurons",
        convention=f"{activity.provenance.convention}; {positions} positions, entropy over domains in nats",
        options={"share": f"{share:g}", "percentile": f"{percentile:g}", "modality": positions},
    )
    return DomainNeurons(
        probability, entropy, exceeds & chosen.view_as(entropy), threshold, activity.domains, made
    )  # fmt: skip


def entropy_over_domains(probability: Float[Tensor, "domain layer neuron"]) -> Float[Tensor, "layer neuron"]:
    """The entropy of each neuron's probabilities, normalised over domains, in nats; NaN where all are 0."""
    portion = probability / probability.sum(dim=0)
    entropy: Tensor = torch.special.entr(portion).sum(dim=0)
    return entropy


def _quantile(values: Float[Tensor, ...], quantile: float) -> float:
    """The smallest value that at least this fraction of all values does not exceed."""
    rank = max(1, math.ceil(quantile * values.numel()))
    return float(values.flatten().kthvalue(rank).values)

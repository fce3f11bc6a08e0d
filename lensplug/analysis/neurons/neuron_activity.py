"""How often each MLP neuron fires, by domain of the example and modality of the position.

Method:

1. A neuron fires at a position if its pre-activation is positive: `mlp.hook_pre` > 0, which for ReLU, GELU and SiLU is
   where the activation function lets through more than its small negative tail. (In a gated MLP, the gate's.)
2. Count, for each domain d and modality m, the positions, and those at which neuron (l, i) fires:
   fired[d, m, l, i] = |{(example, pos) : domain = d, modality = m, hook_pre[l, pos, i] > 0}|. Padding is not counted.
3. Counts of several batches add up (`NeuronActivity.combine`): a data set of any size needs the memory of one result.

When to use it: to find neurons that fire in one domain or modality (`domain_neurons`), or never.

When not to use it: firing is not effect. What a neuron writes, and whether the answer needs it, counting does not show.

Source: Tang et al. 2024, "Language-Specific Neurons", arXiv 2402.16438 (neurons counted as active where the activation
is positive); Huo et al. 2024, "MMNeuron", EMNLP 2024 (domains of images).

Example:
    activity = analysis.neuron_activity(cache, inputs.modality, domain="flowers")
    activity.probability("image")             # [domain layer neuron]
    analysis.NeuronActivity.combine([activity, activity]).positions
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lensplug.analysis.protocols import needs
from lensplug.analysis.provenance import Provenance, refuse_other_making
from lensplug.analysis.result import Result
from lensplug.cache.activation_cache import ActivationCache
from lensplug.cache.reading import n_layers, read
from lensplug.errors import LensplugError
from lensplug.positions.by_modality import Modality, modality_of
from lensplug.positions.modality_map import MODALITIES, ModalityName
from lensplug.validation.arguments import checked

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, repr=False)
class NeuronActivity(Result):
    """Counts of the positions at which each neuron fires."""

    label_columns = ("domain", "modality", "layer")
    main_number = "mean_probability"

    fired: Int[Tensor, "domain modality layer neuron"]
    """At how many positions the pre-activation was positive."""
    positions: Int[Tensor, "domain modality"]
    """How many positions there were."""
    domains: tuple[str, ...]
    """In alphabetical order."""
    modalities: tuple[str, ...]
    """Those that occurred, in the order of `lensplug.positions.modality_map.MODALITIES`."""
    examples: int
    """How many prompts were counted."""
    provenance: Provenance

    @checked
    def probability(self, modality: ModalityName | None = None) -> Float[Tensor, "domain layer neuron"]:
        """The fraction of positions at which each neuron fires; NaN for a domain without such positions.

        Args:
            modality: Positions of this modality; all of them by default.

        Raises:
            LensplugError: If no position had that modality.
        """
        chosen = slice(None) if modality is None else slice(index := self._index(modality), index + 1)
        fired, positions = self.fired[:, chosen].sum(dim=1), self.positions[:, chosen].sum(dim=1)
        return fired.double() / positions.double()[:, None, None]

    @classmethod
    @checked
    def combine(cls, results: Sequence[NeuronActivity]) -> NeuronActivity:
        """The counts of several results of one model as one: those of equal domains are added.

        Raises:
            LensplugError: If they are of several models, or there is none.
        """
        refuse_other_making(results)
        domains = tuple(sorted({name for result in results for name in result.domains}))
        modalities = tuple(name for name in MODALITIES if any(name in result.modalities for result in results))
        layers, neurons = results[0].fired.shape[2:]
        fired = torch.zeros(len(domains), len(modalities), layers, neurons, dtype=torch.long)
        positions = torch.zeros(len(domains), len(modalities), dtype=torch.long)
        for result in results:
            if result.fired.shape[2:] != (layers, neurons):
                raise LensplugError(
                    f"results of {layers} x {neurons} and {' x '.join(map(str, result.fired.shape[2:]))} layers and"
                    " neurons cannot be combined: give results of one model."
                )
            rows = torch.tensor([domains.index(name) for name in result.domains])[:, None]
            columns = torch.tensor([modalities.index(name) for name in result.modalities])
            fired[rows, columns] += result.fired
            positions[rows, columns] += result.positions
        examples = sum(result.examples for result in results)
        return replace(
            results[0], fired=fired, positions=positions, domains=domains, modalities=modalities, examples=examples
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each domain, modality and layer: mean firing probability, and how many neurons never fire."""
        import pandas as pd

        probability = self.fired.double() / self.positions.double()[..., None, None]
        return pd.DataFrame(
            {
                "domain": domain,
                "modality": modality,
                "layer": layer,
                "mean_probability": float(probability[row, column, layer].mean()),
                "never_fired": int((self.fired[row, column, layer] == 0).sum()),
                "positions": int(self.positions[row, column]),
            }
            for row, domain in enumerate(self.domains)
            for column, modality in enumerate(self.modalities)
            for layer in range(self.fired.shape[2])
        )

    def _index(self, modality: str) -> int:
        if modality not in self.modalities:
            raise LensplugError(f"no position was {modality!r}: there were {', '.join(self.modalities)}.")
        return self.modalities.index(modality)


@needs("mlp.hook_pre")
@checked
def neuron_activity(cache: ActivationCache, modality: Modality, *, domain: str | Sequence[str]) -> NeuronActivity:
    """Count where the neurons of a batch fire.

    Args:
        cache: An ActivationCache with `mlp.hook_pre` of every layer (`neuron_activity.needs`).
        modality: `inputs.modality`, or the inputs.
        domain: What the examples are of ("flowers"): one name for all, or one for each.

    Returns:
        Counts of this batch, to be combined with those of others.

    Raises:
        LensplugError: If an activation is missing, its positions are not those of the map, or there are more or fewer
            domains than examples.
    """
    labels = modality_of(modality).labels
    names = [domain] * len(labels) if isinstance(domain, str) else list(domain)
    if len(names) != len(labels):
        raise LensplugError(f"there are {len(names)} domains for {len(labels)} examples: give one for each, or one.")
    domains = tuple(sorted(set(names)))
    present = [index for index, name in enumerate(MODALITIES) if name != "pad" and bool((labels == index).any())]
    of_domain = torch.tensor([[name == other for name in names] for other in domains])  # [domain batch]
    of_modality = torch.stack([labels.cpu() == index for index in present])  # [modality batch pos]
    member = of_domain[:, None, :, None] & of_modality
    fired = [_fired(cache, layer, member) for layer in range(n_layers(cache))]
    return NeuronActivity(
        fired=torch.stack(fired, dim=2),
        positions=member.sum(dim=(2, 3)),
        domains=domains,
        modalities=tuple(MODALITIES[index] for index in present),
        examples=len(labels),
        provenance=Provenance.of(cache, "neuron_activity", "positions with mlp.hook_pre > 0, padding left out"),
    )


def _fired(
    cache: ActivationCache, layer: int, member: Bool[Tensor, "domain modality batch pos"]
) -> Int[Tensor, "domain modality neuron"]:
    """At how many positions of each domain and modality the neurons of a layer fire."""
    before = read(cache, f"blocks.{layer}.mlp.hook_pre", needed_by="neuron_activity")
    if before.shape[:2] != member.shape[2:]:
        raise LensplugError(
            f"the activations of layer {layer} are of {list(before.shape[:2])} [example, position], the modality map of"
            f" {list(member.shape[2:])}: give the map of the inputs that were run."
        )
    positive = (before > 0).flatten(0, 1).to(torch.float32)  # a product of 0 and 1: exact up to 2^24 positions
    counted = member.flatten(2).to(positive)
    return (counted @ positive).round().long().cpu()

"""The mean of collected activations over a data set: what mean ablation puts in.

Method:

1. Collect activations of a data set (`analysis.activations`, batch after batch, or a study of it).
2. m[layer] = Σ_e n_e v[e, layer] / Σ_e n_e over the examples e, where n_e positions are averaged in v[e]: the mean over
   all positions of all examples.

When to use it: for `Ablate(method="mean", values=analysis.mean_activations(...))`.

When not to use it: the mean of few examples is the mean of these; collect the modality in whose positions it is put in
(`pool=`), since activations at images and at text have different means.

Paper: Wang et al. 2023, "Interpretability in the Wild", arXiv 2211.00593.

Example:
    _, cache = lens.run_with_cache(inputs, names_filter="z")
    collected = analysis.activations(cache, inputs, hook="z", pool=("text", "media"))
    means = analysis.mean_activations(collected)   # {"blocks.0.attn.hook_z": [head d_head], ...}
    from lensplug.interventions import Ablate
    with lens.intervene(Ablate(heads=[(1, 0)], method="mean", values=means)):
        lens.generate(inputs).text
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lensplug.analysis.probes.activations import ENDINGS
from lensplug.analysis.probes.collected import Collected, Source
from lensplug.validation.arguments import checked


@checked
def mean_activations(activations: Source | Sequence[Source]) -> dict[str, Tensor]:
    """The mean of each layer's activation over the positions of a data set.

    Args:
        activations: Results of `analysis.activations`, or files of them (`study.result(analysis.activations).files`),
            which are read one layer at a time.

    Returns:
        The name of each layer's hook -> `[d_act]`, of "z" `[head d_head]`, in fp32: `values=` of a mean ablation.

    Raises:
        LensplugError: If there are none, or they were not made alike.
    """
    collected = Collected.of(activations)
    positions = torch.cat([part.positions for part in collected.outlines]).double()
    ending, means = ENDINGS[collected.outlines[0].hook], collected.means(positions)
    return {f"blocks.{layer}.{ending}": mean for layer, mean in zip(collected.layers, means, strict=True)}

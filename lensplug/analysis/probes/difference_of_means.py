"""The difference of means of collected activations of two groups: a direction to steer along.

Method:

1. Collect activations of two groups of examples (`analysis.activations`) that differ in one property.
2. d[layer] = mean over the examples of the first group - mean over those of the second, each example counted once.

When to use it: for `Steer(direction)`: audio minus silence, red minus blue; beside random directions of the same norm.

When not to use it: groups that differ in more than one thing give a direction of all of them. `analysis.probe` finds
the direction that separates two groups best, which need not be the one along which the model moves.

Papers: Marks & Tegmark 2023, "The Geometry of Truth", arXiv 2310.06824; Rimsky et al. 2024, arXiv 2312.06681.

Example:
    other = lens.prepare("What is the color? Answer single word.", images=[other_picture])
    runs = [(lens.run_with_cache(each, needs=analysis.activations)[1], each) for each in (inputs, other)]
    first, second = (analysis.activations(cache, each) for cache, each in runs)
    direction = analysis.difference_of_means(first, second)      # [layer d_model]
    from lensplug.interventions import Steer
    with lens.intervene(Steer(direction[2], layers=2, scale=0.5)):
        lens.generate(inputs).text
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from lensplug.analysis.probes.collected import Collected, Source
from lensplug.errors import LensplugError
from lensplug.validation.arguments import checked


@checked
def difference_of_means(
    towards: Source | Sequence[Source], away: Source | Sequence[Source]
) -> Float[Tensor, "layer *head d_act"]:
    """The mean over the examples of one group minus that over another's, in every layer.

    Args:
        towards: Results of `analysis.activations`, or files of them, which are read one layer at a time.
        away: The same, of the other group.

    Returns:
        In fp32, a row for each layer that was collected.

    Raises:
        LensplugError: If the two were not collected alike.
    """
    first, second = Collected.of(towards), Collected.of(away)
    kinds = [(each.outlines[0].hook, each.layers) for each in (first, second)]
    if kinds[0] != kinds[1]:
        raise LensplugError(
            f"the first are {kinds[0][0]} of the layers {list(kinds[0][1])}, the second {kinds[1][0]} of"
            f" {list(kinds[1][1])}: collect both with the same options."
        )
    of_first, of_second = (torch.stack(each.means(torch.ones(each.count).double())) for each in (first, second))
    return of_first - of_second

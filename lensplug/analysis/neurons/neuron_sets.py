"""Sets of neurons as a mask `[layer neuron]`: those that are chosen, and as many random ones of the same layers.

The random sets are drawn from the seed and the chosen set alone: no batch, order or number of examples changes them,
and the first three of five draws are those of three.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from lensplug.errors import LensplugError
from lensplug.validation.arguments import described

Neurons = Sequence[Sequence[int]] | Bool[Tensor, "layer neuron"]
"""(layer, neuron) pairs, or a mask that is True where a neuron is meant."""


def chosen_neurons(neurons: Neurons, n_layers: int, width: int) -> Bool[Tensor, "layer neuron"]:
    """The mask of chosen neurons.

    Args:
        neurons: Pairs or a mask.
        n_layers: How many layers the model has.
        width: How many neurons each layer has.

    Raises:
        LensplugError: If there is none, one is not there or is named twice, or more than half of a layer is chosen.
    """
    if isinstance(neurons, Tensor):
        if tuple(neurons.shape) != (n_layers, width):
            raise LensplugError(
                f"neurons is {described(neurons)}, but the model has {n_layers} layers of {width} neurons: give a mask"
                f" [{n_layers}, {width}], or (layer, neuron) pairs."
            )
        mask = neurons.detach().cpu().clone()
    else:
        mask = _mask_of_pairs(neurons, n_layers, width)
    count = mask.sum(dim=1)
    if not bool(count.any()):
        raise LensplugError("no neurons are given: give at least one (layer, neuron).")
    fullest = int(count.argmax())
    if 2 * int(count[fullest]) > width:
        raise LensplugError(
            f"{int(count[fullest])} of the {width} neurons of layer {fullest} are chosen: of more than half no random"
            " ones can be drawn beside them. Choose fewer."
        )
    return mask


def _mask_of_pairs(pairs: Sequence[Sequence[int]], n_layers: int, width: int) -> Bool[Tensor, "layer neuron"]:
    mask = torch.zeros(n_layers, width, dtype=torch.bool)
    for pair in pairs:
        if len(pair) != 2 or any(isinstance(number, bool) for number in pair):
            raise LensplugError(f"neurons has {described(pair)}, expected (layer, neuron), two whole numbers.")
        layer, neuron = (int(number) for number in pair)
        if not (0 <= layer < n_layers and 0 <= neuron < width):
            raise LensplugError(
                f"there is no neuron {neuron} of layer {layer}: the model has layers 0 to {n_layers - 1}, with neurons"
                f" 0 to {width - 1} each."
            )
        if bool(mask[layer, neuron]):
            raise LensplugError(f"neuron {neuron} of layer {layer} is given twice.")
        mask[layer, neuron] = True
    return mask


def random_neurons(chosen: Bool[Tensor, "layer neuron"], draws: int, seed: int) -> list[Bool[Tensor, "layer neuron"]]:
    """Random sets of as many neurons of each layer, none of them among the chosen.

    Args:
        chosen: The mask; at most half of each layer.
        draws: How many sets.
        seed: Random seed.
    """
    generator = torch.Generator().manual_seed(seed)
    sets = []
    for _ in range(draws):
        drawn = torch.zeros_like(chosen)
        for layer in chosen.any(dim=1).nonzero()[:, 0].tolist():
            others = (~chosen[layer]).nonzero()[:, 0]
            order = torch.randperm(len(others), generator=generator)
            drawn[layer, others[order[: int(chosen[layer].sum())]]] = True
        sets.append(drawn)
    return sets

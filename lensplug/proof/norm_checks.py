"""Each norm by itself, given numbers as small as its epsilon.

A norm of queries, or behind attention, is given what another norm has brought to the size of one: its epsilon is lost
in rounding there, and counts where a trained model makes small queries. Here every norm of a layer is called alone.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from lensplug.proof.full_precision import in_full
from lensplug.proof.measures import Tally, apart
from lensplug.proof.pair import Pair, generator
from lensplug.proof.report import Check

NAME = "each norm alone"
SIZES = (1.0, 1e-3)


def checks(pair: Pair, tolerance: float) -> list[Check]:
    """Every norm of every layer, on the same numbers in both models."""
    if pair.engine != "bridge":
        return [Check(NAME, "not proved", why="a HookedTransformer has norms of its own, where it has them")]
    tally = Tally(NAME, tolerance)
    for layer, (module, block) in enumerate(zip(pair.layers, pair.model.blocks, strict=True)):
        with in_full(module, block):
            _compare(tally, layer, module, block)
    return [tally.check("its layers have no norms with weights")]


def _compare(tally: Tally, layer: int, module: nn.Module, block: nn.Module) -> None:
    """Every norm of one layer."""
    for path, norm in module.named_modules():
        weight = getattr(norm, "weight", None)
        if "Norm" not in type(norm).__name__ or not isinstance(weight, Tensor) or not _of_one(norm):
            continue
        ours = _at(block, path)
        if ours is None:
            tally.add(float("inf"), f"layer {layer}, {path}, which the wrapped core does not have")
            continue
        numbers = torch.randn(1, 3, *weight.shape, generator=generator(layer)).to(weight)
        for size in SIZES:
            tally.add(apart(_output(ours, numbers * size), _output(norm, numbers * size)), f"layer {layer}, {path}")


def _of_one(norm: nn.Module) -> bool:
    """Whether a norm is a function of one thing; one with a gate is compared where its layer is."""
    taken = list(inspect.signature(norm.forward).parameters.values())
    return sum(parameter.default is inspect.Parameter.empty and parameter.kind < 2 for parameter in taken) == 1


def _output(norm: nn.Module, numbers: Tensor) -> Tensor:
    output: Tensor = norm(numbers)
    return output


def _at(block: Any, path: str) -> nn.Module | None:
    """The bridge's component at a path of the Hugging Face layer; components hold what they wrap."""
    module: Any = block
    for part in path.split("."):
        module = getattr(getattr(module, "original_component", None) or module, part, None)
        if module is None:
            return None
    return module if isinstance(module, nn.Module) else None

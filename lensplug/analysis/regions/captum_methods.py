"""Attribution to regions by captum's algorithms, over a function of which regions are there.

captum sees a vector of ones (regions that are there) and its baseline of zeros; what it runs is the value of each set.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib import import_module
from itertools import product
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lensplug.errors import LensplugError

Method = Literal["occlusion", "shapley", "kernel_shap"]
"""Each region alone, all sets of regions, or a weighted regression over drawn sets."""
Value = Callable[[Bool[Tensor, "run region"]], Float[Tensor, " run"]]
EXACT = 7
"""Up to so many regions all their orders are taken: 5,040 of them, over 128 sets."""
PERMUTATIONS = 25
"""Orders that are drawn, where nothing else is asked for."""
MOST_SAMPLES = 100_000
"""Maximum number of orders or sets that are drawn."""
AT_ONCE = 64
"""Sets that captum asks for at once; they run in batches of the user's size."""


def need_captum(method: Method) -> None:
    """Refuse where what a method runs on is not installed, before anything is computed.

    Raises:
        LensplugError: If it is not.
    """
    packages = {"captum.attr": "captum"} | ({"sklearn": "scikit-learn"} if method == "kernel_shap" else {})
    for module, package in packages.items():  # captum's KernelShap fits by scikit-learn, which captum does not bring
        try:
            import_module(module)
        except ImportError as error:
            raise LensplugError(
                f"region_attribution with method={method!r} needs {package}: pip install 'lensplug[attribution]'."
            ) from error


def is_exact(method: Method, n_regions: int, samples: int | None) -> bool:
    """Whether nothing is drawn at random."""
    return method == "occlusion" or (method == "shapley" and samples is None and n_regions <= EXACT)


def expected_runs(method: Method, n_regions: int, samples: int | None) -> int:
    """The largest number of sets that will be run."""
    if method == "occlusion":
        return n_regions + 2
    drawn = n_regions * PERMUTATIONS if samples is None else samples * (n_regions if method == "shapley" else 1)
    every_set: int = 2**n_regions
    return every_set if is_exact(method, n_regions, samples) else min(drawn + 2, every_set)


def attributed(
    method: Method, value: Value, n_regions: int, samples: int | None, seed: int
) -> tuple[Float[Tensor, " region"], Float[Tensor, " region"]]:
    """The value of each region, and its standard error: 0 where nothing is drawn, NaN where it is not known.

    Args:
        method: How.
        value: Of sets of regions.
        n_regions: How many.
        samples: How many orders (Shapley) or sets (KernelShap) are drawn; None for the default.
        seed: Where chance begins; it goes on outside as if nothing had been drawn.
    """
    from captum import attr

    def forward(present: Tensor) -> Tensor:
        return value(present.bool())

    ones, no_error = torch.ones(1, n_regions), torch.zeros(n_regions)
    options: dict[str, Any] = {"baselines": torch.zeros(1, n_regions), "perturbations_per_eval": AT_ONCE}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if method == "occlusion":
            return attr.FeatureAblation(forward).attribute(ones, **options)[0].float(), no_error
        if method == "kernel_shap":
            count = n_regions * PERMUTATIONS if samples is None else samples
            values = attr.KernelShap(forward).attribute(ones, n_samples=count, **options)[0]
            return values.float(), torch.full((n_regions,), math.nan if n_regions > 1 else 0.0)
        if is_exact(method, n_regions, samples):
            value(torch.tensor(list(product((False, True), repeat=n_regions))))  # in whole batches, before captum asks
            return attr.ShapleyValues(forward).attribute(ones, **options)[0].float(), no_error
        # One order at a time, so that it is known how much they differ.
        sampling = attr.ShapleyValueSampling(forward)
        count = PERMUTATIONS if samples is None else samples
        orders = torch.stack([sampling.attribute(ones, n_samples=1, **options)[0].double() for _ in range(count)])
    error = orders.std(dim=0) / count**0.5 if count > 1 else torch.full((n_regions,), math.nan)
    return orders.mean(dim=0).float(), error.float()


def refuse_samples(method: Method, samples: int | None) -> None:
    """Refuse a number of samples that means nothing.

    Raises:
        LensplugError: If nothing is drawn, or there are none.
    """
    if samples is None:
        return
    if method == "occlusion":
        raise LensplugError(
            "samples changes nothing for method='occlusion', which blanks each region once: leave it out."
        )
    least = 1 if method == "shapley" else 3
    if not least <= samples <= MOST_SAMPLES:
        raise LensplugError(f"samples is {samples}, expected {least} to {MOST_SAMPLES} for method={method!r}.")


def refuse_too_few_sets(method: Method, samples: int | None, n_regions: int) -> None:
    """Refuse a regression over fewer sets than it has unknowns: any values would fit.

    Raises:
        LensplugError: If there is one region, or fewer sets than regions and 2: all of them, and none.
    """
    if method != "kernel_shap":
        return
    if n_regions < 2:
        raise LensplugError("kernel_shap fits a line through sets of regions, and there is one region: give several.")
    if samples is not None and samples < (least := n_regions + 2):
        raise LensplugError(
            f"samples is {samples}, and kernel_shap fits a value for each of {n_regions} regions: fewer than {least}"
            f" sets do not determine them. Give at least samples={least}, better {n_regions * PERMUTATIONS} (the"
            " default)."
        )

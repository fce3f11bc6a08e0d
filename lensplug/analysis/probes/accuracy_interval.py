"""Intervals of an accuracy, where several examples may be of one group (questions about one picture).

Method:

1. Of n held-out examples the fraction p is right. Were they independent, its variance would be p (1 - p) / n.
2. Within groups they are not. The variance over G groups: v = G / (G - 1) Σ_g (r_g - p n_g)² / n², with r_g right of
   the n_g examples of group g. Without groups every example is its own, and v is p (1 - p) / (n - 1).
3. The effective number of examples: n' = n / (v (n - 1) / (p (1 - p))), at most n; G where all or none are right.
4. Wilson's interval (Wilson 1927) of p with n' in place of n, as Korn and Graubard 1998 do with Clopper's and Pearson's
   for survey data.

Why not the bootstrap: where nearly all or all are right, which is what a probe is for, a resample hardly ever holds an
error, and its interval is a point. Share of 1,500 intervals at 95 % that hold the true accuracy, with 5 examples in a
group and a correlation of 0.8 (0.2) within groups:

    groups, accuracy     this interval    cluster bootstrap    Wilson as if independent
    10, 0.90              .959  (.964)       .693  (.877)           .598  (.893)
    10, 0.98              .978  (.957)       .257  (.503)           .827  (.880)
    40, 0.90              .943  (.928)       .915  (.921)           .667  (.852)
    40, 0.98              .956  (.961)       .597  (.829)           .499  (.836)

What it does not say: how the accuracy would vary with other training examples. Folds share theirs, and no estimate of
that is unbiased (Bengio and Grandvalet 2004).
"""

from __future__ import annotations

from statistics import NormalDist

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def variance(correct: Bool[Tensor, "*row sample"], group: Int[Tensor, " sample"]) -> Float[Tensor, "*row"]:
    """The variance of the fraction that is right, over groups, which are numbered from 0; NaN where there is one."""
    share = correct.double().mean(dim=-1, keepdim=True)
    count = int(group.max()) + 1
    excess = torch.zeros(*correct.shape[:-1], count, dtype=torch.double)
    excess.index_add_(-1, group, correct.double() - share)
    scale = count / (count - 1) if count > 1 else torch.nan
    result: Tensor = scale * excess.square().sum(dim=-1) / len(group) ** 2
    return result


def effective_number(correct: Bool[Tensor, "*row sample"], group: Int[Tensor, " sample"]) -> Float[Tensor, "*row"]:
    """The number of independent examples that tell as much, at least 1."""
    share, spread = correct.double().mean(dim=-1), variance(correct, group)
    independent = share * (1 - share) / (len(group) - 1)
    number = torch.where(independent > 0, len(group) * independent / spread, float(group.max()) + 1)
    return number.nan_to_num(1.0).clamp(min=1, max=len(group))  # of one group, nothing tells


def wilson(
    share: Float[Tensor, "*row"], number: Float[Tensor, "*row"], confidence: float = 0.95
) -> tuple[Float[Tensor, "*row"], Float[Tensor, "*row"]]:
    """Wilson's lower and upper limit of a fraction of this number of examples."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    middle = (share + z**2 / (2 * number)) / (1 + z**2 / number)
    half = z / (1 + z**2 / number) * (share * (1 - share) / number + z**2 / (4 * number**2)).sqrt()
    return (middle - half).clamp(min=0), (middle + half).clamp(max=1)

"""Precision, recall and F1 of classes, by the definitions of scikit-learn (0 where nothing was there to divide by)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class ClassScores:
    """Precision, recall and F1 of each class, 0 to 1."""

    precision: Float[Tensor, " class"]
    """Share of the examples predicted as this class that belong to it."""
    recall: Float[Tensor, " class"]
    """Share of the examples of this class that were predicted as it."""
    f1: Float[Tensor, " class"]
    """Their harmonic mean."""
    support: Int[Tensor, " class"]
    """How many examples it is right of."""

    @classmethod
    def of(cls, target: Int[Tensor, " example"], predicted: Int[Tensor, " example"], classes: int) -> ClassScores:
        """Counted over examples."""
        right = torch.bincount(target[predicted == target], minlength=classes).double()
        n_predicted, support = (torch.bincount(each, minlength=classes) for each in (predicted, target))
        return cls(
            precision=right / n_predicted.clamp(min=1),
            recall=right / support.clamp(min=1),
            f1=2 * right / (n_predicted + support).clamp(min=1),
            support=support,
        )

    @property
    def weighted_f1(self) -> float:
        """The mean of F1, each class by its support."""
        return float((self.f1 * self.support).sum() / self.support.sum())

"""What probes find: held-out predictions, accuracies against chance and shuffled labels, and directions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lensplug.analysis.probes.accuracy_interval import effective_number, variance, wilson
from lensplug.analysis.probes.activations import Hook
from lensplug.analysis.probes.classifiers import Method
from lensplug.analysis.probes.labels import Label
from lensplug.analysis.provenance import Provenance
from lensplug.analysis.result import Result

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, repr=False)
class Probe(Result):
    """What a linear classifier of each layer (and head) predicts of held-out examples, and in which direction."""

    label_columns = ("layer", "head")
    main_number = "accuracy"
    standard_errors = {"accuracy": "standard_error"}

    predicted: Int[Tensor, "layer *head sample"]
    """The class predicted for each example while it was held out, as an index into `classes`."""
    target: Int[Tensor, " sample"]
    """The class of each example."""
    fold: Int[Tensor, " sample"]
    """The fold in which each example was held out."""
    group: Int[Tensor, " sample"]
    """The group of each example, numbered from 0; without groups each is its own."""
    shuffled: Float[Tensor, "layer *head shuffle"]
    """Held-out accuracy with labels in random order."""
    direction: Float[Tensor, "layer *head class d_act"]
    """The direction of each class in the space of the activations, of length 1; of two classes the second's alone. 0
    where the activations are the same in all examples."""
    gain: Float[Tensor, "layer *head class"]
    """How much the score of the class rises with 1 along the direction. Scores are logits (of two classes: log-odds)
    for "logistic", and for "ridge" in units in which a class is +1 and the others -1."""
    bias: Float[Tensor, "layer *head class"]
    """The score of the class at the origin: score = gain * (direction @ activation) + bias."""
    spread: Float[Tensor, "layer *head class"]
    """The standard deviation of the examples along the direction."""
    classes: tuple[Label, ...]
    """The labels in order."""
    layers: tuple[int, ...]
    hook: Hook
    method: Method
    provenance: Provenance

    @property
    def correct(self) -> Bool[Tensor, "layer *head sample"]:
        """Whether each held-out example was predicted right."""
        return self.predicted == self.target

    @property
    def accuracy(self) -> Float[Tensor, layer * head]:
        """The fraction of held-out examples that are predicted right, 0 to 1."""
        return self.correct.double().mean(dim=-1)

    @property
    def fold_accuracy(self) -> Float[Tensor, "layer *head fold"]:
        """The accuracy of each fold."""
        correct = self.correct
        return torch.stack(
            [correct[..., self.fold == fold].double().mean(dim=-1) for fold in range(int(self.fold.max()) + 1)], dim=-1
        )

    @property
    def balanced_accuracy(self) -> Float[Tensor, layer * head]:
        """The mean over classes of the fraction of their examples that are right; chance is 1 / number of classes."""
        correct = self.correct
        by_class = [correct[..., self.target == number].double().mean(dim=-1) for number in range(len(self.classes))]
        return torch.stack(by_class).mean(dim=0)

    @property
    def interval(self) -> tuple[Float[Tensor, layer * head], Float[Tensor, layer * head]]:
        """The lower and upper limit of the accuracy at 95 %: Wilson's, with groups taken into account."""
        return wilson(self.accuracy, effective_number(self.correct, self.group))

    @property
    def standard_error(self) -> Float[Tensor, layer * head]:
        """Of the accuracy, over groups; 0 where all or none are right (the interval is not)."""
        return variance(self.correct, self.group).sqrt()

    @property
    def chance(self) -> float:
        """The share of the largest class: the accuracy of who always answers it."""
        return float(self.target.bincount().max()) / len(self.target)

    @property
    def shuffled_mean(self) -> Float[Tensor, layer * head]:
        """The mean accuracy with labels in random order; NaN where none was tried."""
        return self.shuffled.mean(dim=-1)

    @property
    def shuffled_limit(self) -> Float[Tensor, layer * head]:
        """The accuracy that 95 % of the random orders do not exceed; NaN where none was tried."""
        if not self.shuffled.shape[-1]:
            return self.shuffled_mean
        return self.shuffled.quantile(0.95, dim=-1)

    def by_example(self) -> Mapping[str, Float[Tensor, "example row"]]:
        """Whether each example was right, where examples are independent: `compare` then takes pairs."""
        if int(self.group.max()) + 1 < len(self.group):
            return {}
        return {"accuracy": self.correct.flatten(0, -2).T.float()}

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each layer and head; head -1 is the stream of all heads."""
        import pandas as pd

        by_head = self.accuracy.ndim == 2
        shape = self.accuracy.shape if by_head else (len(self.layers), 1)
        low, high = self.interval
        numbers = {
            "accuracy": self.accuracy,
            "standard_error": self.standard_error,
            "low": low,
            "high": high,
            "balanced_accuracy": self.balanced_accuracy,
            "shuffled_mean": self.shuffled_mean,
            "shuffled_limit": self.shuffled_limit,
        }
        return pd.DataFrame(
            {
                "layer": np.repeat(self.layers, shape[1]),
                "head": np.tile(np.arange(shape[1]), shape[0]) if by_head else -1,
                **{name: value.flatten().double().numpy() for name, value in numbers.items()},
                "chance": self.chance,
            }
        )

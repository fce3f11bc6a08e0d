"""What `information_flow` returns."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lensplug.analysis.over_examples import OverExamples, grid
from lensplug.analysis.provenance import Provenance
from lensplug.analysis.result import Result
from lensplug.statistics import Bootstrap
from lensplug.validation.arguments import checked

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, repr=False)
class InformationFlow(Result):
    """The target's probability while a path is cut in a window of layers, and while random other keys are."""

    label_columns = ("example", "path", "layer")
    main_number = "change"
    example_depth = {"examples": 0, "targets": 0}

    log_probability: Float[Tensor, "example path layer"]
    """Of the target, in nats, with the path cut in the window around the layer."""
    control: Float[Tensor, "example path draw layer"]
    """The same with as many random other keys cut for the same queries; NaN where there are no others."""
    baseline: Float[Tensor, " example"]
    """With nothing cut."""
    keys: Int[Tensor, "example path"]
    """How many keys a path cuts."""
    control_keys: Int[Tensor, "example path"]
    """How many its control cuts: as many, or all others that the queries see where these are fewer."""
    paths: tuple[str, ...]
    layers: tuple[int, ...]
    """Around which the windows lie."""
    windows: tuple[tuple[int, int], ...]
    """The first and the last layer of each; (0, -1) of an empty one."""
    examples: tuple[str, ...]
    """The prompts."""
    targets: tuple[str, ...]
    """The tokens whose probability was read."""
    provenance: Provenance

    @property
    def change(self) -> Float[Tensor, "example path layer"]:
        """The relative change of the target's probability, (p' - p) / p, in per cent: -100 is all of it."""
        return 100 * torch.expm1(self.log_probability.double() - self.baseline.double()[:, None, None])

    @property
    def control_change(self) -> Float[Tensor, "example path draw layer"]:
        """The same of the control."""
        return 100 * torch.expm1(self.control.double() - self.baseline.double()[:, None, None, None])

    @property
    def beyond_control(self) -> Float[Tensor, "example path layer"]:
        """The change less the mean of the control's draws, in percentage points: below 0 the path matters more."""
        return self.change - self.control_change.mean(dim=2)

    @checked
    def mean(self, *, confidence: float = 0.95, replicates: int = 2000, seed: int = 0) -> pd.DataFrame:
        """Means over examples with bootstrap intervals, one row for each path and layer.

        `change` with `low` and `high`; the mean change of the control with its interval, and the smallest and largest
        mean of its draws; `beyond_control` with its interval. Intervals are NaN of a single example.

        Args:
            confidence: Of the intervals, between 0 and 1.
            replicates: Of the bootstrap.
            seed: Of its draws.
        """
        import pandas as pd

        draws = self.control_change.mean(dim=0)  # [path draw layer]
        measured = {"": self.change, "control_": self.control_change.mean(dim=2), "beyond_": self.beyond_control}
        columns = {}
        for prefix, values in measured.items():
            bootstrap = Bootstrap(replicates=replicates, seed=seed)
            names = [str(example) for example in range(len(values))]
            bootstrap.add(values.flatten(1).numpy(), ["all"] * len(values), names)
            interval = bootstrap.interval(confidence=confidence)
            columns[f"{prefix}change" if prefix != "beyond_" else "beyond_control"] = bootstrap.mean[0]
            columns[f"{prefix}low"], columns[f"{prefix}high"] = interval.low[0], interval.high[0]
        none = np.full(columns["change"].shape, np.nan)
        columns["draws_low"] = draws.amin(dim=1).flatten().numpy() if draws.shape[1] else none
        columns["draws_high"] = draws.amax(dim=1).flatten().numpy() if draws.shape[1] else none
        return pd.DataFrame({**self._rows(), **columns, "examples": len(self.examples)})

    def over_examples(self) -> OverExamples:
        """The change of each path by layer, that of its control, and by how much it exceeds it."""
        numbers = {
            "change": self.change,
            "control_change": self.control_change.mean(dim=2),
            "beyond_control": self.beyond_control,
            "log_probability": self.log_probability.double(),
        }
        labels = grid(path=list(self.paths), layer=list(self.layers))
        return OverExamples(labels, {name: values.flatten(1) for name, values in numbers.items()})

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each example, path and layer."""
        import pandas as pd

        rows = pd.DataFrame(self._rows())
        tables = [
            rows.assign(
                example=example,
                prompt=self.examples[example],
                target=self.targets[example],
                log_probability=self.log_probability[example].flatten().numpy(),
                change=self.change[example].flatten().numpy(),
                control_change=self.control_change[example].mean(dim=1).flatten().numpy(),
                keys=self.keys[example].repeat_interleave(len(self.layers)).numpy(),
                control_keys=self.control_keys[example].repeat_interleave(len(self.layers)).numpy(),
            )
            for example in range(len(self.examples))
        ]
        table = pd.concat(tables, ignore_index=True)
        return table[["example", *(name for name in table.columns if name != "example")]]

    def _rows(self) -> dict[str, list[object]]:
        names = ("path", "layer", "first_layer", "last_layer")
        windows = [(layer, *window) for layer, window in zip(self.layers, self.windows, strict=True)]
        rows = [(path, *window) for path, window in product(self.paths, windows)]
        return {name: [row[index] for row in rows] for index, name in enumerate(names)}

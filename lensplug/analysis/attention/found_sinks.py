"""Sinks as they were found: which positions, in which layers, by which rule, and how far beyond its threshold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from jaxtyping import Bool, Float, Int
from torch import Tensor

from lensplug.analysis.provenance import Provenance
from lensplug.analysis.result import Result
from lensplug.validation.arguments import check_example, checked

if TYPE_CHECKING:
    import pandas as pd

SinkRule = Literal["massive", "dimensions", "attention"]
RULES: tuple[SinkRule, ...] = get_args(SinkRule)
MEASURES = ("activation_ratio", "norm_ratio", "dimension", "received", "heads")
"""What is measured of each position in each layer."""


@dataclass(frozen=True, repr=False)
class Sinks(Result):
    """The sinks of a run; `sinks=` of every analysis that reads attention takes it."""

    label_columns = ("example", "layer", "position", "token", "modality", "rules")
    main_number = "received"
    example_depth = {"modalities": 0, "str_tokens": 0}

    found: Bool[Tensor, "example layer pos rule"]
    """Which rule found a position in a layer, in the order of `rules`; never padding."""
    activation_ratio: Float[Tensor, "example layer pos"]
    """The largest magnitude in the stream at the position, over the median magnitude of the layer; NaN for padding, and
    where the stream was not read."""
    norm_ratio: Float[Tensor, "example layer pos"]
    """The norm of the stream at the position, over the median norm of the example's positions."""
    dimension: Float[Tensor, "example layer pos"]
    """The largest of the sink dimensions there, over the root mean square of all; NaN where the first position has no
    sink dimension."""
    received: Float[Tensor, "example layer pos"]
    """The mean share of attention (0 to 1) that later positions give it, over heads; NaN where none is later."""
    heads: Float[Tensor, "example layer pos"]
    """The fraction of heads in which most of the queries look at it; NaN where too few queries see it."""
    rules: tuple[SinkRule, ...]
    thresholds: Mapping[str, float]
    """What each rule asked for."""
    modalities: tuple[tuple[str, ...], ...]
    """Modality of each position."""
    str_tokens: tuple[tuple[str, ...], ...]
    """Text of each position; "" where it was not given."""
    provenance: Provenance

    @property
    def by_layer(self) -> Bool[Tensor, "example layer pos"]:
        """Whether a position is a sink in a layer, by any rule."""
        return self.found.any(dim=-1)

    @property
    def mask(self) -> Bool[Tensor, "example pos"]:
        """The sinks of the run: in at least `min_layers` layers. What analyses leave out."""
        return self.by_layer.sum(dim=1) >= int(self.thresholds["min_layers"])

    @property
    def positions(self) -> list[list[int]]:
        """The sinks of each example, from the left."""
        return [row.nonzero()[:, 0].tolist() for row in self.mask]

    @property
    def count(self) -> Int[Tensor, " example"]:
        """How many there are."""
        return self.mask.sum(dim=1)

    @property
    def in_words(self) -> str:
        """The rules and their thresholds: what the results of other analyses say of sinks that were left out."""
        asked = self.thresholds
        words = {
            "massive": f"massive: |x| >= {asked.get('ratio', 0):g} medians and >= {asked.get('magnitude', 0):g}",
            "dimensions": f"dimensions: |x| > {asked.get('tau', 0):g} rms where the first position has it",
            "attention": f"attention: > {asked.get('times', 0):g} even shares from > {asked.get('queries', 0):.0%} of"
            f" >= {asked.get('min_queries', 0):g} later queries in > {asked.get('heads', 0):.0%} of heads",
        }
        layers = asked["min_layers"]
        return "; ".join([*(words[rule] for rule in self.rules), f"in {layers:g} layer{'s' * (layers > 1)} or more"])

    @checked
    def by_position(self, example: int = 0) -> dict[str, Float[Tensor, " pos"]]:
        """The mean share of attention that each position receives in each layer, for overlays.

        Raises:
            LensplugError: If there is no such example.
        """
        check_example(example, len(self.found))
        return {f"layer {layer}": row for layer, row in enumerate(self.received[example])}

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each sink in each layer, with the rules that found it and what was measured there."""
        import pandas as pd

        example, layer, position = self.by_layer.nonzero(as_tuple=True)
        places = list(zip(example.tolist(), layer.tolist(), position.tolist(), strict=True))
        names = [[rule for rule, is_so in zip(self.rules, self.found[place].tolist(), strict=True) if is_so]
                 for place in places]  # fmt: skip
        return pd.DataFrame(
            {
                "example": example.numpy(),
                "layer": layer.numpy(),
                "position": position.numpy(),
                "token": pd.Series([self.str_tokens[of][at] for of, _, at in places], dtype=object),
                "modality": pd.Series([self.modalities[of][at] for of, _, at in places], dtype=object),
                "rules": pd.Series(["+".join(rules) for rules in names], dtype=object),
                **{name: getattr(self, name)[example, layer, position].double().numpy() for name in MEASURES},
            }
        )

"""What an analysis returns: a frozen result that knows how it was made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from lensplug.errors import LensplugError

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Provenance:
    """How a result was made."""

    analysis: str
    """The function."""
    model: str
    dtype: str
    """Of the activations."""
    convention: str
    """What could be read two ways, said in words."""
    versions: Mapping[str, str]

    @classmethod
    def of(cls, cache: Any, analysis: str, convention: str) -> Provenance:
        """The provenance of a result that `analysis` reads from `cache`."""
        made = cls.of_model(cache.model, analysis, convention)
        if made.dtype:
            return made
        found = {value.dtype for value in cache.values() if value.is_floating_point()}
        return replace(made, dtype=", ".join(sorted(str(one).removeprefix("torch.") for one in found)))

    @classmethod
    def of_model(cls, model: Any, analysis: str, convention: str) -> Provenance:
        """The provenance of a result that `analysis` gets by running `model`; dtype "" where it does not say."""
        cfg = getattr(model, "cfg", None)
        # The model's dtype where it is known: norm scales are fp32 in every model, and not in every cache.
        known = getattr(cfg, "dtype", None)
        dtype = str(known).removeprefix("torch.") if known else ""
        name = getattr(cfg, "model_name", None) or "unknown"
        packages = ("lensplug", "transformer-lens", "transformers", "torch")
        return cls(analysis, name, dtype, convention, {p: version(p) for p in packages})


class Result:
    """A result of an analysis; a notebook shows it as its picture."""

    label_columns: ClassVar[tuple[str, ...]] = ()
    """The columns of `to_dataframe` that say what is measured; `compare` aligns two results by them."""
    main_number: ClassVar[str] = ""
    """The column that matters most."""
    provenance: Provenance

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each thing that is measured."""
        raise NotImplementedError

    def by_position(self, example: int = 0) -> dict[str, Float[Tensor, " pos"]]:
        """One value for each position of an example, under names ("layer 0"): what overlays draw.

        Raises:
            LensplugError: If this result has no such values.
        """
        raise LensplugError(f"{type(self).__name__} has no value for each position: nothing to lay over a picture.")

    def __repr__(self) -> str:
        # Shapes, not numbers: the numbers are in the picture, and in to_dataframe.
        tensors = [
            f"{name} {list(value.shape)}" for name, value in vars(self).items() if isinstance(value, torch.Tensor)
        ]
        made = f"{self.provenance.model}: {self.provenance.convention}"
        return f"{type(self).__name__}({', '.join(tensors)}; {made})"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> Any:
        # Looked up when a notebook asks, so that an analysis never needs a picture library.
        return import_module("lensplug.views").draw(self)._repr_mimebundle_(include, exclude)


def check_example(example: int, n_examples: int) -> None:
    """Refuse an example that a result does not have."""
    if not 0 <= example < n_examples:
        raise LensplugError(f"example is {example}, the result has {n_examples}, counted from 0.")

"""What an analysis returns: a frozen result that knows how it was made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, ParamSpec, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from lensplug.analysis.combined import combined
from lensplug.analysis.over_examples import OverExamples
from lensplug.analysis.provenance import Provenance
from lensplug.analysis.saved_fields import save_fields
from lensplug.errors import LensplugError
from lensplug.printable import printable
from lensplug.validation.arguments import admitted

if TYPE_CHECKING:
    import pandas as pd


P = ParamSpec("P")
AnyResult = TypeVar("AnyResult", bound="Result")


class Result:
    """A result of an analysis; a notebook displays it as a figure."""

    label_columns: ClassVar[tuple[str, ...]] = ()
    """The columns of `to_dataframe` that say what is measured; `compare` aligns two results by them."""
    axis_labels: ClassVar[Mapping[str, tuple[str, tuple[str, ...]]]] = {}
    """Axis whose entries differ between examples -> the field that names them, and every name there is."""
    example_depth: ClassVar[Mapping[str, int]] = {}
    """Field of texts -> how deep in it the examples are: 0 where it has one entry for each (`combine`)."""
    main_number: ClassVar[str] = ""
    """The column that matters most."""
    provenance: Provenance
    standard_errors: ClassVar[Mapping[str, str]] = {}
    """Column that is a mean over examples -> the column with its standard error."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "to_dataframe" in vars(cls):
            setattr(cls, "to_dataframe", _with_provenance(cls.to_dataframe))  # noqa: B010,  mypy knows it as a method

    def save(self, path: str | Path) -> Path:
        """Write the result to one file, which `lensplug.read(path)` opens without a model.

        Args:
            path: Where; the file is in the safetensors format whatever its name, `.safetensors` says so to others.

        Returns:
            The path.

        Raises:
            LensplugError: If it cannot be written there.
        """
        return save_fields(self, path)

    @classmethod
    def combine(cls: type[AnyResult], results: Sequence[AnyResult]) -> AnyResult:
        """Several results of this class and one model as one, example after example.

        Args:
            results: Results of one analysis with the same options; prompts of one length where a field has an entry for
                each position.

        Returns:
            A result with the examples of all.

        Raises:
            LensplugError: If they are of several models or options, differ in more than their examples, or have none.
        """
        admitted(results, Sequence[cls], "results")  # type: ignore[valid-type]
        return combined(results, cls.example_depth)

    def by_example(self) -> Mapping[str, Float[Tensor, "example row"]]:
        """The per-example values of the columns with a standard error, in the rows of `to_dataframe`.

        `compare` takes differences example by example from it.
        """
        return {}

    def over_examples(self) -> OverExamples:
        """Numbers of each example in rows that all examples share, for statistics over a data set.

        Raises:
            LensplugError: If this result has none.
        """
        raise LensplugError(f"{type(self).__name__} has no numbers of each example that could be averaged.")

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each thing that is measured."""
        raise NotImplementedError

    def by_position(self, example: int = 0) -> dict[str, Float[Tensor, " pos"]]:
        """One value for each position of an example, under names ("layer 0"): what overlays draw.

        Raises:
            LensplugError: If this result has no such values.
        """
        raise LensplugError(f"{type(self).__name__} has no value for each position: nothing to lay over a picture.")

    @property
    def shares(self) -> bool:
        """Whether `by_position` gives shares of attention, which may be added up and averaged."""
        return False

    def __repr__(self) -> str:
        # Shapes, not numbers: the numbers are in the figure, and in to_dataframe.
        tensors = [
            f"{name} {list(value.shape)}" for name, value in vars(self).items() if isinstance(value, torch.Tensor)
        ]
        description = f"{self.provenance.model}: {self.provenance.convention}"
        return f"{type(self).__name__}({', '.join(tensors)}; {printable(description)})"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> Any:
        # Looked up when a notebook asks, so that an analysis never needs a plotting library.
        return import_module("lensplug.views").draw(self)._repr_mimebundle_(include, exclude)


def _with_provenance(to_dataframe: Callable[P, pd.DataFrame]) -> Callable[P, pd.DataFrame]:
    """The method, whose table says in `attrs` how its numbers were made; to_parquet writes them too."""

    @wraps(to_dataframe)
    def with_provenance(*args: P.args, **kwargs: P.kwargs) -> pd.DataFrame:
        table = to_dataframe(*args, **kwargs)
        fields = vars(args[0])
        if "provenance" in fields:
            table.attrs["provenance"] = asdict(fields["provenance"])
        else:  # of several results
            table.attrs["provenances"] = [asdict(provenance) for provenance in fields["provenances"]]
        return table

    return with_provenance


def one_row(result: Result, example: int, name: str) -> Float[Tensor, " pos"]:
    """The one value for each position that a result has of an example.

    Raises:
        LensplugError: If it has none, or several for each position.
    """
    rows = result.by_position(example)
    if len(rows) != 1:
        kind, first = type(result).__name__, next(iter(rows), "")
        more = ", ..." if len(rows) > 3 else ""
        raise LensplugError(
            f"{name} is a {kind} with {len(rows)} maps ({', '.join(map(repr, list(rows)[:3]))}{more}): give one,"
            f" result.by_position()[{first!r}], or make the result of one row."
        )
    return next(iter(rows.values()))

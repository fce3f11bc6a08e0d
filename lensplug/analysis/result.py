"""What an analysis returns: a frozen result that knows how it was made."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, ParamSpec, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from lensplug.cache.activation_cache import ActivationCache, known
from lensplug.errors import LensplugError, LensplugWarning
from lensplug.printable import printable
from lensplug.provenance.fingerprint import fingerprint
from lensplug.provenance.public_names import public_name
from lensplug.provenance.versions import versions
from lensplug.validation.arguments import admitted

if TYPE_CHECKING:
    import pandas as pd


P = ParamSpec("P")
AnyResult = TypeVar("AnyResult", bound="Result")


@dataclass(frozen=True)
class Provenance:
    """How a result was made."""

    analysis: str
    """The function."""
    model: str
    dtype: str
    """The dtype of the activations."""
    convention: str
    """The conventions of the computation, as text."""
    versions: Mapping[str, str]
    weights: str = ""
    """A fingerprint of the weights that ran (`lensplug.provenance.fingerprint`): two checkpoints of one name have two;
    "" where they are not known."""
    query: str = ""
    """The position that was asked about, as it was asked; "" where rows of the result say it, or it has none."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Options that the convention does not state."""

    @classmethod
    def of(
        cls,
        cache: ActivationCache,
        analysis: str,
        convention: str,
        *,
        query: Any = None,
        options: Mapping[str, Any] | None = None,
    ) -> Provenance:
        """The provenance of a result that `analysis` reads from `cache`.

        Args:
            cache: The ActivationCache.
            analysis: The function's name.
            convention: The conventions of the computation, as text.
            query: The position that was asked about, as the user gave it: a number, or one for each example.
            options: Other options that change numbers.
        """
        weights = known(cache, "weights")
        if weights is None:
            weights = fingerprint(cache.model)
            if cache.model is not None:
                setattr(cache, "weights", weights)  # noqa: B010,  the weights of this run; a cache is read by many analyses
        provenance = cls.of_model(cache.model, analysis, convention, query=query, options=options, weights=weights)
        if provenance.dtype:
            return provenance
        dtypes = {value.dtype for value in cache.values() if value.is_floating_point()}
        return replace(provenance, dtype=", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes)))

    @classmethod
    def of_model(
        cls,
        model: Any,
        analysis: str,
        convention: str,
        *,
        query: Any = None,
        options: Mapping[str, Any] | None = None,
        weights: str | None = None,
    ) -> Provenance:
        """The provenance of a result that `analysis` gets by running `model`; dtype "" where it does not say."""
        cfg = getattr(model, "cfg", None)
        # The model's dtype where it is known: norm scales are fp32 in every model, and not in every cache.
        dtype = getattr(cfg, "dtype", None)
        return cls(
            analysis=analysis,
            model=public_name(getattr(cfg, "model_name", None) or "unknown"),  # a bridge is called by its folder's path
            dtype=str(dtype).removeprefix("torch.") if dtype else "",
            convention=convention,
            versions=versions("lensplug", "transformer-lens", "transformers", "torch"),
            weights=fingerprint(model) if weights is None else weights,
            query=_asked(query),
            options={name: str(value) for name, value in (options or {}).items()},
        )


def _asked(query: Any) -> str:
    """A query as text; results whose examples have different queries can be combined."""
    if query is None:
        return ""
    numbers = query.flatten().tolist() if isinstance(query, Tensor) else query
    if isinstance(numbers, Iterable):
        return "one for each example" if len(list(numbers)) > 1 else str(next(iter(numbers)))
    return str(numbers)


def refuse_other_making(results: Sequence[Result], *, verb: str = "combined", may_differ: Sequence[str] = ()) -> None:
    """Refuse results that were not made alike, by the name of what differs; versions that differ are warned of.

    Args:
        results: Results of one analysis.
        verb: What they are for: "combined", "compared".
        may_differ: Fields of `Provenance` that need not be the same.

    Raises:
        LensplugError: If there are no results, or one differs from the first.
    """
    if not results:
        raise LensplugError(f"there are no results to be {verb}.")
    first = results[0].provenance
    for index, provenance in enumerate((result.provenance for result in results[1:]), start=1):
        differing = [
            f"{description}: {getattr(first, name)!r} in the first and {getattr(provenance, name)!r} in result {index}"
            for name, description in SAME.items()
            if name not in may_differ and getattr(first, name) != getattr(provenance, name)
        ]
        if differing:
            raise LensplugError(
                f"results of different {'conventions' if 'model' in may_differ else 'models or conventions'} cannot be"
                f" {verb}. What differs is the {'; the '.join(differing)} (counted from 0). Make them with"
                f" {'' if 'model' in may_differ else 'one model and '}the same options."
            )
    _warn_of_versions([result.provenance for result in results], verb)


SAME = {
    "analysis": "analysis",
    "model": "model",
    "weights": "fingerprint of the weights (two checkpoints of one name, weights that were changed, or processed)",
    "dtype": "dtype",
    "convention": "convention",
    "query": "query position",
    "options": "options",
}
"""What must be the same in results that are put together, and what it is called."""


def _warn_of_versions(provenances: Sequence[Provenance], verb: str) -> None:
    """One warning that names every package with more than one version."""
    packages = dict.fromkeys(name for provenance in provenances for name in provenance.versions)
    versions = {
        name: list(dict.fromkeys(provenance.versions.get(name, "unknown") for provenance in provenances))
        for name in packages
    }
    several = [f"{name} ({', '.join(numbers)})" for name, numbers in versions.items() if len(numbers) > 1]
    if several:
        warnings.warn(
            f"results of different versions of {', '.join(several)} are {verb}: numbers may differ a little by that"
            " alone.",
            LensplugWarning,
            stacklevel=4,
        )


class Result:
    """A result of an analysis; a notebook displays it as a figure."""

    label_columns: ClassVar[tuple[str, ...]] = ()
    """The columns of `to_dataframe` that say what is measured; `compare` aligns two results by them."""
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
        path_written: Path = import_module("lensplug.analysis.saved_results").save_result(self, path)
        return path_written

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
        joined: AnyResult = import_module("lensplug.analysis.combined").combined(results)
        return joined

    def by_example(self) -> Mapping[str, Float[Tensor, "example row"]]:
        """The per-example values of the columns with a standard error, in the rows of `to_dataframe`.

        `compare` takes differences example by example from it.
        """
        return {}

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

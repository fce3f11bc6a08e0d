"""How a result was made, and which results may be put together."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from lensplug.cache.activation_cache import ActivationCache, known
from lensplug.errors import LensplugError, LensplugWarning
from lensplug.provenance.fingerprint import fingerprint
from lensplug.provenance.public_names import public_name
from lensplug.provenance.versions import versions


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
        edits = known(cache, "interventions") or ()
        provenance = cls.of_model(
            cache.model, analysis, convention, query=query, options=options, weights=weights, interventions=edits
        )
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
        interventions: Sequence[str] | None = None,
    ) -> Provenance:
        """The provenance of a result that `analysis` gets by running `model`; dtype "" where it does not say.

        The edits under which it ran are an option of the result; None: those that are in force.
        """
        edits = tuple(getattr(model, "interventions", ()) if interventions is None else interventions)
        options = {**(options or {}), **({"interventions": "; ".join(edits)} if edits else {})}
        if proof := getattr(model, "proof", ""):  # of cores that lensplug's own tests do not cover
            options["proof"] = proof
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
            options={name: str(value) for name, value in options.items()},
        )


def _asked(query: Any) -> str:
    """A query as text; results whose examples have different queries can be combined."""
    if query is None:
        return ""
    numbers = query.flatten().tolist() if isinstance(query, Tensor) else query
    if isinstance(numbers, Iterable):
        return "one for each example" if len(list(numbers)) > 1 else str(next(iter(numbers)))
    return str(numbers)


@runtime_checkable  # the tests check annotations while the code runs
class Made(Protocol):
    """A result, as far as its making goes."""

    @property
    def provenance(self) -> Provenance:
        """How it was made."""


def refuse_other_making(results: Sequence[Made], *, verb: str = "combined", may_differ: Sequence[str] = ()) -> None:
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

"""What a study measures of each example: an analysis with its options, checked as far as it can be without a model."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, get_type_hints

import pandas as pd
import torch

from lensplug import analysis as analyses
from lensplug.analysis.result import Result
from lensplug.errors import LensplugError
from lensplug.interventions.as_json import from_json, to_json
from lensplug.interventions.edit import Edit
from lensplug.positions.tokens import single_token
from lensplug.study.identity import hash_of
from lensplug.study.ways import GIVEN, WAYS, OfColumn, Way
from lensplug.validation.arguments import admitted, described


@dataclass(frozen=True)
class Measurement:
    """One analysis with its options."""

    analysis: str
    """Its name in `lensplug.analysis`."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """As JSON holds them; `OfColumn` as {"column": name}."""
    name: str = ""
    """What its columns begin with; the analysis's name by default."""
    interventions: Sequence[Mapping[str, Any]] = ()
    """The edits under which it is measured, as JSON holds them."""

    @property
    def key(self) -> str:
        """What identifies it: an option that is given as its default is no other measurement."""
        edits = [list(self.interventions)] if self.interventions else []  # without, as before there were any
        return hash_of([self.analysis, self.changed, self.name, *edits])

    @property
    def edits(self) -> list[Edit]:
        """The edits."""
        return [from_json(stored) for stored in self.interventions]

    @cached_property
    def changed(self) -> Mapping[str, Any]:
        """The options that are not their defaults."""
        defaults = _defaults(self.function) | dict(self.way.defaults)
        return {
            name: value
            for name, value in self.options.items()
            if name not in defaults or not _equal(value, _lists(defaults[name]))
        }

    @property
    def in_words(self) -> str:
        """Options and edits, for an error."""
        return " under ".join([repr(dict(self.options)), *map(str, self.edits)])

    @property
    def way(self) -> Way:
        """How it is run."""
        return WAYS[self.analysis]

    @property
    def function(self) -> Callable[..., Any]:
        """The analysis itself."""
        function: Callable[..., Any] = getattr(analyses, self.analysis)
        return function

    @property
    def needed(self) -> Any:
        """What `needs` of a run is given for it: the analysis, with the options that may say which hooks it reads."""
        options = {name: value for name, value in self.options.items() if not isinstance(value, Mapping)}
        return partial(self.function, **options) if options else self.function

    def reads(self, hook: str) -> bool:
        """Whether it reads a hook."""
        with_options = getattr(self.function, "needs_with", None)
        needs = self.needed.func.needs_with(**self.needed.keywords) if with_options and self.options else None
        return bool((needs or getattr(self.function, "needs"))(hook))  # noqa: B009,  an analysis of a cache

    @cached_property
    def kind(self) -> type[Result]:
        """The class of its results."""
        kind: type[Result] = get_type_hints(inspect.unwrap(self.function))["return"]
        return kind

    def arguments(self, rows: pd.DataFrame, tokenizer: Any) -> dict[str, Any]:
        """The options for a batch, columns looked up.

        Raises:
            LensplugError: If a target is not one token.
        """
        values: dict[str, Any] = {}
        for name, value in self.options.items():
            if not isinstance(value, Mapping):
                values[name] = _pairs(self.analysis, name, value)
                continue
            column = rows[value["column"]].tolist()
            if self.analysis in ("logit_lens", "direct_attribution"):
                values[name] = torch.tensor([single_token(str(word), tokenizer) for word in column])
            else:
                values[name] = [str(text) for text in column]
        return values


def measurement_of(
    function: Callable[..., Any] | str,
    name: str | None,
    options: Mapping[str, Any],
    interventions: Sequence[Edit] = (),
) -> Measurement:
    """An analysis and its options, checked as far as they can be without a model.

    Raises:
        LensplugError: If a study cannot measure it, or an option is unknown or of another type.
    """
    called = function if isinstance(function, str) else getattr(function, "__name__", repr(function))
    if called not in WAYS or not (isinstance(function, str) or getattr(analyses, called) is function):
        raise LensplugError(
            f"a study does not measure {called!r}: it measures {', '.join(map(repr, WAYS))} of lensplug.analysis."
        )
    signature = inspect.signature(inspect.unwrap(getattr(analyses, called)))
    given = GIVEN if WAYS[called].reads_cache else GIVEN - {"modality"}
    allowed = {key: value for key, value in signature.parameters.items() if key not in given}
    for key, value in options.items():
        if key not in allowed:
            raise LensplugError(f"{called} takes no option {key!r} in a study: it takes {', '.join(allowed)}.")
        if not isinstance(value, OfColumn):
            hints = {**get_type_hints(inspect.unwrap(getattr(analyses, called))), **WAYS[called].hints}
            admitted(value, hints[key], key)
    if isinstance(options.get("query"), list | tuple):
        raise LensplugError("query is a list, and a study asks about one position of every example: give one number.")
    there = {*options, *WAYS[called].defaults}
    WAYS[called].refuse(options)
    missing = [key for key, value in allowed.items() if value.default is value.empty and key not in there]
    if missing:
        raise LensplugError(f"{called} needs {missing[0]}: study.measure(analysis.{called}, {missing[0]}=...).")
    plain = {key: _plain(key, value) for key, value in sorted(options.items())}
    return Measurement(called, plain, name or called, [to_json(edit) for edit in interventions])


def _plain(name: str, value: Any) -> Any:
    """An option as JSON, which reads it back the same."""
    if isinstance(value, OfColumn):
        return {"column": value.name}
    plain = _lists(value)
    try:
        if json.loads(json.dumps(plain, allow_nan=False)) == plain and not isinstance(plain, dict):
            return plain
    except (TypeError, ValueError):
        pass
    raise LensplugError(f"{name} is {described(value)}, and a study writes options into a file: give numbers or texts.")


def _defaults(function: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(inspect.unwrap(function)).parameters
    return {name: value.default for name, value in parameters.items() if value.default is not value.empty}


def _pairs(analysis: str, name: str, value: Any) -> Any:
    """An option as the analysis takes it: JSON has lists for its pairs."""
    if (analysis, name) == ("direct_attribution", "target") and isinstance(value, list):
        return tuple(value)
    return [tuple(pair) for pair in value] if (analysis, name) == ("information_flow", "paths") else value


def _equal(value: Any, default: Any) -> bool:
    """Whether they mean the same: True is not 1."""
    return isinstance(value, bool) == isinstance(default, bool) and bool(value == default)


def _lists(value: Any) -> Any:
    """Tuples and ranges as lists, which JSON has, also within lists: pairs of (layer, neuron)."""
    return [_lists(item) for item in value] if isinstance(value, list | tuple | range) else value

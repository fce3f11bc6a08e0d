"""What an analysis is, and the lens that one which runs the model is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, Protocol, TypeVar, cast, runtime_checkable


@runtime_checkable
class Lens(Protocol):
    """What an analysis that runs the model is given: `lensplug.load`, `wrap` and `tiny` make it."""

    model: Any
    core: Any
    engine: str
    prepare: Callable[..., Any]
    without: Callable[..., Any]
    logits_at: Callable[..., Any]
    logits_only: Callable[..., Any]
    run_with_cache: Callable[..., Any]

    @property
    def tokenizer(self) -> Any:
        """For words."""


P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)


@runtime_checkable  # the tests check annotations while the code runs
class Analysis(Protocol[P, R_co]):
    """A function of a cache that says which hooks it reads."""

    needs: Callable[[str], bool]
    """For `names_filter`: keeps what the analysis reads, nothing else."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Analyse."""


def needs(*endings: str) -> Callable[[Callable[P, R_co]], Analysis[P, R_co]]:
    """Mark an analysis with the hooks that it reads: those whose names end so, in every layer."""

    def mark(function: Callable[P, R_co]) -> Analysis[P, R_co]:
        analysis = cast("Analysis[P, R_co]", function)
        analysis.needs = lambda name: name.endswith(endings)
        return analysis

    return mark

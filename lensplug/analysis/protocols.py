"""What an analysis is, and the lens that one which runs the model is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, ParamSpec, Protocol, TypeVar, cast, runtime_checkable

from jaxtyping import Float, Int, Shaped
from torch import Tensor

from lensplug.cache.activation_cache import ActivationCache
from lensplug.inputs.edited_inputs import Variant
from lensplug.inputs.multimodal_input import MultimodalInput
from lensplug.interventions.knockout import Knockout
from lensplug.positions.indices import Positions
from lensplug.validation.masks import Mask


@runtime_checkable
class Lens(Protocol):
    """What an analysis that runs the model is given: `lensplug.load`, `wrap` and `tiny` make it."""

    model: Any
    """The language core as a TransformerLens model: a HookedTransformer or a TransformerBridge."""

    @property
    def core(self) -> Core:
        """What the model was made of."""

    @property
    def tokenizer(self) -> Any:
        """The Hugging Face tokenizer."""

    def prepare(
        self,
        text: Sequence[str],
        *,
        images: Any = None,
        videos: Any = None,
        audio: Any = None,
        answer: str | Sequence[str] | None = None,
    ) -> MultimodalInput:
        """Prompts, their media and given answers to what the core receives."""

    def without(self, inputs: MultimodalInput, positions: Mask) -> Variant:
        """The same prompts without some positions."""

    def with_media(
        self,
        inputs: MultimodalInput,
        *,
        images: Sequence[Any] | None = None,
        videos: Sequence[Any] | None = None,
        audio: Sequence[Any] | None = None,
    ) -> Variant:
        """One prompt with other media in the places of its own."""

    def logits_at(
        self, inputs: MultimodalInput | Variant, rows: Int[Tensor, "batch row"], *, hidden: Mask | None = None
    ) -> Float[Tensor, "batch row d_vocab"]:
        """Logits at a few positions, with some positions hidden from all others."""

    def logits_only(
        self, rows: Int[Tensor, "batch row"], *, whole_patterns: bool = False
    ) -> AbstractContextManager[None]:
        """While it lasts, `model` makes logits at these positions only."""

    def run_with_cache(
        self,
        inputs: MultimodalInput,
        *,
        names_filter: Callable[[str], bool] | Sequence[str] | None = None,
        query_positions: Positions | None = None,
        logit_positions: Positions | None = None,
    ) -> tuple[Float[Tensor, ...] | None, ActivationCache]:
        """Logits and the activations that an analysis reads."""

    def edited_runs(
        self,
        inputs: MultimodalInput,
        rows: Int[Tensor, "batch row"] | None = None,
        *,
        whole_patterns: bool = False,
        batch: int | None = None,
        gradients: bool = False,
    ) -> AbstractContextManager[EditedRuns]:
        """A scope of many runs of one prompt, each with an edit of its own: `lensplug.running.edited_runs`."""


@runtime_checkable
class EditedRuns(Protocol):
    """Many runs of one prompt, batched, and begun at the first layer that is edited."""

    batch: int
    """How many copies of the prompt run side by side."""
    unedited: Float[Tensor, "example row d_vocab"]
    """The logits of the prompt itself."""

    def logits(
        self,
        n_copies: int,
        hooks: Sequence[tuple[str, Callable[..., Any]]] = (),
        *,
        from_layer: int = 0,
        from_position: int = 0,
    ) -> Float[Tensor, "copy example row d_vocab"]:
        """The logits of copies of the prompt, edited by hooks on activations `[copy x example ...]`."""

    def under_each(
        self, variants: Sequence[Sequence[Knockout]], read: Callable[[Tensor], Tensor]
    ) -> Shaped[Tensor, "variant ..."]:
        """What is read of the logits under each of many knockouts."""


@runtime_checkable
class LensWithEdits(Lens, Protocol):
    """What an analysis that runs under edits is given: the same lenses."""

    def intervene(self, *edits: Any) -> AbstractContextManager[Any]:
        """A scope in which every run is made under edits of `lensplug.interventions`."""


@runtime_checkable
class Core(Protocol):
    """The language core of a Hugging Face model, as far as analyses read it: `lensplug.hf.language_core`."""

    @property
    def name(self) -> str:
        """Of the model."""

    @property
    def decoder(self) -> Any:
        """The Hugging Face module that takes embeddings."""

    @property
    def beside(self) -> tuple[str, ...]:
        """The names of what the model gives it besides embeddings and padding."""


P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)


@runtime_checkable  # the tests check annotations while the code runs
class Analysis(Protocol[P, R_co]):
    """A function of a cache that says which hooks it reads."""

    needs: Callable[[str], bool]
    """For `names_filter`: keeps what the analysis reads, nothing else."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Analyse."""


@runtime_checkable
class AnalysisWithOptions(Analysis[P, R_co], Protocol[P, R_co]):
    """An analysis whose options say which hooks it reads; `needs` is for its defaults."""

    needs_with: Callable[..., Callable[[str], bool]]
    """Takes the options of a call; returns what `needs` is for them."""


def needs(*endings: str) -> Callable[[Callable[P, R_co]], Analysis[P, R_co]]:
    """Mark an analysis with the hooks that it reads: those whose names end so, in every layer."""

    def mark(function: Callable[P, R_co]) -> Analysis[P, R_co]:
        analysis = cast("Analysis[P, R_co]", function)
        analysis.needs = lambda name: name.endswith(endings)
        return analysis

    return mark


def needs_with(
    reads: Callable[..., Callable[[str], bool]],
) -> Callable[[Callable[P, R_co]], AnalysisWithOptions[P, R_co]]:
    """Mark an analysis whose options say which hooks it reads.

    `lens.run_with_cache(needs=functools.partial(analysis.activations, hook="z"))` keeps what it reads with these.

    Args:
        reads: Takes the options of a call, and returns a function of a hook's name: whether it is read.
    """

    def mark(function: Callable[P, R_co]) -> AnalysisWithOptions[P, R_co]:
        analysis = cast("AnalysisWithOptions[P, R_co]", function)
        analysis.needs, analysis.needs_with = reads(), reads
        return analysis

    return mark

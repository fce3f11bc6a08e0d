"""Grounding: which words of an answer need what the model sees or hears.

Method, for an answer t₁ … tₙ to a prompt with a medium:

1. Read log p(tᵢ | prompt, medium, t₁ … tᵢ₋₁) for each token of the given answer, in one run.
2. Replace the medium by one that says nothing (a grey image or frames of the same size, silence of the same length), so
   that no position moves, and read the same again.
3. difference[i] = log p(tᵢ | medium) - log p(tᵢ | blank medium), in nats: above 0 the medium made the token more
   probable, 0 the words before it are enough, below 0 the medium spoke against it. The sum over an answer is its log
   likelihood ratio.
4. With `knockout=True`, the medium is taken away in another way beside it: it stays, and no position sees those of the
   medium, in any layer (attention knockout). Nothing is said by a blank then; but heads must look elsewhere.

When to use it: for answers of several words, to tell words that the medium gave from words that the language model
would have written in any case (candidates of hallucination), and over a data set.

When not to use it: to tell whether the medium alone would be enough, or only together with the question
(`modality_interaction`). A blank medium is out of distribution as well, and another blank may give other numbers
(compare `modality_ablation`, whose methods differ). Where the model already is certain, log-probabilities near 0
cannot rise.

Example:
    examples = [analysis.Example("What is the color? Answer single word.", "Red", images=[picture])]
    result = analysis.grounding(lens, examples, "image")
    result.difference                        # [example token]
    views.grounding(result)
    result.to_dataframe()
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from lensplug.analysis.interventions.ablation_run import Example, prepared, without_medium
from lensplug.analysis.interventions.given_answers import (
    answer_positions,
    answer_texts,
    lengthened,
    log_probabilities,
    refuse_without_answers,
)
from lensplug.analysis.over_examples import OverExamples
from lensplug.analysis.protocols import Lens
from lensplug.analysis.provenance import Provenance, refuse_other_making
from lensplug.analysis.result import Result
from lensplug.errors import LensplugError
from lensplug.positions.modality_map import MediumName
from lensplug.validation.arguments import at_least, checked

if TYPE_CHECKING:
    import pandas as pd

BLANK = {"image": "a grey image of the same size", "video": "grey frames", "audio": "silence of the same length"}
"""What each medium is replaced by."""


@dataclass(frozen=True, repr=False)
class Grounding(Result):
    """Log-probabilities of given answers, token by token, with a medium and with a blank one."""

    label_columns = ("example", "index", "token")
    main_number = "difference"
    example_depth = {"texts": 0}

    with_medium: Float[Tensor, "example token"]
    """Log-probability of each token of the answer, in nats; NaN after the end of a shorter answer."""
    with_blank: Float[Tensor, "example token"]
    """The same with the blank medium."""
    texts: tuple[tuple[str, ...], ...]
    """The tokens of each answer."""
    medium: str
    provenance: Provenance
    with_knockout: Float[Tensor, "example token"] | None = None
    """The same with the medium in its place and seen by no position; None where it was not asked for."""

    @property
    def difference(self) -> Float[Tensor, "example token"]:
        """With the medium minus with the blank one, in nats: what the medium adds to each token."""
        return self.with_medium - self.with_blank

    @property
    def knockout_difference(self) -> Float[Tensor, "example token"] | None:
        """With the medium minus with it knocked out, in nats; None where it was not asked for."""
        return None if self.with_knockout is None else self.with_medium - self.with_knockout

    @property
    def total(self) -> Float[Tensor, " example"]:
        """The difference of the whole answer, in nats: its log likelihood ratio."""
        return self.difference.nansum(dim=1)

    @classmethod
    @checked
    def combine(cls, results: Sequence[Grounding]) -> Grounding:
        """The answers of several results as one; shorter ones end with NaN.

        Raises:
            LensplugError: If they are of several models or options, or there is none.
        """
        refuse_other_making(results)
        longest = max(result.with_medium.shape[1] for result in results)
        names = ["with_medium", "with_blank", *([] if results[0].with_knockout is None else ["with_knockout"])]
        joined: dict[str, Any] = {
            name: torch.cat([lengthened(getattr(result, name), longest) for result in results]) for name in names
        }
        return replace(results[0], texts=tuple(text for result in results for text in result.texts), **joined)

    def over_examples(self) -> OverExamples:
        """The difference of each whole answer, and its mean over tokens, in nats."""
        each_token = self.difference.nanmean(dim=1)
        return OverExamples({}, {"total": self.total[:, None].double(), "mean_of_tokens": each_token[:, None].double()})

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each example and token of its answer."""
        import pandas as pd

        difference, of_knockout = self.difference, self.knockout_difference
        return pd.DataFrame(
            {
                "example": example,
                "index": index,
                "token": token,
                "log_probability": float(self.with_medium[example, index]),
                "log_probability_blank": float(self.with_blank[example, index]),
                "difference": float(difference[example, index]),
                **({} if of_knockout is None else {"knockout_difference": float(of_knockout[example, index])}),
            }
            for example, tokens in enumerate(self.texts)
            for index, token in enumerate(tokens)
        )


@checked
def grounding(
    lens: Lens,
    examples: Sequence[Example],
    medium: MediumName,
    *,
    knockout: bool = False,
    batch_size: int = 8,
    progress: Callable[[str], None] = lambda step: None,
) -> Grounding:
    """Compare the log-probability of each token of given answers with that under a blank medium.

    Args:
        lens: From `lensplug.load`, `wrap` or `tiny`.
        examples: Prompts with media, each with the answer (a text) whose tokens are looked at: a right answer, or what
            `lens.generate` wrote.
        medium: Which medium is replaced: "image", "video" or "audio".
        knockout: Read the answers with attention to the medium knocked out, too: a third run of each.
        batch_size: How many prompts run at once.
        progress: Called with a few words before each batch.

    Returns:
        Log-probabilities `[example token]` under each.

    Raises:
        LensplugError: If there are no examples, one lacks the medium or an answer, or an answer is not a text.
    """
    at_least(1, batch_size=batch_size)
    refuse_without_answers(examples)
    parts = []
    for start in range(0, len(examples), batch_size):
        progress(f"reading answers, example {start + 1} of {len(examples)}")
        parts.append(_of_batch(lens, examples[start : start + batch_size], medium, knockout=knockout))
    return Grounding.combine(parts)


def _of_batch(lens: Lens, examples: Sequence[Example], medium: MediumName, *, knockout: bool) -> Grounding:
    inputs = prepared(lens, examples, with_answers=True)
    for example, has_medium in zip(examples, inputs.modality.mask(medium).any(dim=1).tolist(), strict=True):
        if not has_medium:
            raise LensplugError(f"the example {example.text!r} has no {medium}: there is nothing to replace.")
    blank = prepared(lens, [without_medium(example, medium) for example in examples], with_answers=True)
    if not torch.equal(inputs.tokens, blank.tokens):
        raise LensplugError(f"a blank {medium} has another number of positions here: no token could be compared.")
    positions, exists = answer_positions(inputs)
    without = "; and against attention to it knocked out" if knockout else ""
    cut = lens.logits_at(inputs, positions - 1, hidden=inputs.modality.mask(medium)) if knockout else None
    return Grounding(
        with_medium=log_probabilities(lens.logits_at(inputs, positions - 1), inputs, positions, exists),
        with_blank=log_probabilities(lens.logits_at(blank, positions - 1), blank, positions, exists),
        texts=answer_texts(inputs),
        medium=medium,
        provenance=Provenance.of_model(
            lens.model, "grounding", f"log-probability of given answers; {medium} against {BLANK[medium]}{without}"
        ),
        with_knockout=None if cut is None else log_probabilities(cut, inputs, positions, exists),
    )

"""Interaction of a medium and the text: does the answer need both together, or is one of them enough?

Method, for an answer t₁ … tₙ to a prompt of a text T and a medium I, and v = log p(tᵢ | prompt, t₁ … tᵢ₋₁):

1. Read v of each token of the given answer four times: with both, v(IT); with the words of the prompt taken away, v(I);
   with the medium taken away, v(T); with both taken away, v(∅).
2. The medium alone adds v(I) - v(∅), the text alone v(T) - v(∅), and both together add beyond that the

       interaction = v(IT) - v(I) - v(T) + v(∅)

   in nats, so that v(IT) - v(∅) is the sum of the three. Above 0 one is of more use where the other is there; 0: each
   adds what it adds in any case; below 0 either is enough.

"No medium" is a blank one that goes through the processor (a grey image or grey frames of the same size, silence of the
same length). "No text": the embeddings of the words of `Example.text` are replaced by the mean of the embeddings of all
tokens; what the model's chat template writes around them (roles, turns, the placeholders of media), special tokens,
`Example.keep` and the tokens of the answer stay. No position moves.

When to use it: to tell answers that combine what is seen and what is asked from those that the words give away
(Hessel & Lee 2020, "Does my multimodal model learn cross-modal interactions? It's harder to tell than you might
think!", arXiv 2010.06572, ask how good a model is without such interactions), and over a data set.

When not to use it: prompts without words are out of distribution, and what a model says to them depends on its chat
template. Values are for these two ways of taking away; the interaction is that of log-probabilities, and can vanish or
change its sign for logits or probabilities. Where the model already is certain, log-probabilities near 0 cannot rise,
which alone makes interactions negative.

Source: the interaction index of two players (Grabisch & Roubens 1999).

Example:
    examples = [analysis.Example("What is the color? Answer single word.", "Red", images=[picture])]
    result = analysis.modality_interaction(lens, examples, "image")
    result.interaction                       # [example token]
    result.summary()                         # of whole answers
    views.modality_interaction(result)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from lensplug.analysis.interventions.ablation_run import Example, prepared, without_medium, written_words
from lensplug.analysis.interventions.given_answers import (
    answer_positions,
    answer_texts,
    lengthened,
    log_probabilities,
    refuse_without_answers,
)
from lensplug.analysis.interventions.grounding import BLANK
from lensplug.analysis.over_examples import OverExamples
from lensplug.analysis.protocols import Lens
from lensplug.analysis.provenance import Provenance, refuse_other_making
from lensplug.analysis.regions.prompt_words import without_words
from lensplug.analysis.result import Result
from lensplug.errors import LensplugError
from lensplug.inputs.edited_inputs import in_place
from lensplug.positions.modality_map import MediumName
from lensplug.validation.arguments import at_least, checked

if TYPE_CHECKING:
    import pandas as pd

Present = Literal["both", "medium", "text", "neither"]
"""What there is of a prompt."""
CONDITIONS: tuple[Present, ...] = get_args(Present)


@dataclass(frozen=True, repr=False)
class ModalityInteraction(Result):
    """Log-probabilities of given answers, token by token, with a medium, with the text, with both and with neither."""

    label_columns = ("example", "index", "token")
    main_number = "interaction"
    example_depth = {"texts": 0}

    log_probability: Float[Tensor, "condition example token"]
    """With both, the medium alone, the text alone, neither; in nats, NaN after the end of a shorter answer."""
    texts: tuple[tuple[str, ...], ...]
    """The tokens of each answer."""
    medium: str
    provenance: Provenance

    @property
    def by_medium(self) -> Float[Tensor, "example token"]:
        """What the medium alone adds, in nats."""
        return self.log_probability[1] - self.log_probability[3]

    @property
    def by_text(self) -> Float[Tensor, "example token"]:
        """What the text alone adds, in nats."""
        return self.log_probability[2] - self.log_probability[3]

    @property
    def interaction(self) -> Float[Tensor, "example token"]:
        """What both together add beyond what each adds alone, in nats."""
        both, medium, text, neither = self.log_probability
        together: Tensor = both - medium - text + neither
        return together

    def summary(self) -> pd.DataFrame:
        """For each example the sums over its answer: the four log-probabilities, and what adds how much, in nats."""
        import pandas as pd

        whole = self.log_probability.nansum(dim=2)
        columns = dict(zip(CONDITIONS, whole, strict=True)) | self._effects()
        answers = {"answer": ["".join(tokens) for tokens in self.texts]}
        return pd.DataFrame(answers | {name: values.tolist() for name, values in columns.items()}).rename_axis(
            "example"
        )

    def _effects(self) -> dict[str, Float[Tensor, " example"]]:
        """Of whole answers."""
        parts = {"by_medium": self.by_medium, "by_text": self.by_text, "interaction": self.interaction}
        return {name: values.nansum(dim=1) for name, values in parts.items()}

    @classmethod
    @checked
    def combine(cls, results: Sequence[ModalityInteraction]) -> ModalityInteraction:
        """The answers of several results as one; shorter ones end with NaN.

        Raises:
            LensplugError: If they are of several models or options, or there is none.
        """
        refuse_other_making(results)
        longest = max(result.log_probability.shape[2] for result in results)
        values = torch.cat([lengthened(result.log_probability, longest) for result in results], dim=1)
        texts = tuple(text for result in results for text in result.texts)
        return replace(results[0], log_probability=values, texts=texts)

    def over_examples(self) -> OverExamples:
        """The interaction of each whole answer, and what medium and text add alone, in nats."""
        effects = self._effects()
        order = ("interaction", "by_medium", "by_text")
        return OverExamples({}, {name: effects[name][:, None].double() for name in order})

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each example and token of its answer."""
        import pandas as pd

        columns = {f"log_probability_{name}": row for name, row in zip(CONDITIONS, self.log_probability, strict=True)}
        columns |= {"by_medium": self.by_medium, "by_text": self.by_text, "interaction": self.interaction}
        return pd.DataFrame(
            {"example": example, "index": index, "token": token}
            | {name: float(values[example, index]) for name, values in columns.items()}
            for example, tokens in enumerate(self.texts)
            for index, token in enumerate(tokens)
        )


@checked
def modality_interaction(
    lens: Lens,
    examples: Sequence[Example],
    medium: MediumName,
    *,
    batch_size: int = 8,
    progress: Callable[[str], None] = lambda step: None,
) -> ModalityInteraction:
    """The log-probability of each token of given answers with both, either and neither of medium and text.

    Args:
        lens: From `lensplug.load`, `wrap` or `tiny`.
        examples: Prompts with media, each with the answer (a text) whose tokens are looked at.
        medium: Which medium: "image", "video" or "audio".
        batch_size: How many prompts run at once.
        progress: Called with a few words before each batch.

    Returns:
        Log-probabilities `[condition example token]`.

    Raises:
        LensplugError: If there are no examples, one lacks the medium, words or an answer, or an answer is not a text.
    """
    at_least(1, batch_size=batch_size)
    refuse_without_answers(examples)
    parts = []
    for start in range(0, len(examples), batch_size):
        progress(f"reading answers, example {start + 1} of {len(examples)}")
        parts.append(_of_batch(lens, examples[start : start + batch_size], medium))
    return ModalityInteraction.combine(parts)


def _of_batch(lens: Lens, examples: Sequence[Example], medium: MediumName) -> ModalityInteraction:
    inputs = prepared(lens, examples, with_answers=True)
    blank = prepared(lens, [without_medium(example, medium) for example in examples], with_answers=True)
    words = written_words(lens, examples, inputs)
    for kind, there in ((medium, inputs.modality.mask(medium)), ("word that could be taken away", words)):
        for example, found in zip(examples, there.any(dim=1).tolist(), strict=True):
            if not found:
                raise LensplugError(f"the example {example.text!r} has no {kind}: nothing can interact.")
    if not torch.equal(inputs.tokens, blank.tokens):
        raise LensplugError(f"a blank {medium} has another number of positions here: no token could be compared.")
    positions, exists = answer_positions(inputs)
    values = [
        log_probabilities(lens.logits_at(variant, positions - 1), seen, positions, exists)
        for variant, seen in (
            (inputs, inputs),
            (in_place(inputs, without_words(lens, inputs, words)), inputs),
            (blank, blank),
            (in_place(blank, without_words(lens, blank, words)), blank),
        )
    ]
    convention = (
        f"log-probability of given answers; {medium} against {BLANK[medium]}, words against the mean embedding of all"
        " tokens"
    )
    return ModalityInteraction(
        log_probability=torch.stack(values),
        texts=answer_texts(inputs),
        medium=medium,
        provenance=Provenance.of_model(lens.model, "modality_interaction", convention),
    )

"""Modality ablation: what does the model use a modality for?

Method:

1. Run each prompt as it is, and with one modality ablated.
2. As a control, ablate the same number of text positions in the same way: the effect of losing that many positions in
   any case.
3. Score a closed set of answers by log-probability in each condition, and compare the argmax: accuracy, F1, and the
   fraction of changed answers. If the modality is used, more answers change than under the control.

Methods of ablation: "remove" takes the positions out of the prompt; "zero", "mean" and "noise" replace their merged
embeddings (mean and noise match the statistics of the modality over all examples); "silence" and "blank" replace the
medium itself, by silence or a gray image, before the encoder.

Answers of several tokens ("frustrated" in LLaMA's vocabulary) are scored as sequences; for `scoring="sum"`:
score(a) = Σ_t log p(a_t | prompt, a_<t).

When to use it: to test whether a modality matters at all, before asking where it is processed.

When not to use it: an ablated prompt is out of distribution, so a change can be an artifact of that. Compare several
methods; "remove" and "silence" are closest to prompts that occur. An unchanged answer does not prove that the modality
was not read: the text may carry the same information.

Example:
    examples = [
        analysis.Example("What is the color?", "Red", images=[picture]),
        analysis.Example("What is the color?", "Blue", images=[other_picture]),
    ]
    result = analysis.modality_ablation(lens, examples, modality="image", method="remove")
    result.summary()            # accuracy, F1 and changed answers in each condition
    result.confusion("without")
    result.changes()            # which answers changed, from what to what
    result.only_with()          # correct with the modality, wrong without it
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lensplug.analysis.interventions.ablation_run import AT_THE_INPUT, AblatedModality, AblationRun, Method
from lensplug.analysis.interventions.ablation_run import Example as Example
from lensplug.analysis.interventions.answer_scoring import Label, Scoring, answer_name, answer_tokens, scored_pieces
from lensplug.analysis.interventions.class_scores import ClassScores
from lensplug.analysis.over_examples import OverExamples
from lensplug.analysis.protocols import Lens
from lensplug.analysis.provenance import Provenance
from lensplug.analysis.result import Result
from lensplug.errors import LensplugError
from lensplug.validation.arguments import checked

if TYPE_CHECKING:
    import pandas as pd

Condition = Literal["with", "without", "control"]
"""With the modality, without it, and without as many positions of something else."""
CONDITIONS: tuple[Condition, ...] = get_args(Condition)


@dataclass(frozen=True, repr=False)
class ModalityAblation(Result):
    """Answers under three conditions: "with" the modality, "without" it, and under the text "control"."""

    label_columns = ("example", "condition", "prompt", "target")
    main_number = "log_probability"
    example_depth = {"examples": 0, "top_texts": 1}

    examples: tuple[str, ...]
    """The prompts."""
    classes: tuple[str, ...]
    """The closed set of answers."""
    target: Int[Tensor, " example"]
    """The class that is right."""
    predicted: Int[Tensor, "condition example"]
    """The class with the largest score."""
    top_texts: tuple[tuple[str, ...], ...]
    """For each condition and example, the token that the model would write; it need not be a class."""
    log_probability: Float[Tensor, "condition example"]
    """The score of the target, in nats: the log-probability of its tokens, or as `scoring` says."""
    ablated: Int[Tensor, "condition example"]
    """How many positions were ablated."""
    modality: AblatedModality
    method: Method
    provenance: Provenance
    scoring: Scoring = "sum"
    """How answers of several tokens are scored: "sum", "mean" or "first"."""
    scores: Float[Tensor, "condition example class"] | None = None
    """Score of every class, in nats."""

    @property
    def accuracy(self) -> dict[str, float]:
        """Condition -> fraction of examples whose predicted class is right."""
        right = (self.predicted == self.target).float().mean(dim=1)
        return dict(zip(CONDITIONS, right.tolist(), strict=True))

    @property
    def changed(self) -> Bool[Tensor, "condition example"]:
        """Where the answer is another class than with the modality."""
        return self.predicted != self.predicted[:1]

    @property
    def weighted_f1(self) -> dict[str, float]:
        """Condition -> the mean of the classes' F1, each by how many examples it is right of (as scikit-learn)."""
        return {name: self._class_scores(name).weighted_f1 for name in CONDITIONS}

    @checked
    def per_class(self, condition: Condition = "with") -> pd.DataFrame:
        """For each class precision, recall and F1 (0 to 1; 0 where none was given) and support, the examples of it."""
        import pandas as pd

        scores = self._class_scores(condition)
        columns = {name: getattr(scores, name).tolist() for name in ("precision", "recall", "f1", "support")}
        return pd.DataFrame(columns, index=pd.Index(self.classes, name="class"))

    @checked
    def changes(self, condition: Condition = "without") -> pd.DataFrame:
        """The examples whose answer is another class than with the modality: from what to what, and which is right."""
        import pandas as pd

        row = CONDITIONS.index(condition)
        difference = self.log_probability[row] - self.log_probability[0]
        return pd.DataFrame(
            {
                "example": example,
                "prompt": self.examples[example],
                "target": self.classes[int(self.target[example])],
                "with": self.classes[int(self.predicted[0, example])],
                condition: self.classes[int(self.predicted[row, example])],
                "right_with": bool(self.predicted[0, example] == self.target[example]),
                f"right_{condition}": bool(self.predicted[row, example] == self.target[example]),
                "log_probability_change": float(difference[example]),
            }
            for example in self.changed[row].nonzero()[:, 0].tolist()
        ).reindex(
            columns=[
                "example", "prompt", "target", "with", condition, "right_with", f"right_{condition}",
                "log_probability_change",
            ]
        )  # fmt: skip

    @checked
    def only_with(self, condition: Condition = "without") -> pd.DataFrame:
        """What only the modality tells: the examples that are right with it and wrong without."""
        table = self.changes(condition)
        return table[table.right_with.astype(bool)].reset_index(drop=True)

    def _class_scores(self, condition: Condition) -> ClassScores:
        return ClassScores.of(self.target, self.predicted[CONDITIONS.index(condition)], len(self.classes))

    @checked
    def confusion(self, condition: Condition = "without") -> pd.DataFrame:
        """How many examples of each class (rows) were given which answer (columns)."""
        return self._table(self.target, self.predicted[CONDITIONS.index(condition)], "answer that is right", condition)

    @checked
    def transitions(self, condition: Condition = "without") -> pd.DataFrame:
        """How many answers went from which class, with the modality (rows), to which (columns)."""
        return self._table(self.predicted[0], self.predicted[CONDITIONS.index(condition)], "with", condition)

    def summary(self) -> pd.DataFrame:
        """For each condition: accuracy, fraction of answers changed, mean change of the target's log-probability."""
        import pandas as pd

        difference = self.log_probability - self.log_probability[:1]
        count = difference.shape[1]
        error = difference.std(dim=1) / math.sqrt(count) if count > 1 else torch.full((len(CONDITIONS),), math.nan)
        return pd.DataFrame(
            {
                "accuracy": list(self.accuracy.values()),
                "weighted_f1": list(self.weighted_f1.values()),
                "changed": self.changed.float().mean(dim=1).tolist(),
                "log_probability_change": difference.mean(dim=1).tolist(),
                "standard_error": error.tolist(),
                "positions_ablated": self.ablated.float().mean(dim=1).tolist(),
                "examples": count,
            },
            index=pd.Index(CONDITIONS, name="condition"),
        )

    def over_examples(self) -> OverExamples:
        """Whether the answer is right and whether it changed, and the target's score, under each condition."""
        numbers = {
            "right": self.predicted == self.target,
            "changed": self.changed,
            "log_probability": self.log_probability,
        }
        return OverExamples(
            {"condition": list(CONDITIONS)}, {name: value.T.double() for name, value in numbers.items()}
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each example and condition."""
        import pandas as pd

        return pd.DataFrame(
            {
                "example": example,
                "condition": name,
                "prompt": self.examples[example],
                "target": self.classes[int(self.target[example])],
                "predicted": self.classes[int(self.predicted[row, example])],
                "top_token": self.top_texts[row][example],
                "log_probability": float(self.log_probability[row, example]),
                "positions_ablated": int(self.ablated[row, example]),
            }
            for example in range(len(self.examples))
            for row, name in enumerate(CONDITIONS)
        )

    def _table(self, rows: Tensor, columns: Tensor, rows_name: str, columns_name: str) -> pd.DataFrame:
        import pandas as pd

        size = len(self.classes)
        counts = torch.bincount(rows * size + columns, minlength=size**2).view(size, size)
        names = list(self.classes)
        return pd.DataFrame(
            counts.numpy(), index=pd.Index(names, name=rows_name), columns=pd.Index(names, name=columns_name)
        )


@checked
def modality_ablation(
    lens: Lens,
    examples: Sequence[Example],
    modality: AblatedModality,
    method: Method = "remove",
    *,
    classes: Sequence[Label] | None = None,
    scoring: Scoring = "sum",
    batch_size: int = 8,
    seed: int = 0,
    progress: Callable[[str], None] = lambda step: None,
) -> ModalityAblation:
    """Take a modality away and see which answers change.

    The control ablates as many text positions of the same prompt, drawn at random outside `Example.keep`, by the
    same method (for "silence" and "blank": by "mean"). Where the text has fewer, all of them; the
    result says how many (`ablated`). When the text itself is ablated, the control takes positions of media.

    Args:
        lens: From `lensplug.load`, `wrap` or `tiny`.
        examples: Prompts with media and right answers.
        modality: "audio", "image", "video", or "text" (all but special tokens and `Example.keep`).
        method: "remove", "zero", "mean", "noise", "silence" (audio), "blank" (image, video).
        classes: The answers to tell apart, a closed set: words, or the ids of their tokens; those of the examples by
            default.
        scoring: How an answer of several tokens is scored: "sum" of the log-probabilities of its tokens, their "mean",
            or "first": up to the piece that tells it from the other classes (`answers`).
        batch_size: How many prompts run at once.
        seed: Random seed of the control's positions and of the noise.
        progress: Called with a few words before each batch.

    Raises:
        LensplugError: If there are no examples, one lacks the modality, an answer is no class, or
            the method is not known or is not for this modality.
    """
    _refuse_bad_options(examples, modality, method, batch_size)
    given_labels = list(classes) if classes is not None else [example.answer for example in examples]
    vocabulary = int(lens.model.cfg.d_vocab_out)
    tokens = {
        answer_tokens(label, lens.tokenizer, vocabulary): answer_name(label, lens.tokenizer) for label in given_labels
    }
    answers, names = list(tokens), tuple(tokens.values())
    class_names = [
        label if isinstance(label, str) else answer_name(label, lens.tokenizer)
        for label in dict.fromkeys(map(_key, given_labels))
    ]
    if len(class_names) > len(names) or len(set(names)) < len(names):
        raise LensplugError(f"two of the classes {', '.join(class_names)} are the same tokens, or look the same.")
    correct_tokens = [answer_tokens(example.answer, lens.tokenizer, vocabulary) for example in examples]
    unknown = [example.answer for example, label in zip(examples, correct_tokens, strict=True) if label not in tokens]
    if unknown:
        raise LensplugError(f"the answer {unknown[0]!r} is not one of the classes {', '.join(names)}.")

    target = torch.tensor([answers.index(label) for label in correct_tokens])
    pieces = scored_pieces(answers, scoring)
    run = AblationRun(lens, examples, modality, method, torch.Generator().manual_seed(seed), batch_size, progress)
    outcome = run.outcome(pieces)
    lengths = torch.tensor([len(label) for label in pieces]) if scoring == "mean" else 1
    scores = outcome.scores / lengths
    ablation = f"{modality} by {method}"
    control = "positions of media" if modality == "text" else "positions of text"
    return ModalityAblation(
        examples=tuple(example.text for example in examples),
        classes=names,
        target=target,
        predicted=scores.argmax(dim=-1),
        top_texts=tuple(
            tuple(str(lens.tokenizer.decode([token])) for token in row) for row in outcome.top_token.tolist()
        ),
        log_probability=scores[:, torch.arange(len(target)), target],
        ablated=outcome.ablated,
        modality=modality,
        method=method,
        provenance=Provenance.of_model(
            lens.model,
            "modality_ablation",
            f"{ablation}; control: as many {control}",
            options={"seed": seed, "scoring": scoring, "classes": names},
        ),
        scoring=scoring,
        scores=scores,
    )


def _key(label: Label) -> str | int | tuple[int, ...]:
    return label if isinstance(label, str | int) else tuple(label)


def _refuse_bad_options(
    examples: Sequence[Example], modality: AblatedModality, method: Method, batch_size: int
) -> None:
    if not examples:
        raise LensplugError("there are no examples.")
    if batch_size < 1:
        raise LensplugError(f"batch_size is {batch_size}, expected at least 1.")
    if modality not in AT_THE_INPUT.get(method, (modality,)):
        raise LensplugError(f"method {method!r} is for {' and '.join(AT_THE_INPUT[method])}, not for {modality}.")

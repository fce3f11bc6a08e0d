"""What a modality is used for: answers with it, without it, and with as much text taken away instead.

Idea: run each prompt as it is, with one modality ablated, and, as a control, with the same number of text
positions ablated in the same way. If the model uses the sound (the image), its answers change, and change
more than under the control, which shows how much any loss of so many positions does.

Methods: "remove" takes the positions out of the prompt; "zero", "mean" and "noise" replace their merged
embeddings (mean and noise have the statistics of the modality over all examples); "silence" and "blank"
replace the medium itself, by silence or a grey picture, before the encoder.

When not to use it: an ablated prompt is none that the model was trained on, so a change can also mean that
it was thrown off. Compare several methods; "remove" and "silence" are nearest to prompts that occur. An
answer that does not change is not proof that the modality was not read: words may have said the same.

    examples = [analysis.Example("How does the speaker sound?", "Happy", audio=["a.wav"]), ...]
    result = analysis.modality_ablation(lens, examples, modality="audio", method="remove")
    result.summary(); result.confusion("without"); result.transitions()
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lensplug.analysis.ablation_methods import METHODS
from lensplug.analysis.ablation_run import AT_THE_INPUT, AblationRun
from lensplug.analysis.ablation_run import Example as Example
from lensplug.analysis.result import Provenance, Result
from lensplug.errors import LensplugError
from lensplug.tokens import single_token

if TYPE_CHECKING:
    import pandas as pd

CONDITIONS = ("with", "without", "control")


@dataclass(frozen=True, repr=False)
class ModalityAblation(Result):
    """Answers under three conditions: "with" the modality, "without" it, and under the text "control"."""

    label_columns = ("example", "condition", "prompt", "target")
    main_number = "log_probability"

    examples: tuple[str, ...]
    """The prompts."""
    classes: tuple[str, ...]
    """The answers that were told apart."""
    target: Int[Tensor, " example"]
    """The class that is right."""
    predicted: Int[Tensor, "condition example"]
    """The class with the largest logit."""
    top_texts: tuple[tuple[str, ...], ...]
    """For each condition and example, the token that the model would write; it need not be a class."""
    log_probability: Float[Tensor, "condition example"]
    """Of the target among all tokens, in nats."""
    ablated: Int[Tensor, "condition example"]
    """How many positions were ablated."""
    modality: str
    method: str
    provenance: Provenance

    @property
    def accuracy(self) -> dict[str, float]:
        """Condition -> fraction of examples whose predicted class is right."""
        right = (self.predicted == self.target).float().mean(dim=1)
        return dict(zip(CONDITIONS, right.tolist(), strict=True))

    @property
    def changed(self) -> Bool[Tensor, "condition example"]:
        """Where the answer is another class than with the modality."""
        return self.predicted != self.predicted[:1]

    def confusion(self, condition: str = "without") -> pd.DataFrame:
        """How many examples of each class (rows) were given which answer (columns)."""
        return self._table(self.target, self.predicted[_condition(condition)], "answer that is right", condition)

    def transitions(self, condition: str = "without") -> pd.DataFrame:
        """How many answers went from which class, with the modality (rows), to which (columns)."""
        return self._table(self.predicted[0], self.predicted[_condition(condition)], "with", condition)

    def summary(self) -> pd.DataFrame:
        """For each condition: accuracy, fraction of answers changed, mean change of the target's log-probability."""
        import pandas as pd

        difference = self.log_probability - self.log_probability[:1]
        count = difference.shape[1]
        error = difference.std(dim=1) / math.sqrt(count) if count > 1 else torch.full((len(CONDITIONS),), math.nan)
        return pd.DataFrame(
            {
                "accuracy": list(self.accuracy.values()),
                "changed": self.changed.float().mean(dim=1).tolist(),
                "log_probability_change": difference.mean(dim=1).tolist(),
                "standard_error": error.tolist(),
                "positions_ablated": self.ablated.float().mean(dim=1).tolist(),
                "examples": count,
            },
            index=pd.Index(CONDITIONS, name="condition"),
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


def modality_ablation(
    lens: Any,
    examples: Sequence[Example],
    modality: str,
    method: str = "remove",
    *,
    classes: Sequence[str] | None = None,
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
        method: "remove", "zero", "mean", "noise", "silence" (audio), "blank" (image).
        classes: The answers to tell apart, by their first and only token; those of the examples by default.
        batch_size: How many prompts run at once.
        seed: Of the control's positions and of the noise.
        progress: Called with a few words before each batch.

    Raises:
        LensplugError: If there are no examples, one lacks the modality, an answer is no class or not one token, or
            the method is not known or is not for this modality.
    """
    _refuse_bad_options(examples, modality, method)
    names = tuple(dict.fromkeys(classes or [example.answer for example in examples]))
    tokens = torch.tensor([single_token(name, lens.tokenizer) for name in names])
    if len(set(tokens.tolist())) < len(names):
        raise LensplugError(f"two of the classes {', '.join(names)} are the same token.")
    unknown = [example.answer for example in examples if example.answer not in names]
    if unknown:
        raise LensplugError(f"the answer {unknown[0]!r} is none of the classes {', '.join(names)}.")

    target = torch.tensor([names.index(example.answer) for example in examples])
    run = AblationRun(lens, examples, modality, method, torch.Generator().manual_seed(seed), batch_size, progress)
    outcome = run.outcome(tokens, target)
    what = f"{modality} by {method}"
    control = "positions of media" if modality == "text" else "positions of text"
    return ModalityAblation(
        examples=tuple(example.text for example in examples),
        classes=names,
        target=target,
        predicted=outcome.predicted,
        top_texts=tuple(
            tuple(str(lens.tokenizer.decode([token])) for token in row) for row in outcome.top_token.tolist()
        ),
        log_probability=outcome.log_probability,
        ablated=outcome.ablated,
        modality=modality,
        method=method,
        provenance=Provenance.of_model(lens.model, "modality_ablation", f"{what}; control: as many {control}"),
    )


def _condition(name: str) -> int:
    if name not in CONDITIONS:
        raise LensplugError(f"condition is {name!r}, expected one of {', '.join(map(repr, CONDITIONS))}.")
    return CONDITIONS.index(name)


def _refuse_bad_options(examples: Sequence[Example], modality: str, method: str) -> None:
    if not examples:
        raise LensplugError("there are no examples.")
    methods = (*METHODS, *AT_THE_INPUT)
    if method not in methods:
        raise LensplugError(f"method is {method!r}, expected one of {', '.join(map(repr, methods))}.")
    if modality not in ("text", "image", "video", "audio"):
        raise LensplugError(f"modality is {modality!r}, expected 'audio', 'image', 'video' or 'text'.")
    if AT_THE_INPUT.get(method, modality) != modality:
        raise LensplugError(f"method {method!r} is for {AT_THE_INPUT[method]}, not for {modality}.")

"""Running prompts with and without a modality: the work behind `modality_ablation`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lensplug.analysis.interventions.ablation_methods import (
    METHODS,
    NEED_STATISTICS,
    Ablation,
    EmbeddingMethod,
    EmbeddingStatistics,
)
from lensplug.analysis.interventions.answer_scoring import Label
from lensplug.analysis.protocols import Lens
from lensplug.errors import LensplugError
from lensplug.inputs.edited_inputs import Variant
from lensplug.inputs.multimodal_input import MultimodalInput
from lensplug.media import listed, load_image, load_sound, load_video
from lensplug.media.blank import blank_image, blank_video, silence
from lensplug.positions.tokens import find_text
from lensplug.validation.arguments import admitted

AblatedModality = Literal["audio", "image", "video", "text"]
Method = EmbeddingMethod | Literal["silence", "blank"]
AT_THE_INPUT: dict[Method, tuple[AblatedModality, ...]] = {"silence": ("audio",), "blank": ("image", "video")}
"""Methods that change the medium itself -> the modalities that each is for."""


@dataclass(frozen=True)
class Example:
    """A prompt, its media, and the answer that is looked for."""

    text: str
    """Plain text; the chat template is applied."""
    answer: Label
    """A word as the model would write it, or the ids of its tokens."""
    images: Any = ()
    """A list, or a single image; the same for sounds and videos."""
    audio: Any = ()
    keep: str = ""
    """A part of the text that the control (and an ablation of the text) leaves alone, such as the question."""
    videos: Any = ()

    def __post_init__(self) -> None:
        admitted(self.text, str, "text")
        admitted(self.answer, Label, "answer")
        for name in ("images", "audio", "videos"):
            object.__setattr__(self, name, listed(getattr(self, name), name))


@dataclass(frozen=True)
class Outcome:
    """What each example gave under each condition (with, without, control)."""

    scores: Float[Tensor, "condition example class"]
    """Sums of log-probabilities, in nats."""
    top_token: Int[Tensor, "condition example"]
    ablated: Int[Tensor, "condition example"]


@dataclass
class AblationRun:
    """One ablation on its way: the examples in batches, three conditions each."""

    lens: Lens
    examples: Sequence[Example]
    modality: AblatedModality
    method: Method
    generator: torch.Generator
    batch_size: int
    progress: Callable[[str], None]

    def __post_init__(self) -> None:
        self.statistics = {"ablated": EmbeddingStatistics(), "control": EmbeddingStatistics()}

    def _gather_statistics(self) -> None:
        """Mean and spread of the embeddings of the modality, and of what the control draws from."""
        for _, examples, inputs in self._batches("reading embeddings"):
            self.statistics["ablated"].add(inputs.embeds, self._chosen(examples, inputs))
            self.statistics["control"].add(inputs.embeds, self._candidates(examples, inputs))

    def outcome(self, answers: Sequence[tuple[int, ...]]) -> Outcome:
        """Run every example under the three conditions, and score these answers."""
        if self.method in NEED_STATISTICS or self.method in AT_THE_INPUT:
            self._gather_statistics()
        parts: list[list[Tensor]] = []
        for _, examples, inputs in self._batches("ablating"):
            variants, ablated = self._three_conditions(examples, inputs)
            each = [self._scored(variant, answers) for variant in variants]
            scores, top = (torch.stack(list(kind)) for kind in zip(*each, strict=True))
            parts.append([scores, top, ablated])
        return Outcome(*(torch.cat(part, dim=1) for part in zip(*parts, strict=True)))

    def _scored(
        self, variant: MultimodalInput | Variant, answers: Sequence[tuple[int, ...]]
    ) -> tuple[Float[Tensor, "batch class"], Int[Tensor, " batch"]]:
        """The log-probability of each answer behind a prompt, and the token that the model would write first."""
        first = self._last_logits(variant, 1)[:, 0]
        log_first = first.log_softmax(dim=-1)
        scores = log_first[:, [answer[0] for answer in answers]]
        for index, answer in enumerate(answers):
            if len(answer) > 1:
                rows = self._last_logits(self._continued(variant, answer[:-1]), len(answer) - 1).log_softmax(dim=-1)
                scores[:, index] += rows[:, torch.arange(len(answer) - 1), list(answer[1:])].sum(dim=-1)
        return scores, first.argmax(dim=-1)

    def _continued(self, variant: MultimodalInput | Variant, answer_tokens: Sequence[int]) -> Variant:
        """A prompt with the first tokens of an answer behind it; prompts are padded at the left."""
        if variant.decoder_inputs:
            raise LensplugError(
                f"answers of several tokens cannot be scored with {self.lens.core.name}, whose core is given"
                f" {' and '.join(self.lens.core.beside)} besides: choose answers of one token, or"
                " scoring='first' where the first pieces differ."
            )
        batch = len(variant.embeds)
        tokens = torch.tensor([list(answer_tokens)], device=variant.embeds.device)
        embeds = self.lens.core.decoder.embed_tokens(tokens).detach().to(variant.embeds).expand(batch, -1, -1)
        mask = torch.cat([variant.attention_mask, torch.ones_like(tokens).expand(batch, -1)], dim=1)
        return Variant(torch.cat([variant.embeds, embeds], dim=1), mask)

    def _three_conditions(
        self, examples: Sequence[Example], inputs: MultimodalInput
    ) -> tuple[list[Any], Int[Tensor, "condition batch"]]:
        """What is run with the modality, without it, and under the control; how many positions each lost."""
        in_place: EmbeddingMethod = "mean" if self.method == "silence" or self.method == "blank" else self.method
        chosen = self._chosen(examples, inputs)
        control = self._draw(self._candidates(examples, inputs), chosen.sum(dim=1))
        without: MultimodalInput | Variant
        if self.method in AT_THE_INPUT:
            without = prepared(self.lens, [without_medium(example, self.modality) for example in examples])
        else:
            without = self._ablated(inputs, chosen, in_place, "ablated")
        counts = [torch.zeros(len(examples), dtype=torch.long), chosen.sum(dim=1).cpu(), control.sum(dim=1).cpu()]
        return [inputs, without, self._ablated(inputs, control, in_place, "control")], torch.stack(counts)

    def _batches(self, doing: str) -> Iterator[tuple[int, Sequence[Example], Any]]:
        for start in range(0, len(self.examples), self.batch_size):
            examples = self.examples[start : start + self.batch_size]
            self.progress(f"{doing}, example {start + 1} of {len(self.examples)}")
            yield start, examples, prepared(self.lens, examples)

    def _ablated(self, inputs: MultimodalInput, chosen: Tensor, method: EmbeddingMethod, which: str) -> Variant:
        return METHODS[method](Ablation(self.lens, inputs, chosen, self.statistics[which], self.generator))

    def _last_logits(self, inputs: MultimodalInput | Variant, count: int) -> Float[Tensor, "batch count d_vocab"]:
        """Logits at the last positions only: rows for all positions would be gigabytes."""
        batch, length = inputs.embeds.shape[:2]
        rows = torch.arange(length - count, length).expand(batch, -1)
        logits = self.lens.logits_at(inputs, rows).float().cpu()
        if bool(logits.isnan().any()):
            raise LensplugError("the model gives NaN: in fp16 attention can overflow; use bfloat16 or float32.")
        return logits

    def _chosen(self, examples: Sequence[Example], inputs: MultimodalInput) -> Bool[Tensor, "batch pos"]:
        if self.modality == "text":
            return written_words(self.lens, examples, inputs)
        chosen: Tensor = inputs.modality.mask(self.modality)
        for example, row in zip(examples, chosen, strict=True):
            if not bool(row.any()):
                raise LensplugError(f"the example {example.text!r} has no {self.modality}: there is nothing to ablate.")
        return chosen

    def _candidates(self, examples: Sequence[Example], inputs: MultimodalInput) -> Bool[Tensor, "batch pos"]:
        """Where the control draws from."""
        if self.modality != "text":
            return written_words(self.lens, examples, inputs)
        media: Tensor = torch.zeros_like(inputs.attention_mask, dtype=torch.bool)
        for name in ("image", "video", "audio"):
            media |= inputs.modality.mask(name)
        return media

    def _draw(self, candidates: Bool[Tensor, "batch pos"], counts: Tensor) -> Bool[Tensor, "batch pos"]:
        """So many of the candidates of each example, at random."""
        random_order = torch.rand(candidates.shape, generator=self.generator).to(candidates.device)
        rank = random_order.masked_fill(~candidates, 2.0).argsort(dim=1).argsort(dim=1)
        return candidates & (rank < counts[:, None])


def written_words(lens: Lens, examples: Sequence[Example], inputs: MultimodalInput) -> Bool[Tensor, "batch pos"]:
    """The words of the prompts: without special tokens, what the chat template adds, and `Example.keep`.

    Raises:
        LensplugError: If what is to be kept is not in the prompt.
    """
    ordinary = inputs.modality.mask("text") & ~inputs.modality.special
    words = inputs.modality.user_words
    chosen: Tensor = ordinary if words is None else ordinary & words
    for row, (example, texts) in enumerate(zip(examples, inputs.str_tokens, strict=True)):
        protected = find_text(example.keep, texts, inputs.tokens[row].tolist(), lens.tokenizer)
        if example.keep and protected is None:
            raise LensplugError(f"{example.keep!r}, to be kept, does not occur in the prompt {example.text!r}.")
        chosen[row, list(protected or ())] = False
    return chosen


def prepared(lens: Lens, examples: Sequence[Example], *, with_answers: bool = False) -> MultimodalInput:
    """The examples as one batch; with their answers behind the prompts, or without."""
    media: dict[str, Any] = {}
    for name in ("images", "audio", "videos"):
        media_of_examples = [list(getattr(example, name)) for example in examples]
        if any(media_of_examples):
            media[name] = media_of_examples
    answers: dict[str, Any] = {"answer": [example.answer for example in examples]} if with_answers else {}
    return lens.prepare([example.text for example in examples], **media, **answers)


def without_medium(example: Example, modality: str) -> Example:
    """The same prompt with silence of the same length, or grey images or frames of the same size."""
    if modality == "audio":
        return replace(example, audio=[silence(load_sound(sound)) for sound in example.audio])
    if modality == "video":
        return replace(example, videos=[blank_video(load_video(video)) for video in example.videos])
    return replace(example, images=[blank_image(load_image(image)) for image in example.images])

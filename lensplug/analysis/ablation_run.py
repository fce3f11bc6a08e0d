"""Running prompts with and without a modality: the work behind `modality_ablation`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor

from lensplug.analysis.ablation_methods import METHODS, NEED_STATISTICS, Ablation, EmbeddingStatistics
from lensplug.errors import LensplugError
from lensplug.media import listed, load_image, load_sound
from lensplug.tokens import find_text

AT_THE_INPUT = {"silence": "audio", "blank": "image"}
"""Methods that change the medium itself -> the modality that each is for."""


@dataclass(frozen=True)
class Example:
    """A prompt, its media, and the answer that is looked for."""

    text: str
    """Plain words; the chat template is applied."""
    answer: str
    """A word of one token, as the model would write it."""
    images: Any = ()
    """A list, or a single one; likewise the sounds."""
    audio: Any = ()
    keep: str = ""
    """A part of the text that the control (and an ablation of the text) leaves alone, such as the question."""

    def __post_init__(self) -> None:
        for name in ("images", "audio"):
            object.__setattr__(self, name, listed(getattr(self, name), name))


@dataclass(frozen=True)
class Outcome:
    """What each example gave under each condition (with, without, control)."""

    predicted: Int[Tensor, "condition example"]
    top_token: Int[Tensor, "condition example"]
    log_probability: Float[Tensor, "condition example"]
    ablated: Int[Tensor, "condition example"]


@dataclass
class AblationRun:
    """One ablation on its way: the examples in batches, three conditions each."""

    lens: Any
    examples: Sequence[Example]
    modality: str
    method: str
    generator: torch.Generator
    batch_size: int
    progress: Callable[[str], None]

    def __post_init__(self) -> None:
        self.statistics = {"ablated": EmbeddingStatistics(), "control": EmbeddingStatistics()}

    def _gather_statistics(self) -> None:
        """Mean and spread of the embeddings of the modality, and of what the control draws from."""
        for _, own, inputs in self._batches("reading embeddings"):
            self.statistics["ablated"].add(inputs.embeds, self._chosen(own, inputs))
            self.statistics["control"].add(inputs.embeds, self._candidates(own, inputs))

    def outcome(self, class_tokens: Int[Tensor, " class"], target: Int[Tensor, " example"]) -> Outcome:
        """Run every example under the three conditions; `target` indexes `class_tokens`."""
        if self.method in NEED_STATISTICS or self.method in AT_THE_INPUT:
            self._gather_statistics()
        parts: list[tuple[Tensor, ...]] = []
        for start, own, inputs in self._batches("ablating"):
            logits, ablated = self._three_conditions(own, inputs)
            right = class_tokens[target[start : start + len(own)]]
            log_probability = logits.log_softmax(dim=-1)[:, torch.arange(len(own)), right]
            parts.append((logits[..., class_tokens].argmax(dim=-1), logits.argmax(dim=-1), log_probability, ablated))
        return Outcome(*(torch.cat(part, dim=1) for part in zip(*parts, strict=True)))

    def _three_conditions(
        self, own: Sequence[Example], inputs: Any
    ) -> tuple[Float[Tensor, "condition batch d_vocab"], Int[Tensor, "condition batch"]]:
        """Next-token logits with the modality, without it, and under the control; how many positions each lost."""
        in_place = "mean" if self.method in AT_THE_INPUT else self.method
        chosen = self._chosen(own, inputs)
        control = self._draw(self._candidates(own, inputs), chosen.sum(dim=1))
        if self.method in AT_THE_INPUT:
            other = self._prepare([_without_medium(example, self.modality) for example in own])
            without = self._next_token(other)
        else:
            without = self._ablated(inputs, chosen, in_place, "ablated")
        whole = self._next_token(inputs)
        counts = [torch.zeros(len(own), dtype=torch.long), chosen.sum(dim=1).cpu(), control.sum(dim=1).cpu()]
        return torch.stack([whole, without, self._ablated(inputs, control, in_place, "control")]), torch.stack(counts)

    def _batches(self, doing: str) -> Iterator[tuple[int, Sequence[Example], Any]]:
        for start in range(0, len(self.examples), self.batch_size):
            own = self.examples[start : start + self.batch_size]
            self.progress(f"{doing}, example {start + 1} of {len(self.examples)}")
            yield start, own, self._prepare(own)

    def _prepare(self, own: Sequence[Example]) -> Any:
        media: dict[str, Any] = {}
        for name in ("images", "audio"):
            given = [list(getattr(example, name)) for example in own]
            if any(given):
                media[name] = given
        return self.lens.prepare([example.text for example in own], **media)

    def _ablated(self, inputs: Any, chosen: Tensor, method: str, which: str) -> Float[Tensor, "batch d_vocab"]:
        given = Ablation(self.lens, inputs, chosen, self.statistics[which], self.generator)
        return self._next_token(METHODS[method](given))

    def _next_token(self, inputs: Any) -> Float[Tensor, "batch d_vocab"]:
        """Logits at the last position alone: a row for every position would be gigabytes that nobody reads."""
        model = self.lens.model
        with torch.no_grad():
            residual = model(inputs, stop_at_layer=model.cfg.n_layers)
            logits: Tensor = model.unembed(model.ln_final(residual[:, -1:]))[:, 0].float().cpu()
        if bool(logits.isnan().any()):
            raise LensplugError("the model gives NaN: in fp16 attention can overflow; use bfloat16 or float32.")
        return logits

    def _chosen(self, own: Sequence[Example], inputs: Any) -> Bool[Tensor, "batch pos"]:
        if self.modality == "text":
            return self._text(own, inputs)
        chosen: Tensor = inputs.modality.mask(self.modality)
        for example, row in zip(own, chosen, strict=True):
            if not bool(row.any()):
                raise LensplugError(f"the example {example.text!r} has no {self.modality}: there is nothing to ablate.")
        return chosen

    def _candidates(self, own: Sequence[Example], inputs: Any) -> Bool[Tensor, "batch pos"]:
        """Where the control draws from."""
        if self.modality != "text":
            return self._text(own, inputs)
        media: Tensor = torch.zeros_like(inputs.attention_mask, dtype=torch.bool)
        for name in ("image", "video", "audio"):
            media |= inputs.modality.mask(name)
        return media

    def _text(self, own: Sequence[Example], inputs: Any) -> Bool[Tensor, "batch pos"]:
        """The words of the prompts: without special tokens, what the chat template adds, and `Example.keep`."""
        ordinary = inputs.modality.mask("text") & ~inputs.modality.special
        words = torch.zeros_like(ordinary)
        for row, (example, texts) in enumerate(zip(own, inputs.str_tokens, strict=True)):
            where, kept = find_text(example.text, texts), find_text(example.keep, texts)
            if example.keep and kept is None:
                raise LensplugError(f"{example.keep!r}, to be kept, does not stand in the prompt {example.text!r}.")
            words[row, list(where if where is not None else range(len(texts)))] = True
            words[row, list(kept or ())] = False
        chosen: Tensor = ordinary & words
        return chosen

    def _draw(self, candidates: Bool[Tensor, "batch pos"], counts: Tensor) -> Bool[Tensor, "batch pos"]:
        """So many of the candidates of each example, at random."""
        drawn = torch.rand(candidates.shape, generator=self.generator).to(candidates.device)
        rank = drawn.masked_fill(~candidates, 2.0).argsort(dim=1).argsort(dim=1)
        return candidates & (rank < counts[:, None])


def _without_medium(example: Example, modality: str) -> Example:
    """The same prompt with silence of the same length, or a grey picture of the same size."""
    if modality == "audio":
        sounds = [load_sound(sound) for sound in example.audio]
        silent = [(torch.zeros_like(sound.waveform), sound.sampling_rate) for sound in sounds]
        return Example(example.text, example.answer, example.images, silent, example.keep)
    sizes = [load_image(image).size for image in example.images]
    blank = [Image.fromarray(np.full((height, width, 3), 128, np.uint8)) for width, height in sizes]
    return Example(example.text, example.answer, blank, example.audio, example.keep)

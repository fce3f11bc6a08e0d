"""One prompt, looked at from all sides: the answer, when it forms, which heads look at the medium, and where.

What `lensplug demo` and `lensplug report` make. Every picture is a function of `lensplug.views` on a
result of `lensplug.analysis`; a notebook can make each one alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lensplug import analysis, views
from lensplug.analysis import HeadSpecialization, LogitLens, Rollout
from lensplug.inputs import MultimodalInput
from lensplug.lens import Answer, MultimodalLens
from lensplug.parity import ParityReport
from lensplug.prompts import encoder_rate
from lensplug.views.page import Page, Section


@dataclass(frozen=True)
class Report:
    """What was measured, and the page that shows it."""

    answer: Answer
    parity: ParityReport
    logit_lens: LogitLens
    heads: HeadSpecialization
    rollout: Rollout
    medium: str
    """What the prompt has beside words: "image" or "audio"; else "text"."""
    page: Page

    @property
    def settled(self) -> str:
        """The layer at which the first token of the answer becomes top, in words."""
        layer = int(self.logit_lens.settled_layer[0, self._answer_position])
        last = len(self.logit_lens.entries) - 2
        return "in the embedding already" if layer < 0 else f"after layer {layer} of {last}"

    @property
    def _answer_position(self) -> int:
        """The index, among the positions of the logit lens, of the last position of the prompt."""
        return int((self.logit_lens.positions[0] == self.heads.query[0]).nonzero()[0])


def report(
    lens: MultimodalLens,
    prompt: str,
    *,
    images: Sequence[Any] = (),
    audio: Sequence[Any] = (),
    max_new_tokens: int = 20,
    context: int = 8,
    progress: Callable[[str], None] = lambda step: None,
) -> Report:
    """Run a prompt, and every analysis on it.

    Args:
        lens: From `lensplug.load`, `wrap` or `tiny`.
        prompt: Plain words; the chat template is applied.
        images: PIL images, arrays or paths.
        audio: Paths of sounds, or pairs of waveform and sampling rate.
        max_new_tokens: Of the answer.
        context: How many positions before the answer the logit lens reads.
        progress: Called with a few words before each step.
    """
    progress("running the encoder")
    inputs = lens.prepare(prompt, images=list(images) or None, audio=list(audio) or None)
    medium = next((name for name in ("image", "audio") if name in inputs.modality.names), "text")
    progress("comparing with the full model")
    parity = lens.check(inputs)
    progress("writing the answer")
    answer = lens.generate(inputs, max_new_tokens=max_new_tokens)
    progress("running the language core with its cache")
    kept = (analysis.logit_lens.needs, analysis.attention_rollout.needs)
    _, cache = lens.run_with_cache(answer.inputs, names_filter=lambda name: any(needs(name) for needs in kept))
    progress("reading the cache")
    last = inputs.tokens.shape[1] - 1
    positions = range(max(0, last + 1 - context), answer.inputs.tokens.shape[1] - 1)
    logit_lens = analysis.logit_lens(cache, positions=list(positions))
    heads = analysis.head_specialization(cache, answer.inputs.modality, query=last)
    rollout = analysis.attention_rollout(cache, rows=last)
    progress("drawing")
    title = "A prompt, layer by layer" if medium == "text" else "How the model answers"
    facts = (
        ("Prompt", prompt),
        ("Answer", answer.text[0] or "(nothing)"),
        (
            "Model",
            f"{lens.core.name} ({type(lens.hf_model).__name__}),"
            f" {lens.model.cfg.n_layers} layers x {lens.model.cfg.n_heads} heads",
        ),
        ("Checked", str(parity)),
        *_resampled(lens, inputs),
    )
    sections = _sections(lens, answer, cache, logit_lens, heads, rollout, medium)
    page = Page(title, facts, sections, _provenance(logit_lens, heads, rollout))
    return Report(answer, parity, logit_lens, heads, rollout, medium, page)


def _sections(
    lens: MultimodalLens,
    answer: Answer,
    cache: Any,
    logit_lens: LogitLens,
    heads: HeadSpecialization,
    rollout: Rollout,
    medium: str,
) -> tuple[Section, ...]:
    inputs, query = answer.inputs, int(heads.query[0])
    looking = heads.top(medium if medium in heads.modalities else heads.modalities[0], k=1)[0][0]
    sections = [
        Section(
            "The prompt", "What the language core receives, position by position.", (views.modality_ribbon(inputs),)
        ),
        Section(
            "When the answer forms",
            "The residual stream after each layer, read as if it were the last. A column is a position: what stands in"
            " it is the model's guess of the next token.",
            (views.logit_lens(logit_lens, inputs=inputs),),
        ),
        Section(
            "Which heads look where",
            "Attention from the position that writes the answer. 1 is what uniform attention would give; orange heads"
            " look at the chosen modality more than that, blue ones less.",
            (views.head_specialization(heads),),
        ),
    ]
    attention = {
        f"layer {layer}": cache[f"blocks.{layer}.attn.hook_pattern"][0, :, query].mean(dim=0).float()
        for layer in range(lens.model.cfg.n_layers)
    }
    if medium == "image" and (0, 0) in inputs.modality.grids:
        sections.append(_where_in_the_image(inputs, rollout, attention))
    if medium == "audio" and (0, 0) in inputs.modality.timelines:
        sections.append(_when_in_the_sound(inputs, rollout, attention))
    if medium == "audio":
        received = analysis.received_attention(
            cache, layer=looking, modality=inputs.modality, str_tokens=inputs.str_tokens
        )
        sections.append(
            Section(
                "What each token receives",
                f"Layer {looking}, all heads: each row divided by its largest entry, each column the mean of its"
                " entries. Words and moments of the sound that everything looks at stand out.",
                (views.received_attention(received),),
            )
        )
    sections.append(
        Section(
            "Head by head",
            f"The heads of layer {looking}, which has the head that looks at the {medium} most. Words are alone, or in"
            " short runs where the prompt is long; image tokens are pooled by region of the picture (row, column),"
            " sounds by time.",
            (views.attention_heads(cache, inputs, layer=looking),),
        )
    )
    return tuple(sections)


def _where_in_the_image(inputs: MultimodalInput, rollout: Rollout, attention: dict[str, Tensor]) -> Section:
    return Section(
        "Where in the image",
        "Left, rollout: how much of each place can have come, through all layers, to the position that writes"
        " the answer. Right, the attention of one layer from there, averaged over its heads.",
        (
            views.image_overlay(rollout.values[0, 0], inputs, title="Rollout"),
            views.image_overlay(attention, inputs, title="Attention by layer"),
        ),
    )


def _when_in_the_sound(inputs: MultimodalInput, rollout: Rollout, attention: dict[str, Tensor]) -> Section:
    return Section(
        "When in the sound",
        "How much the position that writes the answer takes from each moment: by rollout through all layers, and by"
        " the attention of one layer, averaged over its heads (move the slider). A bar is as wide as what its"
        " audio position hears directly.",
        (
            views.sound_player(inputs),
            views.sound_overlay({"rollout": rollout.values[0, 0], **attention}, inputs, title="From each moment"),
        ),
        wide=True,
    )


def _resampled(lens: MultimodalLens, inputs: MultimodalInput) -> tuple[tuple[str, str], ...]:
    """Said where the encoder did not hear the sound at the rate at which it came."""
    if not inputs.audio or not inputs.audio[0]:
        return ()
    rate = encoder_rate(lens.processor)
    came = sorted({sound.sampling_rate for sound in inputs.audio[0] if sound.sampling_rate != rate})
    return (("Resampled", f"from {', '.join(map(str, came))} Hz to the encoder's {rate} Hz"),) if came else ()


def _provenance(*results: Any) -> tuple[str, ...]:
    lines = [f"{result.provenance.analysis}: {result.provenance.convention}" for result in results]
    versions = ", ".join(f"{name} {number}" for name, number in results[0].provenance.versions.items())
    return (*lines, f"{results[0].provenance.dtype}; {versions}")

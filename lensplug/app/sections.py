"""The sections of the page that `report` writes: what each shows, and how to read it."""

from __future__ import annotations

from torch import Tensor

from lensplug import analysis, views
from lensplug.analysis import AttentionFrom, GradientRollout, HeadSpecialization, LogitLens, Rollout
from lensplug.cache.activation_cache import ActivationCache, known
from lensplug.hf.prompts import encoder_rate
from lensplug.inputs.multimodal_input import MultimodalInput
from lensplug.lens import MultimodalLens
from lensplug.running.generation import Answer
from lensplug.views.overlays.image import NO_GRID
from lensplug.views.page.page import Part, Section

PositionMap = Rollout | GradientRollout
"""What is laid over a medium: gradient rollout, or the lift of rollout where gradients overflow."""
PICTURES = 3
"""So many pictures of a prompt have an explorer of their own."""


def sections_of(
    lens: MultimodalLens,
    answer: Answer,
    cache: ActivationCache,
    logit_lens: LogitLens,
    heads: HeadSpecialization,
    rollout: Rollout,
    relevance: GradientRollout | None,
    against: str,
    medium: str,
) -> tuple[Section, ...]:
    """The sections of a prompt's page, in order."""
    inputs = answer.inputs
    looking = heads.top(medium if medium in heads.modalities else heads.modalities[0], k=1)[0][0]
    sections = [
        Section(
            "The prompt", "What the language core receives, position by position.", (views.modality_ribbon(inputs),)
        ),
        _what_it_came_from(inputs, rollout, relevance, against),
        Section(
            "When the answer forms",
            "The residual stream after each layer, read as if it were the last. A column is a position: what stands in"
            " it is the model's guess of the next token.",
            (views.logit_lens(logit_lens, inputs=inputs),),
        ),
        Section(
            "Which heads look where",
            "Attention from the position that writes the answer: which heads look at the chosen class, and how far that"
            " is from uniform attention (the column of chance, the button preference). What a head takes from there,"
            " and whether the answer hangs on it, cannot be read from it. The sink is the first position, where heads"
            " rest.",
            (views.head_specialization(heads), views.heads_by_layer(heads)),
        ),
    ]
    looked = analysis.attention_from(cache, queries=known(cache, "query_positions"))
    attention = looked.by_position()
    pictures = len(inputs.pictures())
    if medium in ("image", "video") and not inputs.modality.grids and not inputs.modality.video_grids:
        sections.append(Section(f"Where in the {medium}", f"Not known: {NO_GRID}."))
    for index in [index for _, index in sorted(inputs.modality.grids) if index < pictures][:PICTURES]:
        sections.append(_where_in_the_image(inputs, relevance or rollout, looked, index))
        sections.append(_patch_by_patch(cache, inputs, looked, index))
    for _, index in sorted(inputs.modality.video_grids):
        sections.append(_where_in_the_video(inputs, relevance or rollout, attention, index))
    if medium == "audio" and (0, 0) in inputs.modality.timelines:
        sections.append(_when_in_the_sound(inputs, relevance or rollout, attention))
    if medium == "audio":
        received = analysis.received_attention(cache, layer=looking, modality=inputs.modality)
        sections.append(
            Section(
                "What each token receives",
                f"Layer {looking}, all heads: each row divided by its largest entry, each column the mean of its"
                " entries. Words and moments of the sound that everything looks at stand out.",
                (views.received_attention(received),),
            )
        )
    name = f"blocks.{looking}.attn.hook_pattern"  # the whole pattern of one layer: another run, but one layer's memory
    _, patterns = lens.run_with_cache(inputs, names_filter=name, stop_at_layer=looking + 1)
    sections.append(
        Section(
            "Head by head",
            f"The heads of layer {looking}, which has the head that looks at the {medium} most. Words are alone, or in"
            " short runs where the prompt is long; image tokens are pooled by region of the picture (row, column),"
            " sounds by time.",
            (views.attention_heads(patterns, inputs, layer=looking),),
        )
    )
    return tuple(sections)


METHOD = {
    "gradient_rollout": (
        "Gradient rollout",
        "attention as far as it raised the token that was written over the runner-up, carried through all layers"
        " (gradient rollout, first position left out)",
    ),
    "attention_rollout": (
        "Rollout, lift",
        "how many times more than from uniform attention can have come, through all layers (the lift of rollout; this"
        " model's gradients overflow: load it in bfloat16 or float32 for gradient rollout)",
    ),
}
"""Analysis -> what its picture is called, and what it shows."""


def _what_it_came_from(
    inputs: MultimodalInput, rollout: Rollout, relevance: GradientRollout | None, against: str
) -> Section:
    """Over the words, whatever else there is."""
    shown = relevance or rollout
    says, why = METHOD[shown.provenance.analysis][1], f": {against}" if against else ""
    row = next(iter(shown.by_position().values())).nan_to_num(0.0).clone()
    row = row.float() / (float(row.max()) or 1.0)  # four decimals are drawn
    parts: tuple[Part, ...] = (views.colored_tokens(row, inputs), views.attention_rollout(rollout, inputs=inputs))
    if relevance is not None:
        parts = (parts[0], views.attention_rollout(relevance, inputs=inputs), parts[1])
    return Section(
        "What the answer came from",
        f"Each word, and each region or stretch of a medium, coloured by {says}{why}. Below, the same by position, and"
        " the lift of attention rollout: how many times what uniform attention would give. Rollout knows attention"
        " alone: where it goes by the order of the positions its notes say so, and gradient rollout is the one to"
        " believe.",
        parts,
        wide=True,
    )


def _where_in_the_image(inputs: MultimodalInput, relevance: PositionMap, looked: AttentionFrom, index: int) -> Section:
    name, says = METHOD[relevance.provenance.analysis]
    return Section(
        "Where in the image" + _which(inputs, "image", index),
        f"Left, {says}. Right, the attention of one layer from the position that writes the answer, averaged over its"
        " heads.",
        (
            views.image_overlay(relevance, inputs, media_index=index, title=name),
            views.image_overlay(looked, inputs, media_index=index, title="Attention by layer"),
        ),
    )


def _patch_by_patch(cache: ActivationCache, inputs: MultimodalInput, looked: AttentionFrom, index: int) -> Section:
    said = analysis.logit_lens(cache, positions=inputs.modality.image_positions(index))
    return Section(
        "Patch by patch" + _which(inputs, "image", index),
        "Point at a patch: what each layer would say there, and which heads look there from where a token of the"
        " answer was written. Choose a token of the answer and a head: where it looked.",
        (views.image_explorer(said, looked, inputs, media_index=index),),
        wide=True,
    )


def _where_in_the_video(
    inputs: MultimodalInput, relevance: PositionMap, attention: dict[str, Tensor], index: int
) -> Section:
    name, says = METHOD[relevance.provenance.analysis]
    return Section(
        "Where in the video" + _which(inputs, "video", index),
        f"Move the slider through the frames. Left, {says}. Right, the attention of one layer from the position that"
        " writes the answer, averaged over its heads.",
        (
            views.video_overlay(relevance, inputs, media_index=index, title=name),
            views.video_overlay(attention, inputs, media_index=index, title="Attention by layer"),
        ),
    )


def _which(inputs: MultimodalInput, modality: str, index: int) -> str:
    """Which of several, as the end of a heading."""
    count = len({span.media_index for span in inputs.modality.spans if (span.example, span.modality) == (0, modality)})
    return f", {index + 1} of {count}" if count > 1 else ""


def _when_in_the_sound(inputs: MultimodalInput, relevance: PositionMap, attention: dict[str, Tensor]) -> Section:
    name, says = METHOD[relevance.provenance.analysis]
    row = next(iter(relevance.by_position().values()))
    return Section(
        "When in the sound",
        f"First, {says}; then the attention of one layer from the position that writes the answer, averaged over its"
        " heads (move the slider). A bar is as wide as what its audio position hears directly.",
        (
            views.sound_player(inputs),
            views.sound_overlay(row, inputs, title=name),
            views.sound_overlay(attention, inputs, title="Attention by layer"),
        ),
        wide=True,
    )


def resampled(lens: MultimodalLens, inputs: MultimodalInput) -> tuple[tuple[str, str], ...]:
    """Said where the encoder did not hear the sound at the rate at which it came."""
    if not inputs.audio or not inputs.audio[0]:
        return ()
    rate = encoder_rate(lens.processor)
    came = sorted({sound.sampling_rate for sound in inputs.audio[0] if sound.sampling_rate != rate})
    return (("Resampled", f"from {', '.join(map(str, came))} Hz to the encoder's {rate} Hz"),) if came else ()

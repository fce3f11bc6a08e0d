"""The sections of the report page, with captions on how to read them."""

from __future__ import annotations

from torch import Tensor

from lensplug import analysis, views
from lensplug.analysis import AttentionFrom, GradientRollout, HeadSpecialization, LogitLens, Rollout
from lensplug.cache.activation_cache import ActivationCache, known
from lensplug.hf.prompts import encoder_rate
from lensplug.inputs.multimodal_input import MultimodalInput
from lensplug.lens import MultimodalLens
from lensplug.running.generation import Answer
from lensplug.views.overlays.image import why_no_grid
from lensplug.views.page.page import Part, Section

PositionMap = Rollout | GradientRollout
"""What is laid over a medium: gradient rollout, or the lift of rollout where gradients overflow."""
PICTURES = 3
"""Maximum number of images of a prompt that get an explorer."""


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
            "The prompt", "The input of the language core, position by position.", (views.modality_ribbon(inputs),)
        ),
        _what_it_came_from(inputs, rollout, relevance, against),
        Section(
            "When the answer forms",
            "The logit lens: the residual stream after each layer, unembedded as if it were the last. Each column is a"
            " position; its cells show the predicted next token.",
            (views.logit_lens(logit_lens, inputs=inputs),),
        ),
        Section(
            "Which heads look where",
            "Attention from the position that predicts the answer: which heads look at the chosen class, compared with"
            " uniform attention (the chance column, the preference button). It does not show what a head moves, nor"
            " whether the answer depends on it. The sink is the first position, the attention sink.",
            (views.head_specialization(heads), views.heads_by_layer(heads)),
        ),
    ]
    attention = analysis.attention_from(cache, queries=known(cache, "query_positions"))
    attention_rows = attention.by_position()
    pictures = len(inputs.pictures())
    if medium in ("image", "video") and not inputs.modality.grids and not inputs.modality.video_grids:
        sections.append(Section(f"Where in the {medium}", f"Not known: {why_no_grid(inputs, medium)}."))
    for index in [index for _, index in sorted(inputs.modality.grids) if index < pictures][:PICTURES]:
        sections.append(_where_in_the_image(inputs, relevance or rollout, attention, index))
        sections.append(_patch_by_patch(cache, inputs, attention, index))
    for _, index in sorted(inputs.modality.video_grids):
        sections.append(_where_in_the_video(inputs, relevance or rollout, attention_rows, index))
    if medium == "audio" and (0, 0) in inputs.modality.timelines:
        sections.append(_when_in_the_sound(inputs, relevance or rollout, attention_rows))
    if medium == "audio":
        received = analysis.received_attention(cache, layer=looking, modality=inputs.modality)
        sections.append(
            Section(
                "What each token receives",
                f"Layer {looking}, all heads: each row divided by its largest entry, each column the mean of its"
                " entries. Text tokens and moments of the sound that receive much attention stand out.",
                (views.received_attention(received),),
            )
        )
    name = (
        f"blocks.{looking}.attn.hook_pattern"  # the full pattern of one layer: another run, but the memory of one layer
    )
    _, patterns = lens.run_with_cache(inputs, names_filter=name, stop_at_layer=looking + 1)
    sections.append(
        Section(
            "Head by head",
            f"The heads of layer {looking}, which has the head with the largest mass on the {medium}. Text tokens are"
            " shown one by one, or in short runs if the prompt is long; image tokens are pooled by region (row,"
            " column), sounds by time.",
            (views.attention_heads(patterns, inputs, layer=looking),),
        )
    )
    return tuple(sections)


METHOD = {
    "gradient_rollout": (
        "Gradient rollout",
        "gradient rollout: attention weighted by its gradient, for the logit difference between the answer token and"
        " the runner-up, across all layers (first position left out)",
    ),
    "attention_rollout": (
        "Rollout, lift",
        "the lift of attention rollout: its ratio to rollout under uniform attention (this model's gradients overflow:"
        " load it in bfloat16 or float32 for gradient rollout)",
    ),
}
"""Analysis -> title of its figure, and what it shows."""


def _what_it_came_from(
    inputs: MultimodalInput, rollout: Rollout, relevance: GradientRollout | None, against: str
) -> Section:
    """The map over the tokens of the prompt."""
    shown_map = relevance or rollout
    says, why = METHOD[shown_map.provenance.analysis][1], f": {against}" if against else ""
    row = next(iter(shown_map.by_position().values())).nan_to_num(0.0).clone()
    row = row.float() / (float(row.max()) or 1.0)  # four decimals are drawn
    parts: tuple[Part, ...] = (views.colored_tokens(row, inputs), views.attention_rollout(rollout, inputs=inputs))
    if relevance is not None:
        parts = (parts[0], views.attention_rollout(relevance, inputs=inputs), parts[1])
    return Section(
        "What the answer came from",
        f"Each token, and each region or stretch of a medium, colored by {says}{why}. Below, the same by position, and"
        " the lift of attention rollout: its ratio to uniform attention. Rollout uses attention weights only; if its"
        " notes say that it follows position order, trust gradient rollout instead.",
        parts,
        wide=True,
    )


def _where_in_the_image(
    inputs: MultimodalInput, relevance: PositionMap, attention: AttentionFrom, index: int
) -> Section:
    name, says = METHOD[relevance.provenance.analysis]
    return Section(
        "Where in the image" + _which(inputs, "image", index),
        f"First, {says}; then the attention of each layer from the position that predicts the answer, averaged over"
        " its heads.",
        (
            views.image_overlay(relevance, inputs, media_index=index, title=name),
            views.image_overlay(attention, inputs, media_index=index, title="Attention by layer"),
        ),
        interaction="Move the slider through the layers.",
    )


def _patch_by_patch(cache: ActivationCache, inputs: MultimodalInput, attention: AttentionFrom, index: int) -> Section:
    lens_at_patches = analysis.logit_lens(cache, positions=inputs.modality.image_positions(index))
    return Section(
        "Patch by patch" + _which(inputs, "image", index),
        "What the logit lens of each layer says at the patches, and which heads attend to them from the position that"
        " predicts an answer token.",
        (views.image_explorer(lens_at_patches, attention, inputs, media_index=index),),
        wide=True,
        interaction="Point at a patch; choose an answer token and a head to see where that head attends.",
    )


def _where_in_the_video(
    inputs: MultimodalInput, relevance: PositionMap, attention: dict[str, Tensor], index: int
) -> Section:
    name, says = METHOD[relevance.provenance.analysis]
    return Section(
        "Where in the video" + _which(inputs, "video", index),
        f"First, {says}; then the attention of one layer from the position that predicts the answer, averaged over its"
        " heads.",
        (
            views.video_overlay(relevance, inputs, media_index=index, title=name),
            views.video_overlay(attention, inputs, media_index=index, title="Attention by layer"),
        ),
        interaction="Move the slider through the frames.",
    )


def _which(inputs: MultimodalInput, modality: str, index: int) -> str:
    """Suffix of a heading: which of several media."""
    count = len({span.media_index for span in inputs.modality.spans if (span.example, span.modality) == (0, modality)})
    return f", {index + 1} of {count}" if count > 1 else ""


def _when_in_the_sound(inputs: MultimodalInput, relevance: PositionMap, attention: dict[str, Tensor]) -> Section:
    name, says = METHOD[relevance.provenance.analysis]
    row = next(iter(relevance.by_position().values()))
    return Section(
        "When in the sound",
        f"First, {says}; then the attention of one layer from the position that predicts the answer, averaged over its"
        " heads. Each bar is as wide as the receptive field of its audio position.",
        (
            views.sound_player(inputs),
            views.sound_overlay(row, inputs, title=name),
            views.sound_overlay(attention, inputs, title="Attention by layer"),
        ),
        wide=True,
        interaction="Move the slider through the layers.",
    )


def resampled(lens: MultimodalLens, inputs: MultimodalInput) -> tuple[tuple[str, str], ...]:
    """A note if sounds were resampled for the encoder."""
    if not inputs.audio or not inputs.audio[0]:
        return ()
    rate = encoder_rate(lens.processor)
    original_rates = sorted({sound.sampling_rate for sound in inputs.audio[0] if sound.sampling_rate != rate})
    return (
        (("Resampled", f"from {', '.join(map(str, original_rates))} Hz to the encoder's {rate} Hz"),)
        if original_rates
        else ()
    )

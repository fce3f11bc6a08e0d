"""One prompt with other media in the places of its own: what would the core receive, had the picture been another?

For counterfactuals made before the processor (a part of a picture blanked, a word cut out of a sound), so that every
view of the medium, base view and tiles alike, shows the same. Sizes and lengths stay, so no position moves, and what
is read at a position of one variant can be compared with the same position of another. The processor makes the
features of the new media; tokens, an answer behind the prompt included, are those of the inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from lensplug.errors import LensplugError
from lensplug.hf import prompts
from lensplug.hf.language_core import LanguageCore
from lensplug.hf.model_inputs import to_model
from lensplug.hf.seam import run_to_seam
from lensplug.inputs.edited_inputs import Variant
from lensplug.inputs.multimodal_input import NOT_MODEL_INPUTS, MultimodalInput
from lensplug.media import Media
from lensplug.media.words_for_media import word_for
from lensplug.validation.finite import LARGER_RANGE, refuse_not_finite

FIELDS = {"image": "images", "video": "videos", "audio": "audio"}
READ_WITH_MEDIA = "qformer_"
"""How the names begin of the prompt's words for the encoder, which reads them with the media (InstructBLIP)."""
TYPES = "token_type_ids"
"""How the names end of what says of each token whether it is a placeholder (Gemma 3, Qwen2-VL)."""


def with_media(
    hf_model: Any, core: LanguageCore, processor: Any, inputs: MultimodalInput, n_variants: int, given: Media
) -> Variant:
    """What the core receives of one prompt with other media, all variants at once.

    Args:
        hf_model: The full model.
        core: Its language core.
        processor: Makes the features.
        inputs: Of one example.
        n_variants: How many sets of media there are.
        given: The media of each variant; a kind that it has none of stays as it is in the inputs.

    Raises:
        LensplugError: If the inputs are several examples, their other media are not known, or media are not of the
            number and sizes of those in whose places they are put.
    """
    if len(inputs) != 1:
        raise LensplugError(f"inputs have {len(inputs)} examples, expected one: inputs[0:1] is the first.")
    if processor is None:
        raise LensplugError(
            "this lens has no processor, which would make features of the media: give lensplug.wrap one."
        )
    media = _complete(inputs, n_variants, given)
    outputs = _features(processor, n_variants, media)
    tokens, mask = (part.expand(n_variants, -1) for part in (inputs.tokens, inputs.attention_mask))
    placeholders = tuple(core.placeholder_ids.values())
    model_inputs = {
        name: to_model(
            _types(value, outputs["input_ids"], tokens, placeholders) if name.endswith(TYPES) else value, core
        )
        for name, value in outputs.items()
        if name not in ("input_ids", "attention_mask", *NOT_MODEL_INPUTS)
    }
    for name in [name for name in model_inputs if name.startswith(READ_WITH_MEDIA)]:
        model_inputs[name] = _own_words(name, inputs).expand(n_variants, -1)
    seam = run_to_seam(hf_model, core, {**model_inputs, "input_ids": tokens, "attention_mask": mask})
    hint = f"the model's encoder overflows in {str(core.dtype).removeprefix('torch.')}; {LARGER_RANGE}"
    refuse_not_finite("the merged embeddings", seam.embeds, hint)
    like = partial(inputs.expand, n_variants)
    return Variant(seam.embeds, seam.attention_mask, seam.beside, tokens, like=like)


def _complete(inputs: MultimodalInput, n_variants: int, given: Media) -> Media:
    """The media of every variant: those that are given, and the others of the inputs."""
    complete = {}
    for kind, name in FIELDS.items():
        of_variants, own = getattr(given, name), getattr(inputs, name)
        if of_variants and own:
            _refuse_other_sizes(of_variants, own[0], kind)
        complete[name] = of_variants or own * n_variants
    for kind in inputs.modality.names:
        as_images = kind == "image" and any(complete["videos"])  # a family that shows videos as images
        if kind in FIELDS and not any(complete[FIELDS[kind]]) and not as_images:
            raise LensplugError(
                f"the {kind} of these inputs is not known: lens.prepare keeps it, to lens.encode give"
                f" {FIELDS[kind]}=[...]."
            )
    return Media(**complete)


def _refuse_other_sizes(of_variants: Sequence[Sequence[Any]], own: Sequence[Any], kind: str) -> None:
    sizes = [_size(medium) for medium in own]
    for media in of_variants:
        if (found := [_size(medium) for medium in media]) != sizes:
            raise LensplugError(
                f"the {kind}s of a variant are {found}, and those of the inputs {sizes}: give as many, of the same"
                " sizes, so that no position moves."
            )


def _size(medium: Any) -> tuple[int, ...]:
    """Width and height of an image, the shape of a video, samples and rate of a sound."""
    if hasattr(medium, "waveform"):
        return len(medium.waveform), medium.sampling_rate
    return tuple(medium.frames.shape) if hasattr(medium, "frames") else tuple(medium.size)


def _features(processor: Any, n_variants: int, media: Media) -> Mapping[str, Any]:
    """What the processor makes of the media behind no words."""
    if any(media.audio):  # here, where no warning says so: it came with the inputs
        rate = prompts.encoder_rate(processor)
        media = replace(media, audio=tuple(tuple(sound.at_rate(rate) for sound in sounds) for sounds in media.audio))
    template = prompts.has_chat_template(processor)
    texts = [""] * n_variants
    if not template:
        texts = [
            "".join(
                (word_for(processor, kind) or "") * len(getattr(media, name)[variant])
                for kind, name in FIELDS.items()
                if getattr(media, name)
            )
            for variant in range(n_variants)
        ]
    outputs, _, _ = prompts.prepare(
        processor,
        texts,
        batched=True,
        images=media.images or None,
        videos=media.videos or None,
        audio=media.audio or None,
        chat_template=template,
    )
    return outputs


def _own_words(name: str, inputs: MultimodalInput) -> Tensor:
    """What an encoder reads of the prompt with its media: that of the inputs; here the processor gets no words."""
    if name not in inputs.model_inputs:
        raise LensplugError(
            f"the encoder of this model reads words with its media ({name}), and these are not known of one example of"
            " several: give the inputs of one prompt, as lens.prepare returns them."
        )
    words: Tensor = inputs.model_inputs[name]
    return words


def _types(
    types: Int[Tensor, "variant other"],
    of_tokens: Int[Tensor, "variant other"],
    tokens: Int[Tensor, "variant pos"],
    placeholders: Sequence[int],
) -> Int[Tensor, "variant pos"]:
    """The types of the tokens of the inputs: those that the placeholders have behind no words, and 0."""
    moved = torch.zeros_like(tokens)
    for placeholder in placeholders:
        if bool((found := of_tokens == placeholder).any()):
            moved[tokens == placeholder] = int(types[found][0])
    return moved

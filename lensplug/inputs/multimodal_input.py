"""From processor outputs to the input of the language core: `MultimodalInput`.

`encode` runs the full model up to its decoder, on what `prompts.prepare` or the user's own call of the processor
gave. It is reached through the lens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor

from lensplug.errors import LensplugError
from lensplug.families import FRAMES_ARE_IMAGES, MediaLayout, ProcessedBatch, media_layout
from lensplug.hf.language_core import LanguageCore
from lensplug.hf.model_inputs import to_model
from lensplug.hf.seam import run_to_seam
from lensplug.inputs.slicing import indexed
from lensplug.media import Media, Sound, Video
from lensplug.media.warn import warn_user
from lensplug.patches.decoder_inputs import on_device
from lensplug.positions.modality_map import ModalityMap
from lensplug.positions.tokens import token_texts
from lensplug.positions.user_words import user_words
from lensplug.validation.arguments import check_example, checked
from lensplug.validation.finite import LARGER_RANGE, refuse_not_finite
from lensplug.validation.masks import as_mask

NOT_MODEL_INPUTS = ("text_replacement_offsets",)
NOT_HEARD_S = 0.1
"""A shorter end of a sound that is cut off is not worth a warning."""
MEDIA_FEATURES = {
    "image": ("pixel_values", "pixel_values_images", "image_embeds", "image_pixel_values", "image_patches"),
    "video": ("pixel_values_videos",),
    "audio": ("input_features", "input_values", "audio_values", "audio_input_features"),
}
"""Modality -> under which names a model takes what its encoder reads."""


@dataclass(frozen=True, eq=False)
class MultimodalInput:
    """The input of the language core, with its modality map. Accepted wherever tokens are."""

    embeds: Float[Tensor, "batch pos d_model"]
    """Text, image and audio merged, as the full model merges them."""
    tokens: Int[Tensor, "batch pos"]
    """Token ids, placeholders expanded."""
    attention_mask: Int[Tensor, "batch pos"]
    """1 = attended, 0 = padding."""
    modality: ModalityMap
    str_tokens: list[list[str]] = field(repr=False)
    """The text of every token."""
    model_inputs: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """What the full model takes for the same input (`lens.check` runs it); mostly empty after `generate`."""
    decoder_inputs: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Additional inputs of the decoder: multimodal rotary positions (Qwen2-VL), attention masks (Gemma 3)."""
    images: tuple[tuple[Image.Image, ...], ...] = field(default=(), repr=False)
    """The images of each example, where `prepare` was given them; views draw over them."""
    videos: tuple[tuple[Video, ...], ...] = field(default=(), repr=False)
    """The videos of each example: the frames that the model sees."""
    audio: tuple[tuple[Sound, ...], ...] = field(default=(), repr=False)
    """The sounds of each example, as they came."""

    @checked
    def pictures(self, example: int = 0) -> list[Image.Image]:
        """The images of an example as they are known, by media_index.

        For a family that shows a video as images (InternVL), its frames.
        """
        check_example(example, len(self))
        if self.images and self.images[example]:
            return list(self.images[example])
        if not self.videos or "video" in self.modality.names:
            return []
        return [video.image(frame) for video in self.videos[example] for frame in range(len(video))]

    def __len__(self) -> int:
        """The number of examples."""
        return len(self.tokens)

    # As of tokens, for the tools of TransformerLens: `lensplug.inputs.slicing` says what the pieces are.

    @property
    def shape(self) -> torch.Size:
        """[batch, pos]."""
        return self.tokens.shape

    @property
    def ndim(self) -> int:
        """2."""
        return 2

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the token ids; the embeddings have their own."""
        return self.tokens.dtype

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.tokens.device

    def __getitem__(self, key: Any) -> Any:
        """`inputs[0:1]`, `inputs[[0, 2]]`, `inputs[:, :128]`: examples, first positions; `inputs[0]`: token ids."""
        return indexed(self, key)

    def __iter__(self) -> Iterator[MultimodalInput]:
        """The examples, one by one."""
        return (self[example : example + 1] for example in range(len(self)))

    def __eq__(self, other: object) -> Any:
        """At which positions two inputs of one shape receive the same, `[batch pos]`."""
        if not isinstance(other, MultimodalInput):
            return NotImplemented
        if self.embeds.shape[1:] != other.embeds.shape[1:]:
            return False
        return (self.embeds == other.embeds).all(dim=-1) & (self.tokens == other.tokens)

    __hash__ = object.__hash__

    def expand(self, batch: int, pos: int = -1) -> MultimodalInput:
        """One example many times, as of tokens: `inputs.expand(8, -1)`."""
        if len(self) not in (1, batch) or pos not in (-1, self.shape[1]):
            raise LensplugError(f"inputs of shape {list(self.shape)} cannot be expanded to [{batch}, {pos}].")
        return self if len(self) == batch else cast(MultimodalInput, self[[0] * batch])

    def to(self, device: torch.device | str) -> MultimodalInput:
        """The same input on another device."""
        moved = {name: getattr(self, name).to(device) for name in ("embeds", "tokens", "attention_mask", "modality")}
        return replace(self, **moved, decoder_inputs=on_device(self.decoder_inputs, device))

    def cpu(self) -> MultimodalInput:
        """The same input on the CPU."""
        return self.to("cpu")

    def __repr__(self) -> str:
        """Shape and modalities."""
        batch, pos, width = self.embeds.shape
        counts = ", ".join(f"{int(self.modality.mask(name).sum())} {name}" for name in self.modality.names)
        return f"MultimodalInput(batch={batch}, pos={pos}, d_model={width}; positions: {counts})"

    def appended(
        self,
        tokens: Int[Tensor, "batch new"],
        embeds: Float[Tensor, "batch new d_model"],
        generated: Bool[Tensor, "batch new"],
        str_tokens: list[list[str]],
    ) -> MultimodalInput:
        """The same input with an answer appended; positions where `generated` is False are padding."""
        return replace(
            self,
            embeds=torch.cat([self.embeds, embeds], dim=1),
            tokens=torch.cat([self.tokens, tokens], dim=1),
            attention_mask=torch.cat([self.attention_mask, generated.long()], dim=1),
            modality=self.modality.appended(generated),
            str_tokens=[
                prompt_texts + answer_texts
                for prompt_texts, answer_texts in zip(self.str_tokens, str_tokens, strict=True)
            ],
            model_inputs={},
            decoder_inputs={},
        )


def refuse_other_inputs(inputs: Any) -> None:
    """Raise if these are tokens, embeddings or what a processor returned, or hold NaN."""
    if not isinstance(inputs, MultimodalInput):
        raise LensplugError(
            f"inputs are a {type(inputs).__name__}, expected what lens.prepare(...) returns, or lens.encode(...) of a"
            " processor's outputs. (lens.model itself takes tokens, and what lens.without returns.)"
        )
    refuse_not_finite("the embeddings", inputs.embeds, "they have changed since lens.prepare or lens.encode")


def encode(
    hf_model: Any,
    core: LanguageCore,
    processor: Any,
    processor_outputs: Mapping[str, Any],
    *,
    given: Media,
    pieces: Sequence[Sequence[tuple[str, bool]] | None] | None = None,
) -> MultimodalInput:
    """Run the full model up to its decoder on what a processor returned.

    Args:
        hf_model: The full model.
        core: Its language core.
        processor: For the text of the tokens, and how it scales and cuts images; may be None.
        processor_outputs: A BatchFeature or dict with at least `input_ids`, on any device.
        given: The media as far as they are at hand: kept for the views, and for sizes and lengths that the
            outputs do not tell.
        pieces: Each prompt as it was written, each piece with whether the user wrote it; None where it is not known.

    Raises:
        LensplugError: If there are no tokens, or the model refuses its inputs.
    """
    if "input_ids" not in processor_outputs:
        raise LensplugError(
            f"processor outputs have {sorted(processor_outputs)}, but no input_ids: give lens.encode what the processor"
            " returns for text and media together."
        )
    model_inputs = {
        name: to_model(value, core) for name, value in processor_outputs.items() if name not in NOT_MODEL_INPUTS
    }
    tokens = model_inputs["input_ids"]
    if not isinstance(tokens, Tensor) or tokens.ndim != 2:
        raise LensplugError(
            "input_ids is not a tensor [batch pos]: run the processor (or its apply_chat_template) with"
            " return_tensors='pt'."
        )
    mask = model_inputs.get("attention_mask")
    if isinstance(mask, Tensor) and mask.ndim == 2:
        model_inputs["attention_mask"] = as_mask(mask, tokens.shape, "attention_mask").long()
    for name, value in model_inputs.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            refuse_not_finite(f"the {name}", value, "look at the image, video or sound that was given")
    _refuse_foreign_tokens(tokens, core)
    _refuse_lonely_placeholders(model_inputs, core, hf_model.config.model_type in FRAMES_ARE_IMAGES)
    seam = run_to_seam(hf_model, core, model_inputs)
    hint = f"the model's encoder overflows in {str(core.dtype).removeprefix('torch.')}; {LARGER_RANGE}"
    refuse_not_finite("the merged embeddings", seam.embeds, hint)
    if seam.embeds.shape[:2] != tokens.shape:
        raise LensplugError(
            f"the decoder receives {list(seam.embeds.shape[:2])} positions for {list(tokens.shape)} tokens: the model"
            " merges by a rule of its own, and positions cannot be labelled."
        )
    placeholders = {
        kind: runs
        for kind, token in core.placeholder_ids.items()
        if any(runs := _runs((tokens == token) & seam.attention_mask.bool()))
    }
    layout = MediaLayout()
    if placeholders:
        layout = media_layout(ProcessedBatch(hf_model.config, processor_outputs, placeholders, given, processor))
        _say_what_is_not_heard(layout)
    tokenizer = getattr(processor, "tokenizer", processor)
    modality = ModalityMap.of_known_types(
        tokens,
        seam.attention_mask,
        placeholder_ids={kind: core.placeholder_ids[kind] for kind in placeholders},
        special_ids=tokenizer.all_special_ids if tokenizer is not None else (),
        media_lengths=layout.lengths,
        grids=layout.grids,
        video_grids=layout.video_grids,
        timelines=layout.timelines,
        frames=_frames(layout, core, tokens, seam.attention_mask.bool()),
    )
    types = model_inputs.get("token_type_ids")
    if core.sees_whole_prompt and isinstance(types, Tensor):  # which says what is no prompt (a processor's `suffix`)
        modality = modality.with_answer_at(types == 1)
    modality = replace(modality, no_place=layout.no_place)
    str_tokens = token_texts(tokens, tokenizer)
    if pieces is not None and all(piece is not None for piece in pieces):
        modality = replace(modality, user_words=_user_words(pieces, str_tokens, tokens, tokenizer, modality))
    return MultimodalInput(
        embeds=seam.embeds,
        tokens=tokens,
        attention_mask=seam.attention_mask,
        modality=modality,
        str_tokens=str_tokens,
        model_inputs=model_inputs,
        decoder_inputs=seam.beside,
        images=given.images,
        videos=given.videos,
        audio=given.audio,
    )


def _user_words(
    pieces: Sequence[Any], str_tokens: list[list[str]], tokens: Tensor, tokenizer: Any, modality: ModalityMap
) -> Bool[Tensor, "batch pos"]:
    is_ordinary = modality.mask("text") & ~modality.special
    examples = zip(pieces, str_tokens, tokens.tolist(), is_ordinary, strict=True)
    return torch.stack([user_words(written, texts, ids, tokenizer, row) for written, texts, ids, row in examples])


def _say_what_is_not_heard(layout: MediaLayout) -> None:
    """Warn about sounds that are too long for the encoder: Hugging Face's processors truncate them silently."""
    cut = {place: line for place, line in layout.timelines.items() if line.heard_s is not None}
    lost = [
        f"{line.heard_s:.1f} s of the {line.duration_s:.1f} s of sound {index} of example {example}"
        for (example, index), line in sorted(cut.items(), key=lambda item: item[0])
        if line.duration_s - (line.heard_s or 0.0) > NOT_HEARD_S
    ]
    if lost:
        more = f" (and so of {len(lost) - 3} others)" if len(lost) > 3 else ""
        warn_user(f"the model hears the first {', '.join(lost[:3])}{more}: its processor cuts off what is behind.")


def _frames(
    layout: MediaLayout, core: LanguageCore, tokens: Int[Tensor, "batch pos"], real: Bool[Tensor, "batch pos"]
) -> Bool[Tensor, "batch pos"] | None:
    """Where placeholders of images are frames of videos."""
    if layout.video_runs is None:
        return None
    is_image = (tokens == core.placeholder_ids["image"]) & real
    frames = torch.zeros_like(is_image)
    for example, (row, of_runs) in enumerate(zip(is_image.tolist(), layout.video_runs, strict=True)):
        answers, at = iter(of_runs), 0
        for value, run in groupby(row):
            length = len(list(run))
            frames[example, at : at + length] = value and next(answers)
            at += length
    return frames


def _runs(is_placeholder: Bool[Tensor, "batch pos"]) -> list[list[int]]:
    """For each example, the lengths of the runs of True."""
    return [[len(list(run)) for value, run in groupby(row) if value] for row in is_placeholder.tolist()]


def _refuse_foreign_tokens(tokens: Tensor, core: LanguageCore) -> None:
    rows = core.decoder.embed_tokens.weight.shape[0]
    if tokens.numel() == 0 or int(tokens.min()) < 0 or int(tokens.max()) >= rows:
        raise LensplugError(
            f"token ids reach from {int(tokens.min()) if tokens.numel() else '-'} to"
            f" {int(tokens.max()) if tokens.numel() else '-'}, the model has {rows}: is this the processor of this"
            " model?"
        )


def _refuse_lonely_placeholders(
    model_inputs: Mapping[str, Any], core: LanguageCore, frames_are_images: bool = False
) -> None:
    """Hugging Face models run happily on placeholders without a medium, as if those were words."""
    for kind, token in core.placeholder_ids.items():
        count = int((model_inputs["input_ids"] == token).sum())
        names = MEDIA_FEATURES[kind]
        if frames_are_images and kind in ("image", "video"):
            token, names = core.placeholder_ids["image"], (*MEDIA_FEATURES["image"], *MEDIA_FEATURES["video"])
            count = int((model_inputs["input_ids"] == token).sum())
        if kind == "video" and "image" not in core.placeholder_ids:
            names = (*names, "pixel_values")  # InstructBLIP's frames
        if kind == "image" and "video" not in core.placeholder_ids:
            names = (*names, *MEDIA_FEATURES["video"])
        has_features = any(model_inputs.get(name) is not None for name in names)
        if count and not has_features:
            raise LensplugError(
                f"the tokens hold {count} {kind} placeholder(s), but no {kind} is given: run the processor with text"
                f" and {kind} together."
            )
        if has_features and not count:
            raise LensplugError(
                f"{kind} features are given, but no token is the {kind} placeholder (id {token}): the prompt needs one"
                f" for each {kind}, and the {kind} must be large enough for a position."
            )

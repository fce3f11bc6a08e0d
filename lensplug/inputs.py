"""From what a user has to what the language core receives: `MultimodalInput`.

`prepare` takes words, pictures and sounds, applies the chat template and runs the processor; `encode` takes what
a processor returned and runs the full model up to its decoder. Both are reached through the lens.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor

from lensplug.core import LanguageCore
from lensplug.errors import LensplugError
from lensplug.families import media_layout
from lensplug.media import Sound, is_one_image, is_one_sound, load_image, load_sound
from lensplug.modality import ModalityMap
from lensplug.seam import run_to_seam
from lensplug.tokens import token_texts

NOT_MODEL_INPUTS = ("text_replacement_offsets",)


@dataclass(frozen=True)
class MultimodalInput:
    """What the language core receives, and which position is what. Goes wherever tokens go."""

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
    """What the full model takes for the same input (`lens.check` runs it); empty after `generate`."""
    images: tuple[tuple[Image.Image, ...], ...] = field(default=(), repr=False)
    """The pictures of each example, where `prepare` was given them; views draw over them."""
    audio: tuple[tuple[Sound, ...], ...] = field(default=(), repr=False)
    """The sounds of each example, as they came."""

    def __len__(self) -> int:
        """The number of examples."""
        return len(self.tokens)

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
        """The same input with an answer behind it; where `generated` is False there is padding."""
        return replace(
            self,
            embeds=torch.cat([self.embeds, embeds], dim=1),
            tokens=torch.cat([self.tokens, tokens], dim=1),
            attention_mask=torch.cat([self.attention_mask, generated.long()], dim=1),
            modality=self.modality.appended(generated),
            str_tokens=[old + new for old, new in zip(self.str_tokens, str_tokens, strict=True)],
            model_inputs={},
        )


def prepare(
    processor: Any,
    text: str | Sequence[str],
    *,
    images: Any = None,
    audio: Any = None,
    chat_template: bool = True,
) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """Run the processor on prompts, pictures and sounds.

    Args:
        processor: The model's Hugging Face processor.
        text: One prompt, or one for each example of a batch.
        images: A list of the prompt's pictures (PIL images, arrays `[height width channel]` of uint8, or
            paths), or a single one; for a batch, one such list for each example.
        audio: Likewise its sounds (paths, or pairs of waveform and sampling rate). They are resampled to
            the rate that the encoder takes, with a warning that says so.
        chat_template: Wrap the prompt as a user's turn, media first. Without it the text must hold the
            placeholders itself.

    Returns:
        The processor's outputs, and what was given: `images` as RGB and `audio`, a tuple for each example.

    Raises:
        LensplugError: If media and placeholders do not match, or a file cannot be read.
    """
    texts = [text] if isinstance(text, str) else list(text)
    batched = not isinstance(text, str)
    pictures = _per_example(images, len(texts), "images", is_one_image, load_image, batched=batched)
    sounds = _per_example(audio, len(texts), "audio", is_one_sound, load_sound, batched=batched)
    media = {"image": pictures, "audio": sounds}
    parts = {"image": ("image_processor",), "audio": ("feature_extractor", "audio_processor")}
    for kind, given in media.items():
        if any(given) and not any(hasattr(processor, part) for part in parts[kind]):
            raise LensplugError(f"{kind} is given, but {type(processor).__name__} takes none.")
    if chat_template:
        counts = [{kind: len(given[example]) for kind, given in media.items()} for example in range(len(texts))]
        texts = [_chat_prompt(processor, prompt, count) for prompt, count in zip(texts, counts, strict=True)]
    for kind, given in media.items():
        _refuse_other_count(texts, given, getattr(processor, f"{kind}_token", None), kind)
    # Padding at the left: the last position of every prompt is then the one that writes its answer.
    of_text: dict[str, Any] = {"padding": True, "padding_side": "left"} if len(texts) > 1 else {}
    bos = getattr(getattr(processor, "tokenizer", processor), "bos_token", None)
    if chat_template and bos and texts[0].startswith(bos):
        of_text["add_special_tokens"] = False  # the template has written it
    if hasattr(processor, "tokenizer"):
        # Said to each part by its name: padding of the text is not that of sounds, which may go to a whole window.
        arguments: dict[str, Any] = {"text_kwargs": of_text, "common_kwargs": {"return_tensors": "pt"}}
    else:
        arguments = {**of_text, "return_tensors": "pt"}
    arguments["text"] = texts
    if any(pictures):
        arguments["images"] = [list(own) for own in pictures]
    if any(sounds):
        rate = int(_audio_part(processor).sampling_rate)
        _say_resampled({sound.sampling_rate for own in sounds for sound in own} - {rate}, rate)
        arguments["audio"] = [sound.at_rate(rate).waveform.numpy() for own in sounds for sound in own]
        arguments["audio_kwargs"] = {"sampling_rate": rate}
    try:
        outputs = processor(**arguments)
    except LensplugError:
        raise
    except (ValueError, TypeError) as error:
        raise LensplugError(f"{type(processor).__name__} refused its inputs: {error}") from error
    return outputs, {"images": tuple(pictures), "audio": tuple(sounds)}


def encode(
    hf_model: Any,
    core: LanguageCore,
    tokenizer: Any,
    processor_outputs: Mapping[str, Any],
    *,
    images: tuple[tuple[Image.Image, ...], ...] = (),
    audio: tuple[tuple[Sound, ...], ...] = (),
) -> MultimodalInput:
    """Run the full model up to its decoder on what a processor returned.

    Args:
        hf_model: The full model.
        core: Its language core.
        tokenizer: For the text of the tokens; may be None.
        processor_outputs: A BatchFeature or dict with at least `input_ids`, on any device.
        images: Kept for the views.
        audio: Kept for the views, and for the length of each sound.

    Raises:
        LensplugError: If there are no tokens, or the model refuses its inputs.
    """
    if "input_ids" not in processor_outputs:
        raise LensplugError(
            f"processor outputs have {sorted(processor_outputs)}, but no input_ids: give lens.encode what the processor"
            " returns for text and media together."
        )
    model_inputs = {
        name: _to_model(value, core) for name, value in processor_outputs.items() if name not in NOT_MODEL_INPUTS
    }
    tokens = model_inputs["input_ids"]
    if not isinstance(tokens, Tensor) or tokens.ndim != 2:
        raise LensplugError("input_ids is not a tensor [batch pos]: run the processor with return_tensors='pt'.")
    mask = model_inputs.get("attention_mask")
    if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape != tokens.shape:
        raise LensplugError(f"attention_mask has the shape {list(mask.shape)}, expected {list(tokens.shape)}.")
    _refuse_foreign_tokens(tokens, core)
    _refuse_lonely_placeholders(model_inputs, core)
    seam = run_to_seam(hf_model, core, model_inputs)
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
    durations = [[sound.duration_s for sound in own] for own in audio] or None
    layout = media_layout(hf_model.config, processor_outputs, placeholders, durations) if placeholders else None
    modality = ModalityMap.build(
        tokens,
        seam.attention_mask,
        placeholder_ids={kind: core.placeholder_ids[kind] for kind in placeholders},
        special_ids=tokenizer.all_special_ids if tokenizer is not None else (),
        media_lengths=layout.lengths if layout else None,
        grids=layout.grids if layout else None,
        timelines=layout.timelines if layout else None,
    )
    return MultimodalInput(
        embeds=seam.embeds,
        tokens=tokens,
        attention_mask=seam.attention_mask,
        modality=modality,
        str_tokens=token_texts(tokens, tokenizer),
        model_inputs=model_inputs,
        images=images,
        audio=audio,
    )


def _per_example(
    given: Any,
    n_examples: int,
    name: str,
    is_one: Callable[[Any], bool],
    load: Callable[[Any], Any],
    *,
    batched: bool,
) -> list[tuple[Any, ...]]:
    """The media of each example, loaded."""
    if given is None:
        return [()] * n_examples
    given = [given] if is_one(given) else list(given)
    groups = [[own] if is_one(own) else list(own) for own in given] if batched else [given]
    if len(groups) != n_examples:
        raise LensplugError(
            f"{n_examples} prompts, but {name} for {len(groups)}: give one list of {name} for each prompt."
        )
    return [tuple(load(one) for one in own) for own in groups]


def _say_resampled(rates: set[int], rate: int) -> None:
    if rates:
        came = ", ".join(map(str, sorted(rates)))
        warnings.warn(f"sounds of {came} Hz are resampled to the {rate} Hz that the encoder takes.", stacklevel=4)


def _audio_part(processor: Any) -> Any:
    return getattr(processor, "audio_processor", None) or processor.feature_extractor


def _refuse_other_count(texts: Sequence[str], given: Sequence[Sequence[Any]], token: str | None, kind: str) -> None:
    if token is None:
        return
    for example, (prompt, own) in enumerate(zip(texts, given, strict=True)):
        if prompt.count(token) != len(own):
            raise LensplugError(
                f"example {example} has {len(own)} {kind}(s) and {prompt.count(token)} placeholder(s) {token!r}:"
                f" give one placeholder for each {kind}, or plain words and chat_template=True."
            )


def _chat_prompt(processor: Any, prompt: str, media: Mapping[str, int]) -> str:
    if not getattr(processor, "chat_template", None) and not getattr(
        getattr(processor, "tokenizer", None), "chat_template", None
    ):
        raise LensplugError(
            f"{type(processor).__name__} has no chat template: write the prompt in the model's own form, with its"
            " placeholders, and give chat_template=False; or run the processor yourself, and use"
            " lens.encode(processor_outputs)."
        )
    content: list[Any] = [{"type": kind} for kind, count in media.items() for _ in range(count)]
    content.append({"type": "text", "text": prompt})
    message: Any = [{"role": "user", "content": content if hasattr(processor, "tokenizer") else prompt}]
    rendered = processor.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
    return str(rendered)


def _runs(at: Bool[Tensor, "batch pos"]) -> list[list[int]]:
    """For each example, the lengths of the runs of True."""
    return [[len(list(run)) for value, run in groupby(row) if value] for row in at.tolist()]


def _to_model(value: Any, core: LanguageCore) -> Any:
    """To the core's device, floats to its dtype: what `BatchFeature.to` does."""
    if not isinstance(value, Tensor):
        return value
    return value.to(core.device, core.dtype) if value.is_floating_point() else value.to(core.device)


def _refuse_foreign_tokens(tokens: Tensor, core: LanguageCore) -> None:
    rows = core.decoder.embed_tokens.weight.shape[0]
    if tokens.numel() == 0 or int(tokens.min()) < 0 or int(tokens.max()) >= rows:
        raise LensplugError(
            f"token ids reach from {int(tokens.min()) if tokens.numel() else '-'} to"
            f" {int(tokens.max()) if tokens.numel() else '-'}, the model has {rows}: is this the processor of this"
            " model?"
        )


def _refuse_lonely_placeholders(model_inputs: Mapping[str, Any], core: LanguageCore) -> None:
    """Hugging Face models run happily on placeholders without a medium, as if those were words."""
    features = {
        "image": ("pixel_values", "image_embeds"),
        "video": ("pixel_values_videos",),
        "audio": ("input_features", "input_values"),
    }
    for kind, token in core.placeholder_ids.items():
        count = int((model_inputs["input_ids"] == token).sum())
        given = any(model_inputs.get(name) is not None for name in features[kind])
        if count and not given:
            raise LensplugError(
                f"the tokens hold {count} {kind} placeholder(s), but no {kind} is given: run the processor with text"
                f" and {kind} together."
            )
        if given and not count:
            raise LensplugError(
                f"{kind} features are given, but no token is the {kind} placeholder (id {token}): the prompt needs one"
                f" for each {kind}."
            )

"""From text and media to processor outputs, in the model's own prompt format.

`prepare` applies the chat template, checks that media and placeholders match, and runs the processor. It is reached
through the lens; `inputs.encode` takes it from there.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from lensplug.errors import LensplugError
from lensplug.hf import chat_templates
from lensplug.hf.conversations import Conversation, media_of, messages, with_media
from lensplug.hf.user_words import Pieces, pieces_of
from lensplug.media import Media, Sound, load_media
from lensplug.media.warn import warn_user
from lensplug.media.words_for_media import word_for

TOLD = {
    "Cosmos3EdgeProcessor": {
        "text_kwargs": {"return_mm_token_type_ids": True},
        "videos_kwargs": {"return_metadata": True},
    },
}
"""Processors that have to be told to return what they or their model cannot do without -> by which arguments."""


def prepare(
    processor: Any,
    prompts: Sequence[str | Conversation],
    *,
    batched: bool,
    images: Any = None,
    videos: Any = None,
    audio: Any = None,
    chat_template: bool = True,
) -> tuple[Mapping[str, Any], Media, list[Pieces | None]]:
    """Run the processor on prompts, images, videos and sounds.

    Args:
        processor: The model's Hugging Face processor.
        prompts: One for each example, a text or a conversation (`conversations.read`).
        batched: Whether media are a list for each prompt; else they are those of the only prompt.
        images: A list of the prompt's images (as `lensplug.media.load_image` takes them), or a single one; for a
            batch, one such list for each example, or None.
        videos: Videos per prompt (as for `load_video`).
        audio: Sounds per prompt (as for `load_sound`). They are resampled to the rate that the encoder
            takes, with a warning that says so.
        chat_template: Wrap the prompt as a user's turn, media first. Without it the text must hold the
            placeholders itself.

    Returns:
        The processor's outputs; what was given, loaded; and each prompt as it was written, in pieces that tell the
        user's words from the template's (None where that is not known).

    Raises:
        LensplugError: If media and placeholders do not match, or a file cannot be read.
    """
    if not chat_template and any(not isinstance(prompt, str) for prompt in prompts):
        raise LensplugError("chat messages are wrapped by the model's chat template: leave chat_template=False out.")
    loaded = media_of(prompts, batched=batched, images=images, videos=videos, audio=audio)
    sounds = loaded.audio
    nothing = ((),) * len(prompts)
    media: dict[str, Sequence[Sequence[Any]]] = {
        "image": loaded.images or nothing,
        "video": loaded.videos or nothing,
        "audio": sounds or nothing,
    }
    parts = {
        "image": ("image_processor",),
        "video": ("video_processor",),
        "audio": ("feature_extractor", "audio_processor"),
    }
    for kind, media_of_examples in media.items():
        if any(media_of_examples) and not any(hasattr(processor, part) for part in parts[kind]):
            raise LensplugError(f"{kind} is given, but {type(processor).__name__} takes none.")
    heard = _at_the_encoders_rate(processor, sounds) if any(sounds) else []
    if any(sounds) and "audio" not in inspect.signature(type(processor).__call__).parameters:
        if not chat_template:
            raise LensplugError(
                f"{type(processor).__name__} takes sounds in its chat template only: pass plain text and"
                " chat_template=True."
            )
        turns = [
            with_media(prompt, {"audio": len(media_of_examples)})
            for prompt, media_of_examples in zip(prompts, sounds, strict=True)
        ]
        return _by_template(processor, turns, heard), loaded, [_texts_of(conversation) for conversation in turns]
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    pieces: list[Pieces | None] = [[(text, True)] for text in texts]
    if chat_template:
        counts = [
            {kind: len(media_of_examples[example]) for kind, media_of_examples in media.items()}
            for example in range(len(prompts))
        ]
        turns = [with_media(prompt, count) for prompt, count in zip(prompts, counts, strict=True)]
        texts = [_chat_prompt(processor, conversation) for conversation in turns]
        pieces = [pieces_of(processor, conversation, text) for conversation, text in zip(turns, texts, strict=True)]
    for kind, media_of_examples in media.items():
        _refuse_other_count(texts, media_of_examples, _placeholder(processor, kind), kind)
    arguments = _arguments(processor, texts, loaded, heard)
    bos = getattr(getattr(processor, "tokenizer", processor), "bos_token", None)
    if chat_template and bos and texts[0].startswith(bos):
        arguments.get("text_kwargs", arguments)["add_special_tokens"] = False  # the template has written it
    return _run(processor, arguments), loaded, pieces


def _run(processor: Any, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    """The processor's outputs; any exception from its files becomes one readable error."""
    name = type(processor).__name__
    try:
        outputs: Mapping[str, Any] = processor(**arguments)
    except LensplugError:
        raise
    except Exception as error:
        reason = str(error) if isinstance(error, ValueError | TypeError) else f"{type(error).__name__}: {error}"
        raise LensplugError(f"{name} refused its inputs: {reason}") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of the tokenizers library, which is in Rust
            raise
        raise LensplugError(f"{name} refused its inputs: {error}") from error
    return outputs


def _arguments(processor: Any, texts: Sequence[str], media: Media, heard: Sequence[Sequence[Sound]]) -> dict[str, Any]:
    """The arguments for the processor."""
    # Padding at the left: the last position of every prompt is then the one that writes its answer.
    of_text: dict[str, Any] = {"padding": True, "padding_side": "left"} if len(texts) > 1 else {}
    arguments: dict[str, Any] = {**of_text, "return_tensors": "pt"}
    taken = inspect.signature(type(processor).__call__).parameters
    if hasattr(processor, "tokenizer") and "return_tensors" not in taken:
        # Said to each part by its name: padding of the text is not that of sounds, which may go to a whole window.
        arguments = {"text_kwargs": of_text, "common_kwargs": {"return_tensors": "pt"}}
    arguments["text"] = texts
    if any(media.images):
        nested = [list(pictures) for pictures in media.images]
        # GOT-OCR 2 takes a list of an example's images for the pages of one, with a single placeholder.
        flat = hasattr(processor, "img_pad_token")
        arguments["images"] = [picture for pictures in nested for picture in pictures] if flat else nested
    if any(media.videos) and "images" in taken and "videos" not in taken:
        arguments["images"] = _stackable(media)  # InstructBLIP's frames
    elif any(media.videos):
        arguments["videos"] = _stackable(media)
        arguments["videos_kwargs"] = {"do_sample_frames": False}  # the frames that were given are those that are seen
        times = [video.times_s for of_example in media.videos for video in of_example]
        if all(moments is not None for moments in times):  # else a processor takes 24 frames a second to be seen
            arguments["videos_kwargs"]["video_metadata"] = [_shown(moments) for moments in times]
    for part, options in TOLD.get(type(processor).__name__, {}).items():
        arguments[part] = {**arguments.get(part, {}), **options}
    if any(heard):
        arguments["audio"] = [sound.waveform.numpy() for sounds in heard for sound in sounds]
        arguments["audio_kwargs"] = {"sampling_rate": encoder_rate(processor)}
    return arguments


def _shown(times_s: Any) -> dict[str, Any]:
    """When frames are shown, as processors read it that write times into the prompt, or give them to the model.

    Their number in a second is a thousand here, so that a frame has any time to a millisecond: frames of a file with a
    varying rate have times of their own.
    """
    moments = [round(1000 * float(time)) for time in times_s]
    apart = (moments[-1] - moments[0]) / (len(moments) - 1) if len(moments) > 1 else 1000 / 24
    end = round(moments[-1] + apart)
    return {"fps": 1000.0, "frames_indices": moments, "total_num_frames": end, "duration": end / 1000}


def _stackable(media: Media) -> list[Any]:
    """The frames of every video; Hugging Face stacks videos."""
    videos = [video for of_example in media.videos for video in of_example]
    if len(counts := sorted({len(video) for video in videos})) > 1:
        raise LensplugError(
            f"videos of {', '.join(map(str, counts))} frames in one call, which Hugging Face cannot stack: give all the"
            " same number (lensplug.media.load_video has num_frames=)."
        )
    return [video.frames.numpy() for video in videos]


def _by_template(
    processor: Any, conversations: Sequence[Conversation], sounds: Sequence[Sequence[Sound]]
) -> Mapping[str, Any]:
    """Where the processor itself takes no sounds, as Voxtral's: they go into the turns, as files in memory."""
    turns = []
    for conversation, sounds_of_prompt in zip(conversations, sounds, strict=True):
        parts = iter([{"type": "audio", "base64": sound.as_wav()} for sound in sounds_of_prompt])
        turns.append(messages(conversation, as_text=False, sounds=parts))
    try:
        outputs: Mapping[str, Any] = processor.apply_chat_template(turns, tokenize=True, return_dict=True)
    except (ValueError, TypeError) as error:
        raise LensplugError(f"{type(processor).__name__} refused its inputs: {error}") from error
    return outputs


def _texts_of(conversation: Conversation) -> Pieces:
    """The texts of a conversation whose prompt is not seen: what the template adds is not among them."""
    return [(text, turn.role == "user") for turn in conversation for kind, text in turn.parts if kind == "text"]


def _at_the_encoders_rate(processor: Any, sounds: Sequence[Sequence[Sound]]) -> list[list[Sound]]:
    rate = encoder_rate(processor)
    if other_rates := {sound.sampling_rate for sounds_of_example in sounds for sound in sounds_of_example} - {rate}:
        rates = ", ".join(map(str, sorted(other_rates)))
        warn_user(f"sounds of {rates} Hz are resampled to the {rate} Hz that the encoder takes.")
    return [[sound.at_rate(rate) for sound in sounds_of_example] for sounds_of_example in sounds]


def encoder_rate(processor: Any) -> int:
    """The sampling rate, in Hz, of the sounds that a processor takes."""
    return int((getattr(processor, "audio_processor", None) or processor.feature_extractor).sampling_rate)


def has_chat_template(processor: Any) -> bool:
    """Whether the model has a chat template; a base model has none."""
    tokenizer = getattr(processor, "tokenizer", None)
    return bool(getattr(processor, "chat_template", None) or getattr(tokenizer, "chat_template", None))


def as_the_model_reads(processor: Any, text: str, *, images: Any, videos: Any, audio: Any) -> str:
    """A prompt for a model without chat template: with a placeholder for each medium before it.

    Left as it is where the model has a template, or the prompt holds placeholders.
    """
    if has_chat_template(processor):
        return text
    media = load_media(1, batched=False, images=images, videos=videos, audio=audio)
    before = ""
    for kind, media_of_kind in (("image", media.images), ("video", media.videos), ("audio", media.audio)):
        token = _placeholder(processor, kind)
        if token is not None and media_of_kind and token not in text:
            before += f"{token}\n" * len(media_of_kind[0])
    return before + text


def _placeholder(processor: Any, kind: str) -> str | None:
    """What a prompt says where a medium is; None where nothing has to, as for BLIP-2, whose processor puts it first."""
    token = word_for(processor, kind)
    return None if token is None or getattr(processor, "num_query_tokens", None) else str(token)


def _refuse_other_count(texts: Sequence[str], media: Sequence[Sequence[Any]], token: str | None, kind: str) -> None:
    if token is None:
        return
    for example, (prompt, media_of_example) in enumerate(zip(texts, media, strict=True)):
        if prompt.count(token) != len(media_of_example):
            raise LensplugError(
                f"example {example} has {len(media_of_example)} {kind}(s) and {prompt.count(token)} placeholder(s)"
                f" {token!r}:"
                f" give one placeholder for each {kind}, or plain text and chat_template=True."
            )


def _chat_prompt(processor: Any, conversation: Conversation) -> str:
    if not has_chat_template(processor):
        raise LensplugError(
            f"{type(processor).__name__} has no chat template: write the prompt in the model's own form, with its"
            " placeholders, and give chat_template=False; or run the processor yourself, and use"
            " lens.encode(processor_outputs)."
        )
    turns: Any = messages(conversation, as_text=not hasattr(processor, "tokenizer"))
    return chat_templates.rendered(processor, turns)

"""Prompts as conversations: turns of user and model, with media at their places.

A plain prompt is one turn of the user, media first. Chat messages are Hugging Face's: a list of dictionaries with a
role and its content, a text or a list of parts; a part is a text, or an image, video or sound, which is in the part
or is the next one of `images=`, `videos=`, `audio=`:

    [
        {"role": "user", "content": [{"type": "image", "path": "cat.png"}, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": "What colour has it?"},
    ]
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lensplug.errors import LensplugError
from lensplug.media import Media, load_image, load_media, load_sound, load_video

KINDS = ("image", "video", "audio")
SOURCES = ("path", "url", "base64")
"""Keys, besides its type, under which a part may hold its medium."""
LOADERS: dict[str, Callable[[Any], Any]] = {"image": load_image, "video": load_video, "audio": load_sound}
FORM = (
    'give messages as [{"role": "user", "content": [{"type": "image", "path": "cat.png"}, {"type": "text", "text":'
    ' "What is it?"}]}]'
)

Message = Mapping[str, Any]
Prompts = str | Message | Sequence[str] | Sequence[Message] | Sequence[Sequence[Message]]
"""One prompt, a text or chat messages; or several of either."""


@dataclass(frozen=True)
class Turn:
    """One turn: texts and media in order."""

    role: str
    parts: tuple[tuple[str, Any], ...]
    """("text", the text), or a kind of medium and the medium; None where it is the next of those that were given."""

    @property
    def text(self) -> str | None:
        """The text of the turn, if it has no media."""
        is_text = all(kind == "text" for kind, _ in self.parts)
        return "".join(text for _, text in self.parts) if is_text else None


Conversation = tuple[Turn, ...]


def is_batch(text: Any) -> bool:
    """Whether these are several prompts: a list of texts or of conversations."""
    return not isinstance(text, str | Mapping) and not any(isinstance(item, Mapping) for item in text)


def read(text: Prompts) -> list[str | Conversation]:
    """Each prompt: a text as it is, messages as turns.

    Raises:
        LensplugError: If messages are not in the form of Hugging Face's.
    """
    several: Any = list(text) if is_batch(text) else [text]
    if not several:
        raise LensplugError("there is no prompt: give a text, chat messages, or a list of either.")
    return [prompt if isinstance(prompt, str) else _conversation(prompt) for prompt in several]


def media_of(
    prompts: Sequence[str | Conversation], *, batched: bool, images: Any = None, videos: Any = None, audio: Any = None
) -> Media:
    """The media of each prompt, in the order of its parts, loaded.

    Args:
        prompts: From `read`.
        batched: Whether what is given is a list for each prompt.
        images: As `lens.prepare` got them.
        videos: Likewise.
        audio: Likewise.

    Raises:
        LensplugError: If a conversation has more or fewer parts without a medium than were given for it.
    """
    separate = load_media(len(prompts), batched=batched, images=images, videos=videos, audio=audio)
    separate_by_kind = {"image": separate.images, "video": separate.videos, "audio": separate.audio}
    merged: dict[str, list[tuple[Any, ...]]] = {}
    for kind, of_kind in separate_by_kind.items():
        each = of_kind or ((),) * len(prompts)
        merged[kind] = [
            tuple(media) if isinstance(prompt, str) else _in_their_places(prompt, kind, media)
            for prompt, media in zip(prompts, each, strict=True)
        ]
    merged_media = {kind: tuple(each) if any(each) or separate_by_kind[kind] else () for kind, each in merged.items()}
    return Media(images=merged_media["image"], videos=merged_media["video"], audio=merged_media["audio"])


def with_media(prompt: str | Conversation, counts: Mapping[str, int]) -> Conversation:
    """A conversation; a text becomes one turn of the user that begins with the given number of each medium."""
    if not isinstance(prompt, str):
        return prompt
    media = tuple((kind, None) for kind, count in counts.items() for _ in range(count))
    return (Turn("user", (*media, ("text", prompt))),)


def messages(conversation: Conversation, *, as_text: bool, sounds: Iterator[Any] | None = None) -> list[dict[str, Any]]:
    """The input of a chat template.

    Args:
        conversation: Turns.
        as_text: Whether the content is a text, for a tokenizer, or a list of parts, for a processor.
        sounds: Where the template itself reads sounds: what each of their parts is, in their order.
    """
    chat_messages = []
    for turn in conversation:
        content: Any = turn.text
        if not as_text:
            content = [_part(kind, medium, sounds) for kind, medium in turn.parts]
        chat_messages.append({"role": turn.role, "content": content})
    return chat_messages


def split_answers(prompts: Sequence[str | Conversation]) -> tuple[list[str | Conversation], list[str] | None]:
    """Prompts without final turns of the model, and the texts of these; None if no prompt ends with one.

    Raises:
        LensplugError: If such a turn is not text, is the first, or only some prompts have one.
    """
    last = [None if isinstance(prompt, str) or prompt[-1].role != "assistant" else prompt[-1] for prompt in prompts]
    if not any(last):
        return list(prompts), None
    answers = [None if turn is None else turn.text for turn in last]
    spoken = [answer for answer in answers if answer is not None]
    if len(spoken) < len(prompts) or any(len(prompt) == 1 for prompt in prompts):
        raise LensplugError(
            "the last message is the assistant's, which is read as the answer: it must be words, behind what the user"
            " asks, and every prompt of a batch must have one."
        )
    return [prompt[:-1] for prompt in prompts], spoken


def _part(kind: str, content: Any, sounds: Iterator[Any] | None) -> dict[str, Any]:
    if kind == "text":
        return {"type": "text", "text": content}
    return next(sounds) if kind == "audio" and sounds is not None else {"type": kind}


def _in_their_places(conversation: Conversation, kind: str, media: Sequence[Any]) -> tuple[Any, ...]:
    """The media of a conversation: those in its parts, and for parts without one the next that was passed."""
    parts = [medium for turn in conversation for part_kind, medium in turn.parts if part_kind == kind]
    missing = sum(medium is None for medium in parts)
    if missing != len(media):
        name = {"image": "images", "video": "videos", "audio": "audio"}[kind]
        raise LensplugError(
            f'the messages have {missing} part(s) {{"type": "{kind}"}} without the {kind} itself, and {len(media)} are'
            f' given as {name}=: put each into its part, {{"type": "{kind}", "path": ...}}, or give one for each such'
            " part, in their order."
        )
    remaining = iter(media)
    return tuple(next(remaining) if medium is None else LOADERS[kind](medium) for medium in parts)


def _conversation(prompt: Any) -> Conversation:
    several = [prompt] if isinstance(prompt, Mapping) else prompt
    if isinstance(several, str) or not isinstance(several, Sequence) or not several:
        raise LensplugError(f"a prompt is a {type(prompt).__name__}, expected a text or chat messages: {FORM}.")
    return tuple(_turn(message) for message in several)


def _turn(message: Any) -> Turn:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str) or "content" not in message:
        received = sorted(message) if isinstance(message, Mapping) else type(message).__name__
        raise LensplugError(f"a message is {received}, expected a role and a content: {FORM}.")
    content = message["content"]
    if isinstance(content, str):
        return Turn(message["role"], (("text", content),))
    if not isinstance(content, Sequence) or not content:
        raise LensplugError(f"the content of a message is {content!r}, expected a text or a list of parts: {FORM}.")
    return Turn(message["role"], tuple(_read_part(part) for part in content))


def _read_part(part: Any) -> tuple[str, Any]:
    if isinstance(part, str):
        return "text", part
    kind = str(part.get("type")) if isinstance(part, Mapping) else ""
    kind = {"image_url": "image", "video_url": "video", "audio_url": "audio", "input_audio": "audio"}.get(kind, kind)
    if kind == "text" and isinstance(part.get("text"), str):
        return "text", part["text"]
    if kind not in KINDS:
        raise LensplugError(
            f"a part of a message is {_brief(part)}, expected a text, an image, a video or a sound: {FORM}."
        )
    names = (kind, *SOURCES, f"{kind}_url", "input_audio", "data")
    sources = [(name, part[name]) for name in names if part.get(name) is not None]
    if len(sources) > 1:
        raise LensplugError(
            f"a part of a message holds its {kind} twice ({sources[0][0]} and {sources[1][0]}): give one."
        )
    return kind, _medium(*sources[0]) if sources else None


def _medium(name: str, medium: Any) -> Any:
    """The medium of a part, in a form that `lensplug.media` loads; encoded media as bytes."""
    if isinstance(medium, Mapping) and name.endswith(("_url", "input_audio")):  # OpenAI's form
        name, medium = next(((key, medium[key]) for key in ("url", "data") if key in medium), (name, medium))
    if not isinstance(medium, str):
        return medium
    if medium.startswith("data:"):
        name, medium = "base64", medium.partition(",")[2]
    if name not in ("base64", "data"):
        return medium
    try:
        return base64.b64decode(medium, validate=True)
    except binascii.Error as error:
        raise LensplugError(f"a part of a message is not in base64 ({error}): give a path.") from error


def _brief(part: Any) -> str:
    text = repr(part)
    return text if len(text) <= 80 else text[:77] + "..."

"""Pictures, videos and sounds as users have them, one kind a file, and all of them together as `Media`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from lensplug.errors import LensplugError
from lensplug.media.images import is_one_image as is_one_image
from lensplug.media.images import load_image as load_image
from lensplug.media.sounds import Sound as Sound
from lensplug.media.sounds import is_one_sound as is_one_sound
from lensplug.media.sounds import load_sound as load_sound
from lensplug.media.videos import Video as Video
from lensplug.media.videos import is_one_video as is_one_video
from lensplug.media.videos import load_video as load_video


@dataclass(frozen=True)
class Media:
    """What each example of a batch was given, in its order; an empty tuple where nothing is known."""

    images: tuple[tuple[Image.Image, ...], ...] = ()
    videos: tuple[tuple[Video, ...], ...] = ()
    audio: tuple[tuple[Sound, ...], ...] = ()

    @property
    def numbers(self) -> dict[str, list[int]]:
        """Modality -> how many each example has; an empty list where nothing is known."""
        kinds = {"image": self.images, "video": self.videos, "audio": self.audio}
        return {kind: [len(own) for own in media] for kind, media in kinds.items()}

    @property
    def image_sizes(self) -> list[list[tuple[int, int]]]:
        """(height, width) of every picture."""
        return [[(image.height, image.width) for image in own] for own in self.images]

    @property
    def durations(self) -> list[list[float]]:
        """Seconds of every sound."""
        return [[sound.duration_s for sound in own] for own in self.audio]


def load_media(
    n_examples: int, *, batched: bool, images: Any, videos: Any, audio: Any, sample_videos: bool = True
) -> Media:
    """The media of a batch, each in any of the forms that its kind takes.

    Args:
        n_examples: Prompts.
        batched: Whether each kind is a list for each prompt; else it is the list (or the one medium) of the
            only prompt.
        images: Pictures, or None.
        videos: Videos, or None.
        audio: Sounds, or None.
        sample_videos: Whether frames may be taken from a file; else only frames themselves are known to be
            those that somebody else's processor saw.

    Raises:
        LensplugError: If there is not one list for each prompt, or a medium cannot be read.
    """
    return Media(
        images=_per_example(images, n_examples, "images", is_one_image, load_image, batched=batched),
        videos=_per_example(
            videos, n_examples, "videos", is_one_video, load_video if sample_videos else _frames, batched=batched
        ),
        audio=_per_example(audio, n_examples, "audio", is_one_sound, load_sound, batched=batched),
    )


def _frames(source: Any) -> Video:
    if isinstance(source, str | Path):
        raise LensplugError(
            f"the video is the file {str(source)!r}, and which of its frames the processor saw is not known: give the"
            " frames that it was given."
        )
    return load_video(source)


def _per_example(
    given: Any,
    n_examples: int,
    name: str,
    is_one: Callable[[Any], bool],
    load: Callable[[Any], Any],
    *,
    batched: bool,
) -> tuple[tuple[Any, ...], ...]:
    """The media of each example, loaded; nothing where none are given."""
    if given is None:
        return ()
    given = [given] if is_one(given) else list(given)
    if not batched and len(given) == 1 and isinstance(given[0], list | tuple) and not is_one(given[0]):
        given = list(given[0])  # a batch of one, as Hugging Face's processors take it
    groups = [[own] if is_one(own) else list(own) for own in given] if batched else [given]
    if len(groups) != n_examples:
        raise LensplugError(
            f"{n_examples} prompts, but {name} for {len(groups)}: give one list of {name} for each prompt."
        )
    return tuple(tuple(load(one) for one in own) for own in groups)

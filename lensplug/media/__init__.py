"""Pictures, videos and sounds as users have them, one kind a file, and all of them together as `Media`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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
    def image_sizes(self) -> list[list[tuple[int, int]]]:
        """(height, width) of every picture."""
        return [[(image.height, image.width) for image in own] for own in self.images]

    @property
    def durations(self) -> list[list[float]]:
        """Seconds of every sound."""
        return [[sound.duration_s for sound in own] for own in self.audio]


def load_media(n_examples: int, *, batched: bool, images: Any, videos: Any, audio: Any) -> Media:
    """The media of a batch, each in any of the forms that its kind takes.

    Args:
        n_examples: Prompts.
        batched: Whether each kind is a list for each prompt; else it is the list (or the one medium) of the
            only prompt.
        images: Pictures, or None.
        videos: Videos, or None.
        audio: Sounds, or None.

    Raises:
        LensplugError: If there is not one list for each prompt, or a medium cannot be read.
    """
    return Media(
        images=_per_example(images, n_examples, "images", is_one_image, load_image, batched=batched),
        videos=_per_example(videos, n_examples, "videos", is_one_video, load_video, batched=batched),
        audio=_per_example(audio, n_examples, "audio", is_one_sound, load_sound, batched=batched),
    )


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
    groups = [[own] if is_one(own) else list(own) for own in given] if batched else [given]
    if len(groups) != n_examples:
        raise LensplugError(
            f"{n_examples} prompts, but {name} for {len(groups)}: give one list of {name} for each prompt."
        )
    return tuple(tuple(load(one) for one in own) for own in groups)

"""Loading images, videos and sounds: one module per kind, and all of them together as `Media`.

Files are read in formats of a list, and as far as a memory limit for each medium allows: see `limits`, where one call
changes it. What is read is nothing but the file that is named: no link in it is followed, no address on the net.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from PIL import Image

from lensplug.errors import LensplugError
from lensplug.media.images import is_one_image as is_one_image
from lensplug.media.images import load_image as load_image
from lensplug.media.limits import memory_limit as memory_limit
from lensplug.media.limits import set_memory_limit as set_memory_limit
from lensplug.media.sounds import Sound as Sound
from lensplug.media.sounds import is_one_sound as is_one_sound
from lensplug.media.sounds import load_sound as load_sound
from lensplug.media.videos import Video as Video
from lensplug.media.videos import is_one_video as is_one_video
from lensplug.media.videos import load_video as load_video

MediumT = TypeVar("MediumT")

IS_ONE: dict[str, Callable[[Any], bool]] = {"images": is_one_image, "videos": is_one_video, "audio": is_one_sound}


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
        return {kind: [len(media_of_example) for media_of_example in media] for kind, media in kinds.items()}

    @property
    def image_sizes(self) -> list[list[tuple[int, int]]]:
        """(height, width) of every image."""
        return [[(image.height, image.width) for image in images] for images in self.images]

    @property
    def durations(self) -> list[list[float]]:
        """Seconds of every sound."""
        return [[sound.duration_s for sound in sounds] for sounds in self.audio]


def load_media(n_examples: int, *, batched: bool, images: Any = None, videos: Any = None, audio: Any = None) -> Media:
    """The media of a batch, each in any of the forms that its kind takes.

    Args:
        n_examples: Prompts.
        batched: Whether each kind is a list for each prompt; else it is the list (or the one medium) of the
            only prompt.
        images: Images, or None.
        videos: Videos, or None.
        audio: Sounds, or None.

    Raises:
        LensplugError: If there is not one list for each prompt, or a medium cannot be read.
    """
    return Media(
        images=per_example(images, n_examples, "images", load_image, batched=batched),
        videos=per_example(videos, n_examples, "videos", load_video, batched=batched),
        audio=per_example(audio, n_examples, "audio", load_sound, batched=batched),
    )


def per_example(
    source: Any,
    n_examples: int,
    name: str,
    load: Callable[[Any], MediumT],
    *,
    batched: bool,
) -> tuple[tuple[MediumT, ...], ...]:
    """The media of each example, loaded; nothing where none are given."""
    if source is None:
        return ()
    is_one, source = IS_ONE[name], listed(source, name)
    if not batched and len(source) == 1 and isinstance(source[0], list | tuple) and not is_one(source[0]):
        source = list(source[0])  # a batch of one, as Hugging Face's processors take it
    groups = [listed(group, name) for group in source] if batched else [source]
    if len(groups) != n_examples:
        raise LensplugError(
            f"{n_examples} prompts, but {name} for {len(groups)}: give one list of {name} for each prompt."
        )
    return tuple(tuple(load(medium) for medium in group) for group in groups)


def listed(given: Any, name: str) -> list[Any]:
    """One or several "images", "videos" or "audio" as a list; an empty one for None.

    Raises:
        LensplugError: If it is neither one of them nor a list.
    """
    if given is None:
        return []
    if IS_ONE[name](given):
        return [given]
    if not isinstance(given, Iterable):
        raise LensplugError(f"{name} is a {type(given).__name__}, expected one of them or a list.")
    return list(given)

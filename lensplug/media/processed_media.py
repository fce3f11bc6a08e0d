"""Check that media passed along with a user's own processor outputs are those that the processor received.

An image processor takes a PIL image as stored, a chat template applies its EXIF orientation: only the pixel values show
which. So the processor is run again on the media, and its outputs are compared with the given ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from lensplug.errors import LensplugError
from lensplug.media import Media, load_media, per_example
from lensplug.media.files import is_file
from lensplug.media.images import both_ways
from lensplug.media.videos import Video, load_video
from lensplug.media.warn import warn_user
from lensplug.media.words_for_media import word_for

SAME = 0.05
"""Pixels that differ by less than this share of their spread, on average, are the same: dtypes and ways to scale."""
UNLIKE = float("inf")
SIZES = ("image_sizes", "image_grid_thw", "video_grid_thw")
"""Under which names a processor says how large media were, or into how many patches they were cut."""

Images = tuple[tuple[Image.Image, ...], ...]


def load_seen(
    processor_outputs: Mapping[str, Any], processor: Any, *, images: Any = None, videos: Any = None, audio: Any = None
) -> Media:
    """The media of a batch as the processor saw them.

    An image with an EXIF orientation is used in the orientation that fits the outputs; a warning says if neither does.

    Raises:
        LensplugError: If a medium cannot be read, a video is a file, images have not the size of those that were
            seen, or whether they were seen rotated cannot be determined.
    """
    n_examples = len(processor_outputs.get("input_ids", ()))
    batched = n_examples > 1
    media = load_media(n_examples, batched=batched, audio=audio)
    video_frames = per_example(videos, n_examples, "videos", _frames, batched=batched)
    pairs = per_example(images, n_examples, "images", both_ways, batched=batched)
    if any(video_frames):
        _say_other_videos(video_frames, processor_outputs, processor)
    return replace(media, videos=video_frames, images=_as_seen(pairs, processor_outputs, processor))


def _frames(source: Any) -> Video:
    if is_file(source) or hasattr(source, "get_frames_played_at"):
        raise LensplugError(
            f"the video is the file {str(source)[:200]!r}, and which of its frames the processor saw is not known: give"
            " the frames that it was given."
        )
    return load_video(source)


def _as_seen(
    pairs: tuple[tuple[tuple[Image.Image, Image.Image], ...], ...], outputs: Mapping[str, Any], processor: Any
) -> Images:
    """Upright or as stored, whichever is closer to what the processor received."""
    upright, stored = (
        tuple(tuple(pair[candidate] for pair in pairs_of_example) for pairs_of_example in pairs) for candidate in (0, 1)
    )
    candidates = (
        [upright]
        if all(as_upright is as_stored for pairs_of_example in pairs for as_upright, as_stored in pairs_of_example)
        else [upright, stored]
    )
    if not any(pairs):
        return upright
    differences = [_unlike(_runs_on_images(processor, candidate), outputs, "pixel_values") for candidate in candidates]
    best = min((difference for difference in differences if difference is not None), default=None)
    if best is None:
        if len(candidates) == 2:
            raise LensplugError(
                "an image has an EXIF orientation, and whether the processor saw it rotated is unknown: pass the"
                " very picture that it saw (PIL.ImageOps.exif_transpose(picture), or it without EXIF)."
            )
        return upright
    if best == UNLIKE and _tells_their_sizes(processor, upright):
        sizes = [(image.height, image.width) for pairs_of_example in upright for image in pairs_of_example]
        raise LensplugError(
            f"images are {sizes} (height, width), and the processor saw some of"
            f" {[tuple(size) for size in torch.as_tensor(outputs['image_sizes']).tolist()]}: give those that it saw."
        )
    if best > SAME:
        warn_user(
            "the images are not those that the processor saw, or it was called with settings of its own:"
            f" {_how_unlike(best)}. What is drawn over them can mislead."
        )
    return candidates[differences.index(best)]


def _say_other_videos(videos: Sequence[Sequence[Video]], outputs: Mapping[str, Any], processor: Any) -> None:
    run = getattr(processor, "video_processor", None)
    frames = [video.frames.numpy() for videos_of_example in videos for video in videos_of_example]
    of_whole = getattr(processor, "videos_kwargs", {})  # whose settings can be others than those of its part: Omni's
    runs = [
        partial(run, videos=frames, do_sample_frames=False, return_tensors="pt", **settings)
        for settings in ({}, of_whole)
        if run is not None
    ]
    difference = _unlike(runs, outputs, "pixel_values_videos")
    if difference is not None and difference > SAME:
        warn_user(
            "the videos are not those that the processor saw, or it was called with settings of its own:"
            f" {_how_unlike(difference)}. What is drawn over them can mislead."
        )


def _runs_on_images(processor: Any, images: Images) -> list[Callable[[], Any]]:
    """The ways in which the processor may have been given them: one behind the other, by example, or with a text."""
    run, token = getattr(processor, "image_processor", None), word_for(processor, "image")
    if run is None:
        return []
    by_example = [list(images_of_example) for images_of_example in images if images_of_example]
    flat = [image for images_of_example in by_example for image in images_of_example]
    runs: list[Callable[[], Any]] = [partial(run, images=listed, return_tensors="pt") for listed in (flat, by_example)]
    if token is not None:  # whose settings can be others than those of its image processor: InternVL's cuts tiles
        texts = [token * len(images_of_example) for images_of_example in by_example]
        runs.append(partial(processor, text=texts, images=by_example, padding=True, return_tensors="pt"))
    return runs


def _how_unlike(difference: float) -> str:
    return "its sizes differ" if difference == UNLIKE else f"its pixels differ by {difference:.0%} of their spread"


def _tells_their_sizes(processor: Any, images: Images) -> bool:
    """Whether the sizes among a processor's outputs are those of the images themselves, not what they are scaled to."""
    sizes = [(image.height, image.width) for images_of_example in images for image in images_of_example]
    for run in _runs_on_images(processor, images):
        try:
            told = run().get("image_sizes")
        except Exception:  # as in `_unlike`
            continue
        if told is not None and [tuple(size) for size in torch.as_tensor(told).tolist()] == sizes:
            return True
    return False


def _unlike(runs: Iterable[Callable[[], Any]], outputs: Mapping[str, Any], pixels: str) -> float | None:
    """Difference between the processor's outputs for these media and the given ones, relative to their spread.

    Infinite for different sizes, in whatever way they are run; None if it cannot be determined.
    """
    difference = None
    for run in runs:
        try:
            new_outputs = run()
        except Exception:  # whatever a processor does not like about this: then it has not seen it so
            continue
        if any(_other_sizes(new_outputs.get(name), outputs.get(name)) for name in SIZES):
            difference = UNLIKE
            continue
        seen_pixels, new_pixels = outputs.get(pixels), new_outputs.get(pixels)
        if isinstance(seen_pixels, Tensor) and isinstance(new_pixels, Tensor) and seen_pixels.shape == new_pixels.shape:
            spread = float(seen_pixels.float().std()) or 1.0
            return float((new_pixels.float() - seen_pixels.float().cpu()).abs().mean()) / spread
    return difference


def _other_sizes(new: Any, seen: Any) -> bool:
    """Whether both are known, and differ."""
    if new is None or seen is None:
        return False
    new, seen = (torch.as_tensor(sizes).cpu() for sizes in (new, seen))
    return bool(new.shape != seen.shape or (new != seen).any())

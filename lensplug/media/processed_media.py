"""The media that a user's own call of a processor saw: what is given beside its outputs must be just that.

An image processor takes a PIL image as it is stored, a chat template turns it as its EXIF says: only the pixels tell.
So the processor is run once more on what was given, and its outputs are compared with those at hand.
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

SAME = 0.05
"""Pixels that differ by less than this share of their spread, on average, are the same: dtypes and ways to scale."""
UNLIKE = float("inf")

Images = tuple[tuple[Image.Image, ...], ...]


def load_seen(
    processor_outputs: Mapping[str, Any], processor: Any, *, images: Any = None, videos: Any = None, audio: Any = None
) -> Media:
    """The media of a batch as the processor saw them.

    A picture whose EXIF turns it is taken as it fits the outputs, and a warning says where nothing does.

    Raises:
        LensplugError: If a medium cannot be read, a video is a file, pictures have not the size of those that were
            seen, or it cannot be told whether they were seen turned.
    """
    n_examples = len(processor_outputs.get("input_ids", ()))
    batched = n_examples > 1
    given = load_media(n_examples, batched=batched, audio=audio)
    shown = per_example(videos, n_examples, "videos", _frames, batched=batched)
    pairs = per_example(images, n_examples, "images", both_ways, batched=batched)
    if any(shown):
        _say_other_videos(shown, processor_outputs, processor)
    return replace(given, videos=shown, images=_as_seen(pairs, processor_outputs, processor))


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
    """Upright, or as stored: what is more like what was seen."""
    upright, stored = (tuple(tuple(pair[way] for pair in own) for own in pairs) for way in (0, 1))
    ways = [upright] if all(one is other for own in pairs for one, other in own) else [upright, stored]
    if not any(pairs):
        return upright
    unlike = [_unlike(_runs_on_images(processor, way), outputs, "pixel_values") for way in ways]
    best = min((found for found in unlike if found is not None), default=None)
    if best is None:
        if len(ways) == 2:
            raise LensplugError(
                "a picture has an EXIF orientation, and whether the processor saw it turned cannot be told: give the"
                " very picture that it saw (PIL.ImageOps.exif_transpose(picture), or it without EXIF)."
            )
        return upright
    if best == UNLIKE:
        sizes = [(image.height, image.width) for own in upright for image in own]
        raise LensplugError(
            f"images are {sizes} (height, width), and the processor saw some of"
            f" {[tuple(size) for size in torch.as_tensor(outputs['image_sizes']).tolist()]}: give those that it saw."
        )
    if best > SAME:
        warn_user(
            "the images are not those that the processor saw, or it was called with settings of its own: its pixels"
            f" differ by {best:.0%} of their spread. What is drawn over them can mislead."
        )
    return ways[unlike.index(best)]


def _say_other_videos(videos: Sequence[Sequence[Video]], outputs: Mapping[str, Any], processor: Any) -> None:
    run = getattr(processor, "video_processor", None)
    frames = [video.frames.numpy() for own in videos for video in own]
    runs = [] if run is None else [partial(run, videos=frames, do_sample_frames=False, return_tensors="pt")]
    unlike = _unlike(runs, outputs, "pixel_values_videos")
    if unlike is not None and unlike > SAME:
        warn_user(
            "the videos are not those that the processor saw, or it was called with settings of its own: its pixels"
            f" differ by {unlike:.0%} of their spread. What is drawn over them can mislead."
        )


def _runs_on_images(processor: Any, images: Images) -> list[Callable[[], Any]]:
    """The ways in which the processor may have been given them: one behind the other, by example, or with a text."""
    run, token = getattr(processor, "image_processor", None), getattr(processor, "image_token", None)
    if run is None:
        return []
    by_example = [list(own) for own in images if own]
    flat = [image for own in by_example for image in own]
    runs: list[Callable[[], Any]] = [partial(run, images=listed, return_tensors="pt") for listed in (flat, by_example)]
    if token is not None:  # whose settings can be others than those of its image processor: InternVL's cuts tiles
        texts = [token * len(own) for own in by_example]
        runs.append(partial(processor, text=texts, images=by_example, padding=True, return_tensors="pt"))
    return runs


def _unlike(runs: Iterable[Callable[[], Any]], outputs: Mapping[str, Any], pixels: str) -> float | None:
    """How far what the processor makes of media is from its outputs, as a share of their spread.

    Infinite for other sizes; None where that cannot be told.
    """
    for run in runs:
        try:
            made = run()
        except Exception:  # whatever a processor does not like about this: then it has not seen it so
            continue
        sizes = [one.get("image_sizes") for one in (made, outputs)]
        if all(size is not None for size in sizes):
            own, seen = (torch.as_tensor(size).cpu() for size in sizes)
            if own.shape != seen.shape or not bool((own == seen).all()):
                return UNLIKE
        there, here = outputs.get(pixels), made.get(pixels)
        if isinstance(there, Tensor) and isinstance(here, Tensor) and there.shape == here.shape:
            spread = float(there.float().std()) or 1.0
            return float((here.float() - there.float().cpu()).abs().mean()) / spread
    return None

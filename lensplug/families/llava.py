"""LLaVA, ViP-LLaVA, Video-LLaVA, PaliGemma: one view of each image, cropped, padded or squeezed to a square.

With or without a class token, which sees all of it and has no place. The frames of a video are views as well, and keep
their class tokens (Video-LLaVA).

What the view shows is decided by the image processor's settings, and the size of the original image is not
among its outputs: where either is not known (`lens.encode` without `images=`), an image has no grid. Settings
given in a call of the processor cannot be seen afterwards: those of the lens's processor count.

Follows `CLIPImageProcessor`, `LlavaImageProcessor`, `VideoLlavaImageProcessor` and `VideoLlavaVideoProcessor` of
transformers 5.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lensplug.families import MediaLayout, ProcessedBatch, by_example, pixtral, setting, shared_out
from lensplug.geometry import ImageGrid, VideoGrid
from lensplug.geometry.image_cells import boxes, cells
from lensplug.media import Video


def media_layout(batch: ProcessedBatch) -> MediaLayout:
    """The grid of every image and video in the batch."""
    if batch.config.vision_config.model_type == "pixtral":
        return pixtral.media_layout(batch)
    layout = _of_images(batch) if "image" in batch.placeholders else MediaLayout()
    return with_videos(layout, batch, class_token=True)


def _of_images(batch: ProcessedBatch) -> MediaLayout:
    vision = batch.config.vision_config
    pixels = batch.outputs.get("pixel_values", batch.outputs.get("pixel_values_images"))
    square = all(isinstance(getattr(vision, name, None), int) for name in ("image_size", "patch_size"))
    if not square or not isinstance(pixels, Tensor) or pixels.ndim != 4:
        return MediaLayout()
    total, side = sum(map(sum, batch.placeholders["image"])), vision.image_size // vision.patch_size
    class_token = total == len(pixels) * (side**2 + 1)
    if not class_token and total != len(pixels) * side**2:
        return MediaLayout()
    each = side**2 + class_token
    lengths = [[each] * (sum(runs) // each) for runs in batch.placeholders["image"]]
    settings = batch.image_processor
    if settings is None or tuple(pixels.shape[-2:]) != (vision.image_size, vision.image_size):
        return MediaLayout({"image": lengths})
    # Of an image of three rows Video-LLaVA's processor takes the rows for its colours.
    turned = 3 if type(settings).__name__ == "VideoLlavaImageProcessor" else 0
    images = [
        [
            image_grid(batch.config, settings, height, width, class_token=class_token) if height != turned else None
            for height, width in sizes
        ]
        for sizes in batch.media.image_sizes
    ]
    return MediaLayout({"image": lengths}, by_example(lengths, images))


def image_grid(
    config: Any, settings: Any, height: int, width: int, *, class_token: bool = False, pooled: int = 1
) -> ImageGrid | None:
    """The positions of an image of `height` x `width` pixels.

    Args:
        config: The full model's configuration.
        settings: Its image processor.
        height: Height of the original image.
        width: Width of the original image.
        class_token: Whether the tower's class token comes first; it has no place.
        pooled: Patches along each side of a position.

    Returns:
        None for settings that make something else of an image than a square.
    """
    view_px, patch = config.vision_config.image_size, config.vision_config.patch_size
    seen = window(settings, view_px, height, width)
    if seen is None:
        return None
    (x_origin, x_scale), (y_origin, y_scale) = seen
    side, cell_px = view_px // patch // pooled, patch * pooled
    placed = boxes(
        cells(side, cell_px, scale=x_scale, limit=width, origin=x_origin),
        cells(side, cell_px, scale=y_scale, limit=height, origin=y_origin),
    )
    if class_token:
        placed = torch.cat([torch.full((1, 4), math.nan), placed])
    nothing: Float[Tensor, " token"] = torch.zeros(len(placed))
    return ImageGrid(placed.float(), nothing.long(), nothing.bool(), width, height)


def with_videos(
    layout: MediaLayout, batch: ProcessedBatch, *, class_token: bool = False, pooled: int = 1
) -> MediaLayout:
    """The layout, and the grid of every video: each frame a view, scaled and cropped like an image.

    Args:
        layout: That of the images.
        batch: The batch.
        class_token: Whether the tower's class token comes before each frame.
        pooled: Patches along each side of a position.
    """
    pixels, vision = batch.outputs.get("pixel_values_videos"), batch.config.vision_config
    if pixels is None or "video" not in batch.placeholders:
        return layout
    each = (vision.image_size // vision.patch_size // pooled) ** 2 + class_token
    positions = [range(len(frames) * each) for frames in pixels]
    lengths, _ = shared_out(batch.placeholders["video"], positions)
    settings, known = batch.video_processor, {}
    if settings is not None and tuple(pixels[0].shape[-2:]) == (vision.image_size, vision.image_size):
        videos = by_example(lengths, batch.media.videos)
        grids = {
            place: video_grid(batch.config, settings, video, class_token=class_token, pooled=pooled)
            for place, video in videos.items()
        }
        known = {place: grid for place, grid in grids.items() if grid is not None}
    return replace(layout, lengths={**layout.lengths, "video": lengths}, video_grids=known)


def video_grid(
    config: Any, settings: Any, video: Video, *, class_token: bool = False, pooled: int = 1
) -> VideoGrid | None:
    """The positions of a video; None for settings that make something else of a frame than a square."""
    frame = image_grid(config, settings, video.height, video.width, class_token=class_token, pooled=pooled)
    if frame is None:
        return None
    index = torch.arange(len(video)).repeat_interleave(len(frame))
    placed, newline = frame.boxes.repeat(len(video), 1), torch.zeros(len(index), dtype=torch.bool)
    return VideoGrid(placed, index, newline, video.width, video.height, video.times_s)


def window(
    settings: Any, view_px: int, height: int, width: int
) -> tuple[tuple[float, float], tuple[float, float]] | None:
    """For x and y: where the view begins in the image, and pixels of the image for each pixel of the view.

    The image is padded to a square (by `LlavaImageProcessor` alone), scaled, and its middle is cut out: what each
    setting says, in that order. None for what is not known here.
    """
    padded_h, padded_w = height, width
    if getattr(settings, "do_pad", None):
        if not hasattr(settings, "pad_to_square"):
            return None
        padded_h = padded_w = max(height, width)
    scaled = _scaled(settings, padded_h, padded_w)
    if scaled is None:
        return None
    scaled_h, scaled_w = scaled
    if getattr(settings, "do_center_crop", None):
        crop = [setting(settings.crop_size, name) for name in ("height", "width")]
        if crop != [view_px, view_px] or min(scaled) < view_px:
            return None
    elif scaled != (view_px, view_px):
        return None
    x_scale, y_scale = padded_w / scaled_w, padded_h / scaled_h
    left, top = int((scaled_w - view_px) / 2), int((scaled_h - view_px) / 2)
    pad_left, pad_top = (padded_w - width) // 2, (padded_h - height) // 2
    return (left * x_scale - pad_left, x_scale), (top * y_scale - pad_top, y_scale)


def _scaled(settings: Any, height: int, width: int) -> tuple[int, int] | None:
    """The height and width that an image is scaled to."""
    sizes = {name: setting(settings.size, name) for name in ("height", "width", "shortest_edge", "longest_edge")}
    if not settings.do_resize or sizes["longest_edge"]:
        return None
    if sizes["height"] and sizes["width"]:
        return sizes["height"], sizes["width"]
    short = sizes["shortest_edge"]
    if short is None:
        return None
    longer = int(short * max(height, width) / min(height, width))  # in proportion, rounded down
    return (short, longer) if height <= width else (longer, short)

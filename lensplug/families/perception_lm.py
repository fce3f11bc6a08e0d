"""PerceptionLM: the image squeezed whole, then tile by tile; patches pooled (2 x 2) to positions.

An image is squeezed to the grid of tiles in which its shorter edge is largest, and seen in it after a first view of
all of it; or in that view alone, as the settings say. Frames of a video are squeezed to one view each.

The size of the original is not among the processor's outputs: where it is not known (`lens.encode` without `images=`
or `videos=`), there is no grid. Settings given in a call of the processor cannot be seen afterwards: those of the
lens's processor count. Images of different numbers of tiles are refused by the processor in one call.

Follows `PerceptionLMImageProcessor` and `PerceptionLMMultiModalProjector` of transformers 5.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from lensplug.families import MediaLayout, ProcessedBatch, by_example, by_image_size, setting, shared_out
from lensplug.families.frames import repeated
from lensplug.geometry import ImageGrid
from lensplug.geometry.image_cells import squeezed, whole


def media_layout(batch: ProcessedBatch) -> MediaLayout:
    """The grid of every image and video in the batch."""
    cell_px = getattr(batch.processor, "patch_size", None)
    if cell_px is None:
        return MediaLayout()
    cell_px *= batch.config.projector_pooling_ratio
    layout = MediaLayout()
    if "image" in batch.placeholders:
        settings = batch.image_processor
        layout = by_image_size(batch, lambda height, width: image_grid(settings, cell_px, height, width))
    return _with_videos(layout, batch, cell_px)


def image_grid(settings: Any, cell_px: int, height: int, width: int) -> ImageGrid | None:
    """The positions of an image of `height` x `width` pixels.

    Args:
        settings: Its image processor.
        cell_px: Height and width of a position, in pixels of a view.
        height: Height of the original image.
        width: Width of the original image.

    Returns:
        None for views that positions do not fill.
    """
    view_px = settings.tile_size
    if view_px % cell_px or not settings.do_resize:
        return None
    geometry = {"view_px": view_px, "side": view_px // cell_px, "cell_px": cell_px}
    views = [squeezed(height, width, **geometry)]
    if settings.vision_input_type == "thumb+tile":
        rows, columns = tiles(settings, height, width)
        views.append(squeezed(height, width, rows=rows, columns=columns, **geometry))
    placed = torch.cat(views)
    view = torch.arange(len(placed) // len(views[0])).repeat_interleave(len(views[0]))
    return ImageGrid(placed.float(), view, torch.zeros(len(view), dtype=torch.bool), width, height)


def tiles(settings: Any, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of tiles."""
    if settings.max_num_tiles == 1:
        return 1, 1
    size = {"img_width": width, "img_height": height, "tile_size": settings.tile_size}
    columns, rows = settings._fit_image_to_canvas(**size) or settings._find_closest_aspect_ratio(**size)
    return rows, columns


def _with_videos(layout: MediaLayout, batch: ProcessedBatch, cell_px: int) -> MediaLayout:
    """The layout, and the grid of every video: each frame a view."""
    pixels, settings = batch.outputs.get("pixel_values_videos"), batch.video_processor
    if pixels is None or "video" not in batch.placeholders:
        return layout
    view_px = pixels.shape[-1]
    side = view_px // cell_px
    lengths, _ = shared_out(batch.placeholders["video"], [range(len(frames) * side**2) for frames in pixels])
    squeezes = (
        settings is not None
        and settings.do_resize
        and not settings.do_center_crop
        and [setting(settings.size, name) for name in ("height", "width")] == [view_px, view_px]
        and view_px % cell_px == 0
    )
    videos = by_example(lengths, batch.media.videos) if squeezes else {}
    grids = {
        place: repeated(whole(video.height, video.width, rows=side, columns=side), video)
        for place, video in videos.items()
    }
    return replace(layout, lengths={**layout.lengths, "video": lengths}, video_grids=grids)

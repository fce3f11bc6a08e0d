"""Qwen2-VL and its relatives: images and frames of any proportions, 2 x 2 patches to a position, frames in pairs.

An image is scaled to whole cells of 28 px, its proportions nearly kept, and seen whole. The frames of a video are
scaled alike, and the encoder reads them in pairs: a position sees its place in two frames (the last alone, if their
number is odd). Qwen2.5-VL's encoder sorts cells by windows and undoes that itself. Cosmos 3 Edge reads frames one by
one; the convolutions in LFM3-VL's encoder reach the cells beside.

The processor says how many cells there are. The size of the original is not among its outputs: where it is not known
(`lens.encode` without `images=` or `videos=`), it is known which positions belong to a medium, and it has no grid.

Follows the image and video processors of Qwen2-VL in transformers 5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from lensplug.families import MediaLayout, ProcessedBatch, by_example, shared_out
from lensplug.geometry import ImageGrid, VideoGrid
from lensplug.geometry.image_cells import whole
from lensplug.media import Video


@dataclass(frozen=True)
class Cells:
    """How many cells a medium is cut into."""

    steps: int
    """Along time: 1 for an image."""
    rows: int
    columns: int

    def __len__(self) -> int:
        """The number of positions."""
        return self.steps * self.rows * self.columns


def media_layout(batch: ProcessedBatch) -> MediaLayout:
    """The grid of every image and video in the batch."""
    lengths: dict[str, list[list[int]]] = {}
    grids: dict[tuple[int, int], ImageGrid] = {}
    video_grids: dict[tuple[int, int], VideoGrid] = {}
    cells, media = {}, batch.media
    for kind in ("image", "video"):
        patches = batch.outputs.get(f"{kind}_grid_thw")
        if patches is not None and kind in batch.placeholders:
            cells_of_media = [merged(batch.config, *map(int, counts)) for counts in patches]
            lengths[kind], cells[kind] = shared_out(batch.placeholders[kind], cells_of_media)
    if "image" in cells:
        sizes = by_example(lengths["image"], media.image_sizes)
        grids = {place: image_grid(cells["image"][place], *size) for place, size in sizes.items()}
    if "video" in cells:
        pair = frames_at_once(batch.config)
        videos = by_example(lengths["video"], media.videos)
        made = {place: video_grid(cells["video"][place], video, pair) for place, video in videos.items()}
        video_grids = {place: grid for place, grid in made.items() if grid is not None}
    return MediaLayout(lengths, grids, video_grids)


def merged(config: Any, steps: int, rows: int, columns: int) -> Cells:
    """The cells of so many patches: neighbours are merged to one position."""
    side = config.vision_config.spatial_merge_size
    return Cells(steps, rows // side, columns // side)


def frames_at_once(config: Any) -> int:
    """How many frames a position sees: those that the encoder reads at once."""
    return int(getattr(config.vision_config, "temporal_patch_size", 1))


def image_grid(cells: Cells, height: int, width: int) -> ImageGrid:
    """The positions of an image of `height` x `width` pixels."""
    return whole(height, width, rows=cells.rows, columns=cells.columns)


def video_grid(cells: Cells, video: Video, pair: int) -> VideoGrid | None:
    """The positions of a video.

    Args:
        cells: How many there are.
        video: The frames that the processor was given.
        pair: Frames to a step of the encoder.

    Returns:
        None for a video of another number of frames.
    """
    if -(-len(video) // pair) != cells.steps:
        return None
    frame = whole(video.height, video.width, rows=cells.rows, columns=cells.columns)
    step = torch.arange(cells.steps).repeat_interleave(len(frame))
    return VideoGrid(
        frame.boxes.repeat(cells.steps, 1),
        step * pair,
        torch.zeros(len(step), dtype=torch.bool),
        video.width,
        video.height,
        video.times_s,
        last_frame=(step * pair + pair - 1).clamp(max=len(video) - 1),
    )

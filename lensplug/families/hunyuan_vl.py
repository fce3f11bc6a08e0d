"""HunYuan-VL and HunyuanOCR: the cells of Qwen2-VL, row by row, between markers that the model adds itself.

An image is scaled to whole cells of 32 px, its proportions nearly kept, and seen whole. A position begins it, one ends
each row, and one ends it: none of them has a place.

The size of the original is not among the processor's outputs: where it is not known (`lens.encode` without `images=`),
it is known which positions belong to an image, and it has no grid.

Follows `HunYuanVLProcessor` and `HunYuanVLVisionPatchMerger` of transformers 5.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn.functional import pad

from lensplug.families import MediaLayout, ProcessedBatch, by_example, qwen_vl, shared_out
from lensplug.geometry import ImageGrid
from lensplug.geometry.image_cells import whole


@dataclass(frozen=True)
class Rows:
    """The cells of an image, with its markers."""

    rows: int
    columns: int

    def __len__(self) -> int:
        """The number of positions."""
        return self.rows * (self.columns + 1) + 2


def media_layout(batch: ProcessedBatch) -> MediaLayout:
    """The grid of every image in the batch."""
    patches = batch.outputs.get("image_grid_thw")
    if patches is None or "image" not in batch.placeholders:
        return MediaLayout()
    cells = [qwen_vl.merged(batch.config, *map(int, counts)) for counts in patches]
    lengths, places = shared_out(batch.placeholders["image"], [Rows(one.rows, one.columns) for one in cells])
    sizes = by_example(lengths, batch.media.image_sizes)
    return MediaLayout({"image": lengths}, {place: image_grid(places[place], *size) for place, size in sizes.items()})


def image_grid(cells: Rows, height: int, width: int) -> ImageGrid:
    """The positions of an image of `height` x `width` pixels."""
    boxes = whole(height, width, rows=cells.rows, columns=cells.columns).boxes
    with_ends = pad(boxes.view(cells.rows, cells.columns, 4), (0, 0, 0, 1), value=math.nan)
    placed = pad(with_ends.flatten(0, 1), (0, 0, 1, 1), value=math.nan)
    return ImageGrid(placed, torch.zeros(len(placed), dtype=torch.long), placed.isnan().any(dim=1), width, height)

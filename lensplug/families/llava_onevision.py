"""LLaVA-OneVision: a base view, then tiles unpadded, with a newline token at the end of every row.

One image in a prompt is seen twice: squeezed whole into one view, and, scaled to fit the best of the
grid resolutions, cut into tiles of a view's size. The features of the tiles are laid side by side, the
rows or columns that saw only padding are cut off, and a grid of more than `anyres_max_n` views is
interpolated down. Several images in one prompt have their base view only, padded to a square and not
squeezed, and one newline. A view of 384 px in patches of 14 px has 27 x 27 patches, which see 378 px:
the last 6 are seen by none.

Follows `LlavaOnevisionModel.pack_image_features` and `LlavaOnevisionImageProcessor` of transformers 5.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.image_processing_utils import select_best_resolution

from lensplug.families import MediaLayout, shared_out
from lensplug.geometry import ImageGrid


def media_layout(
    config: Any,
    processor_outputs: Mapping[str, Any],
    placeholders: Mapping[str, Sequence[Sequence[int]]],
    durations: Sequence[Sequence[float]] | None = None,
) -> MediaLayout:
    """The grid of every image in the batch."""
    sizes = processor_outputs.get("image_sizes")
    if sizes is None:
        return MediaLayout()
    counts = [int(count) for count in processor_outputs.get("batch_num_images", [1] * len(sizes))]
    alone = [count == 1 for count in counts for _ in range(count)]
    images = [image_grid(config, int(h), int(w), alone=single) for (h, w), single in zip(sizes, alone, strict=True)]
    lengths, grids = shared_out(placeholders["image"], images)
    return MediaLayout({"image": lengths}, grids)


def image_grid(config: Any, height: int, width: int, *, alone: bool = True) -> ImageGrid:
    """The positions of an image of `height` x `width` pixels.

    Args:
        config: The full model's configuration.
        height: Of the original image.
        width: Of the original image.
        alone: Whether it is the only image of its prompt; else it has no tiles.
    """
    view_px, patch = config.vision_config.image_size, config.vision_config.patch_size
    side = view_px // patch
    # Alone, the image is squeezed into its base view; one of several is padded to a square first.
    seen_w, seen_h = (width, height) if alone else (max(width, height), max(width, height))
    edges = torch.arange(side + 1, dtype=torch.float64) * patch / view_px
    x = (edges * seen_w - (seen_w - width) // 2).clamp(0, width)
    y = (edges * seen_h - (seen_h - height) // 2).clamp(0, height)
    base = _boxes(torch.stack([x[:-1], x[1:]], dim=1), torch.stack([y[:-1], y[1:]], dim=1))
    parts = [(base, torch.zeros(side * side, dtype=torch.long), torch.zeros(side * side, dtype=torch.bool))]
    if alone:
        parts.append(_tiles(config, height, width, side))
    else:
        parts.append((torch.full((1, 4), math.nan), torch.zeros(1, dtype=torch.long), torch.ones(1, dtype=torch.bool)))
    boxes, view, newline = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return ImageGrid(boxes.float(), view, newline, width, height)


def _tiles(config: Any, height: int, width: int, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, views and newlines of the tiled part."""
    view_px, patch = config.vision_config.image_size, config.vision_config.patch_size
    canvas_h, canvas_w = select_best_resolution((height, width), config.image_grid_pinpoints)
    rows, columns = canvas_h // view_px * side, canvas_w // view_px * side
    # The image is scaled to fit the canvas and centred; the same rule, on features, says what is cut off.
    scaled_h, scaled_w = _fit(height, width, canvas_h, canvas_w)
    top, left = _cut(height, width, rows, columns)
    n_rows, n_columns = rows - 2 * top, columns - 2 * left
    most = int(config.vision_aspect_ratio.removeprefix("anyres_max_"))
    ratio = math.sqrt(n_rows * n_columns / (most * side**2))
    if ratio > 1.1:
        n_rows, n_columns = int(n_rows // ratio), int(n_columns // ratio)
    y_canvas, y_tile = _cells(rows, top, n_rows, side, view_px, patch)
    x_canvas, x_tile = _cells(columns, left, n_columns, side, view_px, patch)
    y = ((y_canvas - (canvas_h - scaled_h) // 2) * height / scaled_h).clamp(0, height)
    x = ((x_canvas - (canvas_w - scaled_w) // 2) * width / scaled_w).clamp(0, width)

    boxes = torch.full((n_rows, n_columns + 1, 4), math.nan, dtype=torch.float64)
    boxes[:, :-1] = _boxes(x, y).view(n_rows, n_columns, 4)
    newline = torch.zeros(n_rows, n_columns + 1, dtype=torch.bool)
    newline[:, -1] = True
    # A newline counts to the last tile of its row. (Of a very narrow image nothing but newlines may be left.)
    x_tile = torch.cat([x_tile, x_tile[-1:] if n_columns else torch.zeros(1, dtype=torch.long)])
    view = y_tile[:, None] * (canvas_w // view_px) + x_tile + 1
    return boxes.flatten(0, 1), view.flatten(), newline.flatten()


def _fit(height: int, width: int, canvas_h: int, canvas_w: int) -> tuple[int, int]:
    """The size of the image scaled into the canvas, its proportions kept (as the image processor does)."""
    if canvas_w / width < canvas_h / height:
        return min(math.ceil(height * canvas_w / width), canvas_h), canvas_w
    return canvas_h, min(math.ceil(width * canvas_h / height), canvas_w)


def _cut(height: int, width: int, rows: int, columns: int) -> tuple[int, int]:
    """How many rows at the top (and bottom), columns at the left (and right) are cut off as padding."""
    if width / height > columns / rows:
        return (rows - int(round(height * columns / width, 7))) // 2, 0
    return 0, (columns - int(round(width * rows / height, 7))) // 2


def _cells(
    patches: int, cut: int, count: int, side: int, view_px: int, patch: int
) -> tuple[Float[Tensor, "cell 2"], Int[Tensor, " cell"]]:
    """Start and end of each row (column) of positions in canvas pixels, and the tile that its middle lies in.

    There are `patches` rows of patches, `cut` of them left out at both ends, the rest interpolated to
    `count`: each position stands for its share of them.
    """
    share = cut + torch.arange(count + 1, dtype=torch.float64) * (patches - 2 * cut) / max(count, 1)
    start, end = share[:-1], share[1:]

    def pixel(at: Tensor, index: Tensor) -> Tensor:
        """`at` counted in patches, inside patch `index`: tiles have pixels at their end that no patch sees."""
        return index // side * view_px + (index % side + at - index) * patch

    tile = ((start + end) / 2 // side).long()
    return torch.stack([pixel(start, start.floor()), pixel(end, end.ceil() - 1)], dim=1), tile


def _boxes(x: Float[Tensor, "column 2"], y: Float[Tensor, "row 2"]) -> Float[Tensor, "cell 4"]:
    """Boxes row by row, from the start and end of each column and row."""
    rows, columns = len(y), len(x)
    y_all = y[:, None].expand(rows, columns, 2)
    x_all = x[None].expand(rows, columns, 2)
    return torch.stack([x_all[..., 0], y_all[..., 0], x_all[..., 1], y_all[..., 1]], dim=-1).flatten(0, 1)

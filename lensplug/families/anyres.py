"""AnyRes tiles, as LLaVA-NeXT and LLaVA-OneVision cut them: a base view, then tiles with a newline after every row.

The image is seen twice: squeezed whole into the base view, and, scaled to fit the best of the grid
resolutions and centred there, cut into tiles of a view's size. The features of the tiles are laid side by
side, the rows or columns that saw only padding are cut off, and a grid of more than `most` views is
interpolated down. A view of 384 px in patches of 14 px has 27 x 27 patches, which see 378 px: the last 6
are seen by none.

Follows `pack_image_features` of both models and their image processors in transformers 5.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.image_processing_utils import select_best_resolution

from lensplug.geometry import ImageGrid
from lensplug.geometry.image_cells import boxes, squeezed


def anyres_grid(config: Any, height: int, width: int, *, most: int | None = None) -> ImageGrid:
    """The positions of an image of `height` x `width` pixels.

    Args:
        config: The full model's configuration.
        height: Height of the original image.
        width: Width of the original image.
        most: Tiles, in views, beyond which the grid is interpolated down; None: never.
    """
    vision, pinpoints = config.vision_config, tuple(map(tuple, config.image_grid_pinpoints))
    placed, view, newline = _positions(vision.image_size, vision.patch_size, pinpoints, height, width, most)
    return ImageGrid(placed.clone(), view.clone(), newline.clone(), width, height)  # the kept ones stay as they are


@lru_cache(maxsize=16)
def _positions(
    view_px: int, patch: int, pinpoints: tuple[tuple[int, int], ...], height: int, width: int, most: int | None
) -> tuple[Float[Tensor, "token 4"], Int[Tensor, " token"], Bool[Tensor, " token"]]:
    """Boxes, views and newlines of an image of this size; of a data set many images have the same."""
    side = view_px // patch
    with torch.device("cpu"):  # whatever is the default where it is asked for first
        base = squeezed(height, width, view_px=view_px, side=side, cell_px=patch)
        none = torch.zeros(len(base), dtype=torch.long)
        parts = [(base, none, none.bool()), _tiles(view_px, patch, pinpoints, height, width, most)]
        placed, view, newline = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return placed.float(), view, newline


def _tiles(
    view_px: int, patch: int, pinpoints: tuple[tuple[int, int], ...], height: int, width: int, most: int | None
) -> tuple[Float[Tensor, "token 4"], Int[Tensor, " token"], Bool[Tensor, " token"]]:
    """Boxes, views and newlines of the tiled part."""
    side = view_px // patch
    canvas_h, canvas_w = select_best_resolution((height, width), pinpoints)
    rows, columns = canvas_h // view_px * side, canvas_w // view_px * side
    # The image is scaled to fit the canvas and centred; the same rule, on features, says what is cut off.
    scaled_h, scaled_w = _fit(height, width, canvas_h, canvas_w)
    top, left = _cut(height, width, rows, columns)
    n_rows, n_columns = rows - 2 * top, columns - 2 * left
    ratio = math.sqrt(n_rows * n_columns / (most * side**2)) if most is not None else 0.0
    if ratio > 1.1:
        n_rows, n_columns = int(n_rows // ratio), int(n_columns // ratio)
    y_canvas, y_tile = interpolated_cells(rows, top, n_rows, side, view_px, patch)
    x_canvas, x_tile = interpolated_cells(columns, left, n_columns, side, view_px, patch)
    y = ((y_canvas - (canvas_h - scaled_h) // 2) * height / scaled_h).clamp(0, height)
    x = ((x_canvas - (canvas_w - scaled_w) // 2) * width / scaled_w).clamp(0, width)

    placed = torch.full((n_rows, n_columns + 1, 4), math.nan, dtype=torch.float64)
    placed[:, :-1] = boxes(x, y).view(n_rows, n_columns, 4)
    newline = torch.zeros(n_rows, n_columns + 1, dtype=torch.bool)
    newline[:, -1] = True
    # A newline counts to the last tile of its row. (Of a very narrow image nothing but newlines may be left.)
    x_tile = torch.cat([x_tile, x_tile[-1:] if n_columns else torch.zeros(1, dtype=torch.long)])
    view = y_tile[:, None] * (canvas_w // view_px) + x_tile + 1
    return placed.flatten(0, 1), view.flatten(), newline.flatten()


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


def interpolated_cells(
    patches: int, cut: int, count: int, side: int, view_px: int, patch: int
) -> tuple[Float[Tensor, "cell 2"], Int[Tensor, " cell"]]:
    """Start and end of each row (column) of positions in canvas pixels, and the view that contains its middle.

    There are `patches` rows of patches, `cut` of them left out at both ends, the rest interpolated to
    `count`: each position represents its share of them.
    """
    share = cut + torch.arange(count + 1, dtype=torch.float64) * (patches - 2 * cut) / max(count, 1)
    start, end = share[:-1], share[1:]

    def pixel(at: Tensor, index: Tensor) -> Tensor:
        """`at` counted in patches, inside patch `index`: tiles have pixels at their end that no patch sees."""
        return index // side * view_px + (index % side + at - index) * patch

    view = ((start + end) / 2 // side).long()
    return torch.stack([pixel(start, start.floor()), pixel(end, end.ceil() - 1)], dim=1), view

"""The boxes of image tokens in pixels of the original image, for any views and tiles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lensplug.errors import LensplugError
from lensplug.geometry.image_regions import Region, read_region
from lensplug.geometry.raster import Raster
from lensplug.validation.arguments import checked

ViewName = Literal["all", "base", "tiles"]
"""The whole image (base view), its tiles, or the mean of both."""
VIEWS: tuple[ViewName, ...] = get_args(ViewName)


@dataclass(frozen=True)
class ImageGrid:
    """The image positions of one image, in the order of the prompt."""

    boxes: Float[Tensor, "token 4"]
    """x0 y0 x1 y1 in original pixels; NaN for tokens that have no place: newlines, a class token. A token that sees
    nothing but padding has a box without area at the border of the image."""
    view: Int[Tensor, " token"]
    """0 = the whole image (base view), 1.. = the tile, row by row."""
    newline: Bool[Tensor, " token"]
    """Tokens that only end a row."""
    width: int
    height: int
    measured: float | None = None
    """Where `lens.locate` measured the boxes: to how many pixels; None where they follow from the processor."""

    def __len__(self) -> int:
        """The number of image positions."""
        return len(self.view)

    @property
    def placed(self) -> Bool[Tensor, " token"]:
        """Tokens whose box has an area: those that can be painted."""
        placed: Tensor = (self.boxes[:, 2:] > self.boxes[:, :2]).all(dim=1)
        return placed

    @property
    def views(self) -> tuple[ViewName, ...]:
        """Which of "base" and "tiles" there are."""
        return tuple(name for name in VIEWS[1:] if bool(self._tokens_of(name).any()))

    @checked
    def mass_by_view(self, values: Float[Tensor, " token"]) -> dict[str, float]:
        """The sum of values on the tokens of each view, and on those that have no place.

        Of attention, the share that goes to the whole image and to its tiles: what one of them shows is not all.

        Args:
            values: One value a token; NaN is left out.

        Returns:
            "base" and "tiles", those that there are, and "no place" (newlines, class tokens, padding).

        Raises:
            LensplugError: If there is not one value a token.
        """
        if values.shape != self.view.shape:
            raise LensplugError(f"{list(values.shape)} values for {len(self)} image tokens: give one value a token.")
        known = values.detach().float().cpu().nan_to_num(nan=0.0, posinf=torch.inf, neginf=-torch.inf)
        masses = {str(name): float(known[self._tokens_of(name)].sum()) for name in self.views}
        return {**masses, "no place": float(known[~self.placed].sum())}

    @checked
    def to_pixels(
        self, values: Float[Tensor, " token"], *, view: ViewName = "all", preserve_mass: bool = False
    ) -> Float[Tensor, "height width"]:
        """Paint values on tokens over the image.

        Each pixel gets the mean over the views that cover it (`view="all"`), or the value of the base
        view (`"base"`) or of the tiles (`"tiles"`) alone; 0 where nothing covers it. Tokens that have no
        place (not in `placed`), and values that are NaN, are left out.

        Args:
            values: One value a token.
            view: "all", "base" or "tiles".
            preserve_mass: Spread each value over the pixels of its box, and add up what falls on a pixel:
                the sum of the pixels is the sum of the values that have a place. For fractions of attention
                or of a rollout that are to stay fractions; without it the pixels have the values' own scale.

        Raises:
            LensplugError: If there is not one value a token.
        """
        if not preserve_mass:
            return self._painted(values, view)[0]
        total = torch.zeros(self.height, self.width)
        for view_values, raster in self._rasters(values, view):
            if bool(view_values.isinf().any()):
                raise LensplugError("some values are infinite: they have no mass to preserve.")
            total += raster.spread(view_values)
        return total

    @checked
    def to_cells(
        self, values: Float[Tensor, " token"], *, view: ViewName = "all"
    ) -> tuple[Float[Tensor, "row column"], Float[Tensor, " row_edge"], Float[Tensor, " column_edge"]]:
        """The heat map of `to_pixels` without its pixels: the fewest cells that have one value each.

        As exact as the boxes and small for any size of the image: what overlays draw.

        Returns:
            The values (NaN where no box is), and the y and the x of the edges between the cells.
        """
        boxes = self.boxes[self._tokens_of(view)].double().cpu()
        y = _edges(boxes[:, [1, 3]].flatten(), self.height)
        x = _edges(boxes[:, [0, 2]].flatten(), self.width)
        total, covers = self._painted(values, view, ((y[1:] + y[:-1]) / 2, (x[1:] + x[:-1]) / 2))
        return total.masked_fill(covers == 0, torch.nan), y, x

    @checked
    def cells(self, *, view: ViewName = "base") -> tuple[Int[Tensor, " token"], Int[Tensor, " token"]]:
        """The row and the column of each token in the grid of a view, counted from 0 at the top left; -1 for others.

        The tiles are one grid: tokens on both sides of the edge between two tiles are neighbours.

        Args:
            view: "base" or "tiles"; "all" for an image that has only one of them.

        Raises:
            LensplugError: If there are both, and "all" is asked for: they are two grids.
        """
        if view == "all" and len(self.views) > 1:
            raise LensplugError("view is 'all', and base view and tiles are two grids: view='base' or view='tiles'.")
        chosen = self._tokens_of(view)
        raster = Raster.of(self.boxes[chosen], self.height, self.width)
        row, column = (torch.full((len(self),), -1) for _ in range(2))
        row[chosen], column[chosen] = raster.row, raster.column
        return row, column

    def _painted(
        self,
        values: Float[Tensor, " token"],
        view: ViewName,
        points: tuple[Float[Tensor, " y"], Float[Tensor, " x"]] | None = None,
    ) -> tuple[Float[Tensor, "y x"], Float[Tensor, "y x"]]:
        """The mean over the views that cover a point, and how many do."""
        shape = (self.height, self.width) if points is None else (len(points[0]), len(points[1]))
        total, covers = torch.zeros(shape), torch.zeros(shape)
        for view_values, raster in self._rasters(values, view):
            total += raster.paint(view_values, points)
            covers += raster.paint(torch.ones_like(view_values), points)
        return total / covers.clamp(min=1), covers

    def _rasters(self, values: Float[Tensor, " token"], view: ViewName) -> list[tuple[Float[Tensor, " own"], Raster]]:
        """For the base view and for all tiles together: the values that are known and have a place, their boxes."""
        if values.shape != self.view.shape:
            raise LensplugError(f"{list(values.shape)} values for {len(self)} image tokens: give one value a token.")
        values = values.detach().float().cpu()
        chosen = self._tokens_of(view) & ~values.isnan()
        of_views = [chosen & self._tokens_of(name) for name in self.views]
        return [(values[in_view], Raster.of(self.boxes[in_view], self.height, self.width)) for in_view in of_views]

    @checked
    def overlap(self, region: Region, *, view: ViewName = "all") -> Float[Tensor, " token"]:
        """The inverse: the fraction of each token's box inside a region of the image, 0 to 1.

            sees = modality.image_positions()[grid.overlap((40, 30, 90, 80)) > 0]

        Args:
            region: A box x0 y0 x1 y1 in original pixels, or a mask of pixels `[height width]`: True and False, 1 and
                0, or, as images have it, 255 and 0.
            view: "all", "base" or "tiles"; tokens of the other view get 0, as do those that have no place.

        Raises:
            LensplugError: If the region is neither, or has no area; or the mask has other values.
        """
        chosen = self._tokens_of(view)
        shares = torch.zeros(len(self))
        raster = Raster.of(self.boxes[chosen], self.height, self.width)
        known = read_region(region, self.height, self.width)
        if known.dtype == torch.bool:
            shares[chosen] = raster.share(known)
        else:
            x0, y0, x1, y1 = known.tolist()
            shares[chosen] = raster.share_of_box(x0, y0, x1, y1)
        return shares

    def _tokens_of(self, view: ViewName) -> Bool[Tensor, " token"]:
        """The tokens of a view that have a place."""
        chosen: Tensor = self.placed if view == "all" else self.placed & ((self.view == 0) == (view == "base"))
        return chosen


def _edges(box_edges: Float[Tensor, " edge"], limit: int) -> Float[Tensor, " distinct"]:
    """The edges of boxes and of the image in order, without slivers that only rounding makes."""
    ordered = torch.unique(torch.cat([box_edges, torch.tensor([0.0, limit], dtype=torch.float64)]))
    keep: Tensor = torch.ones(len(ordered), dtype=torch.bool)
    keep[1:] = (ordered[1:] - ordered[:-1]) > limit * 1e-5
    edges: Tensor = ordered[keep]
    return edges

"""Where a token lies in the medium that it came from: pixels of an image.

A family (`lensplug.families`) says how its tiles were cut; this file holds the result and what can be
done with it, the same for every family. Coordinates are pixels of the original image, x to the right,
y downwards, (x0, y0) inclusive and (x1, y1) exclusive, as floats.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lensplug.errors import LensplugError


@dataclass(frozen=True)
class ImageGrid:
    """The image positions of one image, in the order of the prompt."""

    boxes: Float[Tensor, "token 4"]
    """x0 y0 x1 y1 in original pixels; NaN for newline tokens. A token that sees nothing but padding has a
    box without area at the border of the image."""
    view: Int[Tensor, " token"]
    """0 = the whole image (base view), 1.. = the tile, row by row."""
    newline: Bool[Tensor, " token"]
    """Tokens that only end a row."""
    width: int
    height: int

    def __len__(self) -> int:
        """The number of image positions."""
        return len(self.view)

    def to_pixels(self, values: Float[Tensor, " token"], *, view: str = "all") -> Float[Tensor, "height width"]:
        """Paint values on tokens over the image.

        Each pixel gets the mean over the views that cover it (`view="all"`), or the value of the base
        view (`"base"`) or of the tiles (`"tiles"`) alone; 0 where nothing covers it. Newline tokens
        have no place and are left out.

        Args:
            values: One value a token.
            view: "all", "base" or "tiles".
        """
        if view not in ("all", "base", "tiles"):
            raise LensplugError(f"view is {view!r}, expected 'all', 'base' or 'tiles'.")
        if values.shape != self.view.shape:
            raise LensplugError(f"{list(values.shape)} values for {len(self)} image tokens: give one value a token.")
        layers = []
        for chosen, name in ((self.view == 0, "base"), (self.view > 0, "tiles")):
            chosen = chosen & ~self.newline
            if view in ("all", name) and bool(chosen.any()):
                layers.append(self._paint(values[chosen], self.boxes[chosen]))
        total = sum((sums for sums, _ in layers), torch.zeros(self.height, self.width))
        covers = sum((covered.float() for _, covered in layers), torch.zeros(self.height, self.width))
        return total / covers.clamp(min=1)

    def _paint(
        self, values: Float[Tensor, " token"], boxes: Float[Tensor, "token 4"]
    ) -> tuple[Float[Tensor, "height width"], Bool[Tensor, "height width"]]:
        """One view: the value of the box that each pixel's centre lies in, and which pixels have one."""
        canvas = torch.zeros(self.height, self.width)
        covered = torch.zeros(self.height, self.width, dtype=torch.bool)
        # A pixel belongs to the box that holds its centre; rounding both edges alike leaves no gap between boxes.
        edges = (boxes - 0.5).ceil().long().clamp(min=0).tolist()
        for (x0, y0, x1, y1), value in zip(edges, values.float().cpu(), strict=True):
            canvas[y0:y1, x0:x1] = value
            covered[y0:y1, x0:x1] = True
        return canvas, covered

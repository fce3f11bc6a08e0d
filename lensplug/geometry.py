"""Where a token lies in the medium that it came from: pixels of an image, seconds of a sound.

A family (`lensplug.families`) says how its tiles were cut, or its frames stacked; this file holds the
result and what can be done with it, the same for every family. Coordinates are pixels of the original
image, x to the right, y downwards, (x0, y0) inclusive and (x1, y1) exclusive, as floats; or seconds of
the original waveform.
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


@dataclass(frozen=True)
class AudioTimeline:
    """The audio positions of one sound, in the order of the prompt.

    A frame of an encoder stands for a cell of time: as long as the encoder's stride, around the middle of
    the samples that its convolutions see, so that frames tile the sound. A position hears the cells of
    the frames that are stacked, pooled or blended into it. (Through the encoder's attention each frame
    knows of all others: the cell says where a change of the sound changes the position most.)
    """

    start_s: Float[Tensor, " token"]
    end_s: Float[Tensor, " token"]
    """What the position hears, in seconds of the original waveform. Positions of an interpolation can have
    gaps between them: sound that no position hears directly."""
    duration_s: float
    """Of the sound. Where only padded windows are known, and not the sound: of its windows."""

    def __len__(self) -> int:
        """The number of audio positions."""
        return len(self.start_s)

    @property
    def center_s(self) -> Float[Tensor, " token"]:
        """The middle of what each position hears."""
        return (self.start_s + self.end_s) / 2

    @property
    def padding(self) -> Bool[Tensor, " token"]:
        """Positions that hear nothing but padding behind the sound."""
        return self.start_s >= self.duration_s

    @property
    def edges_s(self) -> Float[Tensor, " edge"]:
        """Time shared out among the positions, without gaps: half-way between neighbouring middles."""
        center = self.center_s
        end = max(float(self.end_s[-1]), self.duration_s)
        return torch.cat([torch.zeros(1), (center[1:] + center[:-1]) / 2, torch.tensor([end])])

    def to_seconds(self, values: Float[Tensor, " token"], *, bins: int) -> Float[Tensor, " bin"]:
        """Paint values on tokens over the sound, from 0 to its end, as equal bins of time.

        Each bin has the value of the position that is nearest to its middle.

        Args:
            values: One value a token.
            bins: How many bins.
        """
        if values.shape != self.start_s.shape:
            raise LensplugError(f"{list(values.shape)} values for {len(self)} audio tokens: give one value a token.")
        middles = (torch.arange(bins) + 0.5) * self.duration_s / bins
        return values.float().cpu()[torch.searchsorted(self.edges_s[1:-1].contiguous(), middles, right=True)]

"""The frame and box of each video token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lensplug.errors import LensplugError
from lensplug.geometry.image_grid import ImageGrid
from lensplug.geometry.image_regions import Region
from lensplug.validation.arguments import checked


@dataclass(frozen=True)
class VideoGrid:
    """The video positions of one video, in the order of the prompt: the same grid over every frame.

    A position sees one frame, or several in a row: Qwen2-VL's encoder reads frames in pairs.
    """

    boxes: Float[Tensor, "token 4"]
    """x0 y0 x1 y1 in pixels of the original frame; NaN for newlines."""
    frame: Int[Tensor, " token"]
    """Which of the frames that the model sees, the first of several; -1 for newlines."""
    newline: Bool[Tensor, " token"]
    width: int
    height: int
    times_s: Float[Tensor, " frame"] | None = None
    """When each frame is shown; None where it is not known."""
    last_frame: Int[Tensor, " token"] | None = None
    """The last frame that each position sees, where it sees several in a row, from `frame` on; None: `frame` alone."""
    measured: float | None = None
    """As of `ImageGrid`."""

    def __len__(self) -> int:
        """The number of video positions."""
        return len(self.frame)

    @property
    def n_frames(self) -> int:
        """Frames that the model sees."""
        return int(self._last.max()) + 1

    @property
    def time_s(self) -> Float[Tensor, " token"] | None:
        """When each position's frame (the first of several) is shown; NaN for newlines."""
        return self._shown_s(self.frame)

    @property
    def last_time_s(self) -> Float[Tensor, " token"] | None:
        """When the last of each position's frames is shown; NaN for newlines."""
        return self._shown_s(self._last)

    @property
    def frames_seen(self) -> Int[Tensor, " token"]:
        """How many frames each position sees; 0 for newlines."""
        seen: Tensor = (self._last - self.frame + 1).masked_fill(self.frame < 0, 0)
        return seen

    @property
    def _last(self) -> Int[Tensor, " token"]:
        return self.frame if self.last_frame is None else self.last_frame

    def _shown_s(self, frame: Int[Tensor, " token"]) -> Float[Tensor, " token"] | None:
        if self.times_s is None:
            return None
        return self.times_s[frame.clamp(min=0)].masked_fill(frame < 0, torch.nan)

    @checked
    def image_grid(self, frame: int) -> ImageGrid:
        """The positions of one frame as the grid of an image; `tokens_of_frame` says which they are."""
        tokens = self.tokens_of_frame(frame)
        return ImageGrid(
            self.boxes[tokens],
            torch.zeros_like(self.frame[tokens]),
            self.newline[tokens],
            self.width,
            self.height,
            self.measured,
        )

    @checked
    def tokens_of_frame(self, frame: int) -> Bool[Tensor, " token"]:
        """Which of the video's positions see a frame."""
        if not 0 <= frame < self.n_frames:
            raise LensplugError(
                f"frame {frame} is asked for, the model sees {self.n_frames} (0 to {self.n_frames - 1})."
            )
        sees: Tensor = (self.frame <= frame) & (frame <= self._last) & (self.frame >= 0)
        return sees

    @checked
    def to_pixels(
        self, values: Float[Tensor, " token"], *, preserve_mass: bool = False
    ) -> Float[Tensor, "frame height width"]:
        """Paint values on tokens over every frame, as `ImageGrid.to_pixels` does over an image.

        Args:
            values: One value a token.
            preserve_mass: Spread each value over the pixels of its box, in equal parts over the frames that it
                sees; the sum over all frames is the sum of the values that have a place.
        """
        if values.shape != self.frame.shape:
            raise LensplugError(f"{list(values.shape)} values for {len(self)} video tokens: give one value a token.")
        if preserve_mass:
            values = values / self.frames_seen.clamp(min=1).to(values.device)
        return torch.stack(
            [
                self.image_grid(frame).to_pixels(
                    values[self.tokens_of_frame(frame).to(values.device)], preserve_mass=preserve_mass
                )
                for frame in range(self.n_frames)
            ]
        )

    @checked
    def overlap(self, region: Region, *, frame: int | None = None) -> Float[Tensor, " token"]:
        """The fraction of each token's box inside a region, in one frame or in all, 0 to 1."""
        shares = torch.zeros(len(self))
        for index in range(self.n_frames) if frame is None else [frame]:
            shares[self.tokens_of_frame(index)] = self.image_grid(index).overlap(region)
        return shares

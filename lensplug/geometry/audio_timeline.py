"""When the tokens of a sound are heard."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lensplug.errors import LensplugError
from lensplug.validation.arguments import checked

MOST_BINS = 10_000_000


@dataclass(frozen=True)
class AudioTimeline:
    """The audio positions of one sound, in the order of the prompt.

    A frame of an encoder represents a cell of time: as long as the encoder's stride, around the middle of
    the samples that its convolutions see, so that frames tile the sound. A position hears the cells of
    the frames that are stacked, pooled or blended into it. (Through the encoder's attention each frame
    knows of all others: the cell says where a change of the sound changes the position most.)
    """

    start_s: Float[Tensor, " token"]
    end_s: Float[Tensor, " token"]
    """What the position hears, in seconds of the original waveform. Positions of an interpolation can have
    gaps between them: sound that no position hears directly. Those of a Q-Former on windows (Granite Speech) hear the
    same window each."""
    duration_s: float
    """Duration of the sound; of its padded windows where only those are known."""
    heard_s: float | None = None
    """Where the encoder ceases to hear a sound that is too long for it; None where it hears all of it."""
    measured: float | None = None
    """Where `lens.locate` measured the times: to how many seconds; None where they follow from the encoder."""

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
        end = max(float(self.end_s[-1]), self.duration_s if self.heard_s is None else self.heard_s)
        return torch.cat([torch.zeros(1), (center[1:] + center[:-1]) / 2, torch.tensor([end])])

    @checked
    def to_seconds(self, values: Float[Tensor, " token"], *, bins: int) -> Float[Tensor, " bin"]:
        """Paint values on tokens over the sound, from 0 to its end, as equal bins of time.

        Each bin has the value of the position that is nearest to its middle, the mean where several hear the same
        time; NaN where the encoder hears no more.

        Args:
            values: One value a token.
            bins: How many bins; at most ten million.

        Raises:
            LensplugError: If there is not one value for each token, or there are no bins or too many.
        """
        if not 1 <= bins <= MOST_BINS:
            raise LensplugError(f"bins is {bins}, expected 1 to {MOST_BINS}.")
        if values.shape != self.start_s.shape:
            raise LensplugError(f"{list(values.shape)} values for {len(self)} audio tokens: give one value a token.")
        middles = (torch.arange(bins) + 0.5) * self.duration_s / bins
        is_new = self.center_s.diff(prepend=torch.tensor([-torch.inf])) != 0
        center, of_center = self.center_s[is_new], is_new.cumsum(dim=0) - 1
        means = torch.zeros(len(center)).index_add(0, of_center, values.float().cpu()) / of_center.bincount()
        painted: Tensor = means[torch.searchsorted((center[1:] + center[:-1]) / 2, middles, right=True)]
        return painted if self.heard_s is None else painted.masked_fill(middles >= self.heard_s, torch.nan)

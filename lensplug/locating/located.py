"""`Located`: where the positions of one medium lie, as it was measured, and how far that can be trusted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lensplug.geometry import AudioTimeline, ImageGrid, VideoGrid
from lensplug.inputs.multimodal_input import MultimodalInput
from lensplug.locating.measured_grids import overlap_of
from lensplug.positions.modality_map import MediumName

if TYPE_CHECKING:
    import pandas

Geometry = ImageGrid | VideoGrid | AudioTimeline


@dataclass(frozen=True, eq=False)
class Located:
    """The measured places of the positions of one image, video or sound."""

    kind: MediumName
    media_index: int
    example: int
    geometry: Geometry
    """As a family's own would be, marked as measured (`measured`); positions that nothing moves, or that see no one
    place, have NaN for a box or a time."""
    known: Geometry | None
    """What the family's own file says, where it says something."""
    resolution: dict[str, float]
    """The longest part that was changed at once, by side: "y" and "x" in pixels, "frame" in frames, "time" in
    seconds. An edge is exact to about one of these."""
    concentration: Float[Tensor, " token"]
    """How much of a position's movement (squared) came from its place, with the encoder's attention off; 0 to 1."""
    blur: Float[Tensor, " token"]
    """How much of it came from elsewhere, with the attention as it is: what a position tells of the rest of the
    medium. The larger, the less a map over the medium says where something was seen; 0 to 1."""
    attention_off: bool
    """Whether the encoder's attention could be switched off; if not, places were found with it."""
    runs: int
    """How many media went through the encoder."""
    inputs: MultimodalInput = field(repr=False)
    """The inputs that were given, with the measured geometry in `inputs.modality`: views draw over it."""

    @property
    def placed(self) -> Bool[Tensor, " token"]:
        """Positions that have a place."""
        if isinstance(self.geometry, AudioTimeline):
            return ~self.geometry.padding
        return ~self.geometry.boxes.isnan().any(dim=1)

    @property
    def agreement(self) -> Float[Tensor, " token"] | None:
        """For each position, what its measured place and the known one share, 0 to 1.

        Of boxes, intersection over union; of a video 0 where the frames differ. Of times, as a fraction of the shorter
        one: a timeline says which cell of time a frame stands for, and convolutions hear some of its neighbours. None
        where nothing is known; NaN for a position that has no place in one of them.
        """
        if isinstance(self.geometry, AudioTimeline) and isinstance(self.known, AudioTimeline):
            found, expected = ([one.start_s, one.end_s] for one in (self.geometry, self.known))
            shared = (torch.minimum(found[1], expected[1]) - torch.maximum(found[0], expected[0])).clamp(min=0)
            of_shorter: Tensor = shared / torch.minimum(found[1] - found[0], expected[1] - expected[0])
            return of_shorter
        if isinstance(self.geometry, ImageGrid) and isinstance(self.known, ImageGrid):
            return overlap_of(self.geometry.boxes, self.known.boxes)
        if isinstance(self.geometry, VideoGrid) and isinstance(self.known, VideoGrid):
            same_frames = (self.geometry.frame == self.known.frame) & (
                self.geometry.frames_seen == self.known.frames_seen
            )
            return overlap_of(self.geometry.boxes, self.known.boxes) * same_frames
        return None

    def to_dataframe(self) -> pandas.DataFrame:
        """A row for each position of the medium: position, its place, concentration, blur, agreement."""
        import pandas

        position = getattr(self.inputs.modality, f"{self.kind}_positions")(self.media_index, self.example)
        columns = {"position": position.cpu().numpy()}
        if isinstance(self.geometry, AudioTimeline):
            columns |= {"start_s": self.geometry.start_s.numpy(), "end_s": self.geometry.end_s.numpy()}
        else:
            columns |= dict(zip(("x0", "y0", "x1", "y1"), self.geometry.boxes.T.numpy(), strict=True))
        if isinstance(self.geometry, VideoGrid):
            columns["frame"] = self.geometry.frame.numpy()
        if isinstance(self.geometry, ImageGrid):
            columns["view"] = self.geometry.view.numpy()
        columns |= {"concentration": self.concentration.numpy(), "blur": self.blur.numpy()}
        if self.agreement is not None:
            columns["agreement"] = self.agreement.numpy()
        return pandas.DataFrame(columns)

    def __str__(self) -> str:
        """A few lines."""
        units = {"y": "px", "x": "px", "frame": "frames", "time": "s"}
        edges = ", ".join(f"{side} {length:.3g} {units[side]}" for side, length in self.resolution.items())
        off = "off" if self.attention_off else "on (it could not be switched off)"
        lines = [
            f"{self.kind} {self.media_index} of example {self.example}, measured in {self.runs} runs of the encoder:",
            f"  {int(self.placed.sum())} of {len(self.placed)} positions have a place (edges to {edges})",
            f"  places found with the encoder's attention {off}: {_mean(self.concentration)} of a position's movement"
            " is its own place's",
            f"  as the encoder is, {_mean(self.blur)} of a position's movement comes from elsewhere",
        ]
        if self.agreement is not None:
            lines.append(f"  measured and known places share {_mean(self.agreement)}")
        return "\n".join(lines)


def _mean(values: Float[Tensor, " token"]) -> str:
    return f"{float(values.nanmean()):.0%}"

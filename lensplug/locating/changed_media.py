"""A medium with one part changed at a time: rows and columns of pixels, frames of a video, stretches of a sound.

A position sees a rectangle. Which rows of pixels move it, and which columns, say all four sides: for `n` stripes along
each side that takes `2 n` runs of the encoder, where a grid of as many cells would take `n * n`.

What a part is changed to must differ from what it was, whatever that is: pixels move by a random quarter to three
quarters of their range, round its end; a stretch of sound becomes noise as loud as it was, since encoders scale a sound
by all of its loudness.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from lensplug.errors import LensplugError
from lensplug.inputs.multimodal_input import MultimodalInput
from lensplug.inputs.other_media import FIELDS
from lensplug.media import Media, Sound, Video
from lensplug.positions.modality_map import MediumName

FEWEST, MOST = 16, 128
"""Stripes along a side, unless they are given."""
OF_A_POSITION = 3
"""Stripes across a position of an image whose positions form a square."""
SEED = 0
SHIFTS = (64, 193)
"""By how much pixels move, of 256: at least, and less than."""
SILENT = 0.01
"""The least loudness of noise (root mean square)."""
QUIET = 0.3
"""The least loudness of noise, as a fraction of that of the whole sound."""


@dataclass(frozen=True)
class Axis:
    """One side of a medium, cut into parts."""

    name: str
    """"y", "x", "frame" or "time"."""
    edges: Float[Tensor, " edge"]
    """Where parts begin and end: pixels, frames or seconds."""
    changed: Callable[[int], Any]
    """The medium with this part changed."""

    def __len__(self) -> int:
        """The number of parts."""
        return len(self.edges) - 1

    @property
    def resolution(self) -> float:
        """The length of the longest part."""
        return float((self.edges[1:] - self.edges[:-1]).max())


def media_of(inputs: MultimodalInput, kind: MediumName) -> tuple[Any, ...]:
    """The media of this kind of inputs of one example.

    Raises:
        LensplugError: If they are not known.
    """
    name = FIELDS[kind]
    of_examples: tuple[tuple[Any, ...], ...] = getattr(inputs, name)
    if not of_examples:
        raise LensplugError(
            f"the {kind} of these inputs is not known: lens.prepare keeps it, to lens.encode give {name}=[...]."
        )
    return of_examples[0]


def with_one_changed(media: tuple[Any, ...], media_index: int, versions: list[Any], kind: MediumName) -> Media:
    """As many sets of media as there are versions of one of them."""
    sets = tuple((*media[:media_index], version, *media[media_index + 1 :]) for version in versions)
    return Media(**{FIELDS[kind]: sets})


def stripes_for(kind: MediumName, n_positions: int) -> int:
    """Into how many parts each side is cut, for so many positions."""
    across = n_positions if kind == "audio" else n_positions**0.5
    return int(min(max(OF_A_POSITION * across, FEWEST), MOST))


def axes_of(medium: Any, stripes: int) -> list[Axis]:
    """The sides of a picture (y, x), a video (y, x, frame) or a sound (time).

    Args:
        medium: A PIL image, a `Video` or a `Sound`.
        stripes: Parts along each side, where it is long enough; of a video each frame is one.
    """
    if isinstance(medium, Sound):
        return [_time(medium, stripes)]
    is_video = isinstance(medium, Video)
    pixels = medium.frames if is_video else torch.from_numpy(np.array(medium.convert("RGB")))[None]

    def back(frames: Tensor) -> Any:
        return replace(medium, frames=frames) if is_video else Image.fromarray(frames[0].numpy())

    axes = [_side(name, dim, pixels, stripes, back) for name, dim in (("y", 1), ("x", 2))]
    return [*axes, _side("frame", 0, pixels, len(pixels), back)] if is_video else axes


def _side(
    name: str, dim: int, pixels: UInt8[Tensor, "frame height width 3"], parts: int, back: Callable[[Tensor], Any]
) -> Axis:
    size = pixels.shape[dim]
    edges = _edges(size, min(parts, size))
    shift = torch.randint(*SHIFTS, (*pixels.shape[:3], 1), generator=_generator(), dtype=torch.int16)

    def changed(part: int) -> Any:
        start, stop = edges[part], edges[part + 1]
        new = pixels.clone()
        moved = pixels.narrow(dim, start, stop - start).to(torch.int16) + shift.narrow(dim, start, stop - start)
        new.narrow(dim, start, stop - start).copy_((moved % 256).to(torch.uint8))
        return back(new)

    return Axis(name, torch.tensor(edges, dtype=torch.float32), changed)


def _time(sound: Sound, parts: int) -> Axis:
    samples = len(sound.waveform)
    edges = _edges(samples, min(parts, samples))
    noise = torch.randn(samples, generator=_generator()).to(sound.waveform)
    least = max(QUIET * _loudness(sound.waveform), SILENT)

    def changed(part: int) -> Sound:
        stretch, waveform = slice(edges[part], edges[part + 1]), sound.waveform.clone()
        waveform[stretch] = noise[stretch] * max(_loudness(waveform[stretch]), least)
        return Sound(waveform, sound.sampling_rate)

    return Axis("time", torch.tensor(edges, dtype=torch.float32) / sound.sampling_rate, changed)


def _loudness(waveform: Float[Tensor, " sample"]) -> float:
    """Root mean square."""
    return float(waveform.float().square().mean().sqrt())


def _edges(size: int, parts: int) -> list[int]:
    return [round(part * size / parts) for part in range(parts + 1)]


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(SEED)

"""Positions pooled into groups that a person can read: each word alone, image tokens by region, sounds by time.

Attention between thousands of image tokens cannot be drawn, nor read; between groups it can.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from lensplug.geometry import ImageGrid
from lensplug.groups import Groups
from lensplug.inputs import MultimodalInput
from lensplug.modality import Span
from lensplug.words import running_text

BLOCKS = 3
"""A view is cut into BLOCKS x BLOCKS regions."""
STRETCHES = 12
"""A sound of more positions is cut into so many stretches of equally many."""


def group_positions(inputs: MultimodalInput, *, example: int = 0, blocks: int = BLOCKS, text_run: int = 1) -> Groups:
    """Text by runs of tokens; image tokens by view and region, or whole spans where there is no geometry.

    Args:
        inputs: The inputs that were run.
        example: Which example.
        blocks: Regions along each side of a view.
        text_run: Neighbouring text tokens pooled into one group; 1 keeps each alone.
    """
    of_position = torch.full((inputs.tokens.shape[1],), -1)
    names: list[str] = []
    for span in inputs.modality.spans:
        if span.example != example or span.modality == "pad":
            continue
        at = torch.arange(span.start, span.stop)
        if span.modality in ("text", "generated"):
            texts = inputs.str_tokens[example][span.start : span.stop]
            labels = ["".join(texts[first : first + text_run]) for first in range(0, len(texts), text_run)]
            keys = torch.arange(len(at)) // text_run
        else:
            labels, keys = _regions(inputs, span, blocks)
        of_position[at] = keys + len(names)
        names += labels
    return Groups(of_position, names)


def group_runs(texts: Sequence[str], run: int) -> Groups:
    """Neighbouring positions of a text in runs of so many; those without text by their number."""
    named = [text or str(position) for position, text in enumerate(texts)]
    read = named if run == 1 else running_text(named)
    names = ["".join(read[first : first + run]).strip() for first in range(0, len(read), run)]
    # CircuitsVis takes all white space out of a name.
    return Groups(torch.arange(len(named)) // run, [name.replace(" ", "·") or "·" for name in names])


def _regions(inputs: MultimodalInput, span: Span, blocks: int) -> tuple[list[str], Int[Tensor, " token"]]:
    """The names of the regions of a run of one medium, in order of first appearance, and the region of each token."""
    length = span.stop - span.start
    place = (span.example, -1 if span.media_index is None else span.media_index)
    if span.modality == "audio":
        return _stretches(inputs, span.media_index, span.example, length)
    if span.modality == "image" and (grid := inputs.modality.grids.get(place)) is not None:
        keys = _of_image(grid, blocks)
        at = inputs.modality.image_positions(place[1], place[0]).tolist()
    elif span.modality == "video" and (video := inputs.modality.video_grids.get(place)) is not None:
        keys = [f"[frame {frame}]" if frame >= 0 else "[newline]" for frame in video.frame.tolist()]
        at = inputs.modality.video_positions(place[1], place[0]).tolist()
    else:
        return [f"[{span.modality}]"], torch.zeros(length, dtype=torch.long)
    own = [key for position, key in zip(at, keys, strict=True) if span.start <= position < span.stop]
    names = list(dict.fromkeys(own))
    return names, torch.tensor([names.index(key) for key in own])


def _of_image(grid: ImageGrid, blocks: int) -> list[str]:
    """The region of each token of an image."""
    keys = []
    for view, newline, (x0, y0, x1, y1) in zip(
        grid.view.tolist(), grid.newline.tolist(), grid.boxes.tolist(), strict=True
    ):
        if newline or x0 != x0:  # a class token has no place either
            keys.append("[newlines]" if newline else "[class token]")
            continue
        column = min(int((x0 + x1) / 2 / grid.width * blocks), blocks - 1)
        row = min(int((y0 + y1) / 2 / grid.height * blocks), blocks - 1)
        part = "image" if view == 0 else "tiles"
        keys.append(f"[{part}·{row + 1},{column + 1}]")
    return keys


def _stretches(
    inputs: MultimodalInput, media_index: int | None, example: int, length: int
) -> tuple[list[str], Int[Tensor, " token"]]:
    """The names of the stretches of a sound, in seconds, and the stretch of each token."""
    timeline = inputs.modality.timelines.get((example, -1 if media_index is None else media_index))
    if timeline is None or len(timeline) != length:
        return ["[audio]"], torch.zeros(length, dtype=torch.long)
    count = min(length, STRETCHES)
    keys = torch.arange(length) * count // length
    firsts = [int((keys == stretch).nonzero()[0]) for stretch in range(count)]
    return [f"[{float(timeline.center_s[first]):.2f} s]" for first in firsts], keys

"""Positions pooled into readable groups: text tokens one by one, image tokens by region, sounds by time.

Attention between thousands of image tokens cannot be drawn, nor read, nor searched for flows. When a pattern is
pooled, a group of key positions gets the sum of their attention, a group of query positions the mean of theirs, so
that pooled rows still sum to 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lensplug.errors import LensplugError
from lensplug.geometry import AudioTimeline, ImageGrid, VideoGrid
from lensplug.positions.by_modality import HasModality, Modality, modality_of
from lensplug.positions.modality_map import ModalityMap, Span
from lensplug.validation.arguments import at_least, check_example, checked
from lensplug.validation.masks import Mask, as_mask

BLOCKS = 3
"""A view is cut into BLOCKS x BLOCKS regions."""
STRETCHES = 12
"""Maximum number of groups of a sound: a longer one is cut into this many equal stretches."""


@dataclass(frozen=True)
class Groups:
    """Groups of the positions of one example, in the order of the prompt. Padding is in none."""

    of_position: Int[Tensor, " pos"]
    """The group of each position; -1 for padding."""
    names: list[str]

    @property
    def members(self) -> list[list[int]]:
        """The positions of each group."""
        members: list[list[int]] = [[] for _ in self.names]
        for position, group in enumerate(self.of_position.tolist()):
            if group >= 0:
                members[group].append(position)
        return members

    @checked
    def pool(self, pattern: Float[Tensor, "head query key"]) -> Float[Tensor, "head group group"]:
        """Sum over the keys of a group, mean over its queries.

        Raises:
            LensplugError: If the pattern is of other positions.
        """
        member = self._member(pattern.shape[-1])
        attention = pattern.float().cpu()
        return (member / member.sum(dim=0)).T @ attention @ member

    @checked
    def sums(self, values: Float[Tensor, "*axes pos"]) -> Float[Tensor, "*axes group"]:
        """The sum of each group's values.

        Raises:
            LensplugError: If the values are of other positions.
        """
        return values.float().cpu() @ self._member(values.shape[-1])

    @checked
    def only(self, kept: Mask) -> Groups:
        """The groups of some positions, numbered as the prompt has them; a group without any is gone."""
        of_position = self.of_position.masked_fill(~as_mask(kept, self.of_position.shape, "kept").cpu(), -1)
        remaining = list(dict.fromkeys(of_position[of_position >= 0].tolist()))
        number = torch.full((len(self.names) + 1,), -1)  # its last entry is for -1
        number[remaining] = torch.arange(len(remaining))
        return Groups(number[of_position], [self.names[group] for group in remaining])

    def _member(self, length: int) -> Float[Tensor, "pos group"]:
        """1 where a position is in a group."""
        if len(self.of_position) != length:
            raise LensplugError(
                f"the groups are of {len(self.of_position)} positions, the attention is of {length}: make them from"
                " the tokens of the same example, padding included."
            )
        return (self.of_position[:, None] == torch.arange(len(self.names))).float()


@checked
def group_positions(
    modality: Modality,
    str_tokens: Sequence[Sequence[str]] | None = None,
    *,
    example: int = 0,
    blocks: int = BLOCKS,
    stretches: int = STRETCHES,
    text_run: int = 1,
    join_newlines: bool = False,
) -> Groups:
    """Text by runs of tokens; image tokens by view and region, or whole spans where there is no geometry.

    Args:
        modality: `inputs.modality`, or the inputs, which also name text tokens.
        str_tokens: Their texts, to name words; without them a word is named by its position.
        example: Which example.
        blocks: Regions along each side of a view.
        stretches: Maximum number of groups of a sound.
        text_run: Neighbouring text tokens pooled into one group; 1 keeps each alone.
        join_newlines: Put the tokens that end a row of an image into the region that they end; by default they are a
            group of their own, from all over the prompt.
    """
    if isinstance(modality, HasModality) and str_tokens is None:
        str_tokens = modality.str_tokens
    modality = modality_of(modality)
    check_example(example, len(modality.labels))
    at_least(1, blocks=blocks, stretches=stretches, text_run=text_run)
    length = modality.labels.shape[1]
    if str_tokens is not None and [len(row) for row in str_tokens] != [length] * len(modality.labels):
        raise LensplugError(f"str_tokens are not one text for each of {length} positions: give inputs.str_tokens.")
    texts = [f"position {positions}" for positions in range(length)] if str_tokens is None else str_tokens[example]
    of_position = torch.full((length,), -1)
    names: list[str] = []
    for span in modality.spans:
        if span.example != example or span.modality == "pad":
            continue
        positions = torch.arange(span.start, span.stop)
        if span.modality in ("text", "generated"):
            span_texts = texts[span.start : span.stop]
            labels = ["".join(span_texts[first : first + text_run]) for first in range(0, len(span_texts), text_run)]
            keys = torch.arange(len(positions)) // text_run
        else:
            labels, keys = _regions(modality, span, blocks, stretches, join_newlines)
        of_position[positions] = keys + len(names)
        names += labels
    return Groups(of_position, names)


def _regions(
    modality: ModalityMap, span: Span, blocks: int, stretches: int, join_newlines: bool
) -> tuple[list[str], Int[Tensor, " token"]]:
    """The names of the regions of a run of one medium, in order of first appearance, and the region of each token."""
    length = span.stop - span.start
    place = (span.example, -1 if span.media_index is None else span.media_index)
    if span.modality == "audio":
        return _stretches(modality.timelines.get(place), length, stretches)
    if span.modality == "image" and (grid := modality.grids.get(place)) is not None:
        keys = _of_image(grid, blocks, join_newlines)
        positions = modality.image_positions(place[1], place[0]).tolist()
    elif span.modality == "video" and (video := modality.video_grids.get(place)) is not None:
        keys = _of_video(video)
        positions = modality.video_positions(place[1], place[0]).tolist()
    else:
        return [f"[{span.modality}]"], torch.zeros(length, dtype=torch.long)
    keys_in_span = [key for position, key in zip(positions, keys, strict=True) if span.start <= position < span.stop]
    number = {name: index for index, name in enumerate(dict.fromkeys(keys_in_span))}
    return list(number), torch.tensor([number[key] for key in keys_in_span])


def _of_image(grid: ImageGrid, blocks: int, join_newlines: bool) -> list[str]:
    """The region of each token of an image."""
    keys: list[str] = []
    for view, newline, (x0, y0, x1, y1) in zip(
        grid.view.tolist(), grid.newline.tolist(), grid.boxes.tolist(), strict=True
    ):
        if newline:
            keys.append(keys[-1] if join_newlines and keys else "[newlines]")
            continue
        if x0 != x0:
            keys.append("[class token]")  # has no place either
            continue
        column = min(int((x0 + x1) / 2 / grid.width * blocks), blocks - 1)
        row = min(int((y0 + y1) / 2 / grid.height * blocks), blocks - 1)
        part = "image" if view == 0 else "tiles"
        keys.append(f"[{part}·{row + 1},{column + 1}]")
    return keys


def _of_video(video: VideoGrid) -> list[str]:
    """The frame, or the frames, of each token of a video."""
    keys: list[str] = []
    for first, count in zip(video.frame.tolist(), video.frames_seen.tolist(), strict=True):
        frames = f"frame {first}" if count == 1 else f"frames {first}-{first + count - 1}"
        keys.append(f"[{frames}]" if count else "[newline]")
    return keys


def _stretches(timeline: AudioTimeline | None, length: int, stretches: int) -> tuple[list[str], Int[Tensor, " token"]]:
    """The names of the stretches of a sound, in seconds, and the stretch of each token."""
    if timeline is None or len(timeline) != length:
        return ["[audio]"], torch.zeros(length, dtype=torch.long)
    count = min(length, stretches)
    keys = torch.arange(length) * count // length
    firsts = [int((keys == stretch).nonzero()[0]) for stretch in range(count)]
    return [f"[{float(timeline.center_s[first]):.2f} s]" for first in firsts], keys

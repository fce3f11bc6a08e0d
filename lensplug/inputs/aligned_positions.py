"""Align the positions of two prompts with different images or sounds, for activation patching."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from lensplug.errors import LensplugError
from lensplug.inputs.multimodal_input import MultimodalInput
from lensplug.positions.modality_map import ModalityMap, Span


def counterparts(clean: MultimodalInput, corrupt: MultimodalInput) -> Int[Tensor, "batch corrupt_pos"]:
    """For each position of `corrupt` that of `clean` in the same place; -1 for padding.

    Two prompts have the same places if text and media follow each other in the same order, each with as many positions;
    padding does not count. Words may differ, as may what an image shows and a voice says.

    Raises:
        LensplugError: If they have not; it says where they part.
    """
    if len(clean) != len(corrupt):
        raise LensplugError(f"there are {len(clean)} clean examples and {len(corrupt)} corrupt ones: give pairs.")
    clean_positions = torch.full(corrupt.tokens.shape, -1)
    for example in range(len(clean)):
        corrupt_spans, clean_spans = (
            [span for span in inputs.modality.spans if span.example == example and span.modality != "pad"]
            for inputs in (corrupt, clean)
        )
        if [_what(span) for span in corrupt_spans] != [_what(span) for span in clean_spans]:
            raise LensplugError(
                f"the positions of example {example} cannot be aligned: the clean prompt has"
                f" {', '.join(map(_what, clean_spans))}; the corrupt one has {', '.join(map(_what, corrupt_spans))}."
                " Give prompts with"
                " words of as many tokens, and pictures of one size (sounds of one length)."
            )
        _refuse_other_grids(clean.modality, corrupt.modality, example)
        for span, counterpart in zip(corrupt_spans, clean_spans, strict=True):
            clean_positions[example, span.start : span.stop] = torch.arange(counterpart.start, counterpart.stop)
    return clean_positions


def _refuse_other_grids(clean: ModalityMap, corrupt: ModalityMap, example: int) -> None:
    """Refuse images with equal numbers of tokens but different grids: a wide and a tall one."""
    for place in [place for place in corrupt.grids if place[0] == example and place in clean.grids]:
        corrupt_grid, clean_grid = corrupt.grids[place], clean.grids[place]
        boxes, clean_boxes = (
            grid.boxes / torch.tensor([grid.width, grid.height] * 2) for grid in (corrupt_grid, clean_grid)
        )
        is_same = torch.equal(corrupt_grid.view, clean_grid.view) and torch.equal(
            corrupt_grid.newline, clean_grid.newline
        )
        if not is_same or not torch.allclose(boxes, clean_boxes, atol=0.01, equal_nan=True):
            raise LensplugError(
                f"image {place[1]} of example {example} is cut otherwise in the two prompts ({clean_grid.width} x"
                f" {clean_grid.height} and {corrupt_grid.width} x {corrupt_grid.height} pixels): give pictures of one"
                " size."
            )


def _what(span: Span) -> str:
    medium = "" if span.media_index is None else f" {span.media_index}"
    return f"{span.stop - span.start} of {span.modality}{medium}"

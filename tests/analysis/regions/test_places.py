"""The regions that region attribution blanks, as users say them."""

from __future__ import annotations

import pytest
import torch

from lensplug import LensplugError
from lensplug.analysis.regions.places import places_of
from lensplug.interventions import Region, Words, grid_regions


def test_places_of_interventions_are_boxes_spans_and_texts(lens, inputs):
    """One way to say where, for what is cut and for what is blanked."""
    height, width = inputs.images[0][0].height, inputs.images[0][0].width
    found = places_of(grid_regions(2, 2), inputs, 0, lens.tokenizer)
    expected = places_of((2, 2), inputs, 0, lens.tokenizer)
    torch.testing.assert_close(found.boxes, expected.boxes)
    torch.testing.assert_close(found.masks, expected.masks)
    half = places_of([Region((0, 0, width / 2, height))], inputs, 0, lens.tokenizer)
    torch.testing.assert_close(half.boxes, torch.tensor([[0.0, 0.0, width / 2, float(height)]]))
    words = places_of({"it": Words("the color")}, inputs, 0, lens.tokenizer)
    assert words.names == ("it",)
    torch.testing.assert_close(words.positions, places_of(["the color"], inputs, 0, lens.tokenizer).positions)
    with pytest.raises(LensplugError, match="is of medium 1, and media_index is 0"):
        places_of([Region((0, 0, 2, 2), image=1)], inputs, 0, lens.tokenizer)

"""What a resampler attends to: its probabilities worked by hand, its states where arithmetic puts them, drawn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from support.image_families import lens as narrow_lens
from torch import Tensor

from lensplug import tiny, views
from lensplug.errors import LensplugError

QUESTION = "What is this ?"


def picture(height: int, width: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def lens():
    return narrow_lens("idefics2")


@pytest.fixture(scope="module")
def inputs(lens):
    return lens.prepare([QUESTION, QUESTION], images=[[picture(60, 60)], [picture(120, 200), picture(60, 60)]])


def by_hand(lens, inputs) -> Tensor:
    """Softmax of what the projections of the one Perceiver layer make of what they receive: `[view head query key]`."""
    attention = lens.hf_model.model.connector.perceiver_resampler.layers[0].self_attn
    seen = {}
    hooks = [
        getattr(attention, name).register_forward_hook(lambda *args, name=name: seen.update({name: args[-1]}))
        for name in ("q_proj", "k_proj")
    ]
    attention_masks = []
    hooks.append(
        attention.register_forward_pre_hook(
            lambda _, __, kwargs: attention_masks.append(kwargs["attention_mask"]), with_kwargs=True
        )
    )
    lens.with_media(inputs, images=[list(inputs.images[0])])
    for hook in hooks:
        hook.remove()
    query, key = (seen[name].unflatten(-1, (2, 8)).transpose(1, 2) for name in ("q_proj", "k_proj"))
    scores = query @ key.transpose(-1, -2) * 8**-0.5
    if (mask := attention_masks[0]) is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(dim=-1)


@pytest.mark.parametrize("media_index", [0, 1])
def test_the_probabilities_are_those_of_the_perceiver(lens, inputs, media_index):
    expected = by_hand(lens, inputs[1:2])
    through = lens.resampler_attention(inputs, media_index=media_index, example=1)
    n_states = through.probabilities.shape[-1]
    assert through.probabilities.shape == (1, 2, 4, n_states)
    torch.testing.assert_close(through.probabilities[0], expected[media_index, ..., :n_states], atol=1e-6, rtol=1e-5)
    assert float(through.probabilities.sum(-1).max()) < 1  # the rest is on its own latents
    assert float((expected[0] - expected[1]).abs().max()) > 1e-4  # another picture has others


def test_states_lie_where_patches_lie(lens, inputs):
    """200 x 120 pixels become 70 x 42: five by three patches of 14, and two rows of padding of the second picture."""
    through = lens.resampler_attention(inputs, media_index=0, example=1)
    boxes = through.states.boxes
    expected = torch.tensor([[40.0 * c, 40.0 * r, 40.0 * (c + 1), 40.0 * (r + 1)] for r in range(3) for c in range(5)])
    assert float((boxes[:15] - expected).abs().max()) < 5  # a stripe is 12.5 pixels
    assert bool(boxes[15:].isnan().all())
    assert float(through.probabilities[..., 15:].abs().max()) == 0


def test_values_are_spread_as_they_were_read(lens, inputs):
    through = lens.resampler_attention(inputs, media_index=1, example=1)
    values = torch.tensor([0.5, 0.0, torch.nan, 0.25])
    expected = 0.5 * through.probabilities[0, :, 0].mean(0) + 0.25 * through.probabilities[0, :, 3].mean(0)
    torch.testing.assert_close(through.over_states(values), expected)
    torch.testing.assert_close(through.over_states(values, layer=-1), expected)
    with pytest.raises(LensplugError, match="give one value a position"):
        through.over_states(torch.ones(5))
    with pytest.raises(LensplugError, match="layer is 1, the resampler has 1"):
        through.over_states(values, layer=1)


def test_pieces_and_the_whole_image(lens):
    """Split into four pieces and the whole, which comes last in the prompt and is the base view."""
    processor = lens.processor.image_processor
    before, processor.do_image_splitting = processor.do_image_splitting, True
    try:
        inputs = lens.prepare(QUESTION, images=[picture(120, 120)])
        through = lens.resampler_attention(inputs)
    finally:
        processor.do_image_splitting = before
    assert through.n_views == 5 and through.view.tolist() == [view for view in range(5) for _ in range(4)]
    of_view = through.states.view.unflatten(0, (5, -1))
    assert of_view[:, 0].tolist() == [1, 2, 3, 4, 0]
    middles = (through.states.boxes[:, :2] + through.states.boxes[:, 2:]).unflatten(0, (5, -1)).nanmean(dim=1) / 2
    expected = torch.tensor([[30.0, 30], [90, 30], [30, 90], [90, 90], [60, 60]])
    assert float((middles - expected).abs().max()) < 6
    last = torch.zeros(20)
    last[-1] = 1.0
    spread = through.over_states(last)
    assert float(spread[: -len(spread) // 5].abs().max()) == 0 < float(spread.sum()) < 1


def test_the_overlay_says_how_it_was_made(lens, inputs):
    values = torch.zeros(inputs.tokens.shape[1])
    positions = inputs.modality.image_positions(0, 1)
    values[positions] = 0.25
    through = lens.resampler_attention(inputs, example=1)
    figure = views.image_overlay({"one": values, "half": values / 2}, inputs, example=1, through=through)
    assert "through the resampler's cross-attention" in figure.layout.title.text
    assert "places measured" in figure.layout.title.text
    drawn = np.nansum(np.asarray(figure.data[0].z, dtype=float))
    assert drawn == pytest.approx(float(through.over_states(torch.full((4,), 0.25)).sum()), abs=1e-5)
    with pytest.raises(LensplugError, match=r"With through=lens.resampler_attention\(inputs\)"):
        views.image_overlay(values, inputs, example=1)
    with pytest.raises(LensplugError, match="through is of image 0 of example 1 .* the overlay of image 1"):
        views.image_overlay(values, inputs, example=1, media_index=1, through=through)


def test_refusals(lens, inputs):
    with pytest.raises(LensplugError, match="has no image, video or sound"):
        lens.resampler_attention(lens.prepare(QUESTION))
    image_lens = tiny.llava_onevision()
    with pytest.raises(LensplugError, match="nothing in the encoder attends across"):
        image_lens.resampler_attention(image_lens.prepare("What is the color?", images=[picture(60, 60)]))

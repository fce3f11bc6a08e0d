"""Every position has one label, one span and, where it can be told, one medium."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import QUESTION, scene

import lensplug
from lensplug.geometry import ImageGrid
from lensplug.modality import MODALITIES, ModalityMap, Span, resolve_position

PLACEHOLDERS = {"image": 90, "video": 91, "audio": 92}
TOKENS = torch.tensor([[0, 0, 1, 90, 90, 90, 2, 92, 3], [7, 1, 90, 90, 5, 90, 90, 90, 2]])
MASK = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1, 1], [1] * 9])


def build(tokens=TOKENS, mask=MASK, **arguments) -> ModalityMap:
    return ModalityMap.build(tokens, mask, placeholder_ids=PLACEHOLDERS, special_ids=[0, 7], **arguments)


def test_labels_by_hand():
    m = build(media_lengths={"image": [[2, 1], [2, 3]]})
    assert m.names == ("text", "image", "audio", "pad")
    assert m.mask("pad").tolist()[0] == [True, True] + [False] * 7 and not m.mask("pad")[1].any()
    assert torch.equal(m.mask("image"), (TOKENS == 90)) and not m.mask("video").any()
    assert torch.equal(m.attention_mask, MASK)
    assert m.media_index.tolist() == [[-1, -1, -1, 0, 0, 1, -1, 0, -1], [-1, -1, 0, 0, -1, 1, 1, 1, -1]]
    assert m.special.tolist() == [[False] * 9, [True] + [False] * 8], "padding is not special, nor is a word"
    assert m.image_positions(1, example=1).tolist() == [5, 6, 7]


def test_spans_by_hand():
    """Two images that touch are two spans; the same image in two places would be two as well."""
    spans = build(media_lengths={"image": [[2, 1], [2, 3]]}).spans
    assert spans == [
        Span(0, "pad", 0, 2, None),
        Span(0, "text", 2, 3, None),
        Span(0, "image", 3, 5, 0),
        Span(0, "image", 5, 6, 1),
        Span(0, "text", 6, 7, None),
        Span(0, "audio", 7, 8, 0),
        Span(0, "text", 8, 9, None),
        Span(1, "text", 0, 2, None),
        Span(1, "image", 2, 4, 0),
        Span(1, "text", 4, 5, None),
        Span(1, "image", 5, 8, 1),
        Span(1, "text", 8, 9, None),
    ]


def test_without_lengths_a_medium_is_known_where_there_is_one_run():
    m = build()
    assert m.media_index[0, 3:6].tolist() == [0, 0, 0]
    assert m.media_index[1][TOKENS[1] == 90].unique().tolist() == [-1], "two runs: not known, never guessed"


rows = st.lists(st.sampled_from([0, 1, 2, 7, 90, 91, 92]), min_size=6, max_size=6)


@given(st.lists(rows, min_size=1, max_size=3), st.integers(0, 3), st.booleans())
def test_spans_are_disjoint_and_cover_every_position(tokens, padding, at_left):
    tokens = torch.tensor(tokens)
    mask = torch.ones_like(tokens)
    mask[0, slice(0, padding) if at_left else slice(6 - padding, 6)] = 0
    m = build(tokens, mask)
    covered = torch.zeros_like(tokens)
    for span in m.spans:
        assert span.start < span.stop
        covered[span.example, span.start : span.stop] += 1
        assert m.mask(span.modality)[span.example, span.start : span.stop].all()
    assert bool((covered == 1).all())
    assert list(m.names) == [name for name in MODALITIES if m.mask(name).any()]
    assert torch.equal(sum(m.mask(name).long() for name in MODALITIES), torch.ones_like(tokens))
    assert not (m.special & ~m.mask("text")).any()


def test_answers_are_labelled_generated():
    m = build(media_lengths={"image": [[2, 1], [2, 3]]}).appended(torch.tensor([[True, True], [True, False]]))
    assert m.names == ("text", "image", "audio", "generated", "pad")
    assert m.mask("generated")[:, -2:].tolist() == [[True, True], [True, False]]
    assert m.mask("pad")[:, -2:].tolist() == [[False, False], [False, True]]
    assert m.attention_mask[:, :-2].equal(MASK) and not m.special[:, -2:].any()
    assert (m.media_index[:, -2:] == -1).all() and m.image_positions(1, example=1).tolist() == [5, 6, 7]


def test_moves_to_a_device():
    assert build().to("cpu").labels.equal(build().labels)


def test_two_images_in_one_prompt_of_the_real_processor(lens):
    """Base view and one newline each, 48 px in patches of 8 px: twice 37 positions, side by side."""
    m = lens.prepare(QUESTION, images=[scene(48, 48, 1), scene(96, 96, 2)]).modality
    images = [span for span in m.spans if span.modality == "image"]
    assert [(span.stop - span.start, span.media_index) for span in images] == [(37, 0), (37, 1)]
    assert images[0].stop == images[1].start
    assert len(m.image_grid(1)) == 37


def test_examples_without_a_picture_beside_examples_with_two(lens):
    images = [[scene(48, 48, 1)], [], [scene(48, 48, 2), scene(48, 48, 3)]]
    m = lens.prepare([QUESTION] * 3, images=images).modality
    assert m.mask("image").sum(1).tolist() == [36 + 42, 0, 74]  # base and one tile with a newline a row; none; two bases
    assert {span.media_index for span in m.spans if span.example == 2 and span.modality == "image"} == {0, 1}
    assert {span.modality for span in m.spans if span.example == 1} == {"text", "pad"}


def test_special_tokens_of_the_real_tokenizer(lens, inputs):
    texts = [text for text, special in zip(inputs.str_tokens[0], inputs.modality.special[0], strict=True) if special]
    assert texts == ["<|im_start|>", "<|im_end|>", "<|im_start|>"], "placeholders are not special, they are image"


def grid(length: int) -> ImageGrid:
    return ImageGrid(torch.zeros(length, 4), torch.zeros(length).long(), torch.zeros(length).bool(), 8, 8)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: build(media_lengths={"image": [[2, 2], [5]]}), r"3 image placeholders for media of \[2, 2\]"),
        (lambda: build(grids={(0, 0): grid(4)}), "image 0 of example 0 has 3 positions, its grid 4"),
        (lambda: build().mask("smell"), "modality is 'smell', expected one of text, image"),
        (lambda: build().image_positions(3), r"example 0 has no image 3: its images are \[0\]"),
        (lambda: build().image_grid(0, example=2), "example 2 is asked for, the batch has 2"),
    ],
)
def test_refusals(act, message):
    with pytest.raises(lensplug.LensplugError, match=message):
        act()


PADDED = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])


@pytest.mark.parametrize(("position", "index"), [(-1, [4, 2, 4]), (-3, [2, 0, 2]), (2, [2, 2, 2])])
def test_negative_positions_count_from_the_last_that_is_not_padding(position, index):
    assert resolve_position(position, PADDED).tolist() == index


@pytest.mark.parametrize(
    ("position", "message"),
    [
        (-4, r"position -4 is out of range or padding in example 0: its positions are 2 to 4 \(or -3 to -1\)"),
        (0, "padding in example 0"),
        (3, "padding in example 1: its positions are 0 to 2"),
        (5, "position 5 is out of range"),
        (-6, "position -6 is out of range"),
    ],
)
def test_positions_out_of_range(position, message):
    with pytest.raises(lensplug.LensplugError, match=message):
        resolve_position(position, PADDED)


def test_an_example_of_nothing_but_padding_has_no_position():
    with pytest.raises(lensplug.LensplugError, match="example 1.*nothing but padding"):
        resolve_position(-1, torch.tensor([[1, 1], [0, 0]]))

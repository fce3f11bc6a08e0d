"""Labels, spans and positions: disjoint, complete, and counted from the last position that is not padding."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.models import QUESTION, scene

from lensplug import LensplugError, ModalityMap
from lensplug.geometry import AudioTimeline, ImageGrid
from lensplug.positions.indices import resolve_position
from lensplug.positions.modality_map import MODALITIES

IMAGE, AUDIO, BOS = 90, 91, 1


def build(rows, mask=None, **options):
    tokens = torch.tensor(rows)
    mask = torch.ones_like(tokens) if mask is None else torch.tensor(mask)
    return ModalityMap.build(
        tokens, mask, placeholder_ids={"image": IMAGE, "audio": AUDIO}, special_ids=[BOS, IMAGE], **options
    )


def test_labels_names_and_special_tokens_by_hand():
    m = build([[0, BOS, 5, IMAGE, IMAGE, 6], [BOS, 7, AUDIO, 8, 9, 9]], [[0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]])
    assert m.names == ("text", "image", "audio", "pad")
    assert m.mask("image").tolist() == [[False, False, False, True, True, False], [False] * 6]
    assert m.special.tolist() == [[False, True, False, False, False, False], [True] + [False] * 5]
    assert m.attention_mask.tolist() == [[0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]]
    spans = [(s.example, s.modality, s.start, s.stop, s.media_index) for s in m.spans]
    assert spans == [
        (0, "pad", 0, 1, None),
        (0, "text", 1, 3, None),
        (0, "image", 3, 5, 0),
        (0, "text", 5, 6, None),
        (1, "text", 0, 2, None),
        (1, "audio", 2, 3, 0),
        (1, "text", 3, 5, None),
        (1, "pad", 5, 6, None),
    ]
    with pytest.raises(LensplugError, match="'smell', expected 'text', 'image'"):
        m.mask("smell")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([2, 3, IMAGE, AUDIO]), min_size=1, max_size=30), st.integers(0, 5))
def test_spans_are_disjoint_and_cover_every_position(row, pad):
    m = build([[0] * pad + row], [[0] * pad + [1] * len(row)])
    covered = [pos for span in m.spans for pos in range(span.start, span.stop)]
    assert covered == list(range(pad + len(row)))
    for span in m.spans:
        assert bool(m.mask(span.modality)[0, span.start : span.stop].all())
    assert sum(m.mask(name).sum() for name in MODALITIES) == pad + len(row)


def test_adjacent_media_are_told_apart_by_their_lengths_and_not_guessed_without():
    row = [[2, IMAGE, IMAGE, IMAGE, IMAGE, IMAGE, 3]]
    m = build(row, media_lengths={"image": [[2, 3]]})
    assert [(s.start, s.stop, s.media_index) for s in m.spans if s.modality == "image"] == [(1, 3, 0), (3, 6, 1)]
    assert m.image_positions(1).tolist() == [3, 4, 5]
    assert build(row).image_positions(0).tolist() == [1, 2, 3, 4, 5]
    two_runs = build([[IMAGE, 2, IMAGE]])
    assert [s.media_index for s in two_runs.spans if s.modality == "image"] == [None, None]
    with pytest.raises(LensplugError, match=r"5 image placeholders for media of \[2, 2\]"):
        build(row, media_lengths={"image": [[2, 2]]})
    with pytest.raises(LensplugError, match=r"no image 2: it has \[0, 1\]"):
        m.image_grid(2)
    with pytest.raises(LensplugError, match="example 1 is asked for, the batch has 1"):
        m.image_grid(0, example=1)


def test_a_grid_of_another_length_is_refused():
    grid = ImageGrid(torch.zeros(3, 4), torch.zeros(3, dtype=torch.long), torch.zeros(3, dtype=torch.bool), 4, 4)
    with pytest.raises(LensplugError, match="image 0 of example 0 has 2 positions, its geometry 3"):
        build([[IMAGE, IMAGE, 2]], media_lengths={"image": [[2]]}, grids={(0, 0): grid})


def test_positions_count_from_the_last_that_is_not_padding():
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    assert resolve_position(-1, mask).tolist() == [4, 2, 4]
    assert resolve_position(-3, mask).tolist() == [2, 0, 2]
    assert resolve_position(2, mask).tolist() == [2, 2, 2]
    for position in (-4, 0, 5, 4):
        with pytest.raises(LensplugError, match=f"position {position} is out of range or padding in example [01]"):
            resolve_position(position, mask)
    with pytest.raises(LensplugError, match="example 1.*nothing but padding"):
        resolve_position(-1, torch.tensor([[1, 1], [0, 0]]))


def test_two_pictures_in_one_prompt_of_the_real_processor(lens):
    inputs = lens.prepare("Compare.", images=[scene(48, 48), scene(96, 48)])
    spans = [s for s in inputs.modality.spans if s.modality == "image"]
    assert [(s.stop - s.start, s.media_index) for s in spans] == [(37, 0), (37, 1)]  # 36 and a newline each
    assert spans[0].stop == spans[1].start, "the placeholders touch"
    assert inputs.modality.image_grid(1).width == 96


def test_special_tokens_of_the_real_tokenizer(inputs):
    texts = [text for text, special in zip(inputs.str_tokens[0], inputs.modality.special[0], strict=True) if special]
    assert texts == ["<|im_start|>", "<|im_end|>", "<|im_start|>"], "placeholders are not special, they are image"


def test_a_batch_with_text_alone_in_the_middle(lens):
    inputs = lens.prepare([QUESTION] * 3, images=[[scene(48, 48)], [], [scene(96, 96)]])
    assert [sorted({s.modality for s in inputs.modality.spans if s.example == e}) for e in range(3)] == [
        ["image", "pad", "text"],
        ["pad", "text"],
        ["image", "text"],
    ]
    assert set(inputs.modality.grids) == {(0, 0), (2, 0)}


def test_an_answer_is_labelled_generated_and_what_follows_its_end_padding(lens):
    m = build([[2, IMAGE, 3]]).appended(torch.tensor([[True, True, False]]))
    assert m.names == ("text", "image", "generated", "pad")
    assert [(s.modality, s.start, s.stop) for s in m.spans][-2:] == [("generated", 3, 5), ("pad", 5, 6)]
    moved = m.to("cpu")
    assert torch.equal(moved.labels, m.labels)


def test_timelines_travel_with_the_map_and_must_fit():
    line = AudioTimeline(torch.tensor([0.0, 0.5]), torch.tensor([0.5, 1.0]), 1.0)
    m = build([[2, AUDIO, AUDIO, 3]], media_lengths={"audio": [[2]]}, timelines={(0, 0): line})
    assert m.audio_timeline() is line and m.audio_positions().tolist() == [1, 2]
    grown = m.to("cpu").appended(torch.tensor([[True]]))
    assert grown.audio_timeline() is line and grown.names == ("text", "audio", "generated")
    assert build([[2, AUDIO]]).audio_timeline() is None
    with pytest.raises(LensplugError, match=r"no audio 1: it has \[0\]"):
        m.audio_timeline(1)
    with pytest.raises(LensplugError, match="audio 0 of example 0 has 1 positions, its geometry 2"):
        build([[2, AUDIO]], media_lengths={"audio": [[1]]}, timelines={(0, 0): line})

"""Pieces joined into words: by marks, by word ids; rows of joined attention still sum to 1."""

from __future__ import annotations

import pytest
import torch
from support.caches import causal_patterns

import lensplug
from lensplug import LensplugError
from lensplug.positions.groups import Groups
from lensplug.positions.words import running_text
from lensplug.views.tokens.text_runs import group_runs

JOINED = {
    "wordpiece": (
        ["[CLS]", "roll", "##ing", "hills", ",", "un", "##believ", "##able", "[SEP]", "[PAD]"],
        ["[CLS]", "rolling", "hills", ",", "unbelievable", "[SEP]", "[PAD]"],
        [0, 1, 1, 2, 3, 4, 4, 4, 5, 6],
    ),
    "bpe": (
        ["<s>", "Roll", "ing", "Ġhills", ",", "Ċ", "un", "real", "</s>"],
        ["<s>", "Rolling", "hills,", "Ċ", "unreal", "</s>"],
        [0, 1, 1, 2, 2, 3, 4, 4, 5],
    ),
    "sentencepiece": (
        ["▁roll", "ing", "▁", "hills", "▁caf", "<0xC3>", "<0xA9>", "</s>", "<unk>"],
        ["rolling", "hills", "caf<0xC3><0xA9>", "</s>", "<unk>"],
        [0, 0, 1, 1, 2, 2, 2, 3, 4],
    ),
    "decoded": (["<|im_start|>", "user", " ro", "lling", "\n", "A"], None, [0, 1, 2, 2, 3, 4]),
    "no-marks": (["[CLS]", "cat", "sat"], ["[CLS]", "cat", "sat"], [0, 1, 2]),
    "lone-mark": (["▁", "▁a"], ["▁", "a"], [0, 1]),
    "markdown": (["##", "Ġa", "b"], ["##", "ab"], [0, 1, 1]),
    "nothing": ([], [], []),
}


@pytest.mark.parametrize(("pieces", "names", "of_position"), JOINED.values(), ids=JOINED)
def test_marks_tell_words(pieces, names, of_position):
    words = lensplug.join_pieces(pieces)
    assert words.of_position.tolist() == of_position
    assert names is None or words.names == names


def test_word_ids_tell_words_whatever_the_marks_say():
    pieces = ["<s>", "Ġdon", "'t", ",", "</s>", "</s>", "Ġno", "</s>"]
    words = lensplug.join_pieces(pieces, word_ids=[None, 0, 0, 1, None, None, 0, None])
    assert words.of_position.tolist() == [0, 1, 1, 2, 3, 4, 5, 6]
    assert words.names == ["<s>", "don't", ",", "</s>", "</s>", "no", "</s>"]
    with pytest.raises(LensplugError, match="3 word_ids and 8 tokens"):
        lensplug.join_pieces(pieces, word_ids=[None, 0, 0])


def test_a_fast_tokenizer_and_its_marks_say_the_same():
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {
        piece: at for at, piece in enumerate(["[UNK]", "[CLS]", "[SEP]", "roll", "##ing", "hill", "##s", "a"])
    }
    raw = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    encoded = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="[UNK]")("rolling hills a roll zzz")
    by_ids = lensplug.join_pieces(encoded.tokens(), word_ids=encoded.word_ids())
    by_marks = lensplug.join_pieces(encoded.tokens())
    assert by_ids.names == by_marks.names == ["[CLS]", "rolling", "hills", "a", "roll", "[UNK]", "[SEP]"]
    assert torch.equal(by_ids.of_position, by_marks.of_position)


def test_joined_rows_sum_to_one_by_hand():
    pattern = causal_patterns(1, 1, 2, 4)[0][0]
    pooled = lensplug.join_pieces(["[CLS]", "ro", "##ll", "a"]).pool(pattern)
    torch.testing.assert_close(pooled.sum(-1), torch.ones(2, 3))
    torch.testing.assert_close(pooled[0, 2, 1], pattern[0, 3, 1] + pattern[0, 3, 2])
    torch.testing.assert_close(pooled[1, 1, 0], (pattern[1, 1, 0] + pattern[1, 2, 0]) / 2)


def test_pieces_can_be_read_one_after_another():
    assert "".join(running_text(["[CLS]", "roll", "##ing", "hills", "[SEP]"])) == "[CLS] rolling hills [SEP]"
    assert "".join(running_text(["<s>", "▁roll", "ing", "▁hills"])) == "<s> rolling hills"
    assert "".join(running_text(["Roll", "ing", " hills", ",", "Ċ"])) == "Rolling hills, Ċ"
    assert running_text([]) == []


def test_groups_of_some_positions():
    groups = Groups(torch.tensor([0, 1, 1, 2, -1]), ["a", "b", "c"])
    only = groups.only(torch.tensor([False, True, True, True, True]))
    assert only.of_position.tolist() == [-1, 0, 0, 1, -1] and only.names == ["b", "c"]
    assert groups.sums(torch.tensor([1.0, 2, 3, 4, 5])).tolist() == [1, 5, 4]
    assert group_runs(["x", "", "y"], 2).names == ["x·1", "y"]
    assert group_runs(["Ġx", "##", "Ġy"], 1).names == ["Ġx", "##", "Ġy"]
    with pytest.raises(LensplugError, match="groups are of 5 positions, the attention is of 3"):
        groups.pool(torch.rand(1, 3, 3))

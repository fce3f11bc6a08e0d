"""The user's words: told from the template's by hand, also where the template says the same words."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

import lensplug
from lensplug.interventions.places import RunPositions
from lensplug.positions.user_words import user_words

PICTURE = Image.new("RGB", (48, 48), (200, 0, 0))


class Tokens:
    """Stands for a tokenizer: its special tokens."""

    all_special_tokens = ("<s>", "<image>")


def found(pieces: list[tuple[str, bool]], str_tokens: list[str]) -> list[int]:
    ordinary = torch.tensor([token not in Tokens.all_special_tokens for token in str_tokens])
    return user_words(pieces, str_tokens, [], Tokens(), ordinary).nonzero()[:, 0].tolist()


@pytest.mark.parametrize(
    ("pieces", "str_tokens", "expected"),
    [
        ([("<s>user ", False), ("What is it?", True)], ["<s>", "user", " What", " is", " it", "?"], [2, 3, 4, 5]),
        ([("<s>user ", False), ("user", True), (" user", False)], ["<s>", "user", " user", " user"], [2]),
        ([("<s>aa ", False), ("aa", True)], ["<s>", "aa", " a", "a"], [2, 3]),
        # An image of two positions, and words that the processor adds before the question.
        ([("<image>", False), ("red", True), ("\n", False)], ["red", "<image>", "<image>", "red", "\n"], [3]),
        ([("be ", False), ("one", True), (" k ", False), ("two", True)], ["be", "one", "k", "two"], [1, 3]),
        ([("", False), ("gone", True)], ["here"], []),
    ],
)  # fmt: skip
def test_found_from_the_end(pieces, str_tokens, expected):
    assert found(pieces, str_tokens) == expected


@pytest.fixture(scope="module")
def lens():
    return lensplug.tiny.llava_onevision()


@pytest.mark.parametrize("question", ["What is the color? Answer single word.", "user", "assistant", "What"])
def test_words_that_the_template_says_too(lens, question):
    inputs = lens.prepare(question, images=[PICTURE])
    chosen = inputs.modality.user_words[0]
    assert lens.tokenizer.decode(inputs.tokens[0, chosen]).strip() == question
    assert inputs.str_tokens[0][int(chosen.nonzero()[0]) - 1] == "\n"  # what the template puts before it
    assert inputs.str_tokens[0][int(chosen.nonzero()[-1]) + 1] == "<|im_end|>"


def test_all_turns_of_the_user_and_none_of_the_model(lens):
    user, model = (
        {"role": role, "content": [{"type": "text", "text": "What is it?"}]} for role in ("user", "assistant")
    )
    inputs = lens.prepare([user, model, user])

    chosen = inputs.modality.user_words[0]
    assert inputs.tokens[0].tolist().count(inputs.tokens[0, chosen][0]) == 3  # what the model said is the same
    assert lens.tokenizer.decode(inputs.tokens[0, chosen]) == "What is it?" * 2
    assert len(spans := chosen.nonzero()[:, 0].diff().unique().tolist()) == 2 and max(spans) > 8


def test_batches_slices_and_answers_keep_them(lens):
    inputs = lens.prepare(["What is the color?", "What?"], images=[[PICTURE], [PICTURE]], answer=["Red", "Blue"])
    words = inputs.modality.user_words
    assert words.shape == inputs.shape and words.sum(dim=1).tolist() == [5, 2]
    assert torch.equal(inputs[1:2].modality.user_words, words[1:2])
    assert torch.equal(inputs[:, :-3].modality.user_words, words[:, :-3])


def test_as_a_place(lens):
    inputs = lens.prepare("<image>What is it?", images=[PICTURE], chat_template=False)
    placed = RunPositions.of(inputs).place("question", "to").mask
    assert placed.sum() == inputs.modality.user_words.sum() - 1  # the prompt ends with the question
    assert not placed[0, -1]


def test_unknown_of_processor_outputs(lens):
    outputs = lens.processor(text=["<image>What?"], images=[PICTURE], return_tensors="pt")
    inputs = lens.encode(outputs, images=[PICTURE])
    with pytest.raises(lensplug.LensplugError, match=r"which words of this prompt are the user's is not known"):
        RunPositions.of(inputs).place("question", "to")

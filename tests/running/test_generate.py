"""From merged embeddings the core writes what Hugging Face's own greedy search writes."""

from __future__ import annotations

import pytest
import torch
from support.models import (
    IMAGE_FAMILIES,
    QUESTION,
    largest_difference,
    reference_logits,
    scene,
    text_model,
    text_tokens,
    wrapped_logits,
)

import lensplug


def greedy(model, model_inputs, n: int) -> torch.Tensor:
    """Hugging Face's own greedy answer: new tokens only."""
    output = model.generate(**model_inputs, max_new_tokens=n, do_sample=False)
    return output[:, model_inputs["input_ids"].shape[1] :]


@pytest.fixture(scope="module")
def answer(lens, batch):
    return lens.generate(batch, max_new_tokens=8)


def test_one_prompt(lens, inputs):
    answer = lens.generate(inputs, max_new_tokens=12)
    assert answer.tokens.shape == (1, 12)
    assert torch.equal(answer.tokens, greedy(lens.hf_model, inputs.model_inputs, 12))


def test_batch_of_three_with_left_padding(lens, batch, answer):
    assert not bool(batch.attention_mask.all())
    expected = greedy(lens.hf_model, batch.model_inputs, 8)
    assert torch.equal(answer.tokens, expected)
    assert answer.text == [text.strip() for text in lens.tokenizer.batch_decode(expected, skip_special_tokens=True)]


@pytest.mark.parametrize("name", IMAGE_FAMILIES)
def test_image_families(name):
    model, model_inputs = IMAGE_FAMILIES[name]()
    lens = lensplug.wrap(model)
    answer = lens.generate(lens.encode(model_inputs), max_new_tokens=8)
    assert torch.equal(answer.tokens, greedy(model, model_inputs, 8))


@pytest.mark.parametrize("name", ["mistral-window", "qwen2-window-some-layers", "llama-llama3-rope", "qwen3"])
def test_text_cores_with_left_padding(name):
    model = text_model(name)
    lens = lensplug.wrap(model)
    tokens, mask = text_tokens(14, batch=3), torch.ones(3, 14, dtype=torch.long)
    mask[0, :5], mask[1, :2] = 0, 0
    model_inputs = {"input_ids": tokens, "attention_mask": mask}
    answer = lens.generate(lens.encode(model_inputs), max_new_tokens=10)
    assert torch.equal(answer.tokens, greedy(model, model_inputs, 10))


def test_an_answer_is_an_input_again(lens, batch, answer):
    """Prompt and answer, read once more: Hugging Face's logits, and before each new token its own choice."""
    again = answer.inputs
    mask = again.modality.mask("generated")
    assert again.tokens.shape[1] == batch.tokens.shape[1] + 8 == len(again.str_tokens[0])
    assert torch.equal(mask[:, -8:], torch.ones(3, 8, dtype=torch.bool)) and int(mask.sum()) == 24
    model_inputs = {**batch.model_inputs, "input_ids": again.tokens, "attention_mask": again.attention_mask}
    reference = reference_logits(lens.hf_model, model_inputs)
    assert largest_difference(wrapped_logits(lens, again), reference, again.attention_mask) < 1e-4
    assert torch.equal(reference[:, -9:-1].argmax(-1), answer.tokens)
    assert lens.check(again).agrees


def test_an_answer_ends_at_the_end_token(lens, batch, answer, monkeypatch):
    """One example ends early: its end token belongs to the answer, what follows is padding."""
    end = int(answer.tokens[0, 3])
    monkeypatch.setattr(lens.hf_model.generation_config, "eos_token_id", end)
    ended = lens.generate(batch, max_new_tokens=8)
    lengths = [row.index(end) + 1 if end in row else 8 for row in answer.tokens.tolist()]
    assert min(lengths) < 8 and len(set(lengths)) > 1
    for example, length in enumerate(lengths):
        assert torch.equal(ended.tokens[example, :length], answer.tokens[example, :length])
        new = ended.inputs.modality.mask("generated")[example, batch.tokens.shape[1] :]
        assert new.tolist() == [True] * length + [False] * (len(new) - length)
    assert torch.equal(ended.inputs.attention_mask == 0, ended.inputs.modality.mask("pad"))


def test_hooks_take_part_once_a_step(lens, inputs):
    seen = []

    def watch(embeds, hook):
        seen.append(tuple(embeds.shape[:2]))

    with lens.model.hooks(fwd_hooks=[("hook_embed", watch)]):
        lens.generate(inputs, max_new_tokens=3)
    assert seen == [tuple(inputs.tokens.shape), (1, 1), (1, 1)]


def test_a_hook_changes_the_answer_as_it_changes_the_input(lens, inputs):
    """Another picture, put in at hook_embed, gives the answer for that picture."""
    other = lens.prepare(QUESTION, images=[scene(96, 48, seed=5)])
    assert other.tokens.shape == inputs.tokens.shape

    def swap(embeds, hook):
        return other.embeds if embeds.shape[1] > 1 else embeds

    with lens.model.hooks(fwd_hooks=[("hook_embed", swap)]):
        hooked = lens.generate(inputs, max_new_tokens=8)
    expected = greedy(lens.hf_model, other.model_inputs, 8)
    assert not torch.equal(expected, greedy(lens.hf_model, inputs.model_inputs, 8))
    assert torch.equal(hooked.tokens, expected)


def test_refuses_padding_at_the_right(lens, batch, answer, unchanged):
    """Hugging Face writes nonsense there: the answer would begin behind the padding."""
    outputs = dict(batch.model_inputs)
    for name in ("input_ids", "attention_mask"):
        outputs[name] = torch.stack(
            [row.roll(int(mask.sum())) for row, mask in zip(outputs[name], batch.attention_mask, strict=True)]
        )
    right = lens.encode(outputs)
    assert not bool(right.attention_mask[:, -1].all())
    with pytest.raises(lensplug.LensplugError, match="padded at its right.*padding_side = 'left'"):
        lens.generate(right)


def test_refuses_to_go_beyond_the_context():
    model = text_model("Llama", max_position_embeddings=16)
    lens = lensplug.wrap(model)
    inputs = lens.encode({"input_ids": text_tokens(10)})
    model_inputs = {"input_ids": text_tokens(10), "attention_mask": torch.ones(1, 10, dtype=torch.long)}
    assert torch.equal(lens.generate(inputs, max_new_tokens=7).tokens, greedy(model, model_inputs, 7))
    with pytest.raises(lensplug.LensplugError, match="reaches 17 positions.*context of 16.*smaller max_new_tokens"):
        lens.generate(inputs, max_new_tokens=8)
    assert torch.equal(lens.generate(inputs, max_new_tokens=7).tokens, greedy(model, model_inputs, 7))


def test_at_least_one_token(lens, inputs):
    with pytest.raises(lensplug.LensplugError, match="max_new_tokens is 0, expected at least 1"):
        lens.generate(inputs, max_new_tokens=0)

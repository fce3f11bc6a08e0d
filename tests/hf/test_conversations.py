"""Chat messages as Hugging Face has them, and answers that the user gives."""

from __future__ import annotations

import base64
from io import BytesIO

import pytest
import torch
from support.models import QUESTION, largest_difference, reference_logits, scene, text_model

import lensplug
from lensplug import LensplugError, analysis
from lensplug.tiny.image_model import build_tokenizer

FIRST, SECOND = scene(96, 48), scene(48, 96, 1)


@pytest.fixture(scope="module")
def trained():
    return lensplug.tiny.llava_onevision(device="cpu")


def png(picture) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def user(*parts):
    return {"role": "user", "content": list(parts)}


def text(words):
    return {"type": "text", "text": words}


def same(one, other):
    assert torch.equal(one.tokens, other.tokens) and torch.equal(one.embeds, other.embeds)
    assert torch.equal(one.modality.labels, other.modality.labels)


def test_a_message_in_every_form_is_the_plain_prompt(lens, inputs, picture, tmp_path):
    picture.save(tmp_path / "seen.png")
    encoded = base64.b64encode(png(picture)).decode()
    forms = [
        {"type": "image", "image": picture},
        {"type": "image", "path": str(tmp_path / "seen.png")},
        {"type": "image", "url": tmp_path / "seen.png"},
        {"type": "image", "base64": encoded},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}"}},
    ]
    for part in forms:
        same(lens.prepare([user(part, text(QUESTION))]), inputs)
    same(lens.prepare(user({"type": "image"}, text(QUESTION)), images=[picture]), inputs)
    same(lens.prepare([[user(forms[0], text(QUESTION))]]), inputs)
    assert lens.prepare([user(forms[0], text(QUESTION))]).images[0][0] == picture, "the views have the picture"


def test_several_turns_are_what_hugging_face_makes_of_them(lens, picture):
    """Media in their places, also in a batch, where one conversation has none."""
    turns = [
        {"role": "system", "content": "Answer."},
        user({"type": "image", "image": FIRST}, text("What is the color?")),
        {"role": "assistant", "content": "Red"},
        user(text("And "), {"type": "image"}, text("here?")),
    ]
    found = lens.prepare([turns, [{"role": "user", "content": "What?"}]], images=[[SECOND], []])
    parts = [{"type": "image"}, text("What is the color?")]
    as_parts = [
        {"role": "system", "content": [text("Answer.")]},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": [text("Red")]},
        user(text("And "), {"type": "image"}, text("here?")),
    ]
    prompts = [
        lens.processor.apply_chat_template(one, add_generation_prompt=True, tokenize=False)
        for one in (as_parts, [user(text("What?"))])
    ]
    theirs = lens.processor(
        text=prompts, images=[[FIRST, SECOND], []], return_tensors="pt", padding=True, padding_side="left"
    )
    assert torch.equal(found.tokens, theirs["input_ids"])
    logits = lens.model(found).detach()
    reference = reference_logits(lens.hf_model, theirs)
    assert largest_difference(logits, reference, found.attention_mask) < 1e-4
    assert [len(own) for own in found.images] == [2, 0]


def test_a_text_model_takes_messages():
    tokenizer = build_tokenizer()
    model = text_model("Llama", vocab_size=len(tokenizer))
    tokenizer.chat_template = "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} {% endfor %}"
    lens = lensplug.wrap(model, tokenizer, check=False)
    turns = [user(text("What "), text("is it?")), {"role": "assistant", "content": "Red"}, user("And this?")]
    ids = tokenizer("<user> What is it? <assistant> Red <user> And this? ")["input_ids"]
    assert lens.prepare(turns).tokens.tolist() == [ids]


@pytest.mark.parametrize(
    ("turns", "options", "message"),
    [
        (
            [user({"type": "image"}, text("What?"))],
            {},
            r"1 part\(s\) .* without the image itself, and 0 are given",
        ),
        ([user({"type": "image", "image": FIRST}, text("What?"))], {"images": [FIRST]}, "0 part.* and 1 are given"),
        ([user({"type": "imgae"}, text("What?"))], {}, "a part of a message is .*imgae.*expected a text, an image"),
        ([user({"type": "image", "image": FIRST, "path": "x.png"})], {}, "holds its image twice"),
        ([{"role": "user"}], {}, r"a message is \['role'\], expected a role and a content"),
        ([{"content": "What?"}], {}, r"a message is \['content'\], expected a role"),
        ([{"role": "user", "content": 3}], {}, "the content of a message is 3"),
        ([{"role": "user", "content": []}], {}, r"the content of a message is \[\]"),
        ([user({"type": "image", "base64": "%%%"})], {}, "not in base64"),
        ([user({"type": "image", "url": "https://x.org/cat.png"})], {}, "https://x.org/cat.png"),
        ([user(text("What?"))], {"chat_template": False}, "leave chat_template=False out"),
        ([{"role": "assistant", "content": "Red"}], {}, "the last message is the assistant's"),
        ([user(text("What?")), {"role": "assistant", "content": "Red"}], {"answer": "Blue"}, "give one of them"),
        ([], {}, "there is no prompt"),
    ],
)
def test_messages_that_are_none_are_refused(lens, turns, options, message):
    with pytest.raises(LensplugError, match=message):
        lens.prepare(turns, **options)


def test_a_given_answer_is_as_one_that_was_written(trained):
    """What the model writes itself, given as words: the same input, and the same gradients of it."""
    inputs = trained.prepare(QUESTION, images=[FIRST])
    written = trained.generate(inputs, max_new_tokens=1)
    given = trained.with_answer(inputs, written.text[0])
    same(given.inputs, written.inputs)
    assert (given.text, given.tokens.tolist()) == (written.text, written.tokens.tolist())
    prepared = trained.prepare(QUESTION, images=[FIRST], answer=written.text[0])
    same(prepared, written.inputs)
    turns = [user({"type": "image", "image": FIRST}, text(QUESTION)), {"role": "assistant", "content": written.text[0]}]
    same(trained.prepare(turns), written.inputs)
    assert prepared.modality.names[-1] == "generated" and trained.check(prepared).agrees
    grads = [
        trained.run_with_gradients(prepared, target=target, names_filter=("resid_pre", 0))[2]["resid_pre", 0]
        for target in (written, given, prepared)
    ]
    assert torch.equal(grads[0], grads[1]) and torch.equal(grads[0], grads[2]) and bool(grads[0].any())


def test_the_log_probability_of_given_answers_is_hugging_faces(trained):
    """Several for one prompt, of different lengths: padded behind, each summed over its own tokens."""
    inputs = trained.prepare(QUESTION, images=[FIRST])
    answers = ["Red", "It is a blue square."]
    both = trained.with_answer(inputs, answers)
    assert both.inputs.modality.names == ("text", "image", "generated", "pad")
    curve = analysis.deletion_curve(trained, both.inputs, torch.rand(both.inputs.shape), both.inputs, steps=1, draws=0)
    for example, answer in enumerate(answers):
        ids = torch.tensor([trained.tokenizer(answer, add_special_tokens=False)["input_ids"]])
        model_inputs = dict(inputs.model_inputs)
        model_inputs["input_ids"] = torch.cat([inputs.tokens, ids], dim=1)
        model_inputs["attention_mask"] = torch.ones_like(model_inputs["input_ids"])
        logits = reference_logits(trained.hf_model, model_inputs)
        of_answer = logits[0, -ids.shape[1] - 1 : -1].log_softmax(-1).gather(1, ids[0, :, None]).sum()
        assert float(curve.most_first[example, 0]) == pytest.approx(float(of_answer), abs=1e-3)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("", "the answer '' has no tokens"),
        ("<image>", "holds the placeholder of an image"),
        (["Red", "Blue", "Red"], "3 answers for 2 prompts"),
        ("Red " * 3000, "prompt and answer are .* positions, but the model has a context of"),
    ],
)
def test_answers_that_do_not_fit_are_refused(lens, answer, message):
    two = lens.prepare(["What?", "And what?"])
    with pytest.raises(LensplugError, match=message):
        lens.with_answer(two, answer)
    with pytest.raises(LensplugError, match="hold no answer behind a prompt"):
        lens.run_with_gradients(two, target=two)
    with pytest.raises(LensplugError, match="padded at their right"):
        lens.with_answer(lens.with_answer(two, ["Red", "What is it?"]).inputs, "Red")

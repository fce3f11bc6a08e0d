"""Words and pictures of every kind become exactly what the full model gets; what does not fit is named."""

from __future__ import annotations

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from support.models import (
    QUESTION,
    largest_difference,
    llava,
    llava_next,
    llava_onevision,
    reference_logits,
    scene,
    text_model,
    text_tokens,
    wrapped_logits,
)
from tokenizers.processors import TemplateProcessing

import lensplug
from lensplug.media import load_image


def chat(question: str, n_images: int = 1) -> str:
    """The tiny model's chat form, written out by hand."""
    media = "<image>" * n_images
    return f"<|im_start|>user {media}\n{question}<|im_end|><|im_start|>assistant\n"


def by_hand(lens, texts, images):
    """Hugging Face alone: the real processor on RGB pictures, and the full model."""
    outputs = lens.processor(text=texts, images=images or None, return_tensors="pt", padding=True)
    outputs.pop("mm_token_type_ids", None)
    return outputs, reference_logits(lens.hf_model, outputs)


@pytest.mark.parametrize("size", [(48, 48), (96, 96), (37, 301), (301, 37), (512, 200)])
def test_five_image_sizes(lens, size):
    image = scene(*size)
    inputs = lens.prepare(QUESTION, images=[image])
    outputs, reference = by_hand(lens, [chat(QUESTION)], [image])
    assert torch.equal(inputs.tokens, outputs["input_ids"])
    assert int(inputs.modality.mask("image").sum()) > 36
    assert largest_difference(wrapped_logits(lens, inputs), reference) < 1e-4


def _with_alpha(array):
    return np.dstack([array, np.linspace(0, 255, array.shape[0] * array.shape[1]).reshape(array.shape[:2])])


def on_white(image):
    """By hand: each colour in the share of its alpha, the rest white."""
    pixels = np.asarray(image.convert("RGBA")).astype(float)
    alpha = pixels[..., 3:] / 255
    return Image.fromarray((pixels[..., :3] * alpha + 255 * (1 - alpha)).round().astype(np.uint8))


PHOTOGRAPHS = {
    "astronaut.png": lambda: skimage.data.astronaut(),
    "coffee.jpg": lambda: skimage.data.coffee(),
    "camera-grey.png": lambda: skimage.data.camera(),
    "chelsea.bmp": lambda: skimage.data.chelsea(),
    "alpha.png": lambda: _with_alpha(skimage.data.chelsea()).astype(np.uint8),
    "odd.png": lambda: skimage.data.astronaut()[:37, :301],
}


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_photographs_from_files(lens, tmp_path, name):
    path = tmp_path / name
    Image.fromarray(PHOTOGRAPHS[name]()).save(path)
    inputs = lens.prepare(QUESTION, images=[path if name == "odd.png" else str(path)])
    picture = Image.open(path)
    _, reference = by_hand(
        lens, [chat(QUESTION)], [on_white(picture) if name == "alpha.png" else picture.convert("RGB")]
    )
    assert largest_difference(wrapped_logits(lens, inputs), reference) < 1e-4
    assert inputs.images[0][0].mode == "RGB"


QUESTIONS = [QUESTION, "What is the shape? " + QUESTION, QUESTION]


def three_pictures():
    return [[scene(48, 48, 1)], [scene(96, 96, 2)], [scene(80, 64, 3)]]


@pytest.mark.parametrize("side", ["left", "right"])
def test_prepare_pads_a_batch_at_the_left(lens, monkeypatch, side):
    """Whatever the tokenizer is set to: the last position of every prompt is the one that answers."""
    monkeypatch.setattr(lens.tokenizer, "padding_side", side)
    inputs = lens.prepare(QUESTIONS, images=three_pictures())
    monkeypatch.setattr(lens.tokenizer, "padding_side", "left")
    outputs, reference = by_hand(lens, [chat(question) for question in QUESTIONS], three_pictures())
    assert torch.equal(inputs.tokens, outputs["input_ids"])
    assert inputs.attention_mask.sum(1).unique().numel() == 3 and bool(inputs.attention_mask[:, -1].all())
    assert largest_difference(wrapped_logits(lens, inputs), reference, inputs.attention_mask) < 1e-4


def test_encode_takes_padding_at_the_right(lens, monkeypatch):
    monkeypatch.setattr(lens.tokenizer, "padding_side", "right")
    outputs, reference = by_hand(lens, [chat(question) for question in QUESTIONS], three_pictures())
    inputs = lens.encode(outputs)
    assert torch.equal(inputs.attention_mask, outputs["attention_mask"])
    assert bool(inputs.attention_mask[:, 0].all()) and not bool(inputs.attention_mask.all())
    assert largest_difference(wrapped_logits(lens, inputs), reference, inputs.attention_mask) < 1e-4


def test_batch_in_which_an_example_has_two_images_and_one_has_none(lens):
    images = [[scene(48, 48, 1), scene(96, 48, 2)], [], [scene(80, 64, 3)]]
    inputs = lens.prepare(QUESTIONS, images=images)
    texts = [chat(question, len(own)) for question, own in zip(QUESTIONS, images, strict=True)]
    _, reference = by_hand(lens, texts, images)
    assert largest_difference(wrapped_logits(lens, inputs), reference, inputs.attention_mask) < 1e-4


@pytest.mark.parametrize("build", [llava, llava_next])
def test_other_processors_without_chat_template(build):
    model, processor = build()
    lens = lensplug.wrap(model, processor)
    inputs = lens.prepare("What <image> is?", images=[scene(60, 44)], chat_template=False)
    outputs = processor(text="What <image> is?", images=[scene(60, 44)], return_tensors="pt")
    assert largest_difference(wrapped_logits(lens, inputs), reference_logits(model, outputs)) < 1e-4
    with pytest.raises(lensplug.LensplugError, match=f"{type(processor).__name__} has no chat template"):
        lens.prepare("What?", images=[scene(60, 44)])


def test_text_alone_and_a_single_picture_without_a_list(lens, picture, inputs):
    text = lens.prepare([QUESTION, "What is the shape? " + QUESTION])
    assert text.modality.names == ("text", "pad")
    _, reference = by_hand(lens, [chat(QUESTION, 0), chat("What is the shape? " + QUESTION, 0)], [])
    assert largest_difference(wrapped_logits(lens, text), reference, text.attention_mask) < 1e-4
    assert torch.equal(lens.prepare(QUESTION, images=picture).embeds, inputs.embeds)


def test_what_an_input_says_of_itself(lens, inputs, picture):
    assert len(inputs) == 1 and inputs.images == ((picture,),)
    n_image = int((inputs.tokens == lens.core.placeholder_ids["image"]).sum())
    assert f"{n_image} image" in repr(inputs) and f"pos={inputs.tokens.shape[1]}" in repr(inputs)
    assert "".join(inputs.str_tokens[0]).replace("<image>" * n_image, "<image>") == chat(QUESTION)


RGB = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
GREY = RGB[..., 0]


@pytest.mark.parametrize(
    ("source", "pixels"),
    [
        (RGB, RGB),
        (torch.from_numpy(RGB), RGB),
        (Image.fromarray(RGB), RGB),
        (GREY, np.stack([GREY] * 3, axis=-1)),
        (GREY[..., None], np.stack([GREY] * 3, axis=-1)),
        (np.dstack([RGB, np.full_like(GREY, 255)]), RGB),
        (np.dstack([RGB, np.zeros_like(GREY)]), np.full_like(RGB, 255)),
        (
            Image.fromarray(RGB).convert("LA").convert("PA"),
            np.asarray(Image.fromarray(RGB).convert("L").convert("RGB")),
        ),
        (torch.from_numpy(RGB).requires_grad_(False), RGB),
    ],
)
def test_load_image(source, pixels):
    assert np.array_equal(np.asarray(load_image(source)), pixels)


def test_load_image_turns_a_photograph_as_its_camera_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn by a quarter, clockwise
    Image.fromarray(RGB).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(np.asarray(load_image(tmp_path / "turned.png")), np.rot90(RGB, k=-1))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (RGB * 1.0, "float64 from 0 to 23, expected uint8, or floats from 0 to 1"),
        (RGB[None], r"uint8 of the shape \[1, 2, 4, 3\]"),
        (np.zeros((5, 8, 8), dtype=np.uint8), r"uint8 of the shape \[5, 8, 8\]"),
        (5, "an image is a int"),
        (None, "an image is a NoneType"),
        ("nowhere.png", "there is no file 'nowhere.png'"),
        (__file__, "test_multimodal_input.py' is not an image"),
        (Image.fromarray(np.ones((2, 2), np.float32)), "mode 'F', which do not say what is white"),
    ],
)
def test_refuses_what_is_no_picture(lens, source, message):
    with pytest.raises(lensplug.LensplugError, match=message):
        lens.prepare(QUESTION, images=[source])


@pytest.mark.parametrize(
    ("text", "n_images", "chat_template", "message"),
    [
        ("What?", 1, False, r"example 0 has 1 image\(s\) and 0 placeholder"),
        ("What <image> is?", 0, False, r"example 0 has 0 image\(s\) and 1 placeholder"),
        ("What <image> is?", 1, True, r"1 image\(s\) and 2 placeholder"),
        (["What?", "What?"], 1, True, "2 prompts, but images for 1"),
    ],
)
def test_refuses_pictures_without_placeholder_and_the_reverse(lens, picture, text, n_images, chat_template, message):
    with pytest.raises(lensplug.LensplugError, match=message):
        lens.prepare(text, images=[picture] * n_images, chat_template=chat_template)


def _tokens(outputs, change):
    outputs["input_ids"] = change(outputs["input_ids"])


BROKEN = {
    r"hold \d+ image placeholder.*no image is given": lambda o: o.pop("pixel_values"),
    "no token is the image placeholder": lambda o: _tokens(o, lambda ids: ids.clamp(max=200)),
    "no input_ids": lambda o: o.pop("input_ids"),
    r"expected \[1, ": lambda o: o.update(attention_mask=torch.ones(1, 10)),
    "token ids reach from .* to 9999, the model has": lambda o: _tokens(o, lambda ids: ids.clone().fill_(9999)),
    "input_ids is not a tensor": lambda o: _tokens(o, lambda ids: ids.tolist()),
    "refused its inputs": lambda o: o.update({n: o[n][:, 5:] for n in ("input_ids", "attention_mask")}),
}


@pytest.mark.parametrize("message", BROKEN)
def test_encode_refuses_outputs_that_do_not_fit(lens, picture, message, unchanged):
    outputs = dict(lens.processor(text=chat(QUESTION), images=[picture], return_tensors="pt"))
    BROKEN[message](outputs)
    with pytest.raises(lensplug.LensplugError, match=message):
        lens.encode(outputs)


def test_a_lens_without_processor_and_a_processor_without_images(lens, picture):
    text = lensplug.wrap(text_model("Llama"))
    with pytest.raises(lensplug.LensplugError, match="no processor.*lens.encode"):
        text.prepare("What?")
    assert text.encode({"input_ids": text_tokens(3)}).str_tokens == [[str(int(t)) for t in text_tokens(3)[0]]]
    with pytest.raises(lensplug.LensplugError, match="reads words, and .* takes image and video as well"):
        lensplug.wrap(lens.hf_model, lens.tokenizer)
    words = lensplug.wrap(text_model("Llama"), lens.tokenizer, check=False)
    with pytest.raises(lensplug.LensplugError, match="TokenizersBackend takes none|PreTrainedTokenizerFast takes none"):
        words.prepare("What?", images=[picture])


@pytest.mark.parametrize("batch", [False, True])
def test_a_template_that_writes_the_bos_token_gets_no_second_one(batch):
    """Llama's tokenizers put one before every text; Llama's chat templates begin with one."""
    model, processor = llava_onevision()
    tokenizer = processor.tokenizer
    tokenizer.bos_token = "<|im_start|>"
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", bos)]
    )
    assert tokenizer("we")["input_ids"][0] == bos
    lens = lensplug.wrap(model, processor, check=False)
    text = ["What?", "What is the color?"] if batch else "What?"
    inputs = lens.prepare(text)
    for row, mask in zip(inputs.tokens, inputs.attention_mask, strict=True):
        own = row[mask.bool()].tolist()
        assert own[0] == bos and own[1] != bos
    plain = lens.prepare("What?", chat_template=False)
    assert plain.tokens[0, 0] == bos

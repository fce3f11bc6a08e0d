"""What the user's own call of a processor saw: turned or not, another picture, another sound."""

from __future__ import annotations

import base64
import io
import warnings

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from support.image_families import lens
from support.media_files import ORIENTATION, corners, four_colours

import lensplug
from lensplug import views
from lensplug.errors import LensplugError

QUESTION = "<image>What is this ?"


def photograph(tmp_path, orientation, size=(64, 48)):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / "photo.png"
    Image.fromarray(four_colours(*size)).save(path, exif=exif)
    return path


@pytest.mark.parametrize("family", ["llava", "llava-onevision"])
@pytest.mark.parametrize("orientation", [3, 6])
def test_a_photograph_is_taken_as_the_processor_saw_it(tmp_path, family, orientation):
    path = photograph(tmp_path, orientation)
    image, wrapped = Image.open(path), lens(family)
    turned = ImageOps.exif_transpose(image)
    for seen in (image, turned):  # a processor takes a PIL image as it is stored, a chat template turns it
        outputs = wrapped.processor(text=QUESTION, images=[seen], return_tensors="pt")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for given in (path, image, [image], [[image]]):
                inputs = wrapped.encode(outputs, images=given)
                assert np.array_equal(np.asarray(inputs.images[0][0]), np.asarray(seen.convert("RGB")))
                grid = inputs.modality.image_grid()
                assert grid is not None and (grid.width, grid.height) == seen.size
    assert corners(turned) != corners(image)


def test_a_processor_that_cuts_by_settings_of_its_own_is_asked_as_a_whole(tmp_path):
    wrapped, image = lens("internvl"), Image.open(photograph(tmp_path, 3))
    outputs = wrapped.processor(text=QUESTION, images=[image], return_tensors="pt")
    assert np.array_equal(np.asarray(wrapped.encode(outputs, images=image).images[0][0]), np.asarray(image))


def test_in_a_batch_every_picture_is_taken_as_it_was_seen(tmp_path):
    wrapped, image = lens("llava-onevision"), Image.open(photograph(tmp_path, 8))
    outputs = wrapped.processor(text=[QUESTION] * 2, images=[[image], [image]], return_tensors="pt", padding=True)
    inputs = wrapped.encode(outputs, images=[[image], [image]])
    assert [own[0].size for own in inputs.images] == [(64, 48)] * 2


def test_a_picture_of_another_size_is_refused(tmp_path):
    wrapped = lens("llava-onevision")
    outputs = wrapped.processor(text=QUESTION, images=[Image.new("RGB", (64, 48))], return_tensors="pt")
    with pytest.raises(LensplugError, match=r"images are \[\(60, 60\)\].*the processor saw some of \[\(48, 64\)\]"):
        wrapped.encode(outputs, images=[Image.new("RGB", (60, 60))])


def test_another_picture_is_said():
    wrapped, own = lens("llava"), Image.fromarray(four_colours())
    outputs = wrapped.processor(text=QUESTION, images=[own], return_tensors="pt")
    with pytest.warns(UserWarning, match="the images are not those that the processor saw, or it was called") as warned:
        wrapped.encode(outputs, images=[own.transpose(Image.Transpose.FLIP_LEFT_RIGHT)])
    assert warned[0].filename == __file__
    outputs["pixel_values"] = outputs["pixel_values"].to(torch.bfloat16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wrapped.encode(outputs, images=[own])


def test_other_frames_are_said():
    wrapped, frames = lens("llava-onevision"), np.stack([four_colours()] * 2)
    outputs = wrapped.processor(text="<video>What ?", videos=[frames], return_tensors="pt", do_sample_frames=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wrapped.encode(outputs, videos=[frames])
    with pytest.warns(UserWarning, match="the videos are not those that the processor saw"):
        wrapped.encode(outputs, videos=[frames[:, ::-1]])


def test_without_a_processor_it_cannot_be_told_how_a_photograph_was_seen(tmp_path):
    wrapped, path = lens("llava-onevision"), photograph(tmp_path, 6)
    outputs = wrapped.processor(text=QUESTION, images=[Image.open(path)], return_tensors="pt")
    alone = lensplug.wrap(wrapped.hf_model, None, check=False)
    with pytest.raises(LensplugError, match="whether the processor saw it rotated is unknown"):
        alone.encode(outputs, images=[path])
    assert alone.encode(outputs, images=[Image.fromarray(four_colours())]).images[0][0].size == (64, 48)


def test_a_picture_given_to_a_view_is_turned_as_the_grid_was(tmp_path):
    wrapped, path = lens("llava-onevision"), photograph(tmp_path, 6)
    inputs = wrapped.encode(wrapped.processor(text=QUESTION, images=[Image.open(path)], return_tensors="pt"))
    values = torch.rand(inputs.tokens.shape[1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fig = views.image_overlay(values, inputs, image=path)
    drawn = Image.open(io.BytesIO(base64.b64decode(fig.layout.images[0].source.split("base64,")[1])))
    assert drawn.size == (64, 48) and corners(drawn) == ["red", "green", "blue", "white"]
    path = photograph(tmp_path, 3)
    inputs = wrapped.encode(wrapped.processor(text=QUESTION, images=[Image.open(path)], return_tensors="pt"))
    with pytest.warns(UserWarning, match="whether the model saw it so is not known"):
        views.image_overlay(values, inputs, image=path)

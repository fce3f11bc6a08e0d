"""Pictures as people have them: turned by EXIF, of every mode, in every form of file and array; and what is refused."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from support.media_files import ORIENTATION, corners, four_colours
from transformers.image_utils import load_image as load_with_transformers

from lensplug import analysis
from lensplug.errors import LensplugError
from lensplug.media import load_image

QUESTION = "What is the color? Answer single word."


def photograph(path, orientation, form="JPEG"):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(four_colours()).save(path, form, exif=exif, quality=95)
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_is_turned_in_every_form(tmp_path, orientation):
    path = photograph(tmp_path / "photo.jpg", orientation)
    expected = np.asarray(load_with_transformers(str(path)))
    forms = [path, str(path), path.read_bytes(), io.BytesIO(path.read_bytes()), {"bytes": None, "path": str(path)}]
    with path.open("rb") as file, Image.open(path) as opened:
        for source in [*forms, file, opened, {"bytes": path.read_bytes(), "path": "gone.jpg"}]:
            once = load_image(source)
            assert np.array_equal(np.asarray(once), expected)
            assert np.array_equal(np.asarray(load_image(once)), expected), "twice turned"
            stored = load_image(source, upright=False)
            assert corners(stored) == ["red", "green", "blue", "white"]
            assert np.array_equal(np.asarray(load_image(stored)), np.asarray(stored))


def test_prepare_sees_a_pil_image_as_it_sees_its_file(lens, tmp_path):
    path = photograph(tmp_path / "photo.jpg", 6)
    of_file = lens.prepare(QUESTION, images=[path])
    of_image = lens.prepare(QUESTION, images=Image.open(path))
    assert torch.equal(of_file.embeds, of_image.embeds)
    assert of_image.images[0][0].size == (48, 64)
    grid = of_image.modality.image_grid()
    assert (grid.width, grid.height) == (48, 64)


def transparent(mode):
    """Red; where it is transparent, green is hidden."""
    image = Image.new("RGBA", (8, 8), (0, 255, 0, 0))
    ImageDraw.Draw(image).rectangle((0, 0, 3, 7), fill=(255, 0, 0, 255))
    if mode in ("P", "PA"):
        palette = Image.new("P", (8, 8), 1)
        palette.putpalette([255, 0, 0, 0, 255, 0])
        palette.paste(0, (0, 0, 4, 8))
        if mode == "PA":
            palette.putalpha(image.getchannel("A"))
        else:
            palette.info["transparency"] = 1
        return palette
    return image.convert(mode)


@pytest.mark.parametrize(
    ("mode", "form"),
    [*((mode, None) for mode in ("RGBA", "LA", "PA", "P")), ("RGBA", "PNG"), ("LA", "PNG"), ("P", "PNG"),
     ("RGBA", "WEBP"), ("P", "GIF")],
)  # fmt: skip
def test_what_is_transparent_is_white(mode, form):
    image = transparent(mode)
    assert image.mode == mode
    if form is not None:
        image.save(buffer := io.BytesIO(), form, lossless=True)
        image = buffer.getvalue()
    pixels = np.asarray(load_image(image)).astype(int)
    assert (pixels[:, 6] >= 254).all()
    assert np.abs(pixels[:, 1] - ([76, 76, 76] if mode == "LA" else [255, 0, 0])).max() <= 2


def test_sixteen_bits_are_shown_by_their_upper_eight():
    deep = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(deep).save(buffer := io.BytesIO(), "PNG")
    for source in (buffer.getvalue(), Image.fromarray(deep)):
        assert np.array_equal(np.asarray(load_image(source))[..., 1], np.arange(256).reshape(16, 16))


@pytest.mark.parametrize("mode", ["1", "L", "CMYK", "YCbCr", "HSV", "RGBX"])
def test_other_modes(mode):
    image = Image.fromarray(four_colours()).convert(mode)
    assert np.array_equal(np.asarray(load_image(image)), np.asarray(image.convert("RGB")))
    if mode in ("CMYK", "YCbCr", "RGBX"):
        assert corners(load_image(image)) == ["red", "green", "blue", "white"]


def test_of_an_animation_the_first_frame_is_said():
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue", "white")]
    frames[0].save(buffer := io.BytesIO(), "GIF", save_all=True, append_images=frames[1:], duration=100)
    with pytest.warns(UserWarning, match="has 3 frames, of which the model sees number 0") as warned:
        image = load_image(buffer.getvalue())
    assert np.asarray(image)[0, 0].tolist() == [255, 0, 0]
    assert warned[0].filename == __file__, "it names the line of the user"


RGB = four_colours(12, 10)


@pytest.mark.parametrize(
    "source",
    [
        RGB / 255,
        (RGB / 255).astype(np.float32),
        torch.from_numpy(RGB).permute(2, 0, 1),
        torch.from_numpy(RGB).permute(2, 0, 1).float() / 255,
        (torch.from_numpy(RGB) / 255).to(torch.bfloat16),
        np.asfortranarray(RGB),
    ],
)
def test_arrays_of_other_layouts_and_scales(source):
    assert np.array_equal(np.asarray(load_image(source)), RGB)


def test_a_mask_and_a_grey_picture_of_one_channel():
    mask = RGB[..., 0] > 100
    assert np.array_equal(np.asarray(load_image(mask))[..., 2], mask * 255)
    assert np.array_equal(np.asarray(load_image(RGB[None, ..., 1])), np.stack([RGB[..., 1]] * 3, axis=-1))


def test_an_array_of_several_pictures_is_several(lens):
    inputs = lens.prepare(QUESTION, images=np.stack([four_colours(), four_colours()[::-1]]))
    assert [corners(image)[0] for image in inputs.images[0]] == ["red", "blue"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (RGB.astype(np.int64), r"int64 of the shape \[10, 12, 3\], expected uint8: if 255 is white"),
        (RGB.astype(np.uint16), "uint16 of the shape"),
        (RGB.astype(np.float32), "float32 from 0 to 255, expected uint8, or floats from 0 to 1.*divide by 255"),
        (RGB / 127.5 - 1, "from -1 to 1, expected uint8, or floats from 0 to 1: undo a normalisation"),
        (np.full((8, 8, 3), np.nan), "192 values that are NaN or infinite"),
        (np.zeros((0, 8, 3), np.uint8), "it has no pixels"),
        (np.zeros((8, 8, 2), np.uint8), r"uint8 of the shape \[8, 8, 2\]"),
        ("https://example.org/cat.jpg", "'https://example.org/cat.jpg' is an address, and files are wanted: download"),
        ("s3://bucket/cat.jpg", "is an address, and files are wanted"),
        ("data:image/png;base64,iVBORw0KGgo=", "is an address, and files are wanted"),
        ("", "the path of a picture is empty"),
        ("/", "'/' is a folder, expected a file that is a picture"),
        (b"", "the file for a picture is empty"),
        (b"\0\0\0\x18ftypheic" + 20 * b"\0", "Pillow knows no such format. It is HEIC, of a telephone: pip install"),
        (Path("https://example.org/cat.jpg"), "is an address, and files are wanted"),
        (b"no picture", "the file of 10 bytes is not an image that can be read"),
        (io.StringIO("text"), "open as text: open it with 'rb'"),
        ({"bytes": None, "path": None}, r"a dictionary of \['bytes', 'path'\], expected path or bytes in it"),
        ({"pixels": RGB}, r"a dictionary of \['pixels'\], expected path or bytes"),
        (Image.new("RGB", (0, 4)), r"has the size \(0, 4\): it has no pixels"),
        (Image.new("I", (4, 4)), "mode 'I', which do not say what is white"),
    ],
)
def test_refuses(source, message):
    with pytest.raises(LensplugError, match=message):
        load_image(source)


def test_refuses_files_that_are_no_whole_picture(tmp_path, monkeypatch):
    (tmp_path / "empty.png").touch()
    with pytest.raises(LensplugError, match=r"empty.png' is an empty file, expected a picture"):
        load_image(tmp_path / "empty.png")
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer := io.BytesIO(), "JPEG", quality=95)
    whole = buffer.getvalue()
    for source in (whole[: len(whole) // 2], Image.open(io.BytesIO(whole[: len(whole) // 2]))):
        with pytest.raises(LensplugError, match="not an image that can be read: .*truncated"):
            load_image(source)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(LensplugError, match=r"too many pixels for this process, which has set PIL.Image.MAX_IMAGE_PI"):
        load_image(whole)


def test_a_path_from_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    photograph(tmp_path / "photo.jpg", 1)
    assert corners(load_image("~/photo.jpg"))[0] == "red"
    with pytest.raises(LensplugError, match=f"there is no file '{tmp_path}/gone.jpg'"):
        load_image("~/gone.jpg")


@pytest.mark.parametrize(
    ("images", "message"), [(3, "images is a int, expected one of them or a list"), ([3], "a int")]
)
def test_prepare_refuses_what_is_no_list(lens, images, message):
    with pytest.raises(LensplugError, match=message):
        lens.prepare(QUESTION, images=images)


def test_an_example_of_a_batch_may_have_none(lens, picture):
    inputs = lens.prepare([QUESTION, QUESTION], images=[None, picture])
    assert [len(own) for own in inputs.images] == [0, 1]


def test_an_example_takes_a_single_picture(picture, tmp_path):
    path = photograph(tmp_path / "photo.jpg", 1)
    for source in (picture, path, str(path), [picture], (picture,)):
        assert len(analysis.Example(QUESTION, "red", images=source).images) == 1
    assert len(analysis.Example(QUESTION, "red", audio=(np.zeros(4), 16000)).audio) == 1
    assert analysis.Example(QUESTION, "red").images == []

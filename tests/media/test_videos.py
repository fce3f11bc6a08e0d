"""Videos as people have them: turned, of oblong pixels, of varying rate, cut short, with sound alone."""

from __future__ import annotations

import io
import sys
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from support.image_families import lens
from support.media_files import corners, four_colours, mux_sound, times_of, tone, turn, write_sound, write_video

from lensplug.errors import LensplugError
from lensplug.media import load_video

QUESTION = "What is this ?"
# As Chromium shows these files.
TURNED = {
    0: ["red", "green", "blue", "white"],
    90: ["blue", "red", "white", "green"],
    180: ["white", "blue", "green", "red"],
    270: ["green", "white", "red", "blue"],
}


@pytest.mark.parametrize("degrees", TURNED)
def test_a_video_is_turned_as_a_player_turns_it(tmp_path, degrees):
    path = turn(write_video(tmp_path / "a.mp4"), degrees)
    video = load_video(path, num_frames=3)
    assert corners(video.frames[0]) == TURNED[degrees]
    assert (video.width, video.height) == ((48, 64) if degrees in (90, 270) else (64, 48))
    mirrored = load_video(turn(path, degrees, mirrored=True), num_frames=2)
    other = np.asarray(load_video(turn(path, 0), num_frames=2).frames[0])[:, ::-1]
    assert corners(mirrored.frames[0]) == corners(np.rot90(other, k=-degrees // 90))


def test_the_grid_of_a_turned_video_is_upright(tmp_path):
    path = turn(write_video(tmp_path / "a.mp4", frames=[four_colours()] * 3), 90)
    grid = lens("llava-onevision").prepare(QUESTION, videos=path).modality.video_grid()
    assert (
        grid is not None
        and (grid.width, grid.height) == (48, 64)
        and times_of(grid) == pytest.approx([0, 0.1, 0.2], abs=1e-3)
    )


@pytest.mark.parametrize(
    ("ratio", "size"), [("2/1", (128, 48)), ("1/2", (64, 96)), ("16/15", (68, 48)), ("1/1", (64, 48))]
)
def test_oblong_pixels_are_made_square(tmp_path, ratio, size):
    video = load_video(write_video(tmp_path / "a.mp4", pixel_ratio=Fraction(ratio)), num_frames=2)
    assert (video.width, video.height) == size and corners(video.frames[0]) == TURNED[0]


def shade(index):
    return np.full((48, 64, 3), 20 * index, np.uint8)


def test_of_a_varying_rate_frames_are_taken_evenly_in_time(tmp_path):
    """Three at once, then one that stays for almost three seconds, six at once, and the last."""
    pts = [0, 100, 200, 3000, 3100, 3200, 3300, 3400, 3500, 6000]
    path = write_video(tmp_path / "a.mkv", pts=pts, frames=[shade(index) for index in range(10)])
    with pytest.warns(UserWarning, match=r"follow each other after 0.1 to 2.8 s: 7 are taken evenly in time") as warned:
        video = load_video(path, num_frames=7)
    assert warned[0].filename == __file__
    assert times_of(video) == pytest.approx([0, 1, 2, 3, 4, 5, 6], abs=1e-3)
    shown = (video.frames.float().mean(dim=(1, 2, 3)) / 20).round().tolist()
    assert shown == [0, 2, 2, 3, 8, 8, 9]
    with pytest.warns(UserWarning, match="all 10 are taken, which are not even in time"):
        assert times_of(load_video(path)) == pytest.approx([at / 1000 for at in pts], abs=1e-3)


@pytest.mark.filterwarnings("error")
def test_time_begins_with_the_file(tmp_path):
    for name, form in (("a.ts", "mpegts"), ("a.mkv", None), ("a.mp4", None)):
        late = [2000 + 100 * index for index in range(10)]
        video = load_video(write_video(tmp_path / name, pts=late, form=form, codec="libx264"), num_frames=4)
        assert times_of(video) == pytest.approx([0, 0.3, 0.6, 0.9], abs=2e-3)
    # Pictures that come half a second after the sound are late by that.
    pts = [500 + 100 * index for index in range(10)]
    video = load_video(write_video(tmp_path / "b.mkv", pts=pts, sound=tone()), num_frames=4)
    assert times_of(video) == pytest.approx([0.5, 0.8, 1.1, 1.4], abs=0.03)


def test_times_that_a_file_does_not_tell_are_not_known(tmp_path):
    path = write_video(tmp_path / "a.h264", codec="libx264", form="h264", frames=[shade(index) for index in range(10)])
    video = load_video(path, num_frames=4)
    assert video.times_s is None
    assert (video.frames.float().mean(dim=(1, 2, 3)) / 20).round().tolist() == [0, 3, 6, 9]
    grid = lens("llava-onevision").prepare(QUESTION, videos=video).modality.video_grid()
    assert grid is not None and grid.time_s is None


@pytest.mark.parametrize(("name", "options"), [("a.mkv", {}), ("a.mp4", {"movflags": "faststart"})])
def test_a_file_that_is_cut_short_is_said(tmp_path, name, options):
    noise = np.random.default_rng(0).integers(0, 255, (20, 48, 64, 3), dtype=np.uint8)
    path = write_video(tmp_path / name, frames=list(noise), pts=[200 * index for index in range(20)], options=options)
    content = path.read_bytes()
    with pytest.warns(UserWarning, match=r"is cut short: its header declares 3.9 s, of which [0123].\d s can be read"):
        video = load_video(content[: len(content) * 3 // 4], num_frames=30)
    assert 3 < len(video) < 18
    with pytest.raises(LensplugError, match="is not a video that can be read"):
        load_video(content[:20])


def test_what_has_no_moving_pictures_is_refused(tmp_path, monkeypatch):
    sound = write_sound(tmp_path / "a.m4a", tone(), "aac")
    with pytest.raises(LensplugError, match=r"a.m4a' has no moving pictures. It has sound: give it as audio="):
        load_video(sound)
    import av

    cover = tmp_path / "cover.m4a"  # the picture of a record is a stream of pictures too
    with av.open(str(cover), "w", format="mp4") as container:
        heard = container.add_stream("aac", rate=16000, layout="mono")
        pictures = container.add_stream("mjpeg", rate=1)
        pictures.width, pictures.height, pictures.pix_fmt = 64, 48, "yuvj420p"
        pictures.disposition = av.stream.Disposition.attached_pic
        container.mux(pictures.encode(av.VideoFrame.from_ndarray(four_colours()).reformat(format="yuvj420p")))
        container.mux(pictures.encode(None))
        mux_sound(container, heard, tone())
    with pytest.raises(LensplugError, match=r"cover.m4a' has no moving pictures. It has sound"):
        load_video(cover)
    with pytest.raises(LensplugError, match="is an address, and files are wanted"):
        load_video("https://example.org/a.mp4")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(
        LensplugError, match=r"video files need PyAV: pip install 'lensplug\[video\]' \(or give the fra"
    ):
        load_video(sound)


def test_every_form_of_file(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    content = write_video(tmp_path / "a.mp4").read_bytes()
    for source in ("~/a.mp4", content, io.BytesIO(content), {"bytes": content, "path": None}):
        assert corners(load_video(source, num_frames=2).frames[1]) == TURNED[0]


def test_an_animation_is_white_where_it_is_transparent():
    frames = [Image.new("RGBA", (16, 16), (0, 0, 0, 0)) for _ in range(3)]
    for index, frame in enumerate(frames):
        frame.paste((255, 0, 0, 255), (0, 0, 4 + index, 16))
    frames[0].save(buffer := io.BytesIO(), "GIF", save_all=True, append_images=frames[1:], duration=200, disposal=2)
    video = load_video(buffer.getvalue())
    assert video.frames.shape == (3, 16, 16, 3) and times_of(video) == pytest.approx([0, 0.2, 0.4], abs=0.01)
    for index, frame in enumerate(video.frames):
        assert frame[8].tolist() == [[255, 0, 0]] * (4 + index) + [[255, 255, 255]] * (12 - index)


FRAMES = np.stack([four_colours(), four_colours()[::-1]])


@pytest.mark.parametrize(
    "frames", [FRAMES / 255, FRAMES.transpose(0, 3, 1, 2), torch.from_numpy(FRAMES).permute(0, 3, 1, 2) / 255]
)
def test_frames_of_other_layouts_and_scales(frames):
    assert np.array_equal(load_video(frames).frames.numpy(), FRAMES)
    assert len(lens("llava-onevision").prepare(QUESTION, videos=frames).videos[0][0]) == 2


class Decoder:
    """As torchcodec's VideoDecoder, which the data sets of Hugging Face give."""

    metadata = SimpleNamespace(begin_stream_seconds=1.0, end_stream_seconds=2.0)

    def __len__(self):
        return 10

    def get_frames_played_at(self, seconds):
        index = [int((at - 1.0) * 10) for at in seconds]
        return SimpleNamespace(data=torch.stack([torch.from_numpy(shade(at)).permute(2, 0, 1) for at in index]))


def test_a_decoder_of_a_data_set():
    video = load_video(Decoder(), num_frames=4)
    assert (video.frames.float().mean(dim=(1, 2, 3)) / 20).tolist() == [0, 3, 6, 9]
    assert times_of(video) == pytest.approx([0, 0.3, 0.6, 0.9])


@pytest.mark.parametrize("number", [0, True])
def test_a_number_of_frames_that_is_none(number):
    with pytest.raises(LensplugError, match="num_frames is"):
        load_video("a.mp4", num_frames=number)

"""What would take more memory than a medium may is refused before it is decoded, and one setting allows it."""

from __future__ import annotations

import io
import struct
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from support.media_files import four_colours, tone, write_sound, write_video

from lensplug import media
from lensplug.errors import LensplugError
from lensplug.media import load_image, load_sound, load_video, memory_limit, set_memory_limit
from lensplug.media.limits import VARIABLE


@pytest.fixture
def limit():
    """Sets the limit, and puts it back behind the test."""
    with set_memory_limit("1 GiB"):
        yield set_memory_limit


@pytest.mark.parametrize(
    ("size", "n_bytes"),
    [(5, 5), ("4 GB", 4 * 10**9), ("4GiB", 2**32), ("2.5 gb", 2_500_000_000), ("300M", 3 * 10**8), ("70 kB", 70_000)],
)
def test_the_limit_in_bytes_and_in_words(size, n_bytes):
    before = memory_limit()
    with set_memory_limit(size):
        assert memory_limit() == n_bytes
    assert memory_limit() == before


@pytest.mark.parametrize("size", [0, -1, "much", "4 XB", "", "-4 GB", "nan", "1e9"])
def test_what_is_no_size_is_refused(size):
    with pytest.raises(LensplugError, match=r"the memory limit is .*, expected bytes, or a text such as '4 GB'"):
        set_memory_limit(size)
    for other in (True, None, 1.5):
        with pytest.raises(LensplugError, match="size is .*, expected a text or a whole number"):
            set_memory_limit(other)  # type: ignore[arg-type]


def test_the_environment_sets_the_limit_and_a_call_goes_before_it(monkeypatch):
    assert memory_limit() == 2**30
    monkeypatch.setenv(VARIABLE, "3GB")
    assert memory_limit() == 3 * 10**9
    with set_memory_limit("2 GB"):
        assert memory_limit() == 2 * 10**9
    monkeypatch.setenv(VARIABLE, "plenty")
    with pytest.raises(LensplugError, match="LENSPLUG_MEDIA_MEMORY is 'plenty', expected bytes"):
        load_image(np.zeros((4, 4, 3), np.uint8).tobytes())


def test_the_limit_is_put_back_where_something_is_raised():
    before = memory_limit()
    with pytest.raises(KeyError), set_memory_limit(7):
        raise KeyError
    assert memory_limit() == before


def png(width, height):
    """Of one colour; of a large one the first rows, for nothing of it is ever decoded."""
    data = zlib.compress((b"\0" + bytes([10, 20, 30]) * width) * min(height, 300))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", data), (b"IEND", b"")]
    made = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(made)


@pytest.mark.filterwarnings("error")  # Pillow's own warning is none of the user's concern here
def test_a_picture_of_too_many_pixels(limit):
    with pytest.raises(LensplugError, match=r"20000 x 5000 = 100.0 megapixels, which takes 1.20 GB to read.*'1.2 GB'"):
        load_image(png(20_000, 5_000))
    limit("1 MB")
    for source in (png(300, 300), Image.open(io.BytesIO(png(300, 300)))):
        with pytest.raises(LensplugError, match="= 0.1 megapixels, which takes 1.1 MB to read, and one"):
            load_image(source)
    assert load_image(Image.new("RGB", (300, 300))).size == (300, 300), "it is in memory already"
    with limit("1.1 MB"):
        assert load_image(png(300, 300)).size == (300, 300)


def test_a_limit_beyond_pillows_allows_what_pillow_refuses(monkeypatch, limit):
    monkeypatch.setattr("lensplug.media.image_files.PILLOWS", 500)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(png(100, 100)))
    assert load_image(png(100, 100)).size == (100, 100) and Image.MAX_IMAGE_PIXELS == 500
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 499)
    with pytest.raises(LensplugError, match="which has set PIL.Image.MAX_IMAGE_PIXELS to 499"):
        load_image(png(100, 100))


def test_a_text_bomb_in_a_picture_is_refused():
    text = zlib.compress(bytes(2**25))
    chunk = b"zTXt" + b"about\0\0" + text
    made = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    content = png(8, 8)
    with pytest.raises(LensplugError, match="not an image that can be read: Decompressed data too large"):
        load_image(content[:33] + made + content[33:])


def test_truncated_pictures_stay_refused_and_the_users_setting_stays(monkeypatch):
    from PIL import ImageFile

    content = png(64, 64)[:-30]
    with pytest.raises(LensplugError, match="truncated"):
        load_image(content)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert load_image(content).size == (64, 64) and ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.fixture(scope="module")
def long_flac(tmp_path_factory):
    """Two minutes of a tone."""
    path = tmp_path_factory.mktemp("sounds") / "long.flac"
    soundfile.write(path, np.tile(tone(1.0), 120), 16000)
    return path


def test_a_sound_that_is_too_long(limit, long_flac):
    limit("4 MB")
    with pytest.raises(LensplugError, match=r"long.flac' lasts 120 s at 16000 Hz, which takes 7.7 MB.*start_s=0"):
        load_sound(long_flac)
    assert load_sound(long_flac, end_s=60).duration_s == 60
    limit("8 MB")
    assert load_sound(long_flac).duration_s == 120


def test_ten_hours_are_refused_without_being_decoded(monkeypatch, limit):
    """As the header says: of a file that is cut behind it."""
    soundfile.write(buffer := io.BytesIO(), tone(0.1), 16000, format="FLAC")
    content = bytearray(buffer.getvalue())
    content[22:26] = struct.pack(">I", 16000 * 3600 * 10)  # the lower bits of the samples in STREAMINFO
    monkeypatch.setattr("soundfile.SoundFile.read", lambda *_, **__: pytest.fail("decoded"))
    limit("1 GiB")
    with pytest.raises(LensplugError, match="lasts 10.0 hours at 16000 Hz, which takes 2.30 GB"):
        load_sound(bytes(content))


def test_a_sound_that_does_not_say_how_long_it_is_is_refused_as_it_comes(limit, long_flac):
    content = bytearray(long_flac.read_bytes())
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    assert soundfile.info(io.BytesIO(bytes(content))).frames > 2**62
    assert load_sound(bytes(content)).duration_s == 120
    limit("5 MB")
    with pytest.raises(LensplugError, match=r"lasts 8. s at 16000 Hz"):
        load_sound(bytes(content))


def test_a_sound_by_pyav_that_is_too_long(limit, tmp_path):
    path = write_sound(tmp_path / "a.m4a", np.tile(tone(1.0), 30), "aac")
    assert load_sound(path).duration_s == pytest.approx(30, abs=0.1)
    limit("1.8 MB")
    with pytest.raises(LensplugError, match=r"a.m4a' lasts 30 s at 16000 Hz"):
        load_sound(path)


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3", "a.aiff", "a.m4a", "a.webm"])
def test_a_part_of_a_sound_is_that_of_the_whole(tmp_path, name):
    samples = np.cumsum(np.random.default_rng(0).standard_normal(5 * 16000)).astype(np.float32)
    samples /= 1.1 * np.abs(samples).max()
    if name.endswith(("m4a", "webm")):
        write_sound(tmp_path / name, samples, *(("aac",) if name == "a.m4a" else ("libopus", "flt")))
    else:
        soundfile.write(tmp_path / name, np.stack([samples, samples[::-1]], axis=1), 16000)
    whole = load_sound(tmp_path / name)
    for start_s, end_s in ((0.0, 1.0), (1.25, 2.5), (3.0, None), (4.0, 60.0)):
        part = load_sound(tmp_path / name, start_s=start_s, end_s=end_s)
        first, end = round(start_s * whole.sampling_rate), None if end_s is None else round(end_s * whole.sampling_rate)
        assert torch.equal(part.waveform, whole.waveform[first:end]), (start_s, end_s)
        again = load_sound(whole, start_s=start_s, end_s=end_s)
        assert torch.equal(again.waveform, part.waveform), "a sound in memory has the same parts"
    for source in (tmp_path / name, whole):
        with pytest.raises(LensplugError, match=r"lasts 5.\d s, and is wanted from 9 s on"):
            load_sound(source, start_s=9)


@pytest.mark.parametrize(("start_s", "end_s"), [(-1, None), (2, 2), (3, 2)])
def test_what_is_no_part_is_refused(start_s, end_s):
    with pytest.raises(LensplugError, match=r"start_s is .* expected 0 <= start_s < end_s, in seconds"):
        load_sound((tone(), 16000), start_s=start_s, end_s=end_s)
    for what in ("0", True, float("nan")):
        with pytest.raises(LensplugError, match="start_s is .*, expected"):
            load_sound((tone(), 16000), start_s=what)  # type: ignore[arg-type]


def test_a_sound_of_few_samples_a_second_is_not_blown_up(limit):
    slow = media.Sound(torch.zeros(100_000), 1)
    with pytest.raises(LensplugError, match="lasts 27.8 hours at 1 Hz, which takes 6.40 GB"):
        slow.at_rate(16000)


def test_a_video_of_too_large_frames(limit, tmp_path):
    path = write_video(tmp_path / "a.mp4", frames=[four_colours(640, 480)] * 12)
    limit("15 MB")
    match = r"10 frame\(s\) of 640 x 480 pixels are wanted of .*a.mp4', which takes 18.4 MB.*num_frames=6\)"
    with pytest.raises(LensplugError, match=match):
        load_video(path, num_frames=10)
    assert len(load_video(path, num_frames=6)) == 6
    limit("5 MB")
    with pytest.raises(LensplugError, match="make it smaller"):
        load_video(path, num_frames=1)


def test_oblong_pixels_count_as_they_are_shown(limit, tmp_path):
    from fractions import Fraction

    path = write_video(tmp_path / "a.mp4", frames=[four_colours()] * 4, pixel_ratio=Fraction(8, 1))
    limit(64 * 48 * 8 * 42)
    assert load_video(path).width == 512
    limit(64 * 48 * 8 * 42 - 1)
    with pytest.raises(LensplugError, match="to read"):
        load_video(path)


def test_frames_that_are_files_count_together(limit, tmp_path):
    Image.fromarray(four_colours(100, 100)).save(tmp_path / "a.png")
    frame = Image.fromarray(four_colours(100, 100))
    limit("450 kB")
    assert len(load_video([str(tmp_path / "a.png")] * 4)) == 4
    with pytest.raises(LensplugError, match="the video has 6 frames, of which 5 have 100 x 100 pixels"):
        load_video([tmp_path / "a.png"] * 6)
    assert len(load_video([frame] * 20)) == 20, "these are in memory already"


def test_decoders_of_data_sets_are_asked_for_no_more_than_may_be():
    video = SimpleNamespace(
        metadata=SimpleNamespace(width=20_000, height=20_000, begin_stream_seconds=0.0, end_stream_seconds=9.0),
        get_frames_played_at=lambda **_: pytest.fail("decoded"),
    )
    video = type("Decoder", (SimpleNamespace,), {"__len__": lambda _: 100})(**vars(video))
    with pytest.raises(LensplugError, match="16 frames of 20000 x 20000 pixels are wanted of the video"):
        load_video(video)
    sound = SimpleNamespace(
        metadata=SimpleNamespace(sample_rate=44100, duration_seconds=36000.0, num_channels=2),
        get_all_samples=lambda: pytest.fail("decoded"),
    )
    with pytest.raises(LensplugError, match="lasts 10.0 hours at 44100 Hz"):
        load_sound(sound)


def test_a_file_that_is_open_is_read_as_far_as_the_limit(limit):
    class Endless(io.RawIOBase):
        def readable(self):
            return True

        def read(self, size=-1):
            return bytes(size)

    limit("100 MB")
    with pytest.raises(LensplugError, match="the file for a picture has .* bytes or more.*give its path"):
        load_image(Endless())

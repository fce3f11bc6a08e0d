"""What a file may be: an ordinary one, in a format of a list, that leads to no other file."""

from __future__ import annotations

import io
import os
import socket
import sys

import numpy as np
import pytest
import soundfile
from PIL import Image, ImageFile
from support.media_files import four_colours, tone, write_sound, write_video

from lensplug.errors import LensplugError
from lensplug.media import load_image, load_sound, load_video
from lensplug.media.files import as_file

LOADS = pytest.mark.parametrize("load", [load_image, load_sound, load_video])
unix = pytest.mark.skipif(sys.platform == "win32", reason="there are none")


def special(folder):
    """Each kind of file that is none, and what it is called."""
    os.mkfifo(folder / "fifo")
    (folder / "folder").mkdir()
    return {folder / "fifo": "a FIFO", folder / "folder": "a folder", "/dev/zero": "a device", "/dev/null": "a device"}


@unix
@LOADS
def test_what_is_no_ordinary_file_is_refused(load, tmp_path):
    for index, (path, what) in enumerate(special(tmp_path).items()):
        (link := tmp_path / f"link{index}.png").symlink_to(path)
        for source in (path, link, str(link), {"bytes": None, "path": str(path)}):
            with pytest.raises(LensplugError, match=f"is {what}, expected a file that is"):
                load(source)


@unix
@LOADS
def test_sockets_and_devices_that_are_open(load, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("a.png")
        with pytest.raises(LensplugError, match="is a socket, expected"):
            load("a.png")
    with open("/dev/zero", "rb") as device, pytest.raises(LensplugError, match="is a device, which may have no end"):
        load(device)
    if os.path.exists("/proc/self/mem"):
        with pytest.raises(LensplugError, match="is an empty file"):
            load("/proc/self/mem")


@LOADS
@pytest.mark.parametrize("path", ["a\0b.png", "~nobody-is-called-so/a.png", "a.png/b.png", "x" * 5000, "\udcff.png"])
def test_names_that_no_file_can_have(load, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LensplugError, match=r"there is no file|cannot be opened: File name too long"):
        load(path)


@unix
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    (tmp_path / "a.png").chmod(0)
    with pytest.raises(LensplugError, match="cannot be opened: Permission denied"):
        load_image(tmp_path / "a.png")


@unix
def test_a_link_to_a_file_is_read_and_what_was_opened_is_what_is_read(tmp_path):
    Image.fromarray(four_colours()).save(tmp_path / "a.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "a.png")
    assert load_image(tmp_path / "link.png").size == (64, 48)
    with as_file(tmp_path / "link.png", "a picture") as file:
        (tmp_path / "link.png").unlink()
        os.mkfifo(tmp_path / "link.png")
        assert load_image(file.opened().read()).size == (64, 48)
    assert file.stream.closed


def test_files_are_closed_again(tmp_path):
    Image.fromarray(four_colours()).save(tmp_path / "a.png")
    write_video(tmp_path / "a.mp4")
    write_sound(tmp_path / "a.m4a", tone(), "aac")
    (tmp_path / "b.png").write_bytes(b"nothing")
    count = lambda: len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0  # noqa: E731
    before = count()
    for load, name in ((load_image, "a.png"), (load_video, "a.mp4"), (load_sound, "a.m4a")):
        load(tmp_path / name)
        with pytest.raises(LensplugError):
            load(tmp_path / "b.png")
    assert count() == before


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) (w) file closefile\nshowpage\n"


def test_postscript_is_not_run_whatever_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr("subprocess.check_call", lambda *_, **__: pytest.fail("Ghostscript is run"))
    monkeypatch.setattr("subprocess.Popen.__init__", lambda *_, **__: pytest.fail("Ghostscript is run"))
    (tmp_path / "cat.png").write_bytes(POSTSCRIPT)
    with pytest.raises(LensplugError, match="not an image that can be read: it is none of AVIF, BMP, GIF"):
        load_image(tmp_path / "cat.png")
    with pytest.raises(LensplugError, match="is a file in EPS, which is not read: convert it to PNG"):
        load_image(Image.open(tmp_path / "cat.png"))


@pytest.mark.parametrize("form", ["ICO", "TGA", "PCX", "SGI", "IM"])
def test_formats_that_are_on_no_list(form):
    Image.fromarray(four_colours()).save(buffer := io.BytesIO(), form)
    with pytest.raises(LensplugError, match="it is none of AVIF, BMP.*save it as PNG there"):
        load_image(buffer.getvalue())


@pytest.mark.parametrize("form", ["BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP"])
def test_formats_that_are_on_the_list(form):
    Image.fromarray(four_colours()).save(buffer := io.BytesIO(), form)
    assert load_image(buffer.getvalue()).size == (64, 48)
    opened = Image.open(io.BytesIO(buffer.getvalue()))
    assert isinstance(opened, ImageFile.ImageFile) and load_image(opened).size == (64, 48)


PLAYLISTS = {
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{path}\n#EXT-X-ENDLIST\n",
    "concat": "ffconcat version 1.0\nfile '{path}'\n",
    "concat of files": "file '{path}'\n",
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet>'
    "<Representation id='0'><BaseURL>{path}</BaseURL></Representation></AdaptationSet></Period></MPD>",
    "session": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
    "a=rtpmap:96 H264/90000\n",
    "list of pictures": "{path}\n",
}


@pytest.mark.parametrize("name", PLAYLISTS)
def test_what_names_other_files_leads_to_none(name, tmp_path):
    write_video(tmp_path / "a.ts", form="mpegts", codec="libx264", sound=tone())
    content = PLAYLISTS[name].format(path=tmp_path / "a.ts").encode()
    for ending in ("m3u8", "ffconcat", "mpd", "sdp", "mp4", "%03d.png"):
        (tmp_path / f"list.{ending}").write_bytes(content)
        for source in (tmp_path / f"list.{ending}", content):
            with pytest.raises(LensplugError, match="is not a video that can be read"):
                load_video(source)
            with pytest.raises(LensplugError, match="is not a sound that can be read"):
                load_sound(source)


def test_a_codec_that_is_on_no_list(tmp_path):
    import av

    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("snow", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame(64, 48, "yuv420p")))
        container.mux(stream.encode(None))
    with pytest.raises(LensplugError, match=r"is in snow, which is not read: convert it \(ffmpeg -i IN"):
        load_video(tmp_path / "a.mkv")


@pytest.mark.parametrize("title", ["é".encode("latin-1"), b"\xff\xfe"])
def test_a_title_in_another_encoding_is_no_reason_to_read_nothing(tmp_path, title):
    import av

    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        container.metadata["title"] = "XX"[: len(title)]
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame(64, 48, "yuv420p")))
        container.mux(stream.encode(None))
    content = (tmp_path / "a.mp4").read_bytes()
    at = content.index(b"\xa9nam") + 20
    assert content[at : at + len(title)] == b"XX"[: len(title)]
    assert len(load_video(content[:at] + title + content[at + len(title) :])) == 3


def test_more_channels_than_a_sound_has():
    """Planes of which PyAV does not know: it read behind them."""
    soundfile.write(buffer := io.BytesIO(), np.zeros((100, 9)), 16000, format="WAV", subtype="FLOAT")
    content = bytearray(buffer.getvalue())
    with pytest.raises(LensplugError, match="has 9 channels, expected 1 to 8: give one of them"):
        load_sound(bytes(content))
    at = content.index(b"PEAK") + 4
    content[at : at + 4] = (16).to_bytes(4, "little")  # soundfile does not read it any more
    with pytest.raises(LensplugError, match="has 9 channels, expected 1 to 8"):
        load_sound(bytes(content))

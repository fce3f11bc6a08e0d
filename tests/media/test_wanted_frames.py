"""The frames that are taken are those of a whole decoding, though only what they need is decoded."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from support.media_files import times_of

from lensplug.errors import LensplugError
from lensplug.media import load_video, video_files


def moving(n_frames, seed=0, height=48, width=64):
    """Noise that moves and brightens: no two frames are alike, and each is told by those before."""
    still = np.random.default_rng(seed).integers(0, 120, (height, width, 3))
    return [(np.roll(still, 2 * at, axis=1) + at % 128).astype(np.uint8) for at in range(n_frames)]


def write(path, n_frames, codec, *, pts=None, form="yuv420p", **options):
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, form
        stream.options = {name.replace("_", "-"): str(value) for name, value in options.items()}
        for at, pixels in enumerate(moving(n_frames)):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = at if pts is None else pts[at], Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def whole(path):
    import av

    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.fixture
def ways(monkeypatch):
    """How files were read: "jumps", "no jumps" where that was tried in vain, "decoded" for each time through."""
    found = []
    jumps, decode = video_files._by_jumps, video_files._decode

    def noting_jumps(*arguments):
        frames = jumps(*arguments)
        found.append("no jumps" if frames is None else "jumps")
        return frames

    def noting_decoding(*arguments):
        found.append("decoded")
        return decode(*arguments)

    monkeypatch.setattr(video_files, "_by_jumps", noting_jumps)
    monkeypatch.setattr(video_files, "_decode", noting_decoding)
    return found


JUMPED = [
    ("a.mp4", "libx264", {"g": 60, "bf": 3}),
    ("a.mkv", "libx264", {"g": 60, "bf": 3, "x264_params": "open-gop=1"}),
    ("a.mov", "libx265", {"x265_params": "keyint=60:open-gop=1:log-level=none"}),
    ("a.webm", "libvpx-vp9", {"g": 60, "auto_alt_ref": 1, "lag_in_frames": 16, "deadline": "realtime", "cpu_used": 8}),
    ("a.mkv", "ffv1", {}),
]
DECODED = [
    ("a.webm", "libvpx", {"g": 60, "auto_alt_ref": 1, "lag_in_frames": 16, "deadline": "good", "cpu_used": 5}),
    ("a.mp4", "mpeg4", {"g": 60, "bf": 2}),
    ("a.avi", "mpeg4", {"g": 60, "bf": 2}),
    ("a.ts", "libx264", {"g": 60}),
    ("a.mpg", "mpeg2video", {"g": 60, "bf": 2}),
]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("name", "codec", "options"), [*JUMPED, *DECODED], ids=lambda value: str(value)[:24])
def test_the_frames_of_a_whole_decoding(tmp_path, ways, name, codec, options):
    path = write(tmp_path / name, 250, codec, **options)
    every = whole(path)
    for number in (1, 3, 16):
        ways.clear()
        video = load_video(path, num_frames=number)
        chosen = np.linspace(0, len(every) - 1, number).round().astype(int)
        assert np.array_equal(video.frames.numpy(), np.stack([every[at] for at in chosen]))
        if name not in ("a.avi", "a.mpg"):  # which do not say of B-frames when they are shown
            assert times_of(video) == pytest.approx((chosen / 25).tolist(), abs=2e-3)
        jumped = (name, codec, options) in JUMPED
        assert ways[0] == "jumps" if jumped else set(ways) == {"decoded"}


def test_what_is_jumped_over_is_not_decoded(tmp_path, ways):
    """It is destroyed, and nobody is the wiser."""
    import av

    path = write(tmp_path / "a.mp4", 600, "libx264", g=50, bf=2)
    expected = load_video(path, num_frames=4)  # 0, 200, 399 and 599
    content = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        for packet in container.demux(video=0):
            second = 0 if packet.pts is None else float(packet.pts * packet.time_base)
            if packet.size and not any(begin <= second < end for begin, end in ((0, 4), (8, 10), (14, 18), (22, 24))):
                content[packet.pos + 4 : packet.pos + packet.size] = bytes(packet.size - 4)
    video = load_video(bytes(content), num_frames=4)
    assert np.array_equal(video.frames, expected.frames) and ways == ["jumps", "jumps"]
    with pytest.warns(UserWarning, match="is damaged: its first .* frames are read"):
        load_video(bytes(content), num_frames=7)  # these need what is destroyed


def test_a_file_that_cannot_be_jumped_in_is_decoded_once(tmp_path, ways):
    load_video(write(tmp_path / "a.avi", 100, "mpeg4"))
    assert ways == ["decoded"]


def test_a_frame_that_is_not_where_its_packet_says_is_found_by_decoding(tmp_path, ways):
    """VP8 has packets that are shown nowhere: more of them than frames."""
    path = write(tmp_path / "a.webm", 120, "libvpx", g=60, auto_alt_ref=1, lag_in_frames=16, deadline="good")
    every = whole(path)
    video = load_video(path, num_frames=5)
    chosen = np.linspace(0, len(every) - 1, 5).round().astype(int)
    assert np.array_equal(video.frames.numpy(), np.stack([every[at] for at in chosen]))
    assert "jumps" not in ways


def test_keys_from_which_decoding_comes_right_only_later(tmp_path):
    """Pictures are renewed column by column: behind a key the first frames are not yet what they should be."""
    path = write(tmp_path / "a.mp4", 400, "libx264", g=60, x264_params="intra-refresh=1")
    every = whole(path)
    for number in range(2, 20):
        chosen = np.linspace(0, len(every) - 1, number).round().astype(int)
        assert np.array_equal(
            load_video(path, num_frames=number).frames.numpy(), np.stack([every[at] for at in chosen])
        )


def test_a_varying_rate_is_jumped_in_too(tmp_path, ways):
    pts = [at if at < 150 else 150 + 5 * (at - 150) for at in range(300)]
    path = write(tmp_path / "a.mkv", 300, "libx264", pts=pts, g=50)
    every, times = whole(path), np.asarray(pts) / 25
    with pytest.warns(UserWarning, match="9 are taken evenly in time"):
        video = load_video(path, num_frames=9)
    moments = np.linspace(times[0], times[-1], 9)
    shown = [every[max(at for at in range(300) if times[at] <= moment + 2e-3)] for moment in moments]
    assert np.array_equal(video.frames.numpy(), np.stack(shown)) and ways == ["jumps"]


def test_frames_that_change_their_size_are_refused(tmp_path):
    import av

    parts = []
    for width in (64, 96):
        with av.open(str(tmp_path / f"{width}.h264"), "w", format="h264") as container:
            stream = container.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = width, 48, "yuv420p"
            for pixels in moving(8, width=width):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode(None))
        parts.append((tmp_path / f"{width}.h264").read_bytes())
    with pytest.raises(LensplugError, match="differ in size: 64 x 48, and later 96 x 48"):
        load_video(b"".join(parts))

"""Real files as people have them, a second or less: photographs, videos of four colours, tones."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from lensplug.geometry import VideoGrid
from lensplug.media import Video

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
ORIENTATION = 0x0112


def four_colours(width: int = 64, height: int = 48) -> np.ndarray:
    """Red and green above, blue and white below."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2], pixels[: height // 2, width // 2 :] = RED, GREEN
    pixels[height // 2 :, : width // 2], pixels[height // 2 :, width // 2 :] = BLUE, WHITE
    return pixels


def corners(pixels: Any) -> list[str]:
    """The names of the colours: above left, above right, below left, below right."""
    names = {RED: "red", GREEN: "green", BLUE: "blue", WHITE: "white"}
    colors = np.asarray(pixels)[[6, 6, -7, -7], [6, -7, 6, -7]].astype(int)
    return [names[min(names, key=lambda name: np.abs(np.array(name) - color).sum())] for color in colors]


def tone(seconds: float = 1.0, rate: int = 16000, hertz: int = 300) -> np.ndarray:
    return (0.4 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def pitch(waveform: Any, rate: int) -> float:
    spectrum = np.abs(np.fft.rfft(np.asarray(waveform)))
    return float(np.fft.rfftfreq(len(waveform), 1 / rate)[spectrum.argmax()])


def write_video(
    path: Path,
    *,
    pts: list[int] | None = None,
    frames: list[np.ndarray] | None = None,
    codec: str = "mpeg4",
    pixel_ratio: Fraction | None = None,
    sound: np.ndarray | None = None,
    sound_pts: int = 0,
    form: str | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """A video of ten frames a second; `pts` in milliseconds."""
    import av

    frames = [four_colours()] * 10 if frames is None else frames
    pts = [100 * index for index in range(len(frames))] if pts is None else pts
    with av.open(str(path), "w", format=form, options=options or {}) as container:
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        if pixel_ratio is not None:
            stream.codec_context.sample_aspect_ratio = pixel_ratio
        heard = None if sound is None else container.add_stream("aac", rate=16000, layout="mono")
        for pixels, time_ms in zip(frames, pts, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = time_ms, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound is not None:
            mux_sound(container, heard, sound, first=sound_pts)
    return path


def times_of(video: Video | VideoGrid) -> list[float]:
    """When each frame is on the screen, in seconds: known here."""
    assert video.times_s is not None
    times: list[float] = video.times_s.tolist()
    return times


def mux_sound(container: Any, stream: Any, waveform: np.ndarray, *, form: str = "fltp", first: int = 0) -> None:
    import av

    for start in range(0, len(waveform), 960):
        frame = av.AudioFrame.from_ndarray(waveform[None, start : start + 960], format=form, layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 16000, first + start, Fraction(1, 16000)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def write_sound(
    path: Path, waveform: np.ndarray, codec: str, form: str = "fltp", options: dict[str, str] | None = None
) -> Path:
    import av

    with av.open(str(path), "w", options=options or {}) as container:
        mux_sound(container, container.add_stream(codec, rate=16000, layout="mono"), waveform, form=form)
    return path


def turn(path: Path, degrees: int, *, mirrored: bool = False) -> Path:
    """Write into an mp4, as telephones do, that players turn it clockwise: the matrix of its track header."""
    content = bytearray(path.read_bytes())
    offset = content.index(b"tkhd") + 4 + 40  # behind version, times, id, duration, layer, group and volume
    a, b, c, d = {0: (1, 0, 0, 1), 90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}[degrees]
    if mirrored:  # left and right, before it is turned
        a, b = -a, -b
    content[offset : offset + 36] = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path

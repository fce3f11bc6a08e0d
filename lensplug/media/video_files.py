"""The frames of a video file as an ordinary player shows them: upright, of square pixels, on the player's clock."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from PIL import Image

from lensplug.errors import LensplugError
from lensplug.media.files import File
from lensplug.media.warn import warn_user

SQUARE = (0.1, 10.0)
"""Sample aspect ratios beyond these are no such thing."""


@dataclass(frozen=True)
class Track:
    """What is known of a file when all of it has been read."""

    n_frames: int
    times_s: list[float] | None
    """When each is shown, from the beginning of the file (of its sound, where that begins first); None where the
    file does not say, as raw H.264."""


def read_video(file: File, num_frames: int) -> tuple[np.ndarray, list[float] | None]:
    """Frames `[frame height width 3]` taken evenly in time, and when each is on the screen, in seconds.

    Raises:
        LensplugError: If PyAV is missing, or the file has no pictures, one alone, or cannot be read.
    """
    av = pyav("video files need", "give the frames")
    # Twice through the file: how many frames there are, and when each is shown, is known at its end only.
    try:
        track = _track(av, file)
        chosen, times = _evenly(track, file, num_frames)
        wanted, pictures = set(chosen), {}
        for index, (frame, stream) in enumerate(_decode(av, file)):
            if index in wanted:
                pictures[index] = _as_shown(frame, stream)
            if index == chosen[-1]:
                break
    except (av.error.FFmpegError, IndexError) as error:
        raise LensplugError(f"{file} is not a video that can be read: {error}") from error
    return np.stack([pictures[index] for index in chosen]), times


def pyav(doing: str, instead: str) -> Any:
    """The module `av`.

    Raises:
        LensplugError: If it is not installed.
    """
    try:
        import av
    except ImportError:
        raise LensplugError(f"{doing} PyAV: pip install 'lensplug[video]' (or {instead}).") from None
    return av


def cut_short(file: File, said_s: float | None, found_s: float) -> None:
    """Warn where a file says that it is longer than what of it can be read."""
    if said_s is not None and said_s - found_s > max(0.5, 0.05 * said_s):
        warn_user(f"{file} is cut short: it says {said_s:.1f} s, and {found_s:.1f} s of it can be read.")


def seconds_of(container: Any, stream: Any) -> float | None:
    """How long a stream says that it is."""
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    if container.duration is not None and len(container.streams) == 1:
        return float(container.duration) / 1e6
    return None


def _track(av: Any, file: File) -> Track:
    times: list[float | None] = []
    said, start_s = None, 0.0
    try:
        for frame, stream in _decode(av, file):
            start_s = (stream.container.start_time or 0) / 1e6
            times.append(None if frame.time is None else frame.time - start_s)
            said = seconds_of(stream.container, stream)
    except av.error.FFmpegError:
        if not times:
            raise
        warn_user(f"{file} is damaged: its first {len(times)} frames are read.")
    if len(times) < 2:
        raise LensplugError(f"{file} holds {len(times)} frame(s): if it is a picture, give it as images=.")
    known = [max(time, 0.0) for time in times if time is not None]
    if len(known) < len(times) or any(after < before for before, after in pairwise(known)):
        return Track(len(times), None)
    cut_short(file, said, known[-1] + _usual(known) + max(start_s, 0.0))  # some count from 0, some from the start
    return Track(len(times), known)


def _usual(times: list[float]) -> float:
    return statistics.median(after - before for before, after in pairwise(times))


def _evenly(track: Track, file: File, num_frames: int) -> tuple[list[int], list[float] | None]:
    """The frames that are taken, and when each is on the screen.

    Evenly in number where that is evenly in time, else at even moments: what stays long is then taken several times.
    """
    number = min(num_frames, track.n_frames)
    by_number = np.linspace(0, track.n_frames - 1, number).round().astype(int).tolist()
    if track.times_s is None:
        return by_number, None
    times = np.asarray(track.times_s)
    moments = np.linspace(times[0], times[-1], number)
    if bool((np.abs(times[by_number] - moments) <= 1.5 * _usual(track.times_s) + 1e-6).all()):
        return by_number, times[by_number].tolist()
    gaps = np.diff(times)
    varies = f"the frames of {file} follow each other after {gaps.min():.3g} to {gaps.max():.3g} s"
    if number == track.n_frames:
        warn_user(f"{varies}: all {number} are taken, which are not even in time.")
        return by_number, times.tolist()
    warn_user(f"{varies}: {number} are taken evenly in time, each as it is on the screen at that moment.")
    shown = np.searchsorted(times, moments + 1e-6, side="right") - 1
    return shown.tolist(), moments.tolist()


def _decode(av: Any, file: File) -> Iterator[tuple[Any, Any]]:
    """Each frame and its stream."""
    with av.open(file.opened()) as container:
        # The cover of a song is a stream of pictures too.
        streams = [one for one in container.streams.video if not one.disposition & av.stream.Disposition.attached_pic]
        if not streams:
            sound = " It has sound: give it as audio=." if container.streams.audio else ""
            raise LensplugError(f"{file} has no moving pictures.{sound}")
        for frame in container.decode(streams[0]):
            yield frame, streams[0]


def _as_shown(frame: Any, stream: Any) -> np.ndarray:
    """A frame in RGB, on white where it is transparent, its pixels square, turned as the file says."""
    width, height = frame.width, frame.height
    ratio = float(stream.sample_aspect_ratio or 1)
    if SQUARE[0] < ratio < 1:
        height = round(height / ratio)  # always the larger way, as browsers do: no pixel is lost
    elif 1 < ratio < SQUARE[1]:
        width = round(width * ratio)
    if any(component.is_alpha for component in frame.format.components) or frame.format.name == "pal8":
        image = Image.fromarray(frame.reformat(width, height, "rgba").to_ndarray())
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        shown = np.asarray(Image.alpha_composite(white, image).convert("RGB"))
    else:
        shown = frame.reformat(width, height, "rgb24").to_ndarray()
    return np.ascontiguousarray(_turned(shown, frame))


def _turned(shown: np.ndarray, frame: Any) -> np.ndarray:
    """The frame rotated and mirrored as its display matrix says, which telephones write."""
    matrix = next((bytes(data) for data in frame.side_data if data.type.name == "DISPLAYMATRIX"), None)
    if matrix is None:
        return shown
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()  # x' = a x + c y, y' = b x + d y
    if abs(b) > abs(a):
        shown, a, d = shown.swapaxes(0, 1), c, b
    return shown[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]

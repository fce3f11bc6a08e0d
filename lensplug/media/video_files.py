"""The frames of a video file as an ordinary player shows them: upright, of square pixels, on the player's clock.

Packets are counted first, which decodes nothing. Where a frame can be found by its time, only what it takes to decode
the frames that are wanted is decoded; else the file is decoded once, and a second time where its packets told something
else of its frames than is in them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np

from lensplug.errors import LensplugError
from lensplug.media.containers import PICTURE_CODECS, cut_short, open_container, pyav, refuse_other_codecs, seconds_of
from lensplug.media.files import File, decoding
from lensplug.media.frame_choice import Choice, Track, choose
from lensplug.media.frame_pixels import as_shown, shown_size
from lensplug.media.limits import memory_limit, refuse_beyond_limit
from lensplug.media.video_packets import WORTHWHILE, Packets, read_packets
from lensplug.media.warn import warn_user

DECODER = 30
"""Bytes per pixel that decoders need in addition to the kept frames of 3 bytes per pixel."""
LEAST = 2**20
"""Pixels up to which a decoder is never stopped: those of small frames add a margin."""
COMMAND = "ffmpeg -i IN -c:v libx264 OUT.mp4"


@dataclass
class Frames:
    """The frames that are wanted, as they come."""

    file: File
    choice: Choice
    pixels: np.ndarray | None = None
    """`[frame height width 3]`; None before the first has come."""
    found: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Where each frame is wanted: one that stays long, in several places."""
        self._places: dict[int, list[int]] = {}
        for place, index in enumerate(self.choice.frames):
            self._places.setdefault(index, []).append(place)

    def take(self, index: int, frame: Any, stream: Any) -> None:
        """Keep a frame in every place where it is wanted.

        Raises:
            LensplugError: If it is larger than the memory limit allows, or of another size than those before.
        """
        if index not in self._places:
            return
        refuse_large(self.file, frame.width, frame.height, stream, len(self.choice.frames))
        pixels = as_shown(frame, stream)
        if self.pixels is None:
            self.pixels = np.empty((len(self.choice.frames), *pixels.shape), np.uint8)
        if pixels.shape != self.pixels.shape[1:]:
            sizes = f"{self.pixels.shape[2]} x {self.pixels.shape[1]}, and later {pixels.shape[1]} x {pixels.shape[0]}"
            raise LensplugError(f"the frames of {self.file} differ in size: {sizes}. Give those of one size as frames.")
        self.pixels[self._places[index]] = pixels
        self.found.add(index)

    @property
    def complete(self) -> bool:
        """Whether all have come."""
        return len(self.found) == len(self._places)


def read_video(file: File, num_frames: int) -> tuple[np.ndarray, list[float] | None]:
    """Frames `[frame height width 3]` taken evenly in time, and when each is on the screen, in seconds.

    Raises:
        LensplugError: If PyAV is missing, or the file has no frames, only one, cannot be read, or the frames that
            are wanted take more than the memory limit allows.
    """
    av = pyav("video files need", "give the frames")
    if _is_picture(file.begins()):
        raise LensplugError(f"{file} is a picture, not a video: give it as images=.")
    with decoding(file, "a video"):
        with _pictures(av, file) as (container, stream):
            declared_s = seconds_of(container, stream)
            start_s = max((container.start_time or 0) / 1e6, 0.0)
            packets = read_packets(container, stream)
            n_wanted = max(1, min(num_frames, packets.track.n_frames))
            refuse_large(file, stream.codec_context.width, stream.codec_context.height, stream, n_wanted)
        frames = _by_jumps(av, file, packets, num_frames) if packets.can_jump else None
        track = packets.track
        if frames is None:
            frames, track = _by_decoding(av, file, packets, num_frames)
    if track.times_s is not None:  # some count from 0, some from the start
        cut_short(file, declared_s, track.times_s[-1] + track.usual_s() + start_s)
    if frames.choice.warning:
        warn_user(frames.choice.warning)
    assert frames.pixels is not None
    return frames.pixels, frames.choice.times_s


def _is_picture(begins: bytes) -> bool:
    """Whether a file is a still image, by its first bytes; an animated PNG says so before its pixels."""
    still = (b"\x89PNG", b"\xff\xd8\xff", b"BM", b"II*\0", b"MM\0*")
    return begins.startswith(still) and b"acTL" not in begins or begins[8:12] == b"WEBP"


def refuse_large(file: File, width: int, height: int, stream: Any, n_frames: int) -> None:
    """Refuse frames that take too much memory.

    Raises:
        LensplugError: If the memory limit does not allow that many frames.
    """
    n_pixels = max(width * height, int(np.prod(shown_size(width, height, stream))))
    if n_pixels == 0:
        return
    fitting = (memory_limit() // n_pixels - DECODER) // 3
    fewer = f"take fewer frames (lensplug.media.load_video(file, num_frames={fitting}))"
    refuse_beyond_limit(
        n_pixels * (DECODER + 3 * n_frames),
        f"{n_frames} frame(s) of {width} x {height} pixels are wanted of {file}",
        fewer if fitting >= 2 else "make it smaller (ffmpeg -i IN -vf scale=1280:-2 OUT.mp4)",
    )


@contextmanager
def _pictures(av: Any, file: File) -> Iterator[tuple[Any, Any]]:
    """The file, opened again at its beginning, and its video stream."""
    with open_container(av, file, max_pixels=max(memory_limit() // DECODER, LEAST)) as container:
        # The cover of a song is a video stream too.
        streams = [
            frame for frame in container.streams.video if not frame.disposition & av.stream.Disposition.attached_pic
        ]
        if not streams:
            sound = " It has sound: give it as audio=." if container.streams.audio else ""
            raise LensplugError(f"{file} has no moving pictures.{sound}")
        refuse_other_codecs(streams[0], file, PICTURE_CODECS, COMMAND)
        yield container, streams[0]


def _by_jumps(av: Any, file: File, packets: Packets, num_frames: int) -> Frames | None:
    """Decode from the key before each frame that is wanted; None where one is not where its packet says."""
    if packets.track.n_frames < 2:
        return None
    frames, reached = Frames(file, choose(packets.track, str(file), num_frames)), None
    with _pictures(av, file) as (container, stream):
        decoded = container.decode(stream)
        try:
            for index in sorted(set(frames.choice.frames)):
                wanted_frames = packets.pts[index]
                key = packets.key_of(wanted_frames)
                if reached is not None and key > reached and packets.n_between(reached, key) > WORTHWHILE:
                    container.seek(key, stream=stream, backward=True)
                    decoded = container.decode(stream)
                    first = next(decoded)
                    # A key frame can also start a gradual refresh, after which frames are correct only later.
                    if first.pts is None or first.pts > key or first.pict_type != av.video.frame.PictureType.I:
                        return None
                    decoded = chain([first], decoded)
                frame = next(moment for moment in decoded if moment.pts is None or moment.pts >= wanted_frames)
                if frame.pts != wanted_frames or frame.is_corrupt:
                    return None
                frames.take(index, frame, stream)
                reached = wanted_frames
        except (av.error.FFmpegError, StopIteration):
            return None
    return frames


def _by_decoding(av: Any, file: File, packets: Packets, num_frames: int) -> tuple[Frames, Track]:
    """Decode all of it, once, or twice where its frames are others than its packets said."""
    frames = Frames(file, choose(packets.track, str(file), num_frames)) if packets.track.n_frames > 1 else None
    times: list[float | None] = []

    def keep(index: int, frame: Any, stream: Any) -> bool:
        times.append(None if frame.time is None else frame.time - (stream.container.start_time or 0) / 1e6)
        if frames is not None:
            frames.take(index, frame, stream)
        return True

    damaged = _decode(av, file, keep)
    if damaged is not None:
        if not times:
            raise damaged
        warn_user(f"{file} is damaged: its first {len(times)} frames are read.")
    if len(times) < 2:
        raise LensplugError(f"{file} holds {len(times)} frame(s): if it is a picture, give it as images=.")
    track = Track.at(times)
    choice = choose(track, str(file), num_frames)
    if frames is not None:
        if frames.complete and frames.choice.frames == choice.frames:
            return Frames(file, choice, frames.pixels, frames.found), track
        frames.pixels = None  # before others take its room
    again = Frames(file, choice)

    def keep_again(index: int, frame: Any, stream: Any) -> bool:
        again.take(index, frame, stream)
        return not again.complete

    _decode(av, file, keep_again)
    if not again.complete:
        raise LensplugError(f"{file} is not a video that can be read: it is damaged.")
    return again, track


def _decode(av: Any, file: File, keep: Callable[[int, Any, Any], bool]) -> Exception | None:
    """Each frame in its order, as long as they are wanted; what went wrong where the file is damaged."""
    with _pictures(av, file) as (container, stream):
        try:
            for index, frame in enumerate(container.decode(stream)):
                if not keep(index, frame, stream):
                    break
        except av.error.FFmpegError as error:
            damage: Exception = error
            return damage
    return None

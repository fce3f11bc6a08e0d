"""Frame count, times and key frames of a video, read from its packets before any frame is decoded."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from dataclasses import dataclass
from typing import Any

from lensplug.media.frame_choice import Track

SEEKABLE_FORMATS = {"mov", "matroska", "webm"}
"""Which find a frame by its time exactly."""
SEEKABLE_CODECS = {"h264", "hevc", "av1", "libdav1d", "vp9", "libvpx-vp9", "mjpeg", "prores", "dnxhd", "ffv1"}
"""Codecs with one frame per packet, in which decoding can start at any key frame."""
WORTHWHILE = 48
"""Frames that are decoded in vain rather than jumped over."""


@dataclass(frozen=True)
class Packets:
    """Packets in file order."""

    track: Track
    """Presentation times of the expected frames."""
    pts: list[int]
    """The time stamps of the frames in the order in which they are shown; empty where they are not known."""
    key_pts: list[int]
    """Presentation times of the key frames, at which decoding can begin."""
    can_jump: bool
    """Whether decoding can begin anywhere but at the beginning."""

    def key_of(self, pts: int) -> int:
        """The key frame at which decoding must begin for a frame."""
        return self.key_pts[bisect_right(self.key_pts, pts) - 1]

    def n_between(self, pts: int, later: int) -> int:
        """The number of frames that a seek skips."""
        return bisect_right(self.pts, later) - bisect_right(self.pts, pts)


def read_packets(container: Any, stream: Any) -> Packets:
    """Go through the file and decode nothing."""
    pts, keys, n_packets, n_unknown = array("q"), array("q"), 0, 0
    first_is_key = discards = False
    for packet in container.demux(stream):
        if packet.size == 0:
            continue
        if n_packets == 0:
            first_is_key = packet.is_keyframe
        if packet.is_discard:
            discards = True
            continue
        n_packets += 1
        if packet.pts is None:
            n_unknown += 1
            continue
        pts.append(packet.pts)
        if packet.is_keyframe:
            keys.append(packet.pts)
    ordered = sorted(pts)
    distinct = len(set(ordered)) == len(ordered)
    if n_unknown or not distinct or stream.time_base is None:
        return Packets(Track(n_packets, None), [], [], can_jump=False)
    start_s, base = (container.start_time or 0) / 1e6, stream.time_base
    times = [float(time_stamp) * float(base.numerator) / float(base.denominator) - start_s for time_stamp in ordered]
    key_pts = sorted(keys)
    can_jump = (
        first_is_key
        and not discards
        and bool(key_pts)
        and key_pts[0] == ordered[0]
        and bool(SEEKABLE_FORMATS & set(container.format.name.split(",")))
        and stream.codec_context.name in SEEKABLE_CODECS
    )
    return Packets(Track.at(list(times)), ordered, key_pts, can_jump=can_jump)

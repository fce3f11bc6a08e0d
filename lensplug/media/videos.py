"""Loading videos: files, or frames (with a frame rate)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageFile
from torch import Tensor

from lensplug.errors import LensplugError
from lensplug.media.files import as_file, is_file
from lensplug.media.images import as_array, as_uint8, load_image
from lensplug.media.limits import refuse_beyond_limit
from lensplug.media.video_files import read_video

BYTES_A_FRAME = 10
"""A pixel of a frame that is an image: Pillow keeps 4 bytes of it, and there are two arrays of 3 while they are
stacked."""


@dataclass(frozen=True)
class Video:
    """The frames that the model sees, in order."""

    frames: UInt8[Tensor, "frame height width 3"]
    times_s: Float[Tensor, " frame"] | None = None
    """When each frame is shown, in seconds of the original video; None where it is not known."""

    def __len__(self) -> int:
        """The number of frames."""
        return len(self.frames)

    @property
    def height(self) -> int:
        """Pixels of the original, not of what the vision tower gets."""
        return int(self.frames.shape[1])

    @property
    def width(self) -> int:
        """Pixels of the original."""
        return int(self.frames.shape[2])

    def image(self, frame: int) -> Image.Image:
        """One frame as an image."""
        return Image.fromarray(self.frames[frame].numpy())


def load_video(source: Any, *, num_frames: int = 16) -> Video:
    """A video from a file, or from its frames.

    Every frame costs positions (196 in LLaVA-OneVision), so a file is sampled; frames that are given are all taken.

    A file is shown as by a player: turned as it says (telephones write that), its pixels square, the time from its
    beginning. Where its frame rate varies, frames are taken at even moments, and a warning says so: a frame that stays
    long is taken several times.

    Only what it takes to decode the frames that are wanted is decoded, where a file finds a frame by its time (H.264,
    HEVC, VP9 and AV1 in mp4 and mkv); else the file is decoded once. Frames are taken as far as the memory limit allows
    (`limits.set_memory_limit`): unless it is changed, 16 of 4K (3840 x 2160) and 80 of 1920 x 1080. The sound of a
    video is not read.

    Args:
        source: A file (a path, bytes, a file that is open, or the dictionary of a data set); a `Video`; frames (a uint8
            array `[frame height width 3]` or `[frame 3 height width]`, or a list of PIL images, arrays or paths); a
            pair of frames and how many of them there are in a second, which gives each its time; or a decoder of
            torchcodec, as the data sets of Hugging Face give it.
        num_frames: How many frames to take from a file, evenly from the first to the last (all, if it has fewer).

    Raises:
        LensplugError: If it is none of these, frames differ in size or take more memory than the limit, or the file
            cannot be read.
    """
    if isinstance(source, Video):
        return source
    if isinstance(num_frames, bool) or not isinstance(num_frames, Integral) or num_frames < 1:
        raise LensplugError(f"num_frames is {num_frames!r}, expected a whole number, at least 1.")
    if is_file(source):
        with as_file(source, "a video") as file:
            pixels, times = read_video(file, int(num_frames))
        return Video(torch.from_numpy(pixels), None if times is None else torch.tensor(times))
    if hasattr(source, "get_frames_played_at"):
        return _of_decoder(source, int(num_frames))
    if _is_pair(source):
        frames, rate = source
        if isinstance(rate, bool) or not 0 < rate < float("inf"):
            raise LensplugError(f"the video has {rate} frames in a second, expected more than 0.")
        stacked = _stack(frames)
        return Video(stacked, torch.arange(len(stacked)) / float(rate))
    return Video(_stack(source))


def is_one_video(source: Any) -> bool:
    """Whether this is a single video, and not a list of them."""
    if isinstance(source, list | tuple) and not _is_pair(source):
        # A list of images is one video; a path in a list is a video file.
        return len(source) > 0 and all(
            isinstance(frame, Image.Image) or (isinstance(frame, np.ndarray | Tensor) and frame.ndim <= 3)
            for frame in source
        )
    if isinstance(source, np.ndarray | Tensor):
        return source.ndim < 5
    return isinstance(source, Video) or is_file(source) or hasattr(source, "get_frames_played_at") or _is_pair(source)


def _is_pair(source: Any) -> bool:
    return (
        isinstance(source, tuple)
        and len(source) == 2
        and isinstance(source[1], Real)
        and not isinstance(source[0], Real)
    )


def _stack(frames: Any) -> UInt8[Tensor, "frame height width 3"]:
    if isinstance(frames, np.ndarray | Tensor):
        array = as_array(frames)
        if array.ndim == 4 and array.shape[1] == 3 and array.shape[-1] != 3:
            array = array.transpose(0, 2, 3, 1)
        if array.ndim != 4 or array.shape[-1] != 3 or array.size == 0:
            raise LensplugError(
                f"frames are {array.dtype} of the shape {list(frames.shape)}, expected uint8 [frame, height, width, 3]"
                " (or [frame, 3, height, width])."
            )
        return torch.from_numpy(np.array(as_uint8(array, "the array of frames")))
    if not isinstance(frames, Sequence) or len(frames) == 0:
        raise LensplugError(
            f"a video is a {type(frames).__name__}, expected a path, frames (uint8 [frame, height, width, 3] or a list"
            " of pictures), or a pair of frames and frames in a second."
        )
    pictures: list[Image.Image] = []
    for frame in frames:
        pictures.append(load_image(frame))
        if is_file(frame) or isinstance(frame, ImageFile.ImageFile):  # what is in memory already has no limit
            width, height = pictures[-1].size
            refuse_beyond_limit(
                BYTES_A_FRAME * width * height * len(pictures),
                f"the video has {len(frames)} frames, of which {len(pictures)} have {width} x {height} pixels",
                "give fewer of them, or smaller ones",
            )
    if len(sizes := {picture.size for picture in pictures}) > 1:
        raise LensplugError(f"the frames of a video differ in size: {sorted(sizes)} (width, height).")
    return torch.stack([torch.from_numpy(np.asarray(picture).copy()) for picture in pictures])


def _of_decoder(source: Any, num_frames: int) -> Video:
    """Frames at even moments from a `torchcodec.decoders.VideoDecoder`."""
    count, about = len(source), source.metadata
    if count < 2:
        raise LensplugError(f"the video holds {count} frame(s): if it is a picture, give it as images=.")
    begin, end = float(about.begin_stream_seconds or 0), float(about.end_stream_seconds)
    last = end - (end - begin) / count  # the moment at which the last frame appears
    width, height = (getattr(about, name, None) or 0 for name in ("width", "height"))
    refuse_beyond_limit(
        2 * 3 * width * height * min(num_frames, count),
        f"{min(num_frames, count)} frames of {width} x {height} pixels are wanted of the video",
        "take fewer of them (num_frames=)",
    )
    moments = np.linspace(begin, last, min(num_frames, count)) + 1e-6
    frames = source.get_frames_played_at(seconds=moments.tolist()).data
    return Video(_stack(frames), torch.from_numpy(moments - 1e-6 - begin).float())

"""Videos as users have them: files, or frames (with how many there are in a second)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from lensplug.errors import LensplugError
from lensplug.media.images import as_array, load_image


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
        """One frame as a picture."""
        return Image.fromarray(self.frames[frame].numpy())


def load_video(source: Any, *, num_frames: int = 16) -> Video:
    """A video from a file, or from its frames.

    Every frame costs positions (196 in LLaVA-OneVision), so a file is sampled; frames that are given are all taken.

    Args:
        source: A path; a `Video`; frames (a uint8 array `[frame height width 3]`, or a list of PIL images, arrays or
            paths); or a pair of frames and how many of them there are in a second, which gives each its time.
        num_frames: Of a file, so many frames are taken, evenly from the first to the last (all, if it has fewer).

    Raises:
        LensplugError: If it is none of these, frames differ in size, or the file cannot be read.
    """
    if isinstance(source, Video):
        return source
    if isinstance(source, str | Path):
        return _read(Path(source), num_frames)
    if _is_pair(source):
        frames, rate = source
        if not 0 < rate < float("inf"):
            raise LensplugError(f"the video has {rate} frames in a second, expected more than 0.")
        stacked = _stack(frames)
        return Video(stacked, torch.arange(len(stacked)) / float(rate))
    return Video(_stack(source))


def is_one_video(source: Any) -> bool:
    """Whether this is a single video, and not a list of them."""
    if isinstance(source, list | tuple) and not _is_pair(source):
        # A list of pictures is one video; a path in a list is a video file.
        return len(source) > 0 and all(
            isinstance(frame, Image.Image) or (isinstance(frame, np.ndarray | Tensor) and frame.ndim <= 3)
            for frame in source
        )
    return isinstance(source, Video | str | Path | np.ndarray | Tensor) or _is_pair(source)


def _is_pair(source: Any) -> bool:
    return (
        isinstance(source, tuple)
        and len(source) == 2
        and isinstance(source[1], Real)
        and not isinstance(source[0], Real)
    )


def _stack(frames: Any) -> UInt8[Tensor, "frame height width 3"]:
    if isinstance(frames, np.ndarray | Tensor):
        array = torch.as_tensor(as_array(frames))
        if array.dtype != torch.uint8 or array.ndim != 4 or array.shape[-1] != 3 or len(array) == 0:
            raise LensplugError(
                f"frames are {str(array.dtype).removeprefix('torch.')} of the shape {list(array.shape)}, expected uint8"
                " [frame, height, width, 3]."
            )
        return array
    if not isinstance(frames, Sequence) or len(frames) == 0:
        raise LensplugError(
            f"a video is a {type(frames).__name__}, expected a path, frames (uint8 [frame, height, width, 3] or a list"
            " of pictures), or a pair of frames and frames in a second."
        )
    pictures = [load_image(frame) for frame in frames]
    if len(sizes := {picture.size for picture in pictures}) > 1:
        raise LensplugError(f"the frames of a video differ in size: {sorted(sizes)} (width, height).")
    return torch.stack([torch.from_numpy(np.asarray(picture).copy()) for picture in pictures])


def _read(path: Path, num_frames: int) -> Video:
    if not path.is_file():
        raise LensplugError(f"there is no file {str(path)!r}.")
    if num_frames < 1:
        raise LensplugError(f"num_frames is {num_frames}, expected at least 1.")
    try:
        import av
    except ImportError:
        raise LensplugError("video files need PyAV: pip install 'lensplug[video]' (or give the frames).") from None

    try:
        # Twice through the file: how many frames there are, and when each is shown, is known at its end only.
        times = [float(frame.time or 0.0) for frame in _decode(path)]
        wanted = set(np.linspace(0, len(times) - 1, min(num_frames, len(times))).round().astype(int).tolist())
        frames = [frame.to_ndarray(format="rgb24") for index, frame in enumerate(_decode(path)) if index in wanted]
    except (av.error.FFmpegError, IndexError) as error:
        raise LensplugError(f"{str(path)!r} is not a video that can be read: {error}") from error
    if len(times) < 2:
        raise LensplugError(f"{str(path)!r} holds {len(times)} frame(s): if it is a picture, give it as images=.")
    return Video(_stack(np.stack(frames)), torch.tensor(times)[sorted(wanted)])


def _decode(path: Path) -> Iterator[Any]:
    import av

    with av.open(str(path)) as container:
        yield from container.decode(video=0)

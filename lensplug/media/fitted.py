"""Media as large or as long as others, in whose places they are put.

A picture of another size has other positions, and nothing that is read at one position could be compared. So it is
resized as a whole, with its proportions, as models do that see every picture as a square. Time is not stretched: a
sound that is longer is cut, and one that is shorter is followed by silence. Of a video, frames are taken at the same
fractions of its length.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from lensplug.media.sounds import Sound
from lensplug.media.videos import Video


def fitted_image(image: Image.Image, like: Image.Image) -> Image.Image:
    """The image in the size of another (bicubic)."""
    return image if image.size == like.size else image.resize(like.size, Image.Resampling.BICUBIC)


def fitted_video(video: Video, like: Video) -> Video:
    """The video with as many frames as another, of its size, at its times; a short one shows frames several times."""
    chosen = np.linspace(0, len(video) - 1, len(like)).round().astype(int).tolist()
    if (video.width, video.height) == (like.width, like.height):
        return replace(like, frames=video.frames[chosen])
    frames = torch.empty_like(like.frames)
    for index, frame in enumerate(chosen):
        resized = video.image(frame).resize((like.width, like.height), Image.Resampling.BICUBIC)
        frames[index] = torch.from_numpy(np.array(resized))
    return replace(like, frames=frames)


def fitted_sound(sound: Sound, like: Sound) -> Sound:
    """The sound at the sampling rate and of the length of another."""
    waveform = sound.at_rate(like.sampling_rate).waveform[: len(like.waveform)]
    quiet = waveform.new_zeros(len(like.waveform) - len(waveform))
    return Sound(torch.cat([waveform, quiet]), like.sampling_rate)

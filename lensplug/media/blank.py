"""Blank media: a picture, video or sound that says nothing, as large or as long as the one in whose place it is put.

What a blank says matters as much as that it is blank: black is an answer to a question about colour, and the edge of a
hole is a shape. So there are three for pictures:

- "grey", the middle of the scale (128, 128, 128), holds nothing of the picture: the default. It is also near 0 behind
  the normalisation of most image processors.
- "mean", the picture's own mean colour, makes fainter edges, and still tells the picture's colour.
- "blur", the picture seen through a Gaussian whose standard deviation is an eighth of the longer side, takes the shapes
  away, and leaves colours near their places.

A video has the same three, frame by frame; its "mean" is the mean colour of each frame. A sound has silence, and can be
muffled: as speech is heard through a wall, when melody, loudness and pauses are left of it and no word can be
understood (low-pass filtered speech: Scherer 1971, "Randomized splicing", J. Exp. Res. Personality 5).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageFilter

from lensplug.media.sounds import Sound
from lensplug.media.videos import Video

Blank = Literal["grey", "mean", "blur"]
"""What a picture is replaced by."""
GREY = 128
BLURRED = 1 / 8
"""Standard deviation of the blur, as a fraction of the longer side."""
MUFFLED_HZ = 300.0
"""Above most voices' pitch, and below what tells vowels and consonants apart."""


def blank_image(image: Image.Image, blank: Blank = "grey") -> Image.Image:
    """A blank picture of the same size.

    Args:
        image: An RGB image.
        blank: What it holds.
    """
    if blank == "blur":
        return image.filter(ImageFilter.GaussianBlur(max(image.size) * BLURRED))
    colour = (GREY, GREY, GREY)
    if blank == "mean":
        red, green, blue = np.asarray(image).reshape(-1, 3).mean(axis=0).round().astype(int).tolist()
        colour = (red, green, blue)
    return Image.new("RGB", image.size, colour)


def blank_video(video: Video, blank: Blank = "grey") -> Video:
    """Blank frames of the same size, at the same times."""
    if blank == "grey":
        return replace(video, frames=torch.full_like(video.frames, GREY))
    frames = torch.empty_like(video.frames)
    for index in range(len(video)):
        frames[index] = torch.from_numpy(np.array(blank_image(video.image(index), blank)))
    return replace(video, frames=frames)


def silence(sound: Sound) -> Sound:
    """Silence of the same length."""
    return Sound(torch.zeros_like(sound.waveform), sound.sampling_rate)


def muffled(sound: Sound) -> Sound:
    """The sound through a Gaussian low-pass filter, of half the amplitude at 300 Hz; as long."""
    spectrum = torch.fft.rfft(sound.waveform.double())
    frequency = torch.fft.rfftfreq(len(sound.waveform), 1 / sound.sampling_rate, dtype=torch.double)
    passed = spectrum * 0.5 ** (frequency / MUFFLED_HZ).square()
    return Sound(torch.fft.irfft(passed, n=len(sound.waveform)).float(), sound.sampling_rate)

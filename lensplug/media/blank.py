"""Blank media: a picture, video or sound that says nothing, as large or as long as the one in whose place it is put.

What a blank says matters as much as that it is blank: black is an answer to a question about colour, and the edge of a
hole is a shape. So there are three for pictures:

- "grey", the middle of the scale (128, 128, 128), holds nothing of the picture: the default. It is also near 0 behind
  the normalisation of most image processors.
- "mean", the picture's own mean colour, makes fainter edges, and still tells the picture's colour.
- "blur", the picture seen through a Gaussian whose standard deviation is an eighth of the longer side, takes the shapes
  away, and leaves colours near their places.

Sounds have one, silence.
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


def blank_video(video: Video) -> Video:
    """Grey frames of the same size."""
    return replace(video, frames=torch.full_like(video.frames, GREY))


def silence(sound: Sound) -> Sound:
    """Silence of the same length."""
    return Sound(torch.zeros_like(sound.waveform), sound.sampling_rate)

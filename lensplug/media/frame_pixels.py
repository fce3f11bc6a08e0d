"""A decoded frame as a player shows it: in RGB, upright, its pixels square, on white where it is transparent."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

SQUARE = (0.1, 10.0)
"""Sample aspect ratios beyond these are no such thing."""


def shown_size(width: int, height: int, stream: Any) -> tuple[int, int]:
    """Width and height with square pixels, before it is turned."""
    ratio = float(stream.sample_aspect_ratio or 1)
    if SQUARE[0] < ratio < 1:
        height = round(height / ratio)  # always the larger way, as browsers do: no pixel is lost
    elif 1 < ratio < SQUARE[1]:
        width = round(width * ratio)
    return width, height


def as_shown(frame: Any, stream: Any) -> np.ndarray:
    """A frame `[height width 3]`."""
    width, height = shown_size(frame.width, frame.height, stream)
    if any(component.is_alpha for component in frame.format.components) or frame.format.name == "pal8":
        image = Image.fromarray(frame.reformat(width, height, "rgba").to_ndarray())
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        pixels = np.asarray(Image.alpha_composite(white, image).convert("RGB"))
    else:
        pixels = frame.reformat(width, height, "rgb24").to_ndarray()
    return np.ascontiguousarray(_turned(pixels, frame))


def _turned(pixels: np.ndarray, frame: Any) -> np.ndarray:
    """The frame rotated and mirrored as its display matrix says, which telephones write."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return pixels
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()  # x' = a x + c y, y' = b x + d y
    if abs(b) > abs(a):
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    return pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]

"""Pictures as users have them: files, arrays, PIL images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from lensplug.errors import LensplugError


def load_image(source: Any) -> Image.Image:
    """A picture as RGB, from a PIL image, an array `[height width (channel)]` of uint8, or a path.

    Raises:
        LensplugError: If it is none of these, or the file is no image.
    """
    if isinstance(source, Image.Image):
        return _rgb(source)
    if isinstance(source, Tensor | np.ndarray):
        array = as_array(source)
        if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
            raise LensplugError(
                f"an image array is {array.dtype} of the shape {list(array.shape)}, expected uint8 [height, width, 3]."
            )
        if array.size == 0:
            raise LensplugError(f"an image array has the shape {list(array.shape)}: it has no pixels.")
        return _rgb(Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array))
    if isinstance(source, str | Path):
        try:
            with Image.open(source) as image:
                return _rgb(ImageOps.exif_transpose(image))
        except FileNotFoundError:
            raise LensplugError(f"there is no file {str(source)!r}.") from None
        except (UnidentifiedImageError, OSError) as error:
            raise LensplugError(f"{str(source)!r} is not an image that can be read: {error}") from error
    raise LensplugError(f"an image is a {type(source).__name__}, expected a PIL image, a uint8 array or a path.")


def is_one_image(source: Any) -> bool:
    """Whether this is a single picture, and not a list of them."""
    return isinstance(source, Image.Image | str | Path | np.ndarray | Tensor)


def _rgb(image: Image.Image) -> Image.Image:
    """As RGB, what is transparent on white: as transformers 5.23 does, and whoever shows it.

    Pillow would show what lies hidden under transparent pixels, and make a picture of more than 8 bits white nearly
    everywhere.
    """
    if image.mode[0] in "IF":
        raise LensplugError(
            f"the image has pixels of mode {image.mode!r}, more than 8 bits: scale it to 0..255 and give a uint8 array."
        )
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    return image.convert("RGB")


def as_array(source: Tensor | np.ndarray) -> np.ndarray:
    """An array of a tensor or an array, on the CPU; of floats that NumPy does not know, as fp32."""
    if isinstance(source, Tensor):
        source = source.detach().cpu()
        source = (source.float() if source.is_floating_point() else source).numpy()
    return np.asarray(source)

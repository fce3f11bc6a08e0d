"""Loading images: files, arrays, PIL images; as an ordinary viewer shows them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from lensplug.errors import LensplugError
from lensplug.media.files import as_file, decoding, is_file
from lensplug.media.image_files import open_image, refuse_undecoded
from lensplug.media.warn import warn_user

CHANNELS = (1, 3, 4)
"""Grey, RGB, RGB with transparency."""
T = TypeVar("T")


def load_image(source: Any, *, upright: bool = True) -> Image.Image:
    """An image as RGB, as a browser shows it: turned as its EXIF says, what is transparent on white.

    For an animation it is the current frame of a PIL image, or the first frame of a file, with a warning. Files are
    read in the formats of `image_files.FORMATS` only, within the memory limit (`limits.set_memory_limit`): by default
    up to 89 megapixels.

    Args:
        source: A PIL image; a file (a path, bytes, a file that is open, or the dictionary of a data set); or an
            array or tensor `[height width (channel)]` (or `[channel height width]`, as torchvision has them) of
            uint8, of bool, or of floats from 0 to 1.
        upright: Turn it as its EXIF says; else it is as it is stored.

    Raises:
        LensplugError: If it is none of these, the file is no image or beyond the limit, or its pixels do not say how
            bright they are.
    """
    return _decoded(source, _upright if upright else _stored)


def both_ways(source: Any) -> tuple[Image.Image, Image.Image]:
    """An image with EXIF orientation applied, and as stored; the same object if there is no orientation."""
    return _decoded(source, _both)


def _decoded(source: Any, convert: Callable[[Image.Image], T]) -> T:
    """The result of a conversion of the decoded image, whatever its source."""
    if isinstance(source, Tensor | np.ndarray):
        return convert(_of_array(as_array(source)))
    if isinstance(source, Image.Image):
        with decoding("the image", "an image"):
            refuse_undecoded(source)
            return convert(_loaded(source))
    if not is_file(source):
        raise LensplugError(
            f"an image is a {type(source).__name__}, expected a PIL image, a path (or bytes, or a file that is open),"
            " or an array of uint8."
        )
    with as_file(source, "a picture") as file, decoding(file, "an image"), open_image(file) as image:
        return convert(_loaded(image))


def is_one_image(source: Any) -> bool:
    """Whether this is a single image, and not a list of them."""
    if isinstance(source, np.ndarray | Tensor):
        return source.ndim < 4
    return isinstance(source, Image.Image) or is_file(source)


def _loaded(image: Image.Image) -> Image.Image:
    if image.width == 0 or image.height == 0:
        raise LensplugError(f"an image has the size {image.size}: it has no pixels.")
    # A photograph in MPO has a preview behind it, which no viewer shows.
    n_frames = getattr(image, "n_frames", 1)
    if n_frames > 1 and image.format != "MPO":
        warn_user(
            f"the picture has {n_frames} frames, of which the model sees number {image.tell()}: an animation can"
            " be given as videos=, a list of its frames."
        )
    image.load()
    return image


def _is_turned(image: Image.Image) -> bool:
    return image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)


def _upright(image: Image.Image) -> Image.Image:
    return _rgb(ImageOps.exif_transpose(image) if _is_turned(image) else image)


def _stored(image: Image.Image) -> Image.Image:
    """As stored, without its EXIF orientation, so that it is not rotated a second time."""
    return Image.fromarray(np.asarray(_rgb(image))) if _is_turned(image) else _rgb(image)


def _both(image: Image.Image) -> tuple[Image.Image, Image.Image]:
    upright = _upright(image)
    return upright, _stored(image) if _is_turned(image) else upright


def _rgb(image: Image.Image) -> Image.Image:
    """As RGB, with transparency on white, as transformers 5.23 and viewers do.

    Pillow would reveal colors hidden under transparent pixels, and render 16-bit images nearly all white.
    """
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image).astype(np.float64) / 257).round().astype(np.uint8))
    if image.mode[0] in "IF":
        raise LensplugError(
            f"the image has pixels of mode {image.mode!r}, which do not say what is white: scale it to 0..255 and give"
            " a uint8 array."
        )
    if "A" in image.getbands() or "a" in image.getbands() or image.info.get("transparency") is not None:
        image = image if image.mode == "RGBA" else image.convert("RGBA")  # convert copies what needs no conversion
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    rgb = image.convert("RGB")  # another object, even if nothing is converted
    rgb.info = {}  # who took it, where, and with what: Pillow would write comments into the JPEG of a page
    return rgb


def _of_array(array: np.ndarray) -> Image.Image:
    shape = list(array.shape)
    if array.ndim == 3 and array.shape[2] not in CHANNELS and array.shape[0] in CHANNELS:
        array = array.transpose(1, 2, 0)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in CHANNELS):
        raise LensplugError(
            f"an image array is {array.dtype} of the shape {shape}, expected uint8 [height, width, 3] (or [3, height,"
            " width])."
        )
    if array.size == 0:
        raise LensplugError(f"an image array has the shape {shape}: it has no pixels.")
    array = np.ascontiguousarray(as_uint8(array, "an image array"))
    return _rgb(Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array))


def as_uint8(array: np.ndarray, what: str) -> np.ndarray:
    """Pixels from 0 to 255, of uint8, bool, or floats from 0 to 1.

    Raises:
        LensplugError: If they are other integers, floats out of that range, or not finite.
    """
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    if not np.issubdtype(array.dtype, np.floating):
        raise LensplugError(
            f"{what} is {array.dtype} of the shape {list(array.shape)}, expected uint8: if 255 is white,"
            " .astype('uint8'); else scale it first."
        )
    if not np.isfinite(array).all():
        raise LensplugError(f"{what} has {int((~np.isfinite(array)).sum())} values that are NaN or infinite.")
    low, high = float(array.min()), float(array.max())
    if low < 0 or high > 1:
        raise LensplugError(
            f"{what} is {array.dtype} from {low:.4g} to {high:.4g}, expected uint8, or floats from 0 to 1: undo a"
            " normalisation; divide by 255 where that is white."
        )
    pixels: np.ndarray = (array * 255).round().astype(np.uint8)
    return pixels


def as_array(source: Tensor | np.ndarray) -> np.ndarray:
    """An array of a tensor or an array, on the CPU; of floats that NumPy does not know, as fp32."""
    if isinstance(source, Tensor):
        source = source.detach().cpu()
        source = (source.float() if source.is_floating_point() else source).numpy()
    return np.asarray(source)

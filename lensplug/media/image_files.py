"""Image files read with Pillow: only allowed formats, within the memory limit."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image, ImageFile, UnidentifiedImageError

from lensplug.errors import LensplugError
from lensplug.media.files import File
from lensplug.media.limits import refuse_beyond_limit

FORMATS = ("AVIF", "BMP", "GIF", "HEIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
"""Allowed formats. Others that Pillow supports are left out: EPS runs Ghostscript, QOI is decoded in Python, icons
contain other files, and most are obsolete. HEIF is available once pillow-heif is registered."""
BYTES_A_PIXEL = 12
"""What reading takes: Pillow keeps 4 bytes a pixel, and up to three images while it converts one."""
HEIC = (b"ftypheic", b"ftypheix", b"ftypmif1")
OF_TELEPHONES = "It is HEIC, of a telephone: pip install pillow-heif, and call pillow_heif.register_heif_opener()."
PILLOWS = 2**30 // 12
"""The pixels from which Pillow warns, unless its user sets another number; from twice as many it refuses."""

_LOCK = threading.Lock()


@contextmanager
def open_image(file: File) -> Iterator[Image.Image]:
    """An opened image file; no pixel is decoded yet.

    Raises:
        LensplugError: If it has another format, or more pixels than the memory limit allows.
    """
    refuse_beyond_limit(file.size, f"{file} is a picture file of {file.size} bytes", "make it smaller")
    try:
        with _without_pillows_limit():
            image = Image.open(file.opened(), formats=_registered())
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise LensplugError(
            f"{file} has too many pixels for this process, which has set PIL.Image.MAX_IMAGE_PIXELS to"
            f" {Image.MAX_IMAGE_PIXELS}: {error} Set that higher (None leaves it to lensplug), or make it smaller."
        ) from error
    except UnidentifiedImageError:
        raise LensplugError(f"{file} is not an image that can be read: {_why_unknown(file.begins())}") from None
    with image:
        refuse_undecoded(image, str(file))
        yield image


def refuse_undecoded(image: Image.Image, name: str = "the image") -> None:
    """Refuse a file that Pillow has opened, before it is decoded.

    Raises:
        LensplugError: If it has another format, or more pixels than the memory limit allows.
    """
    if not isinstance(image, ImageFile.ImageFile):
        return
    if image.format not in FORMATS and image.tile:
        raise LensplugError(f"{name} is a file in {image.format}, which is not read: convert it to PNG.")
    n_pixels = image.width * image.height
    refuse_beyond_limit(
        n_pixels * BYTES_A_PIXEL,
        f"{name} has {image.width} x {image.height} = {n_pixels / 1e6:.1f} megapixels",
        "make it smaller (models see a few megapixels at most)",
    )


def _registered() -> list[str]:
    """The allowed formats that are registered: Pillow raises KeyError for others."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]  # MPO is opened as JPEG


def _why_unknown(begins: bytes) -> str:
    if begins[4:12] in HEIC:
        return f"Pillow knows no such format. {OF_TELEPHONES}"
    return f"it is none of {', '.join(FORMATS)}. If another program shows it, save it as PNG there."


@contextmanager
def _without_pillows_limit() -> Iterator[None]:
    """Lift Pillow's limit while a file is opened, and check ours afterwards; a lower limit set by the user stays."""
    with _LOCK:
        before = Image.MAX_IMAGE_PIXELS
        if before is not None and before >= PILLOWS:
            Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before

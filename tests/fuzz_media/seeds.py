"""Small real files of each kind, several of each: what is then mutated."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image, PngImagePlugin, features
from support.media_files import ORIENTATION, four_colours, tone, write_sound, write_video

from fuzz_media import repair

BITEXACT = {"fflags": "bitexact"}
"""So that a file is the same whenever it is written: else Matroska's have a random number in them."""


def _picture() -> Image.Image:
    """Four colours under noise: something to compress."""
    noise = np.random.default_rng(0).integers(0, 60, (48, 64, 3), dtype=np.uint8)
    return Image.fromarray(four_colours() // 2 + noise)


def _frames(n: int = 6) -> list[Image.Image]:
    return [_picture().rotate(20 * index) for index in range(n)]


def _saved(image: Image.Image, form: str, **options: Any) -> bytes:
    image.save(buffer := io.BytesIO(), form, **options)
    return buffer.getvalue()


def _png() -> list[bytes]:
    about = PngImagePlugin.PngInfo()
    about.add_text("about", "a picture", zip=True)
    about.add_itxt("more", "of it", zip=True)
    grey = Image.fromarray(np.arange(48 * 64, dtype=np.uint16).reshape(48, 64) * 20)
    return [
        _saved(_picture(), "PNG", pnginfo=about, icc_profile=b"\0" * 400),
        _saved(_picture().quantize(16), "PNG", transparency=3),
        _saved(_picture().convert("RGBA"), "PNG"),
        _saved(grey, "PNG"),
        _animated("PNG"),
    ]


def _jpeg() -> list[bytes]:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    return [
        _saved(_picture(), "JPEG", exif=exif),
        _saved(_picture(), "JPEG", progressive=True, icc_profile=b"\0" * 400),
        _saved(_picture().convert("CMYK"), "JPEG"),
        _saved(_picture(), "MPO", save_all=True, append_images=_frames(2)),
    ]


def _animated(form: str, **options: Any) -> bytes:
    frames = _frames()
    return _saved(frames[0], form, save_all=True, append_images=frames[1:], duration=100, **options)


def _tiff() -> list[bytes]:
    ways = ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"]
    pages = _frames(3)
    return [_saved(_picture(), "TIFF", compression=way) for way in ways] + [
        _saved(pages[0], "TIFF", save_all=True, append_images=pages[1:]),
        _saved(_picture().convert("1"), "TIFF", compression="group4"),
    ]


def _webp() -> list[bytes]:
    pictures = [_saved(_picture(), "WEBP"), _saved(_picture().convert("RGBA"), "WEBP", lossless=True)]
    return [*pictures, _animated("WEBP")]


def _bmp() -> list[bytes]:
    return [_saved(one, "BMP") for one in (_picture(), _picture().quantize(16), _picture().convert("1"))]


def _sound(form: str, subtypes: list[str]) -> list[bytes]:
    files = []
    for subtype in subtypes:
        for channels in (1, 2):
            samples = np.stack([tone(0.5)] * channels, axis=1)
            soundfile.write(buffer := io.BytesIO(), samples, 16000, format=form, subtype=subtype)
            files.append(buffer.getvalue())
    return [_with_number(content) for content in files] if form == "OGG" else files


def _with_number(content: bytes) -> bytes:
    """With one number in the place of the random one that each page of an Ogg file has."""
    return repair.ogg(content.replace(content[14:18], b"lens"))


def _written(write: Callable[..., Path], name: str, *arguments: Any, **options: Any) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return write(Path(folder) / name, *arguments, **options).read_bytes()


def _moving(*names: tuple[str, str], options: dict[str, str] | None = None, **more: Any) -> list[bytes]:
    frames, options = [np.asarray(one) for one in _frames(8)], {**BITEXACT, **(options or {})}
    return [_written(write_video, name, codec=codec, frames=frames, options=options, **more) for name, codec in names]


def _mp4() -> list[bytes]:
    return [
        *_moving(("a.mp4", "libx264"), ("a.mp4", "mpeg4")),
        *_moving(("a.mp4", "libx264"), sound=tone(0.5)),
        *_moving(("a.mp4", "libx264"), options={"movflags": "faststart"}),
    ]


SEEDS: dict[str, dict[str, Callable[[], list[bytes]]]] = {
    "image": {
        "png": _png,
        "jpeg": _jpeg,
        "webp": _webp,
        "gif": lambda: [_saved(_picture(), "GIF"), _animated("GIF", disposal=2)],
        "tiff": _tiff,
        "bmp": _bmp,
        "ppm": lambda: [_saved(_picture(), "PPM"), _saved(_picture().convert("L"), "PPM")],
        "jpeg 2000": lambda: [_saved(_picture(), "JPEG2000"), _saved(_picture(), "JPEG2000", no_jp2=True)],
        "avif": lambda: [_saved(_picture(), "AVIF")] if features.check("avif") else [],
    },
    "sound": {
        "wav": lambda: _sound("WAV", ["PCM_16", "FLOAT", "PCM_U8", "MS_ADPCM"]),
        "flac": lambda: _sound("FLAC", ["PCM_16"]),
        "ogg": lambda: _sound("OGG", ["VORBIS", "OPUS"]),
        "mp3": lambda: _sound("MP3", ["MPEG_LAYER_III"]),
        "aiff": lambda: _sound("AIFF", ["PCM_16"]),
        "m4a": lambda: [_written(write_sound, "a.m4a", tone(0.5), "aac")],
        "webm sound": lambda: [_written(write_sound, "a.webm", tone(0.5), "libopus", "flt", BITEXACT)],
    },
    "video": {
        "mp4": _mp4,
        "mkv": lambda: _moving(("a.mkv", "libx264"), ("a.mkv", "mpeg4"), sound=tone(0.5)),
        "webm": lambda: _moving(("a.webm", "libvpx"), ("a.webm", "libvpx-vp9")),
        "avi": lambda: _moving(("a.avi", "mpeg4"), ("a.avi", "ffv1")),
        "ts": lambda: _moving(("a.ts", "libx264"), form="mpegts"),
        "moving gif": lambda: [_animated("GIF", disposal=2), _animated("GIF")],
    },
}


@cache
def seeds_of(kind: str) -> list[bytes]:
    """The files of a kind, from the smallest to the largest."""
    make = next(kinds[kind] for kinds in SEEDS.values() if kind in kinds)
    return sorted(make(), key=len)

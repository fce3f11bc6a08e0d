"""Media files read with PyAV: only allowed formats and codecs, and only the file itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lensplug.errors import LensplugError
from lensplug.media.files import File
from lensplug.media.warn import warn_user

FORMATS = (
    *("mov", "matroska", "avi", "mpegts", "mpeg", "mpegvideo", "flv", "asf", "ogg", "ivf", "yuv4mpegpipe"),
    *("h264", "hevc", "obu", "m4v", "dv", "mxf", "nut", "gif", "apng"),
    *("wav", "w64", "aiff", "au", "caf", "flac", "mp3", "aac", "amr", "ac3", "eac3", "ape", "wv", "tta"),
)
"""What is read. Playlists (HLS, DASH, concat) and session descriptions, which name other files or the net, are not."""
PICTURE_CODECS = (
    *("h264", "hevc", "av1", "libdav1d", "vp8", "vp9", "libvpx", "libvpx-vp9", "mpeg4", "msmpeg4", "msmpeg4v2"),
    *("msmpeg4v1", "mpeg1video", "mpeg2video", "h263", "h263i", "flv", "theora", "vc1", "wmv1", "wmv2", "wmv3"),
    *("mjpeg", "prores", "dnxhd", "dvvideo", "ffv1", "huffyuv", "ffvhuff", "utvideo", "rawvideo", "wrapped_avframe"),
    *("gif", "png", "apng", "qtrle", "cinepak", "svq1", "svq3"),
)
SOUND_CODECS = (
    *("aac", "aac_latm", "alac", "ac3", "eac3", "amrnb", "amrwb", "ape", "flac", "gsm", "gsm_ms", "mp1", "mp1float"),
    *("mp2", "mp2float", "mp3", "mp3float", "opus", "libopus", "tta", "vorbis", "libvorbis", "wavpack", "wmav1"),
    *("wmav2", "wmapro", "wmalossless", "wmavoice", "adpcm_ms", "adpcm_ima_wav", "adpcm_ima_qt", "adpcm_g722"),
    *("adpcm_g726", "adpcm_swf", "adpcm_yamaha", "dca", "truehd", "libopencore_amrnb", "libopencore_amrwb"),
    *(f"pcm_{form}" for form in ("alaw", "mulaw", "u8", "s8", "bluray", "dvd", "f16le", "f24le", "vidc")),
    *(f"pcm_{form}le" for form in ("s16", "s24", "s32", "s64", "f32", "f64", "u16", "u24", "u32")),
    *(f"pcm_{form}be" for form in ("s16", "s24", "s32", "s64", "f32", "f64", "u16", "u24", "u32")),
)
MAX_STREAMS = 64
"""Video, audio and subtitle streams of one file."""


def pyav(doing: str, instead: str) -> Any:
    """The module `av`.

    Raises:
        LensplugError: If it is not installed.
    """
    try:
        import av
    except ImportError:
        raise LensplugError(f"{doing} PyAV: pip install 'lensplug[video]' (or {instead}).") from None
    return av


@contextmanager
def open_container(av: Any, file: File, *, max_pixels: int) -> Iterator[Any]:
    """What holds the streams of a file.

    Args:
        av: The module.
        file: The file.
        max_pixels: The video decoder itself refuses larger frames.
    """
    options = {
        "format_whitelist": ",".join(FORMATS),
        "codec_whitelist": ",".join((*PICTURE_CODECS, *SOUND_CODECS)),
        "protocol_whitelist": "none",
        "max_streams": str(MAX_STREAMS),
        "max_pixels": str(max_pixels),
    }
    # Metadata in a wrong encoding should not prevent reading; PyAV 19 tolerates it by default.
    lenient = {} if int(av.__version__.partition(".")[0]) >= 19 else {"metadata_errors": "replace"}
    with av.open(file.opened(), options=options, **lenient) as container:
        for stream in container.streams:
            if stream.codec_context is not None:
                stream.codec_context.options = {"max_pixels": str(max_pixels)}
        yield container


def refuse_other_codecs(stream: Any, file: File, codecs: tuple[str, ...], command: str) -> None:
    """Refuse a stream whose codec is not allowed.

    Raises:
        LensplugError: If it has another codec.
    """
    context = stream.codec_context
    if context is None or context.name not in codecs:
        codec = "what no decoder is known for" if context is None else context.name
        raise LensplugError(f"{file} is in {codec}, which is not read: convert it ({command}).")


def cut_short(file: File, said_s: float | None, found_s: float) -> None:
    """Warn if less of a file can be read than its header declares."""
    if said_s is not None and said_s - found_s > max(0.5, 0.05 * said_s):
        warn_user(f"{file} is cut short: its header declares {said_s:.1f} s, of which {found_s:.1f} s can be read.")


def seconds_of(container: Any, stream: Any) -> float | None:
    """The declared length of a stream, in seconds."""
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    if container.duration is not None and len(container.streams) == 1:
        return float(container.duration) / 1e6
    return None

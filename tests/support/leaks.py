"""Whether a text is anywhere in what is passed on: raw, escaped, encoded, compressed, or as metadata of media in it."""

from __future__ import annotations

import gzip
import html
import io
import re
import zlib
from base64 import b64decode
from binascii import Error as NotBase64
from collections.abc import Iterator
from hashlib import sha256
from urllib.parse import unquote_to_bytes

from PIL import Image
from plotly.offline import get_plotlyjs

from lensplug.views.tokens.circuitsvis_widgets import script as circuitsvis_script

BASE64 = re.compile(rb"[A-Za-z0-9+/]{24,}={0,2}")
ESCAPE = re.compile(rb"\\u([0-9a-fA-F]{4})")
DEEPEST = 6
LIBRARIES = {sha256(text.encode()).digest() for text in (get_plotlyjs(), circuitsvis_script())}
"""The scripts that pages embed hold many things that look encoded."""


def where(secret: str, data: bytes) -> list[str]:
    """The ways to each place where the secret is; none is what is wanted.

    Args:
        secret: In lower case, so that what differs in case alone is found too.
        data: What is passed on.
    """
    encodings = [secret.encode(encoding) for encoding in ("utf-8", "utf-16-le", "utf-16-be")]
    return [path for path, layer in layers(data) if any(form in layer.lower() for form in encodings)]


def layers(data: bytes) -> Iterator[tuple[str, bytes]]:
    """What is given, and all that can be decoded from it, each once, with the way to it."""
    waiting, visited = [("raw", data)], set()
    while waiting:
        path, layer = waiting.pop()
        if layer in visited or path.count(">") > DEEPEST:
            continue
        visited.add(layer)
        yield path, layer
        if sha256(layer).digest() not in LIBRARIES:
            waiting += [(f"{path} > {name}", inner) for name, inner in _decoded(layer)]


def _decoded(data: bytes) -> Iterator[tuple[str, bytes]]:
    if data[:2] == b"\x1f\x8b":
        yield "gzip", gzip.decompress(data)
        return
    if data[:1] == b"\x78":
        try:
            yield "zlib", zlib.decompress(data)
        except zlib.error:
            pass
    if data[:8] == b"\x89PNG\r\n\x1a\n" or data[:2] == b"\xff\xd8":
        yield "picture", repr(_information(data)).encode()
        return
    if b"&" in data:
        yield "html", html.unescape(data.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")
    if ESCAPE.search(data):
        yield "json", ESCAPE.sub(lambda match: chr(int(match[1], 16)).encode("utf-8", "surrogatepass"), data)
    if re.search(rb"%[0-9a-fA-F]{2}", data):
        yield "url", unquote_to_bytes(data)
    for match in BASE64.findall(data):
        try:
            yield "base64", b64decode(match + b"=" * (-len(match.rstrip(b"=")) % 4))
        except NotBase64:
            pass


def _information(data: bytes) -> list[object]:
    """Text chunks, EXIF with its places and maker's notes, comments, profiles; of thumbnails too."""
    with Image.open(io.BytesIO(data)) as picture:
        picture.load()
        exif = picture.getexif()
        return [picture.info, dict(exif), *(_part(exif, tag) for tag in (0x8769, 0x8825, 0xA005))]


def _part(exif: Image.Exif, tag: int) -> dict[int, object]:
    try:
        return exif.get_ifd(tag)
    except KeyError:  # an older Pillow, where there is none
        return {}

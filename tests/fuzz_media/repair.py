"""Checksums put right again: a PNG or an Ogg file whose content is wrong is then read past its first check."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable


def png(content: bytes) -> bytes:
    """The CRC of each chunk, as far as the chunks can be followed."""
    fixed, at = bytearray(content), 8
    while at + 12 <= len(fixed):
        (length,) = struct.unpack(">I", fixed[at : at + 4])
        end = at + 8 + length
        if end + 4 > len(fixed):
            break
        fixed[end : end + 4] = struct.pack(">I", zlib.crc32(fixed[at + 4 : end]))
        at = end + 4
    return bytes(fixed)


def ogg(content: bytes) -> bytes:
    """The CRC of each page."""
    fixed, at = bytearray(content), 0
    while at + 27 <= len(fixed) and fixed[at : at + 4] == b"OggS":
        sizes = fixed[at + 27 : at + 27 + fixed[at + 26]]
        end = at + 27 + len(sizes) + sum(sizes)
        fixed[at + 22 : at + 26] = bytes(4)
        fixed[at + 22 : at + 26] = struct.pack("<I", _crc(bytes(fixed[at:end])))
        at = end
    return bytes(fixed)


def _crc(page: bytes) -> int:
    """Ogg's: neither reflected nor inverted, which zlib's is."""
    value = 0
    for byte in page:
        value = ((value << 8) & 0xFFFFFFFF) ^ TABLE[(value >> 24) ^ byte]
    return value


def _entry(index: int) -> int:
    value = index << 24
    for _ in range(8):
        value = ((value << 1) ^ (0x04C11DB7 if value & 0x80000000 else 0)) & 0xFFFFFFFF
    return value


TABLE = [_entry(index) for index in range(256)]
REPAIRS: dict[str, Callable[[bytes], bytes]] = {"png": png, "ogg": ogg}

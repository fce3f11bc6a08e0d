"""A file with something wrong in it: bits flipped, cut, spliced with another, numbers in it made extreme."""

from __future__ import annotations

import random

EXTREMES = [0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**24, 65535, 2**30]
"""What a length, a width or a count is made."""
HEADER = 200
"""Where half of all that is changed is changed: in the first bytes, which say what follows."""


def mutated(seeds: list[bytes], random: random.Random) -> bytes:
    """One of the files, changed in one to three ways; which ones follows from `random` alone."""
    content = bytearray(random.choice(seeds))
    for _ in range(random.randint(1, 3)):
        content = random.choice(WAYS)(content, random, seeds)
    return bytes(content)


def _at(content: bytearray, random: random.Random) -> int:
    end = min(HEADER, len(content)) if random.random() < 0.5 else len(content)
    return random.randrange(max(end, 1))


def _flip(content: bytearray, random: random.Random, _: list[bytes]) -> bytearray:
    for _number in range(random.choice((1, 1, 2, 8, 32))):
        if content:
            content[_at(content, random)] ^= 1 << random.randrange(8)
    return content


def _overwrite(content: bytearray, random: random.Random, _: list[bytes]) -> bytearray:
    at, length = _at(content, random), random.choice((1, 4, 16, 100))
    content[at : at + length] = random.randbytes(length)
    return content


def _exaggerate(content: bytearray, random: random.Random, _: list[bytes]) -> bytearray:
    at, length = _at(content, random), random.choice((2, 4))
    value = random.choice(EXTREMES) & (2 ** (8 * length) - 1)
    content[at : at + length] = value.to_bytes(length, random.choice(("big", "little")))
    return content


def _truncate(content: bytearray, random: random.Random, _: list[bytes]) -> bytearray:
    return content[: _at(content, random) + 1]


def _remove(content: bytearray, random: random.Random, _: list[bytes]) -> bytearray:
    at = _at(content, random)
    del content[at : at + random.choice((1, 2, 30, 1000))]
    return content


def _repeat(content: bytearray, random: random.Random, _: list[bytes]) -> bytearray:
    at = _at(content, random)
    content[at:at] = content[at : at + random.choice((1, 8, 200))] * random.choice((1, 2, 50))
    return content


def _splice(content: bytearray, random: random.Random, seeds: list[bytes]) -> bytearray:
    other = random.choice(seeds)
    return content[: _at(content, random)] + other[random.randrange(len(other)) :]


WAYS = [_flip, _flip, _flip, _overwrite, _exaggerate, _exaggerate, _truncate, _remove, _repeat, _splice]

"""What a tokenizer.json may do to a text: a few characters for each of its, and the same tokens every time.

The tokenizers library obeys it in compiled code that no signal ends: forty replacements of a letter by two make a
prompt of a thousand letters into petabytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lensplug.errors import LensplugError
from lensplug.model_files.json_files import read_object

STEPS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
"""The parts that change texts."""
LONGEST = 1_000
"""Largest allowed length of a text that a step puts in, in characters."""
GROWTH = 1_000.0
"""By how much all steps of a part together may lengthen a text at most."""


def refuse_tokenizer(path: Path) -> None:
    """Raise for a tokenizer.json that lengthens texts without bound, or draws tokens at random.

    Raises:
        LensplugError: Then; the part is named. Also if it is no JSON object.
    """
    tokenizer = read_object(path)
    for part in STEPS:
        growth = 1.0
        for step in _steps(tokenizer.get(part)):
            for name, text in step.items():
                if isinstance(text, str) and len(text) > LONGEST and name != "precompiled_charsmap":
                    raise LensplugError(
                        f"{str(path)!r} has a text of {len(text)} characters in {part}.{name}, expected at most"
                        f" {LONGEST}."
                    )
            growth *= _growth(step)
        if growth > GROWTH:
            raise LensplugError(
                f"{str(path)!r} has steps in {part} that lengthen a text {growth:.3g} times, expected at most"
                f" {GROWTH:.0f} times."
            )
    model = tokenizer.get("model")
    dropout = model.get("dropout") if isinstance(model, Mapping) else None
    if dropout:
        raise LensplugError(
            f"{str(path)!r} has model.dropout = {dropout!r}, with which a text has other tokens each time: set it to"
            " null."
        )


def _steps(part: Any) -> Iterator[Mapping[str, Any]]:
    """The steps of a part, those inside of sequences too."""
    waiting = [part]
    while waiting:
        step = waiting.pop()
        if isinstance(step, Mapping):
            yield step
            waiting += [item for value in step.values() if isinstance(value, list) for item in value]


def _growth(step: Mapping[str, Any]) -> float:
    """By how much a step lengthens a text at most."""
    content, pattern = step.get("content"), step.get("pattern")
    if not isinstance(content, str):
        return 1.0
    replaced = pattern.get("String") if isinstance(pattern, Mapping) else None
    return max(1.0, len(content) / max(1, len(replaced) if isinstance(replaced, str) else 1))

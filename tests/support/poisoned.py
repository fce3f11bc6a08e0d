"""The tiny LLaVA-OneVision with prompts that do harm: for studies whose workers die."""

from __future__ import annotations

import os
import signal
from typing import Any

import lensplug

POISON = "poison"
"""A prompt with this word kills the process that runs it."""


class Poisoned:
    """A lens that is killed by a prompt."""

    def __init__(self, lens: Any) -> None:
        self._lens = lens

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lens, name)

    def prepare(self, text: list[str], **media: Any) -> Any:
        if any(POISON in prompt for prompt in text):
            os.kill(os.getpid(), signal.SIGKILL)
        return self._lens.prepare(text, **media)


def llava_onevision(device: str | None = None, **options: Any) -> Any:
    """What a study loads."""
    return Poisoned(lensplug.tiny.llava_onevision(device=device, **options))

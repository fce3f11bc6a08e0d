"""The word of a prompt that stands for an image, a video or a sound, as its processor reads it.

Most processors repeat that very word for the positions of the medium. Some write another one in its place
(`image_placeholder_token`: Qianfan-OCR), and what a prompt has to hold is the first.
"""

from __future__ import annotations

from typing import Any


def word_for(processor: Any, kind: str) -> str | None:
    """The word for a medium of this kind in a prompt; None where the processor names none.

    Args:
        processor: The model's processor.
        kind: "image", "video" or "audio".
    """
    for name in (f"{kind}_placeholder_token", f"{kind}_token"):
        word = getattr(processor, name, None)
        if isinstance(word, str):
            return word
    return None

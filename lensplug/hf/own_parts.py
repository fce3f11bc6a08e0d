"""The modules of a decoder that are its own, where encoders of media are kept inside it (Phi-4-multimodal, Evolla)."""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import nn

OF_MEDIA = re.compile(r"vision|audio|image|tower|protein|vqmodel|embed_tokens_extend|resampler|qformer", re.I)
"""How children of a decoder are called that read a medium."""


def own_modules(decoder: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Names and modules of a decoder, without encoders of media directly inside it."""
    for name, module in decoder.named_modules():
        if not OF_MEDIA.search(name.partition(".")[0]):
            yield name, module

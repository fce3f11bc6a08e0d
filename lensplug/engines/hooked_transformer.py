"""TransformerLens 3.x: the core as a HookedTransformer that shares the Hugging Face weights."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from lensplug.core import LanguageCore
from lensplug.errors import LensplugError


def build(core: LanguageCore, *, tokenizer: Any = None, process_weights: bool = False) -> Any:
    """A HookedTransformer of the core that takes merged embeddings wherever it takes tokens.

    Raises:
        LensplugError: If TransformerLens has no HookedTransformer any more, or the core is one that it
            does not compute exactly.
    """
    installed = version("transformer-lens")
    if int(installed.split(".")[0]) >= 4:
        raise LensplugError(
            f"TransformerLens {installed} has no HookedTransformer (3.9.0 is the last): pip install 'lensplug[hooked]'."
        )
    from lensplug.patches.config_fix import build_hooked_transformer
    from lensplug.patches.embedding_input import EmbeddingInput

    model = build_hooked_transformer(
        core.decoder, core.head, core.text_config, tokenizer=tokenizer, process_weights=process_weights
    )
    EmbeddingInput(model).apply()
    return model

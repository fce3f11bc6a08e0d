"""TransformerLens 3.x: the core as a HookedTransformer that shares the Hugging Face weights."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from lensplug.core import LanguageCore
from lensplug.errors import LensplugError


def build(core: LanguageCore, *, tokenizer: Any = None, process_weights: bool = False) -> Any:
    """A HookedTransformer of the core, with the patches that make it a multimodal model's.

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
    from lensplug.patches.logit_directions import LogitDirections

    model = build_hooked_transformer(
        core.decoder,
        core.head,
        core.text_config,
        tokenizer=tokenizer,
        process_weights=process_weights,
        model_name=core.name,
    )
    for patch in (EmbeddingInput, LogitDirections):
        patch(model).apply()
    return model

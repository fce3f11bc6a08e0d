"""Which blocks of a decoder use sliding-window attention, in TransformerLens's config terms."""

from __future__ import annotations

from typing import Any


def sliding_windows(text_config: Any) -> dict[str, Any]:
    """`use_local_attn`, `window_size` and `attn_types` of a Hugging Face configuration; empty without a window."""
    window = getattr(text_config, "sliding_window", None)
    if window is None:
        return {}
    layers = getattr(text_config, "layer_types", None) or ["sliding_attention"] * text_config.num_hidden_layers
    types = ["local" if layer == "sliding_attention" else "global" for layer in layers]
    if window >= text_config.max_position_embeddings or "local" not in types:
        return {}  # the window is never left
    return {"use_local_attn": True, "window_size": window, "attn_types": types}

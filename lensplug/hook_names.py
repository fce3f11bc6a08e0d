"""Names in a cache that are not TransformerLens's own: who keeps something and who reads it say the same."""


def head_mean(layer: int) -> str:
    """The mean of one layer's patterns over its heads, `[batch query key]`."""
    return f"blocks.{layer}.attn.head_mean"

"""Names in a cache that are not TransformerLens's own: who keeps something and who reads it say the same."""

ROLLOUT = "rollout"
"""The product of all layers' attention, `[batch query key]`."""
ROLLOUT_ROWS = "rollout_rows"
"""For each layer and row: the residual share, and the attention not on the first position, `[batch layer query 2]`."""


GRADIENT_ROLLOUT = "gradient_rollout"
"""How the names of products of gradient x attention begin."""


def gradient_rollout(contributions: str, exclude_first: bool) -> str:
    """Gradient rollout of some rows without the identity, `[batch row key]`, made with these options."""
    return f"{GRADIENT_ROLLOUT}_{contributions}{'_without_first' if exclude_first else ''}"


def rows_of(name: str) -> str:
    """The positions that the rows of such a product are of, `[batch row]`."""
    return f"{name}_rows"


def head_mean(layer: int) -> str:
    """The mean of one layer's patterns over its heads, `[batch query key]`."""
    return f"blocks.{layer}.attn.head_mean"


def modality_mass(layer: int) -> str:
    """What each query of one layer's heads gives to each modality, `[batch head query part measure]`."""
    return f"blocks.{layer}.attn.modality_mass"


def received(layer: int) -> str:
    """What each key of one layer's heads receives from later queries, `[batch head key measure]`."""
    return f"blocks.{layer}.attn.received"


def cam(layer: int, sign: str = "positive") -> str:
    """The mean over one layer's heads of the positive (negative) part of gradient x pattern, `[batch query key]`."""
    return f"blocks.{layer}.attn.cam_{sign}"

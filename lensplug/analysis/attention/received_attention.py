"""Received attention: how much attention each token receives from the rest of the prompt, in one layer.

Method:

1. Average the pattern of a layer over heads: M, `[query key]` (or select one head).
2. Scale each row to a maximum of 1, so that heads with spread-out and with peaked attention count the same:
   S[q, k] = M[q, k] / max_k' M[q, k'].
3. Average each column over the rows that can see it: received[k] = 1/|Q_k| · Σ_{q ∈ Q_k} S[q, k], with Q_k the queries
   that may attend to k (weights of zero count, masked entries do not). `count` is |Q_k|.

When to use it: to compare tokens of a sound or image with text tokens, as studies of audio-LLaMAs do: are the audio
tokens attended to at all?

When not to use it: in a causal model the token at position i of n is seen by n - i rows, so late values are means of
few entries and noisy (the last is its attention to itself); `over="rows"` divides by all rows instead. In an encoder
every row sees every token. All rows count, generated tokens included. The first token is an attention sink in most
models (`exclude_sink`). Attention is where a head attends, not what it moves; for the prompt as seen by one answer use
`head_specialization` or a rollout.

Example:
    received = analysis.received_attention(cache, layer=0, modality=inputs.modality)
    received.table(k=25).to_csv("received.csv")
    views.received_attention(received, inputs=inputs)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lensplug.analysis.attention.left_out import LeftOut, left_out
from lensplug.analysis.attention.single_layer import Head, OneLayer, read_layer
from lensplug.analysis.attention.visible_positions import visible
from lensplug.analysis.protocols import needs
from lensplug.analysis.provenance import Provenance
from lensplug.analysis.result import Result
from lensplug.cache.activation_cache import ActivationCache
from lensplug.cache.reading import attended, refuse_other_map, texts_of
from lensplug.errors import LensplugError
from lensplug.positions.by_modality import MEDIA, Modality, modality_of
from lensplug.positions.modality_map import ModalityMap
from lensplug.validation.arguments import at_least, check_example, checked
from lensplug.validation.masks import Mask

if TYPE_CHECKING:
    import pandas as pd

RowScale = Literal["row-max", "none"]
"""Every row divided by its largest entry, or left as it is."""
ColumnReading = Literal["seen", "rows", "sum"]
"""How a column of the matrix becomes one number."""
OVER: dict[ColumnReading, str] = {
    "seen": "mean over the rows that may see it",
    "rows": "mean over all rows",
    "sum": "sum over rows",
}
"""How a column becomes one number."""


@dataclass(frozen=True, repr=False)
class ReceivedAttention(Result):
    """What each position receives from the positions that see it."""

    label_columns = ("example", "position", "token", "modality")
    main_number = "received"
    example_depth = {"modalities": 0, "str_tokens": 0}

    values: Float[Tensor, "example pos"]
    """Mean of the column over the rows that may see the position (0 to 1); 0 where there is none, NaN for padding. With
    `over="sum"` their sum."""
    count: Int[Tensor, "example pos"]
    """How many rows that is of."""
    matrix: Float[Tensor, "example query key"]
    """The scaled matrix."""
    layer: int
    head: str
    """ "mean", "sum", or the heads that were averaged, counted from 0."""
    scale: RowScale
    modalities: tuple[tuple[str, ...], ...]
    """Modality of each position; "" where it was not given."""
    str_tokens: tuple[tuple[str, ...], ...]
    """Text of each position; "" where it was not given."""
    provenance: Provenance
    visible: Bool[Tensor, "example query key"] | None = None
    """Which entries of the matrix are of positions that may be attended; None: those that are not zero."""

    @checked
    def by_position(self, example: int = 0) -> dict[str, Float[Tensor, " pos"]]:
        """What each position receives, for overlays."""
        check_example(example, len(self.values))
        return {f"layer {self.layer}": self.values[example]}

    @checked
    def top(self, k: int = 25, *, example: int = 0) -> list[tuple[int, str, float]]:
        """The k positions that receive most: (position, text, value)."""
        at_least(1, k=k)
        positions = self._order(example)[:k].tolist()
        return [(i, self.str_tokens[example][i], float(self.values[example, i])) for i in positions]

    @checked
    def of(self, modality: str, *, example: int = 0) -> list[tuple[int, str, float]]:
        """All positions of a modality: (position, text, value); NaN for what has no value."""
        check_example(example, len(self.values))
        names = self.modalities[example]
        if modality not in names:
            raise LensplugError(f"no position of example {example} is {modality!r}: it has {sorted(set(names))}.")
        chosen = [position for position, name in enumerate(names) if name == modality]
        return [
            (position, self.str_tokens[example][position], float(self.values[example, position])) for position in chosen
        ]

    @checked
    def table(self, k: int = 25) -> pd.DataFrame:
        """The k tokens of each example that receive most, and every image, video and audio token."""
        at_least(1, k=k)
        frame = self.to_dataframe()
        return frame[(frame["rank"] <= k) | frame.modality.isin(MEDIA)].reset_index(drop=True)

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each position that is not padding; rank 1 receives most."""
        import pandas as pd

        frames = []
        for example, values in enumerate(self.values):
            order = self._order(example)
            positions = order.sort().values
            frames.append(
                pd.DataFrame(
                    {
                        "example": example,
                        "position": positions.numpy(),
                        "token": [self.str_tokens[example][i] for i in positions.tolist()],
                        "modality": [self.modalities[example][i] for i in positions.tolist()],
                        "received": values[positions].numpy(),
                        "rank": order.argsort().numpy() + 1,
                        "entries": self.count[example][positions].numpy(),
                    }
                )
            )
        return pd.concat(frames, ignore_index=True)

    def _order(self, example: int) -> Int[Tensor, " kept"]:
        """The positions that have a value, the one that receives most first; of equal ones the earlier first."""
        check_example(example, len(self.values))
        values = self.values[example]
        order = values.nan_to_num(-1).argsort(descending=True, stable=True)
        return order[: int((~values.isnan()).sum())]


@needs("attn.hook_pattern")
@checked
def received_attention(
    cache: ActivationCache,
    *,
    layer: int = 0,
    head: Head | Literal["sum"] = "mean",
    scale: RowScale = "row-max",
    over: ColumnReading = "seen",
    exclude_sink: bool = False,
    sinks: LeftOut = None,
    modality: Modality | None = None,
    str_tokens: Sequence[Sequence[str]] | None = None,
    attention_mask: Mask | None = None,
) -> ReceivedAttention:
    """Column means of a layer's attention matrix.

    Args:
        cache: An ActivationCache with the layer's `hook_pattern`, or its mean over heads
            (`lens.run_with_cache(..., keep="head_mean")`).
        layer: Which layer; negative ones count from the last.
        head: "mean" over all heads, "sum" over them, one head, or several to average.
        scale: "row-max" (every row divided by its largest entry) or "none".
        over: How a column becomes one number: "seen", its mean over the rows that may see the position (not padding,
            in a causal model not earlier, within a sliding window); "rows", its mean over all rows that are not
            padding; or "sum".
        exclude_sink: Leave out the first position that is not padding; rows are scaled by the largest of the rest.
        sinks: Positions that are left out in its place: "first"; what `analysis.sinks` found; positions, or a mask
            `[batch pos]`. None: what `exclude_sink` says.
        modality: `inputs.modality`, or the inputs, to name media.
        str_tokens: To name tokens, for a cache that has none: of TransformerLens alone, or made without `tokens`.
        attention_mask: For a padded cache that TransformerLens made alone; the lens's caches carry theirs.

    Raises:
        LensplugError: If the layer or a head is not there, or what names the positions does not fit.
    """
    modality = None if modality is None else modality_of(modality)
    layer_attention = _one_layer(cache, layer, head)
    fused = layer_attention.attention
    shape = (fused.shape[0], fused.shape[-1])
    modalities = _modalities(cache, modality, shape)
    texts = texts_of(cache, str_tokens, shape)
    if attention_mask is None and modality is not None:
        attention_mask = modality.attention_mask
    mask = attended(cache, shape, attention_mask, fused.device).bool()
    is_left_out, words = left_out(sinks, mask.long(), first=exclude_sink, first_option="exclude_sink")
    is_counted = mask if is_left_out is None else mask & ~is_left_out
    matrix = (fused * mask[:, :, None] * is_counted[:, None]).cpu()
    is_visible = (
        visible(cache, layer_attention.layer, mask.long(), fused, modality=modality) & is_counted[:, None]
    ).cpu()
    if scale == "row-max":
        largest = matrix.amax(dim=-1, keepdim=True)
        matrix = torch.where(largest > 0, matrix / largest, 0.0)
    count = is_visible.sum(dim=1)
    if over == "rows":
        count = mask.sum(dim=1, keepdim=True).cpu() * is_counted.cpu()
    values = matrix.sum(dim=1) / (1 if over == "sum" else count.clamp(min=1))
    values = values.masked_fill(~is_counted.cpu(), torch.nan)
    convention = f"{layer_attention.in_words}, " + (
        "rows scaled to maximum 1" if scale == "row-max" else "rows as they are"
    )
    convention += "" if over == "seen" else f"; {OVER[over]}"
    convention += "" if is_left_out is None else f"; {words}"
    return ReceivedAttention(
        values=values,
        count=count,
        matrix=matrix,
        layer=layer_attention.layer,
        head=layer_attention.head,
        scale=scale,
        modalities=modalities,
        str_tokens=texts,
        provenance=Provenance.of(cache, "received_attention", convention),
        visible=is_visible,
    )


def _one_layer(cache: ActivationCache, layer: int, head: Head | Literal["sum"]) -> OneLayer:
    if not isinstance(head, str) or head != "sum":
        return read_layer(cache, layer, head, needed_by="received_attention")
    mean = read_layer(cache, layer, "mean", needed_by="received_attention")
    pattern = cache.cache_dict.get(f"blocks.{mean.layer}.attn.hook_pattern")
    heads = pattern.shape[-3] if pattern is not None else cache.model.cfg.n_heads
    return OneLayer(mean.attention * heads, mean.layer, "sum", f"layer {mean.layer}, sum of all heads")


def _modalities(
    cache: ActivationCache, modality: ModalityMap | None, shape: tuple[int, int]
) -> tuple[tuple[str, ...], ...]:
    """The modality of each position, "" where it was not given."""
    if modality is None:
        return (("",) * shape[1],) * shape[0]
    if tuple(modality.attention_mask.shape) != shape:
        received_shape = list(modality.attention_mask.shape)
        raise LensplugError(
            f"modality is for {received_shape} positions, the cache is {list(shape)}: give that of its inputs."
        )
    refuse_other_map(cache, shape, modality)
    return tuple(map(tuple, modality.position_names))

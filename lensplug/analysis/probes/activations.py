"""Activations of a batch, one vector for each example and layer: what probes are trained on.

Method:

1. Choose an activation by TransformerLens's short name: the residual stream after, before or within a block, what
   attention or the MLP adds to it, the outputs of heads (`z`), or the MLP's neurons.
2. At one position p of each example: v[example, layer] = a[layer, p].
3. Or pooled, over the set P of its positions of a modality: v[example, layer] = Σ_{p ∈ P} a[layer, p] / |P|. Padding is
   in no set. The sum is in fp32, the vector in the activation's own dtype: bfloat16 stays bfloat16, also in a file.

When to use it: to collect a data set, batch after batch, each saved as a file (`result.save`), for `analysis.probe`,
which reads the files layer by layer. Other programs read them with safetensors alone.

When not to use it: to look at one prompt, for which the cache is enough; or for patterns (`head_specialization`).

What a run must keep depends on the hook. `needs` is that of the residual stream after each block; for another give the
run a `functools.partial` of this analysis with the same hook, or the hook's name as a filter (`names_filter="z"`).

Example:
    from functools import partial
    _, cache = lens.run_with_cache(inputs, needs=partial(analysis.activations, hook="mlp_out"))
    patches = analysis.activations(cache, inputs.modality, hook="mlp_out", pool="image")
    patches.vectors                                  # [example layer d_model]
    patches.save("batch-0.safetensors")
    _, cache = lens.run_with_cache(inputs, needs=analysis.activations, residual_positions=[-1], logit_positions=[-1])
    analysis.activations(cache, inputs.modality)     # the residual stream at the last position
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lensplug.analysis.protocols import needs_with
from lensplug.analysis.provenance import Provenance
from lensplug.analysis.result import Result
from lensplug.cache.activation_cache import ActivationCache, known
from lensplug.cache.reading import layer_index, n_layers, read, read_residuals, refuse_other_map
from lensplug.errors import LensplugError
from lensplug.positions.by_modality import Modality, Where, mask_at, modality_of, named
from lensplug.positions.indices import Position, resolve_position
from lensplug.positions.modality_map import ModalityMap
from lensplug.validation.arguments import checked
from lensplug.validation.finite import refuse_not_finite

if TYPE_CHECKING:
    import pandas as pd

Hook = Literal["resid_post", "resid_pre", "resid_mid", "attn_out", "mlp_out", "z", "mlp_post"]
"""TransformerLens's short names of what can be collected."""
ENDINGS: Mapping[Hook, str] = {
    "resid_post": "hook_resid_post",
    "resid_pre": "hook_resid_pre",
    "resid_mid": "hook_resid_mid",
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
    "z": "attn.hook_z",
    "mlp_post": "mlp.hook_post",
}
"""The names of the hooks in a block."""


@dataclass(frozen=True, repr=False)
class Activations(Result):
    """A vector for each example and layer; for heads' outputs, one for each head."""

    label_columns = ("example", "layer", "head")
    main_number = "norm"

    vectors: Float[Tensor, "example layer *head d_act"]
    """`[example layer d_act]`; of `z` `[example layer head d_head]`. In the activations' own dtype."""
    positions: Int[Tensor, " example"]
    """How many positions a vector is the mean of: 1 without `pool`."""
    layers: tuple[int, ...]
    """The layer of each entry."""
    hook: Hook
    provenance: Provenance

    def to_dataframe(self) -> pd.DataFrame:
        """The length of each vector, one row for each example, layer and head; head -1 is the stream of all heads."""
        import pandas as pd

        norm = self.vectors.float().norm(dim=-1)
        by_head = norm if norm.ndim == 3 else norm[..., None]
        example, layer, head = (
            axis.flatten().numpy() for axis in torch.meshgrid(*map(torch.arange, by_head.shape), indexing="ij")
        )
        return pd.DataFrame(
            {
                "example": example,
                "layer": torch.tensor(self.layers)[layer].numpy(),
                "head": head if norm.ndim == 3 else -1,
                "norm": by_head.flatten().double().numpy(),
                "positions": self.positions[example].numpy(),
            }
        )


@checked
def _reads(*, hook: Hook = "resid_post", **others: Any) -> Callable[[str], bool]:
    """Whether a hook is read, by its name, with these options of `activations`."""
    ending = ENDINGS[hook]
    return lambda name: name.endswith(ending)


@needs_with(_reads)
@checked
def activations(
    cache: ActivationCache,
    modality: Modality,
    *,
    hook: Hook = "resid_post",
    position: Position = -1,
    pool: Where | None = None,
    layers: Sequence[int] | None = None,
) -> Activations:
    """One vector for each example and layer of a batch.

    Args:
        cache: An ActivationCache with this hook of every layer; of the residual stream, one that kept chosen positions
            will do (`residual_positions=`), if those are read.
        modality: `inputs.modality`, or the inputs.
        hook: What is collected, by TransformerLens's short name: "resid_post", "resid_pre" (of layer 0: the embedding),
            "resid_mid", "attn_out", "mlp_out"; "z", the heads' outputs; "mlp_post", the MLP's neurons.
        position: Where, the same for every example or one for each; negative ones count from the last that is not
            padding.
        pool: In its place, the mean over these positions: a modality ("image"), several, "media", or a mask
            `[batch pos]` (an object's patches). Padding is left out.
        layers: Which layers, in this order; negative ones count from the last. All by default.

    Returns:
        Vectors `[example layer d_act]`, of "z" `[example layer head d_head]`, on the CPU.

    Raises:
        LensplugError: If an activation is missing or not finite, the map is another batch's, a position is out of range
            or padding, an example has no position to pool, or a layer is not there.
    """
    if pool is not None and not (isinstance(position, int) and position == -1):
        raise LensplugError(f"position={position!r} and pool={pool!r} both say where to read: give one of them.")
    chosen_layers = _layers(cache, layers)
    names = [f"blocks.{layer}.{ENDINGS[hook]}" for layer in chosen_layers]
    modality_map = modality_of(modality)
    refuse_other_map(cache, _shape(cache, names, hook), modality_map)
    if pool is None:
        index = resolve_position(position, modality_map.attention_mask)[:, None]
        exists, convention = torch.ones_like(index).bool(), f"{hook} at one position"
    else:
        index, exists = _pooled(pool, modality_map)
        convention = f"{hook}, mean over positions, padding left out"
    vectors = []
    for layer, value in zip(chosen_layers, _at(cache, names, hook, index), strict=True):
        vector = _mean(value, exists.to(value.device))
        refuse_not_finite(f"{hook} of layer {layer}", vector, "use bfloat16 or float32 (fp16 ends at 65,504)")
        vectors.append(vector.cpu())
    return Activations(
        vectors=torch.stack(vectors, dim=1),
        positions=exists.sum(dim=1).cpu(),
        layers=chosen_layers,
        hook=hook,
        provenance=Provenance.of(
            cache,
            "activations",
            convention,
            query=position if pool is None else None,
            options={"hook": hook} if pool is None else {"hook": hook, "pool": _in_words(pool)},
        ),
    )


def _layers(cache: ActivationCache, layers: Sequence[int] | None) -> tuple[int, ...]:
    """The layers that are meant, each once."""
    if layers is None:
        return tuple(range(n_layers(cache)))
    if not len(layers):
        raise LensplugError("layers is empty: give at least one layer, or None for all.")
    chosen = tuple(layer_index(cache, layer) for layer in layers)
    twice = [layer for index, layer in enumerate(chosen) if layer in chosen[:index]]
    if twice:
        raise LensplugError(f"layers has {twice[0]} twice: give each once.")
    return chosen


def _shape(cache: ActivationCache, names: Sequence[str], hook: Hook) -> tuple[int, int]:
    """The number of examples and of positions of the input."""
    missing = [name for name in names if name not in cache.cache_dict]
    if missing:
        raise LensplugError(
            f"the cache does not hold {missing[0]!r}: run with needs=partial(analysis.activations, hook={hook!r}), or"
            f" names_filter={hook!r}."
        )
    value = cache.cache_dict[names[0]]
    shape = value.shape[:2] if cache.has_batch_dim else (1, *value.shape[:1])
    is_cut = hook.startswith("resid") and known(cache, "residual_positions") is not None
    return tuple(known(cache, "attention_mask").shape) if is_cut else (int(shape[0]), int(shape[1]))


def _pooled(pool: Where, modality: ModalityMap) -> tuple[Int[Tensor, "batch place"], Bool[Tensor, "batch place"]]:
    """The positions of each example that are pooled, in order, and which of these there are: examples differ."""
    names = named(pool)
    if names is not None and "pad" in names:
        raise LensplugError(f"pool is {pool!r}, and padding means nothing: give other modalities.")
    real = modality.attention_mask.bool()
    chosen = mask_at(pool, modality, real.shape, "pool", against="the modality map is").to(real.device) & real
    count = chosen.sum(dim=1)
    if not bool(count.all()):
        example = int((count == 0).nonzero()[0])
        raise LensplugError(
            f"example {example} has no position that is {_in_words(pool)!r}: leave it out, or pool others."
        )
    most = int(count.max())
    in_order = (~chosen).long().argsort(dim=1, stable=True)[:, :most]
    exists = torch.arange(most, device=count.device) < count[:, None]
    return torch.where(exists, in_order, in_order[:, :1]), exists


def _in_words(pool: Where) -> str:
    names = named(pool)
    return "chosen by a mask" if names is None else ", ".join(names)


def _at(
    cache: ActivationCache, names: Sequence[str], hook: Hook, index: Int[Tensor, "batch place"]
) -> Iterator[Float[Tensor, "batch place *head d_act"]]:
    """Each activation at chosen positions."""
    if hook.startswith("resid"):
        yield from read_residuals(cache, names, index, needed_by="activations")
        return
    for name in names:
        value = read(cache, name, needed_by="activations")
        examples = torch.arange(len(value), device=value.device)[:, None]
        yield value[examples, index.to(value.device)]


def _mean(
    value: Float[Tensor, "batch place *head d_act"], exists: Bool[Tensor, "batch place"]
) -> Float[Tensor, "batch *head d_act"]:
    """The mean over the places that there are, summed in fp32 at least."""
    wide = value.to(torch.promote_types(value.dtype, torch.float32))
    exists = exists.view(*exists.shape, *(1 for _ in range(value.ndim - 2)))
    mean: Tensor = wide.masked_fill(~exists, 0).sum(dim=1) / exists.sum(dim=1)
    return mean.to(value.dtype)

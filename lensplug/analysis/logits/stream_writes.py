"""The residual stream of a cache at a few rows, and what each attention and MLP layer added to it there.

What was added is the difference of two states of the stream, not the output of a layer: in bfloat16 the stream rounds
what is added, and only the differences sum to where it ends. It is also what a run keeps of few positions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lensplug.cache.activation_cache import ActivationCache
from lensplug.cache.reading import n_layers, read, read_residuals
from lensplug.errors import LensplugError

TERMS = ("hook_per_layer_out", "hook_deepstack")
"""What blocks add to the stream besides attention and MLP, by hook, in their order."""


@dataclass(frozen=True)
class StreamShares:
    """What the embedding, and attention and MLP of each layer, write along directions."""

    embedding: Float[Tensor, " example"]
    attention: Float[Tensor, "example layer"]
    mlp: Float[Tensor, "example layer"]
    added: dict[str, Float[Tensor, " example"]]
    """"0_deepstack", "3_per_layer_out": what blocks add besides."""


@dataclass(frozen=True)
class StreamWrites:
    """The states of the stream at some rows, in fp32 at least, where the directions are.

    Of what is added before or in layer l, `left[l]` is left at the end: some models multiply the stream behind layers.
    """

    before: Float[Tensor, "layer example row d_model"]
    middle: Float[Tensor, "layer example row d_model"]
    after: Float[Tensor, "layer example row d_model"]
    added: dict[tuple[int, str], Float[Tensor, "example row d_model"]]
    """Layer and hook -> what its block adds besides attention and MLP (features of the image in Qwen3-VL)."""
    last_as_cached: Float[Tensor, "example row d_model"]
    """The stream at the end, in the model's dtype."""
    left: tuple[float, ...]
    """A number for each layer, and 1 for the end."""

    @property
    def last(self) -> Float[Tensor, "example row d_model"]:
        """The stream at the end."""
        return self.after[-1]

    def written(self, directions: Float[Tensor, "example row d_model"]) -> StreamShares:
        """What writes along the directions, summed over the rows."""
        # In double precision, on the processor: the sum of the differences is then where the stream ends, exactly.
        before, middle, after = (
            torch.einsum("lerd,erd->el", state.cpu().double(), directions.cpu().double())
            for state in (self.before, self.middle, self.after)
        )
        left = torch.tensor(self.left, dtype=torch.float64)
        # Behind a layer its own number has been at work: what is left of it is the next layer's.
        mlp = after * left[1:] - middle * left[:-1]
        added = {}
        for (layer, kind), term in self.added.items():
            share = torch.einsum("erd,erd->e", term.cpu().double(), directions.cpu().double())
            share *= self.left[layer + (kind == "hook_deepstack")]  # which is added behind it too
            mlp[:, layer] -= share
            added[f"{layer}_{kind.removeprefix('hook_')}"] = share
        return StreamShares(before[:, 0] * left[0], (middle - before) * left[:-1], mlp, added)

    def squares(self, directions: Float[Tensor, "example row d_model"]) -> Float[Tensor, " example"]:
        """The sum of the squares of all products of stream and direction: what rounding grows with."""
        left = torch.tensor(self.left).to(self.before).view(-1, 1, 1, 1)
        states = torch.cat([self.before[:1] * left[0], self.middle * left[:-1], self.after * left[1:]])
        return (states * directions).square().sum(dim=(0, 2, 3)).cpu().double()


def read_stream(
    cache: ActivationCache, rows: Int[Tensor, "example row"], *, needed_by: str, like: Tensor
) -> StreamWrites:
    """The stream at some rows, of a cache that kept these or all.

    Where a block has no stream between attention and MLP (they run side by side, or there is no MLP), the output of
    attention stands for it.

    Args:
        cache: With `hook_resid_pre`, `hook_resid_mid` and `hook_resid_post` of every layer.
        rows: From the left.
        needed_by: The analysis, for an error.
        like: A tensor of the dtype and on the device that are wanted.

    Raises:
        LensplugError: If a state is missing, or lacks one of the rows.
    """
    layers = range(n_layers(cache))

    def states(kind: str) -> Sequence[Tensor]:
        names = [f"blocks.{layer}.{kind}" for layer in layers]
        return list(read_residuals(cache, names, rows, needed_by=needed_by))

    before, after = states("hook_resid_pre"), states("hook_resid_post")
    if "blocks.0.hook_resid_mid" in cache.cache_dict or "blocks.0.hook_attn_out" not in cache.cache_dict:
        _refuse_side_by_side(cache, needed_by)
        middle = states("hook_resid_mid")
    else:
        outputs = [read(cache, f"blocks.{layer}.hook_attn_out", needed_by=needed_by) for layer in layers]
        examples = torch.arange(len(rows))[:, None]
        middle = [
            state.to(like) + output[examples, rows.to(output.device)].to(like)
            for state, output in zip(before, outputs, strict=True)
        ]
    adding = terms_of(cache.model)
    terms = read_residuals(cache, [f"blocks.{layer}.{name}" for layer, name in adding], rows, needed_by=needed_by)
    added = {place: term.to(like) for place, term in zip(adding, terms, strict=True)}
    wide = [torch.stack([state.to(like) for state in each]) for each in (before, middle, after)]
    scales = getattr(cache.model.cfg, "stream_scales", None) or (1.0,) * len(layers)
    left = tuple(float(math.prod(scales[layer:])) for layer in range(len(layers) + 1))
    return StreamWrites(wide[0], wide[1], wide[2], added, after[-1].to(like.device), left)


def terms_of(model: Any) -> list[tuple[int, str]]:
    """What blocks of a model add to the stream besides attention and MLP: layer and hook."""
    names, layers = getattr(model, "hook_dict", {}), range(len(getattr(model, "blocks", ())))
    return [(layer, name) for layer in layers for name in TERMS if f"blocks.{layer}.{name}" in names]


def _refuse_side_by_side(cache: ActivationCache, needed_by: str) -> None:
    """Say what to keep where a model has no `hook_resid_mid`."""
    cfg = getattr(cache.model, "cfg", None)
    if getattr(cfg, "parallel_attn_mlp", False) or getattr(cfg, "attn_only", False):
        raise LensplugError(
            f"{needed_by} needs 'blocks.0.hook_attn_out' of this model, whose blocks have no stream between attention"
            " and MLP: run without names_filter, or with 'attn_out' in it."
        )
